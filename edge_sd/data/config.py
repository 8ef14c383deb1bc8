"""What a person says about the images: where they are, which of them, and how they are read."""

from pathlib import Path

from pydantic import Field, model_validator
from typing_extensions import Self

from edge_sd.validation import Record

DEAD_LEAVES, HUB = "dead-leaves", "hub:"


class DataConfig(Record):
    """Where images come from.

    Attributes:
        source: "dead-leaves"; a folder of images, searched with its sub-folders (each is a class); a .parquet file or a .tar
            webdataset shard, a folder or a glob of them; or "hub:OWNER/NAME", "hub:OWNER/NAME:SUBSET" of the Hugging Face hub.
        resize: scale an image's shorter side to the model's size and crop the centre; without it every image must have that size.
        split: sub-folder of images, word in the shards' names, or split of a hub data set (there "train" if left out).
        image_column: of parquet, webdataset and hub alone; may be left out where only one holds images.
        labels: read a class for each image; it is an error where there is none.
        label_column: where it is, of the same sources; means `labels` too, and may be left out where only one holds classes.
        limit: read this many images at most: a folder's are picked evenly, so that no class is left out; else the first.
        max_broken: how many broken images, and shards cut short, are left out before that is an error. Without it one image in
            a hundred may be broken and every shard must be whole.
        crop: read images this many pixels larger, for windows of the model's size that are cut at random in training.
        cache: folder for decoded images, see `edge_sd.data.cache`; without it only sets that are too large for memory are kept.
        count, seed, min_radius: of dead leaves only; see `dead_leaves`.
    """

    source: str = DEAD_LEAVES
    resize: bool = False
    split: str | None = None
    image_column: str | None = None
    labels: bool = False
    label_column: str | None = None
    limit: int | None = Field(default=None, ge=1)
    max_broken: int | None = Field(default=None, ge=0)
    crop: int = Field(default=0, ge=0)
    cache: Path | None = None
    count: int = Field(default=4096, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    min_radius: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.source == DEAD_LEAVES:
            for name in ("split", "image_column", "labels", "label_column"):
                if getattr(self, name):
                    raise ValueError(f"{name}: dead leaves have none")
        return self

    @property
    def labelled(self) -> bool:
        """Whether a class is asked for."""
        return self.labels or self.label_column is not None
