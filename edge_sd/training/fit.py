"""Training and distillation from settings to checkpoint; what the verbs of the command line call."""

from collections.abc import Callable
from pathlib import Path

import torch

from edge_sd.autoencoder import AutoencoderFile
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.data import ImageData
from edge_sd.diffusion.plan import Plan, Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import UsageError
from edge_sd.latents import LatentData
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from edge_sd.models.config import ModelConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.models.widen import widened
from edge_sd.training.config import DistillConfig, TrainConfig
from edge_sd.training.distillation import DistillLearner
from edge_sd.training.learner import DenoiseLearner
from edge_sd.training.loop import Progress, train
from edge_sd.training.reconstruction import AutoencoderLearner
from edge_sd.training.samples import Samples, samples_of
from edge_sd.training.slimmable import SlimmableLearner

DECODER = "decoder.safetensors"


def fit(
    model: ModelConfig,
    schedule: NoiseSchedule,
    prediction: Prediction,
    data: ImageData | LatentData,
    config: TrainConfig,
    out: Path,
    *,
    start: Checkpoint | None = None,
    plan: Plan | None = None,
    overwrite: bool = False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Checkpoint:
    """Train a denoiser; see `loop.train` for what `out` receives, for resuming and for errors.

    Of latents, `out` receives their decoder too, as decoder.safetensors. A model with slim widths learns to work at all of them.

    Args:
        start: weights to begin with, of `model` with whatever slim widths, or of a narrower one, to be widened; random ones
            if left out.
        plan: where narrow widths are called; see `SlimmableLearner`.
    """
    samples = samples_of(data)
    _refuse_other_data(model, samples)
    torch.manual_seed(config.seed)
    network = SpectralUNet(model)
    if start is not None:
        _refuse_other_latents(start, samples, "the start")
        given = start.build()
        whole = given if given.config.width == model.width else widened(given, model.width)
        network.load_state_dict(whole.state_dict())
    if model.slim_widths:
        learner: DenoiseLearner = SlimmableLearner(network, schedule, prediction, plan)
    elif plan is not None:
        raise UsageError("a plan is of a model with slim widths", "--slimmable")
    else:
        learner = DenoiseLearner(network, schedule, prediction)
    begun = {} if start is None else {"start": start.header.digest}
    provenance = Provenance(made_by="train", parents={**begun, **samples.parents})
    result: Checkpoint = train(learner, samples, config, out, provenance, overwrite=overwrite, observe=observe)
    _keep_decoder(data, out)
    return result


def distill(
    model: ModelConfig,
    teacher: Checkpoint,
    data: ImageData | LatentData,
    config: TrainConfig,
    distillation: DistillConfig,
    out: Path,
    *,
    overwrite: bool = False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Checkpoint:
    """Train a student that follows `teacher`, whose noise schedule and prediction it takes over; otherwise like `fit`."""
    samples = samples_of(data)
    _refuse_other_data(model, samples)
    _refuse_other_latents(teacher, samples, "the teacher")
    torch.manual_seed(config.seed)
    schedule, prediction = teacher.header.noise_schedule, teacher.header.prediction
    learner = DistillLearner(SpectralUNet(model), schedule, prediction, teacher.build(), distillation)
    provenance = Provenance(made_by="distill", parents={"teacher": teacher.header.digest, **samples.parents})
    result: Checkpoint = train(learner, samples, config, out, provenance, overwrite=overwrite, observe=observe)
    _keep_decoder(data, out)
    return result


def fit_autoencoder(
    model: AutoencoderConfig,
    data: ImageData,
    config: TrainConfig,
    out: Path,
    *,
    overwrite: bool = False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> AutoencoderFile:
    """Train an autoencoder; otherwise like `fit`. At the end its latent's mean and deviation are measured on the data."""
    size = data.pixels.shape[-1] - data.crop
    if size % model.factor:
        raise UsageError(
            f"images of {size} px cannot become latents {model.factor} times coarser", f"a multiple of {model.factor}"
        )
    torch.manual_seed(config.seed)
    learner = AutoencoderLearner(Autoencoder(model))
    provenance = Provenance(made_by="train-autoencoder")
    result: AutoencoderFile = train(learner, samples_of(data), config, out, provenance, overwrite=overwrite, observe=observe)
    return result


def _keep_decoder(data: ImageData | LatentData, out: Path) -> None:
    if isinstance(data, LatentData):  # whatever lies there: a kill may have left another run's
        data.decoder.save(out / DECODER)


def _refuse_other_data(model: ModelConfig, samples: Samples) -> None:
    if model.num_classes is not None and samples.labels is None:
        raise UsageError(
            "images alone have no classes to train a class-conditional model with", "--labels, or an unconditional preset"
        )
    if model.num_classes is not None and samples.labels is not None and samples.labels.max(initial=0) >= model.num_classes:
        raise UsageError(
            f"the data have a class {samples.labels.max()}, the model knows {model.num_classes}", "another num_classes"
        )
    if model.context_dim is not None and model.class_conditioning != "context":
        raise UsageError("images alone have no classes or contexts to train this model with", "an unconditional preset")
    if model.sample_shape != samples.shape or model.out_channels != model.in_channels:
        kind = "latents" if samples.parents else "images"
        raise UsageError(
            f"the {kind} are {samples.shape}, the model takes {model.sample_shape} and returns {model.out_channels} channels",
            "a preset of the samples' size and channels: edge-sd list presets",
        )


def _refuse_other_latents(other: Checkpoint, samples: Samples, role: str) -> None:
    theirs, ours = other.header.provenance.parents.get("autoencoder"), samples.parents.get("autoencoder")
    if theirs != ours:
        names = {True: "pixels", False: "other latents"}
        raise UsageError(
            f"{role} was trained in another latent space: it denoises {names[theirs is None]}"
            + (f" ({theirs[:12]})" if theirs else "")
            + f", the data are {'pixels' if ours is None else f'latents ({ours[:12]})'}",
            f"give --autoencoder as for {role}, and the same images",
        )
