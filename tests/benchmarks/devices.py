"""Every device that can be had on one machine, in one table: `python tests/benchmarks/devices.py table BUNDLE -o FOLDER`.

`… same BUNDLE` compares a bundle with itself twenty times and counts how often a difference is named: once at most.
`… pair A B` is `edge-sd compare` in each runtime that both have. Nothing is installed or left running; the emulated board is
made, where there is none, in the user's cache.
"""

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from adbd import Phone
from adbd.server import private_server
from edge_sd.api._bench import measured_floors
from edge_sd.bundle import open_bundle
from edge_sd.cli._console import TERMINAL, progress, say
from edge_sd.cli.bench import print_results
from edge_sd.devices import BenchResult, Job
from edge_sd.devices._compare import compare
from edge_sd.devices._pool import Task, run_tasks
from edge_sd.devices.emulation import board_folder, create
from edge_sd.files import write_model
from loopback_sshd import loopback_sshd

QUICK = Job(runtime="", least_warmup=10, most_warmup=200, iterations=100, most_seconds=20.0, patience=600.0)
SLOW = QUICK.model_copy(update={"least_warmup": 1, "most_warmup": 3, "iterations": 5, "images": 1})


def table(path: Path, output: Path) -> None:
    """One bundle on every device, in every runtime that it has there."""
    bundle = open_bundle(path)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("sshd", "adb"):
            (folder / name).mkdir()
        server = stack.enter_context(loopback_sshd(folder / "sshd", SetEnv=f"EDGE_SD_PYTHON={sys.executable}"))
        os.environ["EDGE_SD_SSH_CONFIG"] = str(server.config)
        stack.enter_context(private_server(folder / "adb"))
        phone = stack.enter_context(Phone())
        rows: list[tuple[str, str, Job]] = [
            ("host", "onnxruntime", QUICK),
            ("host", "executorch", QUICK),
            ("host", "executorch-runner", QUICK),
            ("ssh:board", "executorch-runner", QUICK),
            ("ssh:board", "onnxruntime", QUICK),
            (f"adb:{phone.serial}", "executorch-runner", QUICK),
            ("browser:wasm", "onnxruntime-web", QUICK),
            ("browser:webgpu", "onnxruntime-web", SLOW),
            ("host", "executorch-runner-aarch64", SLOW),
            ("emulator", "executorch-runner", SLOW),
            ("emulator", "onnxruntime", SLOW),
        ]
        tasks = [Task(place, job.model_copy(update={"runtime": runtime})) for place, runtime, job in rows]
        results: list[BenchResult] = []

        def on_result(result: BenchResult) -> None:
            results.append(result)
            name = result.device.title.replace(":", "-").replace("/", "-")
            write_model(output / f"{name}-{result.job.runtime}.json", result)

        # One after the other: all of these share this machine's processors, the "phone" and the "board" too.
        with progress("devices") as update:
            for number, task in enumerate(tasks):
                update(number, len(tasks), task.title)
                _, failures = run_tasks([task], bundle, floors=measured_floors(bundle, [task], TERMINAL), on_result=on_result)
                for failure in failures:
                    say(f"{failure.task.title}: {failure.error}")
        print_results(results)


def same(path: Path, runtime: str, times: int) -> None:
    """How often a bundle is told apart from itself."""
    bundle = open_bundle(path)
    job = QUICK.model_copy(update={"runtime": runtime, "iterations": 50, "prove": False})
    verdicts = []
    for _ in range(times):
        verdicts.append(compare("host", (bundle, job), (bundle, job)))
        print(verdicts[-1].verdict, flush=True)
    told = sum(verdict.faster is not None for verdict in verdicts)
    print(f"{runtime}: told apart in {told} of {times}")


def pair(a: Path, b: Path) -> None:
    """Two bundles in turn, in each runtime that both have."""
    bundles = open_bundle(a), open_bundle(b)
    for runtime in ("onnxruntime", "executorch-runner"):
        job = QUICK.model_copy(update={"runtime": runtime, "prove": False})
        found = compare("host", (bundles[0], job), (bundles[1], job))
        print(f"{runtime}: A is {a.name}, B is {b.name}: {found.verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "same", "pair"))
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/devices"))
    parser.add_argument("--runtime", default="executorch-runner")
    parser.add_argument("--times", type=int, default=20)
    given = parser.parse_args()
    if given.what == "table":
        if not board_folder().is_dir():
            create()
        table(given.bundles[0], given.output)
    elif given.what == "same":
        same(given.bundles[0], given.runtime, given.times)
    else:
        pair(*given.bundles)


if __name__ == "__main__":
    main()
