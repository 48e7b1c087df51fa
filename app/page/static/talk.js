// The conversation's conductor: microphone to socket, socket to speaker, both to the page.

import { Announcer } from "./announcer.js";
import { Asking, fetched } from "./asking.js";
import { Beside } from "./beside.js";
import { Composer } from "./composer.js";
import { button, h } from "./dom.js";
import * as earlier from "./earlier.js";
import { frame } from "./frame.js";
import { listenToKeys } from "./keys.js";
import { Microphone } from "./microphone.js";
import { Playing } from "./playing.js";
import { View } from "./routing/view.js";
import { turnsOf, zipped } from "./saved_session.js";
import { SettingsDialog, keep, load, wishes } from "./settings.js";
import { Connection } from "./socket.js";
import { Sound } from "./sound/devices.js";
import { Stage } from "./stage.js";
import { Transcript } from "./transcript.js";
import { REPLY_RATE, Turns, USER_RATE, joined, tablesInBase64 } from "./turns.js";
import { say } from "./words.js";

const IDLE_MS = 5 * 60_000; // after which a session without a microphone gives its place to others
const OF_MICROPHONE = ["microphone", "echoCancellation", "noiseSuppression", "autoGainControl"]; // settings

export class Talk {
  /** `facts`: what the server tells of itself. */
  constructor(facts) {
    this.facts = facts;
    this.settings = load(facts.limits.history);
    const { element, banner } = this._build();
    this.element = element;
    this._banner = banner;
    this._told = "listening"; // the server's state
    this._place = 0; // in line
    this._wait = null; // seconds until the connection is tried again
    this._problem = ""; // of the microphone
    this._silent = ""; // why the browser lets nothing sound
    this._saved = null; // an opened session, {file, live, about}: it hides the live turns
    this._overcome = false; // a problem that is over once there is a session
    this._epoch = 0; // rises when what is still being read is not wanted any more
    this.stage.volume.value = 100 * this.settings.volume;
    listenToKeys(this);
    const remember = () => earlier.keep(this._saved?.live ?? this.turns.list);
    addEventListener("pagehide", remember);
    document.addEventListener("visibilitychange", () => document.hidden && remember()); // phones may not say more
    const before = earlier.kept();
    if (before.length) {
      this.turns.restore(before);
      this._showTurns();
      this.transcript.note(say("transcript.earlier"));
    }
    this._show();
  }

  _build() {
    const { facts } = this;
    this.connection = new Connection({
      onOpen: (again) => this._opened(again),
      onEvent: (event) => this._take(event),
      onLost: (seconds) => this._lost(seconds),
      onRefused: (why) => this._over(say("problems.refused", { why })),
      onOver: (why, code) => this._over(say(code === 1013 ? "problems.busy" : "problems.session_over", { why })),
    });
    const send = (event) => this.connection.send(event);
    this.sound = new Sound({
      onChunk: (pcm, level) => this._hear(pcm, level),
      onPlayback: (message) => {
        this.playing.told(message);
        this.routing.played();
      },
      onLost: (code) => this._microphoneProblem(code === "denied" ? code : "lost"),
      onMuted: (muted) => this.stage.problem(muted ? say("microphone.muted") : null),
      onSuspended: (suspended) => this.stage.problem(suspended ? say("microphone.blocked") : null, suspended),
    });
    this.microphone = new Microphone(this.sound, this.settings, send, () => this._show());
    this.playing = new Playing(
      this.connection,
      () => this._show(),
      (level) => this.stage.spoke(level),
    );
    this.playing.sound = this.sound;
    this.asking = new Asking(facts.limits, send);
    this.turns = this._newTurns();
    this.stage = new Stage({
      press: () => this.press(),
      release: () => this.microphone.release(),
      start: () => this.start(),
      end: () => this.end(),
      mute: () => this.mute(),
      stop: () => this.stop(),
      retry: () => this._retry(),
      volume: (share) => this._volume(share),
    });
    this.transcript = new Transcript("orders_human" in facts.figures, {
      play: (turn, who) => this._replay(turn, who),
      choose: (turn) => this._choose(turn),
    });
    this.composer = new Composer(facts.limits, facts.samples, {
      type: (text) => this.type(text),
      file: (file) => this.file(file),
      sample: (sample) => this.sample(sample),
    });
    this.routing = new View(facts, this._ofRouting());
    this.routing.on = this.settings.routing;
    this.beside = new Beside(facts, this.routing.element);
    this.announcer = new Announcer();
    const devices = () => this.sound.devices().catch(() => ({ microphones: [], speakers: [] }));
    this.dialog = new SettingsDialog(this.settings, (name) => this._settingChanged(name), devices);
    return frame(facts.model.name, this, {
      save: () => this.save(),
      open: (file) => this.open(file),
      clear: () => this.clear(),
      settings: () => this.dialog.open(),
    });
  }

  /** What the routing wants done. */
  _ofRouting() {
    return {
      play: (pcm, rate) => this._hearAgain(pcm, rate),
      stop: () => this._stopReplay(),
      settings: () => this.settings,
      turns: () => this.turns.list,
      select: (selection) => this.routing.select(selection),
      selectExpert: (expert) => this.routing.selectExpert(expert),
      brush: (span) => this.routing.brush(span),
      download,
      about: () => this._saved?.about ?? { model: this.facts.model, versions: this.facts.versions },
      say: (text) => this.routing.tell(text),
      off: (experts) => (this.routing.off = experts),
      wide: (on) => this.element.toggleAttribute("data-wide", on),
    };
  }

  // What people do

  /** Begin to talk: called inside a tap or key press. */
  async start() {
    if (this.microphone.wanted || this._saved) return undefined;
    if (!this.facts.model.hears) return this._microphoneProblem("deaf");
    this._problem = "";
    this.stage.problem(null);
    this.connection.open();
    const code = await this.microphone.open(this._unlock());
    return code ? this._microphoneProblem(code) : undefined;
  }

  /** Close microphone and session. What was said stays on the page. */
  end(why = say("problems.ended")) {
    this._epoch += 1;
    clearTimeout(this._idle);
    this.microphone.close();
    this.playing.stop();
    this.connection.close();
    this._place = 0;
    this._wait = null;
    this._told = "listening";
    this.turns.forgetConnection("cancelled");
    this.routing.forgetConnection();
    const failed = this.asking.fail(this.turns, why);
    this.stage.problem(null);
    this._show();
    return failed;
  }

  mute() {
    this.microphone.mute();
  }

  /** Silence, at once. */
  stop() {
    this._stopReplay();
    this.playing.stop();
    this.connection.send({ type: "most.stop" });
    this._show();
  }

  /** Hold to talk; before that it begins. */
  press() {
    if (this._saved) return;
    if (!this.microphone.wanted) return void this.start();
    this._stopReplay();
    if (this.playing.orphaned) this.playing.stop();
    this.stage.problem(null);
    this.microphone.press();
  }

  /** Let the key go. */
  release() {
    this.microphone.release();
  }

  /** Ask in writing. */
  async type(text) {
    this._live();
    const interrupts = this._interrupts;
    this.asking.type(this.turns, text);
    this._show();
    await this._unlock().catch(() => {}); // without it the answer is only text
    this._ask(interrupts);
  }

  /** Ask with a sound file of any kind. */
  file(file) {
    return this._askWith(() => file, file.name, file.name);
  }

  /** Ask with one of the recordings that come with it. */
  sample({ file, says }) {
    const recording = async () => (await fetched(new URL(`../samples/${file}`, import.meta.url))).blob();
    return this._askWith(recording, file, says);
  }

  /** Give the conversation as a file. */
  save() {
    const name = `most-session-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.zip`;
    if (this._saved) return download(this._saved.file, this._saved.file.name);
    const over = this.turns.list.filter(({ reply }) => reply.status && reply.status !== "in_progress");
    if (!over.length) return this.composer.note(say("problems.save_empty"));
    const { model, versions } = this.facts;
    const { microphone, speaker, volume, ...settings } = this.settings; // devices' names are nobody's business
    return download(zipped(over, { model, versions, settings }), name);
  }

  /** Look at a session of a file. */
  async open(file) {
    const epoch = ++this._epoch;
    try {
      const answer = await fetched(new URL("../session", import.meta.url), { method: "POST", body: file });
      const given = await answer.json();
      const restored = turnsOf(given);
      if (epoch !== this._epoch) return;
      const live = this._saved?.live ?? this.turns.list;
      const opened = this._saved ? this.turns.list : []; // of a session that was open before
      const { turns, model, versions, created } = given.session;
      this.end();
      this._saved = { file, live, about: { model, versions } };
      this.turns = this._newTurns();
      this.turns.restore(restored);
      this.routing.leave(opened);
      for (const turn of this.turns.list) {
        if (turn.trace) this.routing.give(turn, turn.trace);
        delete turn.trace; // it is large, and the routing has it now
      }
      const values = {
        name: file.name,
        count: turns.length,
        model: model.name,
        when: new Date(created).toLocaleString(),
      };
      this._banner.replaceChildren(
        h("span", {}, say(turns.length === 1 ? "saved.one" : "saved.banner", values)),
        button({ action: "back", label: say("actions.back"), onclick: () => this._live() }),
      );
      this._banner.hidden = false;
      this.composer.note("");
      this._showTurns();
      this.routing.fromAddress();
    } catch (error) {
      this.composer.note(say("problems.open_failed", { name: file.name, why: error.message }));
    }
  }

  /** Delete the conversation here and at the server; an opened session is only put away. */
  clear() {
    if (this._saved) return this._live();
    if (this.turns.list.length && !confirm(say("actions.confirm_clear"))) return undefined;
    const wanted = this.microphone.wanted;
    this.end();
    this._stopReplay();
    this.turns = this._newTurns();
    this.routing.clear();
    this._showTurns();
    earlier.keep([]);
    return wanted ? this.start() : undefined;
  }

  // What is shown

  _show() {
    if (!this.element) return; // it is being built
    const { connection, settings, microphone, playing } = this;
    const busy = this._told !== "listening";
    const options = {
      running: microphone.wanted,
      muted: microphone.muted,
      holds: microphone.pressed,
      connected: connection.wanted,
      speaking: playing.sounds || this._told === "speaking" || this._told === "thinking",
    };
    const waits = microphone.wanted || this.asking.waits;
    let state = "idle";
    if (this._saved) state = "saved";
    else if (this._wait !== null) {
      state = "offline";
      if (this._wait < 1) options.hint = "offline_now";
    } else if (this._place) state = "queue";
    else if (waits && !connection.isOpen) state = "connecting";
    else if (playing.paused) state = "paused";
    else if (busy) state = this._told;
    else if (this._problem) state = "typing_only";
    else if (!microphone.wanted) state = "idle";
    else if (!this.sound.microphoneOpen) state = "connecting";
    else if (microphone.muted) state = "muted";
    else if (settings.mode === "push") state = "hold";
    else state = "listening";
    if (this._silent && (state === "idle" || state === "typing_only")) options.hint = "silent";
    if (state === "speaking") {
      if (!microphone.wanted || microphone.muted) options.hint = "speaking_stop";
      else if (settings.mode === "push") options.hint = "speaking_hold";
      else if (settings.half_duplex) options.hint = "speaking_half_duplex";
    }
    const before = this.stage.state;
    this.stage.show(state, { position: this._place, seconds: this._wait }, options);
    if (state !== before) this.announcer.state(`${say(`states.${state}`)}.`);
  }

  _newTurns() {
    return new Turns((turn, gone) => {
      this.transcript.update(turn, gone);
      if (gone) this.routing.forget(turn);
      if (gone && this.beside.turn === turn) this._choose(null);
      if (gone || !turn.timings) return;
      if (!this.beside.turn || turn.number >= this.beside.turn.number) this._choose(turn);
    });
  }

  /** All turns anew. */
  _showTurns() {
    this.transcript.clear();
    this.transcript.fill(this.turns.list);
    this.routing.turnsChanged();
    this._choose(this.turns.list.findLast((turn) => turn.timings) ?? null);
    this._show();
  }

  _choose(turn) {
    this.beside.show(turn);
    this.routing.show(turn);
    this.transcript.mark(turn);
  }

  /** Back from an opened session to the conversation itself. */
  _live() {
    if (!this._saved) return;
    this._stopReplay();
    const opened = this.turns.list;
    this.turns = this._newTurns();
    this.turns.list = this._saved.live;
    this._saved = null;
    this.routing.leave(opened);
    this._banner.hidden = true;
    this._showTurns();
  }

  // Asking

  async _askWith(recording, file, name) {
    const unlocked = this._unlock().catch(() => {}); // at once, while the tap counts
    const epoch = this._epoch;
    this.composer.note(say("compose.reading", { name: file }));
    try {
      const pcm = await this.asking.read(await recording(), file);
      await unlocked;
      this.composer.note("");
      if (epoch !== this._epoch) return; // cleared, ended, or another session opened meanwhile
      this._live();
      const interrupts = this._interrupts;
      this.asking.give(this.turns, pcm, name);
      this._ask(interrupts);
    } catch (error) {
      this.composer.note(say("compose.file_failed", { why: error.message }));
    }
  }

  /** Whether a question that comes now ends what goes on, and is not the next of several that wait. */
  get _interrupts() {
    return this.asking.unanswered || this._told !== "listening";
  }

  /** Send what waits, as soon as nothing else goes on. */
  _ask(interrupts) {
    if (!this.asking.waits) return;
    clearTimeout(this._idle);
    this.composer.note("");
    this.connection.open();
    if (interrupts) this.stop();
    this._sendNext();
    this._show();
  }

  _sendNext() {
    if (!this.connection.isOpen || this._place || this._told !== "listening") return;
    if (this.asking.waits && !this.asking.unanswered) this.asking.sendNext(this.turns);
  }

  /** Let the page sound: call it inside a tap or key press. Where that cannot be, answers are only text. */
  async _unlock() {
    const before = this._silent;
    try {
      await this.sound.unlock();
      this._silent = "";
      this._volume(this.settings.volume);
      await this._chooseSpeaker();
    } catch (problem) {
      this._silent = problem.code ?? "unknown";
      throw problem;
    } finally {
      if (this._silent !== before) this.connection.send(this._wishes());
      this._show();
    }
  }

  async _chooseSpeaker() {
    const { speaker } = this.settings;
    if (!Sound.canChooseSpeaker || speaker === (this._speaker ?? "")) return;
    try {
      await this.sound.setSpeaker(speaker);
      this._speaker = speaker;
    } catch {
      this.stage.problem(say("problems.speaker"));
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
    this._remind();
    this.microphone.tellAgain();
    this._sendNext();
    this._show();
  }

  /** A new session knows nothing of what was said before: tell it as much as it would remember. */
  _remind() {
    const { history } = this.settings;
    const known = this.turns.list.filter(({ user, reply }) => user.text && reply.text);
    const put = (role, type, text) => {
      const part = { type, text: text.slice(0, this.facts.limits.characters) };
      this.connection.send({ type: "conversation.item.create", item: { type: "message", role, content: [part] } });
    };
    for (const { user, reply } of history ? known.slice(-history) : []) {
      put("user", "input_text", user.text);
      put("assistant", "output_text", reply.text);
    }
  }

  _lost(seconds) {
    if (this._wait === null) {
      this.playing.lose();
      this.turns.forgetConnection();
      this.routing.forgetConnection();
      this.asking.forget();
      earlier.keep(this.turns.list);
    }
    this._told = "listening";
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

  /** The server ended it, or lets nobody in. */
  _over(why) {
    const talked = this.microphone.wanted;
    const failed = this.end(why);
    this._again = talked ? () => this.start() : null;
    if (!talked && failed.length) {
      this._again = () => {
        this.asking.again(this.turns, failed);
        this._ask(false);
      };
    }
    this.stage.problem(why, Boolean(this._again));
    this._overcome = true;
    this._show();
  }

  _take(event) {
    this.turns.take(event);
    this.routing.take(event, this.turns.byServer(event.turn_id) ?? this.turns.pending);
    switch (event.type) {
      case "session.created":
        this._place = 0;
        if (this._overcome) this.stage.problem(null); // what barred the connection before
        this._overcome = false;
        this._sendNext();
        break;
      case "most.queue":
        this._place = event.position;
        break;
      case "most.state":
        this._told = event.state;
        if (event.state === "listening") this._sendNext();
        break;
      case "most.vad":
        return this.stage.threshold(event.threshold_db);
      case "most.record":
        return this._recorded(this.turns.byServer(event.turn_id));
      case "input_audio_buffer.speech_started":
        this._stopReplay();
        if (this.playing.orphaned) this.playing.stop();
        break;
      case "most.playback":
        this._stopReplay();
        return this.playing.obey(event);
      case "response.output_audio.delta":
        return this.playing.take(event);
      case "response.output_audio.done":
        return this.playing.allSent(event);
      case "conversation.item.input_audio_transcription.completed":
        return this.announcer.say(say("transcript.live_you", { text: event.transcript }));
      case "response.done":
        return this._answered(event);
      case "most.notice":
        if (event.code === "too_short") this.stage.problem(say("problems.too_quick"));
        return this.announcer.say(event.message);
      case "error":
        return this._refused(event.error);
      default:
        return undefined;
    }
    return this._show();
  }

  /** Have the server say exactly what the recorded routing of a turn is. */
  async _recorded(turn) {
    if (!turn?.tables || !this.settings.routing) return;
    // It may be cleared away meanwhile, or hidden by a session that was opened.
    const there = () => [...this.turns.list, ...(this._saved?.live ?? [])].includes(turn);
    const body = JSON.stringify({ tables: tablesInBase64(turn.tables) });
    try {
      const headers = { "Content-Type": "application/json" };
      const answer = await fetched(new URL("../trace", import.meta.url), { method: "POST", headers, body });
      const trace = await answer.json();
      if (there()) this.routing.give(turn, trace);
    } catch (error) {
      if (there()) this.routing.inexact(turn, error.message);
    }
  }

  _answered(event) {
    const turn = this.turns.byServer(event.turn_id);
    if (turn?.reply.text) this.announcer.say(say("transcript.live_most", { text: turn.reply.text }));
    this.asking.answered(event.response);
    if (this._told === "listening") this._sendNext();
    earlier.keep(this.turns.list);
    clearTimeout(this._idle);
    if (!this.microphone.wanted) this._idle = setTimeout(() => this.microphone.wanted || this.end(), IDLE_MS);
  }

  _refused(error) {
    const turn = this.asking.refused(error.event_id);
    if (turn) {
      this.turns.fail(turn, error.message);
      this._sendNext();
    } else if (error.code !== "session_ended" && error.code !== "response_cancel_not_active") {
      this.stage.problem(say("problems.server", { why: error.message }));
    }
  }

  // Sound

  _hear(pcm, level) {
    // A replay would be heard as a question; while in line nobody listens.
    const heard = this.microphone.speaks && !this._replaying && !this._place;
    this.stage.heard(heard ? level : -Infinity);
    if (!heard) return;
    if (this.connection.sendSound(pcm)) this.routing.heard(level);
  }

  async _replay(turn, who) {
    if (!turn) return this._stopReplay();
    const { user, reply } = turn;
    return who === "user"
      ? this._hearAgain(user.sound, USER_RATE)
      : this._hearAgain(joined(Int16Array, reply.sound), REPLY_RATE);
  }

  /** Play samples; ends with them. Whatever else was played again stops. */
  async _hearAgain(pcm, rate) {
    this._stopReplay();
    try {
      await this._unlock();
    } catch (problem) {
      this.stage.problem(say(`microphone.${problem.code ?? "unknown"}`));
      return;
    }
    const replaying = this.sound.replay(pcm, rate);
    this._replaying = replaying;
    await replaying.ended;
    if (this._replaying === replaying) this._replaying = null;
  }

  _stopReplay() {
    this._replaying?.stop();
    this._replaying = null;
  }

  _volume(share) {
    this.settings.volume = share;
    this.sound.volume = share * share; // as loud as it looks
    keep(this.settings);
  }

  _microphoneProblem(code) {
    this.microphone.close();
    this._problem = code;
    this._again = () => this.start();
    const told = say(`microphone.${code}`);
    this.stage.problem(told, code !== "deaf");
    this.announcer.say(told);
    this._show();
  }

  _retry() {
    this.stage.problem(null);
    const again = this._again ?? (() => this._unlock().catch(() => {}));
    this._again = null;
    again();
  }

  async _settingChanged(name) {
    if (name === "speaker") await this._chooseSpeaker();
    else if (OF_MICROPHONE.includes(name)) {
      const code = await this.microphone.reopen();
      if (code) this._microphoneProblem(code);
    } else this.connection.send(this._wishes());
    if (name === "routing") this.routing.on = this.settings.routing;
    this._show();
  }
}

function download(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
