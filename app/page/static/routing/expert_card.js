// One expert over the whole conversation: how often it is used, by what, beside whom, and how its tokens sound.

import { button, h } from "../dom.js";
import { Resampler } from "../sound/resampler.js";
import { REPLY_RATE, joined } from "../turns.js";
import { say } from "../words.js";
import { AUDIO, TEXT } from "./rows.js";
import {
  clipOf,
  expertName,
  factList,
  formulas,
  groupOf,
  modalityOf,
  percent,
  sideOf,
  tokenText,
  whoOf,
  wholeOf,
} from "./telling.js";

const MOST_TEXTS = 8;
const MOST_CLIPS = 6;
const PAUSE = REPLY_RATE / 4; // samples
const CLIP_APART_MS = 240; // two clips of the same sound nearer than this would be one

export class ExpertCard {
  /** `does`: as in view.js; `knockOut(expert)` switches one off. */
  constructor(routing, does, knockOut) {
    this._routing = routing;
    this._does = does;
    this._knockOut = knockOut;
    this.element = h("div", { class: "expert-card" });
  }

  /** Show {layer (decoder number), expert} of a model with these `experts`. */
  show(expert, experts) {
    const side = sideOf(experts, expert);
    const layer = experts.layers.indexOf(expert.layer);
    const found = countsOf(wholeOf(this._routing, this._does.turns(), experts), layer, expert.expert);
    const sides = [TEXT, AUDIO].filter((modality) => side === "both" || (side === "audio") === (modality === AUDIO));
    this.element.dataset.layer = expert.layer;
    this.element.dataset.expert = expert.expert;
    const parts = [
      h("h3", {}, expertName(expert)),
      h("p", { class: "side", "data-side": side }, say(`inspector.side_${side}`)),
      button({
        action: "knock-out-expert",
        label: say("inspector.switch_off"),
        onclick: () => this._knockOut(expert),
      }),
      ...sides.flatMap((modality) => this._side(found, modality, layer, expert, experts)),
      h("p", { class: "caveat" }, say("inspector.frequency")),
      formulas([
        [say("inspector.chosen_share"), say("inspector.chosen_share_formula")],
        [say("inspector.likes"), say("inspector.likes_formula")],
        [say("inspector.partners"), say("inspector.partners_formula")],
      ]),
    ];
    this.element.replaceChildren(...parts.filter(Boolean));
  }

  _side(found, modality, layer, expert, experts) {
    const { tokens, chosen, leads } = found.of[modality];
    const chance = experts.per_token / groupOf(experts, modality, layer).length;
    const name = modalityOf(modality);
    return [
      h("h4", {}, say("inspector.load_of", { modality: name, n: tokens })),
      meter(tokens ? chosen / tokens : 0, chance, modality),
      factList([
        [
          say("inspector.chosen_share"),
          tokens
            ? say("inspector.chosen_is", {
                percent: percent(chosen / tokens),
                chosen,
                n: tokens,
                chance: percent(chance),
              })
            : say("inspector.no_tokens"),
          { "data-chosen": chosen, "data-tokens": tokens, "data-chance": chance },
        ],
        [say("inspector.leads"), say("inspector.leads_is", { leads, n: tokens }), { "data-leads": leads }],
      ]),
      modality === AUDIO ? this._clips(found, expert) : likes(found),
      partners(found.of[modality], expert, groupOf(experts, modality, layer).length, this._does),
    ];
  }

  _clips({ clips }, expert) {
    const list = [];
    for (const clip of clips.sort((one, other) => other.share - one.share)) {
      if (list.length === MOST_CLIPS) break;
      const near = (other) =>
        other.turn === clip.turn && other.role === clip.role && Math.abs(other.start - clip.start) < CLIP_APART_MS;
      if (!list.some(near) && clipOf(clip.turn, clip.rows, clip.token)) list.push(clip);
    }
    if (!list.length) return h("p", { class: "soft" }, say("inspector.no_clips"));
    const play = async ({ turn, rows, token }) => {
      const clip = clipOf(turn, rows, token);
      if (clip) await this._does.play(clip.pcm, clip.rate);
    };
    return h(
      "div",
      { class: "clips" },
      h("h4", {}, say("inspector.clips")),
      h("p", { class: "soft" }, say("inspector.clips_about")),
      h(
        "ol",
        {},
        ...list.map((clip) =>
          h(
            "li",
            { "data-token": clip.token, "data-turn": clip.turn.number, "data-probability": clip.share },
            button({
              action: "clip",
              shape: "play",
              label: say("inspector.clip", {
                who: whoOf(clip.role),
                turn: clip.turn.number,
                seconds: (clip.start / 1000).toFixed(2),
                percent: percent(clip.share),
              }),
              onclick: () => play(clip),
            }),
          ),
        ),
      ),
      button({
        action: "clips",
        label: say("inspector.play_all", expert),
        onclick: () =>
          this._does.play(inARow(list.map(({ turn, rows, token }) => clipOf(turn, rows, token))), REPLY_RATE),
      }),
    );
  }
}

/** Clips {pcm, rate} as one, at the rate of replies, with a pause after each. */
function inARow(clips) {
  const pieces = clips.flatMap(({ pcm, rate }) => {
    const resampler = new Resampler(rate, REPLY_RATE);
    const made = [resampler.push(Float32Array.from(pcm)), resampler.finish()];
    return [...made.map((wave) => Int16Array.from(wave, clipped)), new Int16Array(PAUSE)];
  });
  return joined(Int16Array, pieces);
}

const clipped = (sample) => Math.round(Math.min(Math.max(sample, -32768), 32767));

/** {of: [text, audio], texts, clips} of an expert in the pieces: how often it was chosen, led, and beside whom. */
function countsOf(pieces, layer, expert) {
  const of = [TEXT, AUDIO].map(() => ({ tokens: 0, chosen: 0, leads: 0, beside: new Map(), all: new Map() }));
  const texts = new Map(); // of the text tokens that it leads: {count, all}
  const clips = [];
  const all = new Map();
  for (const { turn, rows, from, to } of pieces) {
    for (let token = from; token < to; token++) {
      const side = of[rows.modality[token]];
      const taken = rows.taken(token, layer);
      side.tokens += 1;
      for (const one of taken) side.all.set(one.expert, (side.all.get(one.expert) ?? 0) + 1);
      const text = rows.text[token];
      if (rows.modality[token] === TEXT) all.set(text, (all.get(text) ?? 0) + 1);
      const mine = taken.find((one) => one.expert === expert);
      if (!mine) continue;
      side.chosen += 1;
      for (const one of taken) {
        if (one !== mine) side.beside.set(one.expert, (side.beside.get(one.expert) ?? 0) + 1);
      }
      const { start_ms: starts } = rows;
      if (rows.modality[token] === AUDIO && starts[token] !== null) {
        clips.push({ turn, rows, token, role: rows.role[token], start: starts[token], share: mine.share });
      }
      if (taken[0] !== mine) continue;
      side.leads += 1;
      if (rows.modality[token] === TEXT) texts.set(text, (texts.get(text) ?? 0) + 1);
    }
  }
  const listed = [...texts].map(([text, count]) => ({ text, count, all: all.get(text) }));
  return { of, clips, texts: listed.sort((one, other) => other.count - one.count) };
}

/** A bar of a share with the line of chance in it. */
function meter(share, chance, modality) {
  return h(
    "div",
    { class: "meter-line", "data-modality": modality, "aria-hidden": "true" },
    h("i", { style: { width: `${100 * share}%` } }),
    h("b", { style: { left: `${100 * chance}%` } }),
  );
}

function likes({ texts }) {
  if (!texts.length) return h("p", { class: "soft" }, say("inspector.likes_nothing"));
  return h(
    "div",
    { class: "likes" },
    h("h4", {}, say("inspector.likes")),
    h(
      "ol",
      { class: "chips" },
      ...texts
        .slice(0, MOST_TEXTS)
        .map(({ text, count, all }) =>
          h("li", { "data-count": count }, tokenText(text), ` ${say("inspector.of_all", { count, all })}`),
        ),
    ),
  );
}

/** `size`: of the group. The experts of one token differ, so that two of them meet less often than chance has each. */
function partners({ tokens, chosen, beside, all }, { layer }, size, does) {
  if (!chosen || !beside.size) return null;
  const k = [...all.values()].reduce((sum, count) => sum + count, 0) / tokens;
  const chance = ((k - 1) * size) / (k * (size - 1));
  const listed = [...beside].map(([expert, both]) => {
    const share = both / chosen;
    return { expert, both, share, lift: share / (all.get(expert) / tokens) };
  });
  listed.sort((one, other) => other.share - one.share || one.expert - other.expert);
  return h(
    "table",
    { class: "partners", "data-chance": chance },
    h("caption", {}, say("inspector.partners_of", { n: chosen, chance: chance.toFixed(2) })),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, say("inspector.expert_column")),
        h("th", { scope: "col", class: "figure" }, say("inspector.together")),
        h("th", { scope: "col", class: "figure" }, say("inspector.lift")),
      ),
    ),
    h(
      "tbody",
      {},
      ...listed
        .slice(0, MOST_TEXTS)
        .map(({ expert, both, share, lift }) =>
          h(
            "tr",
            { "data-expert": expert, "data-both": both, "data-lift": lift },
            h(
              "th",
              { scope: "row" },
              h(
                "button",
                { type: "button", class: "link", onclick: () => does.selectExpert({ layer, expert }) },
                say("inspector.expert", { expert }),
              ),
            ),
            h("td", { class: "figure" }, percent(share)),
            h("td", { class: "figure" }, `× ${lift.toFixed(2)}`),
          ),
        ),
    ),
  );
}
