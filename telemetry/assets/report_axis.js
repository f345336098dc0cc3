/* First part of the report's script: the data, numbers and times, and the axis that all charts share. */
performance.mark("stagescope-script");
const data = JSON.parse(document.getElementById("data").textContent);
const box = document.getElementById("charts");
const rangeText = document.getElementById("range");
const button = (key) => document.getElementById(key);
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
  const right = width >= 700 ? 132 : 10;
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
