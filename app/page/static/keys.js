// Space: talk. M: mute. Esc: stop. Not where a key means something else already.

const TYPES = "input, textarea, select, [contenteditable]";
// A control that was reached by keyboard takes space; one that was clicked does not keep it.
const PRESSES = `${TYPES}, :is(button, a, summary, [role="tab"]):focus-visible`;

export function listenToKeys(talk) {
  let held = false;
  const busy = (event, where) =>
    !talk.settings.keys ||
    document.querySelector("dialog[open]") ||
    event.target.closest?.(where) ||
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    !talk.element.offsetParent;
  addEventListener("keydown", (event) => {
    if (event.code === "Space" && held) event.preventDefault(); // repeats, wherever the focus went
    if (event.repeat) return;
    if (event.code === "Space" && !busy(event, PRESSES)) {
      event.preventDefault(); // the page would scroll
      held = true;
      talk.press();
    } else if (event.key.toLowerCase() === "m" && !busy(event, TYPES)) {
      talk.mute();
    } else if (event.key === "Escape" && talk.settings.keys && !document.querySelector("dialog[open]")) {
      talk.stop();
    }
  });
  const up = () => {
    if (!held) return;
    held = false;
    talk.release();
  };
  addEventListener("keyup", (event) => {
    if (event.code !== "Space" || !held) return;
    event.preventDefault(); // Firefox clicks a focused button only now
    up();
  });
  addEventListener("blur", up); // a key that goes up in another window is not told here
  // The circle is a button: held by the keyboard, it is space as well.
  talk.stage.circle.addEventListener("keydown", (event) => {
    if ((event.code !== "Space" && event.key !== "Enter") || event.repeat) return;
    event.preventDefault();
    held = true;
    talk.press();
  });
  talk.stage.circle.addEventListener("keyup", (event) => {
    if (event.code !== "Space" && event.key !== "Enter") return;
    event.preventDefault();
    up();
  });
}
