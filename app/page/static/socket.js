// One conversation's WebSocket: opened when wanted, opened again when it is lost, with longer and longer waits.

const WAITS_S = [0.5, 1, 2, 4, 8];
const OPENING_MS = 10_000; // that it may take to open
const ASLEEP_MS = 1500; // late by so much is a timer of a page that slept: of hidden ones they are late by a second
const PROBE_MS = 3000; // that a server may take to say whether it lets anybody in
const FULL = 200_000; // bytes that wait to be sent: four seconds of sound
const STUCK_MS = 2000; // that so much may wait while nothing of it leaves
const SILENT_MS = 4000; // of sound, sent without an event: the server tells ten times a second what it hears
const LATE_MS = 100; // later than this after the piece before, and the page slept: what was not sent proves nothing
const SLOWEST = 100; // bytes a millisecond that are sent of a long question, before the sound behind it

export class Connection {
  /**
   * `handlers`: onOpen(again), onEvent(event), onLost(seconds until the next try), at once; onRefused(why): nobody is
   * let in, which may turn out after onLost; onOver(why, code): the server ended it on purpose. After the last two it
   * is not opened again by itself.
   */
  constructor(handlers) {
    this.handlers = handlers;
    this._socket = null;
    this._wanted = false;
    this._tries = 0;
    this._opened = 0; // how often
    this._why = "";
    addEventListener("online", () => {
      if (!this._wanted || this.isOpen) return;
      this._leave(); // what was begun without a network may wait for long
      this._again(0);
    });
    addEventListener("offline", () => this._socket && this._gone());
  }

  /** It is open, or to be opened again. */
  get wanted() {
    return this._wanted;
  }

  get isOpen() {
    return this._socket?.readyState === WebSocket.OPEN;
  }

  /** Open it, unless it is open or being opened. */
  open() {
    this._wanted = true;
    if (!this._socket && !this._timer) this._connect();
  }

  close() {
    this._wanted = false;
    this._tries = this._opened = 0;
    this._rest();
    this._leave();
  }

  /** Whether it was sent. */
  send(event) {
    if (!this.isOpen) return false;
    const text = JSON.stringify(event);
    this._socket.send(text);
    this._unansweredMs -= text.length / SLOWEST;
    return true;
  }

  /**
   * Sound of the microphone: PCM of 16 bit, 24 kHz. It is what shows that a connection is dead, so no timer runs.
   * Whether it was sent: not while too much waits already.
   */
  sendSound(buffer) {
    if (!this.isOpen) return false;
    const waits = this._socket.bufferedAmount;
    const now = performance.now();
    const passed = Math.min(now - this._soundAt, LATE_MS);
    this._soundAt = now;
    const sends = waits < FULL;
    if (sends) {
      this._stuckMs = 0;
      if (!this._inLine) this._unansweredMs += passed;
      this._socket.send(buffer);
    } else this._stuckMs = waits < this._waited ? 0 : this._stuckMs + passed;
    this._waited = waits;
    if (!this._inLine && (this._unansweredMs > SILENT_MS || this._stuckMs > STUCK_MS)) this._gone();
    return sends;
  }

  _connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/v1/realtime`);
    this._socket = socket;
    this._why = "";
    this._inLine = false;
    this._soundAt = -Infinity; // when the last piece was given
    this._unansweredMs = this._stuckMs = this._waited = 0;
    this._limitOpening();
    socket.onopen = () => {
      if (socket !== this._socket) return;
      clearTimeout(this._opening);
      this._tries = 0;
      this._opened += 1;
      this.handlers.onOpen(this._opened > 1);
    };
    socket.onmessage = (message) => {
      if (socket !== this._socket) return;
      const event = JSON.parse(message.data);
      this._unansweredMs = Math.min(this._unansweredMs, 0); // a long question may still be under way
      if (event.type === "most.queue") this._inLine = true;
      if (event.type === "session.created") this._inLine = false;
      if (event.type === "error") this._why = event.error.message;
      this.handlers.onEvent(event);
    };
    socket.onclose = (closed) => {
      if (socket !== this._socket) return;
      this._leave();
      const over = closed.code === 1000 || closed.code === 1008 || closed.code === 1013;
      if (!over) return this._lost();
      this._wanted = false;
      this._tries = this._opened = 0;
      return this.handlers.onOver(closed.reason || this._why, closed.code);
    };
  }

  _limitOpening() {
    const begun = performance.now();
    this._opening = setTimeout(() => {
      if (performance.now() - begun < OPENING_MS + ASLEEP_MS) this._gone();
      else this._limitOpening(); // the page slept: it may be open, and about to tell so
    }, OPENING_MS);
  }

  /** It is dead: browsers would take a minute to see that nobody answers its close either. */
  _gone() {
    this._leave();
    this._lost();
  }

  /** Without it from now on. */
  _leave() {
    const socket = this._socket;
    this._socket = null;
    clearTimeout(this._opening);
    socket?.close(1000);
  }

  _lost() {
    this._again(WAITS_S[Math.min(this._tries++, WAITS_S.length - 1)]);
    if (this._timer) this._probe();
  }

  /** A server that lets nobody in answers, one that is away does not: browsers tell the two apart only so. */
  async _probe() {
    const probe = (this._probing = {});
    const signal = AbortSignal.timeout(PROBE_MS);
    const refused = await fetch(new URL("../facts.json", import.meta.url), { cache: "no-store", signal })
      .then(async (answer) =>
        answer.status === 401 || answer.status === 403 ? (await answer.json()).error.message : "",
      )
      .catch(() => "");
    if (!refused || probe !== this._probing || this.isOpen) return;
    this._wanted = false;
    this._tries = this._opened = 0;
    this._rest();
    this._leave();
    this.handlers.onRefused(refused);
  }

  _again(seconds) {
    this._rest();
    this._timer = setTimeout(() => {
      this._timer = null;
      if (this._wanted && !this._socket) this._connect();
    }, 1000 * seconds);
    this.handlers.onLost(seconds);
  }

  /** Neither wait for the next try, nor for an answer. */
  _rest() {
    clearTimeout(this._timer);
    this._timer = null;
    this._probing = null;
  }
}
