// The ribbon as a table, for screen readers and for all who would rather read: tokens down, layers across.

import { button, h } from "../dom.js";
import { say } from "../words.js";
import { modalityOf, percent, scrolled, timeOf, tokenText, whoOf } from "./telling.js";

const PAGE = 50; // tokens

export class TableTwin {
  /** `does`: select({turn, token, layer}), turns(), say(text). */
  constructor(routing, does) {
    this._routing = routing;
    this._does = does;
    this._page = 0;
    this._selection = null;
    this._place = h("p", { class: "soft table-place" });
    this._buttons = Object.fromEntries(
      ["first", "before", "next", "last"].map((action) => [
        action,
        button({
          action: `table-${action}`,
          label: say(`inspector.table_${action}`),
          onclick: () => this._turn(action),
        }),
      ]),
    );
    this._table = scrolled(say("inspector.table_region"));
    this.element = h(
      "div",
      { class: "table-twin" },
      h("div", { class: "pager" }, ...Object.values(this._buttons)),
      this._place,
      this._table,
    );
  }

  /** Show the page of a selection that is another one than before; else the page that was shown, as it is now. */
  show(selection) {
    const { turn, token } = this._selection ?? {};
    const other = selection?.turn !== turn || selection?.token !== token;
    this._selection = selection;
    const tokens = this._tokens();
    if (selection && other) {
      const place = tokens.findIndex((one) => one.turn === selection.turn && one.token === selection.token);
      if (place >= 0) this._page = Math.floor(place / PAGE);
    }
    this._draw(tokens);
  }

  _draw(tokens) {
    const pages = Math.max(Math.ceil(tokens.length / PAGE), 1);
    this._page = Math.min(Math.max(this._page, 0), pages - 1);
    const shown = tokens.slice(this._page * PAGE, (this._page + 1) * PAGE);
    const from = tokens.length ? this._page * PAGE + 1 : 0;
    this._place.textContent = say("inspector.table_page", {
      from,
      to: this._page * PAGE + shown.length,
      all: tokens.length,
      page: this._page + 1,
      pages,
    });
    this._buttons.first.disabled = this._buttons.before.disabled = this._page === 0;
    this._buttons.next.disabled = this._buttons.last.disabled = this._page === pages - 1;
    const held = document.activeElement?.closest("[data-row]")?.dataset.row;
    const layers = shown[0]?.rows.layers ?? [];
    this._table.replaceChildren(this._drawn(shown, layers, this._selection));
    if (held) this._table.querySelector(`[data-row="${held}"] button`)?.focus();
  }

  _tokens() {
    const all = [];
    for (const turn of this._does.turns()) {
      const rows = this._routing.of(turn);
      for (let token = 0; rows && token < rows.length; token++) all.push({ turn, rows, token });
    }
    return all;
  }

  _turn(action) {
    const tokens = this._tokens();
    const last = Math.ceil(tokens.length / PAGE) - 1;
    this._page = { first: 0, before: this._page - 1, next: this._page + 1, last }[action];
    this._draw(tokens);
    this._table.scrollTop = 0;
    this._does.say(this._place.textContent);
  }

  _drawn(shown, layers, selection) {
    const columns = ["row", "turn", "who", "modality", "text_column", "time_column"];
    return h(
      "table",
      {},
      h("caption", {}, say("inspector.table_caption")),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ...columns.map((name) => h("th", { scope: "col" }, say(`inspector.${name}`))),
          ...layers.map((layer) => h("th", { scope: "col", class: "figure" }, say("inspector.layer", { layer }))),
        ),
      ),
      h("tbody", {}, ...shown.map((one) => this._row(one, layers, selection))),
    );
  }

  _row({ turn, rows, token }, layers, selection) {
    const current = selection?.turn === turn && selection.token === token;
    const select = () => this._does.select({ turn, token, layer: selection?.layer ?? 0 });
    return h(
      "tr",
      { "data-row": `${turn.number}-${token}`, "data-modality": rows.modality[token], "data-current": current },
      h(
        "th",
        { scope: "row" },
        h(
          "button",
          {
            type: "button",
            class: "link",
            "aria-current": current ? "true" : null,
            "aria-label": say("inspector.look_at", { token: token + 1, turn: turn.number }),
            onclick: select,
          },
          String(token + 1),
        ),
      ),
      h("td", {}, String(turn.number)),
      h("td", {}, whoOf(rows.role[token])),
      h("td", {}, modalityOf(rows.modality[token])),
      h("td", {}, tokenText(rows.text[token])),
      h("td", {}, timeOf(rows, token)),
      ...layers.map((_, layer) => {
        const top = rows.taken(token, layer)[0];
        return h(
          "td",
          { class: "figure", "data-expert": top?.expert, "data-probability": top?.share },
          top ? h("b", {}, String(top.expert)) : "–",
          top ? ` ${percent(top.share)}` : "",
        );
      }),
    );
  }
}
