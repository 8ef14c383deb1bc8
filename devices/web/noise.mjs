// Unit Gaussian noise from (seed, image, row): edge_sd/diffusion/noise.py, to the bit.
//
// Philox-4×32-10 makes words of 32 bits, Box and Muller's transform makes values of them. JavaScript's numbers are float64 and
// no product is ever fused with a sum, so +, −, ×, ÷ and √ round as the specification says. ln, cos and sin are its series.

export const NAME = "philox4x32-10/box-muller";

const M0 = 0xd2511f53,
  M1 = 0xcd9e8d57,
  W0 = 0x9e3779b9,
  W1 = 0xbb67ae85;
const ROUNDS = 10;
const LN2 = 0.6931471805599453,
  HALF_PI = 1.5707963267948966,
  SQRT_HALF = 0.7071067811865476;
// Largest order first, as Horner's rule takes them.
const ATANH = Array.from({ length: 11 }, (_, k) => 1 / (2 * (10 - k) + 1));
const SIN = [1 / 355687428096000, -1 / 1307674368000, 1 / 6227020800, -1 / 39916800, 1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1];
const COS = [
  -1 / 6402373705728000,
  1 / 20922789888000,
  -1 / 87178291200,
  1 / 479001600,
  -1 / 3628800,
  1 / 40320,
  -1 / 720,
  1 / 24,
  -1 / 2,
  1,
];

// Upper and lower 32 bits of a product of two words, which float64 cannot hold whole.
function product(a, b) {
  const al = a & 0xffff,
    ah = a >>> 16,
    bl = b & 0xffff,
    bh = b >>> 16;
  const low = al * bl,
    first = al * bh,
    second = ah * bl;
  const middle = (low >>> 16) + (first & 0xffff) + (second & 0xffff);
  return [(ah * bh + (first >>> 16) + (second >>> 16) + Math.floor(middle / 65536)) >>> 0, Math.imul(a, b) >>> 0];
}

// 128 bits of counter, as four words, and 64 of key, as two, to four random words.
export function philox4x32(counter, key) {
  let [c0, c1, c2, c3] = counter,
    [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const [high0, low0] = product(c0, M0),
      [high1, low1] = product(c2, M1);
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

// `count` values of one image's noise, a Float32Array; seed and image are BigInt below 2⁶⁴, row −1 is where the loop starts.
export function gaussian(seed, image, row, count) {
  const values = new Float32Array(count),
    key = [low(seed), high(seed)];
  for (let block = 0; 4 * block < count; block++) {
    const words = philox4x32([block, row + 1, low(image), high(image)], key);
    const four = [...boxMuller(words[0], words[1]), ...boxMuller(words[2], words[3])];
    for (let i = 0; i < 4 && 4 * block + i < count; i++) values[4 * block + i] = four[i]; // rounded to float32 here
  }
  return values;
}

function low(value) {
  return Number(value & 0xffffffffn);
}

function high(value) {
  return Number(value >> 32n);
}

function boxMuller(w0, w1) {
  const radius = Math.sqrt(-2 * ln((2 * w0 + 1) * 2 ** -33));
  const t = ((w1 & 0x3fffffff) + 0.5) * 2 ** -30 * HALF_PI - HALF_PI / 2;
  const square = t * t,
    sin = t * series(square, SIN),
    cos = series(square, COS),
    turn = w1 >>> 30;
  const x = turn & 1 ? sin : cos,
    y = turn & 1 ? cos : sin;
  return [radius * (turn === 1 || turn === 2 ? -x : x), radius * (turn >= 2 ? -y : y)];
}

// Natural logarithm of 0 < u < 1: u = m·2ᵉ with √½ ≤ m < √2, and ln m = 2 artanh((m − 1)/(m + 1)).
function ln(u) {
  let m = u,
    e = 0;
  while (m < SQRT_HALF) {
    m *= 2;
    e -= 1;
  }
  const s = (m - 1) / (m + 1);
  return e * LN2 + 2 * s * series(s * s, ATANH);
}

function series(x, coefficients) {
  let total = coefficients[0];
  for (let i = 1; i < coefficients.length; i++) total = total * x + coefficients[i];
  return total;
}
