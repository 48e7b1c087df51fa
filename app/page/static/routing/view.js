// The routing beside the conversation: which experts take which tokens, while they do.

import { button, h, icon } from "../dom.js";
import { say } from "../words.js";
import * as address from "./address.js";
import { Banks } from "./banks.js";
import { Inspector } from "./inspector.js";
import { calm } from "./paint.js";
import { Ribbon } from "./ribbon.js";
import { AUDIO, Routing } from "./rows.js";
import { BEAT_MS } from "./runs.js";
import { Tally } from "./tally.js";
import { Tour } from "./tour.js";

const PICTURE_MS = 30; // at least between two: the page shares its cores with the model
const CALM_MS = 1000; // for those who want no motion
const FIGURES_MS = 250; // between two changes of the numbers
const TELL_MS = 1000; // between two announcements
const BREATH_MS = 60; // of a reply that nobody would miss
const LEVEL_MS = 20; // a level of the microphone
const HEARD = "[/Heard]"; // ends what was heard, and the answer begins
const percent = (share) => Math.round(100 * share);
const shown = (number) => number.toLocaleString("en");

export class View {
  /**
   * `facts`: the server's. `does`: play(int16, rate), a Promise that ends with the sound, stop(), settings(), turns()
   * in order, select(selection | null), selectExpert({layer, expert} | null), brush({from, to} | null),
   * download(blob, name), about(), say(text), off([[layer, expert], ..]): which experts are off, wide(on): give the
   * room more width, or take it back.
   */
  constructor(facts, does) {
    this._facts = facts;
    this._does = does;
    this._experts = facts.model.experts;
    this.routing = new Routing((turn) => this._changed(turn));
    this.selection = null;
    this.span = null;
    if (!this._experts.layers?.length) {
      this.element = h("section", { class: "routing" }, h("p", { class: "soft" }, say("routing.dense")));
      return;
    }
    this._on = true;
    this._live = undefined; // whose data came last: a turn, null for what is being said; undefined: nobody's
    this._turn = undefined; // whose figures are shown
    this._tallies = new Map(); // turn to Tally; null: of what is being said
    this._said = undefined; // the turn that is being said, or was last
    this._glowed = { rows: null, to: 0 };
    this._beats = new Float32Array(6000); // the last minute of the microphone, a value a beat, round and round
    this._sent_ms = 0; // sound that the server got in this connection
    this._frozenAt = null; // tokens that had come when it was frozen
    this._build();
  }

  _build() {
    const soon = () => this._soon();
    this._ribbon = new Ribbon(this._experts, this.routing, {
      turns: () => this._does.turns(),
      select: (selection, open = true) => this._pick(selection, open),
      brush: (span) => this._does.brush(span),
      words: (cell, rows) => this._words(cell, rows),
      tell: (cell) => this.tell(this._words(cell, this.routing.of(cell.turn))),
      soon,
    });
    this._banks = new Banks(this._experts, {
      selectExpert: (expert) => {
        this._does.selectExpert(expert);
        if (expert) this._lookClosely();
      },
      tell: (words) => this.tell(words),
      soon,
    });
    this.inspector = new Inspector(this._facts, this.routing, this._does);
    this._state = h("span", {}, say("routing.states.waiting"));
    this._badge = h("p", { class: "leakage", "data-part": "leakage" });
    this._note = h("p", { class: "routing-note", hidden: true });
    this._voice = h("p", { class: "sr-only", "aria-live": "polite", "data-live": "routing" });
    const toggle = (name, change, key = name) => {
      const element = h("button", { type: "button", class: "button", "data-action": key, "aria-pressed": "false" });
      element.append(say(`routing.${name}`));
      element.addEventListener("click", () => change(element.getAttribute("aria-pressed") !== "true"));
      return element;
    };
    this._toggles = {
      ghosts: toggle("ghosts", (on) => this.showGhosts(on)),
      freeze: toggle("freeze", (on) => this.freeze(on)),
      span: toggle("span", (on) => this.brushing(on)),
      wide: toggle("wide", (on) => this.widen(on)),
    };
    const zoom = (by, sign) =>
      h(
        "button",
        {
          type: "button",
          class: "button sign",
          "data-action": by > 0 ? "zoom-in" : "zoom-out",
          "aria-label": say(by > 0 ? "routing.zoom_in" : "routing.zoom_out"),
          title: say(by > 0 ? "routing.zoom_in" : "routing.zoom_out"),
          onclick: () => this._ribbon.zoom(by),
        },
        sign,
      );
    const tools = h(
      "div",
      { class: "routing-tools", role: "group", "aria-label": say("routing.tools") },
      this._toggles.ghosts,
      this._toggles.freeze,
      button({ action: "explain", label: say("routing.explain"), onclick: () => this.explain() }),
      this._toggles.span,
      zoom(-1, "−"),
      zoom(1, "+"),
      this._toggles.wide,
    );
    const swatch = (kind, label) => h("span", { class: `swatch ${kind}` }, h("i", { "aria-hidden": "true" }), label);
    this._figures = Object.fromEntries(
      ["used", "idle", "text", "audio"].map((name) => [name, h("dd", { "data-figure": name })]),
    );
    this._counters = h(
      "dl",
      { class: "counters", "data-part": "counts" },
      ...Object.entries(this._figures).map(([name, value]) => h("div", {}, h("dt", {}, say(`routing.${name}`)), value)),
    );
    this._toggles.ghosts.dataset.part = "ghosts";
    this._ribbon.element.dataset.part = "ribbon";
    this._banks.element.dataset.part = "banks";
    this.inspector.element.dataset.part = "card";
    this._whose = h("h3", {}, "");
    this._about = h("p", { class: "soft" });
    this.element = h(
      "section",
      { class: "routing", "aria-label": say("routing.title") },
      h("header", {}, h("p", { class: "routing-state" }, h("i", { "aria-hidden": "true" }), this._state), this._badge),
      tools,
      this._note,
      h(
        "div",
        { class: "routing-body" },
        h(
          "div",
          { class: "routing-main" },
          this._ribbon.element,
          h(
            "p",
            { class: "legend", "data-part": "modality" },
            swatch("text", say("routing.legend_text")),
            swatch("audio", say("routing.legend_audio")),
            h("span", {}, say("routing.legend_sure")),
          ),
          this._banks.element,
          this._about,
          this._whose,
          this._counters,
        ),
        this.inspector.element,
      ),
      this._voice,
    );
    this._tour = new Tour(this.element);
    this.element.append(this._tour.element);
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      if (this._tour.runs) this._tour.end();
      else if (this._toggles.wide.getAttribute("aria-pressed") === "true") this.widen(false);
      else return;
      event.stopPropagation();
    });
    const anew = () => {
      this._ribbon.repaint();
      this._banks.repaint();
      this._soon();
    };
    new MutationObserver(anew).observe(document.body, { attributeFilter: ["class"] }); // the theme
    this._seen = true;
    new IntersectionObserver(([entry]) => {
      this._seen = entry.isIntersecting;
      this._soon();
    }).observe(this.element);
    document.addEventListener("visibilitychange", () => this._soon());
    addEventListener("hashchange", () => this.fromAddress());
    this._showFigures();
  }

  // What comes in

  /** Take any event of the server's; `turn` is whose it is, null while it is being said. */
  take(event, turn) {
    if (event.type === "input_audio_buffer.speech_started") {
      this._said = turn;
      this._ribbon?.hears({ turn, start_ms: event.audio_start_ms, beats: this._beats });
    }
    this.routing.take(event, turn ?? null);
  }

  /** The exact trace of a turn that is over: the server's answer to POST page/trace. */
  give(turn, trace) {
    this.routing.give(turn, trace);
  }

  /** The exact trace of a turn could not be had: what came live stays. */
  inexact(turn, why) {
    this._inexact = { turn, why };
    this._figuresSoon();
  }

  /** A turn is gone. */
  forget(turn) {
    this.routing.forget(turn);
    if (turn === this._said) this._unsaid();
    this._tallies?.delete(turn);
    if (this.selection?.turn === turn) this._does.select(null);
    if (this.span && (this.span.from.turn === turn || this.span.to.turn === turn)) this._does.brush(null);
    if (this._live === turn) this._live = undefined;
    if (this._turn === turn) this._turn = undefined;
    this.turnsChanged();
  }

  /** What was being said came to nothing. */
  _unsaid() {
    const listened = this._turn === null;
    this._said = undefined;
    this.routing.forgetPending();
    if (!this._ribbon) return;
    this._ribbon.hears(null);
    this._glowed = { rows: null, to: 0 };
    if (listened) this._turn = this._does.turns().findLast((turn) => this.routing.of(turn));
  }

  /** The connection is lost, or another one begins. */
  forgetConnection() {
    this._unsaid();
    this.routing.forgetConnection();
    this._sent_ms = 0;
  }

  /** Forget all. */
  clear() {
    this.routing.clear();
    if (!this._ribbon) return;
    this._ribbon.hears(null);
    if (this._frozenAt !== null) this._frozenAt = 0;
    this.leave([]);
  }

  /** The turns that are shown have become others; of these nothing is kept. */
  leave(turns) {
    for (const turn of turns) this.routing.forget(turn);
    if (!this._ribbon) return;
    this._tallies.clear();
    this._live = this._turn = undefined;
    this.inspector.forget();
    this._banks.selected = null;
    this.off = [];
    this.turnsChanged();
  }

  /** Other turns are there now, or fewer. */
  turnsChanged() {
    if (!this._ribbon) return;
    const turns = this._does.turns();
    if (this.selection && !turns.includes(this.selection.turn)) this._does.select(null);
    if (this.span && !turns.includes(this.span.from.turn)) this._does.brush(null);
    this._chooseModel(turns);
    this.inspector.changed(null);
    if (!turns.includes(this._live)) this._live = undefined;
    this._ribbon.changed();
    this._ribbon.follow();
    this._showFigures();
    this._dataSoon();
  }

  /** An opened session may be of another model than the one that talks. */
  _chooseModel(turns) {
    const told = turns.map((turn) => this.routing.experts.get(turn)).find(Boolean);
    const experts = told ?? this._facts.model.experts;
    if (JSON.stringify(experts) === JSON.stringify(this._experts)) return;
    this._experts = experts;
    this._tallies.clear();
    this._ribbon.experts = this._banks.experts = experts;
  }

  /** Sound of the microphone goes to the server: how loud, in decibels of full scale. */
  heard(level) {
    if (!this._ribbon) return;
    this._sent_ms += LEVEL_MS;
    const end = this._sent_ms / BEAT_MS;
    for (let beat = end - LEVEL_MS / BEAT_MS; beat < end; beat++)
      this._beats[beat % this._beats.length] = 10 ** (level / 20);
    if (this.routing.pending) this._dataSoon();
  }

  /** The reply that is heard went on. */
  played() {
    if (!this._ribbon) return;
    this._dataSoon();
    this._figuresSoon();
  }

  /** Whether the routing is asked for at all. */
  set on(on) {
    this._on = on;
    if (this._ribbon) this._figuresSoon();
  }

  _changed(turn) {
    if (!this._ribbon) return;
    if (turn && this.routing.experts.has(turn)) this._chooseModel(this._does.turns());
    const rows = turn ? this.routing.of(turn) : this.routing.pending;
    if (rows && !rows.exact) {
      this._live = this._turn = turn;
      if (this._glowed.rows !== rows) {
        // What is heard again as it grows has mostly glowed already; the final form of it, truly taken, glows anew.
        const again = rows.provisional && this._glowed.rows?.provisional;
        const known = again ? Math.min(this._glowed.to, rows.length) : 0;
        this._glowed = { rows, to: known };
      }
      if (this._frozenAt === null) this._banks.glow(rows, this._glowed.to, rows.length);
      this._glowed.to = rows.length;
    } else if (!turn && this._turn === null) this._live = this._turn = undefined;
    if (turn) {
      this.inspector.changed(turn);
      // The provisional tokens have become this turn's.
      this._tallies.delete(null);
    }
    this._ribbon.changed();
    this._dataSoon();
    this._figuresSoon();
  }

  // What is shown

  /** Look at a turn; null: at none. */
  show(turn) {
    if (!this._ribbon) return;
    this._turn = turn ?? undefined;
    if (turn) this._ribbon.revealTurn(turn);
    this._showFigures();
  }

  /** Mark what the router would have chosen without the mask. */
  showGhosts(on) {
    this._press("ghosts", on);
    this._ribbon.ghosts = on;
    this._ribbon.repaint();
    this._soon();
  }

  /** Explain what there is, part by part; once more: no more of it. */
  explain() {
    if (this._tour.runs) this._tour.end();
    else this._tour.begin();
  }

  /** Let the picture stand still. */
  freeze(on) {
    this._press("freeze", on);
    this._ribbon.frozen = on;
    this._frozenAt = on ? this.routing.came : null;
    if (!on) this._ribbon.follow();
    this._showFigures();
    if (on) this.tell(this._note.textContent);
    this._soon();
  }

  /** Let pointers select spans without shift. */
  brushing(on) {
    this._press("span", on);
    this._ribbon.brushing = on;
  }

  /** Take more of the page, or give it back. */
  widen(on) {
    this._press("wide", on);
    this.element.toggleAttribute("data-wide", on);
    this._does.wide(on);
    this._ribbon.wide = on;
    this._banks.wide = on;
    this._toggles.wide.scrollIntoView({ block: "center" }); // what was above it is gone, or back
    this._soon();
  }

  _press(name, on) {
    this._toggles[name].setAttribute("aria-pressed", String(on));
  }

  /** Experts that are off: [[layer, expert], ..]. */
  set off(off) {
    if (this._banks) this._banks.off = off;
  }

  /** Select {turn, token, layer}; null: nothing. `open`: look at it closely. */
  select(selection, open = true) {
    if (!this._ribbon) return;
    this.selection = selection;
    this._ribbon.selection = selection;
    const layers = this._experts.layers;
    address.write(
      selection && { turn: selection.turn.number, token: selection.token + 1, layer: layers[selection.layer] },
    );
    if (open || !selection || this._opened) this.inspector.show(selection);
    this._opened = Boolean(selection) && (open || this._opened);
    this._showBanks();
    this._soon();
  }

  _pick(selection, open) {
    if (!open && selection) return this.select(selection, false);
    this._does.select(selection);
    if (selection) this._lookClosely();
    return undefined;
  }

  /** Bring the inspector into sight, where it is below what was pressed. */
  _lookClosely() {
    const heading = this.inspector.element.querySelector("h2");
    heading.scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
  }

  /** Select {layer, expert}; null: none. */
  selectExpert(expert) {
    if (!this._banks) return;
    this._banks.selected = expert;
    this.inspector.showExpert(expert);
    this._soon();
  }

  /** Select {from, to}; null: no span. */
  brush(span) {
    if (!this._ribbon) return;
    this.span = span;
    this._ribbon.span = span;
    this.inspector.showSpan(span);
    this._soon();
  }

  /** Select what the page's address names, where it is there. */
  fromAddress() {
    const place = this._ribbon && address.read();
    if (!place) return;
    const turn = this._does.turns().find((one) => one.number === place.turn);
    const rows = turn && this.routing.of(turn);
    const layer = this._experts.layers.indexOf(place.layer);
    if (!rows || layer < 0 || place.token < 1 || place.token > rows.length) return;
    const token = place.token - 1;
    this._does.select({ turn, token, layer });
    this._ribbon.reveal(turn, token);
  }

  /** For screen readers: the last of what was told in a second. */
  tell(text) {
    this._telling = text;
    this._tellTimer ??= setTimeout(() => {
      this._tellTimer = null;
      this._voice.textContent = this._telling;
    }, this._told && performance.now() - this._told < TELL_MS ? TELL_MS : 50);
    this._told = performance.now();
  }

  /** What a cell is, in words. */
  _words({ turn, token, layer }, rows) {
    const start = rows.start_ms[token];
    const text = rows.text[token].trim();
    const sound = rows.modality[token] === AUDIO;
    const [first, ...others] = rows.taken(token, layer);
    const parts = [
      turn ? say("routing.cell_turn", { turn: turn.number }) : say("routing.now"),
      say("routing.cell_token", { token: token + 1 }),
      sound ? say("routing.cell_sound") : say("routing.cell_text", { text }),
    ];
    if (start !== null) parts.push(say("routing.cell_time", { seconds: (start / 1000).toFixed(2) }));
    const place = `${parts.join(", ")}, ${say("routing.cell_layer", { layer: rows.layers[layer] })}`;
    if (!first) return `${place}: ${say("routing.cell_none")}`;
    const best = say("routing.cell_expert", { expert: first.expert, percent: percent(first.share) });
    const then = others.map(({ expert }) => expert).join(", ");
    return `${place}: ${best}${then ? `, ${say("routing.cell_then", { experts: then })}` : ""}`;
  }

  // Pictures and numbers

  /** There is new data: draw it, unless nothing may move, then now and then. */
  _dataSoon() {
    if (!calm()) return this._soon();
    this._calmly ??= setTimeout(() => {
      this._calmly = null;
      this._soon();
    }, CALM_MS);
    return undefined;
  }

  /** Draw as soon as there is a picture to be drawn. */
  _soon() {
    if (this._frame || document.hidden || !this._seen) return;
    this._frame = requestAnimationFrame((now) => this._picture(now));
  }

  _picture(now) {
    this._frame = 0;
    const before = this._drawn ?? -Infinity;
    if (now - before < PICTURE_MS - 4) return this._soon();
    this._drawn = now;
    const moves = this._ribbon.draw();
    const glows = this._banks.draw(this._frozenAt === null ? Math.min(now - before, 1000) : 0);
    if (moves || (glows && this._frozenAt === null)) this._soon();
    return undefined;
  }

  _figuresSoon() {
    this._figuring ??= setTimeout(() => {
      this._figuring = null;
      this._showFigures();
    }, FIGURES_MS);
  }

  _tally(turn) {
    const rows = turn ? this.routing.of(turn) : this.routing.pending;
    if (!rows?.length || rows.differs(this._experts.layers, rows.k)) return null;
    let tally = this._tallies.get(turn);
    if (!tally) this._tallies.set(turn, (tally = new Tally(this._experts)));
    tally.count(rows);
    return tally;
  }

  _showFigures() {
    let [outside, decisions] = [0, 0];
    for (const turn of [...this._does.turns(), null]) {
      const tally = this._tally(turn);
      outside += tally?.outside ?? 0;
      decisions += tally?.decisions ?? 0;
    }
    const { dataset } = this.element;
    dataset.tokens = this.routing.count;
    dataset.lost = this.routing.lost;
    dataset.outside = outside;
    dataset.decisions = decisions;
    this._showState();
    this._showNote();
    if (this._frozenAt !== null) return;
    const bad = outside > 0;
    this._badge.hidden = !decisions;
    if (this._badge.dataset.bad !== String(bad)) {
      this._badge.dataset.bad = String(bad);
      this._badge.replaceChildren(icon(bad ? "warning" : "check"), h("span", {}));
    }
    const plain = !this._experts.apart;
    this._badge.lastChild.textContent = plain
      ? say("routing.no_sides")
      : say("routing.leakage", { outside: shown(outside), decisions: shown(decisions) });
    this._showCounters();
    this._showBanks();
  }

  _showState() {
    let state = "waiting";
    const turn = this._live === undefined ? this._turn : this._live;
    if (turn === null && this.routing.pending) state = "listening";
    else if (turn) {
      const rows = this.routing.of(turn);
      const going = ["in_progress", ""].includes(turn.reply.status);
      const last = (rows?.length ?? 0) - 1;
      const { sound_ms: ready, played_ms: heard, cut } = turn.reply;
      if (!going || last < 0) state = turn.live && !cut && heard < ready - BREATH_MS ? "saying" : "over";
      else if (rows.role[last] !== "assistant") state = "reading";
      else if (rows.modality[last] === AUDIO) state = "units";
      else state = turn.kind !== "typed" && !rows.text.includes(HEARD) ? "heard" : "words";
    }
    this.element.dataset.state = state;
    this._state.textContent = say(`routing.states.${state}`);
  }

  _showNote() {
    let note = "";
    if (this._frozenAt !== null) {
      note = say("routing.frozen", { count: shown(this.routing.came - this._frozenAt) });
    } else if (!this._on) note = say("routing.off");
    else if (this._turn && !this.routing.of(this._turn)) note = say("routing.none", { turn: this._turn.number });
    else if (this._inexact && this._inexact.turn === this._turn) {
      note = say("routing.inexact", { turn: this._turn.number, why: this._inexact.why });
    } else if (this.routing.lost) note = say("routing.lost", { count: shown(this.routing.lost) });
    if (this._note.textContent !== note) {
      this._note.textContent = note;
      // Its number changes all the while it is frozen: freeze() tells of it once.
      if (note && this._frozenAt === null) this.tell(note);
    }
    this._note.hidden = !note;
  }

  _showCounters() {
    const tally = this._turn === undefined ? null : this._tally(this._turn);
    this._counters.hidden = this._whose.hidden = !tally;
    if (!tally) return;
    this._whose.textContent = this._turn ? say("routing.of_turn", { turn: this._turn.number }) : say("routing.of_now");
    const { used, idle, all } = tally.used;
    const { text, audio } = tally.kept;
    const { used: usedAt, idle: idleAt, text: textAt, audio: audioAt } = this._figures;
    usedAt.textContent = say("routing.used_of", { used, all });
    idleAt.textContent = idle;
    this._counters.dataset.used = used;
    this._counters.dataset.idle = idle;
    for (const [at, kept, name] of [
      [textAt, text, "text"],
      [audioAt, audio, "audio"],
    ]) {
      at.parentNode.hidden = kept.share === null;
      this._counters.dataset[name] = kept.share ?? "";
      if (kept.share === null) continue;
      at.textContent = say("routing.kept", { percent: percent(kept.share), chance: percent(kept.chance) });
    }
  }

  /** What the banks show while nothing glows. */
  _showBanks() {
    if (!this._banks || this._frozenAt !== null) return;
    const { selection } = this;
    const rows = selection && this.routing.of(selection.turn);
    const going = this._turn === null || (this._turn && ["in_progress", ""].includes(this._turn.reply.status));
    let about = "routing.banks_live";
    if (rows && selection.token < rows.length) {
      this._banks.showToken(rows, selection.token);
      about = "routing.banks_token";
    } else if (this._turn && !going && this._tally(this._turn)) {
      this._banks.showLoad(this._tally(this._turn).load);
      about = "routing.banks_load";
    } else this._banks.showLoad(null);
    this._about.textContent = say(about);
    this._dataSoon();
  }
}
