// The panel that shows the sketch at work: a heat map of bucket scores, how labels were narrowed down, and n-grams.

const LIGHT = ["#f1eff7", "#d9d2f5", "#a694ea", "#6a48d7", "#3b1690", "#1d0647"];
const DARK = ["#201e2a", "#3a2a63", "#7a2f7f", "#cc4f5c", "#f79a3e", "#fff3b0"];
const ROW = 17; // pixels of a repetition's row
const VOTES = 74; // pixels beside the rows, for the votes of the selected label

const number = new Intl.NumberFormat("en");
const byId = (id) => document.getElementById(id);
let shown = null; // { why, model, selected }

export function showSketch(why, model, selected) {
  shown = { why, model, selected, cells: Uint8Array.from(atob(why.sketch.cells), (c) => c.charCodeAt(0)) };
  byId("sketch-empty").hidden = true;
  byId("sketch-body").hidden = false;
  byId("sketch-note").textContent = describe(model);
  byId("mark-word").textContent = why.sketch.folded ? "bucket" : "buckets";
  drawMap();
  drawScale();
  showNarrowing(why.narrowing);
}

export function showTokens(tokens, label) {
  byId("tokens-title").hidden = tokens.length === 0;
  byId("tokens-title").textContent = `What spoke for ${label}`;
  const most = Math.max(...tokens.map((token) => Math.abs(token.evidence)), 1e-9);
  byId("tokens").replaceChildren(...tokens.map((token) => tokenItem(token, most)));
}

export function select(selected) {
  if (!shown) return;
  shown.selected = selected;
  drawMap();
}

export function redraw() {
  if (!shown) return;
  drawMap();
  drawScale();
}

export function clearSketch() {
  shown = null;
  byId("sketch-empty").hidden = false;
  byId("sketch-body").hidden = true;
  byId("sketch-note").textContent = "";
}

function describe(model) {
  const { answered } = model.repetitions;
  const buckets = `${number.format(model.n_buckets)} buckets`;
  return answered === 1 ? `${buckets}, line by line` : `${answered} repetitions of ${buckets}`;
}

function tokenItem(token, most) {
  const item = document.createElement("li");
  item.style.setProperty("--share", Math.abs(token.evidence) / most);
  item.classList.toggle("against", token.evidence < 0);
  item.title = token.evidence < 0 ? "speaks against it" : "speaks for it";
  for (const part of token.token.split(/^( )|( )$/).filter(Boolean)) item.append(part === " " ? edge() : part);
  const value = document.createElement("small");
  value.textContent = (token.evidence < 0 ? "−" : "+") + Math.abs(token.evidence).toFixed(2);
  item.append(value);
  return item;
}

function edge() {
  const mark = document.createElement("span");
  mark.className = "edge";
  mark.textContent = "·";
  return mark;
}

function showNarrowing(steps) {
  const most = Math.log(Math.max(2, steps[0].labels) + 1);
  const list = byId("narrowing");
  list.replaceChildren(...merged(steps).map((step) => {
    const item = document.createElement("li");
    const name = document.createElement("span");
    const track = document.createElement("span");
    const bar = document.createElement("i");
    const value = document.createElement("span");
    name.textContent = step.step;
    track.className = "track";
    bar.style.width = `${(100 * Math.log(step.labels + 1)) / most}%`;
    track.append(bar);
    value.className = "value";
    value.textContent = number.format(step.labels);
    item.append(name, track, value);
    return item;
  }));
}

// Steps that leave as many labels as the one before them become one: "left after repetitions 2 to 16".
function merged(steps) {
  const rows = [];
  for (const { step, labels } of steps) {
    const number = /^repetition (\d+)$/.exec(step)?.[1];
    const before = rows.at(-1);
    if (number && before?.first && before.labels === labels) before.last = number;
    else rows.push({ step, labels, first: number, last: number });
  }
  return rows.map(({ step, labels, first, last }) => ({
    labels,
    step: !first ? step : first === last ? `as good after repetition ${first}` : `after repetitions ${first} to ${last}`,
  }));
}

// --- the heat map ---

function geometry() {
  const { sketch } = shown.why;
  const width = byId("map").parentElement.clientWidth;
  const plot = sketch.folded ? width : width - VOTES;
  const cell = plot / sketch.columns;
  const row = sketch.folded ? Math.min(cell, 14) : Math.max(6, Math.min(ROW, 420 / sketch.rows));
  return { width, plot, cell, row, height: Math.ceil(row * sketch.rows) };
}

function drawMap() {
  const canvas = byId("map");
  const size = geometry();
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(size.width * ratio);
  canvas.height = Math.round(size.height * ratio);
  canvas.style.height = `${size.height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  drawCells(context, size);
  drawVotes(context, size);
}

function drawCells(context, { cell, row, plot }) {
  const { rows, columns, folded } = shown.why.sketch;
  const colours = palette();
  const gap = row >= 8 && !folded ? 1.5 : 0;
  for (let i = 0; i < rows; i++) {
    context.fillStyle = colours[0];
    context.fillRect(0, i * row, plot, row - gap);
    for (let j = 0; j < columns; j++) {
      const shade = shown.cells[i * columns + j];
      if (shade === 0) continue;
      context.fillStyle = colours[shade];
      context.fillRect(j * cell, i * row, Math.max(1, cell + 0.2), row - gap);
    }
  }
}

function drawVotes(context, size) {
  const votes = shown.why.votes[shown.selected];
  if (!votes) return;
  const { folded, rows } = shown.why.sketch;
  const style = getComputedStyle(document.documentElement);
  const mark = style.getPropertyValue("--mark").trim();
  votes.buckets.slice(0, folded ? 1 : rows).forEach((bucket, r) => {
    const [x, y] = place(bucket, r, size);
    outline(context, x, y, size, mark);
    if (!folded) voteBar(context, r, votes.probabilities[r], size, style);
  });
}

function place(bucket, r, { cell, row }) {
  const { buckets_per_cell: pooled, folded, columns } = shown.why.sketch;
  const at = Math.floor(bucket / pooled);
  return folded ? [(at % columns) * cell, Math.floor(at / columns) * row] : [at * cell, r * row];
}

function outline(context, x, y, { cell, row, width, height }, colour) {
  const w = Math.max(cell, 5), h = Math.max(row - 1.5, 5);
  const left = Math.min(Math.max(x + cell / 2 - w / 2 - 2, 1), width - w - 5);
  const top = Math.min(Math.max(y + (row - 1.5) / 2 - h / 2 - 1, 1), height - h - 3);
  context.lineWidth = 2;
  context.strokeStyle = colour;
  context.beginPath();
  context.roundRect(left, top, w + 4, h + 2, 2.5);
  context.stroke();
}

function voteBar(context, r, probability, { plot, row }, style) {
  const length = Math.max(1, (VOTES - 44) * Math.min(1, probability));
  context.fillStyle = style.getPropertyValue("--bar").trim();
  context.fillRect(plot + 8, r * row + row / 2 - 3.5, length, 6);
  if (row < 11) return;
  context.fillStyle = style.getPropertyValue("--dim").trim();
  context.font = "11px ui-monospace, Menlo, Consolas, monospace";
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.fillText(short(probability), plot + VOTES - 2, r * row + row / 2 - 0.5);
}

function short(p) {
  return p >= 0.995 ? "1.0" : p >= 0.01 ? p.toFixed(2).slice(1) : p > 0 ? "<.01" : "0";
}

function drawScale() {
  const context = byId("scale").getContext("2d");
  palette().forEach((colour, i) => {
    context.fillStyle = colour;
    context.fillRect((i * 120) / 256, 0, 1, 8);
  });
}

let cache = { dark: null, colours: [] };

function palette() {
  const dark = document.documentElement.hasAttribute("data-dark");
  if (cache.dark !== dark) cache = { dark, colours: interpolated(dark ? DARK : LIGHT) };
  return cache.colours;
}

function interpolated(stops) {
  const rgb = stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (rgb.length - 1);
    const low = Math.min(Math.floor(at), rgb.length - 2);
    const mixed = rgb[low].map((value, c) => Math.round(value + (at - low) * (rgb[low + 1][c] - value)));
    return `rgb(${mixed.join(" ")})`;
  });
}

byId("map")?.addEventListener("pointermove", (event) => {
  if (!shown) return;
  const { rows, columns, folded, buckets_per_cell: pooled } = shown.why.sketch;
  const size = geometry();
  const column = Math.floor(event.offsetX / size.cell), row = Math.floor(event.offsetY / size.row);
  const tip = byId("map-tip");
  tip.hidden = column >= columns || row >= rows || row < 0;
  if (tip.hidden) return;
  const first = (folded ? row * columns + column : column) * pooled;
  tip.hidden = first >= shown.model.n_buckets;
  const last = Math.min(first + pooled, shown.model.n_buckets) - 1;
  const buckets = pooled > 1 ? `buckets ${number.format(first)} to ${number.format(last)}` : `bucket ${number.format(first)}`;
  tip.textContent = folded ? buckets : `repetition ${row + 1}, ${buckets}`;
  tip.style.left = `${Math.min(Math.max(event.offsetX, 90), size.width - 90)}px`;
  tip.style.top = `${event.offsetY}px`;
});
byId("map")?.addEventListener("pointerleave", () => { byId("map-tip").hidden = true; });
