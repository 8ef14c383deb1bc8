"""edge-sd takes a diffusion model from a GPU to a phone: slim, distil, quantize, export, prove, measure.

    import edge_sd

    edge_sd.quantize("emoji64", bits=4, output="small")
    bundle = edge_sd.export("small/model.safetensors", target=["onnx"], output="small.edgesd")
    assert edge_sd.parity(bundle).passed

The functions are those of `edge_sd.api`; they come when they are first asked for, so that `import edge_sd` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sd.api import Observer as Observer
    from edge_sd.api import bench as bench
    from edge_sd.api import distill as distill
    from edge_sd.api import export as export
    from edge_sd.api import load as load
    from edge_sd.api import parity as parity
    from edge_sd.api import quantize as quantize
    from edge_sd.errors import EdgeSDError as EdgeSDError

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("Observer", "bench", "distill", "load", "parity"), "edge_sd.api"),
    "EdgeSDError": "edge_sd.errors",
}


def __getattr__(name: str) -> Any:
    if name in ("export", "quantize"):
        return import_module(f"edge_sd.{name}")  # see `edge_sd.callable_module`
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "export", "quantize"})
