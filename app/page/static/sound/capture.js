// The microphone's way to the server: mono PCM16 at 24 kHz in pieces of 20 ms, each with its level.

import { Resampler } from "./resampler.js";

const RATE = 24_000;
const PIECE = RATE / 50; // what the server's examples and its clients send
const SILENCE_DB = -100; // what digital silence is called

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.open = true;
    this.resampler = new Resampler(sampleRate, RATE);
    this.heard = new Float32Array(this.resampler.most(128)); // grows where a browser has larger quanta
    this.begin();
    this.port.onmessage = () => (this.open = false); // the one message that is sent here: closed
  }

  // Pieces are handed over, not copied, so each is a new one: the only thing this allocates.
  begin() {
    this.piece = new Int16Array(PIECE);
    this.filled = 0;
    this.energy = 0;
  }

  process(inputs) {
    const channel = inputs[0][0]; // the node is asked to mix down to one
    if (!channel) return this.open; // the microphone gives nothing yet
    if (this.heard.length < this.resampler.most(channel.length))
      this.heard = new Float32Array(this.resampler.most(channel.length));
    const count = this.resampler.write(channel, this.heard);
    for (let n = 0; n < count; n++) {
      const sample = this.heard[n];
      this.energy += sample * sample;
      this.piece[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
      if (this.filled === PIECE) this.send();
    }
    return this.open;
  }

  send() {
    const level_db = Math.max(10 * Math.log10(this.energy / PIECE), SILENCE_DB);
    if (this.open) this.port.postMessage({ pcm: this.piece.buffer, level_db }, [this.piece.buffer]);
    this.begin();
  }
}

registerProcessor("most-capture", Capture);
