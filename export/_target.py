"""What an export target is: one small class, one file each in this folder, found by its name."""

from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor, nn

from edge_sd.bundle.manifest import Contract
from edge_sd.models.unet import SpectralUNet
from edge_sd.runnable import Availability


class DenoiserProgram(nn.Module):
    """The program without time that every target exports: (sample, time_features) → prediction."""

    def __init__(self, model: SpectralUNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, time_features: Tensor) -> Tensor:
        return self.model.denoise(sample, time_features)


class Target(ABC):
    """A format that a denoiser can be exported to.

    Attributes:
        name: what `--target` takes.
        about: one line for `edge-sd list targets`.
    """

    name: str
    about: str

    @abstractmethod
    def available(self) -> Availability:
        """Whether this machine has what the export needs."""

    @abstractmethod
    def export(self, program: DenoiserProgram, example: tuple[Tensor, Tensor], contract: Contract, folder: Path) -> str:
        """Write the program below `folder` and return its name there.

        Args:
            program: in evaluation mode, on the CPU.
            example: real inputs, of the contract's shapes.
        """
