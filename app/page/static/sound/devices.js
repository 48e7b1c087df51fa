// The microphone and the speaker, as the rest of the page sees them.
//
// One AudioContext serves both directions, at the rate that the device has: Firefox connects no microphone of another
// rate, and two contexts would be two clocks. The worklets resample.

import { resampled } from "./resampler.js";

const START_MS = 2000; // that a context may take to run where it is allowed to
const LOAD_MS = 10_000; // that the worklets may take to come
const RESUME_MS = 300; // that a context which was taken away may take to run again
const FADE_S = 0.005;

export class SoundProblem extends Error {
  // code: "denied" | "missing" | "insecure" | "busy" | "blocked" | "unsupported"
  constructor(code, cause) {
    super(cause ? `${code}: ${cause.message ?? cause}` : code, { cause });
    this.name = "SoundProblem";
    this.code = code;
  }
}

const CODES = {
  NotAllowedError: "denied",
  SecurityError: "denied",
  NotFoundError: "missing",
  OverconstrainedError: "missing",
  NotReadableError: "busy",
  AbortError: "busy",
};

export class Sound {
  #context; #player; #volumeNode; #worklets; #microphone; #replayed;
  #volume = 1;
  #opening = 0; // rises with each wish to open or close the microphone: the last one counts
  #silenced = false; // by the page
  #muted = false; // by others
  #ran = false; // the context, since it was made
  #suspended = false; // as was told
  #resuming; // the timer of an attempt
  #onChunk; #onPlayback; #onLost; #onMuted; #onSuspended;

  // onChunk(ArrayBuffer, level_db): 20 ms of the microphone, PCM16 at 24 kHz. onPlayback(message): see playback.js.
  // onLost(code): the microphone was unplugged ("missing"), or its permission taken ("denied").
  // onMuted(boolean): something else than this page silenced the microphone (a hardware key, another program, a phone
  // call), or no longer does. onSuspended(boolean): all sound was taken away and cannot be had back, or is there again.
  constructor({
    onChunk = () => {}, onPlayback = () => {}, onLost = () => {}, onMuted = () => {}, onSuspended = () => {},
  } = {}) {
    this.#onChunk = onChunk;
    this.#onPlayback = onPlayback;
    this.#onLost = onLost;
    this.#onMuted = onMuted;
    this.#onSuspended = onSuspended;
  }

  // Call it inside a tap or a key press: browsers let no page sound before one. Afterwards everything here may be used.
  async unlock() {
    const Context = globalThis.AudioContext ?? globalThis.webkitAudioContext;
    if (!Context) throw new SoundProblem("unsupported");
    if (!this.#context) {
      this.#context = new Context({ latencyHint: "interactive" });
      this.#context.addEventListener("statechange", this.#wake);
      document.addEventListener("visibilitychange", this.#wake);
    }
    const context = this.#context;
    const running = context.resume(); // before any await, while the tap still counts
    running.catch(() => {});
    if (!context.audioWorklet) throw new SoundProblem(globalThis.isSecureContext ? "unsupported" : "insecure");
    if (!this.#worklets) {
      const loading = (this.#worklets = this.#load());
      loading.catch(() => {
        if (this.#worklets === loading) this.#worklets = undefined; // the network may be back at the next tap
      });
    }
    try {
      await within(LOAD_MS, this.#worklets); // what comes later is there at the next tap
    } catch (error) {
      throw new SoundProblem("unsupported", error);
    }
    let timer;
    // Where it is not allowed, resume() does not fail: it just waits for a tap.
    await Promise.race([running.catch(() => {}), new Promise((done) => (timer = setTimeout(done, START_MS)))]);
    clearTimeout(timer);
    if (context.state !== "running") throw new SoundProblem("blocked");
    this.#wake(); // some browsers tell of the state later than of the attempt
  }

  async #load() {
    const context = this.#context;
    const load = (name) => context.audioWorklet.addModule(new URL(name, import.meta.url));
    await Promise.all([load("./capture.js"), load("./playback.js")]);
    if (context !== this.#context) throw new Error("closed");
    this.#volumeNode = new GainNode(context, { gain: this.#volume });
    this.#volumeNode.connect(context.destination);
    this.#player = new AudioWorkletNode(context, "most-playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#player.port.onmessage = ({ data }) => this.#onPlayback(data);
    this.#player.connect(this.#volumeNode);
  }

  // A phone call or another application takes the sound away; it comes back when the page is looked at again.
  #wake = () => {
    const context = this.#context;
    if (!context) return;
    const { state } = context;
    if (state === "running") {
      this.#ran = true;
      this.#tellSuspended(false);
    } else if (document.visibilityState === "visible" && (state === "suspended" || state === "interrupted")) {
      context.resume().catch(() => {});
      if (this.#ran) this.#resuming ??= setTimeout(() => this.#tellSuspended(context.state !== "running"), RESUME_MS);
    }
  };

  #tellSuspended(suspended) {
    clearTimeout(this.#resuming);
    this.#resuming = undefined;
    if (suspended === this.#suspended) return;
    this.#suspended = suspended;
    this.#onSuspended(suspended);
  }

  // Unlock first. Of what is wished, browsers give what they can. Closed meanwhile, it stays closed.
  async openMicrophone({ deviceId, echoCancellation = true, noiseSuppression = true, autoGainControl = true } = {}) {
    this.closeMicrophone();
    if (!navigator.mediaDevices?.getUserMedia)
      throw new SoundProblem(globalThis.isSecureContext ? "unsupported" : "insecure");
    if (!this.#player) throw new SoundProblem("blocked");
    const opening = ++this.#opening;
    if (navigator.audioSession) navigator.audioSession.type = "play-and-record"; // else iOS mutes one of the two
    const wishes = { channelCount: 1, echoCancellation, noiseSuppression, autoGainControl };
    const stream = await streamOf(wishes, deviceId);
    const [track] = stream.getAudioTracks();
    if (opening !== this.#opening) return track.stop();
    const source = new MediaStreamAudioSourceNode(this.#context, { mediaStream: stream });
    const capture = new AudioWorkletNode(this.#context, "most-capture", {
      channelCount: 1, channelCountMode: "explicit", outputChannelCount: [1],
    });
    capture.port.onmessage = ({ data }) => this.#onChunk(data.pcm, data.level_db);
    source.connect(capture);
    capture.connect(this.#context.destination); // it is silent, but some browsers run only what leads to the speaker
    this.#microphone = { track, source, capture };
    track.enabled = !this.#silenced;
    track.addEventListener("ended", () => this.#lost(track)); // not after our own stop()
    for (const event of ["mute", "unmute"])
      track.addEventListener(event, () => this.#microphone?.track === track && this.#tellMuted(event === "mute"));
    this.#tellMuted(track.muted);
  }

  closeMicrophone() {
    this.#opening++;
    if (!this.#microphone) return;
    const { track, source, capture } = this.#microphone;
    this.#microphone = undefined;
    track.stop();
    source.disconnect();
    capture.disconnect();
    capture.port.onmessage = null; // pieces under way are not heard
    capture.port.postMessage("close");
    this.#tellMuted(false);
  }

  get microphoneOpen() {
    return this.#microphone !== undefined;
  }

  get microphoneMuted() {
    return this.#silenced;
  }

  // Silences it as the browser knows it, which shows that beside its own sign; also one that is opened later.
  set microphoneMuted(silenced) {
    this.#silenced = silenced;
    if (this.#microphone) this.#microphone.track.enabled = !silenced;
  }

  #tellMuted(muted) {
    if (muted === this.#muted) return;
    this.#muted = muted;
    this.#onMuted(muted);
  }

  async #lost(track) {
    if (this.#microphone?.track !== track) return;
    this.closeMicrophone();
    // Firefox and Safari of some years do not tell about the microphone's permission.
    const permission = await navigator.permissions?.query({ name: "microphone" }).catch(() => null);
    this.#onLost(!permission || permission.state === "granted" ? "missing" : "denied");
  }

  // Of the reply; before unlock() nothing is played and nothing is told. What is given stays the caller's.
  play(turn) { this.#tell({ type: "play", turn }); }
  enqueue(turn, pcm) { this.#tell({ type: "sound", turn, pcm }); }
  end(turn) { this.#tell({ type: "end", turn }); }
  pause(turn) { this.#tell({ type: "pause", turn }); }
  resume(turn) { this.#tell({ type: "resume", turn }); }
  stop() { this.#tell({ type: "stop" }); }

  #tell(message) {
    this.#player?.port.postMessage(message);
  }

  get volume() {
    return this.#volume;
  }

  set volume(share) {
    this.#volume = Math.min(Math.max(share, 0), 1);
    this.#volumeNode?.gain.setTargetAtTime(this.#volume, this.#context.currentTime, FADE_S); // a jump would click
  }

  static get canChooseSpeaker() {
    return "setSinkId" in (globalThis.AudioContext?.prototype ?? {});
  }

  // "" is the default one. Throws SoundProblem("missing") where it is gone.
  async setSpeaker(deviceId = "") {
    if (!Sound.canChooseSpeaker) throw new SoundProblem("unsupported");
    if (!this.#context) throw new SoundProblem("blocked");
    try {
      await this.#context.setSinkId(deviceId);
    } catch (error) {
      throw problem(error);
    }
  }

  // Browsers give names, and more than one device of a kind, only once the microphone was allowed.
  async devices() {
    const all = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    const aliases = ["", "default", "communications"]; // of a device that is listed itself too
    const of = (kind) => all.filter((device) => device.kind === kind && !aliases.includes(device.deviceId))
      .map(({ deviceId, label }) => ({ id: deviceId, label }));
    return { microphones: of("audioinput"), speakers: of("audiooutput") };
  }

  // Play a sound (PCM16) that was kept, outside the queue; it stops a former one. `ended` resolves in either case.
  replay(samples, rate) {
    if (!this.#player) throw new SoundProblem("blocked");
    this.#replayed?.stop();
    const context = this.#context;
    const pcm = samples instanceof Int16Array ? samples : new Int16Array(samples);
    // Chromium plays buffers of another rate by linear interpolation, which hisses.
    const wave = resampled(Float32Array.from(pcm, (sample) => sample / 32768), rate, context.sampleRate);
    if (!wave.length) return { stop() {}, ended: Promise.resolve() };
    const buffer = new AudioBuffer({ length: wave.length, sampleRate: context.sampleRate });
    buffer.copyToChannel(wave, 0);
    const source = new AudioBufferSourceNode(context, { buffer }), fade = new GainNode(context);
    source.connect(fade).connect(this.#volumeNode);
    const ended = new Promise((done) => source.addEventListener("ended", () => {
      fade.disconnect();
      done();
    }));
    source.start();
    const stop = () => {
      const now = context.currentTime;
      fade.gain.setValueAtTime(fade.gain.value, now);
      fade.gain.linearRampToValueAtTime(0, now + FADE_S);
      source.stop(now + FADE_S);
    };
    this.#replayed = { stop, ended };
    return this.#replayed;
  }

  async close() {
    this.closeMicrophone();
    document.removeEventListener("visibilitychange", this.#wake);
    const context = this.#context;
    this.#tell({ type: "close" });
    this.#tellSuspended(false);
    this.#ran = false;
    this.#context = this.#player = this.#volumeNode = this.#worklets = this.#replayed = undefined;
    context?.removeEventListener("statechange", this.#wake);
    await context?.close();
  }
}

async function within(ms, promise) {
  let timer;
  const late = new Promise((_, fail) => (timer = setTimeout(() => fail(new Error(`not within ${ms} ms`)), ms)));
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function streamOf(wishes, deviceId) {
  const open = (audio) => navigator.mediaDevices.getUserMedia({ audio, video: false });
  if (deviceId) {
    try {
      return await open({ ...wishes, deviceId: { exact: deviceId } });
    } catch (error) {
      if (!["OverconstrainedError", "NotFoundError"].includes(error.name)) throw problem(error);
    } // unplugged since it was chosen: the default one then
  }
  try {
    return await open(wishes);
  } catch (error) {
    throw problem(error);
  }
}

function problem(error) {
  return new SoundProblem(CODES[error.name] ?? "unsupported", error);
}
