// Decibels and percentiles as edge_sd/evaluation/metrics.py and NumPy define them.

export const SAME_DB = 200; // what equal arrays read

// 10·log10(Σ reference² / Σ (reference − other)²), at most SAME_DB; −SAME_DB where either is not finite.
export function snrDb(reference, other) {
  let signal = 0,
    noise = 0;
  for (let i = 0; i < reference.length; i++) {
    if (!Number.isFinite(reference[i]) || !Number.isFinite(other[i])) return -SAME_DB;
    const difference = reference[i] - other[i];
    signal += reference[i] * reference[i];
    noise += difference * difference;
  }
  if (noise === 0) return SAME_DB;
  return Math.max(-SAME_DB, Math.min(SAME_DB, 10 * Math.log10(Math.max(signal, 1e-300) / noise)));
}

// Linear between the two values beside it, as numpy.percentile.
export function percentile(values, percent) {
  const sorted = Float64Array.from(values).sort(),
    place = ((sorted.length - 1) * percent) / 100,
    below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
}
