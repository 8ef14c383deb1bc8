"""The torch runtime: the reference checkpoint inside the bundle, in eager mode."""

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import load_checkpoint
from edge_sd.errors import EdgeSDError
from edge_sd.runnable import Availability, Session, packages_available
from edge_sd.runtimes._runtime import Runtime


class TorchRuntime(Runtime):
    """What everything else is compared to."""

    name = "torch"
    about = "PyTorch eager, the reference"
    target = "torch"

    def available(self) -> Availability:
        return packages_available("torch")

    def load(self, bundle: Bundle, threads: int | None = None) -> Session:
        import torch

        from edge_sd.export import TorchSession

        if threads is not None:
            torch.set_num_threads(threads)
        checkpoint = load_checkpoint(bundle.path / bundle.program(self.target).file)
        if checkpoint.header.digest != bundle.manifest.weights_digest:
            raise EdgeSDError(
                f"{bundle.path}: the reference is of other weights than the manifest says", "export the bundle again"
            )
        return TorchSession(checkpoint.build())
