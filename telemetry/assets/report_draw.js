/* Second part: one chart drawn. Of many samples in a pixel column: smallest, median and largest. */
/* ---- the stages as bars ---- */
const stagesHeight = () => TOP + ROW * Math.max(1, data.stages.length) + BOTTOM + 12;
const drawStages = (figure) => {
  const height = stagesHeight();
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
  figure.cross = make(svg, "svg:line", { class: "cross", visibility: "hidden", y1: 0, y2: height - BOTTOM - 12 });
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
/* What each pixel column shows of a series: null for a break; null in all where none is shared. */
const columnsOf = (series) => {
  const [first, last] = bounds(series.times);
  if (!series.lo && last - first <= 2 * plot.inner) return null;
  const made = [];
  let column = null;
  const close = () => {
    if (column) column.mid = column.mids.sort((a, b) => a - b)[column.mids.length >> 1];
    column = null;
  };
  for (let i = first; i < last; i += 1) {
    const value = series.v[i];
    if (value === null) { close(); made.push(null); continue; }
    const x = Math.round(xOf(series.times[i]));
    if (!column || column.x !== x) {
      close();
      column = { x, lo: Infinity, hi: -Infinity, mids: [] };
      made.push(column);
    }
    column.lo = Math.min(column.lo, series.lo ? series.lo[i] : value);
    column.hi = Math.max(column.hi, series.hi ? series.hi[i] : value);
    column.mids.push(value);
  }
  close();
  return made;
};
const medianPath = (columns, y) => {
  let path = "", pen = false;
  columns.forEach((column, i) => {
    if (!column) { pen = false; return; }
    path += `${pen ? "L" : "M"}${column.x} ${y(column.mid).toFixed(1)}`;
    if (!pen && !columns[i + 1]) path += "h0.01";
    pen = true;
  });
  return path;
};
const bandPath = (columns, y) => {
  let path = "", piece = [];
  const close = () => {
    if (!piece.length) return;
    const half = piece.length === 1 ? 0.5 : 0;
    const up = piece.map((one) => `${one.x - half} ${y(one.hi).toFixed(1)}`);
    const down = piece.map((one) => `${one.x + half} ${y(one.lo).toFixed(1)}`).reverse();
    path += `M${up.join("L")}L${down.join("L")}Z`;
    piece = [];
  };
  for (const column of columns) if (column) piece.push(column); else close();
  close();
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
    const values = series.hi || series.v;
    for (let i = first; i < last; i += 1) if (values[i] > top) top = values[i];
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
    labels.push({ y: y(level) + 4, text: series.label, series, place, order: chart.stacked ? -place : place });
  });
  for (const label of spread(labels, TOP + 6, HEIGHT - BOTTOM)) {
    let text = label.text;
    while (text.length > 4 && textWidth(text) > plot.right - 32) text = text.slice(0, -2).trimEnd() + "…";
    const x = LEFT + plot.inner + 6;
    if (chart.stacked) make(svg, "svg:rect", { x, y: label.y - 8, width: 14, height: 8, class: `area f${label.place % 8}` });
    else make(svg, "svg:line", { x1: x, x2: x + 16, y1: label.y - 4, y2: label.y - 4, class: lineClass(label.series, label.place) });
    svgText(svg, x + 20, label.y, text, "direct");
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
      const columns = columnsOf(series), path = series.look === "step" ? stepPath : linePath;
      if (columns) make(layer, "svg:path", { d: bandPath(columns, y), class: `minmax f${hueOf(series, place)}` });
      const d = columns ? medianPath(columns, y) : path(series.times, series.v, y);
      make(layer, "svg:path", { d, class: lineClass(series, place) });
    }
  });
  moves(svg, layer, low, false);
  directLabels(svg, chart, y);
  figure.cross = make(svg, "svg:line", { class: "cross", visibility: "hidden", y1: 0, y2: low });
  figure.brush = make(svg, "svg:rect", { class: "brush", y: 0, height: low });
};
