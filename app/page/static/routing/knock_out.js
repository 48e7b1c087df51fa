// What an answer would have been without some experts: in words, token by token, and aloud.

import { fetched } from "../asking.js";
import { button, h } from "../dom.js";
import { REPLY_RATE, base64Of, bytesOf, joined, tablesInBase64 } from "../turns.js";
import { say } from "../words.js";
import { expertName, modalityOf, nats, scrolled, tokenText } from "./telling.js";

const COUNT = 5; // experts that are told to matter
const CHART = { width: 600, height: 120 };

export class KnockOut {
  /** `does`: play(), turns(), settings(), selectExpert(), say(), off(), as in view.js. */
  constructor(does) {
    this._does = does;
    this._off = []; // {layer, expert}
    this._turns = []; // that are offered
    this._wanted = null; // the turn that was offered first
    this._turn = null; // whose answer is tried again
    this._running = null; // the AbortController of what the server is asked
    this._chips = h("ul", { class: "chips", "aria-label": say("inspector.off") });
    this._mode = h(
      "select",
      { id: "inspector-mode" },
      h("option", { value: "next" }, say("inspector.mode_next")),
      h("option", { value: "zero" }, say("inspector.mode_zero")),
    );
    this._choice = h("select", { id: "inspector-turn", onchange: () => this._chosen() });
    this._try = button({ action: "knock-out", label: say("inspector.try"), onclick: () => this._answer() });
    this._try.classList.add("primary");
    this._ask = button({ action: "importance", label: say("inspector.importance"), onclick: () => this._importance() });
    this._cancel = button({
      action: "cancel",
      label: say("inspector.cancel"),
      hidden: true,
      onclick: () => this.cancel(),
    });
    this._status = h("p", { class: "status", role: "status" });
    this._result = h("div", { class: "knock-out-result" });
    this.element = h(
      "section",
      { class: "knock-out", "aria-label": say("inspector.knock_out") },
      h("h3", {}, say("inspector.knock_out")),
      h("p", { class: "soft" }, say("inspector.knock_out_about")),
      this._chips,
      h("p", { class: "field" }, h("label", { for: "inspector-turn" }, say("inspector.of_turn")), this._choice),
      h("p", { class: "field" }, h("label", { for: "inspector-mode" }, say("inspector.mode")), this._mode),
      h("p", { class: "row" }, this._try, this._ask, this._cancel),
      this._status,
      this._result,
    );
    this._show();
  }

  /** Offer the turns that can be tried again, this one first if it can. */
  offer(turn = null) {
    const turns = this._does.turns().filter(({ tables }) => tables);
    const known = turns.length === this._turns.length && turns.every((one, i) => one === this._turns[i]);
    if (known && turn === this._wanted) return;
    this._turns = turns;
    if (turn?.tables && turn !== this._wanted) this._turn = turn;
    this._wanted = turn;
    if (!turns.includes(this._turn)) this._turn = turns.at(-1) ?? null;
    this._choice.replaceChildren(
      ...turns.map((one) => {
        const words = one.reply.text.length > 40 ? `${one.reply.text.slice(0, 40)} …` : one.reply.text;
        return h(
          "option",
          { value: one.number, selected: one === this._turn },
          say("inspector.turn_option", { turn: one.number, words }),
        );
      }),
    );
    this._show();
  }

  /** Switch one more expert off. */
  add({ layer, expert }) {
    if (!this._off.some((one) => one.layer === layer && one.expert === expert)) this._off.push({ layer, expert });
    this._changed();
    this._try.focus();
  }

  /** The conversation is another one: all experts are on, and what is asked of the server is not waited for. */
  forget() {
    this._running?.abort();
    this._running = null;
    this._off = [];
    this._turns = [];
    this._turn = this._wanted = null;
    this._choice.replaceChildren();
    this._result.replaceChildren();
    this._status.removeAttribute("data-problem");
    this._status.textContent = "";
    this._changed();
  }

  /** Stop what goes on. */
  cancel() {
    this._running?.abort();
  }

  _remove(gone) {
    this._off = this._off.filter((one) => one !== gone);
    this._changed();
    (this._chips.querySelector("button") ?? this._ask).focus();
  }

  _changed() {
    this._does.off(this._off.map(({ layer, expert }) => [layer, expert]));
    this._show();
  }

  _chosen() {
    this._turn = this._does.turns().find(({ number }) => String(number) === this._choice.value) ?? null;
  }

  _show() {
    const busy = this._running !== null;
    this._chips.replaceChildren(
      ...this._off.map((one) =>
        h(
          "li",
          { "data-layer": one.layer, "data-expert": one.expert },
          expertName(one),
          button({
            action: "switch-on",
            shape: "close",
            label: say("inspector.switch_on", one),
            quiet: true,
            onclick: () => this._remove(one),
          }),
        ),
      ),
    );
    if (!this._off.length) this._chips.append(h("li", { class: "soft" }, say("inspector.none_off")));
    this._try.disabled = busy || !this._turn || !this._off.length;
    this._ask.disabled = busy || !this._turn;
    this._cancel.hidden = !busy;
    this.element.setAttribute("aria-busy", busy);
    if (!this._turn && !busy) this._status.textContent = say("inspector.no_tables");
    else if (this._status.textContent === say("inspector.no_tables")) this._status.textContent = "";
  }

  /** The server's answer about the chosen turn, or null; what went wrong is told. */
  async _posted(address, wishes) {
    const { tables, user } = this._turn;
    const body = {
      tables: tablesInBase64(tables),
      sound: user.sound?.length ? base64Of(bytesIn(user.sound)) : null,
      mode: this._mode.value,
      ...wishes,
    };
    const running = new AbortController();
    this._running = running;
    this._status.removeAttribute("data-problem");
    this._status.textContent = say("inspector.busy");
    this._show();
    let told = "";
    try {
      const headers = { "Content-Type": "application/json" };
      const options = { method: "POST", headers, body: JSON.stringify(body), signal: running.signal };
      const given = await (await fetched(address, options)).json();
      if (!running.signal.aborted) return given;
      told = say("inspector.cancelled");
      return null;
    } catch (error) {
      told = running.signal.aborted ? say("inspector.cancelled") : say("inspector.failed", { why: error.message });
      if (this._running === running && !running.signal.aborted) this._status.dataset.problem = "";
      return null;
    } finally {
      // Of a conversation that was forgotten there is nothing to tell.
      if (this._running === running) {
        this._running = null;
        this._status.textContent = told;
        this._show();
      }
    }
  }

  async _answer() {
    const turn = this._turn;
    const off = [...this._off];
    const settings = this._does.settings();
    const seed = turn.seed ?? settings.seed ?? null;
    // Without a seed two answers would differ by chance, whatever is off.
    const temperature = seed === null ? 0 : (settings.temperature ?? 0);
    const given = await this._posted(new URL("../../knock_out", import.meta.url), {
      knock_out: off.map(({ layer, expert }) => [layer, expert]),
      temperature,
      seed,
      speak: turn.reply.sound.length > 0,
    });
    if (!given) return;
    this._result.replaceChildren(...this._compared(turn, off, { ...given, temperature, seed }));
    this._does.say(say("inspector.without_said", { text: given.text }));
  }

  async _importance() {
    const turn = this._turn; // another may be chosen while the server counts
    const given = await this._posted(new URL("../../importance", import.meta.url), { count: COUNT });
    if (!given) return;
    const row = ({ layer, expert, modality, estimate, exact }) =>
      h(
        "tr",
        { "data-layer": layer, "data-expert": expert, "data-estimate": estimate, "data-exact": exact },
        h(
          "th",
          { scope: "row" },
          h(
            "button",
            { type: "button", class: "link", onclick: () => this._does.selectExpert({ layer, expert }) },
            expertName({ layer, expert }),
          ),
        ),
        h("td", {}, modalityOf(modality)),
        h("td", { class: "figure" }, nats(estimate, true)),
        h("td", { class: "figure" }, nats(exact, true)),
      );
    this._result.replaceChildren(
      h("h4", {}, say("inspector.mattered", { turn: turn.number })),
      h("p", { class: "soft" }, say("inspector.mattered_about")),
      h(
        "table",
        { class: "importance" },
        tableHead(["expert_column", "modality", "estimate", "exact"]),
        h("tbody", {}, ...given.experts.map(row)),
      ),
    );
  }

  _compared(turn, off, given) {
    const { tokens, lost, temperature, seed } = given;
    const before = joined(Int16Array, turn.reply.sound);
    const after = given.sound ? samplesOf(given.sound) : new Int16Array(0);
    const [old, fresh] = differences(turn.reply.text, given.text);
    const side = (which, words, sound) =>
      h(
        "div",
        { "data-side": which },
        h("h4", {}, say(`inspector.${which}`)),
        h("p", { class: "said" }, ...words),
        sound.length
          ? button({
              action: `play-${which}`,
              shape: "play",
              label: say(`inspector.play_${which}`),
              onclick: () => this._does.play(sound, REPLY_RATE),
            })
          : h("p", { class: "soft" }, say("inspector.no_sound")),
      );
    const heard = given.heard && given.heard !== turn.user.text;
    return [
      h("p", {}, say("inspector.without", { turn: turn.number, off: off.map(expertName).join("; ") })),
      h(
        "p",
        { class: "soft drawn" },
        seed === null ? say("inspector.no_seed") : say("inspector.drawn", { temperature, seed }),
      ),
      h("div", { class: "compared" }, side("with_all", old, before), side("without_them", fresh, after)),
      given.text === turn.reply.text ? h("p", {}, say("inspector.same_words")) : null,
      heard ? h("p", {}, say("inspector.heard_now", { text: given.heard })) : null,
      given.finish_reason === "stop" ? null : h("p", {}, say(`inspector.finish_${given.finish_reason}`)),
      h("h4", {}, say("inspector.lost")),
      h("p", { class: "soft" }, say("inspector.lost_about")),
      h(
        "p",
        { "data-total": lost.total, "data-text": lost.text, "data-audio": lost.audio },
        [
          say("inspector.lost_total", { nats: nats(-lost.total, true), n: tokens.length }),
          lost.text === null ? "" : say("inspector.lost_text", { nats: nats(-lost.text, true) }),
          lost.audio === null ? "" : say("inspector.lost_audio", { nats: nats(-lost.audio, true) }),
        ]
          .filter(Boolean)
          .join(" "),
      ),
      chart(tokens),
      scrolled(
        say("inspector.per_token"),
        h(
          "table",
          { class: "per-token" },
          h("caption", {}, say("inspector.per_token")),
          tableHead(["text_column", "modality", "with_column", "without_column", "difference"]),
          h("tbody", {}, ...tokens.map(tokenRow)),
        ),
      ),
    ].filter(Boolean);
  }
}

const bytesIn = (samples) => new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);

function samplesOf(base64) {
  const bytes = bytesOf(base64);
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

function tableHead(names) {
  return h(
    "thead",
    {},
    h(
      "tr",
      {},
      ...names.map((name, i) => h("th", { scope: "col", class: i > 1 ? "figure" : null }, say(`inspector.${name}`))),
    ),
  );
}

function tokenRow({ token, text, modality, logprob, without }) {
  return h(
    "tr",
    { "data-token": token, "data-logprob": logprob, "data-without": without, "data-modality": modality },
    h("th", { scope: "row" }, tokenText(text)),
    h("td", {}, modalityOf(modality)),
    h("td", { class: "figure" }, nats(logprob)),
    h("td", { class: "figure" }, nats(without)),
    h("td", { class: "figure" }, nats(without - logprob, true)),
  );
}

/** A bar a token: what its log-probability loses points down. */
function chart(tokens) {
  const space = "http://www.w3.org/2000/svg";
  const { width, height } = CHART;
  const draw = (tag, properties) => {
    const element = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
    return element;
  };
  const changes = tokens.map(({ logprob, without }) => without - logprob);
  const top = Math.max(...changes, 0);
  const bottom = Math.min(...changes, 0);
  const scale = height / (top - bottom || 1);
  const step = width / Math.max(tokens.length, 1);
  const lowest = changes.indexOf(bottom);
  const label =
    lowest < 0
      ? say("inspector.chart_none")
      : say("inspector.chart", { nats: nats(bottom, true), text: tokens[lowest].text });
  const svg = draw("svg", {
    viewBox: `0 0 ${width} ${height}`,
    preserveAspectRatio: "none",
    class: "changes",
    role: "img",
    "aria-label": label,
  });
  svg.append(draw("line", { x1: 0, x2: width, y1: top * scale, y2: top * scale, class: "zero" }));
  changes.forEach((change, i) => {
    const y = (change > 0 ? top - change : top) * scale;
    const bar = { x: i * step, y, width: Math.max(step - 1, 0.5), height: Math.max(Math.abs(change) * scale, 1) };
    svg.append(draw("rect", { ...bar, "data-modality": tokens[i].modality }));
  });
  return h(
    "figure",
    {},
    h(
      "figcaption",
      {},
      say("inspector.chart_about", { top: nats(top, true), bottom: nats(bottom, true), n: tokens.length }),
    ),
    svg,
  );
}

/** [before, after] as lists of nodes: words that only one of them has are marked, by more than colour. */
function differences(before, after) {
  const [old, fresh] = [before.split(/(?<=\s)/), after.split(/(?<=\s)/)];
  const same = (i, j) => old[i].trim() === fresh[j].trim();
  // The longest run of words in order that both have, counted from each place on.
  const run = Array.from({ length: old.length + 1 }, () => new Uint32Array(fresh.length + 1));
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = fresh.length - 1; j >= 0; j--) {
      run[i][j] = same(i, j) ? run[i + 1][j + 1] + 1 : Math.max(run[i + 1][j], run[i][j + 1]);
    }
  }
  const sides = [[], []];
  for (let i = 0, j = 0; i < old.length || j < fresh.length;) {
    if (i < old.length && j < fresh.length && same(i, j)) {
      sides[0].push(old[i++]);
      sides[1].push(fresh[j++]);
    } else if (j === fresh.length || (i < old.length && run[i + 1][j] >= run[i][j + 1])) {
      sides[0].push(h("del", {}, old[i++]));
    } else {
      sides[1].push(h("ins", {}, fresh[j++]));
    }
  }
  return sides;
}
