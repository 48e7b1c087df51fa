// The reply's way to the speaker: a queue that waits a little so that sound which comes unevenly is played evenly.
//
// It knows one turn at a time, the one that was last told to play; sound of others is dropped here, where nothing can
// be in flight any more. Sound waits as it came and is resampled as it is played, so that a long reply which comes at
// once does not hold the audio thread up.

import { Resampler } from "./resampler.js";

const RATE = 24_000; // of what comes
const FIRST_TARGET_MS = 60; // buffered before the first sample: some replies begin with 40 ms, the next due in 30
const LARGEST_TARGET_MS = 800;
const GROWTH = 2; // of the target after an underrun
const SHRINKAGE = 0.8; // ... after each reply without one: slowly, for a network that was bad once will be so again
const FADE_MS = 5; // shorter clicks, longer is heard as late
const PIECE = 128; // samples that are resampled at once
const PROGRESS_MS = 100;
const SILENCE_DB = -100;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(RATE, sampleRate);
    this.fade = Math.round((sampleRate * FADE_MS) / 1000);
    this.piece = new Float32Array(PIECE);
    this.ready = new Float32Array(this.fade + this.resampler.most(2 * PIECE) + 4096); // beside the quantum asked for
    this.tail = new Float32Array(this.fade); // what still fades out, whatever comes after it
    this.tailLeft = 0;
    this.target = FIRST_TARGET_MS;
    this.turn = null;
    this.closed = false;
    this.forget();
    this.port.onmessage = (event) => this.take(event.data);
  }

  // Everything about a turn.
  forget() {
    this.waiting = []; // Int16Arrays
    this.waitingFrom = 0; // of the first of them, what was taken
    this.waitingCount = 0; // samples of all
    this.readyFrom = this.readyTo = 0; // resampled, not played
    this.resampler.reset();
    this.complete = false; // `end` was said
    this.flushed = false; // ... and the resampler emptied
    this.filling = true; // waiting until enough is buffered
    this.starved = false; // ... since all was played before more came
    this.paused = false;
    this.started = false;
    this.cameAt = null; // frame of the first sound's coming
    this.played = 0; // samples at the context's rate
    this.underruns = 0;
    this.gain = 1;
    this.energy = this.measured = 0; // of what was played since the last progress
  }

  take(message) {
    if (message.type === "close") return (this.closed = true);
    if (message.type === "play") {
      if (message.turn === this.turn) return; // told twice: it goes on
      this.stop();
      this.turn = message.turn;
    } else if (message.type === "stop") this.stop();
    else if (message.turn !== this.turn) return; // of a turn that is over, or not begun
    else if (message.type === "sound") this.enqueue(new Int16Array(message.pcm));
    else if (message.type === "end") this.end();
    else if (message.type === "pause") this.pause();
    else if (message.type === "resume") this.resume();
  }

  enqueue(samples) {
    if (!samples.length || this.complete) return;
    this.cameAt ??= currentFrame;
    this.waiting.push(samples);
    this.waitingCount += samples.length;
    if (!this.starved) return;
    // Only now was it an underrun: had `end` come instead, then the reply would just have been over.
    this.starved = false;
    this.underruns++;
    this.target = Math.min(this.target * GROWTH, LARGEST_TARGET_MS);
    this.port.postMessage({ type: "underrun", turn: this.turn, underruns: this.underruns, target_ms: this.target });
  }

  end() {
    this.complete = true;
    if (!this.starved) return;
    // The last milliseconds were held back for a fade and have faded out: they would be a blip after a gap.
    this.prepare(Infinity);
    this.played += this.readyTo - this.readyFrom;
    this.readyFrom = this.readyTo;
  }

  pause() {
    if (this.paused) return;
    this.fadeOut();
    this.paused = true;
  }

  resume() {
    this.paused = false;
  }

  stop() {
    this.fadeOut();
    if (this.turn !== null) this.port.postMessage({ type: "stopped", turn: this.turn, played_ms: this.playedMs() });
    this.turn = null;
    this.forget();
  }

  // Let what would be heard next fade out, without moving on: who resumes hears those milliseconds again, fading in, so
  // that each sample is heard at full weight in sum.
  fadeOut() {
    if (!this.sounding()) return;
    this.prepare(this.fade);
    const count = Math.min(this.fade, this.readyTo - this.readyFrom);
    this.tail.copyWithin(0, this.fade - this.tailLeft); // a former one may not be over
    this.tail.fill(0, this.tailLeft);
    for (let n = 0; n < count; n++) {
      const gain = this.gain * (1 - (n + 1) / this.fade);
      this.tail[n] += gain * this.ready[this.readyFrom + n];
    }
    this.tailLeft = this.fade;
    this.gain = 0;
  }

  sounding() {
    return this.turn !== null && !this.paused && !this.filling;
  }

  bufferedMs() {
    return (1000 * this.waitingCount) / RATE + (1000 * (this.readyTo - this.readyFrom)) / sampleRate;
  }

  playedMs() {
    return (1000 * this.played) / sampleRate;
  }

  // Have `count` samples ready if so many are there; whether they are.
  prepare(count) {
    while (this.readyTo - this.readyFrom < count && this.waitingCount > 0) {
      this.ready.copyWithin(0, this.readyFrom, this.readyTo);
      this.readyTo -= this.readyFrom;
      this.readyFrom = 0;
      const samples = this.waiting[0], size = Math.min(PIECE, samples.length - this.waitingFrom);
      for (let n = 0; n < size; n++) this.piece[n] = samples[this.waitingFrom + n] / 32768;
      this.waitingFrom += size;
      this.waitingCount -= size;
      if (this.waitingFrom === samples.length) {
        this.waiting.shift();
        this.waitingFrom = 0;
      }
      const given = size === PIECE ? this.piece : this.piece.subarray(0, size);
      this.readyTo += this.resampler.write(given, this.ready, this.readyTo);
    }
    if (this.complete && !this.flushed && this.waitingCount === 0) {
      this.readyTo += this.resampler.finishInto(this.ready, this.readyTo);
      this.flushed = true;
    }
    return this.readyTo - this.readyFrom >= count;
  }

  process(_, outputs) {
    const output = outputs[0][0];
    if (this.turn !== null && !this.paused) this.fill(output);
    this.playTail(output);
    return !this.closed;
  }

  fill(output) {
    if (this.filling) {
      if (!this.complete && this.bufferedMs() < this.target) return;
      this.filling = false;
      if (!this.started && this.bufferedMs() > 0) {
        this.started = true;
        const delay_ms = (1000 * (currentFrame - this.cameAt)) / sampleRate;
        this.port.postMessage({ type: "started", turn: this.turn, delay_ms });
      }
    }
    const size = output.length;
    // As long as more may come, enough for a fade is held back: who starves falls silent without a click.
    if (!this.prepare(this.complete ? size : size + this.fade) && !this.complete) {
      this.fadeOut();
      this.filling = this.starved = true;
      return;
    }
    const count = Math.min(size, this.readyTo - this.readyFrom);
    for (let n = 0; n < count; n++) {
      if (this.gain < 1) this.gain = Math.min(this.gain + 1 / this.fade, 1);
      const sample = this.ready[this.readyFrom + n] * this.gain;
      output[n] = sample;
      this.energy += sample * sample;
    }
    this.readyFrom += count;
    this.played += count;
    this.measured += count;
    if (this.complete && this.waitingCount === 0 && this.readyTo === this.readyFrom) this.finish();
    else if (this.measured >= (sampleRate * PROGRESS_MS) / 1000) this.tell();
  }

  playTail(output) {
    const count = Math.min(output.length, this.tailLeft), from = this.fade - this.tailLeft;
    for (let n = 0; n < count; n++) output[n] += this.tail[from + n];
    this.tailLeft -= count;
  }

  tell() {
    const level_db = Math.max(10 * Math.log10(this.energy / this.measured), SILENCE_DB);
    this.energy = this.measured = 0;
    const buffered_ms = this.bufferedMs();
    this.port.postMessage({ type: "progress", turn: this.turn, played_ms: this.playedMs(), level_db, buffered_ms });
  }

  finish() {
    if (this.underruns === 0) this.target = Math.max(this.target * SHRINKAGE, FIRST_TARGET_MS);
    this.port.postMessage({ type: "ended", turn: this.turn, played_ms: this.playedMs() });
    this.turn = null;
    this.forget();
  }
}

registerProcessor("most-playback", Playback);
