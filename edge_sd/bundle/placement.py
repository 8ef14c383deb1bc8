"""What an export says of a program: what runs where, and how much memory it will want."""

from pydantic import Field

from edge_sd.validation import Record


class Placement(Record):
    """Which part of a program its accelerator takes.

    Attributes:
        delegate: the accelerator: an ExecuTorch delegate, an execution provider.
        delegate_calls: how often one call of the program enters it; each is a hand-over of tensors.
        outside: operators left to the portable kernels, and how many of each.
        outside_share: of a call's time, in [0, 1]; None where the program cannot be run here.
        operators: share of a call's time by operator, largest first, as far as the runtime tells.
        note: what the figures cannot say.
    """

    delegate: str
    delegate_calls: int = Field(ge=0)
    outside: dict[str, int] = Field(default_factory=dict)
    outside_share: float | None = Field(default=None, ge=0, le=1)
    operators: dict[str, float] = Field(default_factory=dict)
    note: str = ""

    @property
    def verdict(self) -> str:
        """One line."""
        if self.delegate_calls == 0 and self.outside_share is None:
            return f"{self.delegate}: {self.note or 'not known'}"
        share = "share not measured" if self.outside_share is None else f"{self.outside_share:.1%} of the time"
        calls = f"{self.delegate_calls} call{'s' if self.delegate_calls != 1 else ''}"
        return f"{self.delegate} {calls}, {sum(self.outside.values())} operators outside ({share})"


class MemoryForecast(Record):
    """Memory that one program needs while it runs, before anything has run.

    Attributes:
        weights_bytes: constants, at the width they are stored in.
        activations_bytes: the largest sum of tensors that are alive at once; see `export.memory`.
    """

    weights_bytes: int = Field(ge=0)
    activations_bytes: int = Field(ge=0)

    @property
    def total_bytes(self) -> int:
        """Weights and activations."""
        return self.weights_bytes + self.activations_bytes
