"""A bundle's card: complete, true, made of the bundle alone; and its code draws what the reference drew."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sd.bundle import Bundle, open_bundle
from edge_sd.bundle.manifest import CARD, REFERENCE
from edge_sd.checkpoint import Checkpoint
from edge_sd.decoder import Decoder
from edge_sd.diffusion import Plan, compile_plan
from edge_sd.export import ExportRequest, export_bundle, swap_plan
from edge_sd.export._card import card
from edge_sd.export._card_code import onnx_code
from edge_sd.pretrained import SHIPPED, note_of
from edge_sd.quantize.checkpoint import load_any

SECTIONS = ["Use", "Limits", "Data and licence", "Model", "Programs", "How to run it", "Files"]


@pytest.fixture(scope="module")
def torch_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The reference alone."""
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("card") / "tiny.edgesd", ExportRequest((), steps=3, goldens=1))


@pytest.fixture(scope="module")
def in_onnx(make_checkpoint: Callable[..., Checkpoint], decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Latents, their decoder, and ONNX alone."""
    path = tmp_path_factory.mktemp("card") / "latent.edgesd"
    return export_bundle(make_checkpoint(), path, ExportRequest(("onnx",), steps=4, goldens=1), decoder=decoder)


def text_of(bundle: Bundle) -> str:
    return (bundle.path / CARD).read_text("utf-8")


def onnx_code_of(bundle: Bundle, plan: Plan) -> str:
    """The code of a bundle as if it had an ONNX program."""
    program = bundle.program("torch").model_copy(update={"target": "onnx", "file": "denoiser.onnx"})
    return onnx_code(bundle.manifest.model_copy(update={"programs": (program,)}), plan)


def difference(bundle: Bundle, folder: Path) -> float:
    """Run a card's Python in a copy of its folder, away from edge-sd's: what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", text_of(bundle), re.DOTALL)
    copied = shutil.copytree(bundle.path, folder / "bundle")
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=copied, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"largest difference to the reference: (\S+)\n", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def test_all_that_a_card_has(in_onnx: Bundle) -> None:
    """Of all platforms: the programs are ONNX's, under every target's name."""
    manifest, header = in_onnx.manifest, load_any(in_onnx.path / REFERENCE).header
    exported = [program for program in manifest.programs if program.target == "onnx"]
    others = [one.model_copy(update={"target": target}) for target in ("executorch", "coreml") for one in exported]
    text = card(manifest.model_copy(update={"programs": (*manifest.programs, *others)}), in_onnx.plan, header)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    for said in ("Licence of the data: not stated.", "Licence of the weights: not stated.", "Trained on: not stated"):
        assert said in text
    parts = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert parts == [
        "With edge-sd", "Python, ONNX Runtime", "A browser", "Android and Linux boards, ExecuTorch", "Apple, Core ML",
    ]  # fmt: skip
    assert re.findall(r"^### (.*)$", text_of(in_onnx), re.MULTILINE) == parts[:3]
    for program in manifest.programs:
        size = manifest.files[program.file].bytes
        assert f"| {program.name} | {program.target} | `{program.file}` | {size:,} |" in text_of(in_onnx)
    sizes = {name: entry.bytes for name, entry in manifest.files.items() if name != CARD}
    assert f"{len(sizes)} files, {sum(sizes.values()):,} bytes beside this one" in text_of(in_onnx)


def test_a_bundle_without_programs_says_so(torch_bundle: Bundle) -> None:
    text = text_of(torch_bundle)
    assert "it has no program for a device yet" in text
    assert "### Python" not in text


@pytest.mark.parametrize("solver", ["unipc-3"])
def test_its_code_draws_what_the_reference_drew(solver: str, make_checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> None:
    request = ExportRequest(("onnx",), solver=solver, steps=4, goldens=1)
    assert difference(export_bundle(make_checkpoint(), tmp_path / "x.edgesd", request), tmp_path) < 1e-3


def test_its_code_makes_rows_of_a_class(make_checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> None:
    request = ExportRequest(("onnx",), solver="ddim", steps=3, goldens=1)
    bundle = export_bundle(make_checkpoint(num_classes=3), tmp_path / "x.edgesd", request)
    assert "the class" in text_of(bundle)
    assert difference(bundle, tmp_path) < 1e-3


def test_its_code_decodes_latents(in_onnx: Bundle, tmp_path: Path) -> None:
    assert '{"latent": x.astype(np.float32)}' in text_of(in_onnx)
    assert difference(in_onnx, tmp_path) < 1e-3


def test_noise_is_added_where_the_plan_does(torch_bundle: Bundle) -> None:
    plan = compile_plan(torch_bundle.manifest.noise_schedule, 3, solver="ddpm", prediction=torch_bundle.manifest.prediction)
    assert plan.stochastic
    assert 'plan["c"][row] *' in onnx_code_of(torch_bundle, plan)
    assert 'plan["c"][row] *' not in onnx_code_of(torch_bundle, torch_bundle.plan)


def test_it_is_made_of_the_bundle_alone(torch_bundle: Bundle) -> None:
    opened = open_bundle(torch_bundle.path)
    others = {name: entry for name, entry in opened.manifest.files.items() if name != CARD}
    header = load_any(opened.path / REFERENCE).header
    assert text_of(opened) == card(opened.manifest.model_copy(update={"files": others}), opened.plan, header)


def test_another_plan_is_another_card(torch_bundle: Bundle, tmp_path: Path) -> None:
    swapped = swap_plan(torch_bundle, torch_bundle.plan.bare(), tmp_path / "other.edgesd")
    assert text_of(swapped).startswith("# other\n")


def test_what_is_known_of_shipped_weights() -> None:
    digest = load_any(SHIPPED["emoji64"]).header.digest
    note = note_of([digest])
    assert note is not None
    assert "noto-emoji" in note.data
    assert "Apache-2.0" in note.licence
    assert note_of(["0" * 64]) is None
