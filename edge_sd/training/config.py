"""The settings of training and of distillation, as they are given and as they are kept beside the result."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from edge_sd.validation import Record


class TrainConfig(Record):
    """How weights are learnt; shared by training and distillation.

    Attributes:
        batch_size: images a step, over all processes.
        learning_rate: the peak, after `warmup` steps; then it falls as `decay` says, towards 0.
        ema_decay: of the average whose weights become the checkpoint; reached as (1 + step) / (10 + step) rises.
        clip: largest norm of the gradient.
        precision: "auto" takes bfloat16 on CUDA and on CPUs with bfloat16 instructions.
        accumulate: slices in which each process computes its share of a batch, to save memory.
        compile: by torch.compile; the first steps take minutes.
        channels_last: how feature maps lie in memory; "auto" where the device is known to gain.
        checkpoint_activations: keep the inputs of blocks alone and compute the rest again when gradients need it.
        save_every, sample_every: steps between two training states, and between two grids of samples (0: none).
    """

    # What decides how fast and in how much memory something is learnt, and not what: it may change when a run goes on.
    INDIFFERENT: ClassVar[frozenset[str]] = frozenset(
        {"accumulate", "compile", "channels_last", "checkpoint_activations", "save_every", "sample_every"}
    )

    steps: PositiveInt = 10_000
    batch_size: PositiveInt = 32
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    warmup: int = Field(default=50, ge=0)
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: NonNegativeFloat = 0.01
    ema_decay: float = Field(default=0.995, ge=0, lt=1)
    clip: PositiveFloat = 1.0
    flip: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)
    accumulate: PositiveInt = 1
    compile: bool = False
    channels_last: Literal["auto"] | bool = "auto"
    checkpoint_activations: bool = False
    save_every: PositiveInt = 250
    sample_every: int = Field(default=250, ge=0)


class DistillConfig(Record):
    """The spectrum-aware terms: L = L_denoise + λ_s·L_spatial + λ_f·L_frequency (2211.17106).

    Attributes:
        spatial_weight, frequency_weight: λ_s and λ_f.
        alpha: exponent of the clean image's spectrum in ω = |F_0|^α; −1 weighs up what is weak in the data.
        omega_floor: added to |F_0| before the power, as a share of its mean: one image's spectral zeros are accidents.
        omega_max: the largest ω after it is normalised to mean 1.
    """

    spatial_weight: NonNegativeFloat = 0.1
    frequency_weight: NonNegativeFloat = 0.1
    alpha: float = Field(default=-1.0, ge=-4, le=0)
    omega_floor: float = Field(default=0.05, ge=1e-3)
    omega_max: float = Field(default=10.0, ge=1)

    @property
    def follows(self) -> bool:
        """Whether the teacher has a say at all."""
        return bool(self.spatial_weight or self.frequency_weight)
