"""What a diffusers folder holds: JSON and safetensors. Pickles are named and refused, never opened.

Layout: `config.json` (or another JSON file with a `_class_name`), `diffusion_pytorch_model.safetensors`, or several files behind
`diffusion_pytorch_model.safetensors.index.json`, or one variant (`diffusion_pytorch_model.fp16.safetensors`).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from edge_sd.errors import EdgeSDError
from edge_sd.files import parse_model
from edge_sd.validation import first_fault

CONFIG = "config.json"
_STEM = "diffusion_pytorch_model"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

# Attention's layers before diffusers 0.17, in files that were never written again.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(\battentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))$")

Kind = TypeVar("Kind", bound=BaseModel)


class ShardIndex(BaseModel):
    """`*.safetensors.index.json`: which file holds which tensor."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    weight_map: dict[str, str]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        EdgeSDError: missing, or not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise EdgeSDError(f"cannot read {path}: {error.strerror or error}", "give a folder that diffusers wrote") from error
    except (ValueError, RecursionError) as error:
        raise EdgeSDError(f"{path} is not JSON: {error}", "was its download or copy cut short?") from error
    if not isinstance(value, dict):
        raise EdgeSDError(f"{path} holds no JSON object", "give a folder that diffusers wrote")
    return value


def settings_of(kind: type[Kind], values: Mapping[str, Any], source: Path) -> Kind:
    """Validate what a JSON file of diffusers says, less the fields about the file itself (`_class_name`, …).

    Raises:
        EdgeSDError: it does not fit; the first offending field is named.
    """
    public = {name: value for name, value in values.items() if not name.startswith("_")}
    try:
        return kind.model_validate(public)
    except ValidationError as error:
        raise EdgeSDError(f"{source}: {first_fault(error)}", "compare it with what diffusers writes for this class") from error


def class_of(values: Mapping[str, Any], source: Path) -> str:
    """The class that a JSON file of diffusers describes.

    Raises:
        EdgeSDError: it names none.
    """
    name = values.get("_class_name")
    if not isinstance(name, str):
        raise EdgeSDError(f"{source} has no _class_name: it does not say what it describes", "give a folder that diffusers wrote")
    return name


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a folder as float32, old names of attention's layers made new.

    Raises:
        EdgeSDError: there are only pickles or nothing, a file is missing or truncated, a tensor is no floating-point one, holds a
            NaN or an infinity, or comes twice.
    """
    weights: dict[str, np.ndarray] = {}
    for path in _files(folder):
        for name, value in _tensors(path).items():
            name = _OLD_NAME.sub(lambda match: match[1] + _RENAMED[match[2]] + match[3], name)
            if name in weights:
                raise EdgeSDError(f"{path} holds the tensor {name} a second time", "give a folder that diffusers wrote")
            weights[name] = value
    return weights


def _files(folder: Path) -> list[Path]:
    """The safetensors files to read."""
    if (whole := folder / f"{_STEM}.safetensors").exists():
        return [whole]
    if (index := folder / f"{_STEM}.safetensors.index.json").exists():
        names = sorted(set(parse_model(ShardIndex, index.read_bytes(), index).weight_map.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise EdgeSDError(f"{index} names {name!r}, which is no safetensors file beside it", "download the folder again")
        return [folder / name for name in names]
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    variants = [name for name in found if name.startswith(f"{_STEM}.") and name.endswith(".safetensors")]
    if len(variants) == 1:
        return [folder / variants[0]]
    if variants:
        raise EdgeSDError(f"{folder} holds several variants: {', '.join(variants)}", f"name one of them {_STEM}.safetensors")
    if pickles := [name for name in found if name.endswith(_PICKLES)]:
        raise EdgeSDError(
            f"{folder} holds its weights as a pickle only ({', '.join(pickles)}), and a pickle can run any code when it is read",
            "save it once more where you trust it: save_pretrained(folder, safe_serialization=True)",
        )
    raise EdgeSDError(f"{folder} holds no {_STEM}.safetensors", "give a folder that diffusers wrote")


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """One file's tensors, float32 and finite."""
    import torch
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise EdgeSDError(f"{path} does not exist" if not path.exists() else f"{path} is not a file", "download it again")
    weights = {}
    try:
        with safe_open(path, framework="pt") as file:  # PyTorch's tensors: NumPy has no bfloat16
            for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    raise EdgeSDError(f"{path}: tensor {name} is of {tensor.dtype}, not of floats", "give the plain model")
                if not torch.isfinite(tensor := tensor.to(torch.float32, copy=True)).all():  # no view of the file
                    raise EdgeSDError(f"{path}: tensor {name} holds a NaN or an infinity", "make or download the file again")
                weights[name] = tensor.numpy()
    except (SafetensorError, OSError) as error:
        raise EdgeSDError(f"{path} is not a whole safetensors file: {error}", "was its download or copy cut short?") from error
    return weights
