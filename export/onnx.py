"""The ONNX target: `denoiser.onnx`, by torch.export."""

import contextlib
import io
import logging
import warnings
from pathlib import Path

from torch import Tensor

from edge_sd.bundle.manifest import Contract
from edge_sd.errors import EdgeSDError
from edge_sd.export._target import DenoiserProgram, Target
from edge_sd.runnable import Availability, packages_available

# Above 18, graphs that are quantized later do not load in ONNX Runtime (a zero point of another type than output_dtype).
OPSET = 18


class OnnxTarget(Target):
    """Batch 1 and fixed shapes, so that the runtime can plan its memory; the contract is in the model's metadata too."""

    name = "onnx"
    about = f"ONNX, opset {OPSET}, float32; runs in ONNX Runtime"

    def available(self) -> Availability:
        return packages_available("onnx", "onnxscript")

    def export(self, program: DenoiserProgram, example: tuple[Tensor, Tensor], contract: Contract, folder: Path) -> str:
        import torch

        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            # The exporter reports to the terminal and warns of its own internals; neither is for the user.
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                exported = torch.onnx.export(
                    program,
                    example,
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=[spec.name for spec in contract.inputs],
                    output_names=[spec.name for spec in contract.outputs],
                    verbose=False,
                )
        except torch.onnx.errors.OnnxExporterError as error:
            raise EdgeSDError(
                f"the ONNX export failed: {error}", "edge-sd doctor shows the versions that were tested together"
            ) from error
        if exported is None:
            raise EdgeSDError("the ONNX export returned nothing", "edge-sd doctor shows the versions that were tested together")
        for node in exported.model.graph.all_nodes():  # folders and source lines of this machine
            node.metadata_props.clear()
        exported.model.metadata_props["edge_sd.contract"] = contract.model_dump_json()
        exported.save(folder / "denoiser.onnx", external_data=_needs_external_data(program))
        return "denoiser.onnx"


def _needs_external_data(program: DenoiserProgram) -> bool:
    """A protobuf file ends at 2 GiB."""
    return sum(p.numel() * p.element_size() for p in program.parameters()) > 2**31 - 2**24
