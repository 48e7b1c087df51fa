// A conversation as a zip file: words, both voices, routing, times. docs/session.md has the format.

import { REPLY_RATE, TABLES, USER_RATE, bytesOf, joined } from "./turns.js";

/** A Blob of the turns that are over. `about`: {model, versions, settings}. */
export function zipped(turns, about) {
  const files = [];
  const listed = turns.map((turn, i) => {
    const name = `turn-${String(i + 1).padStart(2, "0")}`;
    const put = (file, content) => {
      files.push([file, content]);
      return file;
    };
    const { user, reply } = turn;
    return {
      turn: i + 1,
      kind: turn.kind,
      at: turn.at,
      seed: turn.seed,
      user: {
        text: user.text,
        words: user.words,
        confidence: user.confidence,
        wav: user.sound?.length ? put(`${name}-user.wav`, wav(user.sound, USER_RATE)) : null,
        file: user.file,
      },
      reply: {
        text: reply.text,
        status: reply.status,
        why: reply.why,
        confidence: reply.confidence,
        sound_ms: reply.sound_ms,
        played_ms: reply.played_ms,
        skipped_ms: reply.skipped_ms,
        cut: reply.cut,
        wav: reply.sound.length ? put(`${name}-reply.wav`, wav(joined(Int16Array, reply.sound), REPLY_RATE)) : null,
      },
      timings: turn.timings,
      tables:
        turn.tables &&
        Object.fromEntries(TABLES.map((table) => [table, put(`${name}.${table}.parquet`, turn.tables[table])])),
    };
  });
  const session = { format: "most-session", version: 1, created: new Date().toISOString(), ...about, turns: listed };
  const text = new TextEncoder().encode(JSON.stringify(session, null, 1));
  return new Blob(archive([["session.json", text], ...files]), { type: "application/zip" });
}

/** The turns of a session that the server read: for `Turns.restore`. `trace` is a turn's exact trace, or null. */
export function turnsOf({ session, sounds, traces }) {
  return session.turns.map((turn) => ({
    kind: turn.kind,
    at: turn.at,
    seed: turn.seed ?? null,
    timings: turn.timings,
    tables: turn.tables && tablesOf(traces[turn.turn].tables),
    trace: traces[turn.turn]?.exact ?? null,
    user: { ...turn.user, sound: turn.user.wav ? samplesOf(sounds[turn.user.wav]) : null },
    reply: { ...turn.reply, sound: turn.reply.wav ? [samplesOf(sounds[turn.reply.wav])] : [] },
  }));
}

/** A trace's files as live turns have them, of base64. */
function tablesOf(tables) {
  return Object.fromEntries(TABLES.map((table) => [table, bytesOf(tables[table])]));
}

function wav(samples, rate) {
  const header = new DataView(new ArrayBuffer(44));
  const text = (at, word) => [...word].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + samples.byteLength, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, samples.byteLength, true);
  const whole = new Uint8Array(44 + samples.byteLength);
  whole.set(new Uint8Array(header.buffer));
  whole.set(new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength), 44);
  return whole;
}

/** The samples of a WAV that the server checked: base64, PCM of 16 bits, one channel. */
function samplesOf(base64) {
  const bytes = bytesOf(base64);
  const view = new DataView(bytes.buffer);
  let at = 12;
  while (at + 8 <= bytes.length) {
    const size = Math.min(view.getUint32(at + 4, true), bytes.length - at - 8);
    if (String.fromCharCode(...bytes.subarray(at, at + 4)) === "data") {
      return new Int16Array(bytes.slice(at + 8, at + 8 + size - (size % 2)).buffer);
    }
    at += 8 + size + (size % 2);
  }
  return new Int16Array(0);
}

const CRCS = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRCS[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** The parts of a zip file of [[name, bytes], ...] in which every file is stored as it is: sound and Parquet do not shrink. */
export function archive(files) {
  const parts = [];
  const index = [];
  const now = new Date();
  const date = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
  const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
  let offset = 0;
  for (const [name, content] of files) {
    const letters = new TextEncoder().encode(name);
    // version 2.0, names in UTF-8, stored, when, what
    const fields = [
      [20, 2],
      [0x800, 2],
      [0, 2],
      [time, 2],
      [date, 2],
      [crc32(content), 4],
      [content.length, 4],
      [content.length, 4],
      [letters.length, 2],
      [0, 2],
    ];
    const local = numbers([[0x04034b50, 4], ...fields]);
    parts.push(local, letters, content);
    index.push(numbers([[0x02014b50, 4], [20, 2], ...fields, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), letters);
    offset += local.length + letters.length + content.length;
  }
  const size = index.reduce((sum, part) => sum + part.length, 0);
  const end = numbers([
    [0x06054b50, 4],
    [0, 2],
    [0, 2],
    [files.length, 2],
    [files.length, 2],
    [size, 4],
    [offset, 4],
    [0, 2],
  ]);
  return [...parts, ...index, end];
}

function numbers(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return new Uint8Array(view.buffer);
}
