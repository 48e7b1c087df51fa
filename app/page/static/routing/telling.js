// How tokens, experts and numbers are told wherever the routing is looked at closely.

import { h } from "../dom.js";
import { REPLY_RATE, USER_RATE, joined } from "../turns.js";
import { say } from "../words.js";
import { AUDIO, NO_EXPERT } from "./rows.js";

const CLIP_MS = 240; // of sound around a token: long enough for a syllable

/** A share of one in percent. */
export function percent(share) {
  return share > 0 && share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

/** A number of nats, with its sign where `signed`. */
export function nats(value, signed = false) {
  const text = Math.abs(value) < 0.0005 ? "0.000" : value.toFixed(3).replace("-", "−");
  return signed && !text.startsWith("−") && text !== "0.000" ? `+${text}` : text;
}

export function modalityOf(modality) {
  return say(modality === AUDIO ? "inspector.audio" : "inspector.text");
}

export function whoOf(role) {
  if (role === "user") return say("inspector.user");
  return role === "assistant" ? say("inspector.assistant") : role;
}

/** When a token is heard, in its own sound; "" where it has no time. */
export function timeOf(rows, token) {
  if (rows.start_ms[token] === null || rows.end_ms[token] === null) return "";
  return say("inspector.time", {
    from: (rows.start_ms[token] / 1000).toFixed(2),
    to: (rows.end_ms[token] / 1000).toFixed(2),
  });
}

/** A token's text as an element, whatever is in it. */
export function tokenText(text) {
  return text === "" ? h("span", { class: "soft" }, say("inspector.no_text")) : h("bdi", { class: "token-text" }, text);
}

/** An expert as people call it: "layer 3, expert 5". */
export function expertName({ layer, expert }) {
  return say("inspector.expert_name", { layer, expert });
}

/** "text", "audio", or "both": whose tokens may meet an expert. `layer` is the decoder's number. */
export function sideOf(experts, { layer, expert }) {
  const group = experts.groups[experts.layers.indexOf(layer)];
  const sides = ["text", "audio"].filter((side) => group?.[side].includes(expert));
  return sides.length === 1 ? sides[0] : "both";
}

/** The experts that tokens of this modality may meet in a layer (its place, from 0). */
export function groupOf(experts, modality, layer) {
  return experts.groups[layer][modality === AUDIO ? "audio" : "text"];
}

/**
 * What is known of the choice of a token in a layer (both from 0): {bars: [{expert, probability, chosen}], unmasked:
 * [{expert, probability or null, outside}], removed, confidence, margin, entropy}. The last three are null where they
 * are unknown. Confidence and margin are of the probabilities renormalised on the token's own group.
 */
export function choiceOf(rows, experts, token, layer) {
  const { exact, k, wide } = rows;
  const cell = token * rows.layers.length + layer;
  const taken = rows.taken(token, layer);
  const group = groupOf(experts, rows.modality[token], layer);
  const removed = exact ? exact.removed[cell] : rows.removed.view[cell] / 255;
  const bars = taken.map(({ expert, share }) => ({ expert, probability: share, chosen: true }));
  let ranked = bars; // by falling probability, as far as they are known
  if (exact) {
    ranked = [];
    for (let i = cell * wide; i < (cell + 1) * wide; i++) {
      if (exact.ranked[i] === NO_EXPERT) continue;
      const expert = exact.ranked[i];
      ranked.push({ expert, probability: exact.ranked_probs[i], chosen: taken.some((one) => one.expert === expert) });
    }
  }
  // Shares in bytes may leave nothing of a group that was chosen from.
  const known = exact ? 0 : ranked.reduce((sum, { probability }) => sum + probability, 0);
  const left = Math.max(1 - removed, known); // of the group's probability
  const apart = (first, second) =>
    second < ranked.length && left > 0 ? (ranked[first].probability - ranked[second].probability) / left : null;
  const unmasked = [];
  for (let i = 0; i < k; i++) {
    const expert = exact ? exact.unmasked[cell * wide + i] : rows.unmasked.view[cell * k + i];
    if (expert === NO_EXPERT) continue;
    const probability = exact ? exact.unmasked_probs[cell * wide + i] : null;
    unmasked.push({ expert, probability, outside: !group.includes(expert) });
  }
  return {
    bars: [...ranked, ...bars.filter(({ expert }) => !ranked.some((one) => one.expert === expert))],
    unmasked,
    removed,
    confidence: apart(0, 1),
    margin: exact ? apart(k - 1, k) : null,
    entropy: exact ? exact.entropy[cell] : null,
  };
}

/** The first of a turn's tokens that belongs to this exchange: what is before it was said earlier and is read again. */
export function ownFrom(rows) {
  const last = rows.turn.at(-1) ?? null;
  if (last !== null) {
    const first = rows.turn.findIndex((turn) => turn >= last - 1);
    return Math.max(first, 0);
  }
  // Without an exact trace no token tells its message: the last that was asked begins it.
  let from = rows.role.lastIndexOf("user");
  while (from > 0 && rows.role[from - 1] === "user") from -= 1;
  return Math.max(from, 0);
}

/** {pcm, rate}: the sound around a token of audio, as it was said or heard; null where the page has none. */
export function clipOf(turn, rows, token) {
  const start = rows.start_ms[token];
  if (rows.modality[token] !== AUDIO || start === null || token < ownFrom(rows)) return null;
  const heard = rows.role[token] === "user";
  const rate = heard ? USER_RATE : REPLY_RATE;
  const sound = heard ? (turn.user.sound ?? new Int16Array(0)) : joined(Int16Array, turn.reply.sound);
  const middle = (start + rows.end_ms[token]) / 2 - (heard ? 0 : turn.reply.skipped_ms);
  const from = Math.max(Math.round(((middle - CLIP_MS / 2) * rate) / 1000), 0);
  const pcm = sound.slice(from, Math.round(((middle + CLIP_MS / 2) * rate) / 1000));
  return pcm.length ? { pcm, rate } : null;
}

/** The pieces {turn, rows, from, to} (`to` not included) of all that was said, each turn's own tokens once. */
export function wholeOf(routing, turns, experts) {
  return turns
    .map((turn) => ({ turn, rows: routing.of(turn) }))
    .filter(({ turn, rows }) => rows?.length && sameExperts(routing.experts.get(turn) ?? experts, experts))
    .map(({ turn, rows }) => ({ turn, rows, from: ownFrom(rows), to: rows.length }));
}

/** The pieces of a span {from: {turn, token}, to: {turn, token}}, both included. */
export function piecesOf(routing, turns, { from, to }) {
  const first = turns.indexOf(from.turn);
  const last = turns.indexOf(to.turn);
  return turns
    .slice(Math.max(first, 0), last + 1)
    .map((turn) => ({ turn, rows: routing.of(turn) }))
    .filter(({ rows }) => rows?.length)
    .map(({ turn, rows }) => ({
      turn,
      rows,
      from: turn === from.turn ? from.token : ownFrom(rows),
      to: turn === to.turn ? Math.min(to.token + 1, rows.length) : rows.length,
    }));
}

/** Whether two descriptions are of the same layout: their numbers may be added. */
export function sameExperts(one, other) {
  return one === other || JSON.stringify([one.layers, one.groups]) === JSON.stringify([other.layers, other.groups]);
}

/** A list of [term, what it is, properties]. */
export function factList(facts) {
  return h(
    "dl",
    { class: "fact-list" },
    ...facts
      .filter(Boolean)
      .map(([term, value, properties = {}]) => h("div", properties, h("dt", {}, term), h("dd", {}, value))),
  );
}

/** What can be opened to see how numbers are made: [[name, formula], ...]. */
export function formulas(lines) {
  return h(
    "details",
    { class: "formulas" },
    h("summary", {}, say("inspector.computed")),
    h("dl", {}, ...lines.flatMap(([name, formula]) => [h("dt", {}, name), h("dd", {}, formula)])),
  );
}

/** Room for what may be wider or longer than it, to be scrolled by keys, too. */
export function scrolled(label, ...children) {
  return h("div", { class: "table-scroll", role: "region", tabindex: 0, "aria-label": label }, ...children);
}
