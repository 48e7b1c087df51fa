// What happened inside the turn that is looked at: where its time went. Its lower half is kept for the routing.

import { h } from "./dom.js";
import { say } from "./words.js";

export class Beside {
  constructor() {
    this.turn = null;
    this._title = h("h2", {});
    this._body = h("div", {});
    this.element = h("aside", { class: "beside", "aria-label": say("beside.title") }, this._title, this._body);
    this.show(null);
  }

  /** Show a turn; null: none is there. */
  show(turn) {
    this.turn = turn;
    this._title.textContent = turn ? say("beside.turn", { turn: turn.number }) : say("beside.title");
    if (turn?.timings) this._body.replaceChildren(...waterfall(turn.timings));
    else this._body.replaceChildren(h("p", { class: "soft" }, say("beside.empty")));
  }
}

/** A bar a stage, each beginning where the one before ended: [heading, table]. */
function waterfall({ stages, total_ms: total }) {
  const rows = [];
  let from = 0;
  for (const { name, ms } of stages) {
    if (ms >= 0.5) rows.push(bar(say(`beside.stages.${name}`), ms, from / total, ms / total, name));
    from += ms;
  }
  return [
    h("p", { class: "soft" }, say("beside.times")),
    h(
      "table",
      { class: "waterfall" },
      h("tbody", {}, ...rows),
      h("tfoot", {}, bar(say("beside.total"), total, 0, 0, "total")),
    ),
  ];
}

function bar(label, ms, from, share, name) {
  const place = { left: `${100 * from}%`, width: `max(2px, ${100 * share}%)` };
  return h(
    "tr",
    { "data-stage": name },
    h("th", { scope: "row" }, label, share ? h("span", { class: "track", "aria-hidden": "true" }, h("i", { style: place })) : null),
    h("td", {}, `${Math.round(ms)} ms`),
  );
}
