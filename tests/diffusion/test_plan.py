"""The plan as a file: it comes back to the bit, and no damage to it passes or surprises."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edge_sd.diffusion import SCHEDULES, NoiseSchedule, Plan, compile_plan, load_plan, solvers
from edge_sd.diffusion.plan import Tuned, refuse_other_process
from edge_sd.errors import EdgeSDError
from edge_sd.files import HEADER, write_tensors

STEPS, WIDTH = 6, 5


def plan(**choices: Any) -> Plan:
    features = np.random.default_rng(0).standard_normal((STEPS, WIDTH), dtype=np.float32)
    return compile_plan(NoiseSchedule(), STEPS, **{"solver": "unipc", **choices}).with_features(features)


def refused(path: Path, complaint: str, columns: dict[str, np.ndarray], **header: Any) -> None:
    """Both ways to a plan refuse it: from a file, and from its parts."""
    changed = plan().header.model_copy(update=header)
    with pytest.raises(EdgeSDError, match=complaint):
        Plan(changed, columns)
    write_tensors(path, columns, changed)
    with pytest.raises(EdgeSDError, match=complaint) as caught:
        load_plan(path)
    assert str(path) in caught.value.message


# Round trip


@pytest.mark.parametrize("solver", sorted(solvers()))
@pytest.mark.parametrize("filled", [False, True])
def test_a_plan_comes_back_to_the_bit(solver: str, filled: bool, tmp_path: Path) -> None:
    before = plan(solver=solver) if filled else compile_plan(NoiseSchedule(kind="cosine"), STEPS, solver=solver, prediction="v")
    before.save(tmp_path / "plan")
    after = load_plan(tmp_path / "plan")
    assert after.header == before.header
    assert after.header.feature_width == (WIDTH if filled else 0)
    assert after.columns.keys() == before.columns.keys()
    for name, column in before.columns.items():
        assert after.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(after.columns[name], column)
    assert len(after) == STEPS
    assert after.stochastic == before.stochastic


def test_the_same_plan_is_the_same_file(tmp_path: Path) -> None:
    plan().save(tmp_path / "a")
    plan().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_columns_are_attributes() -> None:
    given = plan()
    assert given.timestep is given.columns["timestep"]
    assert given.features.shape == (STEPS, WIDTH)
    with pytest.raises(AttributeError, match="colour"):
        given.colour  # noqa: B018


def test_filling_in_features_leaves_the_plan_as_it_was() -> None:
    bare = compile_plan(NoiseSchedule(), STEPS)
    bare.with_features(np.zeros((STEPS, 3), dtype=np.float32))
    assert "features" not in bare.columns
    assert bare.header.feature_width == 0


@pytest.mark.parametrize(("solver", "stochastic"), [("ddim", False), ("ddpm", True), ("dpmpp", False), ("unipc", False)])
def test_which_plans_draw_noise(solver: str, stochastic: bool) -> None:
    assert compile_plan(NoiseSchedule(), STEPS, solver=solver).stochastic == stochastic


# What belongs to one model


def test_a_bare_plan_has_neither_rows_nor_groups() -> None:
    given = plan().with_programs([0, 2])
    bare = given.bare()
    assert (bare.header.feature_width, bare.header.programs) == (0, ("denoiser",))
    assert not bare.program.any()
    for name in bare.columns.keys() - {"program"}:
        np.testing.assert_array_equal(bare.columns[name], given.columns[name])


TUNED = Tuned(mode="sequential", weights="d" * 64, times=(900.0, 600.0, 10.0))


def test_tuned_timesteps_are_kept_beside_their_own(tmp_path: Path) -> None:
    given = compile_plan(NoiseSchedule(), 3, times=np.array(TUNED.times)).with_features(np.ones((3, 2), np.float32))
    given.with_timesteps(np.array([880.0, 610.0, 30.0]), TUNED).save(tmp_path / "plan")
    found = load_plan(tmp_path / "plan")
    assert found.timestep.tolist() == [880, 610, 30]
    assert found.levels_at.tolist() == [900, 600, 10]
    assert found.header.feature_width == 0
    assert found.header.tuned == TUNED
    assert found.head(2).levels_at.tolist() == [900, 600]
    assert given.levels_at.tolist() == [900, 600, 10]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"times": (1.0, 2.0)}, "3 timesteps were tuned, and 2 are named"),
        ({"times": (1.0, 2.0, 1000.0)}, "leave the schedule's range"),
    ],
)
def test_tuned_timesteps_that_cannot_be(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    given = compile_plan(NoiseSchedule(), 3)
    header = given.header.model_copy(update={"tuned": TUNED.model_copy(update=change)})
    write_tensors(tmp_path / "plan", given.columns, header)
    with pytest.raises(EdgeSDError, match=said):
        load_plan(tmp_path / "plan")


def test_a_header_of_before_there_were_tuned_timesteps_is_read(tmp_path: Path) -> None:
    given = plan()
    header = {name: value for name, value in given.header.model_dump(mode="json").items() if name not in ("tuned", "widths")}
    save_file(given.columns, tmp_path / "plan", metadata={HEADER: json.dumps(header)})
    assert load_plan(tmp_path / "plan").header == given.header


@pytest.mark.parametrize(
    ("schedule", "prediction", "said"),
    [
        ("linear", "v", r"\(linear, epsilon; the model's are linear, v\)"),
        ("cosine", "epsilon", r"\(linear, epsilon; the model's are cosine, epsilon\)"),
        ("other", "epsilon", r"linear, β 0.0001–0.02 in 1000 timesteps, epsilon; the model's are linear, β 0.0001–0.02 in 500"),
    ],
)
def test_a_plan_for_another_kind_of_model(schedule: str, prediction: Any, said: str) -> None:
    theirs = {**SCHEDULES, "other": NoiseSchedule(timesteps=500)}[schedule]
    with pytest.raises(EdgeSDError, match=f"p: the plan is of another schedule or prediction than the model .*{said}"):
        refuse_other_process(plan(), theirs, prediction, "p")


# Damaged columns


@pytest.mark.parametrize("name", sorted(plan().columns))
def test_a_missing_column_is_named(name: str, tmp_path: Path) -> None:
    columns = {**plan().columns}
    del columns[name]
    refused(tmp_path / "plan", rf"a plan has the columns .*\b{name}\b", columns)


def test_a_column_too_many_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "plan", "this one has .*colour", {**plan().columns, "colour": np.zeros(STEPS)})
    refused(tmp_path / "plan", "this one has .*features", {**plan().columns}, feature_width=0)


@pytest.mark.parametrize("name", sorted(plan().columns))
def test_a_column_of_another_length_or_shape_is_named(name: str, tmp_path: Path) -> None:
    good = plan().columns
    wrong = [good[name][:-1], good[name][None], np.concatenate([good[name], good[name]])]
    wrong += [good[name][:, :-1], good[name].reshape(-1)] if good[name].ndim == 2 else [good[name][:, None]]
    for value in wrong:
        # Another number of timesteps makes every other column the wrong one.
        complaint = "plan column" if name == "timestep" else f"plan column {name} is "
        refused(tmp_path / "plan", complaint, {**good, name: value})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.complex64, np.bool_])
@pytest.mark.parametrize("name", sorted(plan().columns))
def test_a_column_of_another_type_is_named(name: str, dtype: Any, tmp_path: Path) -> None:
    good = plan().columns
    if good[name].dtype != dtype:
        complaint = rf"plan column {name} is {np.dtype(dtype)} .*expected {good[name].dtype}"
        refused(tmp_path / "plan", complaint, {**good, name: good[name].astype(dtype)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", sorted(set(plan().columns) - {"program"}))
def test_a_column_that_is_not_finite_is_named(name: str, bad: float, tmp_path: Path) -> None:
    columns = {key: value.copy() for key, value in plan().columns.items()}
    columns[name].flat[-1] = bad
    with pytest.raises(EdgeSDError, match=f"plan column {name} is not finite"):
        Plan(plan().header, columns)
    write_tensors(tmp_path / "plan", columns, plan().header)
    with pytest.raises(EdgeSDError, match=f"tensor {name} holds a NaN or an infinity"):
        load_plan(tmp_path / "plan")


@pytest.mark.parametrize("program", [-1, 1, 2**62])
def test_a_program_that_does_not_exist_is_refused(program: int, tmp_path: Path) -> None:
    programs = np.zeros(STEPS, dtype=np.int64)
    programs[2] = program
    refused(tmp_path / "plan", rf"names {program}, but there are 1 programs", {**plan().columns, "program": programs})


def test_a_second_program_may_be_named(tmp_path: Path) -> None:
    programs = np.arange(STEPS) // 3
    header = plan().header.model_copy(update={"programs": ("early", "late")})
    Plan(header, {**plan().columns, "program": programs}).save(tmp_path / "plan")
    np.testing.assert_array_equal(load_plan(tmp_path / "plan").program, programs)


@pytest.mark.parametrize("timestep", [-0.5, 999.5, 1e300])
def test_a_timestep_that_the_schedule_does_not_have_is_refused(timestep: float, tmp_path: Path) -> None:
    times = plan().timestep.copy()
    times[0] = timestep
    refused(tmp_path / "plan", "leave the schedule's range 0–999", {**plan().columns, "timestep": times})


def test_a_plan_without_rows_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "plan", "at least one row", {name: column[:0] for name, column in plan().columns.items()})


def test_a_column_without_a_dimension_is_refused(tmp_path: Path) -> None:
    """One row, but its timestep a bare number: the same bytes, and one character of difference in the file."""
    one = compile_plan(NoiseSchedule(), 1)
    columns = {**one.columns, "timestep": np.array(one.timestep[0])}
    with pytest.raises(EdgeSDError, match="plan column timestep"):
        Plan(one.header, columns)
    save_file(columns, tmp_path / "plan", metadata={HEADER: one.header.model_dump_json()})
    with pytest.raises(EdgeSDError, match="plan column timestep"):
        load_plan(tmp_path / "plan")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", "1"),
        ("steps", 0),
        ("history", 0),
        ("history", 9),
        ("solver", None),
        ("prediction", "score"),
        ("noise_schedule", {"kind": "sigmoid"}),
        ("feature_width", -1),
        ("colour", "red"),
    ],
)
def test_a_header_that_cannot_be_meant_is_refused_by_field(field: str, value: Any, tmp_path: Path) -> None:
    header = json.dumps({**plan().header.model_dump(mode="json"), field: value})
    save_file(plan().columns, tmp_path / "plan", metadata={HEADER: header})
    with pytest.raises(EdgeSDError, match=f"{re.escape(str(tmp_path / 'plan'))} is not a valid PlanHeader: {field}"):
        load_plan(tmp_path / "plan")


def test_another_schema_version_is_no_damage(tmp_path: Path) -> None:
    header = json.dumps({**plan().header.model_dump(mode="json"), "schema_version": 2, "colour": "red"})
    save_file(plan().columns, tmp_path / "plan", metadata={HEADER: header})
    with pytest.raises(EdgeSDError, match=r"plan has schema version 2, this edge-sd reads version 1 .try: .*newer edge-sd"):
        load_plan(tmp_path / "plan")


# Damaged bytes


def whole_file(folder: Path) -> bytes:
    plan().save(folder / "whole")
    return (folder / "whole").read_bytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "I64", "U64", "C64", "BOOL", "F8_E4M3", "F8_E8M0", "F4"])
def test_a_type_that_numpy_may_not_know_is_refused(dtype: str, tmp_path: Path) -> None:
    """The file is sound: only its column has a type that this table cannot have."""
    bits = {"BF16": 16, "F16": 16, "F32": 32, "BOOL": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4}.get(dtype, 64)
    table = {"__metadata__": {HEADER: plan().header.model_dump_json()}}
    table["timestep"] = {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}
    header = json.dumps(table).encode()
    (tmp_path / "plan").write_bytes(struct.pack("<Q", len(header)) + header + bytes(bits))
    with pytest.raises(EdgeSDError, match=re.escape(str(tmp_path / "plan"))):
        load_plan(tmp_path / "plan")


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_damage_surprises(data: st.DataObject, tmp_path: Path) -> None:
    """Bytes set, put in, taken out or cut off: a plan that can be run, or an error of ours."""
    damaged = bytearray(whole_file(tmp_path))
    head = 8 + struct.unpack("<Q", damaged[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        # The JSON is where a change may keep the file whole, so most changes fall there.
        end = data.draw(st.sampled_from([8, head, head, head, len(damaged)]))
        place = data.draw(st.integers(0, min(end, len(damaged)) - 1))
        kind = data.draw(st.sampled_from(["set", "put in", "take out", "cut off"]))
        if kind == "set":
            damaged[place] = data.draw(st.sampled_from(b'0123456789-.eE"{}[]:, ') | st.integers(0, 255))
        elif kind == "put in":
            damaged[place:place] = data.draw(st.sampled_from([b"0", b"-", b"1e400", b"null", b"[]"]) | st.binary(max_size=4))
        elif kind == "take out":
            del damaged[place : place + data.draw(st.integers(1, 4))]
        else:
            del damaged[place:]
        if not damaged:
            break
    (tmp_path / "plan").write_bytes(damaged)
    try:
        read = load_plan(tmp_path / "plan")
    except EdgeSDError as error:
        complaint = error.message
    else:
        assert len(read) == STEPS
        assert all(np.isfinite(column).all() for column in read.columns.values())
        return
    assert str(tmp_path / "plan") in complaint


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=200))
@example(noise=b"")
@example(noise=bytes(8))
@example(noise=struct.pack("<Q", 2**63) + b"{}")
@example(noise=struct.pack("<Q", 2) + b"{}")
@example(noise=struct.pack("<Q", 2) + b"[]")
def test_noise_is_no_plan(noise: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(noise)
    with pytest.raises(EdgeSDError, match=re.escape(str(tmp_path / "plan"))):
        load_plan(tmp_path / "plan")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match="nowhere does not exist"):
        load_plan(tmp_path / "nowhere")
    with pytest.raises(EdgeSDError, match="is not a file"):
        load_plan(tmp_path)
