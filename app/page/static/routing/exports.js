// Taking it along: the routing of a span, a turn or the whole conversation as a file.

import { button, h } from "../dom.js";
import { fetched } from "../asking.js";
import { archive } from "../saved_session.js";
import { TABLES, tablesInBase64 } from "../turns.js";
import { say } from "../words.js";
import { leakage } from "./counts.js";
import { asSvg, drawingOf, painted, scaleOf } from "./drawing.js";
import { pageFile } from "./page_file.js";
import { AUDIO, NO_EXPERT } from "./rows.js";
import { piecesOf, sameExperts, wholeOf } from "./telling.js";

const SCOPES = ["span", "turn", "conversation"];
const KINDS = ["png", "svg", "html", "json", "parquet"];
const TYPES = {
  png: "image/png",
  svg: "image/svg+xml",
  html: "text/html",
  json: "application/json",
  zip: "application/zip",
};

export class Exports {
  /** `does`: download(blob, name), turns(), about(), as in view.js. */
  constructor(facts, routing, does) {
    this._facts = facts;
    this._routing = routing;
    this._does = does;
    this._turn = this._span = null;
    this._scopes = Object.fromEntries(
      SCOPES.map((scope) => [
        scope,
        h("input", { type: "radio", name: "inspector-scope", value: scope, onchange: () => this._show() }),
      ]),
    );
    this._sounds = h("input", { type: "checkbox", checked: true });
    this._buttons = Object.fromEntries(
      KINDS.map((kind) => [
        kind,
        button({
          action: `export-${kind}`,
          shape: "save",
          label: say(`inspector.export_${kind}`),
          onclick: () => this._save(kind),
        }),
      ]),
    );
    this._status = h("p", { class: "status", role: "status" });
    this.element = h(
      "div",
      { class: "exports" },
      h(
        "fieldset",
        {},
        h("legend", {}, say("inspector.scope")),
        ...SCOPES.map((scope) => h("label", {}, this._scopes[scope], say(`inspector.scope_${scope}`))),
      ),
      ...KINDS.map((kind) =>
        h(
          "div",
          { class: "export" },
          this._buttons[kind],
          h("p", { class: "soft" }, say(`inspector.export_${kind}_about`)),
        ),
      ),
      h("p", {}, h("label", {}, this._sounds, say("inspector.with_sounds"))),
      this._status,
    );
  }

  /** What may be taken: of this turn (null: of the last one), and of this span. */
  show(turn, span) {
    const known = this._does.turns().filter((one) => this._routing.of(one)?.length);
    this._turn = known.includes(turn) ? turn : (known.at(-1) ?? null);
    this._span = span && known.includes(span.from.turn) && known.includes(span.to.turn) ? span : null;
    const there = { span: this._span, turn: this._turn, conversation: this._turn };
    for (const scope of SCOPES) this._scopes[scope].disabled = !there[scope];
    if (!this._scope || !there[this._scope]) {
      const first = SCOPES.find((scope) => there[scope]);
      if (first) this._scopes[first].checked = true;
    }
    this._show();
  }

  get _scope() {
    return SCOPES.find((scope) => this._scopes[scope].checked);
  }

  _show() {
    const some = this._turn !== null && Boolean(this._scope);
    const pieces = some ? this._pieces() : [];
    for (const kind of KINDS) this._buttons[kind].disabled = !pieces.length;
    this._buttons.parquet.disabled = !pieces.some(({ turn }) => turn.tables);
  }

  _expertsOf(turn) {
    return this._routing.experts.get(turn) ?? this._facts.model.experts;
  }

  _pieces() {
    const turns = this._does.turns();
    const rows = this._routing.of(this._turn);
    const pieces = {
      span: () => piecesOf(this._routing, turns, this._span),
      turn: () => [{ turn: this._turn, rows, from: 0, to: rows.length }],
      conversation: () => wholeOf(this._routing, turns, this._expertsOf(this._turn)),
    }[this._scope]();
    const told = pieces.map((piece) => ({ ...piece, experts: this._expertsOf(piece.turn) }));
    return told.filter(({ experts }) => sameExperts(experts, told[0].experts)); // one picture is of one model
  }

  /** What the file is of, as its name begins. Traces are of whole turns. */
  _name(pieces, kind) {
    const [first, last] = [pieces[0], pieces.at(-1)];
    const turns = first === last ? `turn-${first.turn.number}` : `turns-${first.turn.number}-${last.turn.number}`;
    const tokens = this._scope === "span" && kind !== "parquet" ? `-tokens-${first.from + 1}-${last.to}` : "";
    return `most-routing-${this._scope === "conversation" ? "conversation-" : ""}${turns}${tokens}`;
  }

  /** Title and subtitle lines of pictures and pages. */
  _lines(pieces) {
    const about = this._does.about();
    const sum = { tokens: 0, text: 0, audio: 0, outside: 0, decisions: 0 };
    for (const { rows, from, to, experts } of pieces) {
      const { outside, decisions } = leakage(rows, experts, from, to);
      const audio = rows.modality.slice(from, to).filter((modality) => modality === AUDIO).length;
      sum.tokens += to - from;
      sum.audio += audio;
      sum.text += to - from - audio;
      sum.outside += outside;
      sum.decisions += decisions;
    }
    const [first, last] = [pieces[0], pieces.at(-1)];
    const title = { model: about.model.name, first: first.turn.number, last: last.turn.number };
    return [
      say(first === last ? "inspector.picture_turn" : "inspector.picture_turns", title),
      ...(first === last
        ? [say("inspector.picture_words", { you: first.turn.user.text, reply: first.turn.reply.text })]
        : []),
      say("inspector.picture_n", { n: sum.tokens, ...sum }),
      ...(pieces.every(({ rows }) => rows.exact) ? [] : [say("inspector.approximate")]),
    ];
  }

  async _save(kind) {
    const pieces = this._pieces();
    const name = this._name(pieces, kind);
    this._status.textContent = "";
    try {
      const made = await this[`_${kind}`](pieces);
      const ending = kind === "parquet" ? "zip" : kind;
      const file = `${name}${kind === "parquet" ? "-parquet" : ""}.${ending}`;
      this._does.download(made instanceof Blob ? made : new Blob([made], { type: TYPES[ending] }), file);
      this._status.textContent = say("inspector.saved", { name: file });
    } catch (error) {
      this._status.textContent = say("inspector.export_failed", { why: error.message });
    }
  }

  _png(pieces) {
    const drawing = drawingOf(pieces, this._lines(pieces));
    if (scaleOf(drawing) < 1) throw new Error(say("inspector.too_large")); // nobody could read it
    const canvas = painted(drawing);
    return new Promise((done, fail) =>
      canvas.toBlob((blob) => (blob ? done(blob) : fail(new Error(say("inspector.too_large")))), TYPES.png),
    );
  }

  _svg(pieces) {
    return asSvg(drawingOf(pieces, this._lines(pieces)));
  }

  _html(pieces) {
    const { words } = this._facts;
    return pageFile(pieces, { lines: this._lines(pieces), words, sounds: this._sounds.checked });
  }

  async _json(pieces) {
    const turns = await Promise.all(pieces.map(async (piece) => turnOf(piece, await reportOf(piece.turn))));
    const about = { ...this._does.about(), scope: this._scope };
    const created = new Date().toISOString();
    return JSON.stringify({ format: "most-routing", version: 1, created, ...about, turns });
  }

  _parquet(pieces) {
    const files = pieces
      .filter(({ turn }) => turn.tables)
      .flatMap(({ turn }) =>
        TABLES.map((table) => [`turn-${String(turn.number).padStart(2, "0")}.${table}.parquet`, turn.tables[table]]),
      );
    return new Blob(archive(files), { type: TYPES.zip });
  }
}

/** All metrics of a turn, as most_core.metrics has them; null of one that was not recorded. */
async function reportOf({ tables }) {
  if (!tables) return null;
  const body = JSON.stringify({ tables: tablesInBase64(tables), report: true });
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body };
  return (await (await fetched(new URL("../../trace", import.meta.url), options)).json()).report;
}

/** A piece as it stands in the JSON file. */
function turnOf({ turn, rows, from, to, experts }, report) {
  const { outside, decisions } = leakage(rows, experts, from, to);
  const tokens = [];
  for (let token = from; token < to; token++) {
    tokens.push({
      token: rows.first + token,
      id: rows.id[token],
      text: rows.text[token],
      modality: rows.modality[token] === AUDIO ? "audio" : "text",
      role: rows.role[token],
      start_ms: rows.start_ms[token],
      end_ms: rows.end_ms[token],
      logprob: rows.logprob[token],
      layers: rows.layers.map((layer, i) => choiceIn(rows, token, i, layer)),
    });
  }
  return {
    turn: turn.number,
    user: turn.user.text,
    file: turn.user.file,
    reply: turn.reply.text,
    exact: rows.exact !== null,
    experts,
    leakage: { outside, decisions },
    report_of_turn: report,
    tokens,
  };
}

/** One layer's choice of one token. Lists of experts are by falling probability; `_probs` are theirs, before the mask. */
function choiceIn(rows, token, place, layer) {
  const { exact, k, wide } = rows;
  const cell = token * rows.layers.length + place;
  const taken = rows.taken(token, place);
  const part = (name, values, each) => {
    const experts = values.subarray(cell * each, (cell + 1) * each).filter((expert) => expert !== NO_EXPERT);
    const probs = exact ? [...exact[`${name}_probs`].subarray(cell * each, cell * each + experts.length)] : null;
    return { [name]: [...experts], [`${name}_probs`]: probs };
  };
  return {
    layer,
    chosen: taken.map(({ expert }) => expert),
    chosen_probs: taken.map(({ share }) => share),
    ...(exact ? part("ranked", exact.ranked, wide) : { ranked: null, ranked_probs: null }),
    ...(exact ? part("unmasked", exact.unmasked, wide) : part("unmasked", rows.unmasked.view, k)),
    removed: exact ? exact.removed[cell] : rows.removed.view[cell] / 255,
    entropy: exact ? exact.entropy[cell] : null,
  };
}
