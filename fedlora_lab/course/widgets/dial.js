// Dials: controls, a picture in SVG and a sentence, all drawn in the browser.
// A lesson's module says what is drawn: dials = {name: data => ({title, lead, controls, presets,
// play, draw: (values, data) => ({panels, say})})}; play names a control that a button moves by itself.
// The same module runs in Jupyter and on a static page.

// Numbers

const ROOT = Math.sqrt(2 * Math.PI);
export const pdf = x => Math.exp(-x * x / 2) / ROOT;

function mills(x) { // (1 - cdf(x)) / pdf(x) for x >= 3, a continued fraction
  let rest = 0;
  for (let k = 80; k > 0; k--) rest = k / (x + rest);
  return 1 / (x + rest);
}

export function cdf(x) {
  if (Math.abs(x) > 3) {
    const tail = pdf(x) * mills(Math.abs(x));
    return x < 0 ? tail : 1 - tail;
  }
  let term = x, sum = x;
  for (let k = 1; Math.abs(term) > 1e-17 * Math.abs(sum); k++) sum += term *= x * x / (2 * k + 1);
  return 0.5 + sum * pdf(x);
}

export const logCdf = x =>
  x < -3 ? -x * x / 2 - Math.log(ROOT) + Math.log(mills(-x)) : Math.log1p(-cdf(-x));

export function quantile(p) {
  if (p <= 0 || p >= 1) return p <= 0 ? -Infinity : Infinity;
  if (p > 0.5) return -quantile(1 - p);
  const t = Math.sqrt(-2 * Math.log(p));
  let x = (2.30753 + 0.27061 * t) / (1 + 0.99229 * t + 0.04481 * t * t) - t;
  for (let i = 0; i < 4; i++) {
    const off = (cdf(x) - p) / pdf(x);
    x -= off / (1 + x * off / 2);
  }
  return x;
}

export function gdpDelta(mu, epsilon) {
  const one = logCdf(-epsilon / mu + mu / 2), two = epsilon + logCdf(-epsilon / mu - mu / 2);
  return Math.max(0, -Math.exp(one) * Math.expm1(Math.min(0, two - one)));
}

export function bisect(above, low, high, steps = 60) { // where above(x) turns false
  for (let i = 0; i < steps; i++) {
    const middle = (low + high) / 2;
    if (above(middle)) low = middle; else high = middle;
  }
  return high;
}

export function gdpEpsilon(mu, delta) {
  if (gdpDelta(mu, 0) <= delta) return 0;
  let high = 1;
  while (gdpDelta(mu, high) > delta) high *= 2;
  return bisect(x => gdpDelta(mu, x) > delta, high > 1 ? high / 2 : 0, high);
}

export const gdpSigma = (epsilon, delta) => // noise multiplier of one release that spends epsilon
  Math.exp(-bisect(x => gdpDelta(Math.exp(x), epsilon) < delta, Math.log(1e-4), Math.log(60)));

const FACTORIALS = [0];
export function logFactorial(n) {
  while (FACTORIALS.length <= n) FACTORIALS.push(FACTORIALS.at(-1) + Math.log(FACTORIALS.length));
  return FACTORIALS[n];
}

export function normals(seed, count) { // the same numbers on every machine
  const draws = new Float64Array(count);
  const uniform = () => {
    let t = seed = (seed + 0x6D2B79F5) | 0;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  for (let i = 0; i < count; i++)
    draws[i] = Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return draws;
}

export const span = (low, high, count) =>
  Array.from({length: count}, (_, i) => low + (high - low) * i / (count - 1));
export const logSpan = (low, high, count) =>
  span(Math.log(low), Math.log(high), count).map(Math.exp);
export const curve = (xs, f) => Array.from(xs, x => [x, f(x)]);
export const sum = xs => xs.reduce((a, b) => a + b, 0);
export const mean = xs => sum(xs) / xs.length;

// Words

export function num(v, digits = 3) {
  if (!Number.isFinite(v)) return v > 0 ? "∞" : v < 0 ? "−∞" : "–";
  const size = Math.abs(v);
  let text = size >= 10 ** digits ? Math.round(v).toLocaleString("en")
    : String(Number(v.toPrecision(digits || 1)));
  if (size && (size < 9.995e-4 || size >= 1e7 || !digits)) {
    const [front, power] = v.toExponential(1).split("e");
    const raised = [...power.replace("+", "")].map(c => c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("");
    text = (front === "1.0" ? "" : `${Number(front)} · `) + `10${raised}`;
  }
  return text.replace("-", "−");
}
export const fixed = (v, digits = 2) =>
  Number.isFinite(v) ? v.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−") : num(v);
export const percent = (v, digits = 0) => `${fixed(100 * v, digits)} %`;

// The picture

const FONT = 12.5, MARGIN = {left: 52, right: 14, top: 10, bottom: 40};
const escaped = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const ink = colour => `var(--fl-${colour ?? "ink"})`;
const powers = v => num(v, v >= 99999 || v < 0.00999 ? 0 : 3);
const near = (x, y) => `${x.toFixed(1)},${y.toFixed(1)}`;

function ticksOf({range: [low, high], log, ticks}, most = 5) {
  if (ticks) return ticks;
  if (log) {
    const decades = Math.log10(high / low), fine = decades < 1.6 ? [1, 2, 5] : [1];
    const every = Math.ceil(decades / 6), found = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high) + 1e-9; p++)
      for (const f of fine) if (p % every === 0) found.push(f * 10 ** p);
    return found.filter(t => t >= low * 0.999 && t <= high * 1.001);
  }
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find(m => m * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
  return found;
}

function scaleOf({range: [low, high], log}, from, to) {
  const f = log ? v => Math.log(Math.max(v, 1e-300)) : v => v;
  const start = f(low), size = (to - from) / (f(high) - start);
  const at = v => Math.max(-5000, Math.min(5000, from + size * (f(v) - start)));
  at.back = p => log ? Math.exp(start + (p - from) / size) : start + (p - from) / size;
  return at;
}

const label = (x, y, text, {anchor = "start", colour, bold, size = FONT, turn, on} = {}) =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}"${on ? ` data-on="${on}"` : ""} style="fill:${ink(colour)};${on ? "stroke:none;" : ""}`
  + `font-size:${size}px${bold ? ";font-weight:600" : ""}"${turn ? ` transform="rotate(${turn} ${near(x, y)})"` : ""}>`
  + `${escaped(text)}</text>`;

function nameOf({label: long = "", short}, [x, y], room, turn) { // an axis' name, short or small where there is no room
  const words = 6.6 * long.length > room && short ? short : long;
  return label(x, y, words, {anchor: "middle", colour: "soft", size: Math.max(9.5, Math.min(FONT, room / (0.53 * words.length || 1))), turn});
}

// A mark is one of these with its options; the numbers are in units of the axes.
const MARKS = {
  line: (m, X, Y) => `<polyline points="${m.line.filter(p => !Number.isNaN(p[1])).map(([x, y]) => near(X(x), Y(y))).join(" ")}" `
    + `style="fill:none;stroke:${ink(m.colour)};stroke-width:${m.width ?? 2.2};stroke-dasharray:${m.dash ?? "none"};opacity:${m.opacity ?? 1}"/>`,
  area: (m, X, Y) => `<polygon points="${m.area.map(([x, y]) => near(X(x), Y(y))).join(" ")}" `
    + `style="fill:${ink(m.colour)};opacity:${m.opacity ?? 0.18}"/>`,
  bars: (m, X, Y) => !m.round ? `<path d="${m.bars.map(([x0, y0, x1, y1]) => `M${near(X(x0), Y(y0))}H${X(x1).toFixed(1)}V${Y(y1).toFixed(1)}H${X(x0).toFixed(1)}Z`).join("")}" `
    + `style="fill:${ink(m.colour)};opacity:${m.opacity ?? 1};stroke:${m.edge ? ink(m.edge) : ink(m.colour)};stroke-width:0.7"/>` : m.bars.map(([x0, y0, x1, y1]) => {
    const [a, b, c, d] = [X(x0), X(x1), Y(y0), Y(y1)];
    return `<rect x="${Math.min(a, b).toFixed(1)}" y="${Math.min(c, d).toFixed(1)}" width="${Math.max(0.5, Math.abs(a - b)).toFixed(1)}" `
      + `height="${Math.abs(c - d).toFixed(1)}" rx="${m.round ?? 0}" style="fill:${m.fill ?? ink(m.colour)};opacity:${m.opacity ?? 1};stroke:${m.edge ? ink(m.edge) : "none"}"/>`;
  }).join(""),
  dots: (m, X, Y) => m.size < 4 ? `<path d="${m.dots.map(([x, y]) => `M${near(X(x), Y(y))}h0`).join("")}" ` // one path is quicker than many circles
    + `style="fill:none;stroke:${ink(m.colour)};stroke-width:${2 * m.size};stroke-linecap:round;opacity:${m.opacity ?? 1}"/>` : m.dots.map(([x, y]) => `<circle cx="${X(x).toFixed(1)}" cy="${Y(y).toFixed(1)}" r="${m.size ?? 5}" `
    + `style="fill:${ink(m.colour)};stroke:var(--fl-card);stroke-width:1;opacity:${m.opacity ?? 1}"/>`).join(""),
  image: (m, X, Y) => m.image.map((v, i) => { // rows of grey pixels from 0 to 1, one unit each
    const [a, b] = [X(i % m.wide), Y(Math.floor(i / m.wide))], shade = Math.round(255 * Math.max(0, Math.min(1, v)));
    return `<rect x="${a}" y="${b}" width="${X(1) - X(0) + 0.6}" height="${Y(1) - Y(0) + 0.6}" fill="rgb(${shade},${shade},${shade})"/>`;
  }).join(""),
  cross: (m, X, Y) => {
    const [x, y] = [X(m.cross[0]), Y(m.cross[1])], s = 6;
    return `<path d="M${near(x - s, y - s)}L${near(x + s, y + s)}M${near(x - s, y + s)}L${near(x + s, y - s)}" style="stroke:${ink(m.colour)};stroke-width:3.5;stroke-linecap:round"/>`;
  },
  text: (m, X, Y) => label(X(m.at[0]) + (m.dx ?? 0), Y(m.at[1]) + (m.dy ?? 0), m.text, m),
};
const OVER = new Set(["dots", "cross", "text"]); // these may stick out of the axes

function spread(labels, low, high) { // no two labels on one another
  labels.sort((a, b) => a.y - b.y);
  for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + 15);
  const over = (labels.at(-1)?.y ?? 0) - high;
  if (over > 0) for (let i = labels.length - 1, top = high; i >= 0; i--, top -= 15)
    labels[i].y = Math.max(low, Math.min(labels[i].y, top));
}

function drawPanel(svg, panel, clip, [W, H]) {
  const {y, marks} = panel;
  let {x} = panel;
  const show = axis => axis.format ?? (axis.log ? powers : num), longest = texts => Math.max(0, ...texts.map(t => String(t).length));
  const side = {...MARGIN, left: 14 + (y.label ? 16 : 0) + 6.7 * longest(y.names ?? ticksOf(y).map(show(y)).map(String)),
    right: Math.max(18, 7.4 * longest(marks.map(m => !m.at && m.label || "")) + 12), ...panel.margin};
  if (panel.square) { // a unit is as long across as upwards
    const half = (W - side.left - side.right) * (y.range[1] - y.range[0]) / (H - side.bottom - side.top) / 2, middle = (x.range[0] + x.range[1]) / 2;
    x = {...x, range: [middle - half, middle + half]};
  }
  const X = scaleOf(x, side.left, W - side.right), Y = scaleOf(y, H - side.bottom, side.top);
  const bottom = H - side.bottom, inside = [], over = [], ends = [];
  if (!panel.bare) {
    ticksOf(x, Math.max(2, Math.min(5, Math.floor((W - side.left - side.right) / 45)))).forEach((t, i) => inside.push(`<path class="grid" d="M${near(X(t), side.top)}V${bottom}"/>`)
      && over.push(label(X(t), bottom + 16, x.names?.[i] ?? show(x)(t), {anchor: "middle", colour: "soft", size: 11.5})));
    ticksOf(y).forEach((t, i) => (y.names ? 0 : inside.push(`<path class="grid" d="M${side.left},${Y(t).toFixed(1)}H${W - side.right}"/>`),
      over.push(label(side.left - 6, Y(t) + 4, y.names?.[i] ?? show(y)(t), {anchor: "end", colour: y.names ? "ink" : "soft", size: 11.5}))));
    const across = (side.left + W - side.right) / 2, up = (side.top + bottom) / 2;
    over.push(nameOf(x, [across, H - 6], 2 * Math.min(across, W - across)), y.label ? nameOf(y, [13, up], 2 * up, -90) : "");
  }
  for (const m of marks) {
    const kind = Object.keys(MARKS).find(k => k in m);
    (OVER.has(kind) ? over : inside).push(MARKS[kind](m, X, Y));
    if (m.label) { // direct labels: at the end of a line, or where told
      const points = (m.line ?? m.area).filter(p => X(p[0]) <= W - side.right + 1 && Y(p[1]) >= side.top - 1 && Y(p[1]) <= bottom + 1);
      const [px, py] = m.at ?? points.at(-1) ?? [x.range[1], y.range[1]];
      if (m.at) over.push(label(X(px) + (m.dx ?? 0), Math.max(side.top + 12, Math.min(bottom - 4, Y(py) + (m.dy ?? -5))), m.label, {anchor: "start", ...m, size: FONT, bold: true}));
      else ends.push({y: Y(py) + 4, m, x: X(px) + 6});
    }
  }
  spread(ends, side.top + 10, bottom);
  for (const {x: at, y: height, m} of ends) over.push(label(at, height, m.label, {colour: m.colour, bold: true}));
  svg.innerHTML = `<clipPath id="${clip}"><rect x="${side.left}" y="${side.top}" width="${Math.max(1, W - side.left - side.right)}" height="${Math.max(1, bottom - side.top)}"/></clipPath>`
    + `<g clip-path="url(#${clip})">${inside.join("")}</g><g>${over.join("")}</g><g class="handles"></g><g class="hover"></g>`;
  return {X, Y, panel: {...panel, x}, W, side, bottom};
}

function hover(svg, {X, Y, panel, W, side, bottom}, px, py) {
  const g = svg.querySelector(".hover"), at = X.back(px), show = panel.x.format ?? num;
  const rows = [], dots = [];
  for (const {line, name, colour} of panel.marks) {
    if (!line || !name) continue;
    const k = line.findIndex(([x], i) => i && (line[i - 1][0] - at) * (x - at) <= 0);
    if (k < 0) continue;
    const [[x0, y0], [x1, y1]] = [line[k - 1], line[k]], v = x1 === x0 ? y1 : y0 + (y1 - y0) * (at - x0) / (x1 - x0);
    rows.push([`${name} ${(panel.y.format ?? num)(v)}`, colour]);
    dots.push(MARKS.dots({dots: [[at, v]], colour, size: 3.5}, X, Y));
  }
  const spots = panel.marks.flatMap(m => m.spots ?? []).map(([x, y, words]) => [Math.hypot(X(x) - px, Y(y) - py), words]);
  const close = spots.sort((a, b) => a[0] - b[0])[0];
  if (close && close[0] < 14) rows.splice(0, rows.length, [close[1]]);
  if (!rows.length || px < side.left || px > W - side.right || py > bottom) return void (g.innerHTML = "");
  const lines = rows.length === 1 && close && close[0] < 14 ? rows : [[`${panel.x.short ?? panel.x.label ?? "x"}: ${show(at)}`, "soft"], ...rows];
  const wide = 7 * Math.max(...lines.map(r => r[0].length)) + 14, left = Math.max(2, px + 12 + wide > W ? px - 12 - wide : px + 12);
  g.innerHTML = (dots.length ? `<path class="grid" style="stroke:${ink("soft")}" d="M${near(px, side.top)}V${bottom}"/>${dots.join("")}` : "")
    + `<rect class="tip" x="${left}" y="${side.top + 2}" width="${wide}" height="${17 * lines.length + 8}" rx="4"/>`
    + lines.map(([text, colour], i) => label(left + 7, side.top + 18 + 17 * i, text, {colour})).join("");
}

// The look: AA contrast on white and on JupyterLab's and the site's dark grounds

const LIGHT = {ink: "#22252B", soft: "#565D6B", grid: "#E4E6EB", edge: "#767C89", card: "#FFFFFF", blue: "#0069A6",
  orange: "#B44600", purple: "#6F45C6", green: "#0B7656", red: "#B3261E", pink: "#A53B63", teal: "#0E6A7C", grey: "#6A7180", pale: "#C9CED8"};
const DARK = {ink: "#F0F1F4", soft: "#B4BAC6", grid: "#343840", edge: "#8B93A1", card: "#111111", blue: "#6FB9F0",
  orange: "#FFA05C", purple: "#BBA2FF", green: "#58D3A8", red: "#FF8F85", pink: "#F59ABD", teal: "#62CBDB", grey: "#A3AAB7", pale: "#4A505C"};
const variables = (colours, card) => Object.entries({...colours, card}).map(([k, v]) => `--fl-${k}:${v}`).join(";");
const ground = colour => `var(--jp-layout-color0,var(--pst-color-background,${colour}))`;
const dark = `{${variables(DARK, ground(DARK.card))}}`;
const STYLE = `.fl-dial{${variables(LIGHT, ground(LIGHT.card))};font:14px/1.45 var(--jp-ui-font-family,system-ui,sans-serif);color:${ink()};
background:${ink("card")};border:1px solid ${ink("grid")};border-radius:8px;padding:12px 14px;max-width:1000px;box-sizing:border-box}
body[data-jp-theme-light="false"] .fl-dial,html[data-theme="dark"] .fl-dial,body[data-vscode-theme-kind*="dark"] .fl-dial${dark}
@media(prefers-color-scheme:dark){html:not([data-theme]):not(:has(body[data-jp-theme-light])) .fl-dial${dark}}
.fl-dial *{box-sizing:border-box}.fl-dial p{margin:0;font-size:14px;color:${ink()}}.fl-dial .lead{font-weight:600;font-size:15px}
.fl-dial .tries{display:flex;flex-wrap:wrap;gap:6px 8px;align-items:center;margin:8px 0}
.fl-dial button{font:inherit;font-size:13px;min-height:28px;padding:2px 11px;border-radius:14px;border:1px solid ${ink("edge")};background:transparent;color:${ink()};cursor:pointer}
.fl-dial button[aria-pressed=true]{background:${ink("blue")};border-color:${ink("blue")};color:${ink("card")}}
.fl-dial .knobs{container-type:inline-size;display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:8px 20px;margin:8px 0 4px}
@container (min-width:420px){.fl-dial .knob.wide{grid-column:span 2}}
.fl-dial .knob{min-width:180px}.fl-dial .knob label{display:flex;justify-content:space-between;gap:8px;font-weight:600;margin:0}
.fl-dial output{font-weight:600;color:${ink("blue")};font-variant-numeric:tabular-nums;white-space:nowrap;padding:0;text-align:right}.fl-dial output:empty{display:none}
.fl-dial input[type=range]{width:100%;height:22px;margin:0;accent-color:${ink("blue")};cursor:pointer}
.fl-dial select,.fl-dial input[type=text]{font:inherit;font-size:13px;width:100%;height:26px;margin:0;color:${ink()};background:${ink("card")};border:1px solid ${ink("edge")};border-radius:4px}
.fl-dial small{display:block;margin-top:3px;font-size:12px;line-height:1.3;color:${ink("soft")}}
.fl-dial .panels{display:flex;flex-wrap:wrap;gap:4px 10px;margin-top:8px}
.fl-dial figure{margin:0;flex:1 1 222px;min-width:0}.fl-dial figure.wide{flex:1.6 1 320px}
.fl-dial figcaption{font-weight:600;font-size:13.5px;line-height:1.3;min-height:2.6em;display:flex;align-items:flex-end;padding:0 4px;color:${ink()};text-align:left}
.fl-dial svg{display:block;width:100%;touch-action:pan-y;overflow:hidden}
.fl-dial svg text{font-family:inherit;paint-order:stroke;stroke:${ink("card")};stroke-width:3px;stroke-linejoin:round}
.fl-dial svg .grid{stroke:${ink("grid")};stroke-width:1;fill:none}.fl-dial svg .tip{fill:${ink("card")};stroke:${ink("edge")}}
.fl-dial .say{margin-top:6px;min-height:4.4em;font-size:14.5px}.fl-dial .say[role=alert]{color:${ink("red")}}
.fl-dial .handles circle{cursor:grab;touch-action:none}
.fl-dial :is(button,input,select,circle):focus-visible{outline:2px solid ${ink("blue")};outline-offset:2px}`;

// Controls. Each has a label, a caption, and one of: options [[value, words], ...] or a function of
// the values that gives them; values [...]; text (a placeholder); or min and max with log, step and
// unit. Where one control decides what another offers, the dial's settle(values) makes them agree.

let made = 0;

function control(name, c, id) {
  const unit = c.unit ? ` ${c.unit}` : "";
  const head = `<label for="${id}"><span>${escaped(c.label)}</span><output id="${id}v" style="min-width:${6 + 0.9 * unit.length}ch"></output></label>`;
  const tail = `<small id="${id}c">${escaped(c.caption)}</small>`, about = `id="${id}" aria-describedby="${id}c"`;
  if (c.options) {
    const offered = typeof c.options === "function" ? c.options : () => c.options; // what others say may decide
    let shown = "";
    return {
      html: head + `<select ${about}></select>` + tail,
      read: (e, values) => offered(values)[e.selectedIndex][0],
      write: (e, v, values) => {
        const options = offered(values), html = options.map(([v, words]) => `<option value="${escaped(v)}">${escaped(words)}</option>`).join("");
        if (html !== shown) e.innerHTML = shown = html;
        e.selectedIndex = options.findIndex(o => o[0] === v);
      },
      words: () => "",
    };
  }
  if (c.text) return {
    html: head + `<input type="text" ${about} placeholder="${escaped(c.text)}">` + tail,
    read: e => e.value, write: (e, v) => { if (e.value !== v) e.value = v; }, words: () => "",
  };
  const steps = c.values ? c.values.length - 1 : c.log ? 200 : Math.round((c.max - c.min) / c.step);
  const read = i => c.values ? c.values[i] : c.log ? Number((c.min * (c.max / c.min) ** (i / steps)).toPrecision(2 + (c.max / c.min < 300)))
    : Number((c.min + i * c.step).toFixed(10));
  const place = v => c.values ? c.values.reduce((best, u, i) => Math.abs(u - v) < Math.abs(c.values[best] - v) ? i : best, 0)
    : Math.round(c.log ? steps * Math.log(v / c.min) / Math.log(c.max / c.min) : (v - c.min) / c.step);
  return {
    html: head + `<input type="range" ${about} min="0" max="${steps}" step="1">` + tail,
    read: e => read(Number(e.value)), write: (e, v) => { e.value = place(v); e.setAttribute("aria-valuetext", num(v) + unit); },
    words: v => (c.format ?? num)(v) + unit,
  };
}

export function mountDial(element, dial, data, start, changed = () => {}) {
  const spec = dial(data), settle = spec.settle ?? (v => v), first = settle(structuredClone(start)), id = `fl-dial-${++made}-${Math.random().toString(36).slice(2, 6)}`;
  const knobs = Object.entries(spec.controls).map(([name, c], i) => ({name, id: `${id}-${i}`, wide: c.wide, ...control(name, c, `${id}-${i}`)}));
  const presets = spec.presets ?? [];
  let values = structuredClone(first), views = [], sizes = [], held = null;
  const root = element.getRootNode(), where = root instanceof ShadowRoot ? root : document.head;
  if (!where.querySelector("#fl-dial-style")) where.insertAdjacentHTML("beforeend", `<style id="fl-dial-style">${STYLE}</style>`);
  element.innerHTML = `<div class="fl-dial" role="group" aria-label="${escaped(spec.title)}"><p class="lead">${escaped(spec.lead)}</p>`
    + `<div class="tries"><span>Try:</span>${presets.map(([words], i) => `<button type="button" data-preset="${i}">${escaped(words)}</button>`).join("")}`
    + `<button type="button" data-preset="reset">Reset</button>${spec.play ? `<button type="button" data-play>Play</button>` : ""}</div>`
    + `<div class="knobs">${knobs.map(k => `<div class="knob${k.wide ? " wide" : ""}">${k.html}</div>`).join("")}</div><div class="panels"></div><p class="say" role="status" aria-live="polite"></p></div>`;
  const home = element.querySelector(".fl-dial"), find = s => home.querySelector(s);
  const inputs = new Map(knobs.map(k => [k, find(`#${k.id}`)]));

  // Sizes are read when they change and not at every move, which would lay out the page each time.
  const measure = () => { sizes = Array.from(home.querySelectorAll("svg"), svg => [svg.clientWidth || 380, svg.clientHeight || 270]); };

  function layout(panels) { // once: the panels keep their places
    find(".panels").innerHTML = panels.map((p, i) => `<figure class="${p.wide ? "wide" : ""}" style="${p.basis ? `flex-basis:${p.basis}px` : ""}"><figcaption id="${id}t${i}"></figcaption>`
      + `<svg style="height:${p.height ?? 270}px" role="${p.handles ? "group" : "img"}" aria-labelledby="${id}t${i}"></svg></figure>`).join("");
    home.querySelectorAll("svg").forEach((svg, i) => {
      const at = e => { const box = svg.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };
      svg.addEventListener("pointermove", e => {
        const view = views[i], [px, py] = at(e);
        if (held?.svg === svg) drag(view, held.k, view.X.back(px), view.Y.back(py));
        else hover(svg, view, px, py);
      });
      svg.addEventListener("pointerleave", () => { svg.querySelector(".hover").innerHTML = ""; });
      svg.addEventListener("pointerdown", e => {
        const k = Number(e.target.dataset?.handle ?? -1);
        if (k >= 0) { held = {svg, k}; svg.setPointerCapture(e.pointerId); e.preventDefault(); }
      });
      for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { held = null; });
      svg.addEventListener("keydown", e => {
        const k = Number(e.target.dataset?.handle ?? -1), move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[e.key];
        if (k < 0 || !move) return;
        e.preventDefault();
        const {x, y, handles} = views[i].panel, step = (r, d) => d * (r[1] - r[0]) / (e.shiftKey ? 10 : 50), [px, py] = handles[k].at;
        drag(views[i], k, px + step(x.range, move[0]), py + step(y.range, move[1]));
        svg.querySelector(`[data-handle="${k}"]`).focus();
      });
    });
  }

  function drag({panel: {x, y, handles}}, k, px, py) {
    const inside = (v, [low, high]) => Number(Math.max(low, Math.min(high, v)).toPrecision(3));
    set(handles[k].move(inside(px, x.range), inside(py, y.range)));
  }

  function paint() {
    let scene;
    const say = find(".say");
    try { scene = spec.draw(values, data); } catch (error) {
      if (!(error instanceof RangeError)) throw error; // RangeError: what the reader typed is none
      say.setAttribute("role", "alert");
      return void (say.textContent = error.message);
    }
    if (!views.length) { layout(scene.panels); measure(); }
    home.querySelectorAll("figure").forEach((figure, i) => {
      const panel = scene.panels[i], svg = figure.lastElementChild;
      figure.firstElementChild.textContent = panel.title.replaceAll(" = ", "\u00a0=\u00a0"); // not broken over lines
      views[i] = drawPanel(svg, panel, `${id}p${i}`, sizes[i]);
      const {X, Y} = views[i];
      if (panel.handles) svg.querySelector(".handles").innerHTML = panel.handles.map(({at, words, colour}, k) =>
        `<circle data-handle="${k}" tabindex="0" role="slider" aria-label="${escaped(words)}" aria-valuenow="${at[0]}" aria-valuetext="${escaped(`${num(at[0])}, ${num(at[1])}`)}" `
        + `cx="${X(at[0]).toFixed(1)}" cy="${Y(at[1]).toFixed(1)}" r="9" style="fill:${ink(colour)};stroke:var(--fl-card);stroke-width:2"/>`).join("");
    });
    say.setAttribute("role", "status");
    say.textContent = scene.say;
    for (const [k, input] of inputs) {
      k.write(input, values[k.name], values);
      find(`#${k.id}v`).textContent = k.words(values[k.name]);
    }
    const same = wanted => Object.entries(wanted).every(([name, v]) => JSON.stringify(values[name]) === JSON.stringify(v));
    home.querySelectorAll("[data-preset]").forEach(b => { if (b.dataset.preset !== "reset") b.setAttribute("aria-pressed", same(presets[b.dataset.preset][1])); });
  }

  let clock = null;
  function play(on) { // step through the values of one control; its sentence is read out at the end
    clearInterval(clock);
    const last = spec.controls[spec.play].values.at(-1);
    clock = on ? setInterval(() => {
      const {values: steps} = spec.controls[spec.play];
      set({[spec.play]: steps[steps.indexOf(values[spec.play]) + 1]});
      if (values[spec.play] === last) play(false);
    }, 400) : null;
    if (on && values[spec.play] === last) set({[spec.play]: spec.controls[spec.play].values[0]});
    find("[data-play]").textContent = on ? "Pause" : "Play";
    find(".say").setAttribute("aria-live", on ? "off" : "polite");
  }

  function set(some, told = true) {
    values = settle({...values, ...some});
    paint();
    if (told) changed(values);
  }

  for (const [k, input] of inputs) input.addEventListener("input", () => {
    if (clock) play(false);
    set({[k.name]: k.read(input, values)});
  });
  home.addEventListener("click", e => {
    const {preset: which, play: start} = e.target.dataset;
    if (start !== undefined || clock) play(start !== undefined && !clock);
    if (which) set(structuredClone(which === "reset" ? first : presets[which][1]));
  });
  for (const kind of ["keydown", "mousedown", "pointerdown"]) home.addEventListener(kind, e => e.stopPropagation()); // not for the notebook's own keys
  paint();
  const watch = new ResizeObserver(() => { const old = String(sizes); measure(); if (String(sizes) !== old) paint(); });
  watch.observe(home);
  return {get values() { return values; }, set, close: () => { clearInterval(clock); watch.disconnect(); }};
}

// The two ways in: mount(element, data, values) on any page, and anywidget's render

export const mounter = dials => (element, data, values, changed) => mountDial(element, dials[data.dial], data, values, changed);
export const widgetOf = dials => ({
  render({model, el}) {
    const one = mounter(dials)(el, model.get("data"), model.get("values"), values => {
      model.set("values", values);
      model.save_changes();
    });
    const heard = () => one.set(model.get("values"), false);
    model.on("change:values", () => { if (JSON.stringify(model.get("values")) !== JSON.stringify(one.values)) heard(); });
    return () => one.close();
  },
});
