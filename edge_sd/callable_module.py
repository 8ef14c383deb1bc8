"""`edge_sd.export` and `edge_sd.quantize` are folders of modules, and verbs: calling the package does what the verb does."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """A package that can be called.

    The function is looked up when it is called: it stands above the package, and is made of it.
    """

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """See `edge_sd.api`."""
        return getattr(import_module("edge_sd.api"), self.__name__.rpartition(".")[2])(*arguments, **named)


def make_callable(package: str) -> None:
    """Let a package be called like the function of its name in `edge_sd.api`; to be said in its `__init__`.

    The class of a module may be changed: Python's data model, "Customizing module attribute access".
    """
    sys.modules[package].__class__ = _Verb
