"""Write the parts of README.md and docs/ that are generated from code: python docs/generate.py [--check] [--measure BUNDLE …].

Tables of options come from the command line's own definitions, presets and the manifest's JSON Schema from the models, the table
of targets from targets.json, which --measure writes from bundles: of each target and kind of bits, what the exporter said that it
stored and computed. They are those of `edge-sd export emoji64 --target all` and `edge-sd quantize emoji64 --bits B --act-bits A
--groups 1 --iterations 0 --target all`; other roundings have the same bits. With --check nothing is written: exit code 1, and the
names of the files that are stale.
"""

import argparse
import enum
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import typer
from pydantic.json_schema import GenerateJsonSchema
from typer.main import get_params_from_function
from typer.models import ArgumentInfo, OptionInfo, ParamMeta

from edge_sd.bundle import Manifest, open_bundle
from edge_sd.bundle.manifest import Program
from edge_sd.cli.main import app
from edge_sd.devices import devices
from edge_sd.files import write_text
from edge_sd.models import PRESETS
from edge_sd.models.count import count
from edge_sd.runtimes import runtimes

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
COMMANDS, SCHEMA, TARGETS = DOCS / "commands", DOCS / "manifest.schema.json", DOCS / "targets.json"
README, MODELS = ROOT / "README.md", DOCS / "MODELS.md"
_END = "<!-- end -->"


# The command line


def verbs() -> dict[str, typer.models.CommandInfo]:
    """Every command by what is typed: `export`, `plan make`."""
    return dict(_verbs(app, ""))


def _verbs(part: typer.Typer, before: str) -> Iterator[tuple[str, typer.models.CommandInfo]]:
    for command in part.registered_commands:
        yield before + (command.name or typing.cast(Callable[..., None], command.callback).__name__), command
    for group in part.registered_groups:
        yield from _verbs(typing.cast(typer.Typer, group.typer_instance), f"{before}{group.name} ")


def options_table(command: typer.models.CommandInfo) -> str:
    """A row an argument or option, as Markdown."""
    rows = ["| argument or option | values | what it is |", "| --- | --- | --- |"]
    rows += [
        _row(name, meta) for name, meta in get_params_from_function(typing.cast(Callable[..., None], command.callback)).items()
    ]
    return "\n".join(rows)


def _row(name: str, meta: ParamMeta) -> str:
    info = meta.default
    default = meta.default
    annotation = meta.annotation
    if not isinstance(info, (ArgumentInfo, OptionInfo)):
        raise TypeError(f"{name} is neither an argument nor an option")
    default = info.default
    if isinstance(info, ArgumentInfo):
        title = f"`{info.metavar or name.upper()}`"
    else:
        title = ", ".join(f"`{one}`" for one in info.param_decls or (f"--{name.replace('_', '-')}",))
    values = _values(annotation)
    if info.min is not None or info.max is not None:
        low, high = ("" if limit is None else f"{limit:g}" if limit < 1e6 else "" for limit in (info.min, info.max))
        values += f" {low}–{high}" if low and high else f", at least {low}" if low else ""
    about = (info.help or "").replace("|", r"\|").strip()
    if default is ...:
        about += " Required."
    elif default not in (None, False, "", [], ()):
        shown = default.value if isinstance(default, enum.Enum) else default
        about += f" Default: `{shown}`."
    return f"| {title} | {values.strip()} | {about} |"


def _values(annotation: object) -> str:
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return r" \| ".join(f"`{one.value}`" for one in annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return r" \| ".join(f"`{one}`" for one in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(_values(one) for one in typing.get_args(annotation) if one is not type(None))
    if typing.get_origin(annotation) is list:
        return f"{_values(typing.get_args(annotation)[0])}, several times"
    names = {bool: "", str: "text", Path: "path", int: "integer", float: "number"}
    return names[typing.cast(type, annotation)]


def page_of(verb: str) -> Path:
    """Where a command is described: sub-commands on their group's page."""
    return COMMANDS / f"{verb.partition(' ')[0]}.md"


# Targets


def measured(bundles: list[Path]) -> list[dict[str, object]]:
    """What the denoisers of bundles are stored and computed in, by target."""
    rows = []
    for path in bundles:
        bundle = open_bundle(path)
        for program in bundle.manifest.programs:
            if program.name == "denoiser" and program.target != "torch":
                rows.append({"bits": _bits(program), "target": program.target, **_facts(program, bundle.manifest)})
    return sorted(rows, key=lambda row: (str(row["target"]), _ORDER.index(str(row["bits"]))))


_ORDER = ["float", "W8A8", "W4A8", "W4A16", "W8", "W4"]


def _bits(program: Program) -> str:
    weights = {layer.requested for layer in program.layers} - {None}
    activations = {layer.requested_activations for layer in program.layers} - {None}
    if not weights:
        return "float"
    return f"W{min(weights)}" + (f"A{min(activations)}" if activations else "")


def _facts(program: Program, manifest: Manifest) -> dict[str, object]:
    layers = program.layers
    total = sum(layer.weights for layer in layers)
    computed: dict[str, float] = {}
    for layer in layers:
        computed[layer.computed] = computed.get(layer.computed, 0.0) + layer.weights / total
    files = [name for name in manifest.files if name == program.file or name.startswith(f"{program.file}/")]
    return {
        "stored": round(sum(layer.stored * layer.weights for layer in layers) / total, 2) if total else None,
        "computed": {name: round(share, 3) for name, share in sorted(computed.items(), key=lambda item: -item[1])},
        "options": program.options,
        "bytes": sum(manifest.files[name].bytes for name in files),
        "why": sorted({layer.why for layer in layers if layer.fell_back and layer.why}),
    }


def targets_table(rows: list[dict[str, typing.Any]]) -> str:
    """Targets × bits × what runs, as Markdown; runtimes by the registry."""
    lines = ["| target | asked for | bits a weight, stored | computed in, by share of the weights | run by |", "|" + " --- |" * 5]
    for row in rows:
        if row["computed"]:
            computed = ", ".join(f"{_named(name)} {share:.0%}" for name, share in row["computed"].items() if share >= 0.005)
            stored = f"{row['stored']:g}"
        else:
            width = 16 if row["options"].get("precision") == "fp16" else 32
            computed, stored = f"float{width}", str(width)
        lines.append(f"| `{row['target']}` | {row['bits']} | {stored} | {computed} | {_run_by(row['target'])} |")
    return "\n".join(lines)


def _named(computed: str) -> str:
    return "what the device decides" if computed == "device" else computed


def _run_by(target: str) -> str:
    names = [
        f"`{name}`" + (" (imitated)" if one.emulated else " (evaluated)" if one.evaluates else "")
        for name, one in runtimes().items()
        if one.target == target
    ]
    names += [f"`{name}`" for device in devices().values() for name, known in device.own_runtimes.items() if known == target]
    return ", ".join(names)


# Presets


def presets_table() -> str:
    """Every preset with what is counted and what was published, as Markdown."""
    lines = ["| preset | sample | parameters (published) | GMACs (published) | with attention | for |", "|" + " --- |" * 6]
    for name, preset in PRESETS.items():
        found, known = count(preset.config), preset.published
        channels, size, _ = preset.config.sample_shape
        parameters = f"{found.parameters / 1e6:.1f} M" + (f" ({known.parameters_m:.1f})" if known else "")
        macs = f"{found.macs / 1e9:.2f}" + (f" ({known.gmacs:.1f})" if known else "")
        with_attention = f"{(found.macs + found.attention_macs) / 1e9:.2f}"
        lines.append(f"| `{name}` | {channels}×{size}×{size} | {parameters} | {macs} | {with_attention} | {preset.about} |")
    return "\n".join(lines)


# Files


class Written(GenerateJsonSchema):
    """The schema of what is written: every field, also those that have a default."""

    def field_is_required(self, field: typing.Any, total: bool) -> bool:
        return True


def between(text: str, mark: str, content: str) -> str:
    """Put content between `<!-- mark -->` and the next `<!-- end -->`.

    Raises:
        ValueError: the text has no such place.
    """
    place = re.compile(rf"(<!-- {re.escape(mark)} -->\n).*?(\n{re.escape(_END)})", re.DOTALL)
    if not place.search(text):
        raise ValueError(f"there is no <!-- {mark} --> … {_END}")
    return place.sub(lambda found: f"{found[1]}\n{content}\n{found[2]}", text)


def generated() -> dict[Path, str]:
    """Every generated file, or file with generated parts, as it should be."""
    schema = Manifest.model_json_schema(schema_generator=Written)
    files: dict[Path, str] = {SCHEMA: json.dumps(schema, indent=1, ensure_ascii=False) + "\n"}
    for verb, command in verbs().items():
        page = page_of(verb)
        files[page] = between(files.get(page, page.read_text()), f"options: {verb}", options_table(command))
    files[MODELS] = between(MODELS.read_text(), "presets", presets_table())
    files[README] = between(README.read_text(), "targets", targets_table(json.loads(TARGETS.read_text())))
    return files


def main() -> int:
    """Write what is generated, or compare."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a file is stale")
    parser.add_argument("--measure", nargs="+", type=Path, metavar="BUNDLE", help="bundles that targets.json is made of")
    asked = parser.parse_args()
    if asked.measure:
        write_text(TARGETS, json.dumps(measured(asked.measure), indent=1, ensure_ascii=False) + "\n")
    stale = {path: text for path, text in generated().items() if not path.is_file() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{'stale:' if asked.check else 'wrote'} {path.relative_to(ROOT)}")
        if not asked.check:
            write_text(path, text)
    return int(asked.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
