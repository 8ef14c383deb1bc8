"""The commands of README.md and docs/, run: what they are made smaller by, which are only parsed, and why.

Every command is parsed as it stands by tests/docs/test_blocks.py. The `edge-sd` ones are run here, in a folder of stand-ins
(tests/docs/conftest.py), after `REPLACED` and with `APPENDED` behind, whose values win over those before them.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from documents import Block, blocks_of, commands_of
from verbs import Outcome

REPLACED = {
    # One target and one runtime; tests/contract/ has all of them.
    r"--target (all|executorch|coreml)": "--target onnx",
    r"^(quantize.*?)( --target \w+)+": r"\1",
    r"--runtime (all|executorch|executorch-runner)(?= |$)": "--runtime onnxruntime",
    # Models of 16 px, and latents of an autoencoder that was not trained.
    r"--preset small64": "--preset tiny16",
    # What is learnt from is what was learnt; the commands behind take stand-ins of 36 thousand parameters in runs/.
    r"^(train|distill)(.*) -o runs/": r"\1\2 -o learnt/",
    r"--(teacher|autoencoder) runs/": r"--\1 learnt/",
    r"--autoencoder emoji64": "--autoencoder stand-in-autoencoder.safetensors",
    r"--features \S+": "--features my_features:Extractor",
    r"--minutes \d+": "--minutes 0.02",
    r"size<=1.2MB": "size<=0.05MB",
}
_TRAINING = "--steps 2 --batch-size 4 --precision fp32 --sample-every 0 --overwrite"
APPENDED = {
    "train": _TRAINING,
    "distill": _TRAINING,
    "train-autoencoder": _TRAINING,
    "sample": "-n 2 --overwrite",
    "evaluate": "-n 12 --kid-subset-size 6 --features my_features:Extractor --feature-size 16 --processes 1",
    "export": "--goldens 1 --overwrite",
    "bench": "--iterations 3 --warmup 1 --overwrite",
    "compare": "--pairs 4 --iterations 3 --warmup 1",
    "quantize": "--target none --iterations 0 --trajectories 4 --groups 1 --steps 3 --overwrite",
    "search": "--evaluations 28 -n 3 --fresh 3 --processes 1",
    "parity": "--overwrite",
    "plan make": "--overwrite",
    "plan swap": "--overwrite",
    "plan tune": "-n 4 --fine 20 --iterations 1 --overwrite",
}
# Commands that are parsed and not run: a pattern of the command, and why.
PARSED = {
    r"--device (ssh|adb|browser|emulator|apple)": "needs a device; tests/devices/ has simulated ones",
    r"^serve ": "runs until Ctrl-C; tests/devices/test_serve.py and test_page.py",
    r"^emulator ": "downloads and boots a board; tests/devices/test_emulator.py",
    r"^selftest": "minutes; tests/cli/test_parity_cli.py",
    r"^(doctor|list devices)": "asks every device; tests/cli/test_cli.py",
    r"^run ": "whole runs; tests/pipeline/",
    r"^widths |widths/plan.safetensors": "of a model that was trained at several widths; tests/search/test_widths.py",
    r"--slimmable": "trains at each width; tests/training/test_slimmable.py",
    r"--report": "of finished searches; tests/cli/test_search_cli.py",
    r"monday.json": "results of two days; tests/devices/test_compare.py",
}
# A quarter of a minute each: run on docs/commands/VERB.md, and parsed where they stand elsewhere.
ON_ITS_PAGE = ("quantize", "search", "export", "compare")
_MOST_MISSING = 0.4  # of a documented output's words: names of the reader's own files, models and machine


@dataclass
class Ran:
    """What became of one block: what its commands printed, and whether all of them were run."""

    block: Block
    printed: str = ""
    whole: bool = True


def verb_of(words: Sequence[str]) -> str:
    """`plan make` and the like are two words."""
    return " ".join(words[: 2 if words[0] in ("plan", "emulator") else 1])


def smaller(words: Sequence[str]) -> list[str]:
    """A command's words, after `edge-sd`, as they are run."""
    text = shlex.join(words)
    for pattern, new in REPLACED.items():
        text = re.sub(pattern, new, text)
    return shlex.split(f"{text} {APPENDED.get(verb_of(words), '')}")


def why_not(words: Sequence[str], page: Path) -> str:
    """Why a command is only parsed; empty where it is run."""
    text = " ".join(words)
    if words[0] in ON_ITS_PAGE and page.stem != words[0] and "--dry-run" not in words:
        return f"run on docs/commands/{words[0]}.md"
    return next((why for pattern, why in PARSED.items() if re.search(pattern, text)), "")


def run_page(page: Path, run: Callable[[list[str]], Outcome], failed: list[str]) -> Iterator[Ran]:
    """Run a page's commands in order, block by block; what fails is added to `failed`, and the others are run all the same."""
    for block in blocks_of(page):
        if block.kind == "shell":
            found = Ran(block)
            for words in commands_of(block):
                if words[0] == "edge-sd" and not why_not(words[1:], page):
                    asked = smaller(words[1:])
                    done = run(asked)
                    found.printed += done.out + done.err
                    if done.code:
                        failed.append(f"{block}: {shlex.join(words)}, run as {shlex.join(asked)}: {done.err[-600:]}")
                else:
                    found.whole = False
            yield found


def unsaid(documented: str, printed: str) -> set[str]:
    """Words of a documented output that a run's output lacks, if they are too many to be a matter of names."""
    wanted, found = ({word.lower() for word in re.findall(r"[A-Za-z]{3,}", text)} for text in (documented, printed))
    missing = wanted - found
    return missing if len(missing) > _MOST_MISSING * len(wanted) else set()
