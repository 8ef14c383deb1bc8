"""What a SpectralUNet is built from: one frozen, validated description that travels in every checkpoint and bundle."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from edge_sd.errors import UsageError
from edge_sd.validation import Record


class ModelConfig(Record):
    """Configuration of a `SpectralUNet`; the defaults are LDM-4's (latent-diffusion, ffhq-ldm-vq-4), slimmed to width 64.

    The same class describes LDM (width 224 or 192), Lite-LDM (64) and Spectral Diffusion (`gating=True`).
    """

    image_size: PositiveInt = 64  # height and width of the sample, in pixels or latent cells
    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    width: int = Field(default=64, ge=2)  # channels of the first level
    multipliers: tuple[PositiveInt, ...] = Field(default=(1, 2, 3, 4), min_length=1)  # channels of each level, in widths
    blocks: PositiveInt = 2  # residual blocks a level (one more on the way up)
    attention: tuple[PositiveInt, ...] = (2, 4, 8)  # down-sampling factors that have attention; the middle always has
    head_channels: PositiveInt | None = 32  # channels of an attention head, or …
    heads: PositiveInt | None = None  # … the number of heads
    resample: Literal["conv", "block"] = "conv"  # how a level is left: a convolution, or inside a residual block (Church)
    gating: bool = False  # wavelet gating in place of the plain resampling
    wavelet: str = "haar"
    scale_shift: bool = False  # time features scale and shift the second norm, instead of being added
    norm_groups: PositiveInt = 32
    norm_eps: float = Field(default=1e-5, gt=0.0, lt=1.0)  # of every group norm but a transformer block's
    embedding_shift: int = Field(default=0, ge=0)  # of the sinusoid's frequencies, 10,000^(−k/(width/2 − shift)); DDPM: 1
    down_padding: Literal["both", "end"] = "both"  # where the convolution that leaves a level pads (DDPM: right and bottom only)
    time_width: int | None = Field(default=None, ge=2)  # of the sinusoid; `width` if None (a widened model keeps its own)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    num_classes: PositiveInt | None = None
    class_conditioning: Literal["add", "context"] = "add"  # added to the time embedding, or a token for cross-attention
    context_dim: PositiveInt | None = None  # width of a context token; set, attention becomes a transformer block
    context_tokens: PositiveInt = 1
    transformer_depth: PositiveInt = 1
    slim_widths: tuple[PositiveInt, ...] = ()  # smaller `width`s at which the same weights work too, ascending (DDSM)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        halvings = len(self.multipliers) - 1
        if self.image_size % 2**halvings:
            raise ValueError(
                f"image_size {self.image_size} cannot be halved {halvings} times, as {len(self.multipliers)} levels need; "
                f"a multiple of {2**halvings} can"
            )
        if self.embedding_shift >= self.sinusoid_width // 2:
            raise ValueError(f"embedding_shift {self.embedding_shift} leaves none of the {self.sinusoid_width // 2} frequencies")
        if (self.heads is None) == (self.head_channels is None):
            raise ValueError("give either heads or head_channels")
        if list(self.slim_widths) != sorted({*self.slim_widths}) or max(self.slim_widths, default=0) >= self.width:
            raise ValueError(f"slim widths {self.slim_widths} are not ascending and below {self.width}")
        for width in (*self.slim_widths, self.width):
            self._divisible(width)
        if self.class_conditioning == "context" and (self.num_classes is None or self.context_dim is None):
            raise ValueError("class_conditioning 'context' needs num_classes and context_dim")
        return self

    def _divisible(self, width: int) -> None:
        slim = f" of slim width {width}" if width != self.width else ""
        for level, multiplier in enumerate(self.multipliers):
            channels = width * multiplier
            if channels % self.norm_groups:
                raise ValueError(f"{channels} channels{slim} cannot be split into {self.norm_groups} norm groups")
            attends = 2**level in self.attention or level == self.levels - 1
            if attends and channels % (self.heads or self.head_channels or 1):
                raise ValueError(f"{channels} channels{slim} cannot be split into heads ({self.heads=}, {self.head_channels=})")

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.multipliers)

    @property
    def sinusoid_width(self) -> int:
        """Of the timestep's sinusoidal embedding; the layers behind it are four times as wide."""
        return self.time_width or self.width

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the model denoises."""
        return self.in_channels, self.image_size, self.image_size


def check_label(config: ModelConfig, label: int | None) -> None:
    """Refuse a class that a model does not have, or a missing one.

    Raises:
        UsageError: a class is missing, unknown or not wanted, or the model wants a context that is not a class.
    """
    if config.context_dim is not None and config.class_conditioning != "context":
        raise UsageError(
            "this model wants context tokens of its own, and there is nothing here to make them", "a class can be one"
        )
    if config.num_classes is None and label is not None:
        raise UsageError("this model knows no classes", "leave --label out")
    if config.num_classes is not None and (label is None or not 0 <= label < config.num_classes):
        raise UsageError(
            f"this model draws one of {config.num_classes} classes, not {label}", f"--label 0, or any below {config.num_classes}"
        )
