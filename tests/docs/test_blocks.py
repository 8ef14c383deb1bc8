"""No code block is passed over: each is parsed, validated, executed or compared here, and commands are run by files beside."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from safetensors.numpy import load_file

from documents import PAGES, ROOT, Block, blocks_of, commands_of, name_of
from edge_sd.cli.main import app
from edge_sd.diffusion import SCHEDULES, compile_plan
from edge_sd.diffusion.execute import execute
from edge_sd.export import targets
from edge_sd.pipeline.config import load_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
# Formulas: page and first words → what computes them, and is tested for it.
FORMULAS = {
    ("README.md", "m    ← p·x"): "test_the_formulas_are_the_loop",
    ("docs/PLANS.md", "x, base ← start·z"): "test_the_formulas_are_the_loop",
    ("docs/BUNDLE.md", "counter = (block"): "tests/snippets/: noise in Python and JavaScript, to the bit",
    ("docs/BUNDLE.md", "u = (2·w₀ + 1)"): "tests/snippets/: likewise",
    ("docs/BUNDLE.md", "ln u = e·0.69"): "tests/snippets/: likewise",
}
# What stands for something else in a command line that is only shown.
ELLIPSIS = {"…": ["--data", "photos/", "-o", "runs/teacher"]}


def of_kind(*kinds: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind in kinds]


def test_there_is_no_other_kind() -> None:
    known = {"shell", "indented", "text", "yaml", "json", "python"}
    assert not [str(block) for block in BLOCKS if block.kind not in known]
    assert len(of_kind("shell")) > 30


def test_indented_blocks_that_are_no_commands_are_known_formulas() -> None:
    found = {key for key in FORMULAS for block in of_kind("indented") if block.page == key[0] and block.text.startswith(key[1])}
    assert found == set(FORMULAS)
    assert len(of_kind("indented")) == len(FORMULAS), [str(block) for block in of_kind("indented")]


def test_the_formulas_are_the_loop() -> None:
    """The three lines, evaluated as they stand on both pages, row by row, against `execute`."""
    plan = compile_plan(SCHEDULES["cosine"], solver="unipc", steps=6, prediction="v", analytic_first_step=True)
    rng = np.random.default_rng(0)
    z, predictions = rng.standard_normal((1, 2, 3, 3)), rng.standard_normal((len(plan), 1, 2, 3, 3))
    wanted = execute(plan, lambda x, row: predictions[row], z, lambda row: z)
    for page in ("README.md", "docs/PLANS.md"):
        lines = [line.strip() for block in of_kind("indented") if block.page == page for line in block.text.split("\n")]
        formulas = [re.split(r"\s{3,}", line.replace("←", " ← ", 1))[0:2] for line in lines]
        text = "\n".join(" ".join(parts) for parts in formulas)
        for needed in ("p·x + q·e", "u·x + a·base + Σ_j b_j·m_j", "a_next·base + Σ_j b_next_j·m_j + c·z"):
            assert needed in text, page
    x = base = plan.start_scale * z
    memory: list[np.ndarray] = []
    for row, e in enumerate(predictions):
        value = {name: float(plan.columns[name][row]) for name in ("p", "q", "u", "a", "a_next", "c")}
        memory = [value["p"] * x + value["q"] * e, *memory][: plan.header.history]
        base = value["u"] * x + value["a"] * base + sum(b * m for b, m in zip(plan.columns["b"][row], memory, strict=False))
        x = value["a_next"] * base + sum(b * m for b, m in zip(plan.columns["b_next"][row], memory, strict=False))
        x = x + value["c"] * z
    assert np.allclose(x, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", of_kind("yaml"), ids=str)
def test_yaml_is_a_configuration(block: Block, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(block.text)
    assert isinstance(yaml.safe_load(block.text), dict)
    load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("block", of_kind("json") or [Block("none", 0, "json", "{}")], ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", of_kind("python"), ids=str)
def test_python_runs(
    block: Block,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """What is part of a snippet is the snippet's own text, which tests/snippets/ runs; all else is executed."""
    snippet = (ROOT / "snippets" / "loop.py").read_text()
    if block.page == "docs/INTEGRATION.md":
        assert block.text in snippet
        return
    monkeypatch.chdir(tmp_path)
    if '"emoji64"' in block.text:  # a file of that name stands for it
        shutil.copy2(request.getfixturevalue("stand_ins") / "emoji64", tmp_path)
    exec(compile(block.text, str(block), "exec"), {"__name__": "documentation"})  # noqa: S102 (our own documentation)


@pytest.mark.parametrize("block", of_kind("text"), ids=str)
def test_output_stands_behind_a_command(block: Block) -> None:
    """Whose words test_page_commands.py compares."""
    before = [one for one in BLOCKS if one.page == block.page and one.line < block.line]
    assert before
    assert before[-1].kind == "shell", f"{block} is the output of nothing"


@pytest.mark.parametrize("block", of_kind("shell"), ids=str)
def test_commands_parse(block: Block) -> None:
    """By the command line's own parser: verbs and options exist, values are of their kind, nothing required is missing."""
    commands = commands_of(block)
    assert commands
    for words in commands:
        CHECKS[words[0]](words)


def edge_sd(words: list[str]) -> None:
    command: typer.core.TyperGroup | typer.core.TyperCommand = typer.main.get_command(app)  # type: ignore[assignment]
    words = [part for word in words for part in ELLIPSIS.get(word, [word])]
    while hasattr(command, "commands"):
        assert words, f"edge-sd has commands of {command.name}; none is given"
        assert words[0] in command.commands, f"edge-sd has no {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    with command.make_context(str(command.name), list(words)):
        pass


def make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words[1:]:
        assert "=" in word or word in targets, f"the Makefile has no target {word}"


def pip(words: list[str]) -> None:
    assert words[1] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[2:]:
        name, _, extras = word.rstrip("]").partition("[")
        assert name == project["name"]
        assert not {one for one in extras.split(",") if one} - project["optional-dependencies"].keys()


def python(words: list[str]) -> None:
    """A script of ours, whose options stand in its text; or a module of edge-sd."""
    if words[1] == "-m":
        assert (ROOT / words[2].replace(".", "/") / "__main__.py").is_file()
        return
    script = ROOT / words[1]
    assert script.is_file(), f"{words[1]} is not there"
    text = script.read_text()
    for word in words[2:]:
        assert not word.startswith("--") or f'"{word}"' in text, f"{words[1]} has no {word}"


def node(words: list[str]) -> None:
    assert (ROOT / words[1]).is_file()


def cmake(words: list[str]) -> None:
    if words[1] == "-S":
        assert (ROOT / words[2] / "CMakeLists.txt").is_file()


def built(words: list[str]) -> None:
    assert "add_executable(loop " in (ROOT / "snippets" / "CMakeLists.txt").read_text()


def launched(words: list[str]) -> None:
    """torchrun or accelerate launch, which are others': what stands behind `-m edge_sd` is ours."""
    at = words.index("-m")
    assert words[at + 1] == "edge_sd"
    edge_sd(words[at + 2 :])


CHECKS = {
    "edge-sd": lambda words: edge_sd(words[1:]), "make": make, "pip": pip, "python": python, "node": node, "cmake": cmake,
    "out/loop/loop": built, "torchrun": launched, "accelerate": launched,
}  # fmt: skip


def test_the_table_of_noise_is_what_the_noise_is() -> None:
    from edge_sd.diffusion.noise import gaussian

    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| ([−\d]+) \| [^|]* \| `([0-9a-f ]+)` \|$",
        (ROOT / "docs" / "INTEGRATION.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 3
    for seed, index, row, bits in rows:
        values = gaussian(int(seed), int(index), int(row.replace("−", "-")), (4,))
        assert [f"{value:08x}" for value in values.view(np.uint32)] == bits.split()


def test_the_plan_and_golden_tables_name_every_column(tmp_path: Path) -> None:
    """Columns and header fields on the pages are those of files, and no others."""
    from edge_sd.bundle import GoldenHeader
    from edge_sd.diffusion.plan import PlanHeader

    plan = compile_plan(SCHEDULES["cosine"], solver="unipc", steps=4, prediction="v", analytic_first_step=True)
    plan.with_features(np.zeros((len(plan), 3), np.float32)).save(tmp_path / "plan.safetensors")
    plans, bundle = ((ROOT / "docs" / name).read_text() for name in ("PLANS.md", "BUNDLE.md"))
    assert first_cells(plans, "| column |") == set(load_file(tmp_path / "plan.safetensors"))
    assert first_cells(plans, "| field |") == set(PlanHeader.model_fields)
    golden = bundle[bundle.index("## Golden trajectories") :]
    assert first_cells(golden, "| field |") == set(GoldenHeader.model_fields)
    assert first_cells(golden, "| tensor |") == {f"i.{name}" for name in ("samples", "predictions", "features", "final", "image")}


def first_cells(text: str, heading: str) -> set[str]:
    """Names in the first column of the table that begins with a heading."""
    rows = text[text.index(heading) :].split("\n\n")[0].split("\n")[2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_the_manifest_table_names_every_field() -> None:
    from edge_sd.bundle import Manifest

    named = first_cells((ROOT / "docs" / "BUNDLE.md").read_text(), "| field |")
    schema = Manifest.model_json_schema()
    fields = set(fields_of(schema, schema["$defs"], ""))
    whole = {"model", "noise_schedule"}  # a runner does not read them: they are described as one
    expected = {field for field in fields if field.partition(".")[0] not in whole} | whole | {"model.num_classes"}
    expected = {field for field in expected if not field.startswith("contracts[].outputs[].")}
    assert named == expected


def fields_of(node: dict, definitions: dict, path: str) -> list[str]:  # type: ignore[type-arg]
    """Every path of a JSON Schema, `[]` for the elements of a list of objects, `*` for any key."""
    node = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    own = [path] if path else []
    if "anyOf" in node:
        return list(dict.fromkeys(one for part in node["anyOf"] for one in fields_of(part, definitions, path)))
    if "properties" in node:
        start = [] if path.endswith("*") or not path else own
        return start + [
            one for name, part in node["properties"].items() for one in fields_of(part, definitions, f"{path}.{name}".lstrip("."))
        ]
    if node.get("type") == "array" and "$ref" in node.get("items", {}):
        return fields_of(node["items"], definitions, f"{path}[]")
    if "$ref" in (node.get("additionalProperties") or {}):
        return own + fields_of(node["additionalProperties"], definitions, f"{path}.*")
    return own


def test_generated_parts_are_not_stale() -> None:
    import subprocess

    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"python docs/generate.py mends it:\n{done.stdout}{done.stderr}"


def test_the_table_of_targets_has_every_target_and_nothing_else() -> None:
    """What stands in it was said by exporters once (docs/generate.py --measure); here it must still be possible."""
    rows = json.loads((ROOT / "docs" / "targets.json").read_text())
    assert {row["target"] for row in rows} == set(targets())
    assert {row["bits"] for row in rows} == {"float", "W8A8", "W4A8", "W4"}
    assert len(rows) == len(targets()) * 4
    for row in rows:
        if row["bits"] == "float":
            assert row["computed"] == {}
        else:
            assert sum(row["computed"].values()) == pytest.approx(1, abs=0.005)
            assert row["stored"] >= int(row["bits"][1])


def test_every_command_has_a_page_and_the_index_names_it() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {info.name or info.callback.__name__.replace("_", "-") for info in app.registered_commands if info.callback}
    pages |= {str(group.name) for group in app.registered_groups}
    assert {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")} == pages
    assert not {name for name in pages if f"commands/{name}.md" not in index}


def test_the_pages_are_named_as_they_are() -> None:
    assert "README.md" in {name_of(page) for page in PAGES}
    assert len(PAGES) > 25
