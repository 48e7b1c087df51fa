// The conversation's conductor: microphone to socket, socket to speaker, both to the page.

import { Announcer } from "./announcer.js";
import { Asking, refusal } from "./asking.js";
import { Beside } from "./beside.js";
import { Composer } from "./composer.js";
import { button, h } from "./dom.js";
import * as earlier from "./earlier.js";
import { frame } from "./frame.js";
import { listenToKeys } from "./keys.js";
import { Playing } from "./playing.js";
import { turnsOf, zipped } from "./saved_session.js";
import { SettingsDialog, keep, load, wishes } from "./settings.js";
import { Connection } from "./socket.js";
import { Sound, SoundProblem } from "./sound/devices.js";
import { Stage } from "./stage.js";
import { Transcript } from "./transcript.js";
import { Turns, joined } from "./turns.js";
import { say } from "./words.js";

const USER_RATE = 16000;
const REPLY_RATE = 24000;

export class Talk {
  /** `facts`: what the server tells of itself. */
  constructor(facts) {
    this.facts = facts;
    this.settings = load(facts.limits.history);
    this.connection = new Connection({
      onOpen: (again) => this._opened(again),
      onEvent: (event) => this._take(event),
      onLost: (seconds) => this._lost(seconds),
      onRefused: (why) => this._over(say("problems.refused", { why })),
      onOver: (why, code) => this._over(code === 1013 ? say("problems.busy", { why }) : say("problems.session_over", { why })),
    });
    this.asking = new Asking(facts.limits, this.connection);
    this.playing = new Playing(this.connection, () => this._show(), (level) => this.stage.spoke(level));
    this.sound = new Sound({
      onChunk: (pcm, level) => this._microphone(pcm, level),
      onPlayback: (message) => this.playing.told(message),
      onLost: (code) => this._microphoneProblem(code === "denied" ? code : "lost"),
    });
    this.playing.sound = this.sound;
    this.turns = new Turns((turn, gone) => this._turnChanged(turn, gone));
    this.stage = new Stage({
      press: () => this.press(),
      release: () => this.release(),
      start: () => this.start(),
      end: () => this.end(),
      mute: () => this.mute(),
      stop: () => this.stop(),
      retry: () => this._retry(),
      volume: (share) => this._volume(share),
    });
    this.transcript = new Transcript("orders_human" in facts.figures, { play: (turn, who) => this._replay(turn, who), choose: (turn) => this._choose(turn) });
    this.composer = new Composer(facts.limits, facts.samples, {
      type: (text) => this.type(text),
      file: (file) => this.file(file),
      sample: (sample) => this.sample(sample),
    });
    this.beside = new Beside(facts);
    this.announcer = new Announcer();
    this.dialog = new SettingsDialog(this.settings, (name) => this._settingChanged(name), () => this._devices());
    this._told = "listening"; // the server's state
    this._place = 0; // in line
    this._wait = null; // until the connection is tried again
    this._running = false; // the microphone is wanted
    this._muted = false;
    this._pressed = false;
    this._problem = ""; // of the microphone
    this._silent = false; // the browser lets nothing sound
    this._saved = null; // an opened session hides the live one
    this.stage.volume.value = 100 * this.settings.volume;
    const { element, banner } = frame(facts.model.name, this, {
      save: () => this.save(),
      open: (file) => this.open(file),
      clear: () => this.clear(),
      settings: () => this.dialog.open(),
    });
    this.element = element;
    this._banner = banner;
    listenToKeys(this);
    document.addEventListener("visibilitychange", () => !document.hidden && this._stayAwake());
    addEventListener("pagehide", () => this._saved || earlier.keep(this.turns.list));
    this._restore(earlier.kept());
    this._show();
  }

  // What people do

  /** Begin to talk: called inside a tap or key press. */
  async start() {
    if (this._running || this._saved) return;
    this._running = true;
    this._problem = "";
    this.stage.problem(null);
    this.connection.open();
    this._show();
    try {
      await this._unlock();
      await this.sound.openMicrophone({ deviceId: this.settings.microphone, ...this._processing() });
    } catch (problem) {
      return this._microphoneProblem(problem instanceof SoundProblem ? problem.code : "unknown");
    }
    if (!this._running) this.sound.closeMicrophone(); // ended meanwhile
    this._stayAwake();
    this._show();
    return undefined;
  }

  /** Close microphone and session. What was said stays on the page. */
  end() {
    this._running = this._pressed = this._muted = false;
    this.sound.closeMicrophone();
    this.playing.stop();
    this.connection.close();
    this._place = 0;
    this._wait = null;
    this._told = "listening";
    this._lock?.release().catch(() => {});
    this._lock = null;
    this.turns.forgetConnection("cancelled");
    this.stage.problem(null);
    this._show();
  }

  mute() {
    if (!this._running) return;
    this._muted = !this._muted;
    this.connection.send({ type: "most.mute", on: this._muted });
    if (this._muted) this.stage.heard(-Infinity);
    this._show();
  }

  /** Silence, at once. */
  stop() {
    this.playing.stop();
    this.connection.send({ type: "most.stop" });
    this._show();
  }

  /** Hold to talk; before that it begins, in the same tap. */
  press() {
    if (this._saved) return;
    if (!this._running) return void this.start();
    if (this._muted) this.mute();
    this.stage.problem(null);
    this._pressed = true;
    this.connection.send({ type: "most.press" });
    this._show();
  }

  release() {
    if (!this._pressed) return;
    this._pressed = false;
    this.connection.send({ type: "most.release" });
    this._show();
  }

  /** Ask in writing. */
  async type(text) {
    await this._unlock().catch(() => {}); // without it the answer is only text
    this.asking.type(text);
    this._ask();
  }

  /** Ask with a sound file of any kind. */
  file(file) {
    return this._askWith(() => file, file.name, file.name);
  }

  /** Ask with one of the recordings that come with it. */
  sample({ file, says }) {
    const fetched = async () => (await fetch(new URL(`../samples/${file}`, import.meta.url))).blob();
    return this._askWith(fetched, file, says);
  }

  /** Give the conversation as a file. */
  save() {
    const over = this.turns.list.filter((turn) => turn.reply.status && turn.reply.status !== "in_progress");
    if (!over.length) return this.composer.note(say("problems.save_empty"));
    const { model, versions } = this.facts;
    const { microphone, speaker, volume, ...settings } = this.settings; // devices' names are nobody's business
    const blob = zipped(over, { model, versions, settings });
    const link = h("a", { href: URL.createObjectURL(blob), download: `most-session-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.zip` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    return undefined;
  }

  /** Look at a session of a file. */
  async open(file) {
    try {
      const answer = await fetch(new URL("../session", import.meta.url), { method: "POST", body: file });
      if (!answer.ok) throw new Error(await refusal(answer));
      const given = await answer.json();
      this.end();
      this._saved ??= { live: this.turns.list };
      this.transcript.clear();
      this.turns = new Turns((turn, gone) => this._turnChanged(turn, gone));
      this.turns.restore(turnsOf(given));
      const { turns, model, created } = given.session;
      const values = { name: file.name, count: turns.length, model: model.name, when: new Date(created).toLocaleString() };
      this._banner.replaceChildren(
        h("span", {}, say(turns.length === 1 ? "saved.one" : "saved.banner", values)),
        button({ action: "back", label: say("actions.back"), onclick: () => this._back() }),
      );
      this._banner.hidden = false;
      this._choose(this.turns.list.findLast((turn) => turn.timings) ?? null);
      this.composer.note("");
      this._show();
    } catch (error) {
      this.composer.note(say("problems.open_failed", { name: file.name, why: error.message }));
    }
  }

  /** Delete the conversation here and at the server. */
  clear() {
    if (this.turns.list.length && !confirm(say("actions.confirm_clear"))) return;
    const running = this._running;
    if (this._saved) this._back();
    this.end();
    this.turns.clear();
    this.transcript.clear();
    this._choose(null);
    earlier.keep(this.turns.list);
    if (running) this.start();
  }

  // What is shown

  _show() {
    const { connection, settings } = this;
    const options = { running: this._running, muted: this._muted, speaking: this._told === "speaking" || this._told === "thinking" };
    const values = { position: this._place, seconds: this._wait };
    let state = "idle";
    if (this._saved) state = "saved";
    else if (this._wait !== null) {
      state = "offline";
      if (this._wait < 1) options.hint = "offline_now";
    } else if (this._place) state = "queue";
    else if (this._wanted && !connection.isOpen) state = "connecting";
    else if (this.playing.paused) state = "paused";
    else if (this._told !== "listening") state = this._told;
    else if (this._problem) state = "typing_only";
    else if (!this._running) state = "idle";
    else if (!this.sound.microphoneOpen) state = "connecting";
    else if (this._muted) state = "muted";
    else if (settings.mode === "push") state = "hold";
    else state = "listening";
    if (state === "typing_only" && this._silent) options.hint = "typing_only_silent";
    if (state === "speaking" && settings.mode === "push") options.hint = "speaking_hold";
    else if (state === "speaking" && settings.half_duplex) options.hint = "speaking_half_duplex";
    const before = this.stage.state;
    this.stage.show(state, values, options);
    if (state !== before) this.announcer.say(`${say(`states.${state}`)}.`);
  }

  get _wanted() {
    return this._running || this.asking.waits;
  }

  _turnChanged(turn, gone) {
    this.transcript.update(turn, gone);
    if (gone) {
      if (this.beside.turn === turn) this._choose(null);
      return;
    }
    if (turn.timings && (!this.beside.turn || turn.number >= this.beside.turn.number)) this._choose(turn);
  }

  _choose(turn) {
    this.beside.show(turn);
    this.transcript.mark(turn);
  }

  _back() {
    this.transcript.clear();
    this.turns = new Turns((turn, gone) => this._turnChanged(turn, gone));
    for (const turn of this._saved.live) {
      this.turns.list.push(turn);
      this.transcript.update(turn, false);
    }
    this._saved = null;
    this._banner.hidden = true;
    this._choose(this.turns.list.findLast((turn) => turn.timings) ?? null);
    this._show();
  }

  // Asking

  async _askWith(fetched, file, name) {
    const unlocked = this._unlock().catch(() => {}); // at once, while the tap counts
    this.composer.note(say("compose.reading", { name: file }));
    try {
      const pcm = await this.asking.read(await fetched(), file);
      await unlocked;
      this.asking.give(pcm, name);
      this._ask();
    } catch (error) {
      this.composer.note(say("compose.file_failed", { name: file, why: error.message }));
    }
  }

  _ask() {
    if (this._saved) this._back();
    this.composer.note("");
    this.connection.open();
    if (this.connection.isOpen && !this._place) this._send();
    this._show();
  }

  _send() {
    if (!this.asking.waits) return;
    if (this._told !== "listening") {
      this.stop(); // what is being said now ends with the new question
    }
    this.asking.sendAll(this.turns);
  }

  /** Let the page sound: call it inside a tap or key press. Where that cannot be, answers are only text. */
  async _unlock() {
    const before = this._silent;
    try {
      await this.sound.unlock();
      this._silent = false;
      this._volume(this.settings.volume);
      if (this.settings.speaker && Sound.canChooseSpeaker) await this.sound.setSpeaker(this.settings.speaker).catch(() => {}); // unplugged: the usual one
    } catch (problem) {
      this._silent = true;
      throw problem;
    } finally {
      if (this._silent !== before) this.connection.send(this._wishes());
    }
  }

  _wishes() {
    return wishes({ ...this.settings, voice: this.settings.voice && !this._silent });
  }

  // The server

  _opened(again) {
    this._wait = null;
    this._told = "listening";
    this._place = 0;
    this.playing.begin(this.turns);
    if (again) this.transcript.note(say("transcript.restored"));
    this.connection.send(this._wishes());
    if (this._muted) this.connection.send({ type: "most.mute", on: true });
    this._remind();
    this._show();
  }

  /** A new session knows nothing of what was said before: tell it as much as it would remember. */
  _remind() {
    const known = this.turns.list.filter((turn) => turn.user.text && turn.reply.text).slice(-this.settings.history || Infinity);
    for (const { user, reply } of known) {
      const put = (role, type, text) =>
        this.connection.send({ type: "conversation.item.create", item: { type: "message", role, content: [{ type, text: text.slice(0, this.facts.limits.characters) }] } });
      put("user", "input_text", user.text);
      put("assistant", "output_text", reply.text);
    }
  }

  _lost(seconds) {
    if (this._wait === null) {
      this.playing.lose();
      this.turns.forgetConnection();
      this.asking.forget();
      earlier.keep(this.turns.list);
    }
    this._told = "listening";
    this._pressed = false;
    this._place = 0;
    this._wait = Math.ceil(seconds);
    clearInterval(this._countdown);
    this._countdown = setInterval(() => {
      if (this._wait === null || this._wait <= 0) return clearInterval(this._countdown);
      this._wait -= 1;
      return this._show();
    }, 1000);
    this._show();
  }

  _over(why) {
    this.end();
    this.asking.failAll(this.turns, why);
    this._again = () => this.start();
    this.stage.problem(why, true);
    this._show();
  }

  _take(event) {
    switch (event.type) {
      case "session.created":
        this._place = 0;
        this._send();
        this._show();
        break;
      case "most.queue":
        this._place = event.position;
        this._show();
        break;
      case "most.state":
        this._told = event.state;
        this._show();
        break;
      case "most.vad":
        this.stage.threshold(event.threshold_db);
        break;
      case "most.playback":
        this.playing.obey(event);
        break;
      case "most.notice":
        this.announcer.say(event.message);
        if (event.code === "too_short" && this.settings.mode === "push") this.stage.problem(say("problems.too_quick"));
        break;
      case "response.output_audio.delta":
        return this.playing.take(event);
      case "response.output_audio.done":
        this.playing.allSent(event);
        break;
      case "error":
        this._refused(event.error);
        break;
      default:
    }
    this.turns.take(event);
    if (event.type === "conversation.item.input_audio_transcription.completed") this.announcer.say(say("transcript.live_you", { text: event.transcript }));
    if (event.type === "response.done") {
      const turn = this.turns.byServer(event.turn_id);
      if (turn?.reply.text) this.announcer.say(say("transcript.live_most", { text: turn.reply.text }));
      earlier.keep(this.turns.list);
    }
    return undefined;
  }

  _refused(error) {
    const turn = this.asking.of(error.event_id);
    if (turn) this.turns.fail(turn, error.message);
    else if (error.code !== "session_ended" && error.code !== "response_cancel_not_active") {
      this.stage.problem(say("problems.server", { why: error.message }));
    }
  }

  // Sound

  _processing() {
    const { echoCancellation, noiseSuppression, autoGainControl } = this.settings;
    return { echoCancellation, noiseSuppression, autoGainControl };
  }

  _microphone(pcm, level) {
    if (this._muted || (this.settings.mode === "push" && !this._pressed)) {
      this.stage.heard(-Infinity);
      return;
    }
    this.stage.heard(level);
    if (!this._place) this.connection.sendSound(pcm);
  }

  async _replay(turn, who) {
    this._replaying?.stop();
    this._replaying = null;
    if (!turn) return;
    await this._unlock();
    const { user, reply } = turn;
    this._replaying = who === "user" ? this.sound.replay(user.sound, USER_RATE) : this.sound.replay(joined(reply.sound), REPLY_RATE);
    await this._replaying.ended;
  }

  _volume(share) {
    this.settings.volume = share;
    this.sound.volume = share * share; // as loud as it looks
    keep(this.settings);
  }

  _microphoneProblem(code) {
    this.sound.closeMicrophone();
    this._running = this._pressed = this._muted = false;
    this._problem = code;
    this._again = () => this.start();
    this.stage.problem(say(`microphone.${code}`), true);
    this._show();
  }

  _retry() {
    this.stage.problem(null);
    this._again?.();
  }

  async _devices() {
    return this.sound.devices().catch(() => ({ microphones: [], speakers: [] }));
  }

  async _settingChanged(name) {
    const reopen = ["microphone", "echoCancellation", "noiseSuppression", "autoGainControl"];
    if (name === "speaker") await this._unlock().catch((problem) => this._microphoneProblem(problem.code ?? "unknown"));
    else if (reopen.includes(name)) {
      if (!this.sound.microphoneOpen) return;
      this.sound.closeMicrophone();
      await this.sound.openMicrophone({ deviceId: this.settings.microphone, ...this._processing() }).catch((problem) => this._microphoneProblem(problem.code ?? "unknown"));
    } else this.connection.send(this._wishes());
    this._show();
  }

  async _stayAwake() {
    if (!this._running || this._lock || !navigator.wakeLock) return;
    this._lock = await navigator.wakeLock.request("screen").catch(() => null);
    this._lock?.addEventListener("release", () => {
      this._lock = null;
    });
  }

  _restore(turns) {
    if (!turns.length) return;
    this.turns.restore(turns);
    this.transcript.note(say("transcript.earlier"));
    this._choose(this.turns.list.findLast((turn) => turn.timings) ?? null);
  }
}
