// What was said by whom, as the server tells it event by event. Knows neither the page nor sound devices.

/** Base64 to bytes. */
export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Bytes to base64. */
export function base64Of(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

/** The files of a trace as the server takes them. */
export function tablesInBase64(tables) {
  return Object.fromEntries(TABLES.map((name) => [name, base64Of(tables[name])]));
}

export const USER_RATE = 16000;
export const REPLY_RATE = 24000;
export const TABLES = ["tokens", "routing", "layers"]; // of a trace

/**
 * A turn: {number, kind, at, user, reply, timings, tables, seed, live, waiting}.
 * `user`: {text, partial, words, confidence, sound, file}, `reply`: {text, status, why, sound, sound_ms, played_ms,
 * skipped_ms (silence before its first sound, of which its units tell), cut (it was interrupted), confidence}, where sounds are Int16Array (16 kHz the user's, 24 kHz the reply's) and
 * `status` is one of "", "in_progress", "completed", "cancelled", "incomplete", "failed", "lost".
 */
function blank(number, kind) {
  return {
    number,
    kind,
    at: new Date().toISOString(),
    live: true, // of this connection
    waiting: false, // to be sent
    user: { text: "", partial: false, words: [], confidence: null, sound: null, file: null },
    reply: {
      text: "",
      status: "",
      why: "",
      sound: [],
      sound_ms: 0,
      played_ms: 0,
      skipped_ms: 0,
      cut: false,
      confidence: null,
    },
    timings: null,
    tables: null,
    seed: null,
  };
}

export class Turns {
  /** `changed(turn, gone)` is called with each turn that is new, different, or gone. */
  constructor(changed) {
    this.list = [];
    this._changed = changed;
    this.forgetConnection();
  }

  /** Another connection begins: its names mean nothing in this one. What was unfinished stays so, for this reason. */
  forgetConnection(status = "lost") {
    this._items = new Map();
    this._responses = new Map();
    this._numbers = new Map(); // the server's turn_id to ours
    this._asked = null; // the newest thing that the user said
    this._pieces = new Map(); // of what most.record brings, by turn
    if (this.pending?.user.text) this.pending.user.partial = false;
    else if (this.pending) this._remove(this.pending);
    this.pending = null; // who is speaking now
    for (const turn of this.list) {
      if (turn.waiting) continue;
      if (turn.live && (turn.reply.status === "in_progress" || turn.reply.status === "")) {
        turn.reply.status = status;
        this._changed(turn, false);
      }
      turn.live = false;
    }
  }

  /** Forget all. */
  clear() {
    this.list = [];
    this.forgetConnection();
  }

  /** Turns that are over: of a file, or of before. */
  restore(turns) {
    for (const given of turns) {
      const turn = blank(this.list.length + 1, given.kind);
      Object.assign(turn, given, { number: turn.number, live: false });
      turn.user = { ...blank(0).user, ...given.user };
      turn.reply = { ...blank(0).reply, ...given.reply };
      this.list.push(turn);
    }
  }

  /** The user typed, or gave a file: it waits to be sent. */
  add(kind, { text = "", file = null }) {
    const turn = this._append(kind);
    turn.waiting = true;
    turn.user = { ...turn.user, text, file, partial: kind === "file" };
    this._changed(turn, false);
    return turn;
  }

  /** What waited was sent as the item of this name. */
  sent(turn, item) {
    turn.waiting = false;
    turn.live = true;
    this._items.set(item, turn);
    this._asked = turn;
  }

  /** A turn came to nothing because of `why`: the first reason counts. */
  fail(turn, why) {
    if (turn.reply.status === "failed") return;
    Object.assign(turn.reply, { status: "failed", why });
    turn.waiting = turn.user.partial = false;
    this._changed(turn, false);
  }

  /** What failed is to be sent after all. */
  wait(turn) {
    Object.assign(turn.reply, { status: "", why: "" });
    turn.waiting = true;
    this._changed(turn, false);
  }

  byServer(turnId) {
    return this._numbers.get(turnId);
  }

  /** Whose reply is heard now, so far. */
  played(turn, ms) {
    turn.reply.played_ms = Math.min(ms, turn.reply.sound_ms);
  }

  /** Take one event of the server's; what is of no concern here is passed over. */
  take(event) {
    // Speech that ends is committed by the very next event, or it was a cough.
    if (this.pending?.stopped && event.type !== "input_audio_buffer.committed") {
      this._remove(this.pending);
      this.pending = null;
    }
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.pending = this._append("spoken");
        this.pending.user.partial = true;
        this._items.set(event.item_id, this.pending);
        return this._changed(this.pending, false);
      case "most.heard":
        if (!this.pending) return undefined;
        this.pending.user.text = event.text;
        return this._changed(this.pending, false);
      case "input_audio_buffer.committed":
        return this._committed(event.item_id);
      case "input_audio_buffer.speech_stopped":
        if (this.pending) this.pending.stopped = true;
        return undefined;
      case "conversation.item.input_audio_transcription.delta":
        return this._change(this._items.get(event.item_id), (turn) => {
          if (turn.user.partial) turn.user.text = "";
          turn.user.partial = false;
          turn.user.text += event.delta;
        });
      case "conversation.item.input_audio_transcription.completed":
        return this._change(this._items.get(event.item_id), (turn) => {
          turn.user.partial = false;
          turn.user.text = event.transcript;
        });
      case "conversation.item.deleted":
        return this._deleted(event.item_id);
      case "response.created": {
        // Of a question that was sent it names the item; else it answers what was said last.
        const asked = this._items.get(event.response.metadata?.item) ?? this._asked;
        if (!asked) return undefined;
        this._numbers.set(event.turn_id, asked);
        this._responses.set(event.response.id, asked);
        return this._change(asked, (turn) => {
          turn.reply.status = "in_progress";
        });
      }
      case "response.output_item.added":
        return void this._items.set(event.item.id, this._responses.get(event.response_id));
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        return this._change(this._responses.get(event.response_id), (turn) => {
          turn.reply.text += event.delta;
        });
      case "response.output_audio_transcript.done":
        return this._change(this._responses.get(event.response_id), (turn) => {
          turn.reply.text = event.transcript;
        });
      case "most.reply":
        return this._change(this._numbers.get(event.turn_id), (turn) => {
          turn.user.words = event.words;
          turn.user.confidence = meanConfidence(event.words);
          turn.reply.confidence = event.confidence;
        });
      case "most.timings":
        return this._change(this._numbers.get(event.turn_id), (turn) => {
          turn.timings = { stages: event.stages, total_ms: event.total_ms };
        });
      case "most.playback":
        return this._change(event.action === "play" && this._numbers.get(event.turn_id), (turn) => {
          turn.reply.skipped_ms = event.skipped_ms;
        });
      case "most.record.piece": {
        const pieces = this._pieces.get(event.turn_id) ?? {};
        (pieces[event.of] ??= []).push(bytesOf(event.data));
        return void this._pieces.set(event.turn_id, pieces);
      }
      case "most.record":
        return this._recorded(event);
      case "conversation.item.truncated":
        return this._change(this._items.get(event.item_id), (turn) => {
          this.played(turn, event.audio_end_ms);
          turn.reply.cut = true;
        });
      case "response.done":
        return this._done(event);
      default:
        return undefined;
    }
  }

  /** A piece of a reply's sound: its samples, for the speaker. */
  takeSound(event) {
    const turn = this._numbers.get(event.turn_id);
    const pcm = new Int16Array(bytesOf(event.delta).buffer);
    if (turn) {
      turn.reply.sound.push(pcm);
      turn.reply.sound_ms += (1000 * pcm.length) / REPLY_RATE;
    }
    return pcm;
  }

  _committed(item) {
    const turn = this._items.get(item) ?? this._append("spoken");
    if (turn === this.pending) this.pending = null;
    turn.user.partial = true; // until the model wrote down what it heard
    this._items.set(item, turn);
    this._asked = turn;
    this._changed(turn, false);
  }

  _deleted(item) {
    const turn = this._items.get(item);
    if (!turn) return;
    // What was said so far comes again as part of a longer turn; an answer that nobody heard goes with it.
    this._items.delete(item);
    this._remove(turn);
    if (this._asked === turn) this._asked = null;
  }

  _recorded(event) {
    const pieces = this._pieces.get(event.turn_id);
    this._pieces.delete(event.turn_id);
    this._change(this._numbers.get(event.turn_id), (turn) => {
      turn.seed = event.seed;
      if (event.user) turn.user.sound = new Int16Array(joined(Uint8Array, pieces.user).buffer);
      if (event.tables)
        turn.tables = Object.fromEntries(TABLES.map((name) => [name, joined(Uint8Array, pieces[name])]));
    });
  }

  _done(event) {
    this._change(this._numbers.get(event.turn_id), (turn) => {
      const { status, status_details: details } = event.response;
      turn.reply.status = status;
      turn.reply.why = details?.error?.message ?? "";
      turn.user.partial = false;
    });
  }

  _change(turn, change) {
    if (!turn) return;
    change(turn);
    this._changed(turn, false);
  }

  _append(kind) {
    const turn = blank((this.list.at(-1)?.number ?? 0) + 1, kind);
    this.list.push(turn);
    return turn;
  }

  _remove(turn) {
    this.list = this.list.filter((other) => other !== turn);
    this._changed(turn, true);
  }
}

/** How sure the ears are of what they heard, 0 to 1; null if they say nothing of it. */
export function meanConfidence(words) {
  const known = words.filter((word) => word.confidence !== null);
  return known.length ? known.reduce((sum, word) => sum + word.confidence, 0) / known.length : null;
}

/** Pieces of a kind, such as Int16Array, as one. */
export function joined(Kind, pieces) {
  const whole = new Kind(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
