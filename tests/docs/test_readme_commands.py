"""The commands of the README and the tutorial, run in order, smaller: see tests/helpers/documented.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from documented import Ran
from documents import ROOT, name_of


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "TUTORIAL.md"], ids=name_of)
def test_commands_run(page: Path, run_documented: Callable[[Path], list[Ran]]) -> None:
    ran = run_documented(page)
    assert sum(bool(block.printed) for block in ran) >= 3
