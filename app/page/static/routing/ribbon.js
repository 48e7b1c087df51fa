// All tokens of a conversation in the order in which the model met them, a column each: their sound or words on top,
// and below, a row a layer, the expert that had most to say.

import { h } from "../dom.js";
import { REPLY_RATE, USER_RATE } from "../turns.js";
import { say } from "../words.js";
import { calm, colours, fit, hatching, scale, step } from "./paint.js";
import { AUDIO, NO_EXPERT } from "./rows.js";
import { BEAT_MS, replyEnvelope, runsOf, userEnvelope } from "./runs.js";

const ZOOMS = [2, 3, 4, 6, 9, 14, 18, 26]; // pixels a token
const NUMBERED = 14; // from this width on there is room for numbers
const NARROW = 6;
const WIDE = 18;
const GUTTER = 20; // for the layers' numbers
const HEAD = 16; // for who speaks
const LANE = 40; // for sound and words
const HEARD = 14; // for the words that were heard
const OVERVIEW = 20;
const BETWEEN = 12; // pixels between turns
const TILE = 32; // tokens that are painted once and kept as a picture
const FONT = "system-ui, sans-serif";
const FIGURES = "ui-monospace, 'DejaVu Sans Mono', monospace";
const SIGN = /^[^\p{L}\p{N}]*$/u; // a comma and the like
const TAP_PX = 5; // a pointer that moves less was pressed, not drawn

export class Ribbon {
  /**
   * `routing`: a Routing; `does`: turns(), select(selection, open), brush(span), soon() (draw again), tell(cell) (say
   * what it is), words(cell) (what it is).
   */
  constructor(experts, routing, does) {
    this._experts = experts;
    this._routing = routing;
    this._does = does;
    this.selection = null;
    this.span = null;
    this.ghosts = false;
    this.brushing = false; // a pointer brushes without shift, too
    this._following = true;
    this._scroll = 0;
    this._zoom = NARROW;
    this._parts = []; // {turn, rows, count, x, width}: what is shown of which rows, and where
    this._total = 0;
    this._stale = true;
    this._frozen = false;
    this._tiles = new Map(); // pictures, the last used last
    this._ids = new WeakMap(); // of Rows
    this._nextId = 0;
    this._heard = null; // the microphone: see hears()
    this._wide = false;
    this._places = placesOf(experts);
    this._build();
  }

  _build() {
    this._canvas = h("canvas", { class: "ribbon-canvas" });
    this._overview = h("canvas", { class: "ribbon-overview", title: say("routing.overview") });
    this._empty = h("p", { class: "soft ribbon-empty" }, say("routing.empty"));
    this._label = h("div", { class: "ribbon-label", hidden: true, "aria-hidden": "true" });
    this._newest = h(
      "button",
      { type: "button", class: "button newest", hidden: true, "data-action": "newest", onclick: () => this.follow() },
      say("routing.newest"),
    );
    this.stage = h(
      "div",
      {
        class: "ribbon-stage",
        tabindex: 0,
        role: "application",
        "aria-label": say("routing.ribbon"),
        "aria-describedby": "most-ribbon-keys",
      },
      this._canvas,
      this._empty,
      this._label,
    );
    this.element = h(
      "div",
      { class: "ribbon" },
      this.stage,
      this._overview,
      this._newest,
      h("p", { class: "sr-only", id: "most-ribbon-keys" }, say("routing.ribbon_keys")),
    );
    this._listen();
    new ResizeObserver(() => this._resized()).observe(this.stage);
  }

  // What is there

  /** There is more, or less: of any turn. */
  changed() {
    this._stale = true;
  }

  /** The microphone: {turn, start_ms, beats}: who is heard since when, and how loud, beat by beat, round and round. */
  hears(heard) {
    this._heard = heard;
  }

  /** Another theme, or other marks: paint all anew. */
  repaint() {
    this._tiles.clear();
  }

  /** Those of another model. */
  set experts(experts) {
    this._experts = experts;
    this._places = placesOf(experts);
    this._resized();
  }

  /** Show more at once, or less. */
  set wide(wide) {
    this._wide = wide;
    this._zoomTo(wide ? WIDE : NARROW);
    this._resized();
  }

  /** Stand still as it is, or go on. */
  set frozen(frozen) {
    if (!frozen) this._stale = true;
    this._frozen = frozen;
  }

  /** Keep the newest token in sight. */
  follow() {
    if (this._following) return;
    const focused = document.activeElement === this._newest;
    this._following = true;
    this._newest.hidden = true;
    if (focused) this.stage.focus();
    this._does.soon();
  }

  /** Bring a token into sight. */
  reveal(turn, token) {
    this._lay();
    const part = this._parts.find((one) => one.turn === turn);
    if (!part) return;
    const x = part.x + token * this._zoom;
    const room = this._room;
    if (x < this._scroll || x + this._zoom > this._scroll + room) {
      const edge = x + this._zoom >= this._total - this._zoom;
      if (edge) this.follow();
      else this._scrollTo(x - room / 3);
    }
    this._does.soon();
  }

  /** Bring the beginning of a turn into sight. */
  revealTurn(turn) {
    this._lay();
    const part = this._parts.find((one) => one.turn === turn);
    if (!part) return;
    if (part === this._parts.at(-1)) this.follow();
    else this._scrollTo(part.x - BETWEEN);
  }

  get _room() {
    return Math.max(this._width - GUTTER, 1);
  }

  get _rowHeight() {
    if (this._experts.layers.length <= 8) return this._wide ? 32 : 22;
    return this._wide ? 15 : 9;
  }

  get _top() {
    return HEAD + LANE + HEARD;
  }

  _resized() {
    this._width = this.stage.clientWidth;
    if (!this._width) return;
    this._height = this._top + this._rowHeight * this._experts.layers.length + 2;
    this._canvas.style.setProperty("height", `${this._height}px`);
    this._tiles.clear();
    this._stale = true;
    this._clamp();
    this._does.soon();
  }

  _zoomTo(zoom, around = this._room / 2) {
    const share = (this._scroll + around) / Math.max(this._total, 1);
    this._zoom = zoom;
    this._tiles.clear();
    this._stale = true;
    this._lay(true);
    this._scroll = share * this._total - around;
    this._clamp();
    this._does.soon();
  }

  /** One step nearer, or further away. */
  zoom(by) {
    const next = ZOOMS[ZOOMS.indexOf(this._zoom) + by];
    if (next) this._zoomTo(next);
  }

  /** Where everything is. Frozen, what was there stays as it was. */
  _lay(again = false) {
    if (!this._stale && !again) return;
    this._stale = false;
    if (!this._frozen) {
      const parts = [];
      for (const turn of this._does.turns()) {
        const rows = this._routing.of(turn);
        if (rows?.length && !rows.differs(this._experts.layers, rows.k)) parts.push({ turn, rows, count: rows.length });
      }
      const { pending } = this._routing;
      if (pending?.length) parts.push({ turn: null, rows: pending, count: pending.length });
      this._parts = parts;
    }
    this._empty.hidden = this._parts.length > 0;
    let x = BETWEEN;
    for (const part of this._parts) {
      part.x = x;
      part.width = part.count * this._zoom;
      x += part.width + BETWEEN;
    }
    this._total = x;
    this._clamp();
  }

  _clamp() {
    this._scroll = Math.max(Math.min(this._scroll, this._total - this._room), 0);
  }

  _scrollTo(x) {
    this._scroll = x;
    this._clamp();
    this._following = this._scroll >= this._total - this._room - 1;
    this._newest.hidden = this._following;
    this._does.soon();
  }

  // Drawing

  /** One picture. True if the next would differ. */
  draw() {
    if (!this._width) return false;
    this._lay();
    let moves = false;
    if (this._following) {
      const end = Math.max(this._total - this._room, 0);
      const way = end - this._scroll;
      moves = Math.abs(way) > 0.5 && Math.abs(way) < this._room && !calm();
      this._scroll = moves ? this._scroll + 0.3 * way : end;
    }
    const pen = fit(this._canvas, this._width, this._height);
    const paint = colours();
    const by = scale();
    const shift = GUTTER - Math.round(this._scroll * by) / by;
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER, 0, this._width - GUTTER, this._height);
    pen.clip();
    for (const part of this._parts) {
      const x = part.x + shift;
      if (x < this._width + BETWEEN && x + part.width > GUTTER - BETWEEN) this._drawPart(pen, paint, part, x);
    }
    this._drawSpan(pen, paint, shift);
    this._drawSelection(pen, paint, shift);
    pen.restore();
    this._drawGutter(pen, paint);
    this._drawOverview(paint);
    return moves;
  }

  _drawPart(pen, paint, part, x) {
    const { rows, turn } = part;
    const zoom = this._zoom;
    const first = Math.max(Math.floor((GUTTER - x) / zoom), 0);
    const end = Math.min(Math.ceil((this._width - x) / zoom), part.count);
    const height = this._rowHeight * rows.layers.length;
    pen.globalAlpha = rows.provisional ? 0.75 : 1;
    for (let tile = Math.floor(first / TILE); tile * TILE < end; tile++) {
      const picture = this._tile(paint, part, tile);
      pen.drawImage(picture, x + tile * TILE * zoom, this._top, TILE * zoom, height);
    }
    pen.globalAlpha = 1;
    const runs = runsOf(rows);
    this._drawVoices(pen, paint, part, runs, x);
    let spoken = null; // the last sound of the user's is this turn's: earlier ones are history
    for (const run of runs) if (run.modality === AUDIO && run.role === "user") spoken = run;
    for (const run of runs) {
      if (run.to <= first || run.from >= end) continue;
      const to = Math.min(run.to, part.count);
      if (run.modality !== AUDIO) this._drawWords(pen, paint, run, x, to, rows);
      else if (run.role !== "user" || run === spoken)
        this._drawSound(pen, paint, part, run, x, first, Math.min(to, end));
      if (run === spoken && turn) this._drawHeard(pen, paint, turn, run, x);
      if (run.modality === AUDIO && run.role !== "user" && turn) this._drawAhead(pen, paint, turn, run, x, to, height);
    }
    pen.fillStyle = paint.strong;
    pen.fillRect(x - BETWEEN / 2, 0, 1, this._top + height);
    if (rows.provisional) {
      pen.strokeStyle = paint.of[AUDIO].main;
      pen.lineWidth = 2;
      pen.setLineDash([5, 4]);
      pen.beginPath();
      pen.moveTo(Math.max(x, GUTTER), this._top - 2);
      pen.lineTo(Math.min(x + part.width, this._width), this._top - 2);
      pen.stroke();
      pen.setLineDash([]);
    }
  }

  /** Who speaks, above everything. */
  _drawVoices(pen, paint, part, runs, x) {
    pen.font = `600 10px ${FONT}`;
    pen.textAlign = "left";
    pen.textBaseline = "alphabetic";
    for (let at = 0; at < runs.length; ) {
      const from = runs[at];
      const user = from.role !== "assistant";
      while (at < runs.length && (runs[at].role !== "assistant") === user) at += 1;
      const left = Math.max(x + from.from * this._zoom, GUTTER);
      const right = Math.min(x + Math.min(runs[at - 1].to, part.count) * this._zoom, this._width);
      if (right <= left) continue;
      pen.fillStyle = user ? paint.strong : paint.ink;
      pen.fillRect(left, HEAD - 3, Math.max(right - left - 1, 1), 2);
      pen.fillStyle = paint.soft;
      const who = say(user ? "routing.you" : "routing.most");
      const number = part.turn ? say("routing.turn", { turn: part.turn.number }) : say("routing.now");
      const long = `${number} · ${who}`;
      const room = right - left - 2;
      if (pen.measureText(long).width <= room) pen.fillText(long, left, HEAD - 6);
      else if (pen.measureText(who).width <= room) pen.fillText(who, left, HEAD - 6);
    }
  }

  /** Words in the columns of text. */
  _drawWords(pen, paint, run, x, to, rows) {
    const zoom = this._zoom;
    pen.textAlign = "left";
    pen.textBaseline = "top";
    if (run.marks) {
      pen.fillStyle = paint.strong;
      for (let token = run.from; token < to; token++) {
        pen.fillRect(x + token * zoom + zoom / 2 - 1, HEAD + LANE / 2 - 1, 2, 2);
      }
      return;
    }
    pen.fillStyle = paint.ink;
    if (zoom >= NUMBERED) {
      pen.font = `12px ${FONT}`;
      let line = -1;
      let free = 0; // where what was written last ends
      for (let token = run.from; token < to; token++) {
        const sign = line >= 0 && SIGN.test(rows.text[token]);
        if (!sign) line = (line + 1) % 3; // words have room over their neighbours
        const left = x + token * zoom + 1;
        if (left > this._width || left < GUTTER - 3 * zoom) continue;
        const text = clipped(pen, rows.text[token].trim(), 3 * zoom - 3);
        const at = sign ? Math.max(left, free) : left;
        pen.fillText(text, at, HEAD + 2 + line * 15);
        free = at + pen.measureText(text).width;
      }
      return;
    }
    pen.font = `11px ${FONT}`;
    const width = (to - run.from) * zoom + 2;
    if (!run.lines || run.lines.text !== run.text || run.lines.width !== width) {
      run.lines = { text: run.text, width, of: wrapped(pen, run.text, width, Math.floor((LANE + HEARD) / 13)) };
    }
    const lines = run.lines.of;
    for (let i = 0; i < lines.length; i++) pen.fillText(lines[i], x + run.from * zoom, HEAD + 1 + 13 * i);
  }

  /** Sound in the columns of audio, as loud as it is. */
  _drawSound(pen, paint, part, run, x, first, end) {
    const { turn, rows } = part;
    const zoom = this._zoom;
    const middle = HEAD + LANE / 2;
    let beats = null;
    let offset = 0;
    let round = Infinity;
    if (run.role !== "user") {
      beats = turn && replyEnvelope(turn, REPLY_RATE);
      offset = -(turn?.reply.skipped_ms ?? 0);
    } else if (turn?.user.sound?.length) beats = userEnvelope(turn, USER_RATE);
    else if (this._heard && (!turn || this._heard.turn === turn)) {
      beats = this._heard.beats;
      offset = this._heard.start_ms;
      round = beats.length;
    }
    pen.fillStyle = paint.of[AUDIO].main;
    pen.beginPath();
    const from = Math.max(run.from, first);
    pen.rect(x + from * zoom, middle - 0.5, (end - from) * zoom, 1);
    if (beats?.length && run.step_ms) {
      const bars = Math.max(Math.min(Math.floor(zoom / 1.5), Math.round(run.step_ms / BEAT_MS)), 1);
      const across = zoom / bars;
      for (let token = from; token < end; token++) {
        const start = offset + rows.start_ms[token];
        for (let bar = 0; bar < bars; bar++) {
          let loud = 0;
          const low = Math.floor((start + (bar * run.step_ms) / bars) / BEAT_MS);
          const high = Math.max(Math.floor((start + ((bar + 1) * run.step_ms) / bars) / BEAT_MS), low + 1);
          for (let beat = Math.max(low, 0); beat < high; beat++) {
            const level = beats[beat % round];
            if (level > loud) loud = level;
          }
          const tall = Math.min(Math.pow(loud, 0.6) * LANE, LANE - 2);
          if (tall >= 1) pen.rect(x + token * zoom + bar * across, middle - tall / 2, Math.max(across - 0.5, 1), tall);
        }
      }
    }
    pen.fill();
  }

  /** Which words were heard where. */
  _drawHeard(pen, paint, turn, run, x) {
    if (!run.step_ms) return;
    pen.font = `11px ${FONT}`;
    pen.textAlign = "left";
    pen.textBaseline = "top";
    pen.fillStyle = paint.ink;
    let free = -Infinity;
    for (const word of turn.user.words) {
      if (word.start_ms === null || word.start_ms === undefined) continue;
      const left = x + (run.from + (word.start_ms - run.start_ms) / run.step_ms) * this._zoom;
      const at = Math.max(left, free);
      if (at > this._width) break;
      if (at - left > 2 * this._zoom) continue; // too far from where it was said
      pen.fillText(word.text, at, HEAD + LANE);
      free = at + pen.measureText(word.text).width + 4;
    }
  }

  /** What of a reply was not heard yet. */
  _drawAhead(pen, paint, turn, run, x, to, height) {
    const { reply } = turn;
    const going = reply.status === "in_progress" || reply.status === "";
    if (!run.step_ms || (!going && (!reply.sound_ms || reply.played_ms >= reply.sound_ms - run.step_ms))) return;
    const heard = run.from + Math.max(reply.played_ms + reply.skipped_ms - run.start_ms, 0) / run.step_ms;
    if (heard >= to) return;
    const left = x + heard * this._zoom;
    pen.globalAlpha = 0.55;
    pen.fillStyle = paint.surface;
    pen.fillRect(left, HEAD, x + to * this._zoom - left, this._top - HEAD + height);
    pen.globalAlpha = 1;
    if (heard <= run.from || reply.cut || !turn.live) return;
    pen.fillStyle = paint.ink;
    pen.fillRect(left - 1, HEAD, 2, this._top - HEAD + height);
  }

  /** A picture of some tokens' cells, painted only as far as it has to be. */
  _tile(paint, part, number) {
    const { rows } = part;
    let id = this._ids.get(rows);
    if (!id) this._ids.set(rows, (id = ++this._nextId));
    const key = id * 1e6 + number;
    let tile = this._tiles.get(key);
    if (tile) this._tiles.delete(key);
    else {
      const by = scale();
      const height = this._rowHeight * rows.layers.length;
      const picture = new OffscreenCanvas(Math.ceil(TILE * this._zoom * by), Math.max(Math.round(height * by), 1));
      tile = { picture, pen: picture.getContext("2d"), done: 0 };
      tile.pen.setTransform(picture.width / (TILE * this._zoom), 0, 0, picture.height / height, 0, 0);
    }
    this._tiles.set(key, tile);
    const most = 2 * Math.ceil(this._width / (TILE * this._zoom)) + 6;
    if (this._tiles.size > most) this._tiles.delete(this._tiles.keys().next().value);
    const from = number * TILE;
    const count = Math.min(part.count - from, TILE);
    for (; tile.done < count; tile.done++)
      this._paintToken(tile.pen, paint, rows, from + tile.done, tile.done * this._zoom);
    return tile.picture;
  }

  _paintToken(pen, paint, rows, token, x) {
    const { layers, k } = rows;
    const [chosen, weights, removed] = [rows.chosen.view, rows.weights.view, rows.removed.view];
    const modality = rows.modality[token];
    const colour = paint.of[modality];
    const tall = this._rowHeight;
    const across = this._zoom >= 4 ? this._zoom - 1 : this._zoom;
    const numbers = this._zoom >= NUMBERED && tall >= 9;
    const ticks = !numbers && tall >= 16;
    const inset = rows.provisional ? 1 : 0;
    const shown = (at, cell) => {
      const share = weights[at] / Math.max(255 - removed[cell], weights[at], 1);
      return rows.provisional ? Math.floor(0.4 * step(share)) : step(share);
    };
    for (let layer = 0; layer < layers.length; layer++) {
      const cell = token * layers.length + layer;
      if (chosen[cell * k] === NO_EXPERT) continue;
      pen.fillStyle = colour.fills[shown(cell * k, cell)];
      pen.fillRect(x, layer * tall + inset, across, tall - 1 - 2 * inset);
    }
    if (modality === AUDIO) {
      pen.fillStyle = hatching(pen);
      pen.fillRect(x, 0, across, tall * layers.length);
    }
    if (numbers) {
      pen.font = `600 ${Math.min(tall - 2, 11)}px ${FIGURES}`;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
    }
    for (let layer = 0; layer < layers.length; layer++) {
      const cell = token * layers.length + layer;
      const expert = chosen[cell * k];
      const y = layer * tall;
      const other = this.ghosts ? rows.unmasked.view[cell * k] : expert;
      const ghost = other !== expert && other !== NO_EXPERT;
      if (expert !== NO_EXPERT && (numbers || ticks)) {
        const level = shown(cell * k, cell);
        const place = this._places[(modality * layers.length + layer) * this._experts.routed + expert];
        if (ticks) {
          pen.fillStyle = paint.surface;
          pen.fillRect(x, y + 2 + place * (tall - 8), across, 3);
        } else {
          if (modality === AUDIO) {
            pen.fillStyle = colour.fills[level];
            pen.fillRect(x + 1, y + tall / 2 - 7 + (ghost ? -tall / 5 : 0), across - 2, Math.min(13, tall - 2));
          }
          pen.fillStyle = paint.surface;
          pen.fillText(expert, x + across / 2, y + tall / 2 + (ghost && tall >= 22 ? -tall / 5 : 0));
        }
      }
      if (ghost) this._paintGhost(pen, paint, layer, other, x, y, across, tall, numbers);
    }
  }

  /** What the router would have taken without the mask: an outline in the colour of that expert's side. */
  _paintGhost(pen, paint, layer, expert, x, y, across, tall, numbers) {
    const text = this._experts.groups[layer]?.text.includes(expert);
    const colour = paint.of[text ? 0 : 1].main;
    const roomy = numbers && tall >= 22;
    const high = roomy ? tall * 0.42 : Math.max(tall * 0.45, 4);
    const [left, top] = [x + 0.5, y + tall - high - 1.5];
    pen.fillStyle = paint.surface;
    pen.fillRect(left, top, across - 1, high);
    pen.strokeStyle = colour;
    pen.lineWidth = 1.5;
    pen.strokeRect(left + 0.5, top + 0.5, across - 2, high - 1);
    if (!roomy) return;
    pen.fillStyle = paint.ink;
    pen.font = `9px ${FIGURES}`;
    pen.fillText(expert, x + across / 2, top + high / 2 + 0.5);
    pen.font = `600 ${Math.min(tall - 2, 11)}px ${FIGURES}`;
  }

  _drawSpan(pen, paint, shift) {
    if (!this.span) return;
    const { from, to } = this.span;
    const first = this._parts.find((part) => part.turn === from.turn);
    const last = this._parts.find((part) => part.turn === to.turn);
    if (!first || !last) return;
    const left = first.x + shift + from.token * this._zoom;
    const right = last.x + shift + (to.token + 1) * this._zoom;
    pen.fillStyle = paint.accent;
    pen.globalAlpha = 0.16;
    pen.fillRect(left, 0, right - left, this._height);
    pen.globalAlpha = 1;
    pen.fillRect(left - 1, 0, 2, this._height);
    pen.fillRect(right - 1, 0, 2, this._height);
  }

  _drawSelection(pen, paint, shift) {
    if (!this.selection) return;
    const { turn, token, layer } = this.selection;
    const part = this._parts.find((one) => one.turn === turn);
    if (!part || token >= part.count) return;
    const x = part.x + shift + token * this._zoom;
    const y = this._top + layer * this._rowHeight;
    const across = Math.max(this._zoom, 5);
    pen.strokeStyle = paint.ink;
    pen.lineWidth = 1;
    pen.strokeRect(x - 1, HEAD + 0.5, across + 1, this._height - HEAD - 2);
    pen.lineWidth = 2;
    pen.strokeStyle = paint.surface;
    pen.strokeRect(x - 3, y - 3, across + 5, this._rowHeight + 5);
    pen.strokeStyle = paint.ink;
    pen.strokeRect(x - 1.5, y - 1.5, across + 2, this._rowHeight + 2);
  }

  _drawGutter(pen, paint) {
    const { layers } = this._experts;
    const tall = this._rowHeight;
    const every = Math.ceil(10 / tall);
    pen.font = `${Math.min(tall + 2, 11)}px ${FIGURES}`;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.fillStyle = paint.soft;
    for (let layer = 0; layer < layers.length; layer += every) {
      pen.fillText(layers[layer], GUTTER - 4, this._top + (layer + 0.5) * tall);
    }
  }

  /** The whole conversation in one bar, and where in it one is. */
  _drawOverview(paint) {
    const width = this._width;
    const pen = fit(this._overview, width, OVERVIEW);
    pen.fillStyle = paint.sunken;
    pen.fillRect(0, 0, width, OVERVIEW);
    const by = width / Math.max(this._total, this._room);
    for (const part of this._parts) {
      for (const run of runsOf(part.rows)) {
        const to = Math.min(run.to, part.count);
        if (run.from >= to) break;
        pen.fillStyle = paint.of[run.modality].main;
        const tall = run.role === "user" ? 8 : 12;
        const high = part.rows.provisional ? tall / 2 : tall;
        const left = by * (part.x + run.from * this._zoom);
        pen.fillRect(left, (OVERVIEW - high) / 2, Math.max(by * (to - run.from) * this._zoom, 1), high);
      }
    }
    pen.strokeStyle = paint.ink;
    pen.lineWidth = 2;
    const seen = Math.min(by * this._room, width - 2);
    pen.strokeRect(Math.min(1 + by * this._scroll, width - seen - 1), 1, Math.max(seen, 4), OVERVIEW - 2);
  }

  // Mouse, touch and keys

  /** The cell at a place of the canvas: {part, token, layer}, or null. */
  _at(event) {
    const { left, top } = this._canvas.getBoundingClientRect();
    const x = event.clientX - left - GUTTER + this._scroll;
    if (event.clientX - left < GUTTER) return null;
    const part = this._parts.find((one) => x >= one.x && x < one.x + one.width);
    if (!part) return null;
    const layer = Math.floor((event.clientY - top - this._top) / this._rowHeight);
    const layers = this._experts.layers.length;
    const known = this.selection?.layer ?? 0;
    return {
      part,
      token: Math.floor((x - part.x) / this._zoom),
      layer: layer >= 0 && layer < layers ? layer : known,
    };
  }

  /** The nearest token that is not provisional. */
  _nearest(event) {
    const { left } = this._canvas.getBoundingClientRect();
    const x = event.clientX - left - GUTTER + this._scroll;
    let best = null;
    for (const part of this._parts) {
      if (!part.turn) continue;
      const token = Math.min(Math.max(Math.floor((x - part.x) / this._zoom), 0), part.count - 1);
      const away = Math.abs(part.x + token * this._zoom - x);
      if (!best || away < best.away) best = { turn: part.turn, token, away };
    }
    return best && { turn: best.turn, token: best.token };
  }

  _listen() {
    const { stage, _canvas: canvas } = this;
    let held = null; // {id, x, scroll, from, drawn}
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this._anchor = null;
      const brush = event.shiftKey || this.brushing;
      held = { id: event.pointerId, x: event.clientX, scroll: this._scroll, from: brush && this._nearest(event) };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (held?.id !== event.pointerId) return this._hover(event);
      const way = event.clientX - held.x;
      held.drawn ||= Math.abs(way) > TAP_PX;
      if (!held.drawn) return undefined;
      this._label.hidden = true;
      if (held.from) return this._does.brush(this._ordered(held.from, this._nearest(event)));
      return this._scrollTo(held.scroll - way);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (held?.id !== event.pointerId) return;
      const drawn = held.drawn;
      held = null;
      if (drawn) return;
      const cell = this._at(event);
      if (cell?.part.turn) this._does.select({ turn: cell.part.turn, token: cell.token, layer: cell.layer }, true);
      else if (!cell) this._does.select(null);
    });
    canvas.addEventListener("pointercancel", () => (held = null));
    canvas.addEventListener("pointerleave", () => (this._label.hidden = true));
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (event.ctrlKey) {
          event.preventDefault();
          return this.zoom(event.deltaY < 0 ? 1 : -1);
        }
        const way = Math.abs(event.deltaX) > Math.abs(event.deltaY) || !event.shiftKey ? event.deltaX : event.deltaY;
        if (!way) return undefined;
        event.preventDefault();
        return this._scrollTo(this._scroll + way);
      },
      { passive: false },
    );
    const jump = (event) => {
      const { left } = this._overview.getBoundingClientRect();
      const by = this._width / Math.max(this._total, this._room);
      this._scrollTo((event.clientX - left) / by - this._room / 2);
    };
    this._overview.addEventListener("pointerdown", (event) => {
      this._overview.setPointerCapture(event.pointerId);
      jump(event);
    });
    this._overview.addEventListener("pointermove", (event) => event.buttons && jump(event));
    stage.addEventListener("keydown", (event) => this._key(event));
    stage.addEventListener("focus", () => this.selection && this._does.tell(this.selection));
  }

  _hover(event) {
    const cell = this._at(event);
    if (!cell) {
      this._label.hidden = true;
      return;
    }
    const words = this._does.words({ turn: cell.part.turn, token: cell.token, layer: cell.layer }, cell.part.rows);
    if (this._label.textContent !== words) this._label.textContent = words;
    this._label.hidden = false;
    const { left, top, width } = this._canvas.getBoundingClientRect();
    const room = Math.max(width - this._label.offsetWidth, 0);
    const y = event.clientY - top;
    this._label.style.setProperty("left", `${Math.min(Math.max(event.clientX - left - 40, 0), room)}px`);
    // Over the sound and the words while it tells of a cell, and below all cells while it tells of those.
    const at = y < this._top ? this._height : this._top - this._label.offsetHeight - 4;
    this._label.style.setProperty("top", `${at}px`);
  }

  /** Two tokens, the earlier one first. */
  _ordered(one, other) {
    const place = ({ turn, token }) => [this._parts.findIndex((part) => part.turn === turn), token];
    const [[part, token], [otherPart, otherToken]] = [place(one), place(other)];
    const after = part > otherPart || (part === otherPart && token > otherToken);
    return after ? { from: other, to: one } : { from: one, to: other };
  }

  _key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moved = this._moved(event.key);
    if (event.key === "Escape") {
      if (!this.selection && !this.span) return; // it means something else then
      this._anchor = null;
      this._does.brush(null);
      this._does.select(null);
    } else if (event.key === "Enter" || event.code === "Space") {
      if (this.selection) this._does.select(this.selection, true);
    } else if (event.key === "+" || event.key === "-") this.zoom(event.key === "+" ? 1 : -1);
    else if (moved) {
      const before = this.selection;
      if (!event.shiftKey || !before) this._anchor = null;
      else if (moved.turn !== before.turn || moved.token !== before.token) {
        this._anchor ??= { turn: before.turn, token: before.token };
      }
      this._does.select(moved, false);
      // After the selection, which may open the token's panel over the span's.
      if (this._anchor) this._does.brush(this._ordered(this._anchor, { turn: moved.turn, token: moved.token }));
      this.reveal(moved.turn, moved.token);
      this._does.tell(moved);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Where a key leads from the selected cell, or null. */
  _moved(key) {
    this._lay();
    const parts = this._parts.filter((part) => part.turn);
    if (!parts.length || !/^(Arrow|Home|End|Page)/.test(key)) return null;
    const layers = this._experts.layers.length;
    let at = parts.findIndex((part) => part.turn === this.selection?.turn);
    if (at < 0) {
      const last = parts.at(-1);
      return { turn: last.turn, token: last.count - 1, layer: 0 };
    }
    let { token, layer } = this.selection;
    if (key === "ArrowUp") layer = Math.max(layer - 1, 0);
    else if (key === "ArrowDown") layer = Math.min(layer + 1, layers - 1);
    else if (key === "ArrowLeft") token -= 1;
    else if (key === "ArrowRight") token += 1;
    else if (key === "Home") [at, token] = [0, 0];
    else if (key === "End") [at, token] = [parts.length - 1, parts.at(-1).count - 1];
    else if (key === "PageUp") [at, token] = token && at ? [at, 0] : [Math.max(at - 1, 0), 0];
    else if (key === "PageDown") {
      token = at + 1 < parts.length ? 0 : parts[at].count - 1;
      at = Math.min(at + 1, parts.length - 1);
    } else return null;
    if (token < 0) [at, token] = at ? [at - 1, parts[at - 1].count - 1] : [0, 0];
    else if (token >= parts[at].count) {
      [at, token] = at + 1 < parts.length ? [at + 1, 0] : [at, parts[at].count - 1];
    }
    return { turn: parts[at].turn, token, layer };
  }
}

/** [2, L, E]: where in its group an expert stands, 0 to 1. */
function placesOf(experts) {
  const { groups, routed } = experts;
  const places = new Float32Array(2 * groups.length * routed);
  groups.forEach((group, layer) => {
    [group.text, group.audio].forEach((side, modality) => {
      side.forEach((expert, i) => {
        places[(modality * groups.length + layer) * routed + expert] = side.length > 1 ? i / (side.length - 1) : 0;
      });
    });
  });
  return places;
}

/** A text in lines of this width, the last one cut where there are more. */
function wrapped(pen, text, width, most) {
  const words = text.trim().split(/\s+/).filter(Boolean);
  const lines = [];
  let line = "";
  for (const word of words) {
    const longer = line ? `${line} ${word}` : word;
    if (line && pen.measureText(longer).width > width) {
      lines.push(line);
      line = word;
    } else line = longer;
  }
  if (line) lines.push(line);
  const shown = lines.slice(0, most).map((one) => clipped(pen, one, Math.max(width, 14)));
  if (lines.length > most) shown[most - 1] = clipped(pen, `${lines[most - 1]} …`, width);
  return shown;
}

function clipped(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let short = text;
  while (short.length > 1 && pen.measureText(`${short}…`).width > width) short = short.slice(0, -1);
  return `${short}…`;
}
