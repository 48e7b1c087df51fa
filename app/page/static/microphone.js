// The person's side of talking: the microphone opened, muted, held down to talk; and the screen kept awake for it.

import { SoundProblem } from "./sound/devices.js";

const TAP_MS = 200; // hands-free, who holds for less just tapped: that shall not take the floor
const AFTER_MS = 150; // the end of a word is still on its way when the key goes up

export class Microphone {
  /** `told` sends an event to the server; `changed()` is called when anything here changes. */
  constructor(sound, settings, told, changed) {
    this.wanted = false; // it is open, or about to be
    this.muted = false;
    this.pressed = false;
    this._sound = sound;
    this._settings = settings;
    this._tell = told;
    this._changed = changed;
    document.addEventListener("visibilitychange", () => document.hidden || this._stayAwake());
  }

  /** Open it: call inside a tap or key press, after `unlocked` was begun there. The code of what went wrong, or "". */
  async open(unlocked) {
    this.wanted = true;
    this._changed();
    try {
      await unlocked;
      await this._open();
    } catch (problem) {
      return problem instanceof SoundProblem ? problem.code : "unknown";
    }
    if (!this.wanted) this._sound.closeMicrophone(); // closed meanwhile
    this._stayAwake();
    this._changed();
    return "";
  }

  /** The device or its processing was changed. */
  async reopen() {
    if (!this._sound.microphoneOpen) return "";
    this._sound.closeMicrophone();
    return this.open(Promise.resolve());
  }

  close() {
    this._up();
    if (this.muted) this.mute();
    this.wanted = false;
    this._sound.closeMicrophone();
    this._lock?.release().catch(() => {});
    this._lock = null;
    this._changed();
  }

  mute() {
    if (!this.wanted) return;
    this.muted = !this.muted;
    this._sound.microphoneMuted = this.muted;
    this._tell({ type: "most.mute", on: this.muted });
    this._changed();
  }

  /** Hold to talk. */
  press() {
    if (!this.wanted) return;
    if (this.muted) this.mute();
    clearTimeout(this._later);
    if (this.pressed) return;
    this._later = setTimeout(() => this._down(), this._settings.mode === "push" ? 0 : TAP_MS);
  }

  release() {
    clearTimeout(this._later);
    if (this.pressed) this._later = setTimeout(() => this._up(), AFTER_MS);
  }

  /** A new session knows nothing of keys. */
  tellAgain() {
    if (this.muted) this._tell({ type: "most.mute", on: true });
    if (this.pressed) this._tell({ type: "most.press" });
  }

  /** Whether what it hears is meant for the server now. */
  get speaks() {
    return !this.muted && (this._settings.mode !== "push" || this.pressed);
  }

  _down() {
    this.pressed = true;
    this._tell({ type: "most.press" });
    this._changed();
  }

  _up() {
    clearTimeout(this._later);
    if (!this.pressed) return;
    this.pressed = false;
    this._tell({ type: "most.release" });
    this._changed();
  }

  _open() {
    const { microphone, echoCancellation, noiseSuppression, autoGainControl } = this._settings;
    return this._sound.openMicrophone({ deviceId: microphone, echoCancellation, noiseSuppression, autoGainControl });
  }

  async _stayAwake() {
    if (!this.wanted || this._lock || !navigator.wakeLock) return;
    const lock = await navigator.wakeLock.request("screen").catch(() => null);
    if (!lock) return;
    if (!this.wanted || this._lock) return void lock.release().catch(() => {});
    this._lock = lock;
    lock.addEventListener("release", () => {
      if (this._lock === lock) this._lock = null;
    });
  }
}
