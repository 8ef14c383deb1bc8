// The denoising loop: edge_sd/diffusion/execute.py, the same float32 arithmetic in the same order.
//
//   m ← p·x + q·e      base ← u·x + a·base + Σ_j b_j·m_j      x ← a_next·base + Σ_j b_next_j·m_j + c·z
//
// JavaScript computes in float64. Math.fround after each operation gives float32's own result: float64 has more than twice its
// bits and two more, so that rounding twice is rounding once.

import { gaussian } from "./noise.mjs";

const f = Math.fround;

export class Loop {
  // plan: see plan.mjs; seed and image: BigInt; count: values of one sample.
  constructor(plan, seed, image, count) {
    this.plan = plan;
    this.noise = (row) => gaussian(seed, image, row, count);
    this.row = 0;
    const start = f(plan.start);
    this.x = this.noise(-1).map((value) => start * value); // what the program is given next; after the last row, the sample
    this.base = this.x;
    this.memory = []; // newest first
  }

  // Take the prediction e at x and go on to the next row. Earlier x stay as they were.
  advance(e) {
    const { plan, row, x } = this,
      { columns, history } = plan;
    const [p, q, u, a, next, c] = ["p", "q", "u", "a", "a_next", "c"].map((name) => f(columns[name][row]));
    this.memory.unshift(x.map((value, i) => f(p * value) + f(q * e[i])));
    this.memory.length = Math.min(this.memory.length, history);
    this.base = this.add(
      x.map((value, i) => f(u * value) + f(a * this.base[i])),
      columns.b,
    );
    this.x = this.add(
      this.base.map((value) => next * value),
      columns.b_next,
    );
    if (columns.c[row] !== 0) {
      const z = this.noise(row);
      this.x = this.x.map((value, i) => value + f(c * z[i]));
    }
    this.row += 1;
  }

  // Add what the solver remembers, in place. A Float32Array rounds what is stored in it.
  add(sum, weights) {
    this.memory.forEach((m, j) => {
      const weight = f(weights[this.row * this.plan.history + j]);
      for (let i = 0; i < sum.length; i++) sum[i] = sum[i] + f(weight * m[i]);
    });
    return sum;
  }
}
