// What the page says to people. The words come from the server's one file of strings; here they are only filled in.

let words = {};

/** Set once, before anything is shown. */
export function learn(given) {
  words = given;
}

/** The string at a dotted place, its {names} filled in; the place itself where there is none. */
export function say(place, values = {}) {
  const found = place.split(".").reduce((group, key) => group?.[key], words);
  if (typeof found !== "string") return place;
  return found.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** The strings at a place that holds a list. */
export function list(place) {
  const found = place.split(".").reduce((group, key) => group?.[key], words);
  return Array.isArray(found) ? found : [];
}
