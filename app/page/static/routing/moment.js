// What a page that was exported runs, from a disk and without any server: the ribbon, the token card, words and voices.

import { button, h } from "../dom.js";
import { REPLY_RATE, USER_RATE, bytesOf } from "../turns.js";
import { learn, say } from "../words.js";
import { cellAt, drawingOf, painted } from "./drawing.js";
import { Rows } from "./rows.js";
import { TokenCard } from "./token_card.js";

/** Show what pageFile() of page_file.js wrote. */
export function showMoment(data, place) {
  learn(data.words);
  document.title = data.lines[0];
  const pieces = data.turns.map(({ number, trace, delta, experts, from, tokens }) => {
    const rows = trace ? Rows.exactly(trace) : new Rows(delta.layers, delta.k);
    if (delta) rows.push(delta);
    rows.first = from;
    return { turn: { number, experts, tokens }, rows, from: 0, to: rows.length };
  });
  const beside = ({ turn, token, layer }, by) => {
    const at = pieces.findIndex((piece) => piece.turn === turn);
    const to = token + by;
    if (to >= 0 && to < pieces[at].rows.length) return { turn, token: to, layer };
    const next = pieces[at + by];
    return next ? { turn: next.turn, token: by > 0 ? 0 : next.rows.length - 1, layer } : null;
  };
  const card = new TokenCard({ select: (selection) => look(selection), beside });
  const drawing = drawingOf(pieces, data.lines);
  const canvas = painted(drawing);
  const stage = h("div", { class: "moment-ribbon" }, canvas);
  canvas.style.width = `${drawing.width}px`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", say("inspector.moment_ribbon"));
  let pinned = false;
  const look = (selection) => {
    const { rows } = pieces.find(({ turn }) => turn === selection.turn);
    card.show(selection, rows, selection.turn.experts);
  };
  const point = (event, pins) => {
    const box = canvas.getBoundingClientRect();
    const scale = drawing.width / box.width;
    const cell = cellAt(drawing, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
    if (cell && (pins || !pinned)) look(cell);
    if (pins) pinned = cell !== null;
  };
  canvas.addEventListener("pointermove", (event) => point(event, false));
  canvas.addEventListener("click", (event) => point(event, true));
  place.replaceChildren(
    h("h1", {}, data.lines[0]),
    h("p", { class: "soft" }, say("inspector.moment_about")),
    ...data.turns.map(spoken),
    h(
      "div",
      { class: "moment" },
      h("section", { "aria-label": say("inspector.moment_ribbon"), tabindex: 0 }, stage),
      h("section", { class: "inspector", "aria-label": say("inspector.tab_token") }, card.element),
    ),
  );
  const [{ turn, from }] = pieces;
  look({ turn, token: from, layer: 0 });
}

function spoken({ number, user, reply }) {
  const line = (who, { text, sound }, rate) =>
    h(
      "p",
      {},
      h("b", {}, `${say(`inspector.${who}`)}: `),
      h("bdi", {}, text),
      sound
        ? button({
            action: `play-${who}`,
            shape: "play",
            label: say("inspector.listen"),
            onclick: () => play(sound, rate),
          })
        : "",
    );
  return h(
    "section",
    { class: "moment-turn" },
    h("h2", {}, say("inspector.turn_title", { turn: number })),
    line("user", user, USER_RATE),
    line("assistant", reply, REPLY_RATE),
  );
}

let speaker = null;
let playing = null;

function play(base64, rate) {
  speaker ??= new AudioContext();
  playing?.stop();
  const bytes = bytesOf(base64);
  const pcm = new Int16Array(bytes.buffer, 0, bytes.length >> 1);
  const buffer = speaker.createBuffer(1, pcm.length, rate);
  buffer.copyToChannel(
    Float32Array.from(pcm, (sample) => sample / 32768),
    0,
  );
  playing = new AudioBufferSourceNode(speaker, { buffer });
  playing.connect(speaker.destination);
  playing.start();
}
