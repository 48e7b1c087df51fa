// A reply on its way to the speaker: what the server says of it is done, how far it is is told to the server.

export class Playing {
  /** `changed()` is called when a reply is paused or goes on, `loudness(db)` with how loud it is. */
  constructor(connection, changed, loudness) {
    this.sound = null; // the speaker: set before the first reply
    this.paused = false;
    this._connection = connection;
    this._changed = changed;
    this._loudness = loudness;
    this._turns = null;
    this._turn = 0; // which the speaker has
    this._base = 0; // each connection counts its turns from one, the speaker counts on
  }

  /** Another connection begins, whose replies are told to `turns`. */
  begin(turns) {
    this._base += 1_000_000;
    this._turns = turns;
    this.paused = false;
  }

  /** Something of a reply is still to be heard. */
  get sounds() {
    return this._turn !== 0;
  }

  /** It is of a connection that is lost, so no server pauses or stops it. */
  get orphaned() {
    return this.sounds && this._turn < this._base;
  }

  /** No more of a reply comes: what is here is still said. */
  lose() {
    if (this.paused) this.sound.resume(this._turn);
    if (this._turn) this.sound.end(this._turn);
    this.paused = false;
  }

  /** Silence, at once. */
  stop() {
    this.sound.stop();
    this._turn = 0;
    this.paused = false;
    this._loudness(-Infinity);
  }

  /** A `most.playback` event. */
  obey({ turn_id: id, action }) {
    const turn = this._base + id;
    if (action === "play") {
      this._turn = turn;
      this.sound.play(turn);
    } else if (action === "pause") this.sound.pause(turn);
    else if (action === "resume") this.sound.resume(turn);
    else this.stop();
    this.paused = action === "pause";
    this._changed();
  }

  /** A `response.output_audio.delta` event. */
  take(event) {
    this.sound.enqueue(this._base + event.turn_id, this._turns.takeSound(event).buffer);
  }

  /** A `response.output_audio.done` event. */
  allSent(event) {
    this.sound.end(this._base + Number(event.response_id.replace(/^resp_/, "")));
  }

  /** What the speaker tells. */
  told({ type, turn, played_ms: played = 0, level_db: level = -Infinity, delay_ms: delay = 0 }) {
    if (!["started", "progress", "ended"].includes(type)) return;
    this._loudness(this.paused ? -Infinity : level);
    if (type === "ended" && turn === this._turn) {
      this._turn = 0;
      this._changed();
    }
    const id = turn - this._base;
    if (id < 1) return; // of an earlier connection
    const said = this._turns.byServer(id);
    if (said) this._turns.played(said, played);
    const event = { type: "most.playback", turn_id: id, played_ms: played, ended: type === "ended" };
    this._connection.send({ ...event, delay_ms: Math.max(delay, 0) });
  }
}
