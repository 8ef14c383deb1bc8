"""Plans with widths beside the full width, in one table. `python tests/benchmarks/step_widths.py CHECKPOINT PLAN… --data PHOTOS
--features MODULE:CALLABLE -o FOLDER`

CHECKPOINT is of `edge-sd train --slimmable`, each PLAN of `edge-sd widths` or `edge-sd plan make --widths`. Rows: every plan, the
same steps at the narrowest of its widths, and at the full width. Columns: multiply-accumulates and milliseconds of torch, as
shares of the full width's; kernel distance of n samples' features to those of real images, at three seeds; how much worse that
is than the full width's on the same noise, ± its standard error, at each seed and over all three. Every score is kept in
FOLDER; a killed run goes on where it was.
"""

import argparse
from pathlib import Path

import numpy as np
from few_steps import size_of
from pydantic import Field

from edge_sd.data import DataConfig, open_data
from edge_sd.diffusion import Plan, load_plan
from edge_sd.evaluation.draw import cores
from edge_sd.evaluation.features import extract, load_features
from edge_sd.evaluation.reference import choose
from edge_sd.files import tensors_digest
from edge_sd.foreign import open_model
from edge_sd.pretrained import model_path
from edge_sd.search.objectives import Score
from edge_sd.search.objectives.kid import save_real
from edge_sd.search.record import Lines
from edge_sd.search.stepwise import SURE, call_milliseconds
from edge_sd.search.widths import Costs
from edge_sd.search.workers import Opening, Workers
from edge_sd.validation import Record

SEEDS = (1, 2, 3)


class Owner(Record):
    """What the scores belong to."""

    kind: str = "step-widths"
    model: str
    real: str
    n: int


class Cell(Record):
    """One plan's score at one seed."""

    plan: str  # its digest
    seed: int
    value: float = Field(allow_inf_nan=False)
    standard_error: float
    deviations: tuple[float, ...]


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
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--features-name")
    parser.add_argument("--feature-size", type=int)
    parser.add_argument("-n", type=int, default=512)
    parser.add_argument("--real", type=int, default=1000)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/step-widths"))
    given = parser.parse_args()
    path = model_path(given.model).resolve()
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    network = open_model(path).checkpoint.build().eval()
    costs, milliseconds = Costs.of(network.config), call_milliseconds(network)
    full = network.config.width
    rows = with_constants([load_plan(plan) for plan in given.plans], full)

    extractor = load_features(given.features, name=given.features_name, size=given.feature_size)
    pixels, chosen = choose(open_data(DataConfig(source=given.data), size_of(path)), given.real, seed=0)
    real = out / "real.safetensors"
    save_real(real, extract(extractor, pixels), extractor, chosen.about, chosen.digest)
    owner = Owner(model=open_model(path).checkpoint.header.digest, real=chosen.digest, n=given.n)
    lines = Lines(out / "cells.jsonl", Cell, owner)
    found = {(c.plan, c.seed): Score(c.value, c.standard_error, np.array(c.deviations)) for c in lines.read()}
    told = {"real": str(real), "features": given.features, "features_name": given.features_name,
            "features_size": given.feature_size}  # fmt: skip
    with Workers(Opening(path, "kid", tuple(told.items())), cores()) as workers, lines.appending() as append:
        for seed in SEEDS:
            missing = [plan for plan in rows if (digest_of(plan), seed) not in found]
            for index, score in workers.scores(missing, seed=seed, count=given.n):
                digest = digest_of(missing[index])
                found[digest, seed] = score
                append(
                    Cell(plan=digest, seed=seed, value=score.value, standard_error=score.standard_error,
                         deviations=tuple(score.deviations.tolist()))
                )  # fmt: skip

    print(f"\n{owner.kind}, {path}, n = {given.n}, seeds {SEEDS}; ± standard errors\n")
    print("| widths | multiply-accumulates | ms | KID | worse than the full width | together |")
    print("| --- | ---: | ---: | --- | --- | --- |")
    for plan in rows:
        widths = plan.step_widths
        genes = tuple(costs.widths.index(width) for width in widths)
        time, whole = sum(milliseconds[gene] for gene in genes), len(plan) * milliseconds[-1]
        pairs = [(found[digest_of(plan), seed], found[digest_of(plan.with_widths([full] * len(plan))), seed]) for seed in SEEDS]
        kid = ", ".join(f"{score.value:.3f}" for score, _ in pairs)
        worse = ", ".join("{:+.3f} ± {:.3f}".format(*score.minus(base)) for score, base in pairs)
        mean, error = together(pairs, given.n)
        verdict = "equal" if mean <= SURE * error else "worse"
        last = "" if set(widths) == {full} else f"{mean:+.3f} ± {error:.3f}: {verdict}"
        print(f"| {runs(widths)} | {costs.share(genes):.1%} | {time:.0f} ({time / whole:.0%}) | {kid} | {worse} | {last} |")


if __name__ == "__main__":
    main()
