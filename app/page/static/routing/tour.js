// What one sees, explained in a minute: one part after the other is framed, with a few sentences about it.

import { button, h } from "../dom.js";
import { say } from "../words.js";

// What is explained, by its data-part in the view; what is not there is passed over.
const STEPS = ["ribbon", "modality", "banks", "counts", "leakage", "ghosts", "card"];
const STEP_S = 8.5; // that reading takes
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Tour {
  /** `room`: the element that holds the parts. */
  constructor(room) {
    this._room = room;
    this._parts = [];
    this._at = 0;
    this._words = h("p", { id: "most-tour-words" });
    this._count = h("span", { class: "soft" });
    this._bar = h("i", {});
    this._back = button({ action: "tour-back", label: say("tour.back"), onclick: () => this._go(this._at - 1) });
    this._next = button({ action: "tour-next", label: say("tour.next"), onclick: () => this._go(this._at + 1) });
    this._next.classList.add("primary");
    this._title = h("h3", { id: "most-tour-title" });
    this.element = h(
      "div",
      {
        class: "tour",
        role: "dialog",
        "aria-labelledby": "most-tour-title",
        "aria-describedby": "most-tour-words",
        tabindex: -1,
        hidden: true,
      },
      h("span", { class: "tour-bar", "aria-hidden": "true" }, this._bar),
      this._title,
      h("div", { "aria-live": "polite" }, this._words),
      h(
        "div",
        { class: "row" },
        this._count,
        button({ action: "tour-end", label: say("tour.end"), onclick: () => this.end() }),
        this._back,
        this._next,
      ),
    );
    this.element.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) this._go(this._at + step);
      else if (event.key === "Escape") this.end();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    // Who reads slowly, or looks for themselves, is not hurried.
    for (const kind of ["pointerenter", "focusin"]) this.element.addEventListener(kind, () => this._wait());
  }

  get runs() {
    return !this.element.hidden;
  }

  /** From the first part on. It goes on by itself until somebody touches it. */
  begin() {
    this._before = document.activeElement;
    this._parts = STEPS.filter((name) => this._part(name));
    this._goesOn = !still.matches;
    this.element.hidden = false;
    this._go(0);
    if (!this._goesOn) this.element.focus();
  }

  /** Put it away; the keyboard goes on where it was. */
  end() {
    if (!this.runs) return;
    const inside = this.element.contains(document.activeElement);
    clearTimeout(this._timer);
    this._frame(null);
    this.element.hidden = true;
    if (inside && this._before?.isConnected) this._before.focus();
  }

  _part(name) {
    const part = this._room.querySelector(`[data-part="${name}"]`);
    return part?.getClientRects().length ? part : null;
  }

  _go(to) {
    if (to >= this._parts.length) return this.end();
    this._at = Math.max(to, 0);
    const name = this._parts[this._at];
    this._title.textContent = say(`tour.steps.${name}.title`);
    this._words.textContent = say(`tour.steps.${name}.words`);
    this._count.textContent = say("tour.count", { step: this._at + 1, steps: this._parts.length });
    this._back.disabled = this._at === 0;
    this._next.querySelector("span").textContent = say(
      this._at === this._parts.length - 1 ? "tour.done" : "tour.next",
    );
    const part = this._part(name);
    this._frame(part);
    part?.scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
    this._run();
  }

  _frame(part) {
    this._framed?.removeAttribute("data-framed");
    part?.setAttribute("data-framed", "");
    this._framed = part;
  }

  _run() {
    clearTimeout(this._timer);
    this._bar.style.animation = "none";
    if (!this._goesOn) return;
    void this._bar.offsetWidth; // begins anew
    this._bar.style.animation = `most-tour ${STEP_S}s linear forwards`;
    this._timer = setTimeout(() => this._go(this._at + 1), 1000 * STEP_S);
  }

  _wait() {
    if (!this._goesOn) return;
    this._goesOn = false;
    this._run();
  }
}
