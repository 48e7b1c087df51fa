// A span of tokens, counted: every number with what it is counted of and what chance would give.

import { h } from "../dom.js";
import { say } from "../words.js";
import { balance, kept, keptShares, leakage, load, persistence, usedOf } from "./counts.js";
import { AUDIO, TEXT } from "./rows.js";
import { choiceOf, factList, formulas, groupOf, modalityOf, percent, scrolled } from "./telling.js";

const counted = new WeakMap(); // of Rows: what was counted of them last

/** What there is to count of one piece. Rows only grow: the same piece of the same rows is counted once. */
function countsOf({ rows, from, to }, experts) {
  const known = counted.get(rows);
  if (known && known.from === from && known.to === to && known.experts === experts) return known.counts;
  const piece = { rows, from, to };
  const counts = {
    sides: [TEXT, AUDIO].map((modality) => sumsOf(piece, experts, modality)),
    load: load([piece], experts),
    leaks: leakage(rows, experts, from, to),
    keeps: persistence([piece], experts),
  };
  counted.set(rows, { from, to, experts, counts });
  return counts;
}

/** The sums of all pieces' counts, in the same shape. */
function summed(all, experts) {
  const leaks = { outside: 0, decisions: 0 };
  const sum = { sides: [noSums(), noSums()], load: load([], experts), leaks, keeps: kept() };
  for (const counts of all) {
    for (const modality of [TEXT, AUDIO]) {
      for (const name of Object.keys(sum.sides[modality])) sum.sides[modality][name] += counts.sides[modality][name];
      const { share, pairs } = counts.keeps[modality === AUDIO ? "audio" : "text"];
      sum.keeps.sums[modality] += pairs ? share * pairs : 0;
      sum.keeps.pairs[modality] += pairs;
    }
    counts.load.forEach((count, i) => (sum.load[i] += count));
    leaks.outside += counts.leaks.outside;
    leaks.decisions += counts.leaks.decisions;
  }
  return sum;
}

/** The elements that tell of pieces [{rows, from, to (not included)}] of a model with these `experts`. */
export function spanPanel(pieces, experts) {
  const all = summed(
    pieces.map((piece) => countsOf(piece, experts)),
    experts,
  );
  const { load: counts, leaks } = all;
  const sides = all.sides.map(meansOf);
  const keptShare = keptShares(all.keeps, experts);
  const uses = usedOf(counts, experts);
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
      [say("inspector.used"), say("inspector.used_is", uses), { "data-used": uses.used, "data-idle": uses.idle }],
    ]),
    ...[TEXT, AUDIO]
      .filter((modality) => sides[modality].tokens)
      .map((modality) => sideOfSpan(sides[modality], keptShare, counts, modality, experts)),
    formulas([
      [say("inspector.leakage"), say("inspector.leakage_formula")],
      [say("inspector.persistence"), say("inspector.persistence_formula")],
      [say("inspector.confidence"), say("inspector.confidence_formula")],
      [say("inspector.removed"), say("inspector.removed_formula")],
      [say("inspector.entropy"), say("inspector.entropy_formula")],
      [say("inspector.cv"), say("inspector.cv_formula")],
      [say("inspector.idle"), say("inspector.idle_formula")],
      [say("inspector.effective"), say("inspector.effective_formula")],
    ]),
  );
}

/** `cells`: tokens times layers; `sure` of them have a confidence, `known` an entropy. */
const noSums = () => ({ tokens: 0, cells: 0, sure: 0, known: 0, confidence: 0, removed: 0, entropy: 0 });

function sumsOf({ rows, from, to }, experts, modality) {
  const sums = noSums();
  for (let token = from; token < to; token++) {
    if (rows.modality[token] !== modality) continue;
    sums.tokens += 1;
    for (let layer = 0; layer < rows.layers.length; layer++) {
      const { confidence, removed, entropy } = choiceOf(rows, experts, token, layer);
      sums.cells += 1;
      sums.removed += removed;
      if (confidence !== null) {
        sums.sure += 1;
        sums.confidence += confidence;
      }
      const size = groupOf(experts, modality, layer).length;
      if (entropy !== null && size > 1) {
        sums.known += 1;
        sums.entropy += entropy / Math.log(size);
      }
    }
  }
  return sums;
}

/** {tokens, confidence, removed, entropy}: means over tokens and layers. */
function meansOf({ tokens, cells, sure, known, confidence, removed, entropy }) {
  return {
    tokens,
    confidence: sure ? confidence / sure : null,
    removed: cells ? removed / cells : null,
    entropy: known ? entropy / known : null,
  };
}

function sideOfSpan({ tokens, confidence, removed, entropy }, keptShare, counts, modality, experts) {
  const { share, chance, pairs } = keptShare[modality === AUDIO ? "audio" : "text"];
  const told = (value) =>
    value === null ? say("inspector.unknown") : say("inspector.mean", { percent: percent(value), n: tokens });
  const layers = experts.layers.map((number, layer) => ({
    number,
    ...balance(counts, modality, layer, experts, experts.per_token, tokens),
    tokens,
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
            ...["cv", "cv_chance", "idle", "idle_chance", "effective", "effective_chance"].map((name) =>
              h("th", { scope: "col", class: "figure" }, say(`inspector.${name}`)),
            ),
          ),
        ),
        h("tbody", {}, ...layers.map((layer) => loadRow(layer, modality, experts))),
      ),
    ),
  );
}

function loadRow({ number, tokens, cv, chance, dead, effective, counts }, modality, experts) {
  const group = groupOf(experts, modality, experts.layers.indexOf(number));
  const size = group.length;
  // Of `tokens` fair draws of k.
  const idleChance = size * Math.max(1 - experts.per_token / size, 0) ** tokens;
  const effectiveChance = size * Math.exp(-(chance ** 2) / 2);
  const most = Math.max(...counts, 1);
  const told = counts.map((count, i) => say("inspector.load_one", { expert: group[i], count })).join(", ");
  return h(
    "tr",
    {
      "data-layer": number,
      "data-cv": cv,
      "data-chance": chance,
      "data-idle-chance": idleChance,
      "data-effective-chance": effectiveChance,
    },
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
    h("td", { class: "figure" }, idleChance.toFixed(1)),
    h("td", { class: "figure" }, effective.toFixed(1)),
    h("td", { class: "figure" }, effectiveChance.toFixed(1)),
  );
}
