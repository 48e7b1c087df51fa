// What happened inside the turn that is looked at: its routing, and where its time went. Before the first, what is
// loaded.

import { h } from "./dom.js";
import { say } from "./words.js";

export class Beside {
  /** `routing`: the element that shows the routing. */
  constructor(facts, routing) {
    this._facts = facts;
    this.turn = null;
    this._title = h("h2", {});
    this._body = h("div", {});
    this.element = h(
      "aside",
      { class: "beside", "aria-label": say("beside.title") },
      this._title,
      routing,
      this._body,
    );
    this.show(null);
  }

  /** Show a turn; null: none is there. */
  show(turn) {
    this.turn = turn;
    this._title.textContent = turn ? say("beside.turn", { turn: turn.number }) : say("beside.title");
    if (turn?.timings) {
      this._times ??= h("details", { open: true }); // stays as it was left
      this._times.replaceChildren(h("summary", {}, say("beside.times_title")), ...waterfall(turn.timings));
      this._body.replaceChildren(this._times);
    } else
      this._body.replaceChildren(h("p", { class: "soft" }, say("beside.empty")), ...(turn ? [] : loaded(this._facts)));
  }
}

/** The model in plain words, with what was measured of it. */
function loaded({ model, limits, figures }) {
  const { experts } = model;
  const { qa_text_unseen: answers, orders_human: orders } = figures;
  const millions = (model.parameters / 1e6).toFixed(model.parameters < 1e8 ? 1 : 0);
  return [
    h("h3", {}, say("beside.loaded")),
    h("p", {}, say("beside.model", { name: model.name, parameters: millions, device: model.device })),
    experts.routed
      ? h(
          "p",
          {},
          say(experts.apart ? "beside.experts" : "beside.experts_shared", {
            ...experts,
            layers: experts.layers.length,
          }),
        )
      : null,
    answers && orders
      ? h("p", {}, say("beside.hears", { percent: Math.round(100 * answers), orders: Math.round(100 * orders) }))
      : null,
    h("p", {}, say("beside.limits", limits)),
    h("p", {}, say("beside.trust")),
  ].filter(Boolean);
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
    h(
      "th",
      { scope: "row" },
      label,
      share ? h("span", { class: "track", "aria-hidden": "true" }, h("i", { style: place })) : null,
    ),
    h("td", {}, `${Math.round(ms)} ms`),
  );
}
