"""Implementations found by name: one abstract class, one file for each, no list to keep up to date.

A public module of the package that holds a subclass with a `name` is an implementation; other distributions add theirs by an
entry point in the group `<package>` (for instance `edge_sd.runtimes`).
"""

import importlib
import inspect
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TypeVar

Base = TypeVar("Base")


@lru_cache
def implementations(package: str, base: type[Base]) -> dict[str, Base]:
    """Return one instance of every implementation of `base` below `package`, by its name, in alphabetical order."""
    instances = [cls() for cls in _found(package, base)]
    return {instance.name: instance for instance in sorted(instances, key=lambda instance: str(instance.name))}  # type: ignore[attr-defined]


@lru_cache
def classes(package: str, base: type[Base]) -> dict[str, type[Base]]:
    """Return the implementations themselves, where each is made from something: by their names, in alphabetical order."""
    found = _found(package, base)
    return {cls.name: cls for cls in sorted(found, key=lambda cls: str(cls.name))}  # type: ignore[attr-defined]


def _found(package: str, base: type[Base]) -> list[type[Base]]:
    modules = [
        importlib.import_module(f"{package}.{entry.name}")
        for entry in pkgutil.iter_modules(importlib.import_module(package).__path__)
    ]
    found = [value for module in modules for value in vars(module).values() if inspect.isclass(value) and issubclass(value, base)]
    found += [entry.load() for entry in entry_points(group=package)]
    return [cls for cls in dict.fromkeys(found) if not inspect.isabstract(cls)]
