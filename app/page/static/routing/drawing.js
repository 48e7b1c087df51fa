// The ribbon as a picture to keep: the same marks on a canvas and as SVG, always in light colours.

import { h } from "../dom.js";
import { say } from "../words.js";
import { AUDIO, TEXT } from "./rows.js";
import { modalityOf } from "./telling.js";

const COLOURS = { ground: "#ffffff", ink: "#14181f", soft: "#4a5462", sides: ["#0072b2", "#d55e00"] };
const FONT = "system-ui, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif";
const SPACE = "http://www.w3.org/2000/svg";
const CELL = { width: 24, height: 20 };
const BAND = 44; // tokens side by side
const LEFT = 84; // room for the layers' names
const EDGE = 24;
const LABELS = 84; // room for the tokens' names
const MOST_LETTERS = { label: 12, line: 150 };
const LARGEST = 32_000; // pixels that browsers draw in one direction
const NO_XML = /[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]|\p{Surrogate}/gu; // what no XML may hold

/**
 * {width, height, marks, cells} of pieces [{turn, rows, from, to (not included)}]. `lines`: title, then what is told
 * below it. `cells`: [{x, y, turn, token, layer}], each as large as CELL.
 */
export function drawingOf(pieces, lines) {
  const tokens = pieces.flatMap(({ turn, rows, from, to }) =>
    Array.from({ length: to - from }, (_, i) => ({ turn, rows, token: from + i })),
  );
  const marks = [];
  const cells = [];
  let y = EDGE;
  lines.forEach((line, i) => {
    y += i ? 18 : 20;
    const looks = i ? { size: 13 } : { size: 17, weight: 600, fill: COLOURS.ink };
    marks.push(text(EDGE, y, shortened(line, MOST_LETTERS.line), { ...looks, whole: line }));
  });
  y += 14;
  legend(marks, y);
  y += 44;
  for (let start = 0; start < tokens.length; start += BAND) {
    const band = tokens.slice(start, start + BAND);
    const { layers } = band[0].rows;
    band.forEach(({ turn, rows, token }, column) => {
      const x = LEFT + column * CELL.width;
      const first = column === 0 || band[column - 1].turn !== turn;
      const place = rows.first + token + 1; // in its turn, of which the rows may be a part
      if (first)
        marks.push(text(x, y, say("inspector.turn_mark", { turn: turn.number, token: place }), { size: 11 }));
      else if (place % 10 === 0 && column > 4) marks.push(text(x, y, String(place), { size: 11 }));
      layers.forEach((_, layer) => {
        const corner = { x, y: y + 6 + layer * CELL.height };
        cells.push({ ...corner, turn, token, layer });
        marks.push(...cell(corner, rows, token, layer));
      });
      const audio = rows.modality[token] === AUDIO && rows.start_ms[token] !== null;
      const name = audio ? `${(rows.start_ms[token] / 1000).toFixed(2)} s` : rows.text[token];
      const below = y + 16 + layers.length * CELL.height;
      marks.push(text(x + 7, below, shortened(name, MOST_LETTERS.label), { size: 11, turned: 60, whole: name }));
    });
    layers.forEach((layer, i) =>
      marks.push(
        text(LEFT - 8, y + 20 + i * CELL.height, say("inspector.layer", { layer }), { size: 11, anchor: "end" }),
      ),
    );
    y += 6 + layers.length * CELL.height + LABELS + 18;
  }
  return { width: LEFT + BAND * CELL.width + EDGE, height: y + EDGE, marks, cells };
}

function shortened(words, most) {
  const letters = [...words];
  return letters.length > most ? `${letters.slice(0, most).join("")}…` : words;
}

function text(x, y, words, { size = 12, weight = 400, fill = COLOURS.soft, anchor = "start", turned = 0, whole } = {}) {
  return { kind: "text", x, y, words, size, weight, fill, anchor, turned, whole: whole ?? words };
}

/** The strongest expert of a token and layer: its number, on its probability as colour. */
function cell({ x, y }, rows, token, layer) {
  const [top] = rows.taken(token, layer);
  const modality = rows.modality[token];
  const box = { kind: "box", x: x + 0.5, y: y + 0.5, width: CELL.width - 2, height: CELL.height - 2 };
  const line = COLOURS.sides[modality];
  if (!top) return [{ ...box, fill: COLOURS.ground, line }];
  return filled(box, modality, top.share, String(top.expert));
}

function filled(box, modality, share, words) {
  const line = COLOURS.sides[modality];
  const fill = mixed(COLOURS.ground, line, share);
  const dark = contrast(fill, COLOURS.ink) < contrast(fill, COLOURS.ground);
  const ink = dark ? COLOURS.ground : COLOURS.ink;
  const middle = { x: box.x + box.width / 2, y: box.y + box.height / 2 + 4 };
  return [
    { ...box, fill, line },
    // Hatching tells sound from text without colours; it leaves the middle to the number.
    ...(modality === AUDIO ? [4, 8].map((size) => ({ ...box, kind: "corner", size, line: dark ? ink : line })) : []),
    text(middle.x, middle.y, words, { size: 11, fill: ink, anchor: "middle" }),
  ];
}

function legend(marks, y) {
  let x = EDGE;
  const box = (modality, share, words) => {
    marks.push(
      ...filled({ kind: "box", x, y, width: CELL.width - 2, height: CELL.height - 2 }, modality, share, words),
    );
    x += CELL.width;
  };
  const note = (words) => {
    marks.push(text(x + 4, y + 13, words));
    x += 24 + words.length * 6.6;
  };
  for (const modality of [TEXT, AUDIO]) {
    for (const share of [0.1, 0.5, 0.9]) box(modality, share, `${100 * share}`);
    note(modalityOf(modality));
  }
  note(say("inspector.legend"));
}

const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

function mixed(from, to, share) {
  const [a, b] = [channels(from), channels(to)];
  const part = Math.min(Math.max(share, 0), 1);
  return `#${a
    .map((value, i) =>
      Math.round(value + (b[i] - value) * part)
        .toString(16)
        .padStart(2, "0"),
    )
    .join("")}`;
}

/** As WCAG counts it. */
function contrast(one, other) {
  const light = (colour) => {
    const [r, g, b] = channels(colour).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
  return (bright + 0.05) / (dark + 0.05);
}

/** How many pixels painted() spends on each of a drawing's own: `sharp`, fewer where no browser could draw so many. */
export function scaleOf({ width, height }, sharp = 2) {
  return Math.min(sharp, LARGEST / Math.max(width, height));
}

/** Paint it on a canvas, as sharp as scaleOf() tells. */
export function painted(drawing) {
  const scale = scaleOf(drawing);
  const [width, height] = [drawing.width, drawing.height].map((size) => Math.round(size * scale));
  const canvas = h("canvas", { width, height });
  const brush = canvas.getContext("2d");
  brush.scale(scale, scale);
  brush.fillStyle = COLOURS.ground;
  brush.fillRect(0, 0, drawing.width, drawing.height);
  for (const mark of drawing.marks) paint(brush, mark);
  return canvas;
}

function paint(brush, mark) {
  const { x, y } = mark;
  if (mark.kind === "box") {
    brush.fillStyle = mark.fill;
    brush.strokeStyle = mark.line;
    brush.lineWidth = 1;
    brush.fillRect(x, y, mark.width, mark.height);
    brush.strokeRect(x, y, mark.width, mark.height);
  } else if (mark.kind === "corner") {
    brush.strokeStyle = mark.line;
    brush.beginPath();
    for (const [from, to] of corners(mark)) {
      brush.moveTo(...from);
      brush.lineTo(...to);
    }
    brush.stroke();
  } else {
    brush.save();
    brush.translate(x, y);
    brush.rotate((mark.turned * Math.PI) / 180);
    brush.font = `${mark.weight} ${mark.size}px ${FONT}`;
    brush.textAlign = { start: "left", middle: "center", end: "right" }[mark.anchor];
    brush.fillStyle = mark.fill;
    brush.fillText(mark.words, 0, 0);
    brush.restore();
  }
}

/** Two slanted lines, in the corners above left and below right. */
function corners({ x, y, width, height, size }) {
  return [
    [
      [x, y + size],
      [x + size, y],
    ],
    [
      [x + width, y + height - size],
      [x + width - size, y + height],
    ],
  ];
}

/** The same as the text of an SVG file. */
export function asSvg({ width, height, marks }) {
  const file = document.implementation.createDocument(SPACE, "svg");
  const draw = (tag, properties, parent = file.documentElement) => {
    const element = file.createElementNS(SPACE, tag);
    for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
    parent.append(element);
    return element;
  };
  const svg = file.documentElement;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("font-family", FONT);
  draw("rect", { width, height, fill: COLOURS.ground });
  for (const mark of marks) {
    const { x, y, line } = mark;
    if (mark.kind === "box") {
      draw("rect", { x, y, width: mark.width, height: mark.height, fill: mark.fill, stroke: line });
    } else if (mark.kind === "corner") {
      const path = corners(mark).map(([from, to]) => `M${from}L${to}`);
      draw("path", { d: path.join(""), stroke: line, fill: "none" });
    } else {
      const place = mark.turned ? { transform: `translate(${x} ${y}) rotate(${mark.turned})` } : { x, y };
      const looks = { "font-size": mark.size, "font-weight": mark.weight, "text-anchor": mark.anchor, fill: mark.fill };
      const element = draw("text", { ...place, ...looks, "xml:space": "preserve" });
      element.textContent = mark.words.replace(NO_XML, "\ufffd");
      if (mark.whole !== mark.words) {
        draw("title", {}, element).textContent = mark.whole.replace(NO_XML, "\ufffd");
      }
    }
  }
  return new XMLSerializer().serializeToString(file);
}

/** The cell of a drawing under a point of it, or null. */
export function cellAt({ cells }, x, y) {
  const inside = (cell) => x >= cell.x && x < cell.x + CELL.width && y >= cell.y && y < cell.y + CELL.height;
  return cells.find(inside) ?? null;
}
