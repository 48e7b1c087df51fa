// What can be counted of choices: the formulas of most_core/metrics.py. `experts` is as in facts.model.experts; a piece
// is {rows, from, to}: the tokens from..to of some Rows, without `to`.

import { AUDIO, NO_EXPERT, TEXT } from "./rows.js";

const tables = new WeakMap(); // of `experts`

/** [2, L, E]: 1 where tokens of a modality may meet an expert. */
export function allowed(experts) {
  let table = tables.get(experts);
  if (!table) {
    const { groups, routed } = experts;
    table = new Uint8Array(2 * groups.length * routed);
    groups.forEach((group, layer) => {
      for (const expert of group.text) table[(TEXT * groups.length + layer) * routed + expert] = 1;
      for (const expert of group.audio) table[(AUDIO * groups.length + layer) * routed + expert] = 1;
    });
    tables.set(experts, table);
  }
  return table;
}

/** The choices outside of the token's own group, and all that were made, among the tokens from..to. */
export function leakage(rows, experts, from = 0, to = rows.length) {
  const inside = allowed(experts);
  const chosen = rows.chosen.view;
  const layers = rows.layers.length;
  let outside = 0;
  let decisions = 0;
  for (let token = from, at = rows.at(from, 0); token < to; token++) {
    for (let layer = 0; layer < layers; layer++) {
      const side = (rows.modality[token] * layers + layer) * experts.routed;
      for (let slot = 0; slot < rows.k; slot++, at++) {
        const expert = chosen[at];
        if (expert === NO_EXPERT) continue;
        decisions += 1;
        if (expert >= experts.routed || !inside[side + expert]) outside += 1;
      }
    }
  }
  return { outside, decisions };
}

/** [2, L, E]: how often each expert was chosen by the tokens of each modality. */
export function load(pieces, experts) {
  const layers = experts.layers.length;
  const counts = new Uint32Array(2 * layers * experts.routed);
  for (const { rows, from, to } of pieces) {
    const chosen = rows.chosen.view;
    for (let token = from, at = rows.at(from, 0); token < to; token++) {
      for (let layer = 0; layer < layers; layer++) {
        const side = (rows.modality[token] * layers + layer) * experts.routed;
        for (let slot = 0; slot < rows.k; slot++, at++) {
          if (chosen[at] < experts.routed) counts[side + chosen[at]] += 1;
        }
      }
    }
  }
  return counts;
}

/** How many of the experts of all layers took a token at all. */
export function used(pieces, experts) {
  return usedOf(load(pieces, experts), experts);
}

/** The same of a load that is known. */
export function usedOf(counts, experts) {
  const all = experts.layers.length * experts.routed;
  let some = 0;
  for (let cell = 0; cell < all; cell++) if (counts[cell] || counts[all + cell]) some += 1;
  return { used: some, idle: all - some, all };
}

/** A sum of shares that goes on: how much of a token's experts the token before had, by modality. */
export function kept() {
  return { sums: new Float64Array(2), pairs: new Uint32Array(2) };
}

/** Add the tokens from..to of `rows` to it; where token `from - 1` is there, it is the one before. */
export function addKept(total, rows, from, to) {
  const chosen = rows.chosen.view;
  const width = rows.layers.length * rows.k;
  for (let token = Math.max(from, 1); token < to; token++) {
    const modality = rows.modality[token];
    if (rows.modality[token - 1] !== modality) continue;
    let same = 0;
    for (let at = token * width; at < (token + 1) * width; at += rows.k) {
      for (let slot = at; slot < at + rows.k; slot++) {
        if (chosen[slot] === NO_EXPERT) continue;
        for (let before = at - width; before < at - width + rows.k; before++) {
          if (chosen[before] !== chosen[slot]) continue;
          same += 1;
          break;
        }
      }
    }
    total.sums[modality] += same / width;
    total.pairs[modality] += 1;
  }
}

/** {text, audio}, each {share, chance, pairs}; `share` is null where there is no pair. */
export function keptShares({ sums, pairs }, experts) {
  const of = (modality, name) => ({
    share: pairs[modality] ? sums[modality] / pairs[modality] : null,
    chance: mean(experts.groups.map((group) => experts.per_token / group[name].length)),
    pairs: pairs[modality],
  });
  return { text: of(TEXT, "text"), audio: of(AUDIO, "audio") };
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Which share of its experts a token takes from the token before, of the same modality: within pieces alone. */
export function persistence(pieces, experts) {
  const total = kept();
  for (const { rows, from, to } of pieces) addKept(total, rows, Math.min(from + 1, to), to);
  return keptShares(total, experts);
}

/**
 * How evenly the experts of a group are used in a layer (its place, from 0), by `load` of so many tokens: {cv, chance,
 * max_vio, dead, effective}. `chance` is the `cv` of a fair draw.
 */
export function balance(counts, modality, layer, experts, k, tokens) {
  const group = experts.groups[layer][modality === AUDIO ? "audio" : "text"];
  const side = (modality * experts.layers.length + layer) * experts.routed;
  const loads = group.map((expert) => counts[side + expert]);
  const size = loads.length;
  const total = Math.max(1, loads.reduce((sum, count) => sum + count, 0));
  const shares = loads.map((count) => count / total);
  const average = mean(shares);
  const deviation = Math.sqrt(mean(shares.map((share) => (share - average) ** 2)));
  return {
    cv: deviation * size,
    chance: Math.sqrt((size - k) / (k * Math.max(1, tokens))),
    max_vio: Math.max(...shares) * size - 1,
    dead: loads.filter((count) => !count).length,
    effective: Math.exp(-shares.reduce((sum, share) => sum + (share ? share * Math.log(share) : 0), 0)),
  };
}
