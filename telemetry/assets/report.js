/* Third part: legends, the cross-hair, zooming and the page's events. Charts near the window come first. */
/* ---- legends, the cross-hair and its values ---- */
const indexAt = (series, ms) => {
  const times = series.times;
  if (!times.length || ms < times[0] || ms > times[times.length - 1]) return -1;
  let low = 0, high = times.length - 1;
  while (low < high) { const mid = (low + high + 1) >> 1; if (times[mid] <= ms) low = mid; else high = mid - 1; }
  if (series.v[low] === null || series.look === "step") return series.v[low] === null ? -1 : low;
  const next = low + 1;
  return next < times.length && series.v[next] !== null && times[next] - ms < ms - times[low] ? next : low;
};
/* A value for people; of a bucket its median, and from where to where it reached. */
const textAt = (series, ms, unit) => {
  const at = indexAt(series, ms);
  if (at < 0) return null;
  const middle = human(series.v[at], unit);
  const wide = series.lo && series.lo[at] < series.hi[at];
  return wide ? `${middle} (${human(series.lo[at], unit)} to ${human(series.hi[at], unit)})` : middle;
};
const stageAt = (ms) => data.stages.filter((stage) => ms >= stage.from && ms <= stage.to).map((stage) => `${stage.place} ${stage.name}`).join(", ") || "between stages";
const showValues = () => {
  const all = clock(view.from, 0) + " to " + clock(view.to, view.to - view.from < 10e3 ? 1 : 0);
  const zoomed = view.from > WHOLE.from || view.to < WHOLE.to;
  const shown = `${zoomed ? "Shown" : "Whole run"}: ${all}`;
  rangeText.textContent = cursor === null ? shown : `At ${clock(cursor, 1)} · ${utc(cursor)} · ${stageAt(cursor)}`;
  for (const key of ["reset", "wider"]) button(key).disabled = !zoomed;
  button("earlier").disabled = view.from <= WHOLE.from;
  button("later").disabled = view.to >= WHOLE.to;
  for (const figure of drawn) {
    const on = cursor !== null && inside(cursor);
    if (figure.cross) {
      figure.cross.setAttribute("visibility", on ? "visible" : "hidden");
      if (on) { figure.cross.setAttribute("x1", xOf(cursor)); figure.cross.setAttribute("x2", xOf(cursor)); }
    }
    (figure.values || []).forEach((cell, place) => {
      const text = cursor === null ? "" : textAt(figure.chart.series[place], cursor, figure.chart.unit);
      cell.textContent = text === null ? "no sample" : text;
    });
  }
};
const speak = () => {
  const told = drawn.filter((figure) => figure.chart).map((figure) => {
    const values = figure.chart.series.map((series) => [series.label, textAt(series, cursor, figure.chart.unit)]).filter((pair) => pair[1] !== null);
    return values.length ? `${figure.chart.title}: ${values.map(([label, value]) => `${label} ${value}`).join(", ")}` : "";
  });
  spoken.textContent = `At ${clock(cursor, 1)}, ${stageAt(cursor)}. ${told.filter(Boolean).join(". ")}.`;
};
let waiting = [];
let round = 0;
const paint = (figure) => { if (figure.draw) figure.draw(figure); };
const isNear = (figure, place) => {
  const rect = figure.svg.getBoundingClientRect();
  return place < 3 || (rect.bottom > -innerHeight && rect.top < 2 * innerHeight);
};
/* The first time alone: when the page was ready to be read. */
const mark = (name) => { if (!performance.getEntriesByName(name).length) performance.mark(name); };
const paintAll = () => {
  for (const figure of waiting.splice(0)) paint(figure);
  box.setAttribute("aria-busy", "false");
  mark("stagescope-all-charts");
};
/* Those in sight at once, the others in pieces of a few milliseconds, so that the page answers. */
const redraw = () => {
  measure();
  for (const figure of drawn) if (!figure.svg.firstChild) figure.svg.setAttribute("viewBox", `0 0 ${plot.width} ${figure.chart ? HEIGHT : stagesHeight()}`);
  box.setAttribute("aria-busy", "true");
  const near = new Set(drawn.filter(isNear));
  waiting = drawn.filter((figure) => !near.has(figure));
  near.forEach(paint);
  showValues();
  mark("stagescope-first-charts");
  round += 1;
  const mine = round;
  const goOn = () => {
    if (mine !== round) return;
    const until = performance.now() + 12;
    while (waiting.length && performance.now() < until) paint(waiting.shift());
    if (waiting.length) setTimeout(goOn, 0); else { paintAll(); showValues(); }
  };
  setTimeout(goOn, 0);
};
const zoomTo = (from, to) => {
  const span = Math.min(WHOLE.to, Math.max(LEAST_MS, to - from));
  const start = Math.min(Math.max(WHOLE.from, from), WHOLE.to - span);
  view = { from: start, to: start + span };
  redraw();
};
const zoomBy = (factor) => {
  const about = cursor !== null && inside(cursor) ? cursor : (view.from + view.to) / 2;
  zoomTo(about - (about - view.from) * factor, about + (view.to - about) * factor);
};
const pan = (share) => {
  const by = share * (view.to - view.from);
  zoomTo(view.from + by, view.to + by);
};
const reset = () => zoomTo(WHOLE.from, WHOLE.to);
const showStage = (place) => {
  const stage = data.stages.find((one) => String(one.place) === String(place));
  if (!stage) return;
  const margin = Math.max(100, 0.05 * (stage.to - stage.from));
  zoomTo(stage.from - margin, stage.to + margin);
};

/* ---- building and events ---- */
const legend = (figure, parent) => {
  const list = make(parent, "ul", { class: "legend" });
  figure.values = figure.chart.series.map((series, place) => {
    const item = make(list, "li");
    const svg = make(item, "svg:svg", { width: 26, height: 12, "aria-hidden": "true" });
    if (figure.chart.stacked) {
      make(svg, "svg:rect", { x: 1, y: 1, width: 24, height: 10, class: `area f${place % 8}` });
      make(svg, "svg:rect", { x: 1, y: 1, width: 24, height: 10, fill: `url(#hatch${place % 5})` });
    } else make(svg, "svg:line", { x1: 0, x2: 26, y1: 6, y2: 6, class: lineClass(figure.chart.series[place], place) });
    make(item, "span", {}, series.label);
    return make(item, "b", { class: "value" });
  });
};
const hatches = () => {
  const defs = make(make(document.body, "svg:svg", { width: 0, height: 0, class: "defs", "aria-hidden": "true" }), "svg:defs");
  const shapes = [null, "M0 6L6 0M-1 1L1 -1M5 7L7 5", "M1 1h1.6v1.6h-1.6zM4 4h1.6v1.6h-1.6z", "M0 0L6 6M6 0L0 6"];
  shapes.forEach((d, place) => {
    const pattern = make(defs, "svg:pattern", { id: `hatch${place}`, width: 6, height: 6, patternUnits: "userSpaceOnUse" });
    if (d) make(pattern, "svg:path", { d, class: place === 2 ? "dots" : "hatch" });
  });
};
const listen = (figure) => {
  const svg = figure.svg;
  let from = null;
  const at = (event) => {
    const rect = svg.getBoundingClientRect();
    const ms = msOf(((event.clientX - rect.left) / rect.width) * plot.width);
    return Math.min(view.to, Math.max(view.from, ms));
  };
  svg.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button !== 0) return;
    from = at(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    cursor = at(event);
    if (from !== null) {
      const [low, high] = [xOf(from), xOf(cursor)].sort((a, b) => a - b);
      for (const other of drawn) if (other.brush) { other.brush.setAttribute("x", low); other.brush.setAttribute("width", high - low); }
    }
    showValues();
  });
  svg.addEventListener("pointerup", (event) => {
    const start = from, end = at(event);
    from = null;
    if (start !== null && Math.abs(xOf(end) - xOf(start)) > 5) zoomTo(Math.min(start, end), Math.max(start, end));
    else {
      const bar = document.elementFromPoint(event.clientX, event.clientY);
      if (bar && bar.dataset && bar.dataset.stage) showStage(bar.dataset.stage);
    }
  });
  svg.addEventListener("pointercancel", () => { from = null; redraw(); });
  svg.addEventListener("pointerleave", () => { if (from === null) { cursor = null; showValues(); } });
  svg.addEventListener("dblclick", reset);
};
/* How many samples a point of the chart stands for, where it is more than one. */
const heldBy = (chart) => {
  const most = chart.series.reduce((a, b) => ((b.holdsS || 0) > (a.holdsS || 0) ? b : a));
  return most.holds ? `a point holds up to ${most.holds} samples (${human(most.holdsS, "s")})` : "";
};
const WORLDS = { guest: "guest", gpu: "GPU", hypervisor: "hypervisor" };
const build = () => {
  hatches();
  if (data.stages.length) {
    const figure = make(box, "figure", { class: "chart", id: "chart-stages" });
    make(figure, "h3", {}, "Stages");
    drawn.push({ svg: make(figure, "svg:svg", { role: "img", "aria-label": `Stages over time: ${data.stages.map((stage) => stage.name).join(", ")}` }), draw: drawStages });
  } else make(box, "p", { class: "empty" }, "No stage was measured in this run, so there are no bands on the time axis.");
  for (const chart of data.charts) {
    if (chart.heading) make(box, "h3", { class: "chapter" }, chart.heading);
    if (chart.hint) make(box, "p", { class: "note" }, chart.hint);
    const figure = make(box, "figure", { class: "chart", id: `chart-${chart.key}` });
    const head = make(figure, "figcaption");
    const title = make(head, "h3", {}, chart.title);
    if (chart.empty) { make(figure, "p", { class: "empty" }, chart.empty); continue; }
    if (chart.world) make(title, "small", { class: "world" }, WORLDS[chart.world]);
    make(title, "small", {}, chart.unit.startsWith("B") ? (chart.unit === "B" ? "bytes" : "bytes per second") : chart.unit);
    if (heldBy(chart)) make(title, "small", { class: "holds" }, heldBy(chart));
    for (const series of chart.series) series.times = absolute(series.t);
    if (chart.stacked) chart.stack = stackOf(chart);
    const svg = make(figure, "svg:svg", { role: "img", "aria-label": `${chart.title}, ${chart.unit}, over time: ${chart.series.map((series) => series.label).join(", ")}` });
    const entry = { chart, svg, draw: drawChart };
    legend(entry, head);
    if (chart.note) make(figure, "p", { class: "note" }, chart.note);
    drawn.push(entry);
  }
  for (const figure of drawn) listen(figure);
};
const KEYS = {
  ArrowLeft: (fast) => move(fast ? -0.1 : -0.01),
  ArrowRight: (fast) => move(fast ? 0.1 : 0.01),
  Home: () => move(-Infinity),
  End: () => move(Infinity),
  "+": () => zoomBy(0.5), "=": () => zoomBy(0.5), "-": () => zoomBy(2),
  0: reset, Escape: reset,
};
const move = (share) => {
  const start = cursor === null || !inside(cursor) ? (view.from + view.to) / 2 : cursor;
  cursor = Math.min(view.to, Math.max(view.from, start + share * (view.to - view.from)));
  showValues();
  speak();
};
box.addEventListener("keydown", (event) => {
  const act = KEYS[event.key];
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act(event.shiftKey);
});
const CLICKS = { reset, closer: () => zoomBy(0.5), wider: () => zoomBy(2), earlier: () => pan(-0.5), later: () => pan(0.5) };
for (const [key, act] of Object.entries(CLICKS)) button(key).addEventListener("click", act);
for (const one of document.querySelectorAll("button[data-stage]")) {
  one.addEventListener("click", () => {
    showStage(one.dataset.stage);
    document.getElementById("timeline").scrollIntoView();
    box.focus({ preventScroll: true });
  });
}
const opened = [];
window.addEventListener("beforeprint", () => {
  paintAll();
  for (const one of document.querySelectorAll("details:not([open]):not(.long)")) { one.open = true; opened.push(one); }
});
window.addEventListener("afterprint", () => { for (const one of opened.splice(0)) one.open = false; });
build();
redraw();
let known = box.clientWidth;
new ResizeObserver(() => { if (box.clientWidth !== known) { known = box.clientWidth; redraw(); } }).observe(box);
