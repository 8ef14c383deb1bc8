"""Slim widths: which weights a narrow network is made of, and that it is made of nothing else."""

import pytest
import torch
from slim_models import CONFIGS, GATED, PLAIN, network

from edge_sd.errors import UsageError
from edge_sd.models import ModelConfig
from edge_sd.models.slim import SlimDenoiser, SlimUNet, StepAwareUNet, network_of, slim_config, usual_widths, widths_of
from edge_sd.models.stepped import select
from edge_sd.models.unet import SpectralUNet, Walk


def inputs(model: SpectralUNet) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.tensor([1, 2]) if model.config.num_classes else None
    return torch.randn(2, *model.config.sample_shape), model.temporal(torch.tensor([3.0, 700.5]), y).detach()


def through(walk: Walk) -> tuple[torch.Tensor, list[str]]:
    """What a walk returns, and the parts it came by."""
    names: list[str] = []
    unit = next(walk)
    while True:
        names.append(unit.name)
        try:
            unit = walk.send(unit.module(*unit.inputs))
        except StopIteration as ended:
            return ended.value, names


@pytest.fixture(params=sorted(CONFIGS))
def full(request: pytest.FixtureRequest) -> SpectralUNet:
    return network(CONFIGS[request.param])


def test_the_full_width_cut_out_of_itself_is_itself(full: SpectralUNet) -> None:
    x, features = inputs(full)
    whole = SlimUNet(full, full.config.width).load(full).eval()
    assert torch.equal(whole.denoise(x, features), full.denoise(x, features))


def test_a_narrow_network_is_one_of_its_configuration(full: SpectralUNet) -> None:
    """Built by itself and given the same numbers, it computes the same: no layer but has the shape of that width."""
    x, features = inputs(full)
    slim = SlimUNet(full, 8).load(full).eval()
    alone = SpectralUNet(slim_config(full.config, 8)).eval()
    weights = {name: value for name, value in slim.state_dict().items() if not name.startswith("temporal_net.")}
    assert not alone.load_state_dict(weights, strict=False).unexpected_keys
    halves = 2 if full.config.scale_shift else 1
    columns, start = [], 0
    for all_of_it, kept in zip(full.rows, alone.rows, strict=True):
        for half in range(halves):
            first = start + half * all_of_it // halves
            columns += range(first, first + kept // halves)
        start += all_of_it
    columns += range(start, full.feature_width)  # a context is as wide as ever
    assert torch.equal(slim.denoise(x, features), alone.denoise(x, features[:, columns]))


def test_of_every_layer_the_first_channels_are_kept() -> None:
    """By hand, for one layer of each kind."""
    full = network(GATED)
    weights, slim = dict(full.named_parameters()), dict(SlimUNet(full, 8).load(full).named_parameters())
    assert torch.equal(slim["conv_in.weight"], weights["conv_in.weight"][:8])  # all of the picture's channels
    assert torch.equal(slim["conv_out.weight"], weights["conv_out.weight"][:, :8])
    # A skip meets a map: 32 and 32 channels, of which 16 and 16 are kept.
    both = [*range(16), *range(32, 48)]
    assert torch.equal(slim["up.0.block.conv1.weight"], weights["up.0.block.conv1.weight"][:16, both])
    assert torch.equal(slim["up.0.block.norm1.bias"], weights["up.0.block.norm1.bias"][both])
    assert torch.equal(slim["up.0.block.skip.weight"], weights["up.0.block.skip.weight"][:16, both])
    # q, k and v of two heads of 16, each of which keeps 8.
    heads = [*range(8), *range(16, 24)]
    parts = [32 * part + channel for part in range(3) for channel in heads]
    assert torch.equal(slim["middle.0.attention.qkv.weight"], weights["middle.0.attention.qkv.weight"][parts][:, :16])
    assert torch.equal(slim["middle.0.attention.out.weight"], weights["middle.0.attention.out.weight"][:16][:, heads])
    # Four subbands a channel, one channel after the other.
    assert torch.equal(slim["down.1.gate.out.weight"], weights["down.1.gate.out.weight"][:32, :2])


def test_heads_of_a_given_width_become_fewer() -> None:
    full = network(PLAIN)
    qkv, slim = full.middle[0].attention.qkv.weight, SlimUNet(full, 8).load(full).middle[0].attention
    assert slim.heads == 2
    assert torch.equal(slim.qkv.weight, torch.cat([part[:16, :16] for part in qkv.chunk(3)]))


def test_gradients_reach_what_was_cut_out_and_nothing_else(full: SpectralUNet) -> None:
    x, features = inputs(full)
    denoiser = SlimDenoiser(full, 8)
    out = denoiser.denoise_with(dict(full.named_parameters()), x, features)
    torch.testing.assert_close(out, SlimUNet(full, 8).load(full).eval().denoise(x, features), rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    for name, parameter in full.named_parameters():
        if name.startswith("temporal_net."):
            continue
        kept = torch.ones(())
        for dimension, pieces in enumerate(denoiser.slim.cuts[name]):
            mask = torch.zeros(parameter.shape[dimension])
            for piece in pieces:
                mask[piece] = 1
            kept = kept[..., None] * mask
        assert parameter.grad is not None
        assert not parameter.grad[kept == 0].any(), name
        if "norm" not in name and ".k." not in name and "bias" not in name:  # some have none by symmetry
            assert (parameter.grad[kept == 1] != 0).float().mean() > 0.9, name


def test_a_step_aware_network_is_as_wide_as_its_program_says(full: SpectralUNet) -> None:
    x, features = inputs(full)
    model = StepAwareUNet(full, (16, 8, 16))
    expected = {16: full.denoise(x, features), 8: SlimUNet(full, 8).load(full).eval().denoise(x, features)}
    for program, width in enumerate((16, 8, 16)):
        select(model, program)
        assert torch.equal(model.denoise(x, features), expected[width])
        assert network_of(model, program).config.width == width
        walked, names = through(model.walk(x, features))
        assert torch.equal(walked, expected[width])
        assert names == model.unit_names()
    assert model.temporal_net is full.temporal_net
    assert network_of(full, 3) is full


def test_widths_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match=r"slim width 10: .*10 channels cannot be split into 4 norm groups"):
        slim_config(PLAIN, 10)
    with pytest.raises(UsageError, match=r"12 channels cannot be split into heads"):
        slim_config(PLAIN, 12)
    with pytest.raises(ValueError, match="10 channels of slim width 10 cannot be split into 4 norm groups"):
        ModelConfig.model_validate({**PLAIN.model_dump(), "slim_widths": (10,)})
    for wrong in ((16,), (8, 8), (12, 8)):
        with pytest.raises(ValueError, match="not ascending and below 16"):
            ModelConfig.model_validate({**PLAIN.model_dump(), "slim_widths": wrong})
    with pytest.raises(UsageError, match="wants width 12, and the model's weights work at widths 8, 16"):
        StepAwareUNet(SpectralUNet(PLAIN), (16, 12))
    with pytest.raises(UsageError, match="wants width 8, and the model's weights are of one width"):
        StepAwareUNet(SpectralUNet(PLAIN.model_copy(update={"slim_widths": ()})), (8,))


def test_usual_widths() -> None:
    assert usual_widths(GATED.model_copy(update={"width": 32})) == (8, 16, 24)
    assert usual_widths(GATED.model_copy(update={"width": 24, "norm_groups": 8})) == (8, 16)  # 6, 12 and 18 are no eights
    assert widths_of(PLAIN) == (8, 16)
    with pytest.raises(UsageError, match="has no slimmer one"):
        usual_widths(PLAIN.model_copy(update={"width": 8, "norm_groups": 8}))
