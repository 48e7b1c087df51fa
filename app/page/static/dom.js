// Making elements. Text only ever becomes text: nothing here, nor anywhere else on the page, parses HTML.

/** h("p", {class: "hint", onclick: f, "aria-live": "polite"}, "words", child, ...) */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SHAPES = {
  microphone: "M12 3a3 3 0 0 1 3 3v6a3 3 0 0 1-6 0V6a3 3 0 0 1 3-3ZM6 11v1a6 6 0 0 0 12 0v-1M12 18v3M8.5 21h7",
  microphone_off:
    "M9 9v3a3 3 0 0 0 4.5 2.6M15 11.5V6a3 3 0 0 0-5.8-1M6 11v1a6 6 0 0 0 9.2 5M18 11v1q0 .8-.2 1.6M12 18v3M8.5 21h7M4 4l16 16",
  stop: "M7 7h10v10H7Z",
  pause: "M9 6v12M15 6v12",
  play: "M8 5.5v13l11-6.5Z",
  speaker: "M4 9.5v5h3.5L12 18.5v-13L7.5 9.5ZM15.5 9a4.5 4.5 0 0 1 0 6M18 6.5a8 8 0 0 1 0 11",
  dots: "M6 12h.01M12 12h.01M18 12h.01",
  keyboard: "M3 6.5h18v11H3ZM7 10h.01M11 10h.01M15 10h.01M17 13.5h.01M7 13.5h.01M10 13.5h4",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M13 7a2 2 0 1 0 4 0 2 2 0 1 0-4 0M7 17a2 2 0 1 0 4 0 2 2 0 1 0-4 0",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 1 0 0-8M12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M18.7 5.3l-1.4 1.4M6.7 17.3l-1.4 1.4",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5Z",
  save: "M12 4v11M7.5 11 12 15.5 16.5 11M5 20h14",
  open: "M12 16V5M7.5 9.5 12 5l4.5 4.5M5 20h14",
  clear: "M5 7h14M10 7V4.5h4V7M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
  attach: "M8 12.5 14.2 6.3a3 3 0 0 1 4.3 4.3l-8 8a5 5 0 0 1-7-7l7.5-7.5",
  send: "M5 12h13M12.5 6.5 18 12l-5.5 5.5",
  close: "M6 6l12 12M18 6 6 18",
  offline:
    "M3 9a13 13 0 0 1 6-3.3M21 9a13 13 0 0 0-7-3.5M6.5 12.7a8 8 0 0 1 4-2.2M17.5 12.7a8 8 0 0 0-2-1.4M12 17.5h.01M4 4l16 16",
  check: "M5 12.5 10 17.5 19 7.5",
  warning: "M12 4 2.5 20h19ZM12 10v4.5M12 17.5h.01",
  file: "M7 3.5h7l4 4v13H7ZM14 3.5v4h4",
};

/** A line drawing in the colour of the text around it, without words of its own. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", SHAPES[name]);
  svg.append(path);
  return svg;
}

/** A button with a drawing and words; `quiet`: the words are for screen readers and the tooltip alone. */
export function button({ action, shape, label, quiet = false, onclick, ...rest }) {
  const words = quiet ? [] : [h("span", {}, label)];
  return h(
    "button",
    {
      type: "button",
      class: quiet ? "button quiet" : "button",
      "data-action": action,
      "aria-label": quiet ? label : null,
      title: quiet ? label : null,
      onclick,
      ...rest,
    },
    shape ? icon(shape) : null,
    ...words,
  );
}

/** Change what a button shows and says. */
export function relabel(element, shape, label) {
  if (element.dataset.shape !== shape) {
    element.dataset.shape = shape;
    element.querySelector(".icon")?.replaceWith(icon(shape));
  }
  const words = element.querySelector("span");
  if (words) words.textContent = label;
  else {
    element.setAttribute("aria-label", label);
    element.title = label;
  }
}
