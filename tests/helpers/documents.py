"""README.md and docs/ as they are written: code blocks, the commands in them, links and headings."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What a line of an indented block begins with, if it is for a shell.
PROGRAMS = ("edge-sd", "make", "pip", "python", "node", "cmake", "torchrun", "accelerate", "out/loop/loop")
_FENCE = re.compile(r"^```(\w*)\s*$")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$")


def name_of(page: Path) -> str:
    """As messages name it."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        line: where it begins, from 1.
        kind: "shell", "indented" (any other indented block), or what stands behind a fence.
    """

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Every fenced and every indented block of a page, in order. An indented one follows an empty line; lists are no blocks."""
    return list(_blocks(name_of(page), page.read_text().split("\n")))


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    at = 0
    while at < len(lines):
        if fence := _FENCE.match(lines[at]):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            yield Block(page, at + 1, fence[1] or "unnamed", "\n".join(lines[at + 1 : end]))
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and lines[end].startswith("    "):
                end += 1
            text = "\n".join(line[4:] for line in lines[at:end])
            yield Block(page, at + 1, "shell" if text.startswith(PROGRAMS) else "indented", text)
            at = end
        else:
            at += 1


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a shell block, in words: comments gone, continued lines joined, `&&` between two."""
    commands = []
    for line in re.sub(r"\\\n\s*", "", block.text).split("\n"):
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                commands.append(words)
                words = []
    return commands


def links_of(page: Path) -> list[str]:
    """What a page links to and shows, outside of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = "\n".join(line for line in text.split("\n") if not line.startswith("    "))
    return _LINK.findall(re.sub(r"`[^`]*`", "", text))


def anchors_of(page: Path) -> set[str]:
    """Its headings, as GitHub makes anchors of them."""
    found = (_HEADING.match(line) for line in page.read_text().split("\n"))
    return {re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-") for heading in found if heading}
