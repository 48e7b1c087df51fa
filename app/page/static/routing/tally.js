// What was counted of one turn's tokens so far: only those that came since are looked at again.

import { addKept, kept, keptShares, leakage, load, usedOf } from "./counts.js";

export class Tally {
  constructor(experts) {
    this._experts = experts;
    this._rows = null;
  }

  /** Count what is new of these Rows; other rows are counted from their beginning. */
  count(rows) {
    if (rows !== this._rows) {
      this._rows = rows;
      this.tokens = this.outside = this.decisions = 0;
      this.load = new Uint32Array(2 * this._experts.layers.length * this._experts.routed);
      this._kept = kept();
    }
    const [from, to] = [this.tokens, rows.length];
    if (from === to) return;
    const found = leakage(rows, this._experts, from, to);
    this.outside += found.outside;
    this.decisions += found.decisions;
    const more = load([{ rows, from, to }], this._experts);
    for (let i = 0; i < more.length; i++) this.load[i] += more[i];
    addKept(this._kept, rows, from, to);
    this.tokens = to;
  }

  /** {used, idle, all}: experts. */
  get used() {
    return usedOf(this.load, this._experts);
  }

  /** {text, audio}: {share, chance, pairs}. */
  get kept() {
    return keptShares(this._kept, this._experts);
  }
}
