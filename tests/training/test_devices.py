"""What changes speed or memory and not what is learnt: slices, recomputation, memory format, compilation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edge_sd.checkpoint import Checkpoint
from edge_sd.data import ImageData
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.models import ModelConfig
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.training import DistillConfig, Progress, TrainConfig, distill, fit
from edge_sd.training.devices import memory_format, recompute, seed_of, share_of
from edge_sd.training.distillation import DistillLearner
from edge_sd.training.learner import DenoiseLearner
from edge_sd.training.loop import CHECKPOINT, METRICS
from edge_sd.training.reconstruction import AutoencoderLearner
from edge_sd.training.state import read_metrics

MakeModel = Callable[..., SpectralUNet]
SCHEDULE = SCHEDULES["cosine"]
TRAIN = TrainConfig(steps=6, batch_size=6, warmup=1, precision="fp32", save_every=2, sample_every=0)
Run = Callable[..., list[dict[str, float]]]


@pytest.fixture
def run(tiny_config: ModelConfig, tiny_data: ImageData) -> Run:
    """(folder, changes) → what was logged; `until` cuts it."""

    def run(out: Path, *, until: int | None = None, dropout: float = 0.0, **changes: Any) -> list[dict[str, float]]:
        def watch(progress: Progress) -> None:
            if progress.step == until:
                raise KeyboardInterrupt

        config = TrainConfig.model_validate({**TRAIN.model_dump(), **changes})
        model = tiny_config.model_copy(update={"dropout": dropout})
        try:
            fit(model, SCHEDULE, "v", tiny_data, config, out, observe=watch)
        except KeyboardInterrupt:
            assert until
        return read_metrics(out / METRICS)

    return run


def assert_same_losses(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        assert one["denoise"] == pytest.approx(other["denoise"], abs=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2},
        {"accumulate": 4},  # two slices of two images and two of one
        {"accumulate": 6},
        {"channels_last": True},
        {"checkpoint_activations": True},
        {"accumulate": 3, "channels_last": True, "checkpoint_activations": True},
    ],
)
def test_what_is_fast_or_small_learns_the_same(changes: dict[str, Any], run: Run, tmp_path: Path) -> None:
    assert_same_losses(run(tmp_path / "plain"), run(tmp_path / "changed", **changes))
    settings = [json.dumps(TrainConfig(**change).model_dump(exclude=set(TrainConfig.INDIFFERENT))) for change in ({}, changes)]
    assert settings[0] == settings[1]


def test_a_compiled_model_learns_the_same_and_has_the_same_names(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled(self, backend="aot_eager"))  # no wait for a C++ compiler
    ours = run(tmp_path / "compiled", compile=True)
    assert_same_losses(ours, run(tmp_path / "plain"))
    torch._dynamo.reset()


def test_what_is_computed_again_is_the_same_to_the_bit_dropout_too(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "plain", dropout=0.3)
    run(tmp_path / "again", dropout=0.3, checkpoint_activations=True)
    assert (tmp_path / "plain" / CHECKPOINT).read_bytes() == (tmp_path / "again" / CHECKPOINT).read_bytes()


def test_a_run_goes_on_with_other_slices_and_formats(run: Run, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", until=3, accumulate=2, checkpoint_activations=True)
    assert_same_losses(run(tmp_path / "cut", accumulate=3, channels_last=True), whole)


def test_with_dropout_a_run_of_other_slices_is_refused_and_both_layouts_named(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "cut", until=3, dropout=0.3, accumulate=2)
    before = (tmp_path / "cut" / "state.safetensors").read_bytes()
    layouts = r"processes 1, slices 2, not compiled; now processes 1, slices 3, not compiled"
    with pytest.raises(EdgeSDError, match=layouts) as caught:
        run(tmp_path / "cut", dropout=0.3, accumulate=3)
    assert "--overwrite" in caught.value.hint
    assert (tmp_path / "cut" / "state.safetensors").read_bytes() == before
    run(tmp_path / "whole", dropout=0.3, accumulate=2)
    run(tmp_path / "cut", dropout=0.3, accumulate=2)
    assert (tmp_path / "cut" / CHECKPOINT).read_bytes() == (tmp_path / "whole" / CHECKPOINT).read_bytes()


def test_every_slice_of_every_process_has_dropout_of_its_own(run: Run, tmp_path: Path) -> None:
    seeds = {seed_of(7, step, rank, piece) for step in range(50) for rank in range(8) for piece in range(4)}
    assert len(seeds) == 50 * 8 * 4
    assert seed_of(7, 3, 0, 0) == 7 * 1_000_003 + 3  # as states from before slices have it


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**7), st.integers(0, 2**14), st.integers(0, 2**12))
def test_a_seed_is_one_that_torch_takes(seed: int, step: int, rank: int, piece: int) -> None:
    torch.Generator().manual_seed(seed_of(seed, step, rank, piece))


@given(st.integers(1, 64), st.integers(1, 8))
def test_shares_make_the_batch(size: int, processes: int) -> None:
    shares = [share_of(TrainConfig(batch_size=size * processes), processes, rank) for rank in range(processes)]
    assert np.concatenate([np.arange(size * processes)[share] for share in shares]).tolist() == list(range(size * processes))


def test_batches_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(UsageError, match="a batch of 10 cannot be shared by 4 processes"):
        share_of(TrainConfig(batch_size=10), 4, 0)
    with pytest.raises(UsageError, match="4 images a process cannot be computed in 5 slices") as caught:
        share_of(TrainConfig(batch_size=8, accumulate=5), 2, 0)
    assert "--accumulate 4" in caught.value.hint


def test_channels_are_last_where_that_is_asked_for_or_pays() -> None:
    for given_, device, last in (("auto", "cpu", False), ("auto", "cuda", True), (True, "cpu", True), (False, "cuda", False)):
        found = memory_format(TrainConfig(channels_last=given_), torch.device(device))
        assert found == (torch.channels_last if last else torch.contiguous_format)


def kept(learner: nn.Module, batch: tuple[torch.Tensor, ...]) -> int:
    """Bytes that the forward pass keeps for the backward pass, weights left out."""
    weights = {parameter.data_ptr() for parameter in learner.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        terms = learner(*batch)
    del terms
    return sum(sizes.values())


def denoiser(make_model: MakeModel) -> DenoiseLearner:
    return DenoiseLearner(make_model(blocks=2).train(), SCHEDULE, "v")


def distiller(make_model: MakeModel) -> DistillLearner:
    return DistillLearner(make_model(blocks=2).train(), SCHEDULE, "v", make_model(1), DistillConfig())


def autoencoder(make_model: MakeModel) -> AutoencoderLearner:
    return AutoencoderLearner(Autoencoder(AutoencoderConfig(width=8)).train())


@pytest.mark.parametrize("make", [denoiser, distiller, autoencoder])
def test_recomputation_keeps_less_and_no_name_changes(make: Callable[[MakeModel], Any], make_model: MakeModel) -> None:
    learner = make(make_model)
    image = torch.rand(4, 3, 16, 16)
    batch = (image, torch.randn(4, 4, 4, 4)) if make is autoencoder else (image, torch.randn_like(image), torch.arange(4))
    names, before = list(learner.state_dict()), kept(learner, batch)
    terms = {name: value.item() for name, value in learner(*batch).items()}
    recompute(learner.model, learner.units)
    assert kept(learner, batch) < 0.8 * before
    assert list(learner.state_dict()) == names
    again = learner(*batch)
    assert {name: value.item() for name, value in again.items()} == terms
    sum(again.values()).backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_distillation_in_slices_is_distillation(
    tiny_config: ModelConfig, tiny_data: ImageData, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    logs = []
    for name, changes in (("whole", {}), ("sliced", {"accumulate": 3, "checkpoint_activations": True})):
        config = TrainConfig.model_validate({**TRAIN.model_dump(), **changes})
        distill(tiny_config, tiny_checkpoint, tiny_data, config, DistillConfig(), tmp_path / name)
        logs.append(read_metrics(tmp_path / name / METRICS))
    for ours, theirs in zip(*logs, strict=True):
        for term in ("denoise", "spatial", "frequency"):
            assert ours[term] == pytest.approx(theirs[term], abs=1e-5)


def test_the_time_that_was_waited_is_shown_and_logged(run: Run, tmp_path: Path) -> None:
    assert str(Progress(1, 2, {"denoise": 0.5}, 31.4, 0.003)) == "denoise 0.5000  31 images/s  data 0.3 %"
    assert all(0 <= record["wait_share"] <= 1 for record in run(tmp_path))
