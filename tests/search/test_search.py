"""The search: where the exact answer is known it beats what is published; it can be killed and goes on; it says what is wrong."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sd.diffusion import NoiseSchedule, Plan, execute, gaussian_batch, load_plan
from edge_sd.diffusion.unified import KNOWN, Decision, SolverSchedule, compile_schedule, known_schedule
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import alone, read_model
from edge_sd.search.compare import Comparing, Comparison
from edge_sd.search.objectives import Score
from edge_sd.search.objectives.trajectory import Trajectory
from edge_sd.search.predictor import LENGTHS, NOISES, Predictor, rank_correlation
from edge_sd.search.propose import offspring
from edge_sd.search.record import (
    COMPARED,
    FINALS,
    SCHEDULE,
    SEARCH,
    TRIALS,
    Final,
    Lines,
    SearchRecord,
    SearchSettings,
    Trial,
)
from edge_sd.search.search import Search
from edge_sd.search.seeds import first_round, second_round, spacings
from edge_sd.search.space import Space, encoded
from edge_sd.search.workers import Here
from gaussian_data import SCHEDULE as COSINE
from gaussian_data import SHAPE, exact_end, subject

LINEAR = NoiseSchedule()
SETTINGS = SearchSettings(steps=4, objective="trajectory", details={"fine": 60}, samples=4, seed=3, model="0" * 64)
EVALUATIONS, KNOWN_TRIALS = 190, 108


def make_search(folder: Path, evaluations: int = EVALUATIONS, scorer: Here | None = None, **changes: object) -> Search:
    space = Space(COSINE, "v", SETTINGS.steps)
    own = SETTINGS.model_copy(update=changes)
    scorer = scorer or Here(Trajectory(subject(), fine=60))
    return Search(space, scorer, own, Trajectory, folder, evaluations, fresh=16)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchRecord]:
    """A search that nothing interrupted."""
    folder = tmp_path_factory.mktemp("search")
    return folder, make_search(folder).run()


# What it finds


def error_of(plan: Plan) -> float:
    """RMS distance to the exact end, in float64, on noise that no search has seen."""
    noise = gaussian_batch(99, range(64), -1, SHAPE).astype(np.float64)
    widths = np.linspace(0.05, 1.2, 32).reshape(SHAPE)

    def v(x: np.ndarray, row: int) -> np.ndarray:
        alpha_bar = float(COSINE.alpha_bar(plan.timestep[row]))
        return (alpha_bar * (1 - alpha_bar)) ** 0.5 * (1 - widths**2) / (alpha_bar * widths**2 + 1 - alpha_bar) * x

    samples = execute(plan, v, noise, lambda row: pytest.fail("a deterministic plan asked for noise"))
    return float(np.sqrt(np.mean((samples - exact_end(noise)) ** 2)))


def test_it_beats_every_known_solver_where_the_solution_is_exact(searched: tuple[Path, SearchRecord]) -> None:
    folder, record = searched
    found = error_of(load_plan(folder / "plan.safetensors"))
    space = Space(COSINE, "v", SETTINGS.steps)
    known = [error_of(compile_schedule(known_schedule(n, COSINE, "v", t))) for _, t in spacings(space) for n in KNOWN]
    assert found < 0.85 * min(known)
    chosen, best = record.finalist(record.chosen), record.finalist(record.best_known)
    assert chosen.gain == pytest.approx(best.value - chosen.value)
    assert chosen.gain > 3 * chosen.gain_error > 0


def test_what_it_writes_belongs_together(searched: tuple[Path, SearchRecord]) -> None:
    folder, record = searched
    assert read_model(SearchRecord, folder / SEARCH) == record
    schedule, plan = read_model(SolverSchedule, folder / SCHEDULE), load_plan(folder / "plan.safetensors")
    compiled = compile_schedule(schedule)
    assert all(np.array_equal(plan.columns[name], column) for name, column in compiled.columns.items())
    trials = Lines(folder / TRIALS, Trial, SETTINGS).read()
    assert [trial.number for trial in trials] == list(range(EVALUATIONS))
    assert trials[record.chosen].schedule == schedule
    assert record.generations[-1].best == min(trial.value for trial in trials)
    assert sum(one.trials for one in record.generations) == record.evaluations == EVALUATIONS
    assert record.complete
    assert [known.value for known in record.known] == sorted(known.value for known in record.known)
    assert {known.solver for known in record.known} == set(KNOWN) - {"dpmpp-1m"}
    assert record.finalists[0].trial == record.chosen


def test_the_best_known_plan_is_the_result_where_nothing_beats_it(tmp_path: Path) -> None:
    class Fresh(Here):
        """Says on fresh noise that whatever was searched is bad."""

        def scores(self, plans: Sequence[Plan], *, seed: int, count: int) -> Iterator[tuple[int, Score]]:
            for index, score in super().scores(plans, seed=seed, count=count):
                worse = 10.0 * (seed != SETTINGS.seed and index < 5)
                yield index, Score(score.value + worse, score.standard_error, score.deviations)

    record = make_search(tmp_path, 120, Fresh(Trajectory(subject(), fine=60))).run()
    assert record.chosen == record.best_known
    assert record.finalist(record.chosen).gain == 0


# Going on


class KilledError(Exception):
    """What stands for a kill."""


class Dying(Here):
    """Is killed after so many scores."""

    def __init__(self, left: int) -> None:
        super().__init__(Trajectory(subject(), fine=60))
        object.__setattr__(self, "left", left)

    def scores(self, plans: Sequence[Plan], *, seed: int, count: int) -> Iterator[tuple[int, Score]]:
        for one in reversed(list(enumerate(plans))):  # in another order than they were given, as processes do it
            if self.left == 0:  # type: ignore[attr-defined]
                raise KilledError
            object.__setattr__(self, "left", self.left - 1)  # type: ignore[attr-defined]
            yield one[0], self.objective.score(one[1], seed=seed, count=count)


def test_killed_and_resumed_it_ends_as_if_it_had_not_been(searched: tuple[Path, SearchRecord], tmp_path: Path) -> None:
    for left in (50, 60, 30, 40):
        with pytest.raises(KilledError):
            make_search(tmp_path, scorer=Dying(left)).run()
        data = (tmp_path / TRIALS).read_bytes()
        (tmp_path / TRIALS).write_bytes(data + b'{"number": 7, "gener')  # cut where the kill came
    with pytest.raises(KilledError):
        make_search(tmp_path, scorer=Dying(13)).run()  # among the finalists
    assert len(Lines(tmp_path / FINALS, Final, SETTINGS).read()) == 3
    record = make_search(tmp_path).run()
    folder, whole = searched
    assert record.model_copy(update={"seconds": whole.seconds}) == whole
    for name in (SCHEDULE, "plan.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_more_evaluations_go_on_where_fewer_ended(searched: tuple[Path, SearchRecord], tmp_path: Path) -> None:
    make_search(tmp_path, 140).run()
    record = make_search(tmp_path).run()
    assert record.chosen == searched[1].chosen
    assert (tmp_path / SCHEDULE).read_bytes() == (searched[0] / SCHEDULE).read_bytes()


def test_minutes_end_it_and_it_can_go_on(searched: tuple[Path, SearchRecord], tmp_path: Path) -> None:
    short = make_search(tmp_path)
    short.minutes = 0.0
    record = short.run()
    assert not record.complete
    assert record.evaluations == KNOWN_TRIALS  # whatever the time
    assert record.chosen in {known.trial for known in record.known} | {one.trial for one in record.finalists}
    assert make_search(tmp_path).run().chosen == searched[1].chosen


def test_another_search_is_refused_by_what_differs(searched: tuple[Path, SearchRecord]) -> None:
    for changes, said in (
        ({"samples": 5}, "samples is 4 there and 5 here"),
        ({"details": {"fine": 70}}, "fine is 60 there and 70 here"),
        ({"model": "1" * 64}, "model is"),
    ):
        with pytest.raises(UsageError, match=said):
            make_search(searched[0], **changes).check()


def test_a_damaged_line_is_named(searched: tuple[Path, SearchRecord], tmp_path: Path) -> None:
    lines = (searched[0] / TRIALS).read_bytes().splitlines(keepends=True)
    lines[6] = lines[6].replace(b'"value":', b'"valve":')
    (tmp_path / TRIALS).write_bytes(b"".join(lines))
    with pytest.raises(EdgeSDError, match=r"trials.jsonl, line 7 is not a valid Trial"):
        make_search(tmp_path).check()


def test_two_do_not_search_in_one_folder(tmp_path: Path) -> None:
    with alone(tmp_path, "searches"), pytest.raises(EdgeSDError, match="another process searches in"):
        make_search(tmp_path).run()


# Candidates


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**32 - 1), st.sampled_from([COSINE, LINEAR]), st.sampled_from(["epsilon", "v", "x0"]))
def test_every_offspring_that_compiles_is_a_finite_plan_of_the_budget(
    steps: int, seed: int, process: NoiseSchedule, kind: str
) -> None:
    space, rng = Space(process, kind, steps), np.random.default_rng(seed)  # type: ignore[arg-type]
    parents = [space.apart(one.schedule) for one in first_round(space)[::7]]
    made = 0
    for _ in range(60):
        child = offspring(parents, rng)
        found = space.compile(child)
        if found is None:
            continue
        made += 1
        schedule, plan = found
        assert len(plan) == steps
        assert schedule.prediction == kind
        assert np.isfinite(encoded(space, plan)).all()
        parents.insert(0, space.apart(schedule))
    assert made >= 30  # few are wasted


@pytest.mark.parametrize("process", [COSINE, LINEAR])
@pytest.mark.parametrize("name", KNOWN)
def test_apart_and_together_again_is_the_same(process: NoiseSchedule, name: str) -> None:
    space = Space(process, "v", 6)
    schedule = known_schedule(name, process, "v", np.linspace(950, 40, 6))
    again = space.together(space.apart(schedule))
    assert again is not None
    before, after = compile_schedule(schedule), compile_schedule(again)
    for column in before.columns:
        assert np.allclose(before.columns[column], after.columns[column], rtol=1e-7, atol=1e-9), column


def test_a_schedule_looks_the_same_however_it_is_said() -> None:
    times = np.linspace(950, 40, 5)
    space = Space(COSINE, "v", 5)
    ddim, first_order = (compile_schedule(known_schedule(name, COSINE, "v", times)) for name in ("ddim", "dpmpp-1m"))
    assert np.allclose(encoded(space, ddim), encoded(space, first_order), atol=1e-9)
    other = compile_schedule(known_schedule("dpmpp-2m", COSINE, "v", times))
    assert not np.allclose(encoded(space, ddim), encoded(space, other), atol=1e-2)
    decisions = [Decision(timestep=t, prediction="x0", order=1 + (0 < i < 4)) for i, t in enumerate(times.tolist())]
    relaxed = SolverSchedule(schedule=COSINE, prediction="v", decisions=tuple(decisions))
    without = [one.model_copy(update={"relaxation": (-1 / h,)}) for one, h in zip(decisions, _lengths(relaxed), strict=True)]
    without = [one if one.order > 1 else decisions[i] for i, one in enumerate(without)]
    same = relaxed.model_copy(update={"decisions": tuple(without)})  # derivatives times nothing
    assert np.allclose(encoded(space, ddim), encoded(space, compile_schedule(same)), atol=1e-9)


def _lengths(schedule: SolverSchedule) -> list[float]:
    return np.diff(schedule.levels().log_snr).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_known_solvers_are_tried_at_every_spacing_that_there_is(steps: int) -> None:
    space = Space(COSINE, "epsilon", steps)
    for name, times in spacings(space):
        assert times.shape == (steps,), name
        assert 0 <= times.min() <= times.max() <= 999
    if steps > 10:
        return
    first = first_round(space)
    second = second_round(space, first, [float(i) for i in range(len(first))])
    assert {seed.solver for seed in first + second} == set(KNOWN) - {"dpmpp-1m"}
    assert {seed.spacing for seed in second} <= {seed.spacing for seed in first}


# The predictor


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([0.5, 1.0]), st.sampled_from([1e-2, 1.0]))
def test_the_mean_is_least_squares_over_kernels(seed: int, width: int, length: float, noise: float) -> None:
    rng = np.random.default_rng(seed)
    points, values, asked = rng.normal(size=(20, width)), rng.normal(size=20), rng.normal(size=(7, width))
    mean, deviation = Predictor.fit(points, values, length, noise)(asked)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        scaled = (x[:, None] - y[None]) / np.sqrt(points.var(0) + 3e-3**2)
        return np.exp(-np.sum(scaled**2, -1) / (2 * length**2 * width))  # type: ignore[no-any-return]

    # Weights that minimise ‖K·w − y‖² + noise·wᵀK·w, by lstsq with the penalty as further rows.
    own, cross = kernel(points, points), kernel(asked, points)
    s, basis = np.linalg.eigh(own)
    penalty = np.sqrt(noise * np.maximum(s, 0))[:, None] * basis.T
    target = values - values.mean()
    weights = np.linalg.lstsq(np.concatenate([own, penalty]), np.concatenate([target, np.zeros(20)]), rcond=None)[0]
    assert np.allclose(mean, values.mean() + cross @ weights, atol=1e-6)
    # The deviation by the Schur complement, and the amplitude that is likeliest.
    noisy = np.linalg.inv(own + noise * np.eye(20))
    variance = target @ noisy @ target / 20 * np.diag(kernel(asked, asked) - cross @ noisy @ cross.T)
    assert np.allclose(deviation, np.sqrt(np.maximum(variance, 0)), atol=1e-6)


def test_the_likeliest_length_and_noise_are_taken() -> None:
    from scipy.stats import multivariate_normal

    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (60, 2))
    values = np.sin(4 * points[:, 0]) + 0.05 * rng.normal(size=60)
    fitted = Predictor.fit(points, values)

    def likelihood(one: Predictor) -> float:
        squares = np.sum((one.inputs[:, None] - one.inputs[None]) ** 2, -1)
        covariance = one.amplitude**2 * (np.exp(-squares / (4 * one.length**2)) + one.noise * np.eye(60))
        return float(multivariate_normal(np.full(60, values.mean()), covariance).logpdf(values))

    others = [Predictor.fit(points, values, length, noise) for length in LENGTHS for noise in NOISES]
    assert likelihood(fitted) == pytest.approx(max(map(likelihood, others)))
    assert fitted.noise < 1


def test_the_predictor_learns_what_bends_and_knows_where_it_knows_nothing() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-1, 1, (300, 4))

    def truth(x: np.ndarray) -> np.ndarray:
        return x[:, 0] + 2 * x[:, 1] ** 2  # type: ignore[no-any-return]

    predictor = Predictor.fit(points, truth(points))
    test = rng.uniform(-1, 1, (200, 4))
    mean, deviation = predictor(test)
    assert (rank_correlation(mean, truth(test)) or 0) > 0.95
    assert predictor(5 * test)[1].mean() > 3 * deviation.mean()


def test_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 30))
    assert rank_correlation(x, x + y) == pytest.approx(spearmanr(x, x + y).statistic)
    assert rank_correlation(x[:2], y[:2]) is None


# Comparing


def test_solvers_are_compared_with_what_was_found(searched: tuple[Path, SearchRecord], tmp_path: Path) -> None:
    folder = tmp_path / "steps-4"
    folder.mkdir()
    for name in (SEARCH, SCHEDULE):
        (folder / name).write_bytes((searched[0] / name).read_bytes())

    def comparing(scorer: Here) -> Comparing:
        return Comparing(COSINE, "v", scorer, SETTINGS, Trajectory.about, tmp_path, 32)

    with pytest.raises(KilledError):
        comparing(Dying(150)).run((4, 5))
    result = comparing(Dying(150)).run((4, 5))  # the first budget is there
    assert read_model(Comparison, tmp_path / COMPARED) == result
    assert {row.steps for row in result.rows} == {4, 5}
    best, *others = [row for row in result.rows if row.steps == 4]
    assert best.solver == "S3"
    assert best.gain == pytest.approx(min(row.value for row in others) - best.value)
    assert [row.solver for row in result.rows if row.steps == 5].count("S3") == 0
    assert result == comparing(Dying(0)).run((4, 5))
