"""The noise that samples start from: a function of (seed, image, row), the same bits on every machine and in every language.

Counter-based, so that image 7 of a batch of 16 is image 7 computed alone. Value 4·block + i of an image's row is made from word
i of `philox4x32`, ten rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), with

    counter = (block, row + 1, low half of image, high half of image), key = (low half of seed, high half of seed)

Words 0 and 1 make values 0 and 1, words 2 and 3 make values 2 and 3, by Box and Muller's transform in float64:

    u = (2·w₀ + 1)·2⁻³³,   z₀ = √(−2 ln u)·cos θ,   z₁ = √(−2 ln u)·sin θ,   each rounded to float32

θ is a quarter turn for each unit of w₁'s upper two bits, and (w₁'s lower 30 bits + ½)·2⁻³⁰·π/2 − π/4 on top. Libraries disagree
on the last bit of ln, cos and sin. Here they are series of +, −, ×, ÷ and √, which IEEE 754 rounds the same everywhere as long as
no product is fused with a sum (C++: -ffp-contract=off). `vectors.json` beside this file holds test vectors.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

# What a bundle's goldens say of their noise: other noise would be other images.
NAME: Final = "philox4x32-10/box-muller"

_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_ROUNDS = 10
_LN2, _HALF_PI, _SQRT_HALF = 0.6931471805599453, 1.5707963267948966, 0.7071067811865476
# Largest order first, as Horner's rule takes them. Each quotient is of integers below 2⁵³, so it rounds the same everywhere.
_ATANH = tuple(1.0 / (2 * k + 1) for k in range(10, -1, -1))
_SIN = (
    *(1 / 355687428096000, -1 / 1307674368000, 1 / 6227020800, -1 / 39916800, 1 / 362880),
    *(-1 / 5040, 1 / 120, -1 / 6, 1.0),
)
_COS = (
    *(-1 / 6402373705728000, 1 / 20922789888000, -1 / 87178291200, 1 / 479001600, -1 / 3628800),
    *(1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1.0),
)

Words = NDArray[np.uint64]
Float64 = NDArray[np.float64]


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Philox-4×32-10: 128 bits of counter and 64 of key to 128 random bits; words of 32 bits, held in uint64 arrays."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * np.uint64(_M0), c2 * np.uint64(_M1)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def gaussian(seed: int, index: int, row: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Unit Gaussian noise for one image, float32 of `shape`; row −1 is where the loop starts, row i what step i adds."""
    noise: NDArray[np.float32] = gaussian_batch(seed, range(index, index + 1), row, shape)[0]
    return noise


def gaussian_batch(seed: int, indices: range, row: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`gaussian` of several images, (len(indices), *shape) float32; seed and index are below 2⁶⁴, row below 2³² − 1."""
    count = math.prod(shape)
    block = np.arange(-(-count // 4), dtype=np.uint64)
    index = np.array(indices, dtype=np.uint64).reshape(-1, 1)
    grid = np.zeros((len(index), len(block)), dtype=np.uint64)
    counter = (grid + block, grid + np.uint64(row + 1), grid + (index & _LOW), grid + (index >> np.uint64(32)))
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    values = np.stack([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])], axis=-1)
    return np.ascontiguousarray(values.reshape(len(indices), -1)[:, :count].reshape(-1, *shape))


def _box_muller(w0: Words, w1: Words) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    radius = np.sqrt(-2.0 * _ln((2 * w0 + np.uint64(1)).astype(np.float64) * 2.0**-33))
    t = ((w1 & np.uint64(0x3FFFFFFF)).astype(np.float64) + 0.5) * 2.0**-30 * _HALF_PI - _HALF_PI / 2
    square = t * t
    sin, cos = t * _series(square, _SIN), _series(square, _COS)
    turn = w1 >> np.uint64(30)
    odd, negative_x, negative_y = (turn & np.uint64(1)) == 1, (turn == 1) | (turn == 2), turn >= 2
    x, y = np.where(odd, sin, cos), np.where(odd, cos, sin)
    return (
        (radius * np.where(negative_x, -x, x)).astype(np.float32),
        (radius * np.where(negative_y, -y, y)).astype(np.float32),
    )


def _ln(u: Float64) -> Float64:
    """Natural logarithm: u = m·2ᵉ with √½ ≤ m < √2, and ln m = 2 artanh((m − 1)/(m + 1))."""
    m, e = np.frexp(u)
    small = m < _SQRT_HALF
    m, e = np.where(small, 2 * m, m), np.where(small, e - 1, e)
    s = (m - 1) / (m + 1)
    logarithm: Float64 = e * _LN2 + 2 * s * _series(s * s, _ATANH)
    return logarithm


def _series(x: Float64, coefficients: tuple[float, ...]) -> Float64:
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total
