// One conversation's WebSocket: opened when wanted, opened again when it is lost, with longer and longer waits.

const WAITS_S = [0.5, 1, 2, 4, 8];

export class Connection {
  /**
   * `handlers`: onOpen(again), onEvent(event), onLost(seconds until the next try), onRefused(why), onOver(why): the
   * server ended it on purpose, and it is not opened again by itself.
   */
  constructor(handlers) {
    this.handlers = handlers;
    this._socket = null;
    this._wanted = false;
    this._tries = 0;
    this._opened = 0; // how often
    this._why = "";
    addEventListener("online", () => this._wanted && !this.isOpen && this._again(0));
    addEventListener("offline", () => this._socket?.close());
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
    clearTimeout(this._timer);
    this._timer = null;
    this._tries = this._opened = 0;
    const socket = this._socket;
    this._socket = null;
    socket?.close(1000);
  }

  /** Whether it was sent. */
  send(event) {
    if (!this.isOpen) return false;
    this._socket.send(JSON.stringify(event));
    return true;
  }

  /** Sound of the microphone: PCM of 16 bit, 24 kHz. */
  sendSound(buffer) {
    if (this.isOpen && this._socket.bufferedAmount < 200_000) this._socket.send(buffer);
  }

  _connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/v1/realtime`);
    this._socket = socket;
    this._why = "";
    socket.onopen = () => {
      if (socket !== this._socket) return;
      this._tries = 0;
      this._opened += 1;
      this.handlers.onOpen(this._opened > 1);
    };
    socket.onmessage = (message) => {
      if (socket !== this._socket) return;
      const event = JSON.parse(message.data);
      if (event.type === "error") this._why = event.error.message;
      this.handlers.onEvent(event);
    };
    socket.onclose = (closed) => {
      if (socket !== this._socket) return;
      this._socket = null;
      if (this._wanted) this._closed(closed.code, closed.reason || this._why);
    };
  }

  async _closed(code, reason) {
    if (code === 1000 || code === 1008 || code === 1013) {
      this._wanted = false;
      this._opened = 0;
      return this.handlers.onOver(reason, code);
    }
    // A server that lets nobody in answers, one that is away does not: browsers tell the two apart only so.
    const refused = await fetch(new URL("../facts.json", import.meta.url), { cache: "no-store" }).then(
      async (answer) => (answer.status === 401 || answer.status === 403 ? (await answer.json()).error.message : ""),
      () => "",
    ).catch(() => "");
    if (!this._wanted || this._socket) return;
    if (refused) {
      this._wanted = false;
      return this.handlers.onRefused(refused);
    }
    this._again(WAITS_S[Math.min(this._tries++, WAITS_S.length - 1)]);
  }

  _again(seconds) {
    clearTimeout(this._timer);
    this.handlers.onLost(seconds);
    this._timer = setTimeout(() => {
      this._timer = null;
      if (this._wanted && !this._socket) this._connect();
    }, 1000 * seconds);
  }
}
