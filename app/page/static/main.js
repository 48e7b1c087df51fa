// Begins here: fetch what the server tells of itself, build the conversation, put it into its place in the page.

import { h } from "./dom.js";
import { keepTheme } from "./frame.js";
import { Talk } from "./talk.js";
import { learn } from "./words.js";

/**
 * Gradio makes the place, and may make it anew: the conversation moves in whenever there is an empty one. Until then it
 * stands in front of the page, where one can talk already: Gradio takes seconds to begin.
 */
function keepInPlace(element, moves = () => {}) {
  const early = h("div", { id: "most", class: "early" }, element);
  const settle = () => {
    const place = document.querySelector(".gradio-container #most");
    if (!place || element.parentNode === place) return;
    if (element.querySelector("dialog[open]")) return; // moved, it would not be in front of all any more
    moves();
    const focus = element.contains(document.activeElement) ? document.activeElement : null;
    early.remove();
    place.replaceChildren(element);
    focus?.focus();
  };
  document.body.append(early);
  new MutationObserver(settle).observe(document.body, { childList: true, subtree: true });
  element.addEventListener("close", settle, true); // of the dialogue
  settle();
}

/** Gradio names its empty places, which only what has a role may be: screen readers would not say the name. */
function mendNames() {
  const mend = () =>
    document.querySelectorAll(".empty[aria-label]:not([role])").forEach((place) => place.setAttribute("role", "img"));
  new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
  mend();
}

async function begin() {
  const answer = await fetch(new URL("../facts.json", import.meta.url));
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  const facts = await answer.json();
  learn(facts.words);
  keepTheme();
  const talk = new Talk(facts);
  talk.element.dataset.ready = "true";
  keepInPlace(talk.element, () => talk.microphone.release()); // a pointer that holds the circle is let go with it
  mendNames();
}

begin().catch((error) => {
  // The words did not come, so these are the only ones that are not in their file.
  console.error(error);
  keepInPlace(h("p", { class: "failed", role: "alert" }, `The page could not be set up: ${error.message}. Reload it.`));
});
