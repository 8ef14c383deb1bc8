"""A wider network around a trained one, which becomes a slim width of it: the inverse of cutting a narrow network out.

After Net2WiderNet (1511.05641), but the given weights stay what they are and where the slim width finds them: that width draws
what the given network drew, but for rounding. The full width begins close to it: its first channels do not see the new ones until
training says so. (They are not equal: there are as many norm groups as before, and each holds new channels too.)
"""

import torch
from torch import Tensor

from edge_sd.errors import UsageError
from edge_sd.models.config import ModelConfig
from edge_sd.models.slim import Cut, SlimUNet
from edge_sd.models.unet import SpectralUNet
from edge_sd.validation import validated


def wider_config(config: ModelConfig, width: int) -> ModelConfig:
    """The configuration at `width`, with all widths of before as slim ones.

    Raises:
        UsageError: it is not wider, or norm groups or heads do not divide it.
    """
    if width <= config.width:
        raise UsageError(f"a width of {width} is not more than the {config.width} that the model has", "give a wider one")
    given = config.model_dump()
    wide = {
        "width": width,
        "slim_widths": (*config.slim_widths, config.width),
        "time_width": config.time_width or config.width,  # the rows of features are to stay what they are
    }
    return validated(ModelConfig, {**given, **wide}, f"width {width}")


def widened(model: SpectralUNet, width: int) -> SpectralUNet:
    """The network at `width`, of which `model` is a slim width; the other weights are random, by torch's generator.

    Raises:
        UsageError: see `wider_config`.
    """
    wide = SpectralUNet(wider_config(model.config, width))
    slim = SlimUNet(wide, model.config.width)
    given, found = dict(model.named_parameters()), dict(wide.named_parameters())
    with torch.no_grad():
        for name, cut in slim.cuts.items():
            _put(found[name], given[name], cut)
        for name, parameter in wide.temporal_net.named_parameters():
            if not name.startswith("project."):
                parameter.copy_(given[f"temporal_net.{name}"])
        rows = slim.kept_columns()
        for name in ("weight", "bias"):
            found[f"temporal_net.project.{name}"][rows] = given[f"temporal_net.project.{name}"]
    return wide


def _put(wide: Tensor, narrow: Tensor, cut: tuple[Cut, ...]) -> None:
    """Put a weight where it will be cut out again; what the outputs that are kept take from new inputs becomes zero."""
    kept = [torch.cat([torch.arange(piece.start, piece.stop) for piece in pieces]) for pieces in cut]
    wide[kept[0]] = 0.0
    wide[torch.meshgrid(*kept, indexing="ij")] = narrow
