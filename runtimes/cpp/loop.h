// The denoising loop: edge_sd/diffusion/execute.py, the same arithmetic in the same order.
//
//   m ← p·x + q·e      base ← u·x + a·base + Σ_j b_j·m_j      x ← a_next·base + Σ_j b_next_j·m_j + c·z
#pragma once

#include <deque>

#include "noise.h"
#include "plan.h"

class Loop {
 public:
  Loop(const Plan& plan, uint64_t seed, uint64_t index, size_t count)
      : plan_(plan), seed_(seed), index_(index), x_(noise::gaussian(seed, index, -1, count)) {
    const float start = float(plan.start);
    for (float& value : x_) value = start * value;
    base_ = x_;
  }

  // What the program is given next; after the last row, the sample.
  const std::vector<float>& x() const { return x_; }

  // Take the prediction e at x and go on to the next row.
  void advance(const std::vector<float>& e) {
    const size_t count = x_.size();
    const float p = float(plan_.p[row_]), q = float(plan_.q[row_]), u = float(plan_.u[row_]), a = float(plan_.a[row_]);
    const float a_next = float(plan_.a_next[row_]);
    std::vector<float> m(count);
    for (size_t i = 0; i < count; ++i) m[i] = p * x_[i] + q * e[i];
    memory_.push_front(std::move(m));
    if (memory_.size() > plan_.history) memory_.pop_back();
    for (size_t i = 0; i < count; ++i) base_[i] = u * x_[i] + a * base_[i];
    add(base_, plan_.b);
    for (size_t i = 0; i < count; ++i) x_[i] = a_next * base_[i];
    add(x_, plan_.b_next);
    if (plan_.c[row_] != 0) {
      const float c = float(plan_.c[row_]);
      const std::vector<float> z = noise::gaussian(seed_, index_, int64_t(row_), count);
      for (size_t i = 0; i < count; ++i) x_[i] = x_[i] + c * z[i];
    }
    ++row_;
  }

 private:
  void add(std::vector<float>& sum, const std::vector<double>& column) const {
    for (size_t j = 0; j < memory_.size(); ++j) {
      const float weight = float(column[row_ * plan_.history + j]);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] = sum[i] + weight * memory_[j][i];
    }
  }

  const Plan& plan_;
  uint64_t seed_, index_;
  size_t row_ = 0;
  std::vector<float> x_, base_;
  std::deque<std::vector<float>> memory_;  // newest first
};
