"use strict";
/* Draws the charts of the report from the JSON in the page: one time axis, one cross-hair. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const box = document.getElementById("charts");
  const rangeText = document.getElementById("range");
  const resetButton = document.getElementById("reset");
  const spoken = document.getElementById("spoken");
  const WHOLE = { from: 0, to: data.durationMs };
  const LEAST_MS = 200;
  const HEIGHT = 128, TOP = 16, BOTTOM = 20, LEFT = 70;
  const ROW = 20;
  const BYTES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  const STEPS_MS = [10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5,
    18e5, 36e5, 72e5, 108e5, 216e5, 432e5, 864e5];
  let view = { ...WHOLE };
  let cursor = null;
  let drawn = [];

  /* ---- numbers and times ---- */
  const short = (value) => {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 1e-4 || size >= 1e12) return value.toExponential(1);
    if (size >= 999.5) return Math.round(value).toLocaleString("en-US");
    return String(Number(value.toPrecision(3)));
  };
  const human = (value, unit) => {
    if (unit === "B" || unit.startsWith("B/")) {
      let index = 0;
      while (Math.abs(value) >= 1023.5 && index < BYTES.length - 1) { value /= 1024; index += 1; }
      return `${short(value)} ${BYTES[index]}${unit.slice(1)}`;
    }
    if (unit.startsWith("%")) return `${short(value)} %`;
    return unit ? `${short(value)} ${unit}` : short(value);
  };
  const two = (number) => String(number).padStart(2, "0");
  const clock = (ms, digits) => {
    const sign = ms < 0 ? "-" : "";
    const unit = 10 ** digits;
    const ticks = Math.round(Math.abs(ms) / 1000 * unit);
    const whole = Math.floor(ticks / unit);
    const rest = digits ? "." + String(ticks % unit).padStart(digits, "0") : "";
    const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
    const head = hours ? `${hours}:${two(minutes)}` : String(minutes);
    return `${sign}${head}:${two(whole % 60)}${rest}`;
  };
  const digitsFor = (stepMs) => (stepMs >= 1000 ? 0 : stepMs >= 100 ? 1 : 2);
  const utc = (ms) => new Date(data.startMs + Math.round(ms / 100) * 100).toISOString().replace("T", " ").slice(0, 21) + " UTC";
  const timeStep = (width) => {
    const wanted = (view.to - view.from) / Math.max(2, width / 80);
    return STEPS_MS.find((step) => step >= wanted) || 864e5 * Math.ceil(wanted / 864e5);
  };
  const niceStep = (top, unit) => {
    const wanted = top / 4;
    if (unit.startsWith("B")) return 2 ** Math.ceil(Math.log2(Math.max(1, wanted)));
    const power = 10 ** Math.floor(Math.log10(wanted));
    return power * ([1, 2, 2.5, 5].find((one) => one * power >= wanted * 0.999) || 10);
  };

  /* ---- elements ---- */
  const SVG = "http://www.w3.org/2000/svg";
  const make = (parent, name, attributes, text) => {
    const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const svgText = (parent, x, y, text, cls, anchor) =>
    make(parent, "svg:text", { x, y, class: cls, "text-anchor": anchor || "start" }, text);
  const ruler = document.createElement("canvas").getContext("2d");
  const textWidth = (text) => {
    ruler.font = "11px system-ui, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif";
    return ruler.measureText(text).width;
  };

  /* ---- geometry shared by all charts ---- */
  let plot = { width: 0, right: 0 };
  const measure = () => {
    const width = Math.max(260, Math.floor(box.clientWidth));
    const right = width >= 700 ? 118 : 10;
    plot = { width, right, inner: width - LEFT - right };
  };
  const xOf = (ms) => LEFT + ((ms - view.from) / (view.to - view.from)) * plot.inner;
  const msOf = (x) => view.from + ((x - LEFT) / plot.inner) * (view.to - view.from);
  const inside = (ms) => ms >= view.from && ms <= view.to;

  const clip = (svg, id, height) => {
    const path = make(make(svg, "svg:defs"), "svg:clipPath", { id });
    make(path, "svg:rect", { x: LEFT, y: 0, width: plot.inner, height });
    return make(svg, "svg:g", { "clip-path": `url(#${id})` });
  };
  const timeAxis = (svg, layer, height, labelled) => {
    const step = timeStep(plot.inner);
    for (let ms = Math.ceil(view.from / step) * step; ms <= view.to; ms += step) {
      const x = xOf(ms);
      make(layer, "svg:line", { x1: x, x2: x, y1: TOP, y2: height - BOTTOM, class: "grid" });
      if (labelled && x < plot.width - plot.right - (plot.right > 50 ? -20 : 12)) {
        svgText(svg, x, height - 5, clock(ms, digitsFor(step)), "tick", "middle");
      }
    }
  };
  const bands = (svg, layer, height) => {
    for (const stage of data.stages) {
      const from = Math.max(xOf(stage.from), LEFT), to = Math.min(xOf(stage.to), LEFT + plot.inner);
      if (to <= from) continue;
      const cls = stage.place % 2 ? "band odd" : "band even";
      make(layer, "svg:rect", { x: from, y: 0, width: to - from, height: height - BOTTOM, class: cls });
      const label = [`${stage.place} ${stage.name}`, String(stage.place)].find((text) => textWidth(text) + 6 < to - from);
      if (label) svgText(svg, (from + to) / 2, 11, label, "bandname", "middle");
    }
  };

  /* ---- the stages as bars ---- */
  const drawStages = (figure) => {
    const height = TOP + ROW * Math.max(1, data.stages.length) + BOTTOM + 12;
    const svg = figure.svg;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${plot.width} ${height}`);
    const layer = clip(svg, "clip-stages", height);
    timeAxis(svg, layer, height - 12, false);
    moves(svg, layer, height - BOTTOM - 12, true);
    const step = timeStep(plot.inner);
    for (let ms = Math.ceil(view.from / step) * step; ms <= view.to; ms += step) {
      svgText(svg, Math.min(xOf(ms), plot.width - 14), height - 19, clock(ms, digitsFor(step)), "tick", "middle");
    }
    svgText(svg, LEFT + plot.inner / 2, height - 4, plot.right > 50 ? "time since the run began (h:mm:ss)" : "time since the run began", "tick", "middle");
    data.stages.forEach((stage, index) => {
      const y = TOP + ROW * index + 2;
      const from = xOf(stage.from), to = Math.max(xOf(stage.to), from + 2);
      const known = ["finished", "failed", "interrupted"].includes(stage.status) ? stage.status : "open";
      const bar = make(layer, "svg:rect", { x: from, y, width: to - from, height: ROW - 5, rx: 2, class: `stagebar ${known}`, "data-stage": stage.place });
      make(bar, "svg:title", {}, `${stage.name}: ${clock(stage.from, 1)} to ${stage.ended ? clock(stage.to, 1) : "an unknown end"}; click to zoom`);
      const long = (stage.to - stage.from) / 1000;
      const took = stage.ended ? (long < 99.95 ? `${long.toPrecision(3)} s` : clock(long * 1000, 0)) : "no end recorded";
      const state = stage.status === "finished" || !stage.ended ? "" : `, ${stage.status}`;
      const label = `${stage.place} ${stage.name} · ${took}${state}`;
      const width = textWidth(label) + 10;
      const low = Math.max(from, LEFT), high = Math.min(to, LEFT + plot.inner);
      if (high < LEFT || low > LEFT + plot.inner) return;
      if (high - low > width) svgText(svg, low + 5, y + 11.5, label, "barname in");
      else if (high + width < plot.width) svgText(svg, high + 5, y + 11.5, label, "barname");
      else svgText(svg, low - 5, y + 11.5, label, "barname", "end");
    });
    figure.cross = make(svg, "svg:line", { class: "cross", y1: 0, y2: height - BOTTOM - 12 });
    figure.brush = make(svg, "svg:rect", { class: "brush", y: 0, height: height - BOTTOM - 12 });
  };

  /* ---- one chart ---- */
  const absolute = (deltas) => { let sum = 0; return deltas.map((delta) => (sum += delta)); };
  const bounds = (times) => {
    let low = 0, high = times.length;
    while (low < high) { const mid = (low + high) >> 1; if (times[mid] < view.from) low = mid + 1; else high = mid; }
    const first = Math.max(0, low - 1);
    high = times.length;
    while (low < high) { const mid = (low + high) >> 1; if (times[mid] <= view.to) low = mid + 1; else high = mid; }
    return [first, Math.min(times.length, low + 1)];
  };
  const stackOf = (chart) => {
    const sums = [];
    let below = chart.series[0].v.map((value) => (value === null ? null : 0));
    for (const series of chart.series) {
      const above = series.v.map((value, i) => (value === null || below[i] === null ? null : below[i] + value));
      sums.push([below, above]);
      below = above;
    }
    return sums;
  };
  const linePath = (times, values, y) => {
    const [first, last] = bounds(times);
    let path = "", pen = false;
    for (let i = first; i < last; i += 1) {
      if (values[i] === null) { pen = false; continue; }
      const alone = !pen && (i + 1 >= last || values[i + 1] === null);
      path += `${pen ? "L" : "M"}${xOf(times[i]).toFixed(1)} ${y(values[i]).toFixed(1)}`;
      if (alone) path += "h0.01";
      pen = true;
    }
    return path;
  };
  /* A step holds from its own time to that of the next one; null leaves the time after it open. */
  const stepPath = (times, values, y) => {
    const [first, last] = bounds(times);
    let path = "", pen = false;
    for (let i = first; i < last; i += 1) {
      const x = xOf(times[i]).toFixed(1);
      if (pen) path += `H${x}`;
      if (values[i] === null) { pen = false; continue; }
      path += `${pen ? "V" : `M${x} `}${y(values[i]).toFixed(1)}`;
      pen = true;
    }
    return path;
  };
  const areaPath = (times, below, above, y) => {
    const [first, last] = bounds(times);
    let path = "";
    for (let i = first; i < last; ) {
      if (above[i] === null) { i += 1; continue; }
      let end = i;
      while (end < last && above[end] !== null) end += 1;
      const half = end - i === 1 && times.length > 1 ? Math.max(0.5, (xOf(times[1]) - xOf(times[0])) / 2) : 0;
      const up = [], down = [];
      for (let k = i; k < end; k += 1) {
        const x = xOf(times[k]);
        for (const at of half ? [x - half, x + half] : [x]) {
          up.push(`${at.toFixed(1)} ${y(above[k]).toFixed(1)}`);
          down.unshift(`${at.toFixed(1)} ${y(below[k]).toFixed(1)}`);
        }
      }
      path += `M${up.join("L")}L${down.join("L")}Z`;
      i = end;
    }
    return path;
  };
  const topOf = (chart) => {
    if (chart.top !== null) return chart.top;
    let top = 0;
    for (const series of chart.series) {
      const [first, last] = bounds(series.times);
      for (let i = first; i < last; i += 1) if (series.v[i] > top) top = series.v[i];
    }
    return top ? Math.max(top * 1.05, chart.unit === "%" ? 1 : 1e-9) : 1;
  };
  const spread = (labels, top, bottom) => {
    labels.sort((a, b) => a.y - b.y || a.order - b.order);
    labels.forEach((label, i) => { label.y = Math.max(label.y, top, i ? labels[i - 1].y + 12 : top); });
    for (let i = labels.length - 1, limit = bottom; i >= 0; i -= 1, limit -= 12) labels[i].y = Math.min(labels[i].y, limit);
    return labels;
  };
  const directLabels = (svg, chart, y) => {
    if (plot.right < 50 || chart.key === "rss") return;
    const labels = [];
    chart.series.forEach((series, place) => {
      const values = chart.stacked ? chart.stack[place][1] : series.v;
      const [first, last] = bounds(series.times);
      let at = last - 1;
      while (at > first && (values[at] === null || !inside(series.times[at]))) at -= 1;
      if (at < 0 || values[at] === null || values[at] === undefined) return;
      const level = chart.stacked ? (chart.stack[place][0][at] + values[at]) / 2 : values[at];
      labels.push({ y: y(level) + 4, text: series.label, hue: hueOf(series, place), order: chart.stacked ? -place : place });
    });
    for (const label of spread(labels, TOP + 6, HEIGHT - BOTTOM)) {
      let text = label.text;
      while (text.length > 4 && textWidth(text) > plot.right - 14) text = text.slice(0, -2).trimEnd() + "…";
      svgText(svg, LEFT + plot.inner + 8, label.y, text, `direct t${label.hue}`);
    }
  };
  const hueOf = (series, place) => (series.hue === undefined ? place : series.hue) % 8;
  const lineClass = (series, place) => `line s${hueOf(series, place)}${series.look ? ` look-${series.look}` : ""}`;
  const moves = (svg, layer, low, labelled) => {
    for (const move of data.moves) {
      const x = xOf(move.at);
      make(layer, "svg:line", { x1: x, x2: x, y1: labelled ? 0 : TOP, y2: low, class: "move" });
      if (labelled && inside(move.at)) {
        const to = move.to.split(".")[0];
        const text = move.to.length < 20 ? `moved to ${move.to}` : to.length < 20 && !/^\d+$/.test(to) ? `moved to ${to}` : "moved";
        const left = x + textWidth(text) + 6 > LEFT + plot.inner;
        const label = svgText(svg, left ? x - 4 : x + 4, 11, text, "movename", left ? "end" : "start");
        make(label, "svg:title", {}, move.text);
      }
    }
  };
  const drawChart = (figure) => {
    const { svg, chart } = figure;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${plot.width} ${HEIGHT}`);
    const top = topOf(chart), low = HEIGHT - BOTTOM;
    const y = (value) => low - (Math.min(value, top * 1.2) / top) * (low - TOP);
    const layer = clip(svg, `clip-${chart.key}`, HEIGHT);
    bands(svg, layer, HEIGHT);
    timeAxis(svg, layer, HEIGHT, true);
    const step = chart.top === 100 ? 50 : niceStep(top, chart.unit);
    for (let value = 0; value <= top * 1.001; value += step) {
      make(layer, "svg:line", { x1: LEFT, x2: LEFT + plot.inner, y1: y(value), y2: y(value), class: value ? "grid" : "axis" });
      if (y(value) > TOP - 4) svgText(svg, LEFT - 6, y(value) + 4, human(value, chart.unit.length > 5 ? "" : chart.unit), "tick", "end");
    }
    chart.series.forEach((series, place) => {
      if (chart.stacked) {
        const [below, above] = chart.stack[place];
        make(layer, "svg:path", { d: areaPath(series.times, below, above, y), class: `area f${place % 8}` });
        make(layer, "svg:path", { d: areaPath(series.times, below, above, y), fill: `url(#hatch${place % 5})` });
      } else {
        const path = series.look === "step" ? stepPath : linePath;
        make(layer, "svg:path", { d: path(series.times, series.v, y), class: lineClass(series, place) });
      }
    });
    moves(svg, layer, low, false);
    directLabels(svg, chart, y);
    figure.cross = make(svg, "svg:line", { class: "cross", y1: 0, y2: low });
    figure.brush = make(svg, "svg:rect", { class: "brush", y: 0, height: low });
  };

  /* ---- legends, the cross-hair and its values ---- */
  const valueAt = (series, ms) => {
    const times = series.times;
    if (!times.length || ms < times[0] || ms > times[times.length - 1]) return null;
    let low = 0, high = times.length - 1;
    while (low < high) { const mid = (low + high + 1) >> 1; if (times[mid] <= ms) low = mid; else high = mid - 1; }
    if (series.v[low] === null || series.look === "step") return series.v[low];
    const next = low + 1;
    const nearer = next < times.length && series.v[next] !== null && times[next] - ms < ms - times[low] ? next : low;
    return series.v[nearer];
  };
  const stageAt = (ms) => data.stages.filter((stage) => ms >= stage.from && ms <= stage.to).map((stage) => `${stage.place} ${stage.name}`).join(", ") || "between stages";
  const showValues = () => {
    const all = clock(view.from, 0) + " to " + clock(view.to, view.to - view.from < 10e3 ? 1 : 0);
    const zoomed = view.from > WHOLE.from || view.to < WHOLE.to;
    const shown = `${zoomed ? "Shown" : "Whole run"}: ${all}`;
    rangeText.textContent = cursor === null ? shown : `At ${clock(cursor, 1)} · ${utc(cursor)} · ${stageAt(cursor)}`;
    resetButton.disabled = !zoomed;
    for (const figure of drawn) {
      if (!figure.cross) continue;
      const on = cursor !== null && inside(cursor);
      figure.cross.setAttribute("visibility", on ? "visible" : "hidden");
      if (on) { figure.cross.setAttribute("x1", xOf(cursor)); figure.cross.setAttribute("x2", xOf(cursor)); }
      (figure.values || []).forEach((cell, place) => {
        const value = cursor === null ? null : valueAt(figure.chart.series[place], cursor);
        cell.textContent = cursor === null ? "" : value === null ? "no sample" : human(value, figure.chart.unit);
      });
    }
  };
  const speak = () => {
    const told = drawn.filter((figure) => figure.chart).map((figure) => {
      const values = figure.chart.series.map((series) => [series.label, valueAt(series, cursor)]).filter((pair) => pair[1] !== null);
      return values.length ? `${figure.chart.title}: ${values.map(([label, value]) => `${label} ${human(value, figure.chart.unit)}`).join(", ")}` : "";
    });
    spoken.textContent = `At ${clock(cursor, 1)}, ${stageAt(cursor)}. ${told.filter(Boolean).join(". ")}.`;
  };
  const redraw = () => {
    measure();
    for (const figure of drawn) if (figure.draw) figure.draw(figure);
    showValues();
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
  const build = () => {
    hatches();
    if (data.stages.length) {
      const figure = make(box, "figure", { class: "chart", id: "chart-stages" });
      make(figure, "h3", {}, "Stages");
      drawn.push({ svg: make(figure, "svg:svg", { role: "img", "aria-label": `Stages over time: ${data.stages.map((stage) => stage.name).join(", ")}` }), draw: drawStages });
    } else make(box, "p", { class: "empty" }, "No stage was measured in this run, so there are no bands on the time axis.");
    for (const chart of data.charts) {
      if (chart.heading) make(box, "h3", { class: "chapter", id: "beside" }, chart.heading);
      if (chart.hint) make(box, "p", { class: "note" }, chart.hint);
      const figure = make(box, "figure", { class: "chart", id: `chart-${chart.key}` });
      const head = make(figure, "figcaption");
      const title = make(head, "h3", {}, chart.title);
      if (chart.empty) { make(figure, "p", { class: "empty" }, chart.empty); continue; }
      make(title, "small", {}, chart.unit.startsWith("B") ? (chart.unit === "B" ? "bytes" : "bytes per second") : chart.unit);
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
  resetButton.addEventListener("click", reset);
  for (const button of document.querySelectorAll("button[data-stage]")) {
    button.addEventListener("click", () => {
      showStage(button.dataset.stage);
      document.getElementById("timeline").scrollIntoView();
      box.focus({ preventScroll: true });
    });
  }
  const opened = [];
  window.addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not([open])")) { one.open = true; opened.push(one); }
  });
  window.addEventListener("afterprint", () => { for (const one of opened.splice(0)) one.open = false; });
  build();
  redraw();
  let known = box.clientWidth;
  new ResizeObserver(() => { if (box.clientWidth !== known) { known = box.clientWidth; redraw(); } }).observe(box);
})();
