// All experts at their places, text's on the left, sound's on the right: they glow when they are chosen. Between them
// the rail of those that every token meets.

import { h } from "../dom.js";
import { say } from "../words.js";
import { calm, colours, fit, hatching, step } from "./paint.js";
import { AUDIO, NO_EXPERT, TEXT } from "./rows.js";

const FADES_MS = 600; // a glow is down to 37 % after so long
const FAINT = 0.4; // below this a glow is seen through
const DARK = 0.03; // what counts as no glow
const GUTTER = 20; // for the layers' numbers
const HEAD = 16; // for what the banks are
const RAIL = 22; // where the shared experts are
const NUMBERED = 13; // pixels a number needs
const FIGURES = "ui-monospace, 'DejaVu Sans Mono', monospace";
const FONT = "system-ui, sans-serif";

export class Banks {
  /** `does`: selectExpert({layer, expert} | null), tell(words), soon() (draw again). */
  constructor(experts, does) {
    this._does = does;
    this._off = [];
    this._canvas = h("canvas", {});
    this.element = h(
      "div",
      { class: "banks", tabindex: 0, role: "application", "aria-label": say("routing.banks") },
      this._canvas,
    );
    this.selected = null; // {layer (decoder number), expert}
    this._wide = false;
    this.experts = experts;
    this._listen();
    new ResizeObserver(() => this._resized()).observe(this.element);
  }

  /** The experts of another model. */
  set experts(experts) {
    this._experts = experts;
    const cells = experts.layers.length * experts.routed;
    this._glow = new Float32Array(cells); // of what is chosen now, as are the next two [L, E]
    this._steady = new Float32Array(cells); // what is shown when nothing glows
    this._side = new Uint8Array(cells); // the modality that meets it; in a plain model all of the left bank
    experts.groups.forEach((group, layer) => {
      if (experts.apart) for (const expert of group.audio) this._side[layer * experts.routed + expert] = AUDIO;
    });
    this._banks = experts.groups.map((group) =>
      experts.apart ? [group.text, group.audio] : [Array.from({ length: experts.routed }, (_, expert) => expert)],
    );
    this._base = null;
    this._resized();
  }

  get experts() {
    return this._experts;
  }

  /** Experts that are crossed out: [[layer, expert], ..], layers by their numbers in the decoder. */
  set off(off) {
    this._off = off;
    this._does.soon();
  }

  set wide(wide) {
    this._wide = wide;
    this._resized();
  }

  /** Tokens from..to of some Rows were taken: their experts light up. */
  glow(rows, from, to) {
    const { layers, k } = rows;
    const { routed } = this._experts;
    const [chosen, weights] = [rows.chosen.view, rows.weights.view];
    for (let at = rows.at(from, 0); at < rows.at(to, 0); at++) {
      const expert = chosen[at];
      if (expert >= routed) continue;
      const cell = (Math.floor(at / k) % layers.length) * routed + expert;
      const light = 0.4 + (0.6 * weights[at]) / 255;
      if (light > this._glow[cell]) this._glow[cell] = light;
    }
  }

  /** What is shown when nothing glows: the experts of one token of some Rows. */
  showToken(rows, token) {
    this._steady.fill(0);
    for (let layer = 0; layer < rows.layers.length; layer++) {
      const from = rows.at(token, layer);
      for (let at = from; at < from + rows.k; at++) {
        const expert = rows.chosen.view[at];
        if (expert === NO_EXPERT) continue;
        this._steady[layer * this._experts.routed + expert] = 0.25 + (0.75 * rows.weights.view[at]) / 255;
      }
    }
  }

  /** The same: how often each was chosen, by a load [2, L, E] of counts.js; null: nothing. */
  showLoad(load) {
    this._steady.fill(0);
    if (!load) return;
    const { routed } = this._experts;
    const cells = this._steady.length;
    for (let row = 0; row < cells; row += routed) {
      for (const side of [TEXT, AUDIO]) {
        let most = 0;
        for (let cell = row; cell < row + routed; cell++) {
          if (!this._experts.apart || this._side[cell] === side) most = Math.max(most, load[cell] + load[cells + cell]);
        }
        for (let cell = row; most && cell < row + routed; cell++) {
          const count = load[cell] + load[cells + cell];
          if (!count || (this._experts.apart && this._side[cell] !== side)) continue;
          this._steady[cell] = DARK + 0.8 * (count / most);
        }
      }
    }
  }

  _resized() {
    this._width = this.element.clientWidth;
    if (!this._width) return;
    const { layers } = this._experts;
    const few = layers.length <= 8;
    this._tall = few ? (this._wide ? 30 : 20) : this._wide ? 13 : 9;
    this._height = HEAD + layers.length * this._tall + 2;
    this._canvas.style.setProperty("height", `${this._height}px`);
    this._base = null;
    this._does.soon();
  }

  /** Another theme. */
  repaint() {
    this._base = null;
  }

  /** [x, width] of an expert's cell in a layer's bank. */
  _place(layer, bank, at) {
    const banks = this._banks[layer];
    const room = this._width - GUTTER - RAIL;
    const own = banks.length > 1 ? room / 2 : room;
    const across = own / banks[bank].length;
    return [GUTTER + bank * (own + RAIL) + at * across, across];
  }

  /** One picture, so many ms after the one before. True if the next would differ. */
  draw(ms) {
    if (!this._width) return false;
    const fade = calm() ? 0 : Math.exp(-ms / FADES_MS);
    const pen = fit(this._canvas, this._width, this._height);
    const paint = colours();
    if (!this._base) this._paintBase(paint);
    pen.drawImage(this._base, 0, 0, this._width, this._height);
    let glows = false;
    const { layers, routed } = this._experts;
    const tall = this._tall;
    const size = Math.min(tall - 3, 11);
    pen.font = `${size}px ${FIGURES}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const pattern = hatching(pen);
    for (let layer = 0; layer < layers.length; layer++) {
      const y = HEAD + layer * tall;
      for (let bank = 0; bank < this._banks[layer].length; bank++) {
        const group = this._banks[layer][bank];
        for (let at = 0; at < group.length; at++) {
          const cell = layer * routed + group[at];
          const light = this._glow[cell];
          const shown = Math.max(light, this._steady[cell]);
          if (light > DARK) {
            this._glow[cell] = light * fade;
            glows = true;
          } else if (light) this._glow[cell] = 0;
          if (shown <= DARK) continue;
          const colour = paint.of[this._side[cell]];
          const level = step(shown);
          const [x, across] = this._place(layer, bank, at);
          const faint = Math.min(Math.max(light / FAINT, this._steady[cell] ? 1 : 0), 1); // a glow that goes out
          pen.globalAlpha = faint;
          pen.fillStyle = colour.fills[level];
          pen.fillRect(x, y, across - 1, tall - 1);
          if (this._side[cell] === AUDIO) {
            pen.fillStyle = pattern;
            pen.fillRect(x, y, across - 1, tall - 1);
          }
          pen.globalAlpha = 1;
          if (across < NUMBERED || size < 8) continue;
          if (faint === 1 && this._side[cell] === AUDIO) {
            pen.fillStyle = colour.fills[level];
            const wide = Math.min(16, across - 1);
            pen.fillRect(x + (across - 1 - wide) / 2, y + (tall - size) / 2 - 1, wide, size + 1);
          }
          pen.fillStyle = faint > 0.5 ? paint.surface : paint.ink;
          pen.fillText(group[at], x + (across - 1) / 2, y + tall / 2);
        }
      }
    }
    this._drawMarks(pen, paint);
    return glows && !calm();
  }

  /** Everything that does not change: frames, numbers, the rail. */
  _paintBase(paint) {
    this._base = h("canvas", {});
    const pen = fit(this._base, this._width, this._height);
    const { layers, apart, shared } = this._experts;
    const tall = this._tall;
    const size = Math.min(tall - 3, 11);
    pen.textBaseline = "alphabetic";
    pen.font = `600 11px ${FONT}`;
    pen.fillStyle = paint.ink;
    const titles = apart ? ["routing.bank_text", "routing.bank_audio"] : ["routing.bank_all"];
    titles.forEach((title, bank) => pen.fillText(say(title), this._place(0, bank, 0)[0], HEAD - 5));
    pen.textBaseline = "middle";
    const every = Math.ceil(10 / tall);
    for (let layer = 0; layer < layers.length; layer++) {
      const y = HEAD + layer * tall;
      pen.font = `${Math.min(Math.max(size + 1, 9), 11)}px ${FIGURES}`;
      pen.textAlign = "right";
      pen.fillStyle = paint.soft;
      if (layer % every === 0) pen.fillText(layers[layer], GUTTER - 4, y + tall / 2);
      pen.textAlign = "center";
      pen.font = `${size}px ${FIGURES}`;
      this._banks[layer].forEach((group, bank) => {
        group.forEach((expert, at) => {
          const [x, across] = this._place(layer, bank, at);
          pen.fillStyle = paint.sunken;
          pen.fillRect(x, y, across - 1, tall - 1);
          pen.fillStyle = paint.strong;
          pen.fillRect(x, y + tall - 2, across - 1, 1);
          if (across < NUMBERED || size < 8) return;
          pen.fillStyle = paint.soft;
          pen.fillText(expert, x + (across - 1) / 2, y + tall / 2);
        });
      });
    }
    const [x, across] = this._place(0, 0, this._banks[0][0].length - 1);
    const rail = x + across + RAIL / 2;
    if (!shared) return;
    pen.fillStyle = paint.ink;
    pen.fillRect(rail - 3.5, HEAD, 5, layers.length * tall - 1);
    for (let layer = 0; layer < layers.length; layer++) {
      pen.beginPath();
      pen.arc(rail - 1, HEAD + (layer + 0.5) * tall, Math.min(tall / 2 - 1, 5), 0, 2 * Math.PI);
      pen.fill();
    }
  }

  _drawMarks(pen, paint) {
    const frame = (layer, expert, draw) => {
      const row = this._experts.layers.indexOf(layer);
      if (row < 0) return;
      this._banks[row].forEach((group, bank) => {
        const at = group.indexOf(expert);
        if (at >= 0) draw(...this._place(row, bank, at), HEAD + row * this._tall);
      });
    };
    for (const [layer, expert] of this._off) {
      frame(layer, expert, (x, across, y) => {
        pen.fillStyle = paint.surface;
        pen.fillRect(x, y, across - 1, this._tall - 1);
        pen.strokeStyle = paint.danger;
        pen.lineWidth = 2;
        pen.beginPath();
        pen.moveTo(x + 1, y + 1);
        pen.lineTo(x + across - 2, y + this._tall - 2);
        pen.moveTo(x + across - 2, y + 1);
        pen.lineTo(x + 1, y + this._tall - 2);
        pen.stroke();
      });
    }
    if (!this.selected) return;
    frame(this.selected.layer, this.selected.expert, (x, across, y) => {
      pen.lineWidth = 2;
      pen.strokeStyle = paint.surface;
      pen.strokeRect(x - 3, y - 3, across + 5, this._tall + 5);
      pen.strokeStyle = paint.ink;
      pen.strokeRect(x - 1.5, y - 1.5, across + 2, this._tall + 2);
    });
  }

  _listen() {
    this._canvas.addEventListener("click", (event) => {
      const { left, top } = this._canvas.getBoundingClientRect();
      const [x, y] = [event.clientX - left, event.clientY - top];
      const row = Math.floor((y - HEAD) / this._tall);
      if (row < 0 || row >= this._banks.length) return;
      this._banks[row].forEach((group, bank) => {
        const [from, across] = this._place(row, bank, 0);
        const at = Math.floor((x - from) / across);
        if (at >= 0 && at < group.length) this._choose(row, group[at], true);
      });
    });
    this.element.addEventListener("keydown", (event) => this._key(event));
    this.element.addEventListener("focus", () => this.selected && this._tell());
  }

  _choose(row, expert, open) {
    this.selected = { layer: this._experts.layers[row], expert };
    if (open) this._does.selectExpert(this.selected);
    this._does.soon();
  }

  _tell() {
    const { layer, expert } = this.selected;
    const row = this._experts.layers.indexOf(layer);
    const side = this._side[row * this._experts.routed + expert] === AUDIO ? "audio" : "text";
    const kind = this._experts.apart ? `routing.bank_${side}` : "routing.bank_all";
    const off = this._off.some(([where, which]) => where === layer && which === expert);
    this._does.tell(say(off ? "routing.expert_off" : "routing.expert", { layer, expert, side: say(kind) }));
  }

  _key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { layers } = this._experts;
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    let row = layers.indexOf(this.selected?.layer);
    const order = this._banks[Math.max(row, 0)].flat();
    if (event.key === "Enter" || event.code === "Space") {
      if (this.selected) this._does.selectExpert(this.selected);
    } else if (event.key === "Escape") {
      if (!this.selected) return; // it means something else then
      this.selected = null;
      this._does.selectExpert(null);
    } else if (event.key in steps || event.key === "Home" || event.key === "End") {
      let at = order.indexOf(this.selected?.expert);
      if (row < 0) [row, at] = [0, 0];
      else if (event.key === "Home") at = 0;
      else if (event.key === "End") at = order.length - 1;
      else {
        const [down, right] = steps[event.key];
        row = Math.min(Math.max(row + down, 0), layers.length - 1);
        at = Math.min(Math.max(at + right, 0), order.length - 1);
      }
      this._choose(row, this._banks[row].flat()[at], false);
      this._tell();
    } else return;
    event.preventDefault();
    event.stopPropagation();
    this._does.soon();
  }
}
