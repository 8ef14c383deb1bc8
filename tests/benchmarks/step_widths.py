"""Plans with widths beside the full width, in one table. `python tests/benchmarks/step_widths.py CHECKPOINT PLAN… --data PHOTOS
--features MODULE:CALLABLE -o FOLDER`

CHECKPOINT is of `edge-sd train --slimmable`, each PLAN of `edge-sd widths` or `edge-sd plan make --widths`. Rows: every plan, the
same steps at the narrowest of its widths, and at the full width. Columns: multiply-accumulates and milliseconds of torch, as
shares of the full width's; kernel distance of n samples' features to those of real images, at three seeds; how much worse that
is than the full width's on the same noise, ± its standard error, at each seed and over all three. There is a table for each
--data. Features of all samples are kept in FOLDER; a killed run goes on where it was, and another --data draws nothing anew. With
--against PLAN the rows are the plans alone, of any number of steps, and every share and difference is of that one.
"""

import argparse
import multiprocessing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from few_steps import size_of
from numpy.typing import NDArray

from edge_sd.data import DataConfig, open_data
from edge_sd.diffusion import Plan, load_plan
from edge_sd.evaluation.distances import check_features
from edge_sd.evaluation.draw import cores
from edge_sd.evaluation.features import Features, extract, load_features
from edge_sd.evaluation.reference import choose, rgb_pixels
from edge_sd.files import read_tensors, tensors_digest, write_tensors
from edge_sd.foreign import open_model
from edge_sd.pretrained import model_path
from edge_sd.search.objectives import Score
from edge_sd.search.objectives.kid import Within, mmd
from edge_sd.search.stepwise import SURE, call_milliseconds
from edge_sd.search.subject import open_subject
from edge_sd.search.widths import Costs
from edge_sd.validation import Record

SEEDS = (1, 2, 3)


class Drawn(Record):
    """Which samples' features a file holds."""

    kind: str = "step-widths"
    model: str
    plan: str  # its digest
    seed: int
    n: int
    features: str


@dataclass(frozen=True)
class Drawing:
    """What samples' features depend on besides plan and seed, and where they are kept.

    Attributes:
        path, digest: of the checkpoint.
        features: what `load_features` is given: the callable, its name, a size.
    """

    path: Path
    digest: str
    features: tuple[str, str | None, int | None]
    n: int
    folder: Path

    def rows(self, plan: Plan, seed: int) -> NDArray[np.float32]:
        """(n, D), read where they were drawn before."""
        extractor = extractor_of(*self.features)
        about = Drawn(model=self.digest, plan=digest_of(plan), seed=seed, n=self.n, features=extractor.digest)
        path = self.folder / f"{about.model[:8]}-{about.plan[:16]}-{seed}.safetensors"
        if path.exists():
            header, tensors = read_tensors(Drawn, path)
            if header == about:
                return tensors["features"]
        subject = subject_of(self.path)
        found = extract(extractor, rgb_pixels(subject.decode(subject.draw(plan, seed, range(self.n)))))
        write_tensors(path, {"features": found}, about)
        return found


@cache
def extractor_of(name: str, callable_name: str | None, size: int | None) -> Features:
    """Opened once a process."""
    return load_features(name, name=callable_name, size=size)


subject_of = cache(open_subject)


def draw(job: tuple[Drawing, Plan, int]) -> NDArray[np.float32]:
    """In a process of its own."""
    drawing, plan, seed = job
    return drawing.rows(plan, seed)


def digest_of(plan: Plan) -> str:
    """Of what a plan draws, however its programs are numbered."""
    columns = {name: column for name, column in plan.columns.items() if name != "program"}
    return tensors_digest({**columns, "widths": np.array(plan.step_widths)})


def with_constants(plans: list[Plan], full: int) -> list[Plan]:
    """The plans, then each one's steps at its narrowest width and at the full one; what is the same, once."""
    narrow = [plan.with_widths([min(plan.step_widths)] * len(plan)) for plan in plans]
    wide = [plan.with_widths([full] * len(plan)) for plan in plans]
    return list({digest_of(plan): plan for plan in [*plans, *narrow, *wide]}.values())


def together(pairs: list[tuple[Score, Score]], n: int) -> tuple[float, float]:
    """(mean difference, its standard error) over seeds: samples are others at each, real images the same."""
    each = [a.deviations - b.deviations for a, b in pairs]
    error = np.hypot(np.linalg.norm([d[:n] for d in each]), np.linalg.norm(np.sum([d[n:] for d in each], axis=0)))
    return float(np.mean([a.value - b.value for a, b in pairs])), float(error) / len(pairs)


def runs(widths: list[int]) -> str:
    """Words: 28 × 21, 22 × 35."""
    starts = [i for i, width in enumerate(widths) if i == 0 or widths[i - 1] != width]
    return ", ".join(f"{end - start} × {widths[start]}" for start, end in zip(starts, [*starts[1:], len(widths)], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--against", type=Path, help="a plan; the full width in the same steps if left out")
    parser.add_argument("--data", required=True, action="append", help="again for a table against other images")
    parser.add_argument("--features", required=True)
    parser.add_argument("--features-name")
    parser.add_argument("--feature-size", type=int)
    parser.add_argument("-n", type=int, default=512)
    parser.add_argument("--real", type=int, default=1000, help="images of each --data; all of them where there are fewer")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/step-widths"))
    given = parser.parse_args()
    path = model_path(given.model).resolve()
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    opened = open_model(path).checkpoint
    network = opened.build().eval()
    costs, milliseconds = Costs.of(network.config), call_milliseconds(network)
    rows, full = [load_plan(plan) for plan in given.plans], network.config.width
    rows = [*rows, load_plan(given.against)] if given.against else with_constants(rows, full)
    bases = [rows[-1] if given.against else plan.with_widths([full] * len(plan)) for plan in rows]

    jobs = [(plan, seed) for seed in SEEDS for plan in rows]
    features = (given.features, given.features_name, given.feature_size)
    drawing = Drawing(path, opened.header.digest, features, given.n, out)
    sets: dict[tuple[str, int], Within] = {}
    with multiprocessing.get_context("spawn").Pool(cores(), torch.set_num_threads, (1,)) as pool:
        drawn = pool.imap(draw, [(drawing, *job) for job in jobs])
        for (plan, seed), found in zip(jobs, drawn, strict=True):
            sets[digest_of(plan), seed] = Within(check_features(found, "features of samples", 3))
            print(f"seed {seed}, {runs(plan.step_widths)}: drawn", flush=True)

    extractor = extractor_of(*features)
    for source in given.data:
        data = open_data(DataConfig(source=source), size_of(path))
        pixels, chosen = choose(data, min(given.real, len(data)), seed=0)
        real = Within(check_features(extract(extractor, pixels), "features of real images", 3))
        scores = {key: mmd(real, drawn) for key, drawn in sets.items()}
        print(f"\n{path}, n = {given.n}, seeds {SEEDS}, against {len(pixels)} of {chosen.about}; ± standard errors\n")
        print_table(rows, bases, scores, given.n, costs, milliseconds)


def print_table(
    rows: list[Plan],
    bases: list[Plan],
    scores: dict[tuple[str, int], Score],
    n: int,
    costs: Costs,
    milliseconds: tuple[float, ...],
) -> None:
    """Of all plans, each beside its base, by scores of (digest, seed)."""

    def total(plan: Plan, of_one: tuple[float, ...]) -> float:
        return sum(of_one[costs.widths.index(width)] for width in plan.step_widths)

    print("| widths | multiply-accumulates | ms | KID | worse | together |")
    print("| --- | ---: | ---: | --- | --- | --- |")
    for plan, base in zip(rows, bases, strict=True):
        share = total(plan, costs.macs) / total(base, costs.macs)
        time = total(plan, milliseconds)
        pairs = [(scores[digest_of(plan), seed], scores[digest_of(base), seed]) for seed in SEEDS]
        kid = ", ".join(f"{score.value:.3f}" for score, _ in pairs)
        worse = ", ".join("{:+.3f} ± {:.3f}".format(*score.minus(other)) for score, other in pairs)
        mean, error = together(pairs, n)
        verdict = "equal" if mean <= SURE * error else "worse"
        last = f"{mean:+.3f} ± {error:.3f}: {verdict}"
        beside = f"| {runs(plan.step_widths)} | {share:.1%} | {time:.0f} ({time / total(base, milliseconds):.0%}) | {kid} |"
        print(beside if digest_of(plan) == digest_of(base) else f"{beside} {worse} | {last} |")


if __name__ == "__main__":
    main()
