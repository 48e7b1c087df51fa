// Asking without a microphone: typed, as a file, or with one tap.

import { button, h } from "./dom.js";
import { list, say } from "./words.js";

// Of the recordings those that show most; without them, whichever there are.
const SHOWN = ["latte.wav", "capital.wav", "spelling.wav", "opposite.wav", "repeat.wav"];

export class Composer {
  /** `limits` and `samples`: of the server. `does`: type(text), file(File), sample({file, says}). */
  constructor(limits, samples, does) {
    this._limits = limits;
    this._does = does;
    this.text = h("textarea", {
      id: "most-text",
      rows: 1,
      placeholder: say("compose.placeholder"),
      "aria-label": say("compose.label"),
      "aria-describedby": "most-compose-note",
    });
    this._file = h("input", {
      type: "file",
      accept: "audio/*,video/mp4,video/webm,.opus,.flac,.m4a",
      hidden: true,
      id: "most-file",
    });
    this._note = h("p", { class: "note", id: "most-compose-note", role: "status" });
    const form = h(
      "form",
      { class: "composer" },
      button({
        action: "attach",
        shape: "attach",
        label: say("actions.attach"),
        quiet: true,
        onclick: () => this._file.click(),
      }),
      this._file,
      this.text,
      button({ action: "send", shape: "send", label: say("actions.send"), quiet: true, type: "submit" }),
    );
    this.chips = h(
      "div",
      { class: "offers" },
      offers(
        say("compose.ask"),
        list("compose.questions").map((question) => chip(question, null, () => does.type(question))),
      ),
      samples.length
        ? offers(
            say("compose.samples"),
            best(samples).map((sample) => chip(sample.says, "speaker", () => does.sample(sample))),
          )
        : null,
    );
    this.element = h("div", { class: "compose" }, this.chips, this._note, form);

    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this._submit();
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this._submit();
      }
    });
    this.text.addEventListener("input", () => {
      this._grow();
      this._check();
    });
    this._file.addEventListener("change", () => {
      const [file] = this._file.files;
      this._file.value = "";
      if (file) does.file(file);
    });
    // Anywhere on the page: a browser would leave it for the file, and the conversation with it.
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      const [file] = event.dataTransfer.files;
      if (file) does.file(file);
    });
  }

  /** A sentence under the field; "" takes it away. */
  note(text) {
    this._note.textContent = text;
  }

  _check() {
    const { length } = this.text.value;
    const { characters } = this._limits;
    const fits = length <= characters;
    this.note(fits ? "" : say("compose.too_long", { count: length, limit: characters }));
    return fits;
  }

  _submit() {
    const text = this.text.value.trim();
    if (!text || !this._check()) return;
    this.text.value = "";
    this._grow();
    this._does.type(text);
  }

  _grow() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight, 160)}px`;
  }
}

function best(samples) {
  const found = SHOWN.flatMap((file) => samples.filter((sample) => sample.file === file));
  return found.length ? found : samples.slice(0, SHOWN.length);
}

function offers(title, chips) {
  return h(
    "div",
    { class: "chips", role: "group", "aria-label": title },
    h("span", { class: "soft", "aria-hidden": "true" }, title),
    ...chips,
  );
}

function chip(text, shape, onclick) {
  return button({ action: shape ? "sample" : "ask", shape, label: text, onclick });
}
