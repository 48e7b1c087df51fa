// Questions that are not spoken into the microphone: typed ones and sound files, sent once the connection stands.

import { say } from "./words.js";

export class Asking {
  /** `limits`: of the server. */
  constructor(limits, connection) {
    this._limits = limits;
    this._connection = connection;
    this._waiting = [];
    this._asked = new Map(); // event_id to the turn that it asks for
    this._made = 0;
  }

  /** Something waits to be sent. */
  get waits() {
    return this._waiting.length > 0;
  }

  /** A question as text. */
  type(text) {
    this._waiting.push({ kind: "typed", shown: { text }, content: [{ type: "input_text", text }] });
  }

  /** A question as sound: PCM of 16 bit, 24 kHz. */
  give(pcm, name) {
    let text = "";
    const bytes = new Uint8Array(pcm);
    for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
    this._waiting.push({ kind: "file", shown: { file: name }, content: [{ type: "input_audio", audio: btoa(text) }] });
  }

  /** What the server makes of a sound file, as PCM; an Error with a sentence if it cannot be used. */
  async read(blob, name) {
    const megabytes = blob.size / 1e6;
    if (megabytes > this._limits.upload_mb) {
      throw new Error(say("compose.file_large", { megabytes: megabytes.toFixed(0), limit: this._limits.upload_mb }));
    }
    const address = new URL(`../sound?name=${encodeURIComponent(name)}`, import.meta.url);
    const answer = await fetch(address, { method: "POST", body: blob });
    if (!answer.ok) throw new Error(await refusal(answer));
    return answer.arrayBuffer();
  }

  /** Send what waits; each becomes one of `turns`. */
  sendAll(turns) {
    const waiting = this._waiting;
    this._waiting = [];
    for (const { kind, shown, content } of waiting) {
      const item = `page_${Date.now().toString(36)}_${++this._made}`;
      const turn = turns.add(kind, item, shown);
      this._asked.set(`${item}_item`, turn).set(`${item}_answer`, turn);
      const message = { id: item, type: "message", role: "user", content };
      this._connection.send({ type: "conversation.item.create", event_id: `${item}_item`, item: message });
      this._connection.send({ type: "response.create", event_id: `${item}_answer` });
    }
  }

  /** Nothing that waits can be sent, because of `why`. */
  failAll(turns, why) {
    for (const { kind, shown } of this._waiting) turns.fail(turns.add(kind, "", shown), why);
    this._waiting = [];
    this.forget();
  }

  /** The turn that this event asked for. */
  of(event) {
    return this._asked.get(event);
  }

  /** Another connection begins. */
  forget() {
    this._asked.clear();
  }
}

/** Why the server does not do it, in its words; a proxy between may have others. */
export async function refusal(answer) {
  const given = await answer.json().catch(() => null);
  return given?.error?.message ?? `${answer.status} ${answer.statusText}`;
}
