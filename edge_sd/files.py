"""Files that survive a kill: everything is written beside its place and renamed into it.

At any moment a reader finds the old file or the new one, never half of either; a full disk leaves the old one and an error
that names it. Folders are exchanged in the same way (one `renameat2` on Linux).
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.validation import Model, first_fault

# Where a tensor file keeps its JSON header.
HEADER = "edge_sd"


# Writing


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write below `path` into an `EdgeSDError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EdgeSDError(
                f"no space left on the disk of {path}", "free some space and give the same command again"
            ) from error
        raise EdgeSDError(f"cannot write {path}: {error.strerror or error}", "choose another output with -o") from error


@contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Hold a folder, by a lock that a killed process loses; it is made where it is not there.

    Args:
        doing: what another process that holds it is said to do: "is training".

    Raises:
        EdgeSDError: another one holds it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise EdgeSDError(f"another process {doing} in {folder}", "wait for it, or choose another -o") from error
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically (temporary file beside it, fsync, rename)."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_model(path: Path, model: BaseModel) -> None:
    """Write a pydantic model as indented JSON, atomically."""
    write_text(path, model_text(model))


def model_text(model: BaseModel) -> str:
    """How `write_model` writes it."""
    return model.model_dump_json(indent=2) + "\n"


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], header: BaseModel) -> None:
    """Write a safetensors file atomically, `header` as JSON in its metadata."""
    data = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    write_bytes(path, safetensors_bytes(data, metadata={HEADER: header.model_dump_json()}))


@contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        UsageError: `path` exists and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", "give --overwrite to replace it, or another -o")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            temporary.chmod(0o777 & ~umask())
            yield temporary
            _take_place(temporary, path)
        finally:
            _remove(temporary)


def plain_name(text: str) -> str:
    """A plain file name for a title, whatever a device's address or somebody's folder holds."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in ".-") else "-" for letter in text)[:120]


def link_or_copy(source: Path, destination: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot; whoever changes one of them writes a new file."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def umask() -> int:
    """The permissions that new files of this process lack: a temporary file lacks more, until it takes its place."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _take_place(new: Path, path: Path) -> None:
    """Rename folder `new` to `path`; what stood there ends up under `new`'s name."""
    if not path.exists():
        new.rename(path)
        return
    with suppress(AttributeError, OSError):  # no renameat2 (not Linux), or a file system without RENAME_EXCHANGE
        libc = ctypes.CDLL(None, use_errno=True)
        at_cwd, exchange = -100, 2
        if libc.renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(path), exchange) == 0:
            return
    old = path.with_name(f".{path.name}.old")
    _remove(old)
    path.rename(old)
    new.rename(path)
    _remove(old)


# Reading


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """Return 16 hex digits that stand for a JSON-able value (keys in any order)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def tensors_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the hex SHA-256 over the names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = np.asarray(tensors[name], order="C")
        digest.update(f"{name}|{value.dtype}|{value.shape}|".encode())
        digest.update(value.reshape(-1).view(np.uint8).data if value.size else b"")
    return digest.hexdigest()


def parse_model(kind: type[Model], text: str | bytes, source: Path | str) -> Model:
    """Validate JSON against a pydantic model.

    Raises:
        EdgeSDError: it is not JSON or does not fit the schema; the first offending field is named.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        _refuse_other_version(kind, text, source)
        raise EdgeSDError(
            f"{source} is not a valid {kind.__name__}: {first_fault(error)}", "was it made by another version?"
        ) from error


def _refuse_other_version(kind: type[BaseModel], text: str | bytes, source: Path | str) -> None:
    """Say so where it is not damage but another schema version that keeps a file from being read."""
    field = kind.model_fields.get("schema_version")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or lists in lists without end
        return
    found = values.get("schema_version") if isinstance(values, dict) else None
    if field is None or type(found) is not int or found == field.default:
        return
    newer = found > field.default
    raise EdgeSDError(
        f"{source} has schema version {found}, this edge-sd reads version {field.default}",
        "it was written by a newer edge-sd: pip install --upgrade edge-sd" if newer else "make it again with this edge-sd",
    )


def read_model(kind: type[Model], path: Path) -> Model:
    """Read a JSON file into a pydantic model, with an `EdgeSDError` for a missing or a bad one."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise EdgeSDError(f"cannot read {path}: {error.strerror or error}", "check the path") from error
    return parse_model(kind, text, path)


def read_tensors(kind: type[Model], path: Path) -> tuple[Model, dict[str, np.ndarray]]:
    """Read a safetensors file: its header, validated, and its tensors, each of them finite.

    Raises:
        EdgeSDError: missing, truncated, foreign, or holding a NaN or an infinity.
    """
    if not path.is_file():
        raise EdgeSDError(f"{path} does not exist" if not path.exists() else f"{path} is not a file", "check the path")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except (SafetensorError, OSError) as error:
        raise EdgeSDError(f"{path} is not a whole safetensors file: {error}", "was its download or copy cut short?") from error
    except (TypeError, AttributeError) as error:  # a dtype that NumPy does not have, bfloat16 for instance
        raise EdgeSDError(
            f"{path} holds tensors of a type that is not read here: {error}", "give a file that edge-sd wrote"
        ) from error
    if HEADER not in metadata:
        raise EdgeSDError(
            f"{path} is a safetensors file, but not one of edge-sd: its metadata has no '{HEADER}'",
            "give a file that edge-sd wrote",
        )
    header = parse_model(kind, metadata[HEADER], path)
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise EdgeSDError(f"{path}: tensor {name} holds a NaN or an infinity", "make the file again")
    return header, tensors
