"""A wider network around a trained one: the given width draws what it drew, and the new channels can learn."""

import pytest
import torch
from slim_models import CONFIGS, GATED, PLAIN, network

from edge_sd.errors import UsageError
from edge_sd.models.slim import SlimUNet
from edge_sd.models.unet import SpectralUNet
from edge_sd.models.widen import widened, wider_config


@pytest.fixture(params=sorted(CONFIGS))
def given(request: pytest.FixtureRequest) -> SpectralUNet:
    return network(CONFIGS[request.param])


def features_of(model: SpectralUNet) -> torch.Tensor:
    y = torch.tensor([1, 2]) if model.config.num_classes else None
    return model.temporal(torch.tensor([3.0, 700.5]), y)


@pytest.mark.parametrize("twice", [False, True])
def test_every_width_of_before_draws_what_it_drew(given: SpectralUNet, twice: bool) -> None:
    wide = widened(given, 24).eval()
    if twice:
        wide = widened(wide, 32).eval()
    assert wide.config.slim_widths == ((8, 16, 24) if twice else (8, 16))
    x = torch.randn(2, *given.config.sample_shape)
    for width in (8, 16):
        before = SlimUNet(given, width).load(given).eval().denoise(x, features_of(given))
        now = SlimUNet(wide, width).load(wide).eval().denoise(x, features_of(wide))
        torch.testing.assert_close(now, before, rtol=1e-5, atol=1e-5)


def test_what_the_given_channels_take_from_new_ones_is_nothing(given: SpectralUNet) -> None:
    """By hand, for a layer of the first level (16 channels become 24) and for one behind a skip (32 and 32 become 48 and 48)."""
    wide = widened(given, 24)
    layer, before = wide.down[0].block.conv1.weight, given.down[0].block.conv1.weight
    assert torch.equal(layer[:16, :16], before)
    assert not layer[:16, 16:].any()
    assert layer[16:].all()
    joined, before = wide.up[0].block.conv1.weight, given.up[0].block.conv1.weight
    assert torch.equal(joined[:32, :32], before[:, :32])
    assert torch.equal(joined[:32, 48:80], before[:, 32:])
    assert not joined[:32, 32:48].any()
    assert not joined[:32, 80:].any()


def test_every_new_weight_learns(given: SpectralUNet) -> None:
    """The last layers of blocks begin at zero, so it takes three steps until all before them are reached."""
    wide = widened(given, 24)
    start = {name: value.detach().clone() for name, value in wide.named_parameters()}
    optimizer = torch.optim.Adam(wide.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        wide.denoise(torch.randn(2, *wide.config.sample_shape), features_of(wide)).square().mean().backward()
        optimizer.step()
    still = [name for name, value in wide.named_parameters() if (value == start[name]).all()]
    assert not still


def test_the_same_seed_gives_the_same_weights() -> None:
    given = network(GATED)
    torch.manual_seed(5)
    first = widened(given, 24).state_dict()
    torch.manual_seed(5)
    second = widened(given, 24).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_widths_that_cannot_be_are_refused() -> None:
    for narrow in (8, 16):
        with pytest.raises(UsageError, match=f"a width of {narrow} is not more than the 16"):
            wider_config(PLAIN, narrow)
    with pytest.raises(UsageError, match=r"width 18: .*18 channels cannot be split into 4 norm groups"):
        wider_config(PLAIN, 18)
