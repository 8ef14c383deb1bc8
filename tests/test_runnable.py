"""What is not installed is named with the command that brings it."""

import sys
from pathlib import Path

from edge_sd.runnable import EXTRAS, packages_available

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def test_a_missing_package_is_named_by_the_extra_that_brings_it() -> None:
    assert packages_available("edge-sd", "no-such-package").remedy == "pip install no-such-package"
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(requirement.startswith(package) for requirement in extras[extra])
