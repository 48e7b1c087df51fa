// What it is doing, to be read from two metres: a circle that moves with the voices, one large word, and one sentence.

import { button, h, icon } from "./dom.js";
import { say } from "./words.js";

const SHAPE = {
  idle: "microphone",
  connecting: "dots",
  queue: "dots",
  listening: "microphone",
  hearing: "microphone",
  thinking: "dots",
  speaking: "speaker",
  paused: "pause",
  muted: "microphone_off",
  hold: "microphone",
  typing_only: "keyboard",
  offline: "offline",
  saved: "file",
};
const COLOUR = {
  hold: "listening",
  typing_only: "idle",
  paused: "speaking",
  queue: "connecting",
  offline: "problem",
  saved: "idle",
};
// Pictures a second: the page shares its cores with the model, so each state has only as many as its motion needs.
const PICTURES_S = {
  thinking: 24,
  speaking: 24,
  hearing: 24,
  listening: 8,
  hold: 8,
  paused: 8,
  connecting: 12,
  queue: 12,
};
const CALM_S = 4; // for those who want no motion: how often the meters change
const BARS = 56;
const FLOOR_DB = -60; // what the meters show as nothing

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** 0 to 1, of decibels of full scale. */
function height(db) {
  return Math.min(Math.max(1 + db / -FLOOR_DB, 0), 1);
}

export class Stage {
  /** `does`: press(), release(), start(), end(), mute(), stop(), volume(0..1): what people ask for here. */
  constructor(does) {
    this.state = "";
    this._running = false;
    this._levels = new Float32Array(BARS); // of the microphone, the newest first
    this._heard = 0; // the microphone's loudness since the last picture
    this._loud = 0; // the speaker's
    this._canvas = h("canvas", { "aria-hidden": "true" });
    this._face = h("span", { class: "face" });
    this.circle = h("button", { type: "button", class: "circle", "data-action": "talk" }, this._canvas, this._face);
    this.word = h("p", { class: "state-word" });
    this.hint = h("p", { class: "state-hint" });
    this._problem = h("p", {});
    this._retry = button({ action: "retry", label: say("actions.retry"), onclick: () => does.retry() });
    this._dismiss = button({
      action: "dismiss",
      shape: "close",
      label: say("actions.dismiss"),
      quiet: true,
      onclick: () => this.problem(null),
    });
    this.alert = h(
      "div",
      { class: "problem", role: "alert", hidden: true },
      this._problem,
      h("div", { class: "row" }, this._retry, this._dismiss),
    );
    this.startButton = button({
      action: "start",
      shape: "microphone",
      label: say("actions.start"),
      onclick: () => does.start(),
    });
    this.startButton.classList.add("primary");
    this.endButton = button({ action: "end", shape: "close", label: say("actions.end"), onclick: () => does.end() });
    this.muteButton = button({
      action: "mute",
      shape: "microphone_off",
      label: say("actions.mute"),
      onclick: () => does.mute(),
    });
    this.stopButton = button({ action: "stop", shape: "stop", label: say("actions.stop"), onclick: () => does.stop() });
    this.volume = h("input", {
      type: "range",
      min: 0,
      max: 100,
      step: 5,
      id: "most-volume",
      oninput: () => does.volume(this.volume.value / 100),
    });
    this._meters = { microphone: meter("mine"), speaker: meter("its") };
    this.element = h(
      "section",
      { class: "stage", "aria-label": say("page.title") },
      h("h1", { class: "sr-only" }, say("tabs.title")),
      this.circle,
      h("div", { class: "state" }, this.word, this.hint),
      this.alert,
      h("div", { class: "controls" }, this.startButton, this.muteButton, this.stopButton, this.endButton),
      h(
        "div",
        { class: "meters" },
        h("span", {}, say("meters.microphone")),
        this._meters.microphone.element,
        h("span", {}, say("meters.speaker")),
        this._meters.speaker.element,
        h("label", { for: "most-volume" }, say("actions.volume")),
        this.volume,
      ),
      h("p", { class: "keys" }, say("actions.keys")),
    );
    this._hold(does);
    document.addEventListener("visibilitychange", () => this._move());
    still.addEventListener("change", () => this._move());
    const recolour = () => {
      this._colour = null;
      this._paint();
    };
    new MutationObserver(recolour).observe(document.body, { attributeFilter: ["class"] }); // the theme
    new ResizeObserver(() => this._paint()).observe(this.circle);
  }

  /**
   * Show a state. `values` fill its sentence in, `hint` may be another one. `running`: the microphone is wanted;
   * `connected`: there is something to end; `speaking`: something to stop.
   */
  show(state, values, { hint = state, running, connected, muted, speaking, holds }) {
    const changed = state !== this.state;
    const focus = document.activeElement;
    this.state = state;
    this._running = running;
    this.element.dataset.state = state;
    this.element.dataset.colour = COLOUR[state] ?? state;
    this.word.textContent = say(`states.${state}`);
    this.hint.textContent = say(`hints.${hint}`, values);
    this.circle.setAttribute("aria-label", say(running ? "actions.hold" : "actions.start"));
    this.circle.setAttribute("aria-pressed", String(holds));
    this.circle.disabled = state === "saved";
    this._offerStart();
    this.muteButton.hidden = !running;
    this.endButton.hidden = !running && !connected;
    this.stopButton.disabled = !speaking;
    this.stopButton.hidden = !running && !speaking;
    this.muteButton.setAttribute("aria-pressed", String(muted));
    if (focus?.hidden) this.circle.focus(); // what had it is gone: the keyboard goes on from here
    if (!changed) return;
    this._face.replaceChildren(icon(SHAPE[state]));
    this._colour = null;
    this._move();
  }

  /** A sentence about what went wrong; null takes it away. `again`: there is something to try again. */
  problem(text, again = false) {
    this.alert.hidden = !text;
    this._problem.textContent = text ?? "";
    this._retry.hidden = !again;
    this._offerStart();
  }

  /** Unless "try again" is offered, which would be the same. */
  _offerStart() {
    const retry = !this.alert.hidden && !this._retry.hidden;
    this.startButton.hidden = this._running || this.state === "saved" || retry;
  }

  /** The microphone's loudness. */
  heard(level) {
    this._heard = Math.max(this._heard, height(level));
  }

  /** What is speech for the detector. */
  threshold(level) {
    this._meters.microphone.mark(height(level));
  }

  /** How loud the reply is now. */
  spoke(level) {
    this._loud = height(level);
  }

  _hold(does) {
    const up = (event) => {
      if (this._held !== event.pointerId) return;
      this._held = null;
      does.release();
    };
    // Microphones and sound need a tap that is over, so it begins with a click; holding counts from then on.
    this.circle.addEventListener("click", (event) => {
      if (!this._running) does.start();
      else if (event.detail === 0) this._toggle(does); // of a screen reader or a voice, which cannot hold
    });
    this.circle.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this._running) return;
      this._held = event.pointerId;
      this.circle.setPointerCapture(event.pointerId);
      does.press();
    });
    this.circle.addEventListener("pointerup", up);
    this.circle.addEventListener("pointercancel", up);
    this.circle.addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch is no menu here
  }

  _toggle(does) {
    this._toggled = !this._toggled;
    if (this._toggled) does.press();
    else does.release();
  }

  _move() {
    clearTimeout(this._next);
    cancelAnimationFrame(this._frame);
    this._picture(0);
    const rate = still.matches ? CALM_S : PICTURES_S[this.state];
    if (!PICTURES_S[this.state] || document.hidden) return;
    const draw = (now) => {
      this._picture(still.matches ? 0 : now / 1000);
      this._next = setTimeout(() => (this._frame = requestAnimationFrame(draw)), 1000 / rate);
    };
    this._frame = requestAnimationFrame(draw);
  }

  /** One picture: the levels since the last one, and the circle. */
  _picture(time) {
    this._levels.copyWithin(1, 0, BARS - 1);
    this._levels[0] = this._heard;
    this._meters.microphone.show(this._heard);
    this._meters.speaker.show(this._loud);
    this._heard = 0;
    this._paint(time);
  }

  _paint(time = 0) {
    const size = this.circle.clientWidth;
    if (!size) return;
    const scale = Math.min(devicePixelRatio || 1, 2);
    const canvas = this._canvas;
    if (canvas.width !== Math.round(size * scale)) canvas.width = canvas.height = Math.round(size * scale);
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, size, size);
    pen.translate(size / 2, size / 2);
    this._colour ??= getComputedStyle(this.element).getPropertyValue("--state").trim();
    pen.fillStyle = pen.strokeStyle = this._colour;
    pen.lineCap = "round";
    (DRAWINGS[this.state] ?? DRAWINGS.idle)(pen, size / 2, time, this);
  }
}

function disc(pen, radius, alpha) {
  pen.globalAlpha = alpha;
  pen.beginPath();
  pen.arc(0, 0, radius, 0, 2 * Math.PI);
  pen.fill();
  pen.globalAlpha = 1;
}

function ring(pen, radius, width, from = 0, to = 2 * Math.PI, alpha = 1) {
  pen.globalAlpha = alpha;
  pen.lineWidth = width;
  pen.beginPath();
  pen.arc(0, 0, radius, from, to);
  pen.stroke();
  pen.globalAlpha = 1;
}

// Each state has a shape and a motion of its own, so that colour is never the only sign.
const DRAWINGS = {
  idle(pen, r) {
    disc(pen, 0.62 * r, 0.1);
    ring(pen, 0.62 * r, 2);
  },
  listening(pen, r, time) {
    const breath = 0.5 + 0.5 * Math.sin(1.6 * time);
    disc(pen, (0.62 + 0.05 * breath) * r, 0.12);
    ring(pen, 0.62 * r, 3);
    ring(pen, (0.7 + 0.12 * breath) * r, 1.5, 0, 2 * Math.PI, 0.45 * (1 - breath));
  },
  hearing(pen, r, time, stage) {
    disc(pen, 0.58 * r, 0.16);
    ring(pen, 0.58 * r, 3);
    pen.lineWidth = Math.max(0.022 * r, 2);
    for (let i = 0; i < BARS; i++) {
      // the newest sound is on top and runs down both sides
      const level = stage._levels[Math.min(2 * Math.min(i, BARS - i), BARS - 1)];
      const angle = (2 * Math.PI * i) / BARS - Math.PI / 2;
      const from = 0.66 * r;
      const to = from + (0.02 + 0.3 * level * level) * r;
      pen.beginPath();
      pen.moveTo(from * Math.cos(angle), from * Math.sin(angle));
      pen.lineTo(to * Math.cos(angle), to * Math.sin(angle));
      pen.stroke();
    }
  },
  thinking(pen, r, time) {
    disc(pen, 0.58 * r, 0.1);
    for (let i = 0; i < 3; i++) {
      const start = 2.4 * time * (i % 2 ? -0.7 : 1) + (2 * Math.PI * i) / 3;
      ring(pen, (0.62 + 0.1 * i) * r, 4, start, start + 1.5, 1 - 0.25 * i);
    }
  },
  speaking(pen, r, time, stage) {
    const loud = stage._loud * stage._loud;
    for (let i = 3; i > 0; i--) {
      const swell = 0.04 * Math.sin(5 * time - 1.1 * i);
      disc(pen, (0.56 + i * (0.05 + 0.09 * loud) + swell * loud) * r, 0.12);
    }
    disc(pen, (0.56 + 0.06 * loud) * r, 1);
  },
  paused(pen, r, time) {
    disc(pen, 0.56 * r, 0.35 + 0.1 * Math.sin(3 * time));
    ring(pen, 0.56 * r, 3);
  },
  muted(pen, r) {
    disc(pen, 0.62 * r, 0.08);
    pen.setLineDash([2, 8]);
    ring(pen, 0.62 * r, 3);
    pen.setLineDash([]);
  },
  connecting(pen, r, time) {
    ring(pen, 0.62 * r, 2, 0, 2 * Math.PI, 0.3);
    ring(pen, 0.62 * r, 4, 3 * time, 3 * time + 1);
  },
  offline(pen, r) {
    disc(pen, 0.62 * r, 0.1);
    pen.setLineDash([10, 8]);
    ring(pen, 0.62 * r, 3);
    pen.setLineDash([]);
  },
};
DRAWINGS.hold = DRAWINGS.listening;
DRAWINGS.queue = DRAWINGS.connecting;

function meter(modality) {
  const bar = h("i", {});
  const line = h("b", { hidden: true });
  return {
    element: h("span", { class: `meter ${modality}`, "aria-hidden": "true" }, bar, line),
    show: (share) => bar.style.setProperty("transform", `scaleX(${share.toFixed(2)})`),
    mark: (share) => {
      line.hidden = false;
      line.style.setProperty("left", `${(100 * share).toFixed(0)}%`);
    },
  };
}
