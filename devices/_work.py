"""The host's job in a runtime of Python's, in a process of its own, so that its memory is its own and a crash stays there.

MODE BUNDLE FOLDER: reads job.json in the folder, writes evidence.safetensors or result.json there; an error that has words is
printed on standard output as a `Fault`.
"""

import threading
import time
from pathlib import Path

from edge_sd.bundle import Bundle, open_bundle, trace
from edge_sd.devices import _measuring as measuring
from edge_sd.devices._agent import end_with_input, say
from edge_sd.devices._job import Job, Measurement
from edge_sd.devices._staging import EVIDENCE, JOB, RESULT, limits_of
from edge_sd.errors import EdgeSDError
from edge_sd.files import read_model, write_model
from edge_sd.runtimes import find_runtime, load_denoiser
from edge_sd.runtimes._worker import end_with_parent, fault_of
from edge_sd.runtimes.evidence import gather, header_of, save_evidence


def main(mode: str, path: str, folder: str) -> int:
    """Do one half of a job, and return the exit code."""
    end_with_parent()
    threading.Thread(target=end_with_input, daemon=True).start()
    try:
        bundle, job = open_bundle(Path(path)), read_model(Job, Path(folder) / JOB)
        if mode == "prove":
            runtime = find_runtime(job.runtime)
            save_evidence(Path(folder) / EVIDENCE, header_of(bundle, runtime), gather(bundle, runtime, job.threads, say))
        else:
            write_model(Path(folder) / RESULT, measure(bundle, job))
    except EdgeSDError as error:
        print(fault_of(error).model_dump_json(), flush=True)
        return int(error.code)
    return 0


def measure(bundle: Bundle, job: Job) -> Measurement:
    """Load, call once, warm up, and time; inputs are the bundle's golden trajectories, step by step."""
    runtime = find_runtime(job.runtime)
    golden, plan = bundle.golden.trajectories[0], bundle.plan
    base = measuring.memory("VmRSS")
    began = time.perf_counter()
    session = load_denoiser(runtime, bundle, job.threads)
    has_decoder = any(contract.program == "decoder" for contract in bundle.manifest.contracts)
    decoder = runtime.load(bundle, job.threads, "decoder") if has_decoder else None
    load_ms = (time.perf_counter() - began) * 1e3

    def step(row: int) -> None:
        session.select(int(plan.program[row]))
        session(golden.samples[row : row + 1], golden.features[row : row + 1])

    def image() -> None:
        drawn = trace(plan, session, bundle.golden.header.seed, 0, golden.features).final
        if decoder is not None:
            decoder(drawn[None])

    decode = None if decoder is None else lambda: decoder(golden.final[None])
    found = measuring.measure(measuring.Calls(step, decode, image), len(plan), limits_of(job), job.threads, say)
    return Measurement(
        runtime_version=runtime.available().detail,
        load_ms=load_ms,
        base_memory_bytes=base,
        **found,
    )
