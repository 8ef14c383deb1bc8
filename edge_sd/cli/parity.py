"""`edge-sd parity`: does an exported program draw what the reference draws?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.bundle import Bundle
    from edge_sd.errors import EdgeSDError
    from edge_sd.runtimes.evidence import Evidence
    from edge_sd.runtimes.parity import Gate, ParityResult

_ALL = "all"


def parity(
    bundle: Annotated[Path, typer.Argument(help="Bundle NAME.edgesd.")],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            help="edge-sd list runtimes; all: emulated ones too; left out: all that run the bundle here, not emulated.",
        ),
    ] = None,
    device: option.Devices = None,
    gate: Annotated[
        float | None, typer.Option("--gate", help="Lowest decibels at any teacher-forced step, in place of margin and budget.")
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", help="How far below the noise floor a lossless program may be, in dB.", min=0)
    ] = 20.0,
    budget: Annotated[float, typer.Option("--budget", help="Lowest decibels of a quantized program at any step.")] = 10.0,
    locate: Annotated[
        bool, typer.Option("--locate", help="Of each runtime that is not proved, name the first module that diverges.")
    ] = False,
    threads: option.Threads = None,
    patience: option.Patience = 120.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for parity.json, parity.html and the pictures.")
    ] = None,
    overwrite: option.Overwrite = False,
    as_json: option.AsJson = False,
) -> None:
    """Compare runtimes with the golden trajectories, step by step and band by band; exit code 3 where one is not proved.

    The gate is measured: the noise floor is the reference against itself with other threads, kernels, layouts and roundings.

    With --device the job is done there, by what is there: the bundle's goldens travel with it.

    Example: edge-sd parity student.edgesd --runtime onnxruntime --runtime coreml-reference -o parity
    """
    from edge_sd.bundle import open_bundle
    from edge_sd.errors import ParityError, UsageError
    from edge_sd.report.parity import difference_sheet, write_parity
    from edge_sd.runtimes.parity import Gate

    if output is not None and output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "give --overwrite to write into it, or another -o")
    opened = open_bundle(bundle)
    asked = Gate(margin_db=margin, budget_db=budget, fixed_db=gate)
    found, broken = _results(opened, _places(opened, device, runtime), asked, threads, patience)
    results = [result for result, _ in found]
    if output is not None and results:
        write_parity(output, results, {result.title: difference_sheet(opened.golden, evidence) for result, evidence in found})
    if as_json:
        print("[" + ",\n".join(result.model_dump_json(indent=2) for result in results) + "]")
    elif results:
        _print_tables(results)
    if broken:
        raise broken[0]
    unproved = [result for result in results if not result.passed]
    if locate:
        _locate(opened, unproved)
    if unproved:
        again = f"edge-sd parity {bundle} --runtime {unproved[0].runtime} --device {unproved[0].device}"
        hint = f"{again} -o FOLDER draws where" if locate else f"{again} --locate names the module"
        raise ParityError("; ".join(result.verdict for result in unproved), hint)


def _locate(bundle: "Bundle", unproved: "list[ParityResult]") -> None:
    from edge_sd.cli._console import say
    from edge_sd.devices._bench import target_of
    from edge_sd.runtimes.locate import locate

    if not unproved:
        say("nothing to locate: every runtime draws what the reference draws")
    for result in unproved:
        say(f"looking into {result.title}; where a program is lowered anew for it this takes a minute")
        say(locate(bundle, target_of(result.runtime), result).verdict)


def _names(bundle: "Bundle", asked: list[str] | None) -> list[str]:
    """Names of runtimes: those that were asked for, or those that run the bundle's programs on this machine."""
    from edge_sd.runtimes import runtimes

    if asked and _ALL not in asked:
        return list(dict.fromkeys(asked))
    targets = {program.target for program in bundle.manifest.programs}
    fitting = [runtime for runtime in runtimes().values() if runtime.target in targets and runtime.available().ok]
    return [runtime.name for runtime in fitting if asked or not runtime.emulated]


def _places(bundle: "Bundle", devices: list[str] | None, asked: list[str] | None) -> list[tuple[str, str]]:
    """(device, runtime) of all that is to be proved; an empty runtime is the device's choice."""
    pairs = []
    for place in dict.fromkeys(devices or ["host"]):
        names = _names(bundle, asked) if place == "host" else _names_on(place, bundle, asked)
        pairs += [(place, name) for name in names]
    return pairs


def _names_on(place: str, bundle: "Bundle", asked: list[str] | None) -> list[str]:
    from edge_sd.devices import find_device

    if asked and _ALL not in asked:
        return list(dict.fromkeys(asked))
    if not asked:
        return [""]
    device, address = find_device(place)
    with device.open(address) as connection:
        return list(connection.runtimes(bundle))


def _results(
    bundle: "Bundle", pairs: list[tuple[str, str]], gate: "Gate", threads: int | None, patience: float
) -> "tuple[list[tuple[ParityResult, tuple[Evidence, ...]]], list[EdgeSDError]]":
    """Every result and its evidence, and the errors of those that broke: one does not stop the others."""
    from edge_sd.cli._console import progress, say
    from edge_sd.devices import Job, prove
    from edge_sd.errors import EdgeSDError
    from edge_sd.runtimes import find_runtime
    from edge_sd.runtimes.floor import Floor, noise_floor
    from edge_sd.runtimes.parity import check_parity, precision_of

    floors: dict[str, Floor] = {}

    def measure_floor(target: str) -> Floor:
        precision = precision_of(bundle, target)
        if precision not in floors:
            with progress(f"noise floor of {precision}") as update:
                floors[precision] = noise_floor(bundle, precision, lambda done, total: update(done, total, ""))
        return floors[precision]

    found, broken = [], []
    for place, name in pairs:
        try:
            if place == "host":
                floor = measure_floor(find_runtime(name).target)
                with progress(f"parity of {name}") as update:
                    found.append(
                        check_parity(
                            bundle, name, gate=gate, floor=floor, threads=threads,
                            observe=lambda done, total: update(done, total, ""),
                        )
                    )  # fmt: skip
                continue
            for target in {program.target for program in bundle.manifest.programs} & {"onnx", "executorch"}:
                measure_floor(target)
            with progress(f"parity on {place}") as update:
                job = Job(runtime=name, threads=threads or 1, patience=patience)
                found.append(prove(place, bundle, job, gate=gate, floors=floors, observe=update))  # type: ignore[arg-type]
        except EdgeSDError as error:
            broken.append(error)
            if len(pairs) > 1:
                say(f"{place} {name}: {error.message}")
    return found, broken


def _print_tables(results: "list[ParityResult]") -> None:
    from edge_sd.cli._console import print_table

    columns = ("step", "timestep", *(f"{result.title} forced (free) dB" for result in results))
    rows = [
        (steps[0].row, steps[0].timestep, *(f"{step.forced.value_db:.1f} ({step.free_running_db:.1f})" for step in steps))
        for steps in zip(*(result.steps for result in results), strict=True)
    ]
    print_table(f"{results[0].bundle} against {results[0].reference}: SNR at each step", columns, rows)
    summary = []
    for result in results:
        step, band = result.worst_step, result.worst_band
        summary.append(
            (
                result.title + (" (emulated)" if result.emulated else ""),
                result.outcome,
                f"{step.forced.value_db:.1f} at step {step.row}",
                f"{step.forced.gate_db:.1f}",
                f"{step.forced.floor_db:.1f}",
                "–" if band is None else f"{band[0].bands[band[1]].value_db:.1f}, {band[1]} at step {band[0].row}",
                f"{result.lowest_free_db:.1f}",
                f"{result.final.psnr_db:.1f}",
                "–" if result.final.ssim is None else f"{result.final.ssim:.4f}",
            )
        )
    first = results[0]
    wanted = "a stated budget" if first.quantized else f"{first.gate.margin_db:g} dB below the noise floor"
    note = (
        f"worst of {first.trajectories} trajectories; 200 dB is equal bit for bit. The gate is {wanted}; the floor is the "
        f"reference against itself with {', '.join(first.perturbations)}.\n"
        + "\n".join(f"{name}: {definition}" for name, definition in first.definitions.items())
        + "\n"
        + "\n".join(result.verdict for result in results)
    )
    names = ("runtime", "outcome", "worst step, dB", "gate", "floor", "worst band, dB", "free-running", "PSNR", "SSIM")
    print_table("Parity", names, summary, note)
