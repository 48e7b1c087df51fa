// The colours of experts: hue is the modality, brightness the confidence. Every step is readable on its ground.

import { AUDIO, TEXT } from "./rows.js";

export const STEPS = 16;
const LEAST = 4.6; // contrast of the faintest with the ground, which is the colour of what is written on them, too
const MOST = 13; // of the surest

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Whether nothing may move. */
export function calm() {
  return still.matches;
}

/** Pixels of the screen a pixel of the page. */
export function scale() {
  return Math.min(devicePixelRatio || 1, 2);
}

/** Fit a canvas to a size of the page, and empty it: its pen, in the page's pixels. */
export function fit(canvas, width, height) {
  const by = scale();
  const [across, down] = [Math.max(Math.round(width * by), 1), Math.max(Math.round(height * by), 1)];
  if (canvas.width !== across) canvas.width = across;
  if (canvas.height !== down) canvas.height = down;
  const pen = canvas.getContext("2d", { alpha: false });
  pen.setTransform(by, 0, 0, by, 0, 0);
  pen.fillStyle = colours().surface;
  pen.fillRect(0, 0, width, height);
  return pen;
}

/** The step of a share from 0 to 1. */
export function step(share) {
  return Math.min(Math.max(Math.floor(share * STEPS), 0), STEPS - 1);
}

let palette = null;
new MutationObserver(() => (palette = null)).observe(document.body, { attributeFilter: ["class"] }); // the theme

/**
 * The colours of the theme: {surface, ink, soft, line, strong, accent, sunken, danger, of: [text's, audio's]}, where
 * each of the last is {main, fills: [STEPS]}: the surface can be read on all of them. Another object in another theme.
 */
export function colours() {
  if (palette) return palette;
  const style = getComputedStyle(document.body);
  const named = (name) => style.getPropertyValue(name).trim();
  const surface = named("--surface");
  const modality = { [TEXT]: named("--text-modality"), [AUDIO]: named("--audio-modality") };
  palette = {
    surface,
    ink: named("--ink"),
    soft: named("--ink-soft"),
    line: named("--line"),
    strong: named("--line-strong"),
    accent: named("--accent"),
    sunken: named("--sunken"),
    danger: named("--danger"),
    of: [TEXT, AUDIO].map((which) => ramp(modality[which], surface)),
  };
  return palette;
}

/** Steps of one hue from faint to sure. */
function ramp(main, surface) {
  const ground = numbers(surface);
  const dark = luminance(ground) < 0.2;
  const [hue, away, near] = [numbers(main), dark ? [255, 255, 255] : [0, 0, 0], ground];
  // From the ground through the hue itself to its far end: 0..1 is ground to hue, 1..2 is hue to white or black.
  const at = (place) => (place < 1 ? mix(near, hue, place) : mix(hue, away, 0.85 * (place - 1)));
  const place = (contrast) => {
    let [low, high] = [0, 2];
    for (let i = 0; i < 20; i++) {
      const middle = (low + high) / 2;
      if (ratio(at(middle), ground) < contrast) low = middle;
      else high = middle;
    }
    return high;
  };
  const fills = Array.from({ length: STEPS }, (_, i) => at(place(LEAST * (MOST / LEAST) ** (i / (STEPS - 1)))));
  return { main, fills: fills.map(css) };
}

function numbers(colour) {
  const digits = colour.slice(1);
  const wide = digits.length === 3 ? [...digits].map((digit) => digit + digit).join("") : digits;
  return [0, 2, 4].map((at) => parseInt(wide.slice(at, at + 2), 16));
}

const css = (colour) => `rgb(${colour.map(Math.round).join(" ")})`;
const mix = (from, to, share) => from.map((value, i) => value + (to[i] - value) * share);

function luminance(colour) {
  const [red, green, blue] = colour.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function ratio(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

let hatch = null;

/** Diagonal lines for audio, thin enough to read through. */
export function hatching(pen) {
  const { surface } = colours();
  if (hatch?.surface === surface) return hatch.pattern;
  const tile = new OffscreenCanvas(8, 8);
  const ink = tile.getContext("2d");
  ink.strokeStyle = surface;
  ink.globalAlpha = 0.3;
  ink.lineWidth = 1.2;
  for (const shift of [-8, 0, 8]) {
    ink.beginPath();
    ink.moveTo(shift - 1, 9);
    ink.lineTo(shift + 9, -1);
    ink.stroke();
  }
  hatch = { surface, pattern: pen.createPattern(tile, "repeat") };
  return hatch.pattern;
}
