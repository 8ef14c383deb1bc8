"""Settings from people and files, checked against a pydantic model, with an error that names the first thing wrong."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edge_sd.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


class Record(BaseModel):
    """What every file that is read back, and every section of settings, is: unchangeable, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def first_fault(error: ValidationError) -> str:
    """Where it is, and what is wrong with it."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def validated(kind: type[Model], values: Mapping[str, Any], what: str) -> Model:
    """Build `kind` from values that a person gave.

    Raises:
        UsageError: they do not fit; `what` says where they come from.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{what}: {first_fault(error)}", "edge-sd COMMAND --help shows what can be given") from error
