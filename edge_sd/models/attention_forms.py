"""Self-attention in the forms that runtimes run best: what is constant folded into weights, matrix products in the open."""

import torch
from torch import Tensor, nn

from edge_sd.models.blocks import DotProductAttention, SelfAttention, constant

# Queries that attend at a time: the scores of a 32×32 map are 16 MB at once, a quarter of that in blocks.
QUERY_BLOCK = 256


class Attend(nn.Module):
    """Attention of scaled queries q (B, N, d) to keys k (B, d, M) and values v (B, M, d), block by block; (B, N, d).

    Attributes:
        queries, keys, values, probabilities: what these go through before they are multiplied; places to quantize them.
    """

    PLACES = ("queries", "keys", "values", "probabilities")

    def __init__(self) -> None:
        super().__init__()
        self.queries: nn.Module = nn.Identity()
        self.keys: nn.Module = nn.Identity()
        self.values: nn.Module = nn.Identity()
        self.probabilities: nn.Module = nn.Identity()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = q.shape[1]
        q, k, v = self.queries(q), self.keys(k), self.values(v)
        blocks = [q[:, start : start + QUERY_BLOCK] for start in range(0, tokens, QUERY_BLOCK)] if tokens > QUERY_BLOCK else [q]
        attended = [torch.bmm(self.probabilities(torch.softmax(torch.bmm(block, k), dim=-1)), v) for block in blocks]
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)


class MatmulAttention(nn.Module):
    """`DotProductAttention` as matmul–softmax–matmul: no mask logic, and the scores of one block of queries at a time."""

    def __init__(self, _: DotProductAttention) -> None:
        super().__init__()
        self.attend = Attend()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, heads, _, d = q.shape
        q, k, v = (y.flatten(0, 1) for y in (q * d**-0.5, k, v))
        out: Tensor = self.attend(q, k.transpose(1, 2), v).unflatten(0, (B, heads))
        return out


class FoldedSelfAttention(nn.Module):
    """`SelfAttention` with all that is constant folded into its weights.

    Three projections in place of one that has to be split. With the norm's affine γ, β and W = [W_q, W_k, W_v]:
    W' = W·diag(γ), b' = b + W·β, and W_q, b_q are scaled by 1/√d. A key's bias adds the same to all scores of a query, which
    softmax removes; a value's bias passes through the weighted mean and joins the output's: b_o + W_o·b_v.
    """

    def __init__(self, source: SelfAttention) -> None:
        super().__init__()
        self.heads, self.groups, self.eps = source.heads, source.norm.num_groups, source.norm.eps
        C = source.norm.num_channels
        weight, bias = source.qkv.weight.detach().view(3, C, C), source.qkv.bias.detach().view(3, C)  # type: ignore[union-attr]
        bias = bias + weight @ source.norm.bias
        weight = weight * source.norm.weight
        scale = (C // self.heads) ** -0.5
        self.norm = nn.GroupNorm(self.groups, C, self.eps, affine=False)
        self.attend = Attend()
        self.q, self.k, self.v, self.out = (nn.Conv2d(C, C, 1, bias=has_bias) for has_bias in (True, False, False, True))
        out_weight, out_bias = source.out.weight.detach(), source.out.bias.detach()  # type: ignore[union-attr]
        for layer, value in ((self.q, weight[0] * scale), (self.k, weight[1]), (self.v, weight[2]), (self.out, out_weight)):
            layer.weight = constant(value.view(C, C, 1, 1))
        self.q.bias, self.out.bias = constant(bias[0] * scale), constant(out_bias + out_weight.view(C, C) @ bias[2])

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = self.norm(x)
        q, k, v = (layer(h).view(B * self.heads, C // self.heads, H * W) for layer in (self.q, self.k, self.v))
        attended = self.attend(q.transpose(1, 2), k, v.transpose(1, 2))
        out: Tensor = x + self.out(attended.transpose(1, 2).reshape(B, C, H, W))
        return out


class TokenSelfAttention(FoldedSelfAttention):
    """The same with linear layers on tokens: a runtime's integer matrix products return floats, its convolutions integers."""

    def __init__(self, source: SelfAttention) -> None:
        super().__init__(source)
        for name in ("q", "k", "v", "out"):
            layer: nn.Conv2d = getattr(self, name)
            linear = nn.Linear(layer.in_channels, layer.out_channels, bias=layer.bias is not None)
            linear.weight, linear.bias = constant(layer.weight.flatten(1)), layer.bias  # type: ignore[assignment]
            setattr(self, name, linear)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        tokens = _tokens(self.norm(x))
        q, k, v = (self._heads(layer(tokens), B) for layer in (self.q, self.k, self.v))
        attended = self.attend(q, k.transpose(1, 2), v)
        if self.heads > 1:
            attended = attended.unflatten(0, (B, self.heads)).transpose(1, 2)
        out: Tensor = x + self.out(attended.reshape(B * H * W, C)).view(B, H * W, C).transpose(1, 2).reshape(B, C, H, W)
        return out

    def _heads(self, tokens: Tensor, batch: int) -> Tensor:
        """(B·HW, C) → (B·heads, HW, C/heads)."""
        tokens = tokens.unflatten(0, (batch, -1))
        return tokens if self.heads == 1 else tokens.unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(0, 1)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B·H·W, C): two dimensions, because a runtime's integer matrix product is one of matrices."""
    return x.flatten(2).transpose(1, 2).flatten(0, 1)


class FoldedSelfAttentionNHWC(FoldedSelfAttention):
    """The same for a runtime that keeps channels last: a map is read as tokens without being transposed first."""

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        d = C // self.heads
        h = self.norm(x)
        q, k, v = (layer(h).permute(0, 2, 3, 1).reshape(H * W, self.heads, d) for layer in (self.q, self.k, self.v))
        attended = self.attend(q.permute(1, 0, 2), k.permute(1, 2, 0), v.permute(1, 0, 2))
        out: Tensor = x + self.out(attended.permute(1, 0, 2).reshape(B, H, W, C).permute(0, 3, 1, 2))
        return out
