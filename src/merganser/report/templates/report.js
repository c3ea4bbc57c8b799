// The score curves are SVGs of the page (curve_images.py); matplotlib draws them for papers (curves.py). The two charts
// over steps must differ from the figure "signals", which matplotlib draws for paper at a fixed width, and so are drawn
// here:
// * they fit the width of the screen with text that stays readable on a phone: what is drawn depends on the width (ticks,
//   letters or small markers, rows of the timeline, names or numbers of tasks);
// * a reader chooses one task, points at a step to read its values, and walks over the merges with the keyboard.
// Both draw the same lists of numbers (series.py): nothing is computed twice.
(() => {
"use strict";
// Drawn in CSS pixels at the width they are shown at, and again when it changes. Colours come from classes of the style
// sheet: light, dark and print need no redraw.
const byId = (id) => document.getElementById(id);
addEventListener("error", () => { byId("failed").hidden = false; document.documentElement.dataset.charts = "failed"; });
const data = JSON.parse(byId("run-data").textContent);
const namespace = document.querySelector("svg") ? document.querySelector("svg").namespaceURI : "";
// The descriptions are in the page once, in the table of the ledger, whose rows are in the order of data.merges.
document.querySelectorAll("#ledger .story-text").forEach((cell, index) => { data.merges[index].story = cell.textContent; });
const SHAPES = {
  due: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
  early: (r) => `M0,${-1.35 * r}L${1.3 * r},${0.85 * r}L${-1.3 * r},${0.85 * r}Z`,
  forced: (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0Z`,
  end: (r) => `M${-0.92 * r},${-0.92 * r}H${0.92 * r}V${0.92 * r}H${-0.92 * r}Z`,
};

function add(parent, tag, attributes = {}, text = null) {
  const node = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
}

function canvas(svg, width, height) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return svg;
}

/** Add a label that ends in an ellipsis where it would be longer than `room` pixels; its full text stays as a tooltip. */
function label(parent, text, x, y, room, attributes = {}) {
  const node = add(parent, "text", { x, y, ...attributes }, text);
  let kept = text.length;
  while (kept > 1 && node.getComputedTextLength() > room) node.textContent = text.slice(0, --kept) + "…";
  if (kept < text.length) add(node, "title", {}, text);
  return node;
}

/** Draw a merge's marker. Letter and shape both show the cause; small markers (radius below 6) have the shape only. */
function marker(parent, merge, x, y, radius) {
  const node = add(parent, "g", { class: merge.refused ? "marker refused" : "marker", transform: `translate(${x},${y})` });
  add(node, "circle", { class: "halo", r: radius + 5 });
  add(node, "path", { d: SHAPES[merge.cause](radius) });
  if (radius >= 6) add(node, "text", { y: 4 }, merge.letter);
  return node;
}

/** Return round numbers from 0 or `low` to `high`, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const out = [];
  for (let index = Math.ceil(low / step); index * step <= high + step * 1e-9; index++) out.push(index * step);
  return out;
}

const shown = (value) => {
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  return text.replace(/-/g, "−");
};

/** Return the path through [x, y] points; a null point begins a new line. */
const path = (points) => points.map((point, index) => point
  ? `${index && points[index - 1] ? "L" : "M"}${point[0].toFixed(1)},${point[1].toFixed(1)}` : "").join("");

/** Draw the signals over steps: loss and forgetting, learning signal, planned interval, on one axis of steps. */
function drawSteps(svg, width, selected) {
  const indices = data.tasks.map((_, index) => index).filter((index) => selected === "" || index === Number(selected));
  const offsets = new Map();
  let total = 0;
  for (const index of indices) { offsets.set(index, total); total += data.tasks[index].steps; }
  total = Math.max(total, 1);
  const merges = data.merges.filter((merge) => offsets.has(merge.task));
  const left = 46, right = width - 10, place = (step) => left + (right - left) * step / total;
  const at = (index, step) => place(offsets.get(index) + step);
  const values = (kind, part) => indices.flatMap((index) => data.tasks[index][kind][part] ?? data.tasks[index][kind].mean).filter((value) => value !== null);
  const intervals = indices.flatMap((index) => data.tasks[index].interval.map((segment) => segment[2]));
  const panels = [{ name: "Loss (nats)", height: 190, most: Math.max(...values("loss", "high"), ...values("probe", "high"), 1e-9) }];
  const signals = merges.map((merge) => merge.signal).filter((value) => value !== null);
  if (signals.length) panels.push({ name: "Learning signal at each merge", height: 100, most: Math.max(...signals, 1e-9) });
  if (intervals.length) panels.push({ name: "Planned interval (steps)", height: 100, most: Math.max(...intervals) });
  const head = indices.length > 1 ? 20 : 4, rail = merges.length ? 30 : 0;
  let y = head + rail;
  for (const panel of panels) {
    panel.top = y + 22;
    panel.bottom = panel.top + panel.height;
    panel.y = (value) => panel.bottom - panel.height * value / (panel.most * 1.05);
    y = panel.bottom + 10;
  }
  const bottom = panels.at(-1).bottom;
  canvas(svg, width, bottom + 40);
  indices.forEach((index, position) => {
    const from = at(index, 0), room = at(index, data.tasks[index].steps) - from;
    if (position % 2 === 0 && indices.length > 1) add(svg, "rect", { class: "shade", x: from, y: 0, width: room, height: bottom });
    if (indices.length > 1 && room > 60) label(svg, data.tasks[index].name, from + 3, 14, room - 4, { class: "quiet" });
    else if (indices.length > 1 && (room > 18 || position % 2 === 0)) add(svg, "text", { class: "quiet", x: from + 2, y: 14 }, String(index + 1));
  });
  for (const panel of panels) {
    add(svg, "text", { class: "title", x: left, y: panel.top - 7 }, panel.name);
    for (const value of ticks(0, panel.most * 1.05, panel.height > 150 ? 5 : 3)) {
      add(svg, "line", { class: "grid", x1: left, x2: right, y1: panel.y(value), y2: panel.y(value) });
      add(svg, "text", { class: "quiet", x: left - 6, y: panel.y(value) + 4, "text-anchor": "end" }, shown(value));
    }
  }
  for (const value of ticks(0, total, Math.max(3, Math.floor(width / 110)))) {
    add(svg, "line", { class: "axis", x1: place(value), x2: place(value), y1: bottom, y2: bottom + 5 });
    const anchor = place(value) > right - 15 ? "end" : "middle";
    add(svg, "text", { class: "quiet", x: place(value), y: bottom + 18, "text-anchor": anchor }, value.toLocaleString("en"));
  }
  const axis = selected === "" && indices.length > 1 ? "inner steps, one task after another" : "inner step of the task";
  add(svg, "text", { class: "quiet", x: left, y: bottom + 35 }, axis);
  // Where not even small markers fit side by side, a sentence replaces them; choosing a task shows them.
  const crowded = merges.length * 17 > right - left, hidden = merges.length * 6 > right - left, radius = crowded ? 3.2 : 7;
  const falls = merges.map((merge) => `M${at(merge.task, merge.step).toFixed(1)},${head + 18}V${bottom}`);
  if (!hidden) add(svg, "path", { class: crowded ? "when crowded" : "when", d: falls.join("") });
  const [loss, learning] = panels, interval = intervals.length ? panels.at(-1) : null;
  for (const index of indices) {
    const task = data.tasks[index], xs = task.x.map((step) => at(index, step));
    for (const kind of ["loss", "probe"]) {
      const { mean, low, high } = task[kind];
      const half = (at(index, task.width) - at(index, 0)) / 2;
      const box = (point) => `M${(xs[point] - half).toFixed(2)},${loss.y(high[point]).toFixed(1)}h${(2 * half).toFixed(2)}V${loss.y(low[point]).toFixed(1)}h${(-2 * half).toFixed(2)}Z`;
      if (task.width > 1) add(svg, "path", { class: `band-${kind}`, d: mean.map((value, point) => value === null ? "" : box(point)).join("") });
      // Steps that were not probed do not break the line: it joins one probe to the next.
      const points = mean.map((value, point) => value === null ? null : [xs[point], loss.y(value)]).filter((point) => point);
      if (points.length === 1) add(svg, "circle", { class: "dot", cx: points[0][0], cy: points[0][1], r: 2.5 });
      else add(svg, "path", { class: `line ${kind}`, d: path(points) });
    }
    const level = (panel, segment) => [[at(index, segment[0] - 1), panel.y(segment[2])], [at(index, segment[1]), panel.y(segment[2])]];
    const armed = task.threshold.filter((segment) => segment[2] <= loss.most * 1.05);
    add(svg, "path", { class: "line threshold", d: armed.map((segment) => path(level(loss, segment))).join("") });
    if (interval) add(svg, "path", { class: "line step", d: path(task.interval.flatMap((segment) => level(interval, segment))) });
    const measured = merges.filter((merge) => merge.task === index && merge.signal !== null);
    if (measured.length > 1) add(svg, "path", { class: "line loss", d: path(measured.map((merge) => [at(index, merge.step), learning.y(merge.signal)])) });
    for (const merge of measured) marker(svg, merge, at(index, merge.step), learning.y(merge.signal), crowded ? 2.5 : 3.5);
  }
  if (hidden) add(svg, "text", { x: left, y: head + 18 }, `${indices.reduce((sum, index) => sum + data.tasks[index].merges, 0).toLocaleString("en")} merges${indices.length > 1 ? ": choose a task to see them" : ""}`);
  else for (const merge of merges) marker(svg, merge, at(merge.task, merge.step), head + 14, radius);
  const cross = add(svg, "line", { class: "cross", y1: head, y2: bottom, visibility: "hidden" });
  svg.onpointermove = svg.onpointerdown = (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * width / box.width;
    readStep(indices, at, merges, Math.min(right, Math.max(left, x)), cross);
  };
}

function readStep(indices, at, merges, x, cross) {
  let best = null;
  for (const index of indices) data.tasks[index].x.forEach((step, point) => {
    const distance = Math.abs(at(index, step) - x);
    if (!best || distance < best.distance) best = { distance, index, point, step };
  });
  if (!best) return;
  const task = data.tasks[best.index], position = at(best.index, best.step);
  cross.setAttribute("x1", position); cross.setAttribute("x2", position); cross.setAttribute("visibility", "visible");
  const inside = (segments) => segments.find((segment) => segment[0] <= Math.ceil(best.step) && Math.ceil(best.step) <= segment[1]);
  const words = [`${task.name}, ${task.width > 1 ? `about step ${Math.round(best.step)} (mean of ${task.width} steps)` : `step ${best.step}`}`];
  const report = (name, value) => { if (value !== null && value !== undefined) words.push(`${name} ${shown(value)}`); };
  report("loss", task.loss.mean[best.point]);
  report("on the memory", task.probe.mean[best.point]);
  report("threshold", inside(task.threshold)?.[2]);
  report("planned interval", inside(task.interval)?.[2]);
  const near = merges.filter((merge) => Math.abs(at(merge.task, merge.step) - position) < 5)
    .sort((a, b) => Math.abs(at(a.task, a.step) - position) - Math.abs(at(b.task, b.step) - position))[0];
  byId("step-readout").textContent = words.join(" · ") + (near ? `. ${near.story}` : "");
}

/** The ledger: a lane per task. Each merge is a button; one is in the tab order, the arrow keys choose another. */
let chosen = 0, nodes = [];
function choose(index, focus) {
  chosen = Math.min(data.merges.length - 1, Math.max(0, index));
  nodes.forEach((node, position) => {
    node.classList.toggle("chosen", position === chosen);
    node.setAttribute("tabindex", position === chosen ? 0 : -1);
  });
  if (byId("story").textContent !== data.merges[chosen].story) byId("story").textContent = data.merges[chosen].story;
  byId("earlier").disabled = chosen === 0;
  byId("later").disabled = chosen === data.merges.length - 1;
  if (focus) nodes[chosen].focus({ preventScroll: focus === "still" });
}

function drawMerges(svg, width) {
  const radius = 8, spacing = 21, left = radius + 3, right = width - radius - 3;
  const lanes = data.tasks.map((task, index) => {
    const merges = data.merges.filter((merge) => merge.task === index);
    const rows = [];
    const places = merges.map((merge) => {
      const x = left + (right - left) * merge.step / Math.max(task.steps, 1);
      // The first row with room; past six rows markers overlap in the emptiest one rather than fill the page.
      let row = rows.findIndex((last) => last + spacing <= x);
      if (row < 0) row = rows.length < 6 ? rows.length : rows.indexOf(Math.min(...rows));
      rows[row] = x;
      return { merge, x, row };
    });
    return { task, places, height: 32 + Math.max(1, rows.length) * spacing };
  });
  canvas(svg, width, lanes.reduce((sum, lane) => sum + lane.height, 0) + 8);
  nodes = [];
  let top = 0;
  const spots = [];
  for (const { task, places, height } of lanes) {
    const count = `${task.merges === 1 ? "1 merge" : `${task.merges ? task.merges.toLocaleString("en") : "no"} merges`} in ${task.steps.toLocaleString("en")} steps`;
    const right_text = add(svg, "text", { class: "quiet", x: width, y: top + 15, "text-anchor": "end" }, count);
    label(svg, task.name, 0, top + 15, width - right_text.getComputedTextLength() - 16, { class: "title" });
    add(svg, "line", { class: "axis", x1: left, x2: right, y1: top + 32, y2: top + 32 });
    for (const end of [left, right]) add(svg, "line", { class: "axis", x1: end, x2: end, y1: top + 27, y2: top + 37 });
    for (const { merge, x, row } of places) {
      const y = top + 32 + row * spacing, index = nodes.length;
      if (row) add(svg, "line", { class: "when", x1: x, x2: x, y1: top + 32, y2: y });
      const node = marker(svg, merge, x, y, radius);
      for (const [name, value] of [["role", "button"], ["aria-label", merge.story], ["tabindex", -1]]) node.setAttribute(name, value);
      node.addEventListener("focus", () => { if (chosen !== index) choose(index); });
      nodes.push(node);
      spots.push({ x, y, index });
    }
    top += height;
  }
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), scale = width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    return spots.map((spot) => ({ ...spot, distance: Math.hypot(spot.x - x, spot.y - y) }))
      .sort((a, b) => a.distance - b.distance).find((spot) => spot.distance < 24);
  };
  svg.onpointermove = (event) => { const spot = event.pointerType === "mouse" && nearest(event); if (spot && spot.index !== chosen) choose(spot.index); };
  svg.onclick = (event) => { const spot = nearest(event); if (spot) choose(spot.index, "still"); };
  svg.onkeydown = (event) => {
    const goal = { ArrowRight: chosen + 1, ArrowDown: chosen + 1, ArrowLeft: chosen - 1, ArrowUp: chosen - 1, Home: 0, End: data.merges.length - 1 }[event.key];
    if (goal !== undefined) { event.preventDefault(); choose(goal, true); }
  };
  choose(chosen);
}

function draw(width) {
  if (byId("step-chart")) drawSteps(byId("step-chart"), width, byId("task") ? byId("task").value : "");
  if (byId("merge-chart")) drawMerges(byId("merge-chart"), width);
  hint();
  document.documentElement.dataset.charts = "drawn";
}

for (const svg of document.querySelectorAll("svg.mark"))
  marker(svg, { cause: svg.dataset.cause, letter: svg.dataset.letter, refused: false }, 0, 0, 7);
/** Show the hint above a table that is wider than its place. */
function hint() {
  for (const line of document.querySelectorAll(".hint")) {
    const box = line.nextElementSibling;
    line.hidden = box.scrollWidth <= box.clientWidth + 1;
    box.classList.toggle("cut", !line.hidden);
  }
}
const column = document.querySelector("header");
let width = column.clientWidth;
draw(width);
new ResizeObserver(() => { if (column.clientWidth && column.clientWidth !== width && !matchMedia("print").matches) draw(width = column.clientWidth); }).observe(column);
if (byId("task")) byId("task").onchange = () => draw(width);
if (byId("earlier")) {
  byId("earlier").onclick = () => choose(chosen - 1);
  byId("later").onclick = () => choose(chosen + 1);
}
// On paper: charts at the width of the page (A4 or letter less its margins, in CSS pixels).
addEventListener("beforeprint", () => draw(680));
addEventListener("afterprint", () => draw(width));
})();
