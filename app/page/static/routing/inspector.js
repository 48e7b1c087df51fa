// One token, one expert, or a span of tokens, looked at closely.

import { h } from "../dom.js";

export class Inspector {
  /** `routing`: a Routing; `facts`: the server's. `does`: see view.js. */
  constructor(facts, routing, does) {
    this._facts = facts;
    this._routing = routing;
    this._does = does;
    this.element = h("section", { class: "inspector", hidden: true });
  }

  /** Look at {turn, token, layer} (counted from 0 in the turn's Rows); null: at nothing. */
  show(selection) {
    this.selection = selection;
  }

  /** Look at an expert: {layer (decoder number), expert}. */
  showExpert(expert) {
    this.expert = expert;
  }

  /** Look at all tokens from {turn, token} to {turn, token}, both included; null: at no span. */
  showSpan(span) {
    this.span = span;
  }

  /** There is more of a turn, or its exact trace came. */
  changed(turn) {
    if (this.selection?.turn === turn) this.show(this.selection);
  }
}
