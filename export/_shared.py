"""Several ONNX programs over one file of weights.

What they have in common is stored once. Of programs of several widths the narrow ones take slices of the widest one's weights, so
that a bundle of them is hardly larger than one of the widest: a narrow program reads the whole weight and cuts its part out.
ONNX Runtime folds that away when it loads the program: it costs neither time in the loop nor memory. What a rewrite has changed
beyond that stays a weight of its own.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle.manifest import WEIGHTS
from edge_sd.files import write_bytes

Pieces = list[tuple[int, int]]  # of one dimension: what is kept, from … to
_MOST_PIECES = 8
_WORTH_IT = 4096  # bytes
_SHARED_FROM = 256  # bytes; less is not worth a look-up in another file
_ALIGNMENT = 64


def save_shared(models: Mapping[Path, Any], folder: Path) -> None:
    """Write several programs whose large values lie in one file, each value once."""
    from onnx import TensorProto

    blob, places = bytearray(), dict[bytes, tuple[int, int]]()
    for model in models.values():
        for tensor in model.graph.initializer:
            data = tensor.raw_data
            if len(data) < _SHARED_FROM:
                continue
            key = hashlib.sha256(data).digest()
            if key not in places:
                blob.extend(b"\0" * (-len(blob) % _ALIGNMENT))
                places[key] = (len(blob), len(data))
                blob.extend(data)
            offset, length = places[key]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for name, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
                tensor.external_data.add(key=name, value=value)
    write_bytes(folder / WEIGHTS, bytes(blob))
    for file, model in models.items():
        write_bytes(file, model.SerializeToString())


def slice_weights(models: Mapping[Path, Any]) -> None:
    """Put slices in the place of weights that are part of the widest program's weight of the same name."""
    from onnx import numpy_helper

    def size(model: Any) -> int:
        return sum(len(tensor.raw_data) for tensor in model.graph.initializer)

    widest = max(models.values(), key=size)
    whole = {tensor.name: tensor for tensor in widest.graph.initializer}
    for model in models.values():
        if model is widest:
            continue
        kept, nodes = [], []
        for tensor in model.graph.initializer:
            wide = whole.get(tensor.name)
            pieces = None
            if wide is not None and len(tensor.raw_data) >= _WORTH_IT and tensor.data_type == wide.data_type:
                pieces = pieces_of(numpy_helper.to_array(tensor), numpy_helper.to_array(wide))
            if wide is None or pieces is None:
                kept.append(tensor)
                continue
            renamed = type(wide)()
            renamed.CopyFrom(wide)
            renamed.name = f"{tensor.name}.whole"
            made, constants = _cut(renamed.name, tensor.name, pieces, wide.dims)
            kept += [renamed, *constants]
            nodes += made
        rest = list(model.graph.node)
        model.graph.ClearField("initializer")
        model.graph.ClearField("node")
        model.graph.initializer.extend(kept)
        model.graph.node.extend([*nodes, *rest])


def pieces_of(narrow: NDArray[Any], wide: NDArray[Any]) -> list[Pieces] | None:
    """Where a weight lies in a larger one; None where it does not, or in too many pieces.

    The first channel of every dimension is kept, so each dimension's indices show along the edge where all others are 0.
    """
    if narrow.ndim != wide.ndim or narrow.shape == wide.shape:
        return None
    found = []
    for dimension in range(narrow.ndim):
        edges = []
        for array in (narrow, wide):
            front = np.moveaxis(array, dimension, 0)
            # All of a kernel's elements tell channels apart, one alone might not.
            edges.append(front.reshape(len(front), -1) if front.ndim < 3 else front[:, 0].reshape(len(front), -1))
        if edges[0].shape[1] != edges[1].shape[1]:
            edges = [edge[:, :1] for edge in edges]
        indices = _ascending(*edges)
        if indices is None:
            return None
        found.append(_runs(indices))
    taken = wide
    for dimension, pieces in enumerate(found):
        taken = np.concatenate([taken.take(range(*piece), dimension) for piece in pieces], dimension)
    few = all(len(pieces) <= _MOST_PIECES for pieces in found)
    return found if few and np.array_equal(taken, narrow) else None


def _ascending(narrow: NDArray[Any], wide: NDArray[Any]) -> list[int] | None:
    """The first ascending indices at which the rows of `wide` are those of `narrow`."""
    found: list[int] = []
    for row in narrow:
        start = found[-1] + 1 if found else 0
        matches = np.flatnonzero((wide[start:] == row).all(1))
        if not len(matches):
            return None
        found.append(start + int(matches[0]))
    return found


def _runs(indices: Sequence[int]) -> Pieces:
    runs: Pieces = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def _cut(source: str, result: str, pieces: Sequence[Pieces], shape: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """Nodes, and the constants that they take, from the whole weight to the part."""
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []
    cut = [dimension for dimension, runs in enumerate(pieces) if runs != [(0, shape[dimension])]]
    value = source
    for dimension in cut:
        out = result if dimension == cut[-1] else f"{result}.cut{dimension}"
        parts = []
        for number, (start, stop) in enumerate(pieces[dimension]):
            part = out if len(pieces[dimension]) == 1 else f"{out}.{dimension}.{number}"
            inputs = [value]
            for name, number_ in (("start", start), ("stop", stop), ("axis", dimension)):
                constants.append(numpy_helper.from_array(np.array([number_], dtype=np.int64), f"{part}.{name}"))
                inputs.append(constants[-1].name)
            nodes.append(helper.make_node("Slice", inputs, [part], name=part))
            parts.append(part)
        if len(parts) > 1:
            nodes.append(helper.make_node("Concat", parts, [out], name=out, axis=dimension))
        value = out
    return nodes, constants
