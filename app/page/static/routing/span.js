// A span of tokens, counted: every number with what it is counted of and what chance would give.

import { h } from "../dom.js";
import { say } from "../words.js";
import { balance, leakage, load, persistence, usedOf } from "./counts.js";
import { AUDIO, TEXT } from "./rows.js";
import { choiceOf, factList, formulas, groupOf, modalityOf, percent, scrolled } from "./telling.js";

/** The elements that tell of pieces [{rows, from, to (not included)}] of a model with these `experts`. */
export function spanPanel(pieces, experts) {
  const sides = [TEXT, AUDIO].map((modality) => meansOf(pieces, experts, modality));
  const counts = load(pieces, experts);
  const leaks = { outside: 0, decisions: 0 };
  for (const { rows, from, to } of pieces) {
    const { outside, decisions } = leakage(rows, experts, from, to);
    leaks.outside += outside;
    leaks.decisions += decisions;
  }
  const { used, idle, all } = usedOf(counts, experts);
  const kept = persistence(pieces, experts);
  const n = sides[TEXT].tokens + sides[AUDIO].tokens;
  return h(
    "div",
    { class: "span-card", "data-tokens": n },
    factList([
      [
        say("inspector.span_tokens"),
        say("inspector.span_tokens_are", { n, text: sides[TEXT].tokens, audio: sides[AUDIO].tokens }),
        { "data-text": sides[TEXT].tokens, "data-audio": sides[AUDIO].tokens },
      ],
      [
        say("inspector.leakage"),
        say("inspector.leakage_is", leaks),
        { "data-outside": leaks.outside, "data-decisions": leaks.decisions },
      ],
      [say("inspector.used"), say("inspector.used_is", { used, idle, all }), { "data-used": used, "data-idle": idle }],
    ]),
    ...[TEXT, AUDIO]
      .map((modality) => (sides[modality].tokens ? sideOfSpan(sides[modality], kept, counts, modality, experts) : null))
      .filter(Boolean),
    formulas([
      [say("inspector.leakage"), say("inspector.leakage_formula")],
      [say("inspector.persistence"), say("inspector.persistence_formula")],
      [say("inspector.confidence"), say("inspector.confidence_formula")],
      [say("inspector.removed"), say("inspector.removed_formula")],
      [say("inspector.entropy"), say("inspector.entropy_formula")],
      [say("inspector.cv"), say("inspector.cv_formula")],
      [say("inspector.effective"), say("inspector.effective_formula")],
    ]),
  );
}

/** {tokens, known, confidence, removed, entropy}: means over tokens and layers; `known` of them have an entropy. */
function meansOf(pieces, experts, modality) {
  const sums = { confidence: 0, removed: 0, entropy: 0 };
  let [tokens, sure, known, cells] = [0, 0, 0, 0];
  for (const { rows, from, to } of pieces) {
    for (let token = from; token < to; token++) {
      if (rows.modality[token] !== modality) continue;
      tokens += 1;
      for (let layer = 0; layer < rows.layers.length; layer++) {
        const { confidence, removed, entropy } = choiceOf(rows, experts, token, layer);
        cells += 1;
        sums.removed += removed;
        if (confidence !== null) {
          sure += 1;
          sums.confidence += confidence;
        }
        const size = groupOf(experts, modality, layer).length;
        if (entropy !== null && size > 1) {
          known += 1;
          sums.entropy += entropy / Math.log(size);
        }
      }
    }
  }
  return {
    tokens,
    confidence: sure ? sums.confidence / sure : null,
    removed: cells ? sums.removed / cells : null,
    entropy: known ? sums.entropy / known : null,
  };
}

function sideOfSpan({ tokens, confidence, removed, entropy }, kept, counts, modality, experts) {
  const { share, chance, pairs } = kept[modality === AUDIO ? "audio" : "text"];
  const told = (value) =>
    value === null ? say("inspector.unknown") : say("inspector.mean", { percent: percent(value), n: tokens });
  const layers = experts.layers.map((number, layer) => ({
    number,
    ...balance(counts, modality, layer, experts, experts.per_token, tokens),
    counts: groupOf(experts, modality, layer).map(
      (expert) => counts[(modality * experts.layers.length + layer) * experts.routed + expert],
    ),
  }));
  return h(
    "section",
    { class: "span-side", "data-modality": modality },
    h("h3", {}, say("inspector.span_side", { modality: modalityOf(modality), n: tokens })),
    factList([
      [
        say("inspector.persistence"),
        share === null
          ? say("inspector.unknown")
          : say("inspector.persistence_is", { percent: percent(share), chance: percent(chance), n: pairs }),
        { "data-persistence": share },
      ],
      [say("inspector.confidence"), told(confidence), { "data-confidence": confidence }],
      [say("inspector.removed"), told(removed), { "data-removed": removed }],
      [say("inspector.entropy_share"), told(entropy), { "data-entropy": entropy }],
    ]),
    h("p", { class: "caveat" }, say("inspector.short_clips", { n: tokens })),
    scrolled(
      say("inspector.loads_region", { modality: modalityOf(modality) }),
      h(
        "table",
        { class: "loads" },
        h(
          "caption",
          {},
          say("inspector.loads", {
            modality: modalityOf(modality),
            n: tokens * experts.per_token,
            size: groupOf(experts, modality, 0).length,
          }),
        ),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ...["layer_column", "load"].map((name) => h("th", { scope: "col" }, say(`inspector.${name}`))),
            ...["cv", "cv_chance", "idle", "effective"].map((name) =>
              h("th", { scope: "col", class: "figure" }, say(`inspector.${name}`)),
            ),
          ),
        ),
        h("tbody", {}, ...layers.map((layer) => loadRow(layer, modality, experts))),
      ),
    ),
  );
}

function loadRow({ number, cv, chance, dead, effective, counts }, modality, experts) {
  const group = groupOf(experts, modality, experts.layers.indexOf(number));
  const most = Math.max(...counts, 1);
  const told = counts.map((count, i) => say("inspector.load_one", { expert: group[i], count })).join(", ");
  return h(
    "tr",
    { "data-layer": number, "data-cv": cv, "data-chance": chance },
    h("th", { scope: "row" }, String(number)),
    h(
      "td",
      {},
      h(
        "span",
        { class: "spark", role: "img", "aria-label": told, title: told },
        ...counts.map((count) => h("i", { style: { height: `${(100 * count) / most}%` } })),
      ),
    ),
    h("td", { class: "figure" }, cv.toFixed(2)),
    h("td", { class: "figure" }, chance.toFixed(2)),
    h("td", { class: "figure" }, String(dead)),
    h("td", { class: "figure" }, effective.toFixed(1)),
  );
}
