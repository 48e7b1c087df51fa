// Space: talk. M: mute. Esc: stop. Not where a key means something else already.

const TYPES = "input, textarea, select, [contenteditable]";
const PRESSES = `${TYPES}, button, a, summary, [role="tab"]`;

export function listenToKeys(talk) {
  let held = false;
  const busy = (event, where) => event.target.closest?.(where) || event.ctrlKey || event.metaKey || event.altKey || !talk.element.offsetParent;
  addEventListener("keydown", (event) => {
    if (event.code === "Space" && held) event.preventDefault(); // repeats, wherever the focus went
    if (event.repeat) return;
    if (event.code === "Space" && !busy(event, PRESSES)) {
      event.preventDefault(); // the page would scroll
      held = true;
      talk.press();
    } else if (event.key.toLowerCase() === "m" && !busy(event, TYPES)) {
      talk.mute();
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      talk.stop();
    }
  });
  const up = () => {
    if (!held) return;
    held = false;
    talk.release();
  };
  addEventListener("keyup", (event) => event.code === "Space" && up());
  addEventListener("blur", up); // a key that goes up in another window is not told here
  // The circle is a button: held by the keyboard, it is space as well.
  talk.stage.circle.addEventListener("keydown", (event) => {
    if ((event.code !== "Space" && event.key !== "Enter") || event.repeat) return;
    event.preventDefault();
    held = true;
    talk.press();
  });
  talk.stage.circle.addEventListener("keyup", (event) => (event.code === "Space" || event.key === "Enter") && up());
}
