"""`edge-sd doctor`: what this machine has, what works, and the command that mends what does not."""

import importlib
import importlib.util
import os
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from edge_sd.cli import _options as option
from edge_sd.errors import InstallationError
from edge_sd.quiet import quiet

# Distributions whose module has another name.
_MODULES = {"PyWavelets": "pywt", "pillow": "PIL", "pyyaml": "yaml"}
# What takes seconds to import; found is as good as imported unless somebody looks for what is wrong.
_SLOW = ("accelerate", "coremltools", "datasets", "diffusers", "nncf", "onnxscript")


@dataclass(frozen=True)
class Finding:
    """One line of the report: state is ok, missing (an optional package), untested (a version outside the range) or broken."""

    subject: str
    state: str
    detail: str
    remedy: str = ""


def doctor(
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Import every package, those too that take seconds, to see whether it can be.")
    ] = False,
    form: option.Form = "text",
) -> None:
    """Check the installation: versions, runtimes, cores, memory. Exit code 5 if something needed is broken.

    Example: edge-sd doctor --thorough
    """
    from edge_sd.cli._console import print_table

    findings = [*_machine(), *_packages(thorough), *_runtimes(), *_devices()]
    if form == "json":
        import json

        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        rows = [list(asdict(finding).values()) for finding in findings]
        note = "" if thorough else f"found, not imported: {', '.join(_SLOW)}; edge-sd doctor --thorough imports them too"
        print_table("edge-sd doctor", ("what", "state", "detail", "mend with"), rows, note)
    broken = [finding for finding in findings if finding.state == "broken"]
    if broken:
        raise InstallationError(f"{broken[0].subject} is broken: {broken[0].detail}", broken[0].remedy)


def _machine() -> list[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    return [
        Finding("python", "ok", f"{platform.python_version()}, {sys.executable}"),
        Finding(
            "cores",
            "ok",
            f"{psutil.cpu_count(logical=False) or os.cpu_count()} cores, {os.cpu_count()} threads, {platform.machine()}",
        ),
        Finding("memory", "ok", f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free"),
    ]


def _packages(thorough: bool) -> list[Finding]:
    """Every dependency of the distribution: installed, within the tested range, and importable."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    findings: dict[str, Finding] = {}
    for line in requires("edge-sd") or []:
        requirement = Requirement(line)
        extra = next(
            (
                name
                for name in ("executorch", "coreml", "nncf", "search", "diffusers")
                if requirement.marker and requirement.marker.evaluate({"extra": name})
            ),
            None,
        )
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if (not needed and extra is None) or requirement.name in findings:
            continue
        remedy = f'pip install "{requirement.name}{requirement.specifier}"' if needed else f'pip install "edge-sd[{extra}]"'
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            findings[requirement.name] = Finding(requirement.name, "broken" if needed else "missing", "not installed", remedy)
            continue
        try:
            module = _MODULES.get(requirement.name, requirement.name.replace("-", "_"))
            if requirement.name in _SLOW and not thorough:
                if importlib.util.find_spec(module) is None:
                    raise ImportError(f"no module {module}")
            else:
                with quiet():
                    importlib.import_module(module)
        except Exception as error:  # whatever an import can raise is a broken installation
            findings[requirement.name] = Finding(requirement.name, "broken", f"{found} does not import: {error}", remedy)
            continue
        tested = requirement.specifier.contains(found, prereleases=True)
        findings[requirement.name] = Finding(
            requirement.name,
            "ok" if tested else "untested",
            found if tested else f"{found}, tested: {requirement.specifier}",
            "" if tested else remedy,
        )
    return list(findings.values())


def _runtimes() -> list[Finding]:
    from edge_sd.runtimes import runtimes

    findings = []
    for name, runtime in runtimes().items():
        available = runtime.available()
        findings.append(Finding(f"runtime {name}", "ok" if available.ok else "missing", available.detail, available.remedy))
    return findings


def _devices() -> list[Finding]:
    from edge_sd.devices import devices

    findings = []
    for name, device in devices().items():
        available = device.available()
        findings.append(Finding(f"device {name}", "ok" if available.ok else "missing", available.detail, available.remedy))
    return findings
