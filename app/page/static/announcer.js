// Tells screen readers what others see, once a second at most: words first, states where there are no words.

import { h } from "./dom.js";

const EVERY_MS = 1000;

export class Announcer {
  constructor() {
    this.element = h("p", { class: "sr-only", "aria-live": "polite", id: "most-live" });
    this._words = [];
    this._state = "";
    this._waiting = null;
  }

  /** What was heard, answered, or went wrong. */
  say(text) {
    this._words.push(text);
    this._soon();
  }

  /** What it does now: of no use any more once there are words, or another state. */
  state(text) {
    this._state = text;
    this._soon();
  }

  _soon() {
    this._waiting ??= setTimeout(() => {
      this._waiting = null;
      this.element.textContent = this._words.length ? this._words.join(" ") : this._state;
      this._words = [];
      this._state = "";
    }, EVERY_MS);
  }
}
