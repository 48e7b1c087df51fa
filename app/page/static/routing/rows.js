// Which experts took which tokens, as far as the page knows: what the socket tells while a turn goes on, and the exact
// trace once it is over. Knows neither the page nor how any of it is drawn.

import { bytesOf } from "../turns.js";

export const NO_EXPERT = 255; // an empty slot
export const TEXT = 0;
export const AUDIO = 1;
const TOLD = ["modality", "role", "text", "start_ms", "end_ms"]; // of each token, at once

/** The tokens of one turn from its prompt on. T tokens, L MoE layers, K experts a token, W ranked ones. */
export class Rows {
  /** `layers`: decoder layer numbers; `k`: experts a token; `wide`: ranked ones, 0 as long as only K are known. */
  constructor(layers, k, wide = 0) {
    this.layers = layers;
    this.k = k;
    this.wide = wide;
    this.first = 0; // its first token's number in the trace
    this.provisional = false; // it will come again, as it was truly taken
    this.known = 0; // of its tokens, from the first on: those that came before, in the rows that these replace
    this.modality = []; // of each token, as are the next seven: TEXT or AUDIO
    this.role = [];
    this.text = [];
    this.start_ms = []; // in its own sound, null where it has no time
    this.end_ms = [];
    this.logprob = []; // null where unknown
    this.id = []; // null as long as it is not exact, as the next one
    this.turn = []; // its message in what the model read, counted from 0
    this.chosen = new Bytes(); // [T, L, K], strongest first
    this.weights = new Bytes(); // [T, L, K], probability x 255
    this.unmasked = new Bytes(); // [T, L, K], what it would have chosen without the mask
    this.removed = new Bytes(); // [T, L], probability that the mask took away, x 255
    this.exact = null; // {probs, ranked, ranked_probs, unmasked, unmasked_probs, removed, entropy} once it is over
  }

  get length() {
    return this.modality.length;
  }

  /** Whether these are other kinds of rows: of another model. */
  differs(layers, k) {
    return k !== this.k || layers.length !== this.layers.length || layers.some((layer, i) => layer !== this.layers[i]);
  }

  /** Where the experts of a token and layer (both counted from 0) begin in `chosen`, `weights`, `unmasked`. */
  at(token, layer) {
    return (token * this.layers.length + layer) * this.k;
  }

  /** The experts that took a token in a layer: [{expert, share}], strongest first; `share` is its probability. */
  taken(token, layer) {
    const from = this.at(token, layer);
    const found = [];
    for (let i = from; i < from + this.k; i++) {
      const expert = this.chosen.view[i];
      const share = this.exact ? this.exact.probs[i] : this.weights.view[i] / 255;
      if (expert !== NO_EXPERT) found.push({ expert, share });
    }
    return found;
  }

  /** Append the tokens of a `most.routing.delta`. */
  push(event) {
    const tell = (name, values) => this[name].push(...values);
    for (const name of TOLD) tell(name, event[name]);
    for (const name of ["logprob", "id", "turn"]) tell(name, event.modality.map(() => null));
    this.chosen.push(bytesOf(event.experts));
    this.weights.push(bytesOf(event.weights));
    this.unmasked.push(bytesOf(event.unmasked));
    this.removed.push(bytesOf(event.removed));
  }

  /** All of a trace that is over: the server's answer to POST page/trace. */
  static exactly(trace) {
    const { tokens, experts, k, wide } = trace;
    const rows = new Rows(experts.layers, k, wide);
    rows.first = tokens.token[0] ?? 0;
    for (const name of [...TOLD, "logprob", "id", "turn"]) rows[name] = tokens[name];
    const ranked = bytesOf(trace.unmasked);
    const probs = floatsOf(trace.chosen_probs);
    const removed = floatsOf(trace.removed);
    const cells = removed.length;
    const unmasked = new Uint8Array(cells * k);
    for (let cell = 0; cell < cells; cell++) unmasked.set(ranked.subarray(cell * wide, cell * wide + k), cell * k);
    rows.chosen.push(bytesOf(trace.chosen));
    rows.weights.push(Uint8Array.from(probs, share));
    rows.unmasked.push(unmasked);
    rows.removed.push(Uint8Array.from(removed, share));
    rows.exact = {
      probs,
      ranked: bytesOf(trace.ranked),
      ranked_probs: floatsOf(trace.ranked_probs),
      unmasked: ranked,
      unmasked_probs: floatsOf(trace.unmasked_probs),
      removed,
      entropy: floatsOf(trace.entropy),
    };
    return rows;
  }
}

const share = (value) => Math.round(255 * Math.min(Math.max(value, 0), 1));

/** Base64 of little-endian float32 to numbers. */
function floatsOf(base64) {
  return new Float32Array(bytesOf(base64).buffer);
}

/** Bytes that grow: `view` is what is there. */
class Bytes {
  constructor() {
    this._room = new Uint8Array(1024);
    this.view = this._room.subarray(0, 0);
  }

  push(more) {
    const length = this.view.length + more.length;
    if (length > this._room.length) {
      const room = new Uint8Array(Math.max(length, 2 * this._room.length));
      room.set(this.view);
      this._room = room;
    }
    this._room.set(more, this.view.length);
    this.view = this._room.subarray(0, length);
  }
}

/** The routing of a conversation, turn by turn. Turns are those of turns.js, as keys. */
export class Routing {
  /** `changed(turn)`: there is more of this turn, null: of what is being said now. */
  constructor(changed = () => {}) {
    this._changed = changed;
    this.clear();
  }

  /** Forget all. */
  clear() {
    this._of = new Map();
    this.experts = new Map(); // of turns whose trace tells them: turn to {layers, routed, groups, ...}
    this.pending = null; // Rows of what is being said now
    this.count = 0; // tokens taken so far, provisional ones each time they come
    this.came = 0; // the same, but what comes again counts only as far as it grew
    this.lost = 0; // tokens and events that never came, by their numbers
    this.forgetConnection();
  }

  /** Another connection begins, which counts from one. */
  forgetConnection() {
    this._sequence = null;
    this.pending = null;
  }

  /** The rows of a turn, or null. */
  of(turn) {
    return this._of.get(turn) ?? null;
  }

  /** Take any event: `turn` is whose it is, null while it is being said. Only those called most.* are numbered. */
  take(event, turn) {
    if (!event.type.startsWith("most.")) return;
    if (this._sequence !== null) this.lost += Math.max(event.sequence - this._sequence - 1, 0);
    this._sequence = event.sequence;
    if (event.type !== "most.routing.delta" || (!event.provisional && !turn)) return;
    let rows = event.provisional ? this.pending : this.of(turn);
    const first = event.first_token;
    if (!rows || first === 0 || rows.differs(event.layers, event.k) || rows.provisional !== event.provisional) {
      const { pending } = this;
      rows = new Rows(event.layers, event.k);
      rows.provisional = event.provisional;
      rows.known = pending ? Math.max(pending.length, pending.known) : 0;
      if (event.provisional) this.pending = rows;
      else {
        this.pending = null;
        this._of.set(turn, rows);
      }
    }
    this.lost += Math.max(first - rows.length, 0);
    const before = Math.max(rows.length, rows.known);
    rows.push(event);
    this.count += event.modality.length;
    this.came += Math.max(rows.length, rows.known) - before;
    this._changed(event.provisional ? null : turn);
  }

  /** A turn's trace is here, whole and exact: the server's answer to POST page/trace. */
  give(turn, trace) {
    this._of.set(turn, Rows.exactly(trace));
    this.experts.set(turn, trace.experts);
    this._changed(turn);
  }

  /** A turn is gone. */
  forget(turn) {
    this._of.delete(turn);
    this.experts.delete(turn);
  }

  /** What was being said came to nothing. */
  forgetPending() {
    if (!this.pending) return;
    this.pending = null;
    this._changed(null);
  }
}
