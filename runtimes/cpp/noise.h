// The noise that samples start from: edge_sd/diffusion/noise.py, bit for bit.
//
// Philox-4x32-10 and Box and Muller's transform, made of operations that IEEE 754 rounds the same everywhere. Compile with
// -ffp-contract=off: a fused multiply-add rounds once where two roundings are meant.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

static_assert(FLT_EVAL_METHOD == 0, "float and double must be computed as such");

namespace noise {

struct Words {
  uint32_t w[4];
};

inline Words philox4x32(Words counter, uint32_t k0, uint32_t k1) {
  uint32_t* c = counter.w;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    const Words next = {{uint32_t(p1 >> 32) ^ c[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ k1, uint32_t(p0)}};
    counter = next;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return counter;
}

template <size_t N>
double series(double x, const double (&coefficients)[N]) {
  double total = coefficients[0];
  for (size_t i = 1; i < N; ++i) total = total * x + coefficients[i];
  return total;
}

// ln u by u = m·2^e with √½ ≤ m < √2 and ln m = 2 artanh((m − 1)/(m + 1)).
inline double logarithm(double u) {
  static const double atanh[] = {1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11,
                                 1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3,  1.0};
  int e = 0;
  double m = std::frexp(u, &e);
  if (m < 0.7071067811865476) {
    m = 2 * m;
    e = e - 1;
  }
  const double s = (m - 1) / (m + 1);
  return e * 0.6931471805599453 + 2 * s * series(s * s, atanh);
}

inline void box_muller(uint32_t w0, uint32_t w1, float out[2]) {
  static const double sin_[] = {1.0 / 355687428096000, -1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880,
                                -1.0 / 5040,           1.0 / 120,            -1.0 / 6,         1.0};
  static const double cos_[] = {-1.0 / 6402373705728000, 1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600,
                                -1.0 / 3628800,          1.0 / 40320,          -1.0 / 720,         1.0 / 24,
                                -1.0 / 2,                1.0};
  const double half_pi = 1.5707963267948966;
  const double radius = std::sqrt(-2.0 * logarithm(double(2 * uint64_t{w0} + 1) * 0x1p-33));
  const double t = (double(w1 & 0x3FFFFFFF) + 0.5) * 0x1p-30 * half_pi - half_pi / 2;
  const double square = t * t;
  const double sin = t * series(square, sin_), cos = series(square, cos_);
  const uint32_t turn = w1 >> 30;  // quarter turns
  const double x = turn & 1 ? sin : cos, y = turn & 1 ? cos : sin;
  out[0] = float(radius * (turn == 1 || turn == 2 ? -x : x));
  out[1] = float(radius * (turn >= 2 ? -y : y));
}

// `count` values of one image; row −1 is where the loop starts, row i what step i adds.
inline std::vector<float> gaussian(uint64_t seed, uint64_t index, int64_t row, size_t count) {
  std::vector<float> values((count + 3) / 4 * 4);
  for (size_t block = 0; 4 * block < count; ++block) {
    const Words counter = {{uint32_t(block), uint32_t(row + 1), uint32_t(index), uint32_t(index >> 32)}};
    const Words words = philox4x32(counter, uint32_t(seed), uint32_t(seed >> 32));
    box_muller(words.w[0], words.w[1], &values[4 * block]);
    box_muller(words.w[2], words.w[3], &values[4 * block + 2]);
  }
  values.resize(count);
  return values;
}

}  // namespace noise
