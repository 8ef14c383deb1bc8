"""The search for widths: its front against all there is, the same result after any cut, and a choice that noise has confirmed."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES, Plan, compile_plan, load_plan
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.models import ModelConfig
from edge_sd.models.count import count
from edge_sd.models.slim import slim_config
from edge_sd.models.unet import SpectralUNet
from edge_sd.report.widths import widths_picture
from edge_sd.search.objectives.trajectory import Trajectory
from edge_sd.search.stepwise import WIDTH_TRIALS, WIDTHS, WidthSearch, WidthSettings, WidthsRecord
from edge_sd.search.subject import Subject
from edge_sd.search.widths import Costs, Genes, front, search, seeds
from edge_sd.search.workers import Here
from verbs import call

SCHEDULE = SCHEDULES["cosine"]
COSTS = Costs((8, 16, 24), (1, 3, 9))
PLAN = compile_plan(SCHEDULE, 4, prediction="v", solver="ddim")


def quality(choices: Sequence[Genes]) -> list[float]:
    """Every step counts by itself, the last ones most; no two choices are equally good."""
    return [sum((2 - gene) * weight for gene, weight in zip(genes, (0.1, 0.23, 0.51, 1.07), strict=True)) for genes in choices]


def test_the_front_of_a_search_is_that_of_all_there_is() -> None:
    everything: list[Genes] = list(product(range(3), repeat=4))
    true = front(dict(zip(everything, quality(everything), strict=True)), COSTS)
    by_hand = [
        genes
        for genes, value in zip(everything, quality(everything), strict=True)
        if not any(
            COSTS.total(other) <= COSTS.total(genes) and worth < value
            for other, worth in zip(everything, quality(everything), strict=True)
        )
    ]
    assert sorted(true) == sorted(by_hand)
    *_, (done, tried) = search(quality, COSTS, 4, population=12, generations=12, seed=0)
    assert done == 12
    assert len(tried) < len(everything)
    assert front(tried, COSTS) == true


def test_a_seed_decides_the_trials() -> None:
    def trials(seed: int) -> list[Genes]:
        *_, (_, tried) = search(quality, COSTS, 4, population=8, generations=4, seed=seed)
        return list(tried)

    assert trials(1) == trials(1) != trials(2)


def test_it_starts_from_constant_widths_and_from_ones_that_rise_or_fall() -> None:
    found = seeds(6, 3)
    assert {(0,) * 6, (1,) * 6, (2,) * 6, (0, 0, 1, 1, 2, 2), (2, 2, 1, 1, 0, 0), (0, 0, 0, 0, 2, 2)} <= set(found)
    assert len(set(found)) == len(found)
    assert set(seeds(1, 2)) == {(0,), (1,)}


def test_costs_are_the_calls_alone(tiny_config: ModelConfig) -> None:
    config = tiny_config.model_copy(update={"slim_widths": (4,), "head_channels": None, "heads": 1})
    costs = Costs.of(config)
    for width, macs in zip((4, 8), costs.macs, strict=True):
        found = count(slim_config(config, width))
        embedding, features = width, SpectralUNet(slim_config(config, width)).feature_width
        time = embedding * 4 * width + (4 * width) ** 2 + 4 * width * features
        assert found.temporal_macs == time
        assert macs == found.macs + found.attention_macs - time
    with pytest.raises(UsageError, match="one width alone"):
        Costs.of(tiny_config)


# As it is done, on a model


@pytest.fixture(scope="module")
def slimmable(make_model) -> Checkpoint:  # type: ignore[no-untyped-def]
    model = make_model(5, width=24, slim_widths=(8, 16), head_channels=None, heads=1)
    return Checkpoint.of(model, SCHEDULE, "v", Provenance(made_by="train"))


@pytest.fixture(scope="module")
def objective(slimmable: Checkpoint) -> Trajectory:
    return Trajectory(Subject(slimmable.build(), SCHEDULE, "v"), fine=8)


def searching(
    slimmable: Checkpoint, objective: Trajectory, folder: Path, base: Plan | None = None, **changes: int
) -> WidthSearch:
    folder.mkdir(exist_ok=True)
    settings = WidthSettings(
        steps=4, objective="trajectory", samples=4, model=slimmable.header.digest, plan="0" * 64, solver="ddim",
        against=None if base is None else len(base), **{"population": 8, "generations": 3, **changes},
    )  # fmt: skip
    return WidthSearch(slimmable.build(), PLAN, Here(objective), Trajectory.about, settings, folder, 6, against=base)


def lasting(record: WidthsRecord) -> dict[str, object]:
    """Without what depends on the clock."""
    found = record.model_dump(exclude={"seconds", "milliseconds"})
    found["finalists"] = [{**one, "milliseconds": 0} for one in found["finalists"]]
    return found


@pytest.fixture(scope="module")
def whole(slimmable: Checkpoint, objective: Trajectory, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WidthsRecord]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, searching(slimmable, objective, folder).run()


def test_the_cheapest_that_fresh_noise_cannot_tell_from_the_full_width_is_chosen(
    whole: tuple[Path, WidthsRecord], objective: Trajectory
) -> None:
    folder, record = whole
    assert record.finalists[-1].widths == (24,) * 4
    assert record.finalists[-1].macs_share == 1
    assert [one.macs_share for one in record.finalists] == sorted(one.macs_share for one in record.finalists)
    assert record.choice.equal
    assert not any(one.equal for one in record.finalists[: record.chosen])
    full = objective.score(PLAN, seed=1, count=6)
    for one in record.finalists:
        score = objective.score(PLAN.with_widths(one.widths), seed=1, count=6)
        assert one.value == pytest.approx(score.value, rel=1e-6)
        difference, error = score.minus(full)
        assert (one.worse, one.worse_error) == pytest.approx((difference, error), abs=1e-6)
    plan = load_plan(folder / "plan.safetensors")
    assert tuple(plan.header.widths[program] for program in plan.program) == record.choice.widths
    assert WidthsRecord.model_validate_json((folder / WIDTHS).read_text()) == record
    assert widths_picture(record).startswith(b"\x89PNG")


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_widths_are_judged_against_the_full_one_in_other_steps(
    steps: int, slimmable: Checkpoint, objective: Trajectory, tmp_path: Path
) -> None:
    base = compile_plan(SCHEDULE, steps, prediction="v", solver="ddim")
    record = searching(slimmable, objective, tmp_path, base).run()
    *others, full = record.finalists
    assert (full.widths, full.macs_share, full.worse) == ((24,) * steps, 1, 0)
    assert full.value == pytest.approx(objective.score(base, seed=1, count=6).value, rel=1e-6)
    macs = dict(zip(record.widths, record.macs, strict=True))
    for one in others:
        assert len(one.widths) == len(PLAN)
        assert one.macs_share == sum(macs[width] for width in one.widths) / (steps * macs[24]) < 1
        score = objective.score(PLAN.with_widths(one.widths), seed=1, count=6)
        assert one.worse == pytest.approx(score.value - full.value, abs=1e-6)
    assert ((24,) * 4 in [one.widths for one in others]) == (steps > 4)
    plan = load_plan(tmp_path / "plan.safetensors")
    assert tuple(plan.step_widths) == record.choice.widths
    assert plan.timestep.tolist() == (base if len(record.choice.widths) == steps else PLAN).timestep.tolist()
    assert widths_picture(record).startswith(b"\x89PNG")
    again = searching(slimmable, objective, tmp_path, base).run()  # from what was kept
    assert lasting(again) == lasting(record)
    with pytest.raises(UsageError, match=f"against is {steps} there and None here"):
        searching(slimmable, objective, tmp_path).run()


@pytest.mark.parametrize("trials", [1, 9, 14])
def test_a_search_that_was_cut_ends_as_the_one_that_was_not(
    trials: int, whole: tuple[Path, WidthsRecord], slimmable: Checkpoint, objective: Trajectory, tmp_path: Path
) -> None:
    cut = searching(slimmable, objective, tmp_path)
    seen = []

    def stop(what: str, done: int, total: int, note: str) -> None:
        seen.append(what)
        if seen.count("searching") == trials:
            raise KeyboardInterrupt

    cut.observe = stop
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    with (tmp_path / WIDTH_TRIALS).open("ab") as file:
        file.write(b'{"widths": [8, 8')  # as a kill in the middle of a line leaves it
    assert lasting(searching(slimmable, objective, tmp_path).run()) == lasting(whole[1])


def test_a_folder_of_another_search_is_refused(
    whole: tuple[Path, WidthsRecord], slimmable: Checkpoint, objective: Trajectory
) -> None:
    with pytest.raises(UsageError, match="generations is 3 there and 5 here"):
        searching(slimmable, objective, whole[0], generations=5).run()


def test_a_trial_of_other_widths_is_refused(slimmable: Checkpoint, objective: Trajectory, tmp_path: Path) -> None:
    search = searching(slimmable, objective, tmp_path)
    search.folder.joinpath(WIDTH_TRIALS).write_text(
        search.settings.model_dump_json() + '\n{"widths": [8, 9, 8, 8], "value": 1.0, "standard_error": 0.1}\n'
    )
    with pytest.raises(EdgeSDError, match=r"widths \[8, 9, 8, 8\], which this search has not"):
        search.run()


# The verb


def test_the_verb_writes_plan_record_and_picture(slimmable: Checkpoint, tmp_path: Path) -> None:
    model = tmp_path / "slim.safetensors"
    slimmable.save(model)
    small = ("--steps", 3, "--solver", "ddim", "-n", 3, "--fresh", 3, "--fine", 3, "--population", 4, "--generations", 1)
    done = call("widths", model, *small, "--processes", 1, "-o", tmp_path / "widths")
    assert done.code == 0, done
    assert {"plan.safetensors", "widths.json", "front.png"} <= {path.name for path in (tmp_path / "widths").iterdir()}
    assert "full width" in done.out
    assert "fewer multiply-accumulates" in done.out
    drawn = call("sample", model, "--plan", tmp_path / "widths" / "plan.safetensors", "-n", 1, "-o", tmp_path / "a.png")
    assert drawn.code == 0, drawn


def test_the_verb_judges_against_other_steps(slimmable: Checkpoint, tmp_path: Path) -> None:
    model, plan = tmp_path / "slim.safetensors", tmp_path / "plan.safetensors"
    slimmable.save(model)
    small = ("-n", 3, "--fresh", 3, "--fine", 3, "--population", 4, "--generations", 1, "--processes", 1)
    done = call("widths", model, "--steps", 3, "--against", 2, *small, "-o", tmp_path / "widths")
    assert done.code == 0, done
    assert "steps against 2 of the full width" in done.out
    assert call("plan", "make", "--for", model, "--steps", 3, "-o", plan).code == 0
    refused = call("widths", model, "--plan", plan, "--against", 2, *small, "-o", tmp_path / "others")
    assert refused.failed_with(2, "--plan says no solver", "--solver and --steps"), refused


def test_a_model_of_one_width_is_refused(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    tiny_checkpoint.save(tmp_path / "plain.safetensors")
    refused = call("widths", tmp_path / "plain.safetensors", "-o", tmp_path / "widths")
    assert refused.failed_with(2, "at one width alone", "--slimmable"), refused


def test_training_takes_slim_widths(tmp_path: Path) -> None:
    small = ("--size", 16, "--count", 8, "--steps", 1, "--batch-size", 2, "--sample-every", 0, "-o", tmp_path / "run")
    refused = call("train", "--slimmable", "--slim-widths", "10", *small)
    assert refused.failed_with(2, "10 channels of slim width 10 cannot be split into 8 norm groups"), refused
    assert call("train", "--slim-widths", "8", *small).failed_with(2, "--slim-widths is of --slimmable")
    assert call("train", "--slimmable", *small).code == 0
    from edge_sd.checkpoint import load_checkpoint

    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").header.model.slim_widths == (8, 16)
