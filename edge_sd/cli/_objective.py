"""What the verbs that search share: which objective is meant, and what its workers are told."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sd.foreign import Foreign
    from edge_sd.search.objectives import Objective
    from edge_sd.search.workers import Opening

SHARED = "shared"  # folder of what several searches use: ends of fine-grained trajectories, features of real images


def refuse_quantized(path: Path) -> None:
    """Searches work on full-precision weights.

    Raises:
        UsageError: others are given.
    """
    from edge_sd.errors import UsageError
    from edge_sd.quantize.checkpoint import is_quantized

    if path.is_file() and is_quantized(path):
        raise UsageError(f"{path} is quantized", "give the full-precision checkpoint; a plan serves both")


def objective_of(name: str | None, source: str | None, features: str | None, fine: int | None) -> "type[Objective]":
    """The one that is asked for, else the one that the other options suit; before anything is read.

    Raises:
        UsageError: there is none of that name, or options do not go together.
    """
    from edge_sd.errors import UsageError
    from edge_sd.search.objectives import find_objective

    chosen = find_objective(name or ("kid" if source and features else "trajectory"))
    objective = chosen.name
    if objective == "kid" and not (source and features):
        raise UsageError(
            "the objective kid needs real images and features", "--data photos/ --features inception, or --objective trajectory"
        )
    if objective != "kid" and (source or features):
        raise UsageError(
            f"the objective {objective} takes no real images and no features", "--objective kid, with --data and --features"
        )
    if objective == "kid" and fine is not None:
        raise UsageError("the objective kid has no fine-grained trajectory", "leave --fine out, or --objective trajectory")
    return chosen


def opening_of(values: Mapping[str, Any], model: "Foreign", objective: "type[Objective]") -> "tuple[Opening, dict[str, object]]":
    """What workers are told, and what of it decides the values: fields of `SearchSettings`."""
    from edge_sd.evaluation.draw import labels_of
    from edge_sd.search.objectives.trajectory import FINE_STEPS
    from edge_sd.search.workers import Opening

    header, path, shared = model.checkpoint.header, values["path"].resolve(), values["output"].resolve() / SHARED
    told: dict[str, str | int | None] = {"cache": str(shared), "fine": values["fine"] or FINE_STEPS}
    details: dict[str, str | int] = {"fine": values["fine"] or FINE_STEPS}
    if objective.name == "kid":
        told, details = _real(values, model, shared)
    given = {
        "objective": objective.name,
        "details": details,
        "model": header.digest,
        "model_name": values["path"].name,
        "labels": labels_of(header.model, values["label"])[1],
    }
    return Opening(path, objective.name, tuple(told.items()), values["label"]), given


def _real(
    values: Mapping[str, Any], model: "Foreign", shared: Path
) -> "tuple[dict[str, str | int | None], dict[str, str | int]]":
    """Take the features of real images, once; where they lie, and what they are."""
    from edge_sd.api.images import image_settings, read_images
    from edge_sd.cli._console import TERMINAL, progress, say
    from edge_sd.decoder import image_shape
    from edge_sd.evaluation.features import extract, load_features
    from edge_sd.evaluation.reference import choose
    from edge_sd.files import fingerprint
    from edge_sd.foreign import refuse_missing_decoder
    from edge_sd.search.objectives.kid import load_real, save_real

    refuse_missing_decoder(model, values["path"])
    extractor = load_features(values["features"], name=values["features_name"], size=values["feature_size"])
    shape = model.checkpoint.header.model.sample_shape
    side = (shape if model.decoder is None else image_shape(model.decoder, shape))[-1]
    data = read_images(image_settings(values), side, TERMINAL)
    if len(data) < values["real"]:
        say(f"the data holds {len(data)} images; all of them are compared with")
    pixels, chosen = choose(data, min(values["real"], len(data)), seed=values["seed"])
    details: dict[str, str | int] = {
        "features": extractor.name,
        "features_digest": extractor.digest,
        "data": chosen.about,
        "data_digest": chosen.digest,
        "real": len(pixels),
        "real_seed": values["seed"],
    }
    path = shared / f"real-{fingerprint(details)}.safetensors"
    if path.is_file():
        load_real(path, extractor)
    else:
        with progress("features of real images") as update:
            rows = extract(extractor, pixels, observe=lambda done, total: update(done, total, ""))
        save_real(path, rows, extractor, chosen.about, chosen.digest)
    told: dict[str, str | int | None] = {
        "real": str(path),
        "features": values["features"],
        "features_name": values["features_name"],
        "features_size": values["feature_size"],
    }
    return told, details
