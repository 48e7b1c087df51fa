// A stream of mono sound at another sampling rate, the same filter as app/audio.py's Resampler: flat up to .9 of the
// lower rate's band, 65 dB down from 1.1 of it, late by 20 samples of the lower rate (.83 ms at 24 kHz).

const HALF_TAPS = 20; // samples of the lower rate on each side of the middle
const BETA = 0.1102 * (65 - 8.7); // of the Kaiser window, for 65 dB

export class Resampler {
  constructor(fromRate, toRate) {
    const from = Math.round(fromRate), to = Math.round(toRate);
    const common = greatestCommonDivisor(from, to);
    this.up = to / common;
    this.down = from / common;
    this.weights = phasesOf(this.up, this.down); // for each phase `reach` weights, the oldest sample's first
    this.reach = this.weights.length / this.up;
    this.delay = from === to ? 0 : HALF_TAPS * Math.max(this.up, this.down); // at `up` times the input's rate
    this.kept = new Float32Array(this.reach + 4096);
    this.reset();
  }

  // Begin another stream.
  reset() {
    this.kept.fill(0, 0, this.reach);
    this.length = this.reach; // of what is kept: silence came before
    this.place = this.reach + Math.floor(this.delay / this.up); // in `kept`, of the newest sample the next output needs
    this.phase = this.delay % this.up;
    this.given = this.made = 0;
  }

  // What is ready by now; it does not depend on how the sound is cut into pieces.
  push(samples) {
    const made = new Float32Array(this.most(samples.length));
    return made.subarray(0, this.write(samples, made));
  }

  // The rest of the stream, so that as much comes out as went in; the next `push` begins another.
  finish() {
    const made = new Float32Array(this.most(this.reach));
    return made.subarray(0, this.finishInto(made));
  }

  // How much may come out of `count` samples at most.
  most(count) {
    return Math.ceil((count * this.up) / this.down) + 1;
  }

  // As `push`, into an array that has room; how many were written. What runs on the audio thread allocates nothing so.
  write(samples, into, at = 0) {
    this.given += samples.length;
    return this.#convert(samples, into, at, Infinity);
  }

  finishInto(into, at = 0) {
    const left = Math.round((this.given * this.up) / this.down) - this.made;
    const count = this.#convert(new Float32Array(this.reach + this.down), into, at, left);
    this.reset();
    return count;
  }

  #convert(samples, into, at, limit) {
    const { reach, weights, up, down } = this;
    const done = Math.max(Math.min(this.place - reach + 1, this.length), 0); // no output needs what came before
    if (this.length - done + samples.length > this.kept.length) {
      const larger = new Float32Array(2 * (this.length - done + samples.length));
      larger.set(this.kept.subarray(done, this.length));
      this.kept = larger;
    } else this.kept.copyWithin(0, done, this.length);
    this.length -= done;
    this.place -= done;
    this.kept.set(samples, this.length);
    this.length += samples.length;
    const kept = this.kept;
    let written = 0;
    while (this.place < this.length && written < limit) {
      const first = this.place - reach + 1, row = this.phase * reach;
      let sum = 0;
      for (let tap = 0; tap < reach; tap++) sum += weights[row + tap] * kept[first + tap];
      into[at + written++] = sum;
      this.phase += down;
      const step = Math.floor(this.phase / up);
      this.place += step;
      this.phase -= step * up;
    }
    this.made += written;
    return written;
  }
}

// A whole sound at another rate.
export function resampled(samples, fromRate, toRate) {
  if (fromRate === toRate) return samples;
  const resampler = new Resampler(fromRate, toRate);
  const most = resampler.push(samples), rest = resampler.finish();
  const all = new Float32Array(most.length + rest.length);
  all.set(most);
  all.set(rest, most.length);
  return all;
}

function phasesOf(up, down) {
  const slower = Math.max(up, down);
  if (slower === 1) return Float32Array.of(1);
  const middle = HALF_TAPS * slower, taps = new Float64Array(2 * middle + 1);
  let sum = 0;
  for (let n = 0; n < taps.length; n++) {
    const x = (n - middle) / slower;
    const sinc = x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
    taps[n] = sinc * bessel(BETA * Math.sqrt(Math.max(1 - (x / HALF_TAPS) ** 2, 0)));
    sum += taps[n];
  }
  const reach = Math.ceil(taps.length / up), weights = new Float32Array(reach * up);
  for (let n = 0; n < taps.length; n++)
    weights[(n % up) * reach + reach - 1 - Math.floor(n / up)] = (up * taps[n]) / sum;
  return weights;
}

// The modified Bessel function of the first kind and order 0.
function bessel(x) {
  let sum = 1, term = 1;
  for (let k = 1; term > 1e-12 * sum; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

function greatestCommonDivisor(a, b) {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
