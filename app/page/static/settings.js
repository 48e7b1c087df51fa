// What people may set, kept in their own browser.

import { button, h } from "./dom.js";
import { Sound } from "./sound/devices.js";
import { say } from "./words.js";

const PLACE = "most.settings";
const PAUSES_MS = [350, 500, 700, 1000, 1500];
const SOUND_SWITCHES = ["echoCancellation", "noiseSuppression", "autoGainControl"];

const USUAL = {
  history: 1, // the server says how many
  mode: "hands-free", // or "push"
  endpoint_ms: 0, // 0: learned
  half_duplex: false,
  captions: true,
  voice: true,
  routing: true,
  keys: true,
  microphone: "",
  speaker: "",
  volume: 1,
  echoCancellation: true,
  noiseSuppression: true,
  autoGainControl: true,
  temperature: 0,
  seed: null,
};

/** What was kept, as far as it makes sense. `history`: the server's usual one. */
export function load(history) {
  USUAL.history = history;
  const settings = { ...USUAL };
  try {
    const kept = JSON.parse(localStorage.getItem(PLACE)) ?? {};
    for (const [name, usual] of Object.entries(settings)) {
      if (typeof kept[name] === typeof usual || (name === "seed" && Number.isInteger(kept.seed)))
        settings[name] = kept[name];
    }
  } catch {
    // unreadable, or the browser keeps nothing: the usual ones
  }
  return settings;
}

/** Keep what is not as usual: what is follows the server's and this page's later choices. */
export function keep(settings) {
  const chosen = Object.entries(settings).filter(([name, value]) => value !== USUAL[name]);
  try {
    localStorage.setItem(PLACE, JSON.stringify(Object.fromEntries(chosen)));
  } catch {
    // a browser that keeps nothing forgets them with the tab
  }
}

/** The `session.update` that makes a session behave so. */
export function wishes(settings) {
  const pause = settings.endpoint_ms;
  return {
    type: "session.update",
    session: {
      type: "realtime",
      output_modalities: [settings.voice ? "audio" : "text"],
      most: {
        record: true,
        routing: settings.routing,
        captions: settings.captions,
        half_duplex: settings.half_duplex,
        hands_free: settings.mode === "hands-free",
        history: settings.history,
        temperature: settings.temperature,
        seed: settings.seed,
        turns: pause
          ? { endpoint_min_ms: pause, endpoint_start_ms: pause, endpoint_max_ms: pause, short_extra_ms: 0 }
          : {},
      },
    },
  };
}

/** The dialogue. `changed(names)` is called with the settings changed in place; `devices()` gives what there is. */
export class SettingsDialog {
  constructor(settings, changed, devices) {
    this._settings = settings;
    this._changed = changed;
    this._devices = devices;
    this._microphones = h("select", {
      id: "most-microphone",
      onchange: (e) => this._set("microphone", e.target.value),
    });
    this._speakers = h("select", { id: "most-speaker", onchange: (e) => this._set("speaker", e.target.value) });
    this.element = h(
      "dialog",
      { class: "settings", "aria-labelledby": "most-settings-title" },
      h(
        "header",
        {},
        h("h2", { id: "most-settings-title" }, say("settings.title")),
        button({
          action: "close-settings",
          shape: "close",
          label: say("actions.close"),
          quiet: true,
          onclick: () => this.element.close(),
        }),
      ),
      h("section", {}, h("h3", {}, say("settings.talking")), ...this._talking()),
      h("section", {}, h("h3", {}, say("settings.devices")), ...this._sound()),
      h("section", {}, h("h3", {}, say("settings.model")), ...this._model()),
      h("p", { class: "soft" }, say("settings.privacy")),
    );
    this.element.addEventListener("click", (event) => event.target === this.element && this.element.close());
  }

  async open() {
    this.element.showModal();
    await this.refresh();
  }

  /** The devices' lists anew: names are known once a microphone was allowed. */
  async refresh() {
    const { microphones, speakers } = await this._devices();
    fill(this._microphones, microphones, this._settings.microphone, "settings.unnamed_microphone");
    fill(this._speakers, speakers, this._settings.speaker, "settings.unnamed_speaker");
  }

  _set(name, value) {
    this._settings[name] = value;
    keep(this._settings);
    this._changed(name);
  }

  _talking() {
    const modes = ["hands-free", "push"].map((mode) =>
      h(
        "label",
        { class: "choice" },
        h("input", {
          type: "radio",
          name: "most-mode",
          value: mode,
          checked: this._settings.mode === mode,
          onchange: () => this._set("mode", mode),
        }),
        h("span", {}, say(mode === "push" ? "settings.mode_push" : "settings.mode_hands_free")),
      ),
    );
    const pauses = h(
      "select",
      { id: "most-endpoint", onchange: (e) => this._set("endpoint_ms", Number(e.target.value)) },
      h("option", { value: 0 }, say("settings.endpoint_auto")),
      ...PAUSES_MS.map((ms) =>
        h("option", { value: ms, selected: ms === this._settings.endpoint_ms }, say("settings.endpoint_ms", { ms })),
      ),
    );
    return [
      h("fieldset", {}, h("legend", {}, say("settings.mode")), ...modes),
      field("most-endpoint", say("settings.endpoint"), pauses),
      this._switch("half_duplex", "settings.half_duplex_help"),
      this._switch("captions"),
      this._switch("voice"),
      this._switch("routing", "settings.routing_help"),
      this._switch("keys"),
    ];
  }

  _sound() {
    return [
      field("most-microphone", say("settings.microphone"), this._microphones),
      Sound.canChooseSpeaker
        ? field("most-speaker", say("settings.speaker"), this._speakers)
        : h("p", { class: "soft" }, say("settings.no_speaker_choice")),
      ...SOUND_SWITCHES.map((name) => this._switch(name)),
    ];
  }

  _model() {
    const number = (name, rest) =>
      h("input", {
        type: "number",
        id: `most-${name}`,
        value: this._settings[name],
        ...rest,
        onchange: (e) => {
          const { valueAsNumber: value, validity } = e.target;
          if (validity.valid && (name === "seed" || !Number.isNaN(value)))
            this._set(name, Number.isNaN(value) ? null : value);
          else e.target.reportValidity();
        },
      });
    return [
      field("most-history", say("settings.history"), number("history", { min: 0, max: 20, step: 1 })),
      field(
        "most-temperature",
        say("settings.temperature"),
        number("temperature", { min: 0, max: 2, step: 0.1 }),
        say("settings.temperature_help"),
      ),
      field(
        "most-seed",
        say("settings.seed"),
        number("seed", { min: 0, max: 2 ** 31 - 1, step: 1 }),
        say("settings.seed_help"),
      ),
    ];
  }

  _switch(name, help) {
    const box = h("input", {
      type: "checkbox",
      checked: this._settings[name],
      onchange: () => this._set(name, box.checked),
    });
    return h(
      "label",
      { class: "choice" },
      box,
      h("span", {}, say(`settings.${name}`), help ? h("small", {}, say(help)) : null),
    );
  }
}

function field(id, label, control, help = "") {
  return h("div", { class: "field" }, h("label", { for: id }, label, help ? h("small", {}, help) : null), control);
}

function fill(select, devices, chosen, unnamed) {
  const options = devices.map(({ id, label }, i) =>
    h("option", { value: id, selected: id === chosen }, label || say(unnamed, { number: i + 1 })),
  );
  select.replaceChildren(h("option", { value: "" }, say("settings.default_device")), ...options);
}
