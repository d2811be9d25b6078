// Draws every figure.chart from the JSON inside it; charts.py describes that. Charts are
// drawn at the width they have on the page, so that text keeps its size.
"use strict";

const MARKERS = [
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", // circle
  "M-3.6,-3.6h7.2v7.2h-7.2z", // square
  "M0,-4.8L4.6,3.4H-4.6z", // triangle
  "M0,-5L5,0L0,5L-5,0z", // diamond
  "M0,4.8L4.6,-3.4H-4.6z", // triangle, upside down
  "M-1.4,-4.6h2.8v3.2h3.2v2.8h-3.2v3.2h-2.8v-3.2h-3.2v-2.8h3.2z", // plus
];
const DASHES = ["", "7 4", "2 3"]; // colours and markers repeat with another of these
const TEXT_WIDTH = 6.6; // pixels per character, about
const READABLE = 12; // pixels that a name or a number needs
const MARKER_ROOM = 20; // pixels, or markers would hide their line
const MOST_HEIGHT = 640; // pixels of a heat map with many rows

// Of things so many pixels apart, every how many have the room that they need.
const every = (need, size) => Math.max(1, Math.ceil(need / size));

function svg(parent, tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== "") element.setAttribute(name, value);
  }
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function canvas(figure, chart, width, height) {
  const attributes = {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.label};
  return svg(figure, "svg", attributes);
}

const number = (value, digits = 1) => value.toFixed(digits).replace("-", "\u2212");
const shorten = (text, length) =>
  text.length > length ? text.slice(0, length - 1) + "\u2026" : text;

// Round numbers that cover the values and zero, about five of them.
function ticks(values) {
  const low = Math.min(0, ...values), high = Math.max(0, ...values);
  const rough = (high - low || 1) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.floor(low / step), last = Math.max(Math.ceil(high / step), first + 1);
  return Array.from({length: last - first + 1}, (_, i) => (first + i) * step);
}

// Axes of a chart with values upwards; returns where a position and a value are drawn.
function axes(root, chart, width, height, [start, end], values, positions) {
  const left = 40, right = width - 10, top = 26, bottom = height - 40;
  const marks = ticks(values), low = marks[0], high = marks.at(-1);
  const x = (at) => left + ((at - start) / (end - start)) * (right - left);
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  const digits = Math.max(0, Math.ceil(-Math.log10(marks[1] - marks[0]) - 1e-9));
  for (const mark of marks) {
    const class_ = mark === 0 ? "axis" : "grid";
    svg(root, "line", {class: class_, x1: left, x2: right, y1: y(mark), y2: y(mark)});
    svg(root, "text", {class: "end", x: left - 6, y: y(mark) + 4}, number(mark, digits));
  }
  svg(root, "text", {x: 0, y: 12}, chart.y_label);
  svg(root, "text", {class: "middle", x: (left + right) / 2, y: height - 4}, chart.x_label);
  const room = Math.max(...positions.map(([, text]) => text.length)) * TEXT_WIDTH + 8;
  const shown = every(room * positions.length, right - left);
  positions.filter((_, i) => i % shown === 0).forEach(([at, text]) => {
    svg(root, "text", {class: "middle", x: x(at), y: bottom + 17}, text);
  });
  return {x, y, top, bottom};
}

function styleOf(i) {
  const count = MARKERS.length;
  return {
    colour: `var(--s${i % count})`,
    marker: MARKERS[i % count],
    dash: DASHES[Math.floor(i / count) % DASHES.length],
  };
}

function legend(figure, entries, kind = "") {
  const list = document.createElement("ul");
  list.className = `legend ${kind}`;
  for (const [draw, text] of entries) {
    const item = document.createElement("li");
    draw(item);
    item.append(text);
    list.append(item);
  }
  figure.append(list);
}

function line(root, series, style, x, y) {
  const points = series.values.flatMap((v, i) => (v === null ? [] : [[i, v]]));
  if (points.length === 0) return;
  const path = (some) => "M" + some.map(([i, v]) => `${x(i)},${y(v)}`).join("L");
  const marked = every(MARKER_ROOM, x(1) - x(0));
  if (series.spread) {
    const edge = (sign) => points.map(([i, v]) => [i, v + sign * series.spread[i]]);
    const outline = path([...edge(1), ...edge(-1).reverse()]) + "z";
    svg(root, "path", {class: "band", d: outline, fill: style.colour});
  }
  stroke(root, series, style, path(points));
  for (const [i, v] of points.filter(([i]) => i % marked === 0)) {
    const transform = `translate(${x(i)},${y(v)})`;
    svg(root, "path", {class: "point", d: style.marker, fill: style.colour, transform});
  }
}

function stroke(root, series, {colour, dash}, d) {
  const class_ = series.main ? "series main" : "series";
  svg(root, "path", {class: class_, d, stroke: colour, "stroke-dasharray": dash});
}

// All values at a position, shown over its whole height.
function told(chart, i) {
  const known = chart.series.filter((series) => series.values[i] !== null);
  const values = known.map((series) => {
    const spread = series.spread ? ` \u00b1 ${number(series.spread[i])}` : "";
    return `${series.name}: ${number(series.values[i])}${spread} %`;
  });
  return [`${chart.x_label}: ${chart.x[i]}`, ...values].join("\n");
}

function lines(figure, chart, width) {
  const height = Math.min(340, Math.max(240, width * 0.42));
  const root = canvas(figure, chart, width, height);
  const range = [-0.5, chart.x.length - 0.5], positions = [...chart.x.entries()];
  const {x, y, top, bottom} = axes(root, chart, width, height, range, [0, 100], positions);
  const styled = chart.series.map((series, s) => [series, styleOf(s)]);
  for (const [series, style] of [...styled].reverse()) line(root, series, style, x, y);
  chart.x.forEach((_, i) => {
    const area = {x: x(i - 0.5), y: top, width: x(0.5) - x(-0.5), height: bottom - top};
    svg(root, "rect", {class: "hit", ...area, "data-tip": told(chart, i)});
  });
  legend(figure, styled.map(([series, style]) => [(item) => {
    const swatch = svg(item, "svg", {viewBox: "0 0 30 12", "aria-hidden": "true"});
    stroke(swatch, series, style, "M0,6H30");
    svg(swatch, "path", {d: style.marker, fill: style.colour, transform: "translate(15,6)"});
  }, series.name]));
}

function bars(figure, chart, width) {
  const height = Math.min(300, Math.max(180, width * 0.42));
  const root = canvas(figure, chart, width, height);
  const values = chart.bars.map(([, , value]) => value);
  const range = [chart.bars[0][0], chart.bars.at(-1)[1]];
  const {x, y, top, bottom} = axes(root, chart, width, height, range, values, chart.ticks);
  for (const [start, end, value, tip] of chart.bars) {
    const area = {
      x: x(start) + 0.5,
      y: Math.min(y(0), y(value)),
      width: Math.max(1, Math.min(72, x(end) - x(start) - 1)),
      height: Math.abs(y(value) - y(0)),
    };
    area.x = (x(start) + x(end) - area.width) / 2; // in the middle of its place
    svg(root, "rect", {class: "bar", ...area, "data-tip": tip});
  }
  if (chart.marker) {
    const at = x(Math.min(range[1], Math.max(range[0], chart.marker[0])));
    svg(root, "line", {class: "marker", x1: at, x2: at, y1: top, y2: bottom});
    svg(root, "text", {class: "marker-text middle", x: at, y: top - 4}, chart.marker[1]);
  }
}

// Where the groups of an axis start and end, and which group each name belongs to.
function spans(axis) {
  let start = 0;
  return axis.groups.map(([name, size]) => ({name, start, end: (start += size)}));
}

function describe(axis, i) {
  const group = spans(axis).find(({end}) => i < end);
  return `${axis.label} ${axis.names[i]}` + (group ? ` (${group.name})` : "");
}

// "layer" of "layer 3".
const kindOf = (groupName) => groupName.replace(/ \d+$/, "");

const longest = (texts) => Math.max(0, ...texts.map((text) => text.length)) * TEXT_WIDTH;
// Where the cells of a heat map are, and which names there is room for.
function layout({rows, columns}, width) {
  const count = columns.names.length, grouped = rows.groups.length > 0;
  const rowNames = rows.names.map((name) => shorten(name, 18));
  const columnNames = columns.names.map((name) => shorten(name, 18));
  const groupWidth = grouped ? longest(rows.groups.map(([name]) => name)) + 8 : 0;
  const nameWidth = longest(rowNames) + 8;
  const showRowNames = !grouped || (width - groupWidth - nameWidth) / count >= READABLE;
  const left = groupWidth + (showRowNames ? nameWidth : 0);
  const cellWidth = Math.min(grouped ? 40 : 52, (width - left - 2) / count);
  const square = rows.names.length === count;
  const wanted = Math.max(16, Math.min(26, cellWidth));
  const cellHeight = square
    ? cellWidth : Math.max(3, Math.min(wanted, MOST_HEIGHT / rows.names.length));
  const upright = cellWidth >= READABLE && longest(columnNames) + 4 > cellWidth;
  const showColumnNames = cellWidth >= READABLE || !columns.groups.length, flat = !upright;
  const namesHeight = !showColumnNames ? 0 : flat ? 16 : longest(columnNames) + 8;
  const top = 26, bottom = top + cellHeight * rows.names.length;
  const height = bottom + namesHeight + (columns.groups.length ? 18 : 0) + 22;
  return {
    left, top, bottom, height, namesHeight, flat, cellWidth, cellHeight,
    right: left + cellWidth * count,
    rowNames: showRowNames ? rowNames : [],
    columnNames: showColumnNames ? columnNames : [],
    rowEvery: every(READABLE, cellHeight),
    columnEvery: upright ? 1 : every(longest(columnNames) + 4, cellWidth),
  };
}

function cells(root, chart, place) {
  const {cellWidth: width, cellHeight: height} = place;
  for (const [row, column, value, samples] of chart.cells) {
    const shade = (value / 100) ** chart.power;
    const share = `${number(value)} %` + (samples === null ? "" : ` (${samples})`);
    const tip = `${describe(chart.rows, row)}\n${describe(chart.columns, column)}\n${share}`;
    const x = place.left + column * width, y = place.top + row * height;
    const style = `--shade:${shade.toFixed(4)}`;
    svg(root, "rect", {class: "cell", x, y, width, height, style, "data-tip": tip});
    const text = samples === null ? number(value, width < 36 ? 0 : 1) : String(samples);
    if (text.length * TEXT_WIDTH < width - 2 && height >= READABLE) {
      const class_ = shade > 0.7 ? "value on-high" : "value";
      svg(root, "text", {class: class_, x: x + width / 2, y: y + height / 2 + 4}, text);
    }
  }
}

// The groups along an axis: `border` says whether a line before it separates more than it
// hides, `shown` whether there is room for its name.
function placed(axis, cellSize, need) {
  const room = (span) => (span.end - span.start) * cellSize, all = spans(axis);
  const step = every(need, Math.min(...all.map(room)));
  return all.map((span, i) => ({
    ...span,
    border: i > 0 && Math.max(room(span), room(all[i - 1])) >= READABLE,
    shown: i % step === 0,
  }));
}

function groups(root, {rows, columns}, place) {
  const {left, top, right, bottom, cellWidth, cellHeight} = place;
  const line = (x1, y1, x2, y2) => svg(root, "line", {class: "border", x1, y1, x2, y2});
  svg(root, "rect", {class: "frame", x: left, y: top, width: right - left, height: bottom - top});
  for (const {name, start, end, border, shown} of placed(rows, cellHeight, READABLE)) {
    const from = top + start * cellHeight, to = top + end * cellHeight;
    if (border) line(left, from, right, from);
    if (shown) svg(root, "text", {x: 0, y: (from + to) / 2 + 4}, name);
  }
  // Whole names if there is room for all of them, else their numbers.
  const names = columns.groups.map(([name]) => name);
  const numbers = names.map((name) => name.slice(kindOf(name).length + 1));
  const least = Math.min(...columns.groups.map(([, size]) => size)) * cellWidth;
  const texts = longest(names) < least ? names : numbers;
  placed(columns, cellWidth, longest(texts) + 4).forEach(({start, end, border, shown}, i) => {
    const from = left + start * cellWidth, to = left + end * cellWidth;
    if (border) line(from, top, from, bottom);
    const at = {class: "middle", x: (from + to) / 2, y: bottom + place.namesHeight + 16};
    if (shown) svg(root, "text", at, texts[i]);
  });
}

function names(root, {rows, columns}, place) {
  const {left, top, right, bottom} = place;
  place.rowNames.forEach((name, i) => {
    if (i % place.rowEvery) return;
    const y = top + (i + 0.5) * place.cellHeight + 4;
    svg(root, "text", {class: "end", x: left - 6, y}, name);
  });
  place.columnNames.forEach((name, i) => {
    if (i % place.columnEvery) return;
    const x = left + (i + 0.5) * place.cellWidth;
    const at = place.flat
      ? {class: "middle", x, y: bottom + 15}
      : {class: "end", transform: `translate(${x + 4},${bottom + 6}) rotate(-90)`};
    svg(root, "text", at, name);
  });
  svg(root, "text", {x: 0, y: 14}, `${rows.label} \u2193`);
  const byGroup = !place.columnNames.length && columns.groups.length;
  const across = columns.label + (byGroup ? `, by ${kindOf(columns.groups[0][0])}` : "");
  const at = {class: "middle", x: (left + right) / 2, y: place.height - 4};
  svg(root, "text", at, `${across} \u2192`);
}

function heatmap(figure, chart, width) {
  const place = layout(chart, width);
  const root = canvas(figure, chart, width, place.height);
  cells(root, chart, place);
  groups(root, chart, place);
  names(root, chart, place);
  legend(figure, [0, 0.25, 0.5, 0.75, 1].map((shade) => [(item) => {
    const swatch = svg(item, "svg", {viewBox: "0 0 16 12", "aria-hidden": "true"});
    svg(swatch, "rect", {class: "cell", width: 16, height: 12, style: `--shade:${shade}`});
  }, `${number(100 * shade ** (1 / chart.power), 0)} %`]), "scale");
}

const KINDS = {lines, bars, heatmap};

function drawAll() {
  for (const figure of document.querySelectorAll("figure.chart")) {
    const chart = JSON.parse(figure.querySelector("script").textContent);
    figure.querySelectorAll("svg, ul").forEach((old) => old.remove());
    KINDS[chart.kind](figure, chart, Math.max(240, figure.clientWidth));
  }
}

function showTip(event) {
  const tip = document.getElementById("tip"), mark = event.target.closest("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${window.scrollX + Math.max(8, Math.min(event.clientX + 14, right))}px`;
  tip.style.top = `${window.scrollY + event.clientY + 18}px`;
}

drawAll();
document.addEventListener("pointerover", showTip);
document.addEventListener("pointermove", showTip);
let drawnWidth = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === drawnWidth) return; // a scrollbar or a keyboard came or went
  drawnWidth = window.innerWidth;
  drawAll();
});
