// Multiply-adds on registers alone, as many at once as there are units for, in each thread. This file is compiled with fused
// multiply-adds allowed, unlike all others.
#include "ceiling.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

namespace {

constexpr int kChains = 12;  // independent sums, so that no unit waits for another's result
constexpr uint64_t kRounds = 400'000;

template <typename Vector>
[[gnu::always_inline]] inline float multiply_add(uint64_t rounds) {
  Vector sums[kChains], factor = {}, term = {};
  factor += 0.999999f, term += 1e-6f;
  for (Vector& sum : sums) sum = term;
  for (uint64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (Vector& sum : sums) sum = sum * factor + term;
  }
  Vector total = {};
  for (const Vector& sum : sums) total += sum;
  return total[0];
}

using Four = float __attribute__((vector_size(16)));

struct Kernel {
  float (*run)(uint64_t rounds);
  int lanes;
};

float baseline(uint64_t rounds) { return multiply_add<Four>(rounds); }

#ifdef __x86_64__
using Eight = float __attribute__((vector_size(32)));
using Sixteen = float __attribute__((vector_size(64)));
[[gnu::target("avx2,fma")]] float with_avx2(uint64_t rounds) { return multiply_add<Eight>(rounds); }
[[gnu::target("avx512f")]] float with_avx512(uint64_t rounds) { return multiply_add<Sixteen>(rounds); }

Kernel widest() {
  if (__builtin_cpu_supports("avx512f")) return {with_avx512, 16};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {with_avx2, 8};
  return {baseline, 4};
}
#else
Kernel widest() { return {baseline, 4}; }
#endif

}  // namespace

double ceiling_gflops(uint32_t threads) {
  const Kernel kernel = widest();
  std::vector<float> kept(threads);
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const auto began = std::chrono::steady_clock::now();
    std::vector<std::thread> team;
    for (uint32_t i = 0; i < threads; ++i) team.emplace_back([&kept, &kernel, i] { kept[i] = kernel.run(kRounds); });
    for (std::thread& one : team) one.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    best = std::max(best, 2.0 * kernel.lanes * kChains * double(kRounds) * threads / seconds / 1e9);
  }
  volatile float used = 0;  // or the sums would be dropped
  for (const float value : kept) used = used + value;
  return best;
}
