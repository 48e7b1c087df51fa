// Tells screen readers what others see: the last thing of each second, not every flicker.

import { h } from "./dom.js";

const EVERY_MS = 1000;

export class Announcer {
  constructor() {
    this.element = h("p", { class: "sr-only", "aria-live": "polite", id: "most-live" });
    this._last = "";
    this._waiting = null;
  }

  say(text) {
    this._last = text;
    this._waiting ??= setTimeout(() => {
      this._waiting = null;
      this.element.textContent = this._last;
    }, EVERY_MS);
  }
}
