// Questions that are not spoken into the microphone: typed ones and sound files. Each is shown at once, and sent when
// the connection stands and the one before it is answered.

import { base64Of } from "./turns.js";
import { say } from "./words.js";

export class Asking {
  /** `limits`: of the server. `send` sends an event to it. */
  constructor(limits, send) {
    this._limits = limits;
    this._send = send;
    this._waiting = []; // {turn, content}
    this._asked = null; // {turn, content, item}: sent, and not answered yet
    this._made = 0;
  }

  get waits() {
    return this._waiting.length > 0;
  }

  /** One was sent and is not answered yet. */
  get unanswered() {
    return this._asked !== null;
  }

  /** A question as text. */
  type(turns, text) {
    this._waiting.push({ turn: turns.add("typed", { text }), content: [{ type: "input_text", text }] });
  }

  /** A question as sound: PCM of 16 bit, 24 kHz. */
  give(turns, pcm, file) {
    const audio = base64Of(new Uint8Array(pcm));
    this._waiting.push({ turn: turns.add("file", { file }), content: [{ type: "input_audio", audio }] });
  }

  /** What the server makes of a sound file, as PCM; an Error with a sentence if it cannot be used. */
  async read(blob, name) {
    const megabytes = blob.size / 1e6;
    if (megabytes > this._limits.upload_mb) {
      throw new Error(say("compose.file_large", { megabytes: megabytes.toFixed(0), limit: this._limits.upload_mb }));
    }
    const address = new URL(`../sound?name=${encodeURIComponent(name)}`, import.meta.url);
    return (await fetched(address, { method: "POST", body: blob })).arrayBuffer();
  }

  /** Send the next one. */
  sendNext(turns) {
    const { turn, content } = this._waiting.shift();
    const item = `page_${Date.now().toString(36)}_${++this._made}`;
    this._asked = { turn, content, item };
    turns.sent(turn, item);
    const message = { id: item, type: "message", role: "user", content };
    this._send({ type: "conversation.item.create", event_id: `${item}_item`, item: message });
    this._send({ type: "response.create", event_id: `${item}_answer`, response: { metadata: { item } } });
  }

  /** The turn that this refused event was about, which is over now; undefined if it is none of ours. */
  refused(event) {
    const asked = this._asked;
    if (!asked || (event !== `${asked.item}_item` && event !== `${asked.item}_answer`)) return undefined;
    if (event.endsWith("_answer")) this._asked = null; // both were sent: the second is refused as well
    return asked.turn;
  }

  /** A response is over. */
  answered(response) {
    if (this._asked && response.metadata?.item === this._asked.item) this._asked = null;
  }

  /** Nothing that waits can be sent, because of `why`. What it was, for `again`. */
  fail(turns, why) {
    const failed = this._waiting;
    for (const { turn } of failed) turns.fail(turn, why);
    this._waiting = [];
    this._asked = null;
    return failed;
  }

  /** Ask what failed once more. */
  again(turns, failed) {
    for (const { turn, content } of failed) {
      turns.wait(turn);
      this._waiting.push({ turn, content });
    }
  }

  /** Another connection begins: what was sent went with the old one. */
  forget() {
    this._asked = null;
  }
}

/** `fetch`, with an Error that people understand where it fails. */
export async function fetched(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error(say("problems.no_server"));
  }
  if (answer.ok) return answer;
  const given = await answer.json().catch(() => null); // a proxy between may have words of its own
  throw new Error(given?.error?.message ?? `${answer.status} ${answer.statusText}`);
}
