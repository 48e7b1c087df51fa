// The page around the conversation: its three rooms, the tools above it, light and dark.

import { button, h, relabel } from "./dom.js";
import { say } from "./words.js";

const THEME = "most.theme";

/** Colours as the person chose, else as the system has them; Gradio would always have the system's. */
export function keepTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const dark = (chosenTheme() ?? (system.matches ? "dark" : "light")) === "dark";
    if (document.body.classList.contains("dark") !== dark) document.body.classList.toggle("dark", dark);
  };
  new MutationObserver(show).observe(document.body, { attributeFilter: ["class"] });
  system.addEventListener("change", show);
  show();
}

let chosen = null; // where the browser keeps nothing

function chosenTheme() {
  try {
    return localStorage.getItem(THEME) ?? chosen;
  } catch {
    return chosen;
  }
}

function chooseTheme(theme) {
  chosen = theme;
  try {
    localStorage.setItem(THEME, theme);
  } catch {
    // only until the tab is closed
  }
}

/**
 * {element, banner}: the whole page, and the line that tells of an opened session. `rooms`: stage, transcript,
 * composer, beside, dialog, announcer, each with an `element`. `does`: save(), open(File), clear(), settings().
 */
export function frame(model, rooms, does) {
  const banner = h("div", { class: "banner", hidden: true, role: "status" });
  const opener = h("input", { type: "file", accept: ".zip,application/zip", hidden: true, id: "most-open" });
  opener.addEventListener("change", () => {
    const [file] = opener.files;
    opener.value = "";
    if (file) does.open(file);
  });
  const quiet = (action, shape, onclick) =>
    button({ action, shape, label: say(`actions.${action}`), quiet: true, onclick });
  const tools = h(
    "div",
    { class: "tools" },
    h("span", { class: "model" }, model),
    quiet("save", "save", () => does.save()),
    quiet("open", "open", () => opener.click()),
    opener,
    quiet("clear", "clear", () => does.clear()),
    themeSwitch(),
    quiet("settings", "settings", () => does.settings()),
  );
  const { stage, transcript, composer, beside, dialog, announcer } = rooms;
  const element = h(
    "div",
    { class: "talk" },
    stage.element,
    h("section", { class: "conversation" }, tools, banner, transcript.element, composer.element),
    beside.element,
    dialog.element,
    announcer.element,
  );
  return { element, banner };
}

function themeSwitch() {
  const dark = () => document.body.classList.contains("dark");
  const show = () =>
    relabel(element, dark() ? "sun" : "moon", say(dark() ? "actions.theme_light" : "actions.theme_dark"));
  const element = button({
    action: "theme",
    shape: "moon",
    label: say("actions.theme_dark"),
    quiet: true,
    onclick: () => {
      chooseTheme(dark() ? "light" : "dark");
      document.body.classList.toggle("dark");
    },
  });
  new MutationObserver(show).observe(document.body, { attributeFilter: ["class"] });
  show();
  return element;
}
