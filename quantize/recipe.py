"""The recipe: how each layer of a model is quantized, and why. A file that can be read, changed, compared and applied again.

YAML, a line a layer:

    layers:
      down.0.block.conv1: {bits: 4, input: 8, output: 8}
      conv_out: {bits: 8, why: "the last convolution: …"}
"""

import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import Field

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import write_text
from edge_sd.models.attention_forms import Attend
from edge_sd.models.config import ModelConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.calibration import CalibrationRequest
from edge_sd.quantize.form import FEW_TOKENS, attention_tokens, quantizable_form
from edge_sd.quantize.grid import FEWEST_BITS, MOST_WEIGHT_BITS, RangeMethod, WeightGrid
from edge_sd.quantize.layers import QuantizedConv, QuantizedLayer, points_of
from edge_sd.quantize.reconstruction import ReconstructionSettings
from edge_sd.validation import Record, validated

ActivationBits = Literal[8, 16]


class LayerRecipe(Record):
    """One layer.

    Attributes:
        bits: of its weights; None: they stay in float.
        group: input channels that share a scale; None: a scale for each output channel.
        scales: how the weights' scales are chosen.
        input, output: bits of its input (of attention's products: of all that they multiply) and its output; None: float.
        why: where it is not treated as the others.
    """

    bits: int | None = Field(ge=FEWEST_BITS, le=MOST_WEIGHT_BITS)
    group: int | None = Field(default=None, ge=2)
    scales: Literal["minmax", "mse"] = "mse"
    input: ActivationBits | None = None
    output: ActivationBits | None = None
    why: str = ""

    @property
    def grid(self) -> WeightGrid | None:
        """How its weights are stored; None in float."""
        return None if self.bits is None else WeightGrid(bits=self.bits, group=self.group, method=self.scales)


class Recipe(Record):
    """All that decides what a quantized model will be, but for the weights.

    Attributes:
        solver, steps, spacing: the plan it is calibrated under and meant for.
        groups: how many groups of steps at most, each with activation ranges of its own; 0: as many as are worth it.
        starts: the step with which each group begins; empty until it is known.
        ranges: how activation ranges are chosen.
        reconstruction: how roundings are learnt.
    """

    schema_version: Literal[1] = 1
    kind: Literal["recipe"] = "recipe"
    model: ModelConfig
    solver: str = "dpmpp"
    steps: int = Field(default=20, ge=1)
    spacing: str | None = None
    groups: int = Field(default=0, ge=0, le=4)
    starts: tuple[int, ...] = ()
    ranges: RangeMethod = "mse"
    calibration: CalibrationRequest = CalibrationRequest()
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    layers: dict[str, LayerRecipe]

    @property
    def grids(self) -> dict[str, WeightGrid]:
        """How the weights of each quantized layer are stored."""
        return {name: layer.grid for name, layer in self.layers.items() if layer.grid is not None}

    def point_bits(self, form: SpectralUNet) -> dict[str, int]:
        """Bits of each point of a model that gets a grid."""
        bits: dict[str, int] = {}
        for name in points_of(form):
            layer, _, side = name.rpartition(".")
            wanted = self.layers[layer].output if side == "output" else self.layers[layer].input
            if wanted is not None:
                bits[name] = wanted
        return bits

    def check(self, model: ModelConfig) -> None:
        """Refuse a recipe that is not one of this model.

        Raises:
            UsageError: it is of another model, or names a layer that this one does not have, or leaves one out.
        """
        if self.model != model:
            differ = [name for name in ModelConfig.model_fields if getattr(self.model, name) != getattr(model, name)]
            raise UsageError(
                f"the recipe is of another model: {differ[0]} is {getattr(self.model, differ[0])} there, "
                f"{getattr(model, differ[0])} here",
                "a recipe can be applied to other weights of the same model; make one for this model: edge-sd quantize --bits 4",
            )
        names = list(described(model))
        unknown = [name for name in self.layers if name not in names]
        if unknown:
            raise UsageError(f"the recipe names a layer that the model does not have: {unknown[0]}", _near(unknown[0], names))
        missing = [name for name in names if name not in self.layers]
        if missing:
            raise UsageError(f"the recipe says nothing of layer {missing[0]}", "add a line for it, for instance {bits: 8}")

    def with_bits(self, bits: Mapping[str, int | None], why: str) -> "Recipe":
        """This recipe with other bits for some layers' weights."""
        changed = {name: self.layers[name].model_copy(update={"bits": width, "why": why}) for name, width in bits.items()}
        return self.model_copy(update={"layers": {**self.layers, **changed}})

    def save(self, path: Path) -> None:
        """Write it as YAML, a line a layer."""
        head = self.model_dump(mode="json", exclude={"layers"})
        lines = yaml.safe_dump(head, sort_keys=False, default_flow_style=None, width=1000)
        lines += "layers:\n"
        for name, layer in self.layers.items():
            lines += f"  {name}: {_flow(layer.model_dump(exclude_defaults=True) | {'bits': layer.bits})}\n"
        write_text(path, lines)


def _flow(values: Mapping[str, object]) -> str:
    order = [*LayerRecipe.model_fields]
    items = sorted(values.items(), key=lambda item: order.index(item[0]))
    return "{" + ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in items) + "}"


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        EdgeSDError: it cannot be read.
        UsageError: it is not YAML, or no recipe; the first fault is named.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgeSDError(f"cannot read {path}: {error.strerror or error}", "check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}", "edge-sd quantize writes recipes") from error
    if not isinstance(values, dict) or values.get("kind") != "recipe":
        raise UsageError(f"{path} is no recipe", "edge-sd quantize writes them")
    return validated(Recipe, values, str(path))


@dataclass(frozen=True)
class Layer:
    """What there is to know of a layer before it is quantized.

    Attributes:
        kind: of which it is.
        shape: of its weights, (O, I, …); empty for products.
        tokens: of the attention that it is part of; 0 elsewhere.
    """

    kind: Literal["convolution", "linear", "products"]
    shape: tuple[int, ...] = ()
    tokens: int = 0

    @property
    def weights(self) -> int:
        """How many numbers."""
        return math.prod(self.shape) if self.shape else 0


@lru_cache
def described(model: ModelConfig) -> dict[str, Layer]:
    """The layers of a model's quantizable form, and attention's products, by name."""
    with torch.device("meta"):
        form = quantizable_form(SpectralUNet(model))
    attention, found = attention_tokens(model), {}
    for name, part in form.named_modules():
        tokens = attention.get(name.rpartition(".")[0], 0)
        if isinstance(part, QuantizedLayer):
            kind: Literal["convolution", "linear"] = "convolution" if isinstance(part, QuantizedConv) else "linear"
            found[name] = Layer(kind, part.shape, tokens)
        elif isinstance(part, Attend):
            found[name] = Layer("products", tokens=tokens)
    return found


def default_layers(
    model: ModelConfig,
    bits: int,
    activations: ActivationBits | None,
    *,
    group: int | None = None,
    scales: Literal["minmax", "mse"] = "mse",
) -> dict[str, LayerRecipe]:
    """What each layer gets where nobody says otherwise.

    Raises:
        UsageError: bits out of range.
    """
    if not FEWEST_BITS <= bits <= MOST_WEIGHT_BITS:
        raise UsageError(f"weights cannot have {bits} bits", f"--bits {FEWEST_BITS} to {MOST_WEIGHT_BITS}")
    plain = LayerRecipe(bits=bits, group=group, scales=scales, input=activations, output=activations)
    inner = plain.model_copy(update={"output": None})  # an integer matrix product gives floats, an integer convolution does not
    found = {}
    for name, layer in described(model).items():
        if name in ("conv_in", "conv_out"):
            # Its few channels are the picture itself: noise on them is noise in the picture, and they take no time.
            why = f"the {'first' if name == 'conv_in' else 'last'} convolution"
            found[name] = LayerRecipe(bits=8, scales=scales, why=f"{why}: 8 bits, computed in float")
        elif ".gate." in name:
            found[name] = LayerRecipe(bits=8, scales=scales, why="a gate scales a whole channel, and is small")
        elif 0 < layer.tokens <= FEW_TOKENS:
            why = f"attention over {layer.tokens} tokens: computed in float, which takes less time"
            weights = None if layer.kind == "products" else bits
            found[name] = LayerRecipe(bits=weights, group=group, scales=scales, why=why)
        elif layer.kind == "products":
            found[name] = LayerRecipe(bits=None, input=activations)
        elif ".skip" in name:
            # What they put out is added to the block's output, and nothing mends it (2311.16503 leaves them out as well).
            why = "a skip: computed in float, its errors would stay"
            found[name] = LayerRecipe(bits=bits, group=group, scales=scales, why=why)
        else:
            found[name] = plain if layer.kind == "convolution" else inner
    return found


def overridden(layers: Mapping[str, LayerRecipe], overrides: Sequence[str]) -> dict[str, LayerRecipe]:
    """Layers with changes of the form PATTERN=BITS, for instance up.7.*=8 or conv_out=float.

    Raises:
        UsageError: not of that form, no layer matches, or bits out of range.
    """
    found = dict(layers)
    for override in overrides:
        pattern, _, value = override.partition("=")
        matching = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise UsageError(f"no layer is called {pattern}", _near(pattern, list(layers)))
        if value != "float" and not (value.isdecimal() and FEWEST_BITS <= int(value) <= MOST_WEIGHT_BITS):
            raise UsageError(
                f"{override!r} does not say how many bits",
                f"{pattern}=8, {FEWEST_BITS} to {MOST_WEIGHT_BITS}, or {pattern}=float",
            )
        for name in matching:
            bits = None if value == "float" else int(value)
            changed: dict[str, object] = {"bits": bits, "why": f"asked for: {override}"}
            if bits is None:
                changed |= {"input": None, "output": None}  # there are no kernels of float weights and integer activations
            found[name] = found[name].model_copy(update=changed)
    return found


def _near(name: str, names: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, names, 3, 0.4)
    return f"did you mean {', '.join(close)}?" if close else f"layers are called {', '.join(names[:3])}, …"
