// What a row of tokens is made of, to be shown: stretches of one voice and kind, and how loud their sound is.

import { AUDIO } from "./rows.js";

const MARK = /^(<.*>|\[.*\])$/s; // <bos>, [Wave]: not words
const known = new WeakMap();

/**
 * The stretches of some Rows that alternate: [{from, to, role, modality, marks, text, start_ms, step_ms}], where those
 * with `marks` are no words. The last one grows with the rows.
 */
export function runsOf(rows) {
  let state = known.get(rows);
  if (!state) known.set(rows, (state = { runs: [], count: 0 }));
  const { runs } = state;
  for (; state.count < rows.length; state.count++) {
    const token = state.count;
    const [role, modality, text] = [rows.role[token], rows.modality[token], rows.text[token]];
    const marks = modality !== AUDIO && MARK.test(text);
    let run = runs.at(-1);
    if (!run || run.role !== role || run.modality !== modality || run.marks !== marks) {
      const start = rows.start_ms[token];
      const step = start === null ? 0 : rows.end_ms[token] - start;
      run = { from: token, to: token, role, modality, marks, text: "", start_ms: start ?? 0, step_ms: step };
      runs.push(run);
    }
    run.to = token + 1;
    if (modality !== AUDIO && !marks) run.text += text;
  }
  return runs;
}

export const BEAT_MS = 10; // of an envelope

const users = new WeakMap(); // Int16Array to its envelope
const replies = new WeakMap(); // turn to {beats, pieces, rest}
const EMPTY = new Float32Array(0);

/** How loud what the user said is, a value a beat, 0 to 1. */
export function userEnvelope(turn, rate) {
  const { sound } = turn.user;
  if (!sound?.length) return EMPTY;
  let beats = users.get(sound);
  if (!beats) {
    const size = (rate * BEAT_MS) / 1000;
    beats = new Float32Array(Math.ceil(sound.length / size));
    for (let i = 0; i < sound.length; i++) {
      const beat = Math.floor(i / size);
      const loud = Math.abs(sound[i]) / 32768;
      if (loud > beats[beat]) beats[beat] = loud;
    }
    users.set(sound, beats);
  }
  return beats;
}

/** The same of the reply, as far as its sound came. */
export function replyEnvelope(turn, rate) {
  const { sound } = turn.reply;
  if (!sound.length) return EMPTY;
  let state = replies.get(turn);
  if (!state || state.of !== sound) {
    state = { of: sound, beats: new Float32Array(512), pieces: 0, samples: 0 };
    replies.set(turn, state);
  }
  const size = (rate * BEAT_MS) / 1000;
  for (; state.pieces < sound.length; state.pieces++) {
    const piece = sound[state.pieces];
    const needed = Math.ceil((state.samples + piece.length) / size);
    if (needed > state.beats.length) {
      const more = new Float32Array(Math.max(needed, 2 * state.beats.length));
      more.set(state.beats);
      state.beats = more;
    }
    for (let i = 0; i < piece.length; i++) {
      const beat = Math.floor((state.samples + i) / size);
      const loud = Math.abs(piece[i]) / 32768;
      if (loud > state.beats[beat]) state.beats[beat] = loud;
    }
    state.samples += piece.length;
  }
  return state.beats;
}
