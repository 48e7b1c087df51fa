// One HTML file that shows a moment wherever it is opened: data, the page's own modules and style, nothing fetched.

import { fetched } from "../asking.js";
import { base64Of, joined } from "../turns.js";

const MODULES = [
  "dom.js",
  "words.js",
  "turns.js",
  "routing/rows.js",
  "routing/telling.js",
  "routing/token_card.js",
  "routing/drawing.js",
  "routing/moment.js",
];
const STYLES = ["tokens.css", "routing/inspector.css"];
const RULES = "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data:";
const HERE = new URL("../", import.meta.url);

/**
 * The text of the file. `pieces`: [{turn, rows, from, to (not included), experts}]; `lines`: the title, and what is
 * told below it; `sounds`: whether both voices are in it.
 */
export async function pageFile(pieces, { lines, words, sounds }) {
  const read = async (name) => (await fetched(new URL(name, HERE))).text();
  const [sources, styles] = await Promise.all([MODULES, STYLES].map((names) => Promise.all(names.map(read))));
  const modules = sources.map((source, i) => [`most/${MODULES[i]}`, dataUrl(named(source, MODULES[i]))]);
  const voice = (samples) => (sounds && samples?.length ? base64Of(bytesIn(samples)) : null);
  const turns = pieces.map(({ turn, rows, from, to, experts }) => ({
    number: turn.number,
    user: { text: turn.user.text, sound: voice(turn.user.sound) },
    reply: { text: turn.reply.text, sound: voice(joined(Int16Array, turn.reply.sound)) },
    experts,
    from: rows.first + from,
    tokens: rows.first + rows.length,
    [rows.exact ? "trace" : "delta"]: rows.exact ? traceOf(rows, experts, from, to) : deltaOf(rows, from, to),
  }));
  const { inspector } = words;
  // "<" ends no script where there is none.
  const inside = (value) => JSON.stringify(value).replaceAll("<", "\\u003c");
  return [
    "<!doctype html>",
    '<html lang="en">',
    '<meta charset="utf-8">',
    `<meta http-equiv="Content-Security-Policy" content="${RULES}">`,
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    "<title>MoST</title>",
    `<style>${styles.join("\n").replaceAll("</", "<\\/")}</style>`,
    `<script type="importmap">${inside({ imports: Object.fromEntries(modules) })}</script>`,
    `<script type="application/json" id="moment-data">${inside({ lines, turns, words: { inspector } })}</script>`,
    '<body class="moment-page"><main id="moment"></main>',
    '<script type="module">',
    'import { showMoment } from "most/routing/moment.js";',
    'const data = JSON.parse(document.getElementById("moment-data").textContent);',
    'showMoment(data, document.getElementById("moment"));',
    "</script></body></html>",
  ].join("\n");
}

const bytesIn = (samples) => new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);

const dataUrl = (source) => `data:text/javascript;base64,${base64Of(new TextEncoder().encode(source))}`;

/** Modules in data URLs find each other by these names alone. */
function named(source, name) {
  const here = new URL(name, "module:///most/");
  return source.replace(
    /(\bfrom ")(\.[^"]+)"/g,
    (_, before, path) => `${before}${new URL(path, here).pathname.slice(1)}"`,
  );
}

const COLUMNS = ["modality", "role", "text", "start_ms", "end_ms"];

function cut(rows, from, to, columns) {
  return Object.fromEntries(columns.map((name) => [name, rows[name].slice(from, to)]));
}

/** The tokens from..to of exact rows as POST page/trace would tell them. */
function traceOf(rows, experts, from, to) {
  const { exact, layers, k, wide } = rows;
  const part = (values, each) => {
    const cells = values.slice(from * layers.length * each, to * layers.length * each);
    return base64Of(new Uint8Array(cells.buffer));
  };
  const token = Array.from({ length: to - from }, (_, i) => rows.first + from + i);
  return {
    experts,
    k,
    wide,
    tokens: { token, ...cut(rows, from, to, [...COLUMNS, "logprob", "id", "turn"]) },
    chosen: part(rows.chosen.view, k),
    chosen_probs: part(exact.probs, k),
    ranked: part(exact.ranked, wide),
    ranked_probs: part(exact.ranked_probs, wide),
    unmasked: part(exact.unmasked, wide),
    unmasked_probs: part(exact.unmasked_probs, wide),
    removed: part(exact.removed, 1),
    entropy: part(exact.entropy, 1),
  };
}

/** The same of rows that are not exact, as a most.routing.delta would. */
function deltaOf(rows, from, to) {
  const { layers, k } = rows;
  const part = ({ view }, each) => base64Of(view.slice(from * layers.length * each, to * layers.length * each));
  return {
    layers,
    k,
    ...cut(rows, from, to, COLUMNS),
    experts: part(rows.chosen, k),
    weights: part(rows.weights, k),
    unmasked: part(rows.unmasked, k),
    removed: part(rows.removed, 1),
  };
}
