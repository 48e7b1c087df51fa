// One token in all layers: who it is, what a layer's router gave it, and the experts of every other layer.

import { h } from "../dom.js";
import { say } from "../words.js";
import {
  choiceOf,
  factList,
  formulas,
  groupOf,
  modalityOf,
  nats,
  percent,
  timeOf,
  tokenText,
  whoOf,
} from "./telling.js";

/** Where a token stands in its turn, of which the rows may be a part. */
function placeOf({ turn, token }, rows) {
  const before = rows.first;
  return { token: before + token + 1, all: turn.tokens ?? before + rows.length, turn: turn.number };
}

export class TokenCard {
  /**
   * `does`: select({turn, token, layer}), and selectExpert({layer, expert}) where experts can be looked at. Steps stay
   * in the turn, unless `beside(selection, 1 or -1)` tells the next selection, or null.
   */
  constructor(does) {
    this._does = does;
    this.element = h("div", { class: "token-card" });
  }

  /** Show a token's layer (both from 0); `experts` as in facts.model.experts. */
  show(selection, rows, experts) {
    const { turn, token, layer } = selection;
    const active = document.activeElement;
    const held = this.element.contains(active) ? (active.closest("[data-keep]")?.dataset.keep ?? "") : "";
    const choice = choiceOf(rows, experts, token, layer);
    const id = rows.id[token];
    const logprob = rows.logprob[token];
    this.element.dataset.token = token;
    this.element.dataset.layer = rows.layers[layer];
    const parts = [
      h(
        "div",
        { class: "token-head", "data-modality": rows.modality[token] },
        this._step(selection, rows, -1),
        h("p", { class: "token-name" }, tokenText(rows.text[token])),
        this._step(selection, rows, 1),
      ),
      factList([
        [say("inspector.place"), say("inspector.place_in", placeOf(selection, rows))],
        [say("inspector.who"), whoOf(rows.role[token])],
        [say("inspector.modality"), modalityOf(rows.modality[token])],
        id === null ? null : [say("inspector.id"), String(id), { "data-id": id }],
        timeOf(rows, token) ? [say("inspector.when"), timeOf(rows, token)] : null,
        logprob === null
          ? null
          : [
              say("inspector.logprob"),
              say("inspector.logprob_is", { nats: nats(logprob), percent: percent(Math.exp(logprob)) }),
              { "data-logprob": logprob },
            ],
      ]),
      rows.exact ? null : h("p", { class: "note" }, say("inspector.approximate")),
      h("h3", {}, say("inspector.layer", { layer: rows.layers[layer] })),
      this._bars(choice, rows, selection),
      this._numbers(choice, groupOf(experts, rows.modality[token], layer).length),
      this._unmasked(choice, rows, layer),
      h("h3", {}, say("inspector.all_layers")),
      h("p", { class: "soft" }, say("inspector.all_layers_keys")),
      this._layers(selection, rows),
    ];
    this.element.replaceChildren(...parts.filter(Boolean));
    if (held) this.element.querySelector(`[data-keep="${held}"]`)?.focus();
  }

  /** The selection one token before or after this one, or null. */
  _beside(selection, rows, by) {
    if (this._does.beside) return this._does.beside(selection, by);
    const token = selection.token + by;
    return token >= 0 && token < rows.length ? { ...selection, token } : null;
  }

  _step(selection, rows, by) {
    const next = this._beside(selection, rows, by);
    return h(
      "button",
      {
        type: "button",
        class: "button quiet",
        "data-keep": by < 0 ? "before" : "after",
        "aria-label": say(by < 0 ? "inspector.token_before" : "inspector.token_after"),
        disabled: next === null,
        onclick: () => this._does.select(next),
      },
      by < 0 ? "←" : "→",
    );
  }

  /** An expert's number, to be looked at where that is possible. */
  _expert(layer, expert) {
    const label = say("inspector.expert", { expert });
    if (!this._does.selectExpert) return h("span", {}, label);
    const onclick = () => this._does.selectExpert({ layer, expert });
    return h("button", { type: "button", class: "link", onclick }, label);
  }

  _bars({ bars }, rows, { token, layer }) {
    const most = Math.max(...bars.map(({ probability }) => probability), 1e-6);
    const row = ({ expert, probability, chosen }, rank) =>
      h(
        "tr",
        { "data-expert": expert, "data-probability": probability, "data-rank": rank + 1, "data-chosen": chosen },
        h("td", {}, String(rank + 1)),
        h("th", { scope: "row" }, this._expert(rows.layers[layer], expert)),
        h(
          "td",
          { class: "bar", "aria-hidden": "true" },
          h("i", { style: { width: `${(100 * probability) / most}%` } }),
        ),
        h("td", { class: "figure" }, percent(probability)),
        h("td", {}, chosen ? say("inspector.chosen") : say("inspector.not_chosen")),
      );
    const shown = bars.map(row);
    const cut = bars.findLastIndex(({ chosen }) => chosen) + 1;
    const line = h(
      "tr",
      { class: "cut" },
      h("td", { colspan: 5 }, say("inspector.cut", { k: bars.filter(({ chosen }) => chosen).length })),
    );
    if (cut) shown.splice(cut, 0, line);
    return h(
      "table",
      { class: "bars" },
      h("caption", { class: "sr-only" }, say("inspector.bars", { layer: rows.layers[layer] })),
      h(
        "thead",
        { class: "sr-only" },
        h(
          "tr",
          {},
          h("th", { scope: "col" }, say("inspector.rank")),
          h("th", { scope: "col" }, say("inspector.expert_column")),
          h("td", {}),
          h("th", { scope: "col" }, say("inspector.probability")),
          h("th", { scope: "col" }, say("inspector.chosen_column")),
        ),
      ),
      h("tbody", { "data-modality": rows.modality[token] }, ...shown),
    );
  }

  _numbers({ confidence, margin, removed, entropy }, size) {
    const share = (value) => (value === null ? say("inspector.unknown") : percent(value));
    return h(
      "div",
      {},
      factList([
        [say("inspector.confidence"), share(confidence), { "data-confidence": confidence }],
        [say("inspector.margin"), share(margin), { "data-margin": margin }],
        [say("inspector.removed"), percent(removed), { "data-removed": removed }],
        [
          say("inspector.entropy"),
          entropy === null
            ? say("inspector.unknown")
            : say("inspector.entropy_is", {
                nats: nats(entropy),
                percent: percent(size > 1 ? entropy / Math.log(size) : 0),
                effective: Math.exp(entropy).toFixed(1),
                size,
              }),
          { "data-entropy": entropy },
        ],
      ]),
      formulas([
        [say("inspector.probability"), say("inspector.probability_formula")],
        [say("inspector.confidence"), say("inspector.confidence_formula")],
        [say("inspector.margin"), say("inspector.margin_formula")],
        [say("inspector.removed"), say("inspector.removed_formula")],
        [say("inspector.entropy"), say("inspector.entropy_formula")],
      ]),
    );
  }

  _unmasked({ unmasked }, rows, layer) {
    const one = ({ expert, probability, outside }) =>
      h(
        "li",
        { "data-expert": expert, "data-probability": probability, "data-outside": outside },
        this._expert(rows.layers[layer], expert),
        probability === null ? "" : ` ${percent(probability)}`,
        outside ? h("b", {}, ` ${say("inspector.outside")}`) : "",
      );
    return h(
      "div",
      { class: "unmasked" },
      h("h4", {}, say("inspector.unmasked")),
      h("p", { class: "soft" }, say("inspector.unmasked_about")),
      h("ul", { class: "chips" }, ...unmasked.map(one)),
    );
  }

  /** A button a layer; the arrows move through them, left and right through the tokens. */
  _layers(selection, rows) {
    const move = (event, layer) => {
      const last = rows.layers.length - 1;
      const here = { ...selection, layer };
      const to = {
        ArrowUp: { layer: Math.max(layer - 1, 0) },
        ArrowDown: { layer: Math.min(layer + 1, last) },
        Home: { layer: 0 },
        End: { layer: last },
        ArrowLeft: this._beside(here, rows, -1) ?? here,
        ArrowRight: this._beside(here, rows, 1) ?? here,
      }[event.key];
      if (!to || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation(); // the ribbon listens to arrows, too
      this._does.select({ ...here, ...to });
    };
    return h(
      "ol",
      { class: "layers" },
      ...rows.layers.map((number, layer) => {
        const current = layer === selection.layer;
        return h(
          "li",
          {},
          h(
            "button",
            {
              type: "button",
              "data-layer": number,
              "data-keep": current ? "layer" : null,
              "aria-current": current ? "true" : null,
              tabindex: current ? 0 : -1,
              onclick: () => this._does.select({ ...selection, layer }),
              onkeydown: (event) => move(event, layer),
            },
            h("span", { class: "soft" }, say("inspector.layer", { layer: number })),
            ...rows
              .taken(selection.token, layer)
              .map(({ expert, share }) =>
                h(
                  "span",
                  { "data-expert": expert, "data-probability": share },
                  h("b", {}, `${expert}`),
                  ` ${percent(share)}`,
                ),
              ),
          ),
        );
      }),
    );
  }
}
