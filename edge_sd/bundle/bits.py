"""Bits honesty: what was asked for, what is stored and what is computed with, for each layer of an exported program."""

from collections.abc import Sequence

from pydantic import Field

from edge_sd.validation import Record


class LayerBits(Record):
    """One layer of one program.

    Attributes:
        weights: how many numbers it has.
        requested: bits of its weights by the recipe; None: float.
        requested_activations: bits of its input by the recipe; None: float.
        stored: bits that a weight takes in the file, scales left out.
        computed: what its multiplications are of: int8, float32, float16, or where only the device decides, "device".
        why: where it is less than was asked for, what stood in the way.
    """

    layer: str
    weights: int = Field(ge=1)
    requested: int | None
    requested_activations: int | None
    stored: float
    computed: str
    why: str = ""

    @property
    def fell_back(self) -> bool:
        """Whether it is stored in, or computed with, more bits than were asked for."""
        in_float = self.requested_activations is not None and self.computed.startswith("float")
        return (self.requested is not None and self.stored > self.requested) or in_float


def effective_bits(layers: Sequence[LayerBits]) -> float:
    """Stored bits a weight, over all layers."""
    numbers = sum(layer.weights for layer in layers)
    return sum(layer.stored * layer.weights for layer in layers) / numbers if numbers else 0.0
