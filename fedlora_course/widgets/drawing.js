// The one drawing module of all widgets: numbers as words, a panel in SVG, and the look.

// Numbers

export const sum = xs => xs.reduce((a, b) => a + b, 0);
export const mean = xs => sum(xs) / xs.length;

export function num(v, digits = 3) {
  if (!Number.isFinite(v)) return v > 0 ? "∞" : v < 0 ? "−∞" : "–";
  const size = Math.abs(v);
  let text = String(Number(v.toPrecision(digits || 1)));
  if (size >= 10 ** digits) text = Math.round(v).toLocaleString("en");
  if (size && (size < 9.995e-4 || size >= 1e7 || !digits)) {
    const [front, power] = v.toExponential(1).split("e");
    const raised = [...power.replace("+", "")].map(c => c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("");
    text = (front === "1.0" ? "" : `${Number(front)} · `) + `10${raised}`;
  }
  return text.replace("-", "−");
}
export const fixed = (v, digits = 2) => Number.isFinite(v) ? v.toFixed(digits).replace("-", "−") : num(v);
const powers = v => num(v, v >= 99999 || v < 0.00999 ? 0 : 3);

// Axes: {label, range: [low, high], log, ticks, names, format}

const FONT = 12.5;
const MARGIN = {left: 52, right: 14, top: 10, bottom: 40};
export const escaped = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
export function write(element, markup) { // what stays as it is costs no layout
  if (element.markup !== markup) element.innerHTML = element.markup = markup;
}
export const ink = colour => `var(--fl-${colour ?? "ink"})`;
const near = (x, y) => `${x.toFixed(1)},${y.toFixed(1)}`;
const show = axis => axis.format ?? (axis.log ? powers : num);

export function ticksOf({range: [low, high], log, ticks}, most = 5) {
  if (ticks) return ticks;
  const places = [];
  if (log) {
    const decades = Math.log10(high / low), fine = decades < 1.6 ? [1, 2, 5] : [1];
    const every = Math.ceil(decades / 6);
    for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high) + 1e-9; p++)
      for (const f of fine) if (p % every === 0) places.push(f * 10 ** p);
    return places.filter(t => t >= low * 0.999 && t <= high * 1.001);
  }
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find(m => m * power >= rough * 0.999);
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) places.push(k * step);
  return places;
}

function scaleOf({range: [low, high], log}, from, to) {
  const f = log ? v => Math.log(Math.max(v, 1e-300)) : v => v;
  const start = f(low), size = (to - from) / (f(high) - start);
  const at = v => Math.max(-5000, Math.min(5000, from + size * (f(v) - start)));
  at.back = p => log ? Math.exp(start + (p - from) / size) : start + (p - from) / size;
  return at;
}

function label(x, y, text, {anchor = "start", colour, bold, size = FONT, turn} = {}) {
  const turned = turn ? ` transform="rotate(${turn} ${near(x, y)})"` : "";
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}"${turned} `
    + `style="fill:${ink(colour)};font-size:${size}px${bold ? ";font-weight:600" : ""}">${escaped(text)}</text>`;
}

function nameOf(words, [x, y], room, turn) { // smaller where there is little room
  const size = Math.max(9.5, Math.min(FONT, room / (0.53 * words.length || 1)));
  return label(x, y, words, {anchor: "middle", colour: "soft", size, turn});
}

// Marks: {kind, x, y, colour, ...}; numbers are in units of the axes.

const points = ({x, y}, X, Y) => Array.from(x, (v, i) => [v, y[i]])
  .filter(p => p[1] !== null && !Number.isNaN(p[1])).map(([a, b]) => near(X(a), Y(b)));

const MARKS = {
  line: (m, X, Y) => `<polyline points="${points(m, X, Y).join(" ")}" style="fill:none;stroke:${ink(m.colour)};`
    + `stroke-width:${m.width ?? 2.2};stroke-dasharray:${m.dash ?? "none"};opacity:${m.opacity ?? 1}"/>`,
  area: (m, X, Y) => `<polygon points="${points(m, X, Y).join(" ")}" style="fill:${ink(m.colour)};opacity:${m.opacity ?? 0.18}"/>`,
  bars: (m, X, Y) => {
    const boxes = m.left.map((left, i) => `M${near(X(left), Y(m.bottom[i]))}H${X(m.right[i]).toFixed(1)}V${Y(m.top[i]).toFixed(1)}H${X(left).toFixed(1)}Z`);
    return `<path d="${boxes.join("")}" style="fill:${ink(m.colour)};opacity:${m.opacity ?? 1};stroke:${ink("card")};stroke-width:0.7"/>`;
  },
  // One path is quicker than many circles.
  dots: (m, X, Y) => [["card", 2 * m.size + 2], [m.colour, 2 * m.size], ["card", m.open ? 2 * m.size - 3.2 : 0]].slice(m.size < 4 ? 1 : 0, m.open ? 3 : 2).map(([colour, wide]) =>
    `<path d="${points(m, X, Y).map(p => `M${p}h0`).join("")}" style="fill:none;stroke:${ink(colour)};stroke-width:${wide};`
    + `stroke-linecap:round;opacity:${m.opacity ?? 1}"/>`).join(""),
  // Rows of greys from 0 to 255, or of shades of a colour, one unit each; one path for each of 52 shades.
  image: (m, X, Y) => {
    const paths = new Map();
    m.pixels.forEach((v, i) => {
      const column = i % m.columns, row = Math.floor(i / m.columns), shade = 5 * Math.round(v / 5);
      const [left, right, top, bottom] = [X(column), X(column + 1), Y(row), Y(row + 1)].map(p => p.toFixed(1));
      paths.set(shade, `${paths.get(shade) ?? ""}M${left},${top}H${right}V${bottom}H${left}z`);
    });
    const look = m.colour ? v => `fill-opacity="${(v / 255).toFixed(2)}"` : v => `fill="rgb(${v},${v},${v})"`;
    const squares = [...paths].map(([shade, d]) => `<path d="${d}" ${look(shade)}/>`).join("");
    return `<g shape-rendering="crispEdges" style="fill:${ink(m.colour)}">${squares}</g>`;
  },
  text: (m, X, Y) => label(X(m.x) + (m.dx ?? 0), Y(m.y) + (m.dy ?? 0), m.words, m),
};
const OVER = new Set(["dots", "text"]); // these may stick out of the axes

function spread(labels, low, high) { // no two labels on one another
  labels.sort((a, b) => a.y - b.y);
  for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + 15);
  const over = (labels.at(-1)?.y ?? 0) - high;
  if (over > 0) for (let i = labels.length - 1, top = high; i >= 0; i--, top -= 15)
    labels[i].y = Math.max(low, Math.min(labels[i].y, top));
}

function sides({x, y, marks, margin, bare}) { // room for ticks, names and labels
  if (bare) return {left: 4, right: 4, top: 4, bottom: 4};
  const longest = texts => Math.max(0, ...texts.map(t => String(t).length));
  const left = 14 + (y.label ? 16 : 0) + 6.7 * longest(y.names ?? ticksOf(y).map(show(y)));
  const right = Math.max(18, 7.4 * longest(marks.map(m => m.label ?? "")) + 12);
  return {...MARGIN, left, right, ...margin};
}

export function drawPanel(svg, panel, clip, [W, H]) {
  const {y, marks} = panel, side = sides(panel), bottom = H - side.bottom;
  let {x} = panel;
  if (panel.square) { // a unit is as long across as upwards
    const half = (W - side.left - side.right) * (y.range[1] - y.range[0]) / (bottom - side.top) / 2;
    const middle = (x.range[0] + x.range[1]) / 2;
    x = {...x, range: [middle - half, middle + half]};
  }
  const X = scaleOf(x, side.left, W - side.right), Y = scaleOf(y, bottom, side.top);
  const axes = [], inside = [], over = [], ends = [];
  if (!panel.bare) {
    const room = W - side.left - side.right;
    ticksOf(x, Math.max(2, Math.min(5, Math.floor(room / 45)))).forEach((t, i) => {
      axes.push(`<path class="grid" d="M${near(X(t), side.top)}V${bottom}"/>`);
      axes.push(label(X(t), bottom + 16, x.names?.[i] ?? show(x)(t), {anchor: "middle", colour: "soft", size: 11.5}));
    });
    ticksOf(y).forEach((t, i) => {
      if (!y.names) axes.push(`<path class="grid" d="M${side.left},${Y(t).toFixed(1)}H${W - side.right}"/>`);
      axes.push(label(side.left - 6, Y(t) + 4, y.names?.[i] ?? show(y)(t), {anchor: "end", colour: y.names ? "ink" : "soft", size: 11.5}));
    });
    const across = (side.left + W - side.right) / 2, up = (side.top + bottom) / 2;
    axes.push(nameOf(x.label ?? "", [across, H - 6], 2 * Math.min(across, W - across)), nameOf(y.label ?? "", [13, up], 2 * up, -90));
  }
  for (const m of marks) {
    (OVER.has(m.kind) ? over : inside).push(MARKS[m.kind](m, X, Y));
    if (!m.label) continue; // a label stands at the end of its line
    const last = m.x.findLastIndex((v, i) => X(v) <= W - side.right + 1 && Y(m.y[i]) >= side.top - 1 && Y(m.y[i]) <= bottom + 1);
    if (last >= 0) ends.push({x: X(m.x[last]) + 6, y: Y(m.y[last]) + 4, m});
  }
  spread(ends, side.top + 10, bottom);
  for (const {x: at, y: height, m} of ends) over.push(label(at, height, m.label, {colour: m.colour, bold: m.bold ?? true}));
  // In layers: while a run moves its lines, its axes are not laid out again.
  write(svg, `<g></g><g clip-path="url(#${clip})"></g><g></g><g class="hover"></g>`);
  const inner = `<clipPath id="${clip}"><rect x="${side.left}" y="${side.top}" width="${Math.max(1, W - side.left - side.right)}" height="${Math.max(1, bottom - side.top)}"/></clipPath>`;
  [inner + axes.join(""), inside.join(""), over.join("")].forEach((markup, i) => write(svg.children[i], markup));
  const view = {X, panel: {...panel, x}, Y, W, side, bottom};
  if (svg.pointer) hover(svg, view, ...svg.pointer); // what is pointed at is said of the new lines
  return view;
}

export function hover(svg, {X, Y, panel, W, side, bottom}, px, py) { // what the named lines say here
  const box = svg.querySelector(".hover"), at = X.back(px), rows = [];
  const dots = panel.marks.filter(m => m.kind === "line" && m.name).map(({x, y, name, colour}) => {
    const k = x.findIndex((v, i) => i && (x[i - 1] - at) * (v - at) <= 0);
    if (k < 0) return "";
    const value = x[k] === x[k - 1] ? y[k] : y[k - 1] + (y[k] - y[k - 1]) * (at - x[k - 1]) / (x[k] - x[k - 1]);
    rows.push([`${name} ${(panel.y.format ?? num)(value)}`, colour]);
    return MARKS.dots({x: [at], y: [value], colour, size: 3.5}, X, Y);
  });
  if (!rows.length || px < side.left || px > W - side.right || py > bottom) return void (box.innerHTML = "");
  const lines = [[`${panel.x.label || "x"}: ${show(panel.x)(at)}`, "soft"], ...rows];
  const wide = 7 * Math.max(...lines.map(row => row[0].length)) + 14;
  const left = Math.max(2, px + 12 + wide > W ? px - 12 - wide : px + 12);
  box.innerHTML = `<path class="grid" style="stroke:${ink("soft")}" d="M${near(px, side.top)}V${bottom}"/>${dots.join("")}`
    + `<rect class="tip" x="${left}" y="${side.top + 2}" width="${wide}" height="${17 * lines.length + 8}" rx="4"/>`
    + lines.map(([text, colour], i) => label(left + 7, side.top + 18 + 17 * i, text, {colour})).join("");
}

export function watchPointer(svg, viewOf) {
  svg.addEventListener("pointermove", e => {
    const box = svg.getBoundingClientRect();
    svg.pointer = [e.clientX - box.left, e.clientY - box.top];
    hover(svg, viewOf(), ...svg.pointer);
  });
  svg.addEventListener("pointerleave", () => {
    svg.pointer = null;
    svg.querySelector(".hover").innerHTML = "";
  });
}

// Pictures of 8 x 8 in rows on a canvas

export const SHADES = 64;
// Steps from a colour to another, of which a share may be the last, as a canvas stores them.
export const ramp = (from, to, most = 1) => Uint32Array.from({length: SHADES + 1}, (_, i) => {
  const [r, g, b] = from.map((value, c) => value + (to[c] - value) * most * i / SHADES);
  return 255 << 24 | b << 16 | g << 8 | r;
});

// shade(tile, pixel) is a colour.
export function paintTiles(canvas, count, columns, pitch, shade) {
  const {width, height} = canvas;
  const context = canvas.getContext("2d");
  const image = canvas.image ??= context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let tile = 0; tile < count; tile++) {
    const corner = Math.floor(tile / columns) * pitch * width + tile % columns * pitch;
    for (let p = 0; p < 64; p++) pixels[corner + (p >> 3) * width + (p & 7)] = shade(tile, p);
  }
  context.putImageData(image, 0, 0);
}

// Keys and clicks are for the widget, not for the notebook around it.
export function keepEvents(home) {
  for (const kind of ["keydown", "mousedown", "pointerdown"]) home.addEventListener(kind, e => e.stopPropagation());
}

// The look: AA contrast on white and on JupyterLab's and the site's dark grounds

const LIGHT = {ink: "#22252B", soft: "#565D6B", grid: "#E4E6EB", edge: "#767C89", card: "#FFFFFF", blue: "#0069A6",
  orange: "#B44600", purple: "#6F45C6", green: "#0B7656", red: "#B3261E", pink: "#A53B63", teal: "#0E6A7C", grey: "#6A7180", pale: "#C9CED8", dark: 0};
const DARK = {ink: "#F0F1F4", soft: "#B4BAC6", grid: "#343840", edge: "#8B93A1", card: "#111111", blue: "#6FB9F0",
  orange: "#FFA05C", purple: "#BBA2FF", green: "#58D3A8", red: "#FF8F85", pink: "#F59ABD", teal: "#62CBDB", grey: "#A3AAB7", pale: "#666D7B", dark: 1};
const variables = (colours, card) => Object.entries({...colours, card}).map(([k, v]) => `--fl-${k}:${v}`).join(";");
// The ground of the site, and of JupyterLab where its themes are: widget managers elsewhere bring a white one of that name.
const ground = colour => `var(--fl-lab,var(--pst-color-background,${colour}))`;
const dark = `{${variables(DARK, ground(DARK.card))}}`;
export const STYLE = `.fl-dial{${variables(LIGHT, ground(LIGHT.card))};font:14px/1.45 var(--jp-ui-font-family,system-ui,sans-serif);color:${ink()};
background:${ink("card")};border:1px solid ${ink("grid")};border-radius:8px;padding:12px 14px;max-width:1000px;box-sizing:border-box}
body[data-jp-theme-light] .fl-dial{--fl-lab:var(--jp-layout-color0)}
body[data-jp-theme-light="false"] .fl-dial,html[data-theme="dark"] .fl-dial,html[theme="dark"] .fl-dial,body:is([data-vscode-theme-kind*="dark"],[data-vscode-theme-kind$="high-contrast"]) .fl-dial${dark}
@media(prefers-color-scheme:dark){html:not([data-theme],[theme]):not(:has(body:is([data-jp-theme-light],[data-vscode-theme-kind]))) .fl-dial${dark}}
.fl-dial *{box-sizing:border-box}.fl-dial p{margin:0;font-size:14px;color:${ink()}}.fl-dial .lead{font-weight:600;font-size:15px}
.fl-dial .tries{display:flex;flex-wrap:wrap;gap:6px 8px;align-items:center;margin:8px 0}
.fl-dial button{font:inherit;font-size:13px;min-height:28px;padding:2px 11px;border-radius:14px;border:1px solid ${ink("edge")};background:transparent;color:${ink()};cursor:pointer}
.fl-dial button[aria-pressed=true]{background:${ink("blue")};border-color:${ink("blue")};color:${ink("card")}}
.fl-dial .knobs{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:8px 20px;margin:8px 0 4px}
.fl-dial .knob{min-width:180px}.fl-dial .knob label{display:flex;justify-content:space-between;gap:8px;font-weight:600;margin:0}
.fl-dial output{font-weight:600;color:${ink("blue")};font-variant-numeric:tabular-nums;white-space:nowrap;padding:0;text-align:right}.fl-dial output:empty{display:none}
.fl-dial input[type=range]{width:100%;height:22px;margin:0;accent-color:${ink("blue")};cursor:pointer}
.fl-dial select,.fl-dial input[type=text]{font:inherit;font-size:13px;width:100%;height:26px;margin:0;color:${ink()};background:${ink("card")};border:1px solid ${ink("edge")};border-radius:4px}
.fl-dial small{display:block;margin-top:3px;font-size:12px;line-height:1.3;color:${ink("soft")}}
.fl-dial .panels{display:flex;flex-wrap:wrap;gap:4px 10px;margin-top:8px}
.fl-dial figure{margin:0;flex:1 1 222px;min-width:0}.fl-dial figure.wide{flex:1.6 1 320px}
.fl-dial figure.bare{flex:1 1 108px;max-width:190px}
.fl-dial hr{flex:0 0 100%;height:0;margin:0;border:0}
.fl-dial figcaption{font-weight:600;font-size:13.5px;line-height:1.3;min-height:2.6em;display:flex;align-items:flex-end;padding:0 4px;color:${ink()};text-align:left}
.fl-dial svg{display:block;width:100%;touch-action:pan-y;overflow:hidden}
.fl-dial svg text{font-family:inherit;paint-order:stroke;stroke:${ink("card")};stroke-width:3px;stroke-linejoin:round}
.fl-dial svg .grid{stroke:${ink("grid")};stroke-width:1;fill:none}.fl-dial svg .tip{fill:${ink("card")};stroke:${ink("edge")}}
.fl-dial .say{margin-top:6px;min-height:4.4em;font-size:14.5px}
.fl-dial :is(button,input,select):focus-visible{outline:2px solid ${ink("blue")};outline-offset:2px}`;
