"""Recipes: read back as they were written, a line a layer, applied again, and refused with the fault's name."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.models import ModelConfig
from edge_sd.models.attention_forms import Attend
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize._quantize import plan_of, quantize
from edge_sd.quantize.calibration import Calibration, CalibrationRequest, capture
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.layers import layers_of, points_of
from edge_sd.quantize.recipe import LayerRecipe, Recipe, default_layers, described, load_recipe, overridden
from edge_sd.quantize.reconstruction import ReconstructionSettings

MakeModel = Callable[..., SpectralUNet]

layers = st.builds(
    LayerRecipe,
    bits=st.none() | st.integers(2, 8),
    group=st.none() | st.integers(2, 64),
    scales=st.sampled_from(["minmax", "mse"]),
    input=st.sampled_from([None, 8, 16]),
    output=st.sampled_from([None, 8, 16]),
    why=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=30),
)


# On disk


def test_it_comes_back_and_has_a_line_a_layer(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    recipe.save(path)
    assert load_recipe(path) == recipe
    lines = path.read_text().splitlines()
    first = lines.index("layers:") + 1
    assert [line.partition(":")[0].strip() for line in lines[first:]] == list(recipe.layers)
    assert "  down.0.block.conv1: {bits: 4, input: 8, output: 8}" in lines
    assert '  conv_out: {bits: 8, why: "the last convolution: 8 bits, computed in float"}' in lines
    before = path.read_bytes()
    load_recipe(path).save(path)
    assert path.read_bytes() == before


@given(st.lists(layers, min_size=4, max_size=4))
@settings(max_examples=60)
def test_whatever_a_layer_says_comes_back(values: list[LayerRecipe]) -> None:
    """Whatever is said of why, too: quotes, colons, braces."""

    recipe = Recipe(model=ModelConfig(image_size=16, width=32), layers=dict(zip("abcd", values, strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        recipe.save(Path(folder) / "recipe.yaml")
        assert load_recipe(Path(folder) / "recipe.yaml") == recipe


@pytest.mark.parametrize("text", ["layers: [", "a: b: c", "\x00", b"\xff\xfe\x00"])
def test_what_is_not_yaml(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=r"recipe\.yaml is not YAML"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["", "[]", "kind: plan", "recipe"])
def test_what_is_no_recipe(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"recipe\.yaml is no recipe"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match="cannot read"):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(EdgeSDError, match="cannot read"):
        load_recipe(tmp_path)


FAULTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "unknown field": (lambda values: values.update(sovler="ddim"), "sovler: Extra"),
    "unknown field of a layer": (lambda values: values["layers"]["conv_in"].update(bit=4), r"layers\.conv_in\.bit: Extra"),
    "one bit": (lambda values: values["layers"]["conv_in"].update(bits=1), r"layers\.conv_in\.bits.*greater than or equal to 2"),
    "nine bits": (lambda values: values["layers"]["conv_in"].update(bits=9), r"layers\.conv_in\.bits.*less than or equal to 8"),
    "no bits": (lambda values: values["layers"]["conv_in"].pop("bits"), r"layers\.conv_in\.bits: Field required"),
    "activations of 4 bits": (lambda values: values["layers"]["conv_in"].update(input=4), r"layers\.conv_in\.input"),
    "a group of one": (lambda values: values["layers"]["conv_in"].update(group=1), r"layers\.conv_in\.group"),
    "no steps": (lambda values: values.update(steps=0), "steps"),
    "five groups": (lambda values: values.update(groups=5), "groups"),
    "another version": (lambda values: values.update(schema_version=2), "schema_version"),
    "no model": (lambda values: values.pop("model"), "model: Field required"),
    "no layers": (lambda values: values.update(layers=None), "layers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    recipe.save(path)
    values = yaml.safe_load(path.read_text())
    FAULTS[fault][0](values)
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match=rf"recipe\.yaml: {FAULTS[fault][1]}"):
        load_recipe(path)


# Which layers


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": (1,)},
        {"gating": False, "resample": "block"},
        {"num_classes": 3, "class_conditioning": "context", "context_dim": 6, "context_tokens": 2},
    ],
)
def test_layers_are_those_of_the_form(changes: dict[str, object], make_model: MakeModel) -> None:
    model = make_model(**changes)
    form = quantizable_form(model)
    found = described(model.config)
    assert set(found) == {*layers_of(form), *(name for name, part in form.named_modules() if isinstance(part, Attend))}
    for name, layer in layers_of(form).items():
        assert layer.weight is not None
        assert found[name].weights == layer.weight.numel()
    recipe = Recipe(model=model.config, layers=default_layers(model.config, 4, 8))
    recipe.check(model.config)
    assert set(recipe.point_bits(form)) <= set(points_of(form))


def test_what_is_treated_otherwise_says_why(parent: Checkpoint) -> None:
    found, about = default_layers(parent.header.model, 4, 8), described(parent.header.model)
    for name, layer in found.items():
        usual = layer.bits in (4, None) and layer.input == 8
        assert bool(layer.why) != usual, name
    assert (found["conv_in"].bits, found["conv_out"].bits) == (8, 8)
    assert {layer.bits for name, layer in found.items() if ".gate." in name} == {8}
    assert {layer.input for name, layer in found.items() if ".skip" in name} == {None}
    few = {name: layer for name, layer in found.items() if about[name].tokens == 64}
    many = {name: layer for name, layer in found.items() if about[name].tokens == 256}
    assert {layer.input for layer in few.values()} == {None}
    assert {layer.input for layer in many.values()} == {8}
    assert {layer.output for layer in many.values()} == {None}


def test_weights_alone(parent: Checkpoint) -> None:
    found = default_layers(parent.header.model, 4, None, group=4, scales="minmax")
    assert {(layer.input, layer.output) for layer in found.values()} == {(None, None)}
    assert {layer.grid.group for layer in found.values() if layer.grid is not None and layer.grid.bits == 4} == {4}
    assert {layer.grid.method for layer in found.values() if layer.grid is not None} == {"minmax"}


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_bits_that_there_are_not(bits: int, parent: Checkpoint) -> None:
    with pytest.raises(UsageError, match=f"cannot have {bits} bits"):
        default_layers(parent.header.model, bits, 8)


# Overrides


def test_overrides_by_pattern(recipe: Recipe) -> None:
    found = overridden(recipe.layers, ["up.*=6", "up.0.block.conv1=float", "conv_out=3"])
    for name, layer in found.items():
        before = recipe.layers[name]
        if name == "up.0.block.conv1":
            assert (layer.bits, layer.why) == (None, "asked for: up.0.block.conv1=float")
        elif name.startswith("up."):
            assert (layer.bits, layer.why) == (6, "asked for: up.*=6")
        elif name == "conv_out":
            assert layer.bits == 3
        else:
            assert layer == before
        kept = (None, None) if layer.bits is None and before.bits is not None else (before.input, before.output)
        assert (layer.input, layer.output, layer.group) == (*kept, before.group)


@pytest.mark.parametrize("override", ["up.*=9", "up.*=1", "up.*=", "up.*", "up.*=four", "up.*=-4", "up.*=4.0", "up.*=²"])
def test_an_override_that_says_no_bits(override: str, recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="does not say how many bits"):
        overridden(recipe.layers, [override])


def test_an_override_of_no_layer(recipe: Recipe) -> None:
    with pytest.raises(UsageError, match=r"no layer is called down\.0\.conv1") as caught:
        overridden(recipe.layers, ["down.0.conv1=8"])
    assert "down.0.block.conv1" in caught.value.hint


# Of another model


def test_a_layer_that_there_is_not(recipe: Recipe, parent: Checkpoint) -> None:
    wrong = recipe.model_copy(update={"layers": {**recipe.layers, "down.0.block.conv3": LayerRecipe(bits=4)}})
    with pytest.raises(UsageError, match=r"does not have: down\.0\.block\.conv3") as caught:
        wrong.check(parent.header.model)
    assert "down.0.block.conv1" in caught.value.hint


def test_a_layer_that_is_left_out(recipe: Recipe, parent: Checkpoint) -> None:
    rest = {name: layer for name, layer in recipe.layers.items() if name != "middle.1.block.conv2"}
    with pytest.raises(UsageError, match=r"says nothing of layer middle\.1\.block\.conv2"):
        recipe.model_copy(update={"layers": rest}).check(parent.header.model)


def test_a_recipe_of_another_model(recipe: Recipe, make_model: MakeModel) -> None:
    with pytest.raises(UsageError, match="another model: gating is True there, False here"):
        recipe.check(make_model(gating=False, attention=(1,), head_channels=4).config)


def test_a_recipe_is_applied_to_other_weights_of_the_same_model(recipe: Recipe, make_model: MakeModel, tmp_path: Path) -> None:
    """Read back from a file, with the cut of the steps that was found for the first."""
    model = make_model(8, attention=(1,), head_channels=4)
    other = Checkpoint.of(model, SCHEDULES["cosine"], "v", Provenance(made_by="train"))
    fixed = recipe.model_copy(update={"starts": (0, 2), "reconstruction": ReconstructionSettings(iterations=0)})
    fixed.save(tmp_path / "recipe.yaml")
    read = load_recipe(tmp_path / "recipe.yaml")
    inputs = capture(model, plan_of(other, read), CalibrationRequest(trajectories=1), other.header.digest)
    result = quantize(other, read, inputs, tmp_path / "blocks")
    assert result.checkpoint.header.recipe == fixed
    assert result.checkpoint.header.provenance.parents["float"] == other.header.digest
    assert all(len(grids) == 2 for grids in result.grids.values())


@pytest.mark.parametrize("starts", [(1, 3), (0, 3, 2), (0, 0), (0, 6)])
def test_steps_that_cannot_be_cut(
    starts: tuple[int, ...], recipe: Recipe, parent: Checkpoint, calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot be cut"):
        quantize(parent, recipe.model_copy(update={"starts": starts}), calibration, tmp_path)


def test_a_recipe_cannot_be_changed(recipe: Recipe) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        recipe.steps = 3  # type: ignore[misc]
