// One token, one expert, or a span of tokens, looked at closely.

import { button, h } from "../dom.js";
import { say } from "../words.js";
import { ExpertCard } from "./expert_card.js";
import { Exports } from "./exports.js";
import { KnockOut } from "./knock_out.js";
import { spanPanel } from "./span.js";
import { TableTwin } from "./table_twin.js";
import { piecesOf, sameExperts, wholeOf } from "./telling.js";
import { TokenCard } from "./token_card.js";

const REST_MS = 700; // between two counts while a turn goes on
const TABS = ["token", "expert", "span", "table", "export"];

export class Inspector {
  /** `routing`: a Routing; `facts`: the server's. `does`: see view.js. */
  constructor(facts, routing, does) {
    this._facts = facts;
    this._routing = routing;
    this._does = does;
    this.selection = this.expert = this.span = null;
    this._rows = null; // in which the selected token is
    this._waiting = null;
    this._late = false; // whether there is more than the open panel shows
    this._told = []; // the turns that the open panel was filled from
    const chosen = {
      ...does,
      select: (selection) => {
        if (selection && !this._rowsOf(selection.turn)) return this._fill(); // of a turn that is gone
        this.show(selection);
        does.select(selection);
      },
      selectExpert: (expert) => {
        this.showExpert(expert);
        does.selectExpert(expert);
      },
    };
    this._token = new TokenCard(chosen);
    this._knockOut = new KnockOut(chosen);
    this._expert = new ExpertCard(routing, chosen, (expert) => this._knockOut.add(expert));
    this._table = new TableTwin(routing, chosen);
    this._exports = new Exports(facts, routing, does);
    this._spans = h("div", {});
    this._hints = Object.fromEntries(
      ["token", "expert", "span"].map((name) => [name, h("p", { class: "hint" }, say(`inspector.empty_${name}`))]),
    );
    const inside = {
      token: [this._hints.token, this._token.element],
      expert: [this._hints.expert, this._expert.element, this._knockOut.element],
      span: [this._hints.span, this._spans],
      table: [this._table.element],
      export: [this._exports.element],
    };
    this._tabs = {};
    this._panels = {};
    for (const name of TABS) {
      this._tabs[name] = h(
        "button",
        {
          type: "button",
          role: "tab",
          id: `inspector-tab-${name}`,
          "aria-controls": `inspector-panel-${name}`,
          onclick: () => this._open(name),
        },
        say(`inspector.tab_${name}`),
      );
      this._panels[name] = h(
        "div",
        { role: "tabpanel", id: `inspector-panel-${name}`, "aria-labelledby": `inspector-tab-${name}` },
        ...inside[name],
      );
    }
    this.element = h(
      "section",
      { class: "inspector", "aria-labelledby": "inspector-title" },
      h("h2", { id: "inspector-title" }, say("inspector.title")),
      h(
        "div",
        { role: "tablist", "aria-label": say("inspector.title"), onkeydown: (event) => this._move(event) },
        ...Object.values(this._tabs),
      ),
      ...Object.values(this._panels),
    );
    this.element.addEventListener("focusout", () => {
      if (this._late) this._soon();
    });
    this._open("token");
  }

  /** Look at {turn, token, layer} (counted from 0 in the turn's Rows); null: at nothing. */
  show(selection) {
    this._showToken(selection);
    // A token that is chosen in the table stays to be seen there.
    if (this.selection && this._shown !== "table" && this._shown !== "export") this._open("token");
    else this._fill();
  }

  _showToken(selection) {
    const rows = selection && this._rowsOf(selection.turn);
    this.selection = rows && selection.token < rows.length ? selection : null;
    this._rows = rows;
  }

  /** The rows of a turn of this conversation, or null. */
  _rowsOf(turn) {
    return this._does.turns().includes(turn) ? this._routing.of(turn) : null;
  }

  /** Look at an expert: {layer (decoder number), expert}; null: at none. */
  showExpert(expert) {
    this.expert = expert;
    if (expert) this._open("expert");
    else this._fill();
  }

  /** Look at all tokens from {turn, token} to {turn, token}, both included; null: at no span. */
  showSpan(span) {
    this.span = span;
    if (span && this._shown !== "export") this._open("span");
    else this._fill();
  }

  /** There is more of a turn, its exact trace came, or it is gone; null: any turn may be gone. */
  changed(turn = null) {
    const { selection } = this;
    const other = selection !== null && this._rowsOf(selection.turn) !== this._rows;
    if (other) this._showToken(selection);
    if (this._told.some((one) => !this._rowsOf(one))) return this._fill(); // what is gone is not to be seen
    if (other && !this._held) return this._fill();
    if (this._shown === "token" && !other && (turn !== selection?.turn || this._rows?.exact)) return undefined;
    this._late = true;
    return this._soon();
  }

  /** The conversation is another one: look at nothing. */
  forget() {
    clearTimeout(this._waiting);
    this._waiting = null;
    this.expert = this.span = null;
    this._showToken(null);
    this._knockOut.forget();
    this._expert.element.replaceChildren();
    this._spans.replaceChildren();
    this._fill();
  }

  _soon() {
    this._waiting ??= setTimeout(() => {
      this._waiting = null;
      if (!this._held) this._fill();
    }, REST_MS);
  }

  /** Whether someone is at a button of the open panel: they keep it, and it is filled once they leave. */
  get _held() {
    return this._panels[this._shown].contains(document.activeElement);
  }

  _expertsOf(turn) {
    return this._routing.experts.get(turn) ?? this._facts.model.experts;
  }

  /** The model whose experts are looked at: that of the turn that is selected, or of the last one. */
  get _experts() {
    const turns = this._does.turns().filter((turn) => this._routing.of(turn));
    return this._expertsOf(this.selection?.turn ?? turns.at(-1));
  }

  _open(name) {
    this._shown = name;
    for (const tab of TABS) {
      const shown = tab === name;
      this._tabs[tab].setAttribute("aria-selected", shown);
      this._tabs[tab].tabIndex = shown ? 0 : -1;
      this._panels[tab].hidden = !shown;
    }
    this._fill();
  }

  _move(event) {
    const at = TABS.indexOf(this._shown);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: TABS.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const name = TABS[(to + TABS.length) % TABS.length];
    this._open(name);
    this._tabs[name].focus();
  }

  /** Fill the panel that is seen: the others are not worth counting for while a turn goes on. */
  _fill() {
    const panel = this._panels[this._shown];
    const open = panel.querySelector("details")?.open ?? false;
    this._late = false;
    this._told = this._does.turns().filter((turn) => this._routing.of(turn));
    this._fillShown();
    const details = panel.querySelector("details");
    if (details) details.open = open;
  }

  _fillShown() {
    if (this._shown === "token") {
      this._hints.token.hidden = this.selection !== null;
      this._token.element.hidden = this.selection === null;
      if (this.selection) this._token.show(this.selection, this._rows, this._expertsOf(this.selection.turn));
    } else if (this._shown === "expert") {
      if (!this._experts.layers?.includes(this.expert?.layer)) this.expert = null; // of another model
      this._hints.expert.hidden = this.expert !== null;
      this._expert.element.hidden = this.expert === null;
      if (this.expert) this._expert.show(this.expert, this._experts);
      this._knockOut.offer(this.selection?.turn);
    } else if (this._shown === "span") this._fillSpan();
    else if (this._shown === "table") this._table.show(this.selection);
    else if (this._shown === "export") this._exports.show(this.selection?.turn ?? null, this.span);
  }

  _fillSpan() {
    const { span, _experts: experts } = this;
    const turns = this._does.turns();
    if (span && !(turns.includes(span.from.turn) && turns.includes(span.to.turn))) return this.showSpan(null);
    const all = span ? piecesOf(this._routing, turns, span) : wholeOf(this._routing, turns, experts);
    const pieces = all.filter(({ turn }) => sameExperts(this._expertsOf(turn), experts));
    this._hints.span.hidden = pieces.length > 0;
    if (!pieces.length) return this._spans.replaceChildren();
    const [first, last] = [pieces[0], pieces.at(-1)];
    const told = { from: first.from + 1, first: first.turn.number, to: last.to, last: last.turn.number };
    const clear = button({
      action: "clear-span",
      label: say("inspector.clear_span"),
      onclick: () => this._clearSpan(),
    });
    return this._spans.replaceChildren(
      h("p", {}, span ? say("inspector.span_is", told) : say("inspector.span_whole")),
      span ? clear : "",
      spanPanel(pieces, experts),
    );
  }

  _clearSpan() {
    this.showSpan(null);
    this._does.brush(null);
  }
}
