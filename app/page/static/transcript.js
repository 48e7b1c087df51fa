// The conversation to read along, with both voices to hear again.

import { button, h, relabel } from "./dom.js";
import { say } from "./words.js";

const NEAR_PX = 80; // from its end, one follows the conversation
const UNSURE = 0.6; // below this confidence a word is marked
const plain = (text) =>
  text
    .toLowerCase()
    .replace(/[^\p{L}\p{N}' ]+/gu, " ")
    .split(/\s+/)
    .filter(Boolean);
const percent = (share) => Math.round(100 * share);

export class Transcript {
  /**
   * `small`: the model is nano, as far as its figures tell. `does`: play(turn, "user" | "reply"), a Promise that ends
   * with the sound, and choose(turn): look at its times.
   */
  constructor(small, does) {
    this._does = does;
    this._entries = new Map(); // turn to its elements
    this._playing = null;
    this.list = h("ol", { class: "turns" });
    this.empty = h(
      "div",
      { class: "empty" },
      h("p", { class: "lead" }, say("transcript.empty_title")),
      h("p", {}, say(small ? "transcript.empty_nano" : "transcript.empty")),
    );
    this.element = h(
      "div",
      { class: "transcript", tabindex: 0, role: "region", "aria-label": say("transcript.title") },
      this.empty,
      this.list,
    );
    // What is below it grows and shrinks: who reads at its end stays there.
    let near = true;
    this.element.addEventListener("scroll", () => (near = this._following()));
    new ResizeObserver(() => {
      const { scrollHeight, clientHeight } = this.element;
      if (near && scrollHeight > clientHeight) this.element.scrollTop = scrollHeight;
    }).observe(this.element);
  }

  /** A turn is new or different, or gone. */
  update(turn, gone) {
    const following = this._following();
    this._show(turn, gone);
    if (following) this._follow();
  }

  /** Many turns at once. */
  fill(turns) {
    for (const turn of turns) this._show(turn, false);
    this._follow();
  }

  _show(turn, gone) {
    let entry = this._entries.get(turn);
    if (gone) {
      entry?.element.remove();
      this._entries.delete(turn);
    } else {
      if (!entry) {
        entry = this._entry(turn);
        this._entries.set(turn, entry);
        this.list.append(entry.element);
      }
      this._fill(entry, turn);
    }
    this.empty.hidden = this._entries.size > 0;
  }

  clear() {
    this._entries.clear();
    this.list.replaceChildren();
    this.empty.hidden = false;
  }

  /** A line between the turns. */
  note(text) {
    this.list.append(h("li", { class: "note" }, text));
    this._follow();
  }

  /** Which turn is looked at. */
  mark(turn) {
    for (const [other, entry] of this._entries) entry.element.toggleAttribute("data-chosen", other === turn);
  }

  /** Whether the end is in sight: who reads further up is not torn away. */
  _following() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    if (scrollHeight > clientHeight) return scrollHeight - scrollTop - clientHeight < NEAR_PX;
    const last = this.list.lastElementChild; // on phones the whole page scrolls
    return !last || last.getBoundingClientRect().top < innerHeight;
  }

  _follow() {
    this.element.scrollTop = this.element.scrollHeight;
    this.list.lastElementChild?.scrollIntoView({ block: "nearest" });
  }

  _entry(turn) {
    const player = (who) => {
      const name = who === "user" ? "play_you" : "play_reply";
      const element = button({
        action: `play-${who}`,
        shape: "play",
        label: say(`actions.${name}`),
        "aria-label": say(`actions.${name}_long`, { turn: turn.number }),
        onclick: () => this._play(turn, who, element, say(`actions.${name}`)),
      });
      return element;
    };
    const entry = {
      userText: h("p", { class: "said" }),
      userFacts: h("p", { class: "facts" }),
      replyText: h("p", { class: "said" }),
      replyFacts: h("p", { class: "facts" }),
      userPlay: player("user"),
      replyPlay: player("reply"),
      times: button({ action: "times", label: "", onclick: () => this._does.choose(turn) }),
    };
    const bubble = (whose, who, ...said) =>
      h("div", { class: `bubble ${whose}` }, h("span", { class: "who" }, who), ...said);
    entry.mine = bubble("mine", say("transcript.you"), entry.userText, entry.userFacts);
    entry.its = bubble("its", say("transcript.most"), entry.replyText, entry.replyFacts);
    entry.foot = h("div", { class: "foot" }, entry.userPlay, entry.replyPlay, entry.times);
    entry.element = h("li", { class: "turn" }, entry.mine, entry.its, entry.foot);
    return entry;
  }

  _fill(entry, turn) {
    const { user, reply } = turn;
    entry.element.dataset.kind = turn.kind;
    entry.element.dataset.status = reply.status;
    entry.element.dataset.turn = turn.number;
    entry.mine.toggleAttribute("data-partial", user.partial);
    entry.userText.replaceChildren(...heardText(user, reply.status));
    entry.userFacts.textContent = userFacts(user);
    entry.userFacts.hidden = !entry.userFacts.textContent;
    entry.its.hidden = !reply.status;
    entry.replyText.replaceChildren(...replyText(reply));
    entry.replyFacts.textContent = replyFacts(reply);
    entry.replyFacts.hidden = !entry.replyFacts.textContent;
    entry.userPlay.hidden = !user.sound?.length;
    entry.replyPlay.hidden = !reply.sound.length || reply.status === "in_progress";
    entry.times.hidden = !turn.timings;
    if (turn.timings) {
      const seconds = (turn.timings.total_ms / 1000).toFixed(2);
      relabel(entry.times, "", say("actions.show_times", { seconds }));
      entry.times.setAttribute("aria-label", say("actions.show_times_long", { seconds, turn: turn.number }));
    }
    entry.foot.hidden = entry.userPlay.hidden && entry.replyPlay.hidden && entry.times.hidden;
  }

  async _play(turn, who, element, label) {
    const again = this._playing === element;
    this._playing = null;
    if (again) return this._does.play(null);
    this._playing = element;
    relabel(element, "stop", say("actions.stop_playing"));
    try {
      await this._does.play(turn, who);
    } finally {
      relabel(element, "play", label);
      if (this._playing === element) this._playing = null;
    }
    return undefined;
  }
}

/** What was heard; where the ears heard the same words, those they were unsure of are marked. */
function heardText(user, status) {
  if (!user.text) {
    const over = !user.partial && status && status !== "in_progress";
    return [over ? say("transcript.unheard") : say("transcript.hearing")];
  }
  const shown = user.text.split(/\s+/).filter(Boolean);
  const same = plain(user.text).join(" ") === plain(user.words.map((word) => word.text).join(" "));
  if (!same || shown.length !== user.words.length) return [user.text];
  return shown.flatMap((text, i) => {
    const { confidence } = user.words[i];
    const gap = i ? " " : "";
    if (confidence === null || confidence >= UNSURE) return [gap + text];
    return [
      gap,
      h("span", { class: "unsure", title: say("transcript.word_sure", { percent: percent(confidence) }) }, text),
    ];
  });
}

function userFacts(user) {
  const facts = [];
  if (user.file) facts.push(say("transcript.file", { name: user.file }));
  if (user.confidence !== null) facts.push(say("transcript.heard_sure", { percent: percent(user.confidence) }));
  const ears = user.words.map((word) => word.text).join(" ");
  if (ears && plain(ears).join(" ") !== plain(user.text).join(" ")) facts.push(say("transcript.ears", { text: ears }));
  return facts.join(" · ");
}

/** The reply; what an interruption kept from being heard is struck out. */
function replyText(reply) {
  if (!reply.text && reply.status === "in_progress")
    return [h("span", { class: "waiting", "aria-hidden": "true" }, "…")];
  if (!wasCut(reply)) return [reply.text];
  const words = reply.text.split(/\s+/).filter(Boolean);
  const heard = Math.floor((words.length * reply.played_ms) / Math.max(reply.sound_ms, 1));
  const parts = [words.slice(0, heard).join(" ")];
  if (heard < words.length)
    parts.push(heard ? " " : "", h("s", { title: say("transcript.cut") }, words.slice(heard).join(" ")));
  return parts;
}

function replyFacts(reply) {
  const facts = [];
  if (reply.status === "failed") facts.push(say("transcript.failed", { why: reply.why }));
  else if (reply.status === "lost") facts.push(say("transcript.lost"));
  else if (reply.status === "incomplete") facts.push(say("transcript.too_long"));
  else if (reply.status === "cancelled" && !reply.sound_ms) facts.push(say("transcript.stopped"));
  if (wasCut(reply)) facts.push(say("transcript.interrupted", { seconds: (reply.played_ms / 1000).toFixed(1) }));
  if (reply.confidence !== null && reply.status !== "failed")
    facts.push(say("transcript.answer_sure", { percent: percent(reply.confidence) }));
  return facts.join(" · ");
}

function wasCut(reply) {
  return Boolean(reply.cut) && reply.played_ms < reply.sound_ms;
}
