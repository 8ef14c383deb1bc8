"""`edge-sd plan`: plans made, shown, tuned and given to the other verbs, by what is printed, written and returned."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_sd.bundle import open_bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES, Plan, compile_plan, load_plan
from edge_sd.diffusion.plan import Tuned
from edge_sd.diffusion.unified import compile_schedule, known_schedule
from edge_sd.files import write_model
from edge_sd.models.unet import SpectralUNet
from verbs import call, refused, succeeded

COSINE = SCHEDULES["cosine"]
FOR = ("--schedule", "cosine", "--prediction", "v")
TUNE = ("--steps", 3, "--iterations", 2, "-n", 2, "--batch-size", 2, "--fine", 4, "--threads", 1)


@pytest.fixture(scope="module")
def checkpoint(make_model: Callable[..., SpectralUNet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "checkpoint.safetensors"
    Checkpoint.of(make_model(6, image_size=8), COSINE, "v", Provenance(made_by="train")).save(path)
    return path


@pytest.fixture(scope="module")
def other(make_model: Callable[..., SpectralUNet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same shape, schedule and prediction; other weights."""
    path = tmp_path_factory.mktemp("model") / "other.safetensors"
    Checkpoint.of(make_model(7, image_size=8), COSINE, "v", Provenance(made_by="train")).save(path)
    return path


def made(tmp_path: Path, *arguments: object) -> Plan:
    out = tmp_path / "made.safetensors"
    done = succeeded("plan", "make", *arguments, "-o", out)
    plan = load_plan(out)
    assert f"wrote {out}: {plan.header.solver}, {len(plan)} evaluations at " in done.err
    return plan


def assert_same(one: Plan, two: Plan) -> None:
    assert one.header == two.header
    assert one.columns.keys() == two.columns.keys()
    for name, column in one.columns.items():
        np.testing.assert_array_equal(column, two.columns[name], err_msg=name)


@pytest.mark.parametrize("verb", ["show", "make", "swap", "tune"])
def test_help_has_an_example(verb: str) -> None:
    assert re.search(rf"Example:\s+edge-sd\s+plan\s+{verb}\b", succeeded("plan", verb, "--help").out)


# make


def test_a_plan_is_made_by_name_for_a_checkpoint_and_for_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    expected = compile_plan(COSINE, 5, solver="unipc", prediction="v", spacing="leading")
    choices = ("--solver", "unipc", "--steps", 5, "--spacing", "leading")
    assert_same(made(tmp_path, *FOR, *choices), expected)
    assert_same(made(tmp_path / "for", "--for", checkpoint, *choices), expected)
    bundle = tmp_path / "b.edgesd"
    succeeded("export", checkpoint, "--target", "onnx", "--plan", tmp_path / "made.safetensors", "--goldens", 1, "-o", bundle)
    assert_same(made(tmp_path / "bundle", "--for", bundle, *choices), expected)
    assert_same(open_bundle(bundle).plan.bare(), expected)
    shown = json.loads(succeeded("plan", "show", bundle, "--format", "json").out)
    assert [row["timestep"] for row in shown["rows"]] == expected.timestep.tolist()


def test_a_plan_for_a_shipped_model(tmp_path: Path) -> None:
    plan = made(tmp_path, "--for", "emoji64", "--steps", 4, "--solver", "ddim", "--eta", 0.5)
    assert (plan.header.prediction, plan.header.noise_schedule, plan.stochastic) == ("v", COSINE, True)


def test_decisions_from_a_file(tmp_path: Path) -> None:
    given = known_schedule("unipc-3", COSINE, "v", [900, 600, 300, 100]).model_copy(update={"start": "analytic"})
    write_model(tmp_path / "schedule.json", given)
    plan = made(tmp_path, "--schedule-file", tmp_path / "schedule.json", "--for", "emoji64")
    assert_same(plan, compile_schedule(given))
    assert plan.start_scale < 1


def test_orders_of_one_s_own(tmp_path: Path) -> None:
    times = compile_plan(COSINE, 5, solver="dpmpp", prediction="v").timestep
    plan = made(tmp_path, *FOR, "--steps", 5, "--solver", "dpmpp", "--orders", "1,1,2,2,1")
    assert_same(plan, compile_schedule(known_schedule("dpmpp-2m", COSINE, "v", times, [1, 1, 2, 2, 1])))
    usual = compile_schedule(known_schedule("dpmpp-2m", COSINE, "v", times))
    assert plan.b_next[1, 1] == 0 != usual.b_next[1, 1]
    np.testing.assert_array_equal(plan.b_next[2:], usual.b_next[2:])


def test_the_analytic_first_step(tmp_path: Path) -> None:
    plan = made(tmp_path, *FOR, "--steps", 5, "--solver", "ddim", "--analytic-first-step")
    assert_same(plan, compile_plan(COSINE, 5, solver="ddim", prediction="v", analytic_first_step=True))
    low = made(tmp_path / "low", *FOR, "--steps", 5, "--orders", "1,1,1,1,1", "--analytic-first-step")
    assert low.start_scale == pytest.approx(plan.start_scale, rel=0.05)


def test_a_width_for_each_step(tmp_path: Path) -> None:
    plan = made(tmp_path, *FOR, "--steps", 3, "--widths", "16,16,48")
    assert plan.header.widths == (16, 48)
    assert plan.program.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), ("one noise schedule and one prediction", "--for MODEL")),
        (("--schedule", "cosine"), ("--for MODEL",)),
        (("--schedule", "cubic", "--prediction", "v"), ("unknown schedule 'cubic'", "ldm-church")),
        (("--schedule", "cosine", "--prediction", "score"), ("unknown prediction 'score'",)),
        (("--for", "emoji64", "--prediction", "v"), ("--for emoji64 says schedule and prediction",)),
        ((*FOR, "--solver", "euler"), ("unknown solver 'euler'",)),
        ((*FOR, "--steps", 0), ("0 steps",)),
        ((*FOR, "--solver", "ddpm", "--orders", "1,1"), ("ddpm has no orders",)),
        ((*FOR, "--steps", 3, "--orders", "1,2"), ("2 orders for 3 steps",)),
        ((*FOR, "--steps", 2, "--orders", "2,1"), ("step 0", "looks 1 steps back")),
        ((*FOR, "--steps", 2, "--orders", "1,x"), ("--orders is numbers",)),
        ((*FOR, "--steps", 3, "--widths", "16,48"), ("2 widths for 3 steps",)),
        ((*FOR, "--steps", 2, "--orders", "1,1", "--eta", 0.5), ("without noise",)),
        ((*FOR, "--solver", "ddpm", "--analytic-first-step"), ("adds no noise",)),
        (("--schedule-file", "s.json", "--solver", "ddim"), ("s.json says every step",)),
    ],
)
def test_what_make_refuses(arguments: tuple[object, ...], said: tuple[str, ...], tmp_path: Path) -> None:
    refused(call("plan", "make", *arguments, "-o", tmp_path / "x.safetensors"), 2, *said)
    assert not list(tmp_path.iterdir())


def test_decisions_for_another_model(tmp_path: Path) -> None:
    write_model(tmp_path / "schedule.json", known_schedule("ddim", COSINE, "epsilon", [900, 10]))
    done = call("plan", "make", "--schedule-file", tmp_path / "schedule.json", "--for", "emoji64", "-o", tmp_path / "x")
    refused(done, 1, "of another schedule or prediction", "epsilon")


def test_a_plan_is_not_written_over_another(tmp_path: Path) -> None:
    made(tmp_path, *FOR)
    for verb in (("make", *FOR), ("tune",)):
        refused(call("plan", *verb, "-o", tmp_path / "made.safetensors"), 2, "exists", "--overwrite")


# show


def test_a_plan_is_printed_and_drawn(tmp_path: Path) -> None:
    plan = compile_plan(COSINE, 4, solver="unipc", prediction="v", analytic_first_step=True)
    tuned = Tuned(mode="parallel", weights="b" * 64, times=tuple(plan.timestep.tolist()))
    plan.with_timesteps(plan.timestep * 0.9, tuned).save(tmp_path / "plan.safetensors")
    done = succeeded("plan", "show", tmp_path / "plan.safetensors", "-o", tmp_path / "plan.png")
    for t in plan.timestep:
        assert f"{0.9 * t:.5g} ({t:.5g})" in done.out
    for said in ("unipc, 4 evaluations", "v-prediction", "timesteps tuned (mode parallel)", "starts from", "denoiser"):
        assert said in done.out
    with Image.open(tmp_path / "plan.png") as image:
        assert image.format == "PNG"
    refused(call("plan", "show", tmp_path / "plan.safetensors", "-o", tmp_path / "plan.png"), 2, "exists")


def test_a_plan_as_json(tmp_path: Path) -> None:
    plan = compile_plan(COSINE, 3, solver="ddim", prediction="v")
    plan.save(tmp_path / "plan.safetensors")
    found = json.loads(succeeded("plan", "show", tmp_path / "plan.safetensors", "--format", "json").out)
    assert found["header"]["solver"] == "ddim"
    assert found["start"] == 1
    for row, values in enumerate(found["rows"]):
        assert values["alpha_bar"] == pytest.approx(float(COSINE.alpha_bar(plan.timestep[row])), rel=1e-12)
        assert values["b_next"] == plan.b_next[row].tolist()


def test_what_is_no_plan_is_not_shown(checkpoint: Path, tmp_path: Path) -> None:
    refused(call("plan", "show", checkpoint), 1, "PlanHeader")
    refused(call("plan", "show", tmp_path), 2, "is not a bundle")
    refused(call("plan", "show", tmp_path / "nowhere"), 1, "does not exist")


# tune, and where a tuned plan may go


def test_tuned_times_are_the_plan_s_and_for_one_model(checkpoint: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.safetensors"
    done = succeeded("plan", "tune", checkpoint, "--solver", "ddim", *TUNE, "--format", "json", "-o", out)
    plan, found = load_plan(out), json.loads(done.out)
    assert found["after"] <= found["before"]
    assert [row["tuned"] for row in found["rows"]] == plan.timestep.tolist()
    assert plan.header.tuned is not None
    np.testing.assert_array_equal(plan.levels_at, compile_plan(COSINE, 3, solver="ddim", prediction="v").timestep)
    succeeded("sample", checkpoint, "--plan", out, "-n", 1, "-o", tmp_path / "a.png")
    refused(call("sample", other, "--plan", out, "-n", 1, "-o", tmp_path / "b.png"), 1, "tuned for other weights", "plan tune")
    refused(call("export", other, "--target", "onnx", "--plan", out, "--dry-run"), 1, "tuned for other weights")
    bundle = tmp_path / "other.edgesd"
    succeeded("export", other, "--target", "onnx", "--steps", 3, "--goldens", 1, "-o", bundle)
    refused(call("plan", "swap", bundle, "--plan", out), 1, "tuned for other weights")
    refused(call("evaluate", other, "--plan", out, "--features", "none", "-n", 2, "--count", 2), 1, "tuned for other weights")


def test_mode_parallel_draws_what_it_noises_or_reads_it(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * index, np.uint8)).save(tmp_path / "images" / f"{index}.png")
    options = (*TUNE, "--solver", "dpmpp", "--mode", "parallel")
    done = succeeded("plan", "tune", checkpoint, *options, "-o", tmp_path / "a")
    assert "no --data: tuned on 2 samples that the model draws itself" in done.err
    done = succeeded("plan", "tune", checkpoint, *options, "--data", tmp_path / "images", "-o", tmp_path / "b")
    assert "no --data" not in done.err
    assert "dpmpp, parallel" in done.out
    assert "sum of the steps' losses" in done.out
    drawn, read = (load_plan(tmp_path / name).timestep for name in "ab")
    assert not np.array_equal(drawn, read)
    assert drawn[-1] == load_plan(tmp_path / "a").levels_at[-1]  # the last step keeps its time


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--solver", "ddpm"), "ddpm adds noise"),
        (("--mode", "both"), "mode"),
        (("--data", "photos"), "mode joint starts from noise"),
        (("--lr", 0), "learning_rate"),
        (("--plan", "x", "--solver", "ddim"), "--plan x says all"),
    ],
)
def test_what_tune_refuses(arguments: tuple[object, ...], said: str, checkpoint: Path, tmp_path: Path) -> None:
    refused(call("plan", "tune", checkpoint, *arguments, "-o", tmp_path / "x"), 2, said)
    assert not list(tmp_path.iterdir())


# The same file in other verbs


def test_a_plan_s_file_draws_what_its_options_draw(checkpoint: Path, tmp_path: Path) -> None:
    made(tmp_path, *FOR, "--solver", "unipc", "--steps", 3)
    bundle, plan = tmp_path / "b.edgesd", tmp_path / "made.safetensors"
    succeeded("export", checkpoint, "--target", "onnx", "--steps", 2, "--goldens", 1, "-o", bundle)
    pictures = []
    for index, (model, choice) in enumerate(
        [(checkpoint, ("--plan", plan)), (checkpoint, ("--solver", "unipc", "--steps", 3)), (bundle, ("--plan", plan))]
    ):
        succeeded("sample", model, *choice, "-n", 2, "-o", tmp_path / f"{index}.png")
        pictures.append(np.asarray(Image.open(tmp_path / f"{index}.png")).astype(int))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert np.abs(pictures[0] - pictures[2]).max() <= 1
    done = succeeded(
        "evaluate",
        checkpoint,
        "--plan",
        plan,
        "--features",
        "none",
        "-n",
        4,
        "--count",
        4,
        "--kid-subset-size",
        2,
        "--format",
        "json",
    )
    origin = json.loads(done.out)["origin"]
    assert (origin["solver"], origin["nfe"]) == ("unipc", 3)


@pytest.mark.parametrize("verb", ["sample", "export", "evaluate"])
def test_a_plan_of_another_model_or_beside_other_options(verb: str, checkpoint: Path, tmp_path: Path) -> None:
    compile_plan(SCHEDULES["linear"], 3, prediction="v").save(tmp_path / "plan.safetensors")
    rest = {
        "sample": ("-o", tmp_path / "x.png"),
        "export": ("--target", "onnx", "--dry-run"),
        "evaluate": ("--features", "none", "-n", 2, "--count", 2),
    }[verb]
    given = (verb, checkpoint, "--plan", tmp_path / "plan.safetensors", *rest)
    refused(call(*given), 1, "of another schedule or prediction than the model (linear, v; the model's are cosine, v)")
    refused(call(*given, "--steps", 3), 2, "says all of the plan, and --steps something else")
    missing = (verb, checkpoint, "--plan", tmp_path / "nowhere", *rest)
    refused(call(*missing), 1, "nowhere does not exist")
