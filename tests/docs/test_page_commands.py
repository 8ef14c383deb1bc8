"""The commands of every other page, run in order, smaller; what a page says that they print is what they print."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from documented import Ran, unsaid
from documents import PAGES, ROOT, blocks_of, name_of

OTHERS = [page for page in PAGES if page not in (ROOT / "README.md", ROOT / "docs" / "TUTORIAL.md")]
# Pages with an output of commands that are only parsed, and who has compared it.
COPIED = {
    "docs/commands/doctor.md": "tests/cli/test_cli.py looks for each runtime and device",
    "docs/commands/selftest.md": "tests/cli/test_parity_cli.py looks for each runtime",
}


@pytest.mark.parametrize("page", [page for page in OTHERS if any(one.kind == "shell" for one in blocks_of(page))], ids=name_of)
def test_commands_run(page: Path, run_documented: Callable[[Path], list[Ran]]) -> None:
    ran = {block.block.line: block for block in run_documented(page)}
    blocks = blocks_of(page)
    for before, block in pairwise(blocks):
        if block.kind != "text":
            continue
        if not ran[before.line].printed:
            assert name_of(page) in COPIED, f"{block}: the output of a command that is not run"
        elif missing := unsaid(block.text, ran[before.line].printed):
            pytest.fail(f"{block}: not printed: {', '.join(sorted(missing))}")
