// SHA-256 (FIPS 180-4) of an ArrayBuffer, as hexadecimal digits: the browser's own, or, where a page is not from this machine and
// not encrypted and so has none, this one.

const PRIMES = firstPrimes(64);
const K = Uint32Array.from(PRIMES, (prime) => fraction(Math.cbrt(prime)));
const START = Uint32Array.from(PRIMES.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));

export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) return sha256Here(bytes);
  return hexadecimal(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
}

export function sha256Here(bytes) {
  const state = START.slice(),
    words = new Uint32Array(64),
    size = bytes.byteLength;
  const whole = size - (size % 64),
    input = new DataView(bytes);
  for (let at = 0; at < whole; at += 64) compress(state, words, input, at);
  // The rest, a one, zeros, and the length in bits.
  const tail = new Uint8Array(size - whole < 56 ? 64 : 128),
    view = new DataView(tail.buffer);
  tail.set(new Uint8Array(bytes, whole));
  tail[size - whole] = 0x80;
  view.setBigUint64(tail.length - 8, BigInt(size) * 8n);
  for (let at = 0; at < tail.length; at += 64) compress(state, words, view, at);
  const digest = new DataView(new ArrayBuffer(32));
  state.forEach((word, i) => digest.setUint32(4 * i, word));
  return hexadecimal(new Uint8Array(digest.buffer));
}

function compress(state, w, input, at) {
  for (let i = 0; i < 16; i++) w[i] = input.getUint32(at + 4 * i);
  for (let i = 16; i < 64; i++) {
    const early = w[i - 15],
      late = w[i - 2];
    const s0 = ((early >>> 7) | (early << 25)) ^ ((early >>> 18) | (early << 14)) ^ (early >>> 3);
    const s1 = ((late >>> 17) | (late << 15)) ^ ((late >>> 19) | (late << 13)) ^ (late >>> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; i++) {
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const first = (h + s1 + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const second = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + second) | 0];
  }
  [a, b, c, d, e, f, g, h].forEach((value, i) => (state[i] += value));
}

// The first 32 bits behind the point. cbrt and sqrt are exact to some 50 bits here, of which 35 are used.
function fraction(value) {
  return Math.floor((value - Math.floor(value)) * 2 ** 32);
}

function firstPrimes(count) {
  const primes = [];
  for (let n = 2; primes.length < count; n++) if (primes.every((prime) => n % prime)) primes.push(n);
  return primes;
}

function hexadecimal(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
