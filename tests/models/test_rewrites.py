"""Deployment rewrites: each computes what it replaces, and is in the form that it promises."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram

from edge_sd.export import DecoderProgram, DenoiserProgram, targets
from edge_sd.models.attention_forms import (
    QUERY_BLOCK,
    FoldedSelfAttention,
    FoldedSelfAttentionNHWC,
    MatmulAttention,
    TokenSelfAttention,
)
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig, LatentDecoder
from edge_sd.models.blocks import ConvUp, DotProductAttention, PixelUp, ResBlock, SelfAttention
from edge_sd.models.gating import WaveletDown, WaveletUp
from edge_sd.models.rewrites import (
    REWRITES,
    InstanceGroupNorm,
    MatmulLayerNorm,
    PooledGroupNorm,
    SplitConv,
    rewritten,
)
from edge_sd.models.unet import SpectralUNet
from edge_sd.models.wavelet_forms import (
    ButterflyWaveletUp,
    ButterflyWaveletUpNHWC,
    ConcatPixelUp,
    DepthwiseWaveletDown,
    FoldedHaarDecoder,
    FoldedHaarDecoderNHWC,
    JoinedWaveletUp,
    JoinedWaveletUpNHWC,
)
from edge_sd.models.wavelets import IDWT2, wrap
from edge_sd.quiet import quiet

MakeModel = Callable[..., SpectralUNet]

MODELS: dict[str, dict[str, Any]] = {
    "gated": {"image_size": 8},
    "plain": {"image_size": 8, "gating": False},
    "Church": {"image_size": 8, "gating": False, "resample": "block", "scale_shift": True},
    "gated Church": {"image_size": 8, "resample": "block", "in_channels": 4, "out_channels": 4, "head_channels": 4},
    "classes as context": {
        "image_size": 8, "num_classes": 3, "class_conditioning": "context", "context_dim": 6, "context_tokens": 2,
    },
    "db2": {"image_size": 8, "wavelet": "db2"},
    "1024 tokens": {"image_size": 32, "multipliers": (1,), "attention": (1,), "gating": False},
}  # fmt: skip
# What each model holds for a rewrite to find, by the first rewrite of its kind; everything else must leave it as it is.
# All have skips that are joined on the way up, for split-skip to find.
FOUND: dict[str, set[str]] = {
    "gated": {"folded-attention", "matmul-attention", "pooled-group-norm", "depthwise-wavelet-down", "butterfly-wavelet-up"},
    "plain": {"folded-attention", "matmul-attention", "pooled-group-norm", "concat-pixel-up"},
    "Church": {"folded-attention", "matmul-attention", "pooled-group-norm", "concat-pixel-up"},
    "gated Church": {
        "folded-attention", "matmul-attention", "pooled-group-norm", "depthwise-wavelet-down", "butterfly-wavelet-up",
    },
    "classes as context": {
        "matmul-attention", "pooled-group-norm", "matmul-layer-norm", "depthwise-wavelet-down", "butterfly-wavelet-up",
    },
    "db2": {"folded-attention", "matmul-attention", "pooled-group-norm", "depthwise-wavelet-down"},
    "1024 tokens": {"folded-attention", "matmul-attention", "pooled-group-norm"},
}  # fmt: skip
# Rewrites that replace what another one replaces.
LIKE = {
    "token-attention": "folded-attention",
    "joined-wavelet-up": "butterfly-wavelet-up",
    "instance-group-norm": "pooled-group-norm",
}
BUILT: dict[str, tuple[type[nn.Module], tuple[type[nn.Module], ...]]] = {
    "folded-attention": (FoldedSelfAttention, (SelfAttention,)),
    "folded-attention-nhwc": (FoldedSelfAttentionNHWC, (SelfAttention,)),
    "matmul-attention": (MatmulAttention, (DotProductAttention,)),
    "token-attention": (TokenSelfAttention, (SelfAttention,)),
    "pooled-group-norm": (PooledGroupNorm, (nn.GroupNorm,)),
    "instance-group-norm": (InstanceGroupNorm, (nn.GroupNorm,)),
    "matmul-layer-norm": (MatmulLayerNorm, (nn.LayerNorm,)),
    "depthwise-wavelet-down": (DepthwiseWaveletDown, (WaveletDown,)),
    "butterfly-wavelet-up": (ButterflyWaveletUp, (WaveletUp,)),
    "butterfly-wavelet-up-nhwc": (ButterflyWaveletUpNHWC, (WaveletUp,)),
    "joined-wavelet-up": (JoinedWaveletUp, (WaveletUp,)),
    "joined-wavelet-up-nhwc": (JoinedWaveletUpNHWC, (WaveletUp,)),
    "split-skip": (SplitConv, ()),
    "folded-haar-up": (FoldedHaarDecoder, (LatentDecoder,)),
    "folded-haar-up-nhwc": (FoldedHaarDecoderNHWC, (LatentDecoder,)),
    "concat-pixel-up": (ConcatPixelUp, (PixelUp, ConvUp)),
}
OF_DECODERS = {"folded-haar-up"}


def first_of_its_kind(rewrite: str) -> str:
    plain = rewrite.removesuffix("-nhwc")
    return LIKE.get(plain, plain)


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter, so that neither a norm's γ of one nor a bias of zero hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3 / math.sqrt(max(parameter[0].numel(), 1)))
    return module.eval()


class Case:
    """A program, one call of it, and what it returns in double precision."""

    def __init__(self, model: SpectralUNet) -> None:
        self.program = DenoiserProgram(model).eval()
        generator = torch.Generator().manual_seed(3)
        self.inputs = (
            torch.randn(1, *model.config.sample_shape, generator=generator),
            torch.randn(1, model.feature_width, generator=generator),
        )
        with torch.no_grad():
            self.expected = copy.deepcopy(self.program).double()(*(value.double() for value in self.inputs))

    def check(self, other: nn.Module) -> None:
        with torch.no_grad():
            torch.testing.assert_close(other(*self.inputs).double(), self.expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def case(make_model: MakeModel) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def find(name: str) -> Case:
        if name not in made:
            model = make_model(**MODELS[name])
            shaken(model)
            made[name] = Case(model)
        return made[name]

    return find


def types(module: nn.Module) -> Counter[type]:
    return Counter(type(child) for child in module.modules())


# Equality


@pytest.mark.parametrize("model", MODELS)
def test_the_models_hide_nothing(model: str, case: Callable[[str], Case]) -> None:
    """Outputs of the size that the tolerance is meant for, and different ones for different inputs."""
    found = case(model)
    assert 0.05 < found.expected.std() < 20
    with torch.no_grad():
        rows = found.inputs[1]
        other = found.program(found.inputs[0], rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(9)))
        found.check(found.program)
    assert (other - found.expected).abs().max() > 1e-2


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("model", MODELS)
def test_a_rewrite_alone_keeps_the_outputs(model: str, rewrite: str, case: Callable[[str], Case]) -> None:
    found = case(model)
    result = rewritten(found.program, [rewrite])
    found.check(result)
    built, sources = BUILT[rewrite]
    before, after = types(found.program), types(result)
    if rewrite == "split-skip":
        joined = [part for part in found.program.modules() if isinstance(part, ResBlock) and part.joined]
        assert after - before == {SplitConv: len(joined), nn.Conv2d: len(joined)}  # one becomes two
        assert joined
    elif first_of_its_kind(rewrite) in FOUND[model]:
        assert after[built] == sum(before[source] for source in sources) > 0
        assert not any(after[source] for source in sources)
    else:
        assert before == after


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("model", MODELS)
def test_a_targets_rewrites_together_keep_the_outputs(model: str, target: str, case: Callable[[str], Case]) -> None:
    found, names = case(model), targets()[target].rewrites
    assert set(names) <= REWRITES.keys()
    result = rewritten(found.program, names)
    found.check(result)
    assert len(types(result)) != len(types(found.program)) or types(result) != types(found.program)
    if target == "executorch":  # also the norms inside of what was rewritten before
        assert not types(result)[nn.GroupNorm]
        assert not types(result)[nn.LayerNorm]


def test_every_rewrite_is_named_here() -> None:
    assert BUILT.keys() == REWRITES.keys()
    assert all(rewrite.about and rewrite.name == name for name, rewrite in REWRITES.items())
    assert {first_of_its_kind(name) for name in REWRITES} == set.union(*FOUND.values()) | OF_DECODERS | {"split-skip"}


def test_haars_butterfly_is_not_for_other_wavelets(case: Callable[[str], Case]) -> None:
    found = case("db2")
    result = rewritten(found.program, targets()["executorch"].rewrites)
    assert (types(result)[WaveletUp], types(result)[DepthwiseWaveletDown]) == (1, 1)
    assert not types(result)[ButterflyWaveletUpNHWC]


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("rewrite", [name for name in REWRITES if name.removesuffix("-nhwc") in OF_DECODERS])
@torch.no_grad()
def test_a_decoder_with_haar_in_its_convolutions_draws_the_same(rewrite: str, factor: int) -> None:
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(factor=factor, width=6, latent_channels=3))
    model.standardise(torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 0.7, 2.0]))
    program = DecoderProgram(shaken(model.decoder))
    latent = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    expected = copy.deepcopy(program).double()(latent.double())
    result = rewritten(program, [rewrite])
    assert 0.05 < expected.std() < 20
    torch.testing.assert_close(result(latent).double(), expected, rtol=0, atol=1e-5)
    built, _ = BUILT[rewrite]
    after = types(result)
    assert (after[built], after[LatentDecoder], after[IDWT2]) == (1, 0, 0)
    assert after[nn.Conv2d] == types(program)[nn.Conv2d]
    assert types(program)[IDWT2] == factor // 4 + 1


@pytest.mark.parametrize("target", targets())
def test_no_target_is_given_a_transposed_convolution(target: str) -> None:
    decoder = DecoderProgram(Autoencoder(AutoencoderConfig(width=4)).decoder.eval())
    module, held = rewritten(decoder, targets()[target].rewrites), []
    for program in (decoder, module):
        nodes = torch.export.export(program, (torch.zeros(1, 4, 4, 4),)).graph.nodes
        held.append(sum("conv_transpose" in str(node.target) for node in nodes))
    assert held == [2, 0]


# A copy is rewritten


@pytest.mark.parametrize("model", ["gated", "classes as context"])
def test_the_model_itself_stays_as_it_is(model: str, case: Callable[[str], Case]) -> None:
    program = case(model).program.train()
    weights = {name: value.clone() for name, value in program.state_dict().items()}
    kinds = [(name, type(child)) for name, child in program.named_modules()]
    places = {name: value.data_ptr() for name, value in program.state_dict().items()}
    for target in targets().values():
        result = rewritten(program, target.rewrites)
        with torch.no_grad():
            result(*case(model).inputs)
        assert not any(child.training for child in result.modules())
    assert all(child.training for child in program.modules())
    program.eval()
    assert [(name, type(child)) for name, child in program.named_modules()] == kinds
    assert program.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in program.state_dict().items())
    assert {name: value.data_ptr() for name, value in program.state_dict().items()} == places


def test_what_is_not_rewritten_shares_its_memory(case: Callable[[str], Case]) -> None:
    program = case("gated").program
    result = rewritten(program, ["folded-attention"])
    assert result.model.conv_in.weight.data_ptr() == program.model.conv_in.weight.data_ptr()


def test_no_rewrites_at_all(case: Callable[[str], Case]) -> None:
    found = case("gated")
    result = rewritten(found.program, [])
    assert result is not found.program
    assert types(result) == types(found.program)
    with torch.no_grad():
        assert torch.equal(result(*found.inputs), found.program(*found.inputs))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("folded-attention", "token-attention"),
        ("butterfly-wavelet-up", "joined-wavelet-up"),
        ("pooled-group-norm", "instance-group-norm"),
    ],
)
def test_rewrites_apply_in_the_order_given(first: str, second: str, case: Callable[[str], Case]) -> None:
    """Of two for the same class the first finds it."""
    for order in ((first, second), (second, first)):
        kinds = types(rewritten(case("gated").program, order))
        assert kinds[BUILT[order[0]][0]] > 0
        assert kinds[BUILT[order[1]][0]] == 0


@pytest.mark.parametrize("plain", [name.removesuffix("-nhwc") for name in REWRITES if name.endswith("-nhwc")])
def test_a_layout_is_changed_also_afterwards(plain: str, case: Callable[[str], Case]) -> None:
    """What is quantized was rewritten before: its layout follows, with the very tensors that are there."""
    if plain in OF_DECODERS:
        assert REWRITES[f"{plain}-nhwc"].sources == (LatentDecoder,)  # a decoder is never quantized
        return
    found, last = case("gated"), BUILT[f"{plain}-nhwc"][0]
    before = rewritten(found.program, [plain])
    for order in ([plain, f"{plain}-nhwc"], [f"{plain}-nhwc", plain]):
        result = rewritten(found.program, order)
        assert types(result)[last] == types(before)[BUILT[plain][0]] > 0
        assert not types(result)[BUILT[plain][0]]
        found.check(result)
    after = rewritten(before, [f"{plain}-nhwc"])
    places = {name: value.data_ptr() for name, value in before.state_dict().items()}
    assert {name: value.data_ptr() for name, value in after.state_dict().items()} == places
    assert types(before)[BUILT[plain][0]] > 0


def test_rewrites_of_some_modules_alone(case: Callable[[str], Case]) -> None:
    found = case("gated")
    names = [name for name, part in found.program.named_modules() if type(part) is SelfAttention]
    assert len(names) > 1
    result = rewritten(found.program, ["folded-attention"], lambda name: name == names[-1])
    kinds = {name: type(part) for name, part in result.named_modules() if name in names}
    assert kinds == {**dict.fromkeys(names, SelfAttention), names[-1]: FoldedSelfAttention}
    rest = rewritten(result, ["token-attention"])
    assert (types(rest)[FoldedSelfAttention], types(rest)[TokenSelfAttention]) == (1, len(names) - 1)
    found.check(rest)


def test_a_subclass_of_what_is_rewritten_is_left_alone() -> None:
    """Somebody's own norm that derives from GroupNorm may compute something else."""

    class Shifted(nn.GroupNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model = nn.Sequential(Shifted(2, 4), nn.GroupNorm(2, 4))
    assert [type(child) for child in rewritten(model, ["pooled-group-norm"])] == [Shifted, PooledGroupNorm]


# One by one, against references of their own


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("groups", "channels"), [(1, 4), (4, 8), (8, 8)])
@pytest.mark.parametrize("ratio", [0, 1, 100])
@torch.no_grad()
def test_pooled_group_norm_keeps_its_digits_where_the_mean_is_large(ratio: int, groups: int, channels: int, affine: bool) -> None:
    norm = nn.GroupNorm(groups, channels, affine=affine)
    if affine:
        shaken(norm)
    x = torch.randn(2, channels, 12, 10, generator=torch.Generator().manual_seed(1)) + ratio
    expected = copy.deepcopy(norm).double()(x.double())
    torch.testing.assert_close(PooledGroupNorm(norm)(x).double(), expected, rtol=0, atol=2e-6 + 2e-7 * ratio)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("groups", "channels"), [(1, 4), (4, 8), (8, 8)])
@pytest.mark.parametrize("ratio", [0, 1, 100])
@torch.no_grad()
def test_instance_group_norm_keeps_them_too(ratio: int, groups: int, channels: int, affine: bool) -> None:
    norm = nn.GroupNorm(groups, channels, eps=1e-3, affine=affine)
    if affine:
        shaken(norm)
    x = torch.randn(2, channels, 12, 10, generator=torch.Generator().manual_seed(1)) + ratio
    expected = copy.deepcopy(norm).double()(x.double())
    result = InstanceGroupNorm(norm).eval()
    torch.testing.assert_close(result(x).double(), expected, rtol=0, atol=2e-6 + 2e-7 * ratio)
    assert set(result.state_dict()) == ({"weight", "bias"} if affine else set())  # the mean 0 and variance 1 are no weights


@torch.no_grad()
def test_the_textbook_variance_would_lose_those_digits() -> None:
    """Why means are subtracted first: the bound above would not hold."""
    x = torch.randn(2, 8, 12, 10, generator=torch.Generator().manual_seed(1)) + 100
    groups = x.view(2, 4, -1)
    naive = (groups - groups.mean(2, keepdim=True)) / (groups.square().mean(2) - groups.mean(2).square())[..., None].sqrt()
    expected = F.group_norm(x.double(), 4).view(2, 4, -1)
    assert (naive.double() - expected).abs().max() > 1e-4


@given(st.integers(1, 4), st.integers(1, 40), st.floats(-50, 50), st.floats(0.1, 10))
@settings(max_examples=50)
@torch.no_grad()
def test_matmul_layer_norm(tokens: int, channels: int, mean: float, spread: float) -> None:
    norm = shaken(nn.LayerNorm(channels))
    x = torch.randn(2, tokens, channels, generator=torch.Generator().manual_seed(channels)) * spread + mean
    expected = copy.deepcopy(norm).double()(x.double())
    centred = x.double() - x.double().mean(-1, keepdim=True)
    # What rounding x leaves of a spread this small, a norm blows up: the bound is of the input, not of the method.
    error = 1e-6 * x.abs().max() / (centred.square().mean() + 1e-5).sqrt()
    torch.testing.assert_close(MatmulLayerNorm(norm)(x).double(), expected, rtol=1e-4, atol=1e-5 + 4 * error.item())


@given(st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 7, 255, 256, 257, 600]), st.sampled_from([1, 5, 300]))
@settings(max_examples=25)
@torch.no_grad()
def test_attention_in_blocks_of_queries(batch: int, heads: int, queries: int, keys: int) -> None:
    """Softmax written out in NumPy; blocks that do not come out even included."""
    generator = torch.Generator().manual_seed(queries)
    q, k, v = (torch.randn(batch, heads, tokens, 4, generator=generator) * 2 for tokens in (queries, keys, keys))
    scores = np.einsum("bhnd,bhmd->bhnm", q.double().numpy(), k.double().numpy()) / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhnm,bhmd->bhnd", weights / weights.sum(-1, keepdims=True), v.double().numpy())
    found = MatmulAttention(DotProductAttention())(q, k, v)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2", "bior6.8", "db10"])
@torch.no_grad()
def test_wavelet_down_by_subbands_also_where_the_filter_is_longer_than_the_map(wavelet: str) -> None:
    source = shaken(WaveletDown(3, wavelet))
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    gates = source.gate(x).view(2, 3, 4, 1, 1).numpy()
    bands = np.stack([np.stack([pywt_subbands(plane, wavelet) for plane in image]) for image in x.double().numpy()])
    expected = (gates * bands).sum(2)
    np.testing.assert_allclose(DepthwiseWaveletDown(source).eval()(x).numpy(), expected, rtol=0, atol=1e-5)


def pywt_subbands(plane: np.ndarray, wavelet: str) -> np.ndarray:
    """LL, LH, HL, HH of one channel, by PyWavelets."""
    low, details = pywt.dwt2(plane, wavelet, "periodization")
    return np.stack([low, *details])


@given(st.integers(0, 9), st.integers(1, 6), st.integers(1, 6))
def test_a_border_is_wrapped_round_without_a_remainder_of_a_negative_number(pad: int, height: int, width: int) -> None:
    """NumPy's own; ExecuTorch's remainder has the sign of the dividend, so that no index may start below zero."""
    x = torch.arange(float(height * width)).view(1, 1, height, width)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="wrap")
    np.testing.assert_array_equal(wrap(x, pad).numpy(), expected)


@pytest.mark.parametrize("kind", [FoldedSelfAttention, FoldedSelfAttentionNHWC, TokenSelfAttention])
@torch.no_grad()
def test_a_keys_bias_changes_nothing(kind: type[FoldedSelfAttention]) -> None:
    """That is why folding may drop it: it adds one number to all scores of a query."""
    source = shaken(SelfAttention(8, groups=4, heads=2, head_channels=None))
    x = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    before = source(x)
    source.qkv.bias[8:16] += 5
    torch.testing.assert_close(source(x), before, rtol=0, atol=2e-5)
    torch.testing.assert_close(kind(source).eval()(x[:1]), before[:1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("heads", [1, 2, 4])
@torch.no_grad()
def test_attention_by_tokens_in_a_batch(heads: int) -> None:
    """A calibration runs in batches, which a target never does: images and heads must not be mixed up."""
    source = shaken(SelfAttention(8, groups=4, heads=heads, head_channels=None))
    x = torch.randn(3, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = copy.deepcopy(source).double()(x.double())
    for kind in (TokenSelfAttention, FoldedSelfAttention):
        torch.testing.assert_close(kind(source).eval()(x).double(), expected, rtol=0, atol=1e-5)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
@settings(max_examples=20)
@torch.no_grad()
def test_a_split_convolution_is_two_products_of_matrices(first: int, second: int, out: int) -> None:
    source = nn.Conv2d(first + second, out, 1)
    x = torch.randn(2, first + second, 3, 2, generator=torch.Generator().manual_seed(out))
    weight, values = source.weight[:, :, 0, 0].double().numpy(), x.double().numpy()
    halves = [np.einsum("oi,bihw->bohw", weight[:, part], values[:, part]) for part in (slice(None, first), slice(first, None))]
    expected = sum(halves) + source.bias.double().numpy()[:, None, None]
    split = SplitConv(source, first)
    np.testing.assert_allclose(split(x).numpy(), expected, rtol=0, atol=1e-5)
    assert split.second.bias is None
    np.testing.assert_allclose(split.second(x[:, first:]).numpy(), halves[1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_two_halves_are_the_map_and_the_skip(make_model: MakeModel) -> None:
    """Where the first half ends is where the model has joined them."""
    model = make_model(image_size=8)
    form, joined = rewritten(model, ["split-skip"]), dict[str, int]()
    x, features = torch.randn(1, 3, 8, 8), torch.randn(1, model.feature_width)
    walk, out = model.walk(x, features), None
    try:
        while True:
            unit = walk.send(out) if out is not None else next(walk)
            if unit.name.startswith("up") and hasattr(unit.module, "block"):
                joined[f"{unit.name}.block.skip"] = out.shape[1]  # type: ignore[union-attr]
            out = unit.module(*unit.inputs)
    except StopIteration:
        pass
    assert {name: part.split for name, part in form.named_modules() if isinstance(part, SplitConv)} == joined
    assert len(joined) == 4


# Form


def graph_of(module: nn.Module, *shapes: tuple[int, ...]) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module, tuple(torch.randn(shape) for shape in shapes))


def core(program: ExportedProgram) -> ExportedProgram:
    """In the core operators that a lowering starts from."""
    with quiet():
        return program.run_decompositions()


def operators(program: ExportedProgram) -> Counter[str]:
    names = (str(node.target) for node in program.graph.nodes if node.op == "call_function")
    return Counter(name.split(".")[1] for name in names if "." in name)


def results(program: ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta["val"], Tensor):
            yield str(node.target).split(".")[1], node.meta["val"]


@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2"])
def test_wavelet_down_never_stores_the_four_subbands(wavelet: str) -> None:
    C, H, W = 12, 8, 16
    source = shaken(WaveletDown(C, wavelet))
    plain, form = graph_of(source, (1, C, H, W)), graph_of(DepthwiseWaveletDown(source).eval(), (1, C, H, W))
    assert max(value.numel() for name, value in results(plain) if name == "conv2d") == C * H * W
    found = list(results(form))
    start = next(index for index, (name, _) in enumerate(found) if name == "conv2d")
    assert [tuple(value.shape) for name, value in found if name == "conv2d"] == [(1, C, H // 2, W // 2)] * 4
    assert max(value.numel() for _, value in found[start:]) == C * H * W // 4
    if wavelet == "haar":  # no border to wrap round
        assert max(value.numel() for _, value in found) == C * H * W // 4


@pytest.mark.parametrize(("kind", "absent"), [(ButterflyWaveletUp, set()), (ButterflyWaveletUpNHWC, {"pixel_shuffle"})])
def test_wavelet_up_is_1x1_convolutions_and_sums(kind: type[nn.Module], absent: set[str]) -> None:
    source = shaken(WaveletUp(8, "haar"))
    assert operators(graph_of(source, (1, 8, 4, 4)))["conv_transpose2d"] == 1
    program = graph_of(kind(source).eval(), (1, 8, 4, 4))
    assert not operators(program).keys() & {"conv_transpose2d", "index_select", "index", *absent}
    assert operators(program)["conv2d"] == 4
    weights = [value for name, value in program.state_dict.items() if name.startswith("expand") and value.ndim > 1]
    assert {tuple(value.shape) for value in weights} == {(8, 8, 1, 1)}


@pytest.mark.parametrize("kind", [FoldedSelfAttention, FoldedSelfAttentionNHWC])
def test_folded_attention_is_three_projections_and_nothing_is_split(kind: type[FoldedSelfAttention]) -> None:
    source = shaken(SelfAttention(16, groups=4, heads=2, head_channels=None))
    program = graph_of(kind(source).eval(), (1, 16, 4, 4))
    names = [name for name, _ in results(program)]
    assert Counter(names)["conv2d"] == 4
    assert names[: names.index("bmm")].count("conv2d") == 3  # the fourth is the way out
    assert not set(names) & {"split", "split_with_sizes", "chunk", "select", "slice", "unbind", "scaled_dot_product_attention"}
    layers = {name: tuple(value.shape) for name, value in program.state_dict.items()}
    assert layers == {
        **dict.fromkeys(("q.weight", "k.weight", "v.weight", "out.weight"), (16, 16, 1, 1)), "q.bias": (16,), "out.bias": (16,),
    }  # fmt: skip


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_by_tokens_is_products_of_matrices(heads: int) -> None:
    """Linear layers see two dimensions: of more, torch.onnx makes a MatMul and a sum, which no integer kernel is."""
    source = shaken(SelfAttention(16, groups=4, heads=heads, head_channels=None))
    program = graph_of(TokenSelfAttention(source).eval(), (1, 16, 4, 4))
    assert [tuple(value.shape) for name, value in results(program) if name == "linear"] == [(16, 16)] * 4
    assert not operators(program).keys() & {"conv2d", "split", "split_with_sizes", "chunk", "scaled_dot_product_attention"}
    assert {tuple(value.shape) for name, value in program.state_dict.items() if name.endswith("weight")} == {(16, 16)}


@pytest.mark.parametrize("kind", [JoinedWaveletUp, JoinedWaveletUpNHWC])
def test_joined_wavelet_up_is_one_convolution(kind: type[nn.Module]) -> None:
    program = graph_of(kind(shaken(WaveletUp(8, "haar"))).eval(), (1, 8, 4, 4))
    assert [tuple(value.shape) for name, value in results(program) if name == "conv2d"] == [(1, 32, 4, 4)]
    assert not operators(program).keys() & {"conv_transpose2d", "index_select", "index"}
    assert ("pixel_shuffle" in operators(program)) == (kind is JoinedWaveletUp)


def test_no_block_of_queries_is_larger_than_it_may_be() -> None:
    program = graph_of(MatmulAttention(DotProductAttention()), *[(1, 2, 1024, 4)] * 3)
    scores = [tuple(value.shape) for name, value in results(program) if name == "softmax"]
    assert scores == [(2, QUERY_BLOCK, 1024)] * (1024 // QUERY_BLOCK)
    assert "scaled_dot_product_attention" not in operators(program)
    whole = operators(graph_of(MatmulAttention(DotProductAttention()), *[(1, 2, QUERY_BLOCK, 4)] * 3))
    assert (whole["softmax"], whole["slice"], whole["cat"]) == (1, 0, 0)


@pytest.mark.parametrize(
    ("rewrite", "module", "shape", "gone"),
    [
        ("pooled-group-norm", nn.GroupNorm(2, 8), (1, 8, 4, 4), {"group_norm", "native_group_norm", "var_mean", "var"}),
        ("instance-group-norm", nn.GroupNorm(2, 8), (1, 8, 4, 4), {"group_norm", "native_group_norm"}),
        ("matmul-layer-norm", nn.LayerNorm(8), (1, 5, 8), {"layer_norm", "native_layer_norm", "var_mean", "var"}),
        ("concat-pixel-up", PixelUp(), (1, 8, 4, 4), {"upsample_nearest2d", "pixel_shuffle", "repeat_interleave"}),
        ("concat-pixel-up", ConvUp(8), (1, 8, 4, 4), {"upsample_nearest2d", "pixel_shuffle", "repeat_interleave"}),
    ],
)
def test_what_a_delegate_lacks_is_gone(rewrite: str, module: nn.Module, shape: tuple[int, ...], gone: set[str]) -> None:
    form = nn.Sequential(module)
    before = graph_of(form, shape)
    assert (operators(before).keys() | operators(core(before)).keys()) & gone
    after = graph_of(rewritten(form, [rewrite]), shape)
    assert not (operators(after).keys() | operators(core(after)).keys()) & gone


@pytest.mark.parametrize("target", targets())
def test_the_denoiser_holds_no_time(target: str, case: Callable[[str], Case]) -> None:
    found = case("gated")
    program = graph_of(rewritten(found.program, targets()[target].rewrites), *(tuple(value.shape) for value in found.inputs))
    found.check(program.module())
    names = operators(program)
    assert not names.keys() & {"sin", "cos", "embedding", "scaled_dot_product_attention", "exp"}
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    taken = {spec.target for spec in program.graph_signature.input_specs if spec.arg.name in used and spec.target}
    assert taken
    assert not [name for name in taken if "temporal" in name]
    if target == "executorch":
        gone = {"group_norm", "native_group_norm", "pixel_shuffle", "upsample_nearest2d"}
        assert not (names.keys() | operators(core(program)).keys()) & gone


def test_core_ml_and_onnx_share_their_rewrites_but_for_norms() -> None:
    assert (*targets()["coreml"].rewrites, "instance-group-norm") == targets()["onnx"].rewrites


@pytest.mark.parametrize("target", targets())
def test_what_is_done_after_quantization_is_known(target: str) -> None:
    assert set(targets()[target].quantized_rewrites) <= REWRITES.keys()
    # A convolution's weights are in integers by then.
    assert not set(targets()[target].quantized_rewrites) & {"folded-attention", "token-attention", "split-skip"}
