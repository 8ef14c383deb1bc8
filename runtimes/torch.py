"""The torch runtime: the reference checkpoint and decoder inside the bundle, in eager mode."""

from edge_sd.bundle import Bundle
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

    def load(self, bundle: Bundle, threads: int | None = None, program: str = "denoiser") -> Session:
        import torch

        from edge_sd.decoder import load_decoder
        from edge_sd.export import DecoderProgram, DenoiserProgram, TemporalProgram, TorchSession
        from edge_sd.models.stepped import select
        from edge_sd.quantize.checkpoint import load_any

        if threads is not None:
            torch.set_num_threads(threads)
        path = bundle.path / bundle.program(self.target, program).file
        shape = bundle.manifest.contract(program).inputs[0].shape[1:]
        if program == "decoder":
            return TorchSession(DecoderProgram(load_decoder(path).build()), shape)
        checkpoint = load_any(path)
        if checkpoint.header.digest != bundle.manifest.weights_digest:
            raise EdgeSDError(
                f"{bundle.path}: the reference is of other weights than the manifest says", "export the bundle again"
            )
        model = checkpoint.build(bundle.plan.header.widths)
        if program == "temporal":
            return TorchSession(TemporalProgram(model), shape)
        select(model, int(program.partition(".")[2] or 0))
        return TorchSession(DenoiserProgram(model), shape)
