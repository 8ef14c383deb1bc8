"""The terms of the loss, worked out by hand for a real model; and what distillation must leave alone: the teacher."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from edge_sd.diffusion import NoiseSchedule
from edge_sd.errors import EdgeSDError
from edge_sd.models.unet import SpectralUNet
from edge_sd.training import DistillConfig
from edge_sd.training.distillation import DistillLearner
from edge_sd.training.learner import DenoiseLearner
from edge_sd.training.spectral import frequency_weights

MakeModel = Callable[..., SpectralUNet]
SCHEDULE = NoiseSchedule(kind="cosine")


def batch(size: int = 16, images: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x0 = rng.uniform(-1, 1, (images, 3, size, size)).astype(np.float32)
    noise = rng.standard_normal(x0.shape, dtype=np.float32)
    return torch.from_numpy(x0), torch.from_numpy(noise), torch.tensor([0, 500, 999])[:images]


def by_hand(prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """x_t and the target, in float64."""
    x0, noise, t = (value.double().numpy() for value in batch())
    alpha_bar = SCHEDULE.alpha_bar(t)[:, None, None, None]
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    return alpha * x0 + sigma * noise, {"epsilon": noise, "v": alpha * noise - sigma * x0, "x0": x0}[prediction]


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_denoising_is_the_mean_square_error_of_the_prediction(prediction: Any, make_model: MakeModel) -> None:
    model = make_model()
    x_t, target = by_hand(prediction)
    out = model(torch.from_numpy(x_t).float(), batch()[2].float()).detach().numpy()
    terms = DenoiseLearner(model, SCHEDULE, prediction)(*batch())
    assert terms.keys() == {"denoise"}
    assert terms["denoise"].item() == pytest.approx(np.mean((out - target) ** 2), rel=1e-5)
    assert terms["denoise"].dtype == torch.float32


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_the_target_and_the_noised_image_give_the_image_back(prediction: Any, make_model: MakeModel) -> None:
    """By the formulas that the solvers use."""
    from edge_sd.diffusion.solvers._base import to_epsilon, to_x0

    x0, noise, t = batch()
    x_t, target = DenoiseLearner(make_model(), SCHEDULE, prediction).noised(x0, noise, t)
    for i in range(len(x0)):
        alpha_bar = float(SCHEDULE.alpha_bar(int(t[i])))
        p, q = to_x0(prediction, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
        torch.testing.assert_close(p * x_t[i] + q * target[i], x0[i], rtol=0, atol=2e-4 / alpha_bar**0.5)
        p, q = to_epsilon(prediction, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
        torch.testing.assert_close(p * x_t[i] + q * target[i], noise[i], rtol=0, atol=1e-5 / (1 - alpha_bar) ** 0.5)


def distiller(make_model: MakeModel, config: DistillConfig | None = None, **teacher: Any) -> DistillLearner:
    torch.manual_seed(0)
    teacher = {"gating": False, "width": 16, **teacher}
    return DistillLearner(make_model(1), SCHEDULE, "v", make_model(2, **teacher).train(), config or DistillConfig())


def test_distillation_by_hand(make_model: MakeModel) -> None:
    config = DistillConfig(spatial_weight=0.3, frequency_weight=0.7, alpha=-1.5)
    learner = distiller(make_model, config)
    x_t, target = by_hand("v")
    x, t = torch.from_numpy(x_t).float(), batch()[2].float()
    with torch.no_grad():
        out, taps = learner.model.denoise_with_taps(x, learner.model.temporal(t))
        (teacher,) = learner.companions
        goal, goal_taps = teacher.denoise_with_taps(x, teacher.temporal(t))

    differences = [(out - goal).double().numpy()]
    assert learner.pairs == ["encoder 16", "encoder 8", "middle", "decoder 8", "decoder 16"]
    for name, aligner in zip(learner.pairs, learner.aligners, strict=True):
        weight, bias = (p.detach().double().numpy() for p in aligner.parameters())
        aligned = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], taps[name].double().numpy()) + bias[:, None, None]
        theirs = goal_taps[name].double().numpy()
        differences.append((aligned - theirs) / np.sqrt(np.mean(theirs**2, axis=(1, 2, 3), keepdims=True)))
    spatial = np.mean([np.mean(difference**2) for difference in differences])
    frequency = np.mean([
        np.mean(frequency_weights(batch()[0], d.shape[2:], config).numpy() * np.abs(np.fft.fft2(d, norm="ortho")) ** 2)
        for d in differences
    ])  # fmt: skip

    terms = {name: value.item() for name, value in learner(*batch()).items()}
    assert terms == pytest.approx(
        {"denoise": np.mean((out.numpy() - target) ** 2), "spatial": 0.3 * spatial, "frequency": 0.7 * frequency}, rel=1e-4
    )


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(make_model: MakeModel) -> None:
    learner = DistillLearner(make_model(), SCHEDULE, "v", make_model(), DistillConfig())
    with torch.no_grad():
        for aligner in learner.aligners:
            aligner.weight.copy_(torch.eye(len(aligner.weight))[:, :, None, None])
            aligner.bias.zero_()
    terms = learner(*batch())
    assert terms["spatial"].item() < 1e-10
    assert terms["frequency"].item() < 1e-10
    assert terms["denoise"].item() == pytest.approx(DenoiseLearner(make_model(), SCHEDULE, "v")(*batch())["denoise"].item())


def test_terms_without_weight_vanish(make_model: MakeModel) -> None:
    both, spatial, frequency = {"denoise", "spatial", "frequency"}, {"denoise", "spatial"}, {"denoise", "frequency"}
    for weights, left in (((0.1, 0.1), both), ((0.1, 0), spatial), ((0, 0.1), frequency), ((0, 0), {"denoise"})):
        config = DistillConfig(spatial_weight=weights[0], frequency_weight=weights[1])
        assert distiller(make_model, config)(*batch()).keys() == left


def test_a_batchs_terms_are_the_mean_of_its_samples(make_model: MakeModel) -> None:
    """So it does not matter how a batch is shared out or sliced."""
    learner = distiller(make_model)
    whole = learner(*batch())
    parts = [learner(*(value[i : i + 1] for value in batch())) for i in range(3)]
    for name, term in whole.items():
        assert term.item() == pytest.approx(np.mean([part[name].item() for part in parts]), rel=1e-4)


def test_where_all_frequencies_weigh_alike_both_terms_are_one(make_model: MakeModel) -> None:
    terms = distiller(make_model, DistillConfig(alpha=0))(*batch())
    torch.testing.assert_close(terms["spatial"], terms["frequency"], rtol=1e-4, atol=0)


def test_the_teacher_is_no_part_of_what_is_learnt_or_saved(make_model: MakeModel) -> None:
    learner = distiller(make_model, dropout=0.5)
    (teacher,) = learner.companions
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    learner.train()
    assert not teacher.training  # its dropout stays off
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    sum(learner(*batch()).values()).backward()
    optimizer.step()

    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    ours = {id(parameter) for parameter in learner.parameters()}
    assert not ours & {id(parameter) for parameter in teacher.parameters()}
    assert {name.split(".")[0] for name in learner.state_dict()} == {"model", "aligners"}


def test_every_weight_of_student_and_aligners_gets_a_gradient(make_model: MakeModel) -> None:
    learner = distiller(make_model)
    sum(learner(*batch()).values()).backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_images_of_another_shape_cannot_be_followed(make_model: MakeModel) -> None:
    with pytest.raises(EdgeSDError, match=r"teacher denoises \(3, 32, 32\), the student \(3, 16, 16\)"):
        distiller(make_model, image_size=32)
    with pytest.raises(EdgeSDError, match=r"teacher denoises \(1, 16, 16\), the student \(3, 16, 16\)"):
        distiller(make_model, in_channels=1, out_channels=1)


@pytest.mark.parametrize("multipliers", [(1, 2, 2), (1,)])
def test_a_teacher_of_another_depth_is_followed_where_both_have_maps(multipliers: tuple[int, ...], make_model: MakeModel) -> None:
    """Their middles lie at different resolutions, and are no pair."""
    learner = distiller(make_model, multipliers=multipliers)
    both = {16} if multipliers == (1,) else {8, 16}
    assert set(learner.pairs) == {f"{side} {size}" for side in ("encoder", "decoder") for size in both}
    assert torch.isfinite(sum(learner(*batch()).values()))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_terms_are_float32_whatever_the_model_computes_in(precision: torch.dtype, make_model: MakeModel) -> None:
    learner = distiller(make_model)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        terms = learner(*batch())
    assert {term.dtype for term in terms.values()} == {torch.float32}
    exact = learner(*batch())
    for name, term in terms.items():
        assert term.item() == pytest.approx(exact[name].item(), rel=0.05)
