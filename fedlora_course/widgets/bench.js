// The live bench. Python trains; this shows knobs, curves and the table of runs.
// It stands behind drawing.js in one module and uses its panels, look and numbers.

const BENCH = `.fl-bench{max-width:1180px;display:grid;grid-template-columns:minmax(210px,250px) minmax(0,1fr);gap:4px 20px;padding:10px 14px}
@media(max-width:700px){.fl-bench{grid-template-columns:minmax(0,1fr)}}
.fl-bench .side{display:flex;flex-direction:column;gap:5px}.fl-bench .knob{min-width:0}.fl-bench .knob label{font-size:13px;line-height:1.3}.fl-bench input[type=range]{height:16px}
.fl-bench .act{display:flex;flex-wrap:wrap;gap:6px 8px;align-items:center}.fl-bench details{font-size:13px;color:${ink()}}
.fl-bench summary{cursor:pointer;color:${ink()}}.fl-bench details .knob{margin-top:2px}
.fl-bench button.start{background:${ink("green")};border-color:${ink("green")};color:${ink("card")};font-weight:700}
.fl-bench button:disabled{opacity:.45;cursor:default}
.fl-bench progress{flex:1;height:6px;min-width:80px;accent-color:${ink("blue")}}.fl-bench .act .state{min-width:132px;text-align:right}.fl-bench .state{font-size:13px;color:${ink("soft")}}
.fl-bench figcaption{min-height:0;height:22px}.fl-bench figure{flex:none;margin-top:4px}
.fl-bench .known{min-height:4.6em;font-size:13px;color:${ink("soft")}}.fl-bench .known[aria-busy=true]{opacity:.45}.fl-bench .known b{color:${ink()}}
.fl-bench .runs{height:176px;overflow:auto;border:1px solid ${ink("grid")};border-radius:6px}
.fl-bench table{border-collapse:collapse;width:100%;font-size:13px;margin:0}.fl-bench th{position:sticky;top:0;background:${ink("card")};z-index:1}
.fl-bench :is(td,th){padding:2px 7px;text-align:left;white-space:nowrap;border-bottom:1px solid ${ink("grid")};color:${ink()}}
.fl-bench td button{min-height:22px;padding:0 7px;font-size:12px}.fl-bench .bad{color:${ink("red")};font-weight:600}
.fl-bench .swatch{display:inline-block;width:22px;height:0;border-top:3px solid;vertical-align:middle;margin-right:6px}
.fl-bench .parts{display:flex;width:120px;height:11px;border-radius:3px;overflow:hidden;background:${ink("grid")}}
.fl-bench .key{display:inline-block;width:10px;height:10px;border-radius:2px;margin:0 3px 0 8px}`;
const DASHES = ["none", "7 3", "2 3", "9 3 2 3", "5 2", "1 2"];
const PARTS = [["blue", "noise on B"], ["purple", "noise × noise"], ["green", "what was learned, and noise on A"]];
const LETTER = 7.2; // pixels of a letter in a label, on average
const percent = share => `${Math.round(100 * share)} %`;
let benches = 0;

function pageOf({knobs, measure, rates}, id) {
  const knob = k => {
    const about = `id="${id}${k.key}" data-knob="${k.key}"`, label = `<label for="${id}${k.key}"><span>${escaped(k.label)}</span>`;
    const options = (k.options ?? []).map(([v, words]) => `<option value="${escaped(v)}">${escaped(words)}</option>`).join("");
    return `<div class="knob">${k.options ? `${label}</label><select ${about}>${options}</select>`
      : `${label}<output></output></label><input type="range" ${about} min="0" max="${k.values.length - 1}" step="1">`}</div>`;
  };
  const some = more => knobs.filter(k => Boolean(k.more) === more).map(knob).join("");
  const button = (words, what, more = "") => `<button type="button" data-do="${what}" ${more}>${words}</button>`;
  const keys = PARTS.map(([colour, words]) => `<span class="key" style="background:${ink(colour)}"></span>${words}`).join("");
  return `<style>${STYLE}${BENCH}</style><div class="fl-dial fl-bench" role="group" aria-label="live bench">
<div class="side">${some(false)}
<div class="act">${button("▶ Train", "train", 'class="start" title="both methods with these settings"')}${button("▶ Sweep η", "sweep", `class="start" title="both methods at the learning rates ${rates.join(", ")}"`)}
${button("Stop", "stop")}</div><details><summary>More settings</summary>${some(true)}</details></div>
<div><div class="act"><span>Show ${escaped(measure)} over</span><button type="button" data-over="round">rounds</button><button type="button" data-over="lr">learning rate</button>
<progress max="1" value="0" aria-label="share that is trained"></progress><span class="state" role="status"></span></div>
<figure><figcaption id="${id}t"></figcaption><svg style="height:270px" role="img" aria-labelledby="${id}t"></svg></figure>
<div class="known" role="status"></div><div class="runs" tabindex="0" role="region" aria-label="runs"><table></table></div>
<p class="state">Energy of the trained product:${keys}</p></div></div>`;
}

function mountBench(element, model) {
  const get = name => model.get(name), setup = get("setup"), id = `fl-bench-${++benches}-${Math.random().toString(36).slice(2, 6)}`;
  const specs = new Map(setup.knobs.map(k => [k.key, k])), send = (what, given = {}) => model.send({do: what, ...given});
  let over = "round", view = null, waiting = 0, closed = false, later = 0;
  element.innerHTML = pageOf(setup, id);
  const home = element.querySelector(".fl-bench"), find = s => home.querySelector(s), all = s => [...home.querySelectorAll(s)], svg = find("svg");

  // What is turned is sent when the hand rests: while the kernel is busy moves do not pile up.
  function turn(key, text) {
    model.set("values", {...get("values"), [key]: text});
    writeKnobs();
    clearTimeout(later);
    later = setTimeout(flush, 150);
  }
  function flush() {
    clearTimeout(later);
    later = 0;
    model.save_changes();
  }

  function writeKnobs() {
    const values = get("values");
    for (const input of all("[data-knob]")) {
      const {key, values: stops, options} = specs.get(input.dataset.knob), text = values[key];
      if (options && !options.some(([v]) => v === text)) input.add(new Option(text, text));
      input.value = options ? text : stops.indexOf(text);
      if (options) continue;
      input.closest(".knob").querySelector("output").textContent = text;
      input.setAttribute("aria-valuetext", text);
    }
    find("[data-knob=epsilon]").disabled = values.protection !== "noise";
  }

  function writeFacts() {
    const {methods = [], problem, stale} = get("facts"), box = find(".known");
    const terms = known => Object.entries(known).map(([term, text]) => `${term} <b>${escaped(text)}</b>`).join(" · ") || "no noise";
    box.setAttribute("aria-busy", Boolean(stale));
    box.innerHTML = problem ? `<span class="bad">${escaped(problem)}</span>`
      : `Known before a run (ρ: noise that A takes up; v: noise on an output):` + methods.map(({slug, known}) => `<br><b>${escaped(setup.names[slug])}</b> ${terms(known)}`).join("");
  }

  function writeStatus() {
    const {text, share, alive} = get("status");
    find(".state").textContent = text;
    find("progress").value = share;
    for (const b of all('[data-do="train"],[data-do="sweep"]')) b.disabled = alive;
    find('[data-do="stop"]').disabled = !alive;
  }

  // The panel

  const nameOf = row => setup.names[row.values.method];
  const differing = rows => [...specs.keys()].filter(key => !["method", "beside", "seeds"].includes(key) && new Set(rows.map(row => row.values[key])).size > 1);
  function wordsOf(row, keys) { // what tells a row from the others
    const words = key => specs.get(key).options?.find(([v]) => v === row.values[key])?.[1] ?? `${specs.get(key).symbol}${row.values[key]}`;
    return [nameOf(row), ...keys.map(words)].join(" ");
  }
  const before = row => get("table").filter(r => r.values.method === row.values.method && r.id < row.id).length;
  const dashOf = row => DASHES[before(row) % DASHES.length];
  // Of its two colours the one that is made for the ground.
  const colours = () => Object.entries(setup.colours).map(([slug, [light, dark]]) => `--fl-of-${slug.replace(/\W/g, "_")}:color-mix(in oklab,${dark} calc(100%*var(--fl-dark)),${light})`).join(";");
  const colourOf = slug => `of-${slug.replace(/\W/g, "_")}`;

  // [x, mean, low, high] -> the band, the line and its dots. One seed has no interval, and an open dot.
  function marksOf(points, colour, looks, dots) {
    const sure = points.filter(p => p[2] !== null), back = [...sure].reverse();
    const area = sure.length > 1 ? [{kind: "area", x: [...sure, ...back].map(p => p[0]), y: [...sure.map(p => p[3]), ...back.map(p => p[2])], colour}] : [];
    const line = {kind: "line", x: points.map(p => p[0]), y: points.map(p => p[1]), colour, ...looks};
    return [...area, line, ...(dots.length ? [{kind: "dots", x: dots.map(p => p[0]), y: dots.map(p => p[1]), colour, size: 4.5, open: dots[0][2] === null}] : [])];
  }

  function overRounds(rows) {
    const keys = differing(rows);
    return rows.flatMap(row => {
      const points = row.series.filter(p => p[1] !== null), label = wordsOf(row, keys);
      return marksOf(points, colourOf(row.values.method), {name: label, label, dash: dashOf(row)}, points.slice(-1));
    });
  }

  // A line for each method of a sweep; a run alone is a dot of its own, and belongs to no line.
  function overRates(rows) {
    const keys = differing(rows).filter(key => key !== "lr"), lines = new Map();
    for (const row of rows.filter(row => row.series.at(-1)?.[1] != null)) {
      const line = row.sweep === null ? row.id : `${row.sweep} ${row.values.method}`;
      lines.set(line, [...(lines.get(line) ?? []), row]);
    }
    const drawn = new Map(); // method -> lines so far
    return [...lines.values()].flatMap(some => {
      const points = some.map(row => [Number(row.values.lr), ...row.series.at(-1).slice(1)]), name = wordsOf(some[0], keys);
      const {method} = some[0].values, line = some[0].sweep !== null, k = drawn.get(method) ?? 0;
      if (line) drawn.set(method, k + 1);
      return marksOf(points, colourOf(method), {name, label: line ? name : "", dash: DASHES[k % DASHES.length]}, points);
    });
  }

  function paint() {
    waiting = 0;
    if (closed) return;
    if (!home.clientWidth) return void setTimeout(repaint, 200); // out of the page for a moment, as when themes change
    home.style.cssText = colours();
    const rows = get("table"), values = get("values"), swept = over === "lr", start = rows[0]?.series[0]?.[1] ?? null;
    const marks = swept ? overRates(rows) : overRounds(rows), ys = [start ?? 0.5, ...marks.filter(m => m.y).flatMap(m => m.y)].filter(Number.isFinite);
    const rates = [...setup.rates, values.lr, ...rows.map(row => row.values.lr)].map(Number);
    const rounds = Math.max(2, ...rows.map(row => Number(row.values.rounds)), rows.length ? 0 : Number(values.rounds));
    const accuracy = setup.measure === "accuracy", low = Math.min(...ys), top = Math.max(...ys);
    const x = swept ? {label: "learning rate η", log: true, range: [0.9 * Math.min(...rates), 1.1 * Math.max(...rates)], ticks: setup.rates.map(Number), format: v => num(v)}
      : {label: "round", range: [0, rounds], format: v => String(Math.round(v))};
    const range = accuracy ? [Math.max(0, Math.floor(10 * low - 0.5) / 10), 1] : [Math.min(0, low), 1.1 * top];
    if (start !== null) marks.unshift({kind: "line", x: x.range, y: [start, start], colour: "grey", dash: "2 3", width: 1.2},
      {kind: "text", words: `before ${fixed(start)}`, x: x.range[0], y: start, dx: 5, dy: 14, colour: "soft", size: 11.5});
    if (swept) for (const [i, {slug, known}] of (get("facts").methods ?? []).entries()) { // where the suggestion stands
      const rate = Number(/^η = (.*)$/.exec(known.suggested ?? "")?.[1]);
      if (rate) marks.push({kind: "line", x: [rate, rate], y: range, colour: colourOf(slug), dash: "1 4", width: 1.6},
        {kind: "text", words: "suggested", x: rate, y: range[0], dx: 4, dy: -5 - 13 * i, colour: colourOf(slug), size: 11});
    }
    const most = 0.38 * svg.clientWidth; // lines need more room than their names
    for (const m of marks) if (m.label?.length > most / LETTER) m.label = `${m.label.slice(0, most / LETTER - 1)}…`;
    const right = Math.max(20, ...marks.map(m => 14 + LETTER * (m.label?.length ?? 0)));
    find("figcaption").textContent = `${setup.measure} on the test examples${swept ? " after the last round" : ""}`;
    view = drawPanel(svg, {x, y: {range, format: v => num(v)}, marks, margin: {right}}, `${id}p`, [svg.clientWidth || 400, svg.clientHeight || 270]);
    for (const b of all("[data-over]")) b.setAttribute("aria-pressed", b.dataset.over === over);
  }
  const repaint = () => { waiting ||= requestAnimationFrame(paint); };

  // The table

  function barOf(parts) {
    const words = PARTS.map(([, name], i) => `${name} ${percent(parts[i])}`).join(", ");
    return parts.length ? `<div class="parts" role="img" aria-label="${words}" title="${words}">${PARTS.map(([colour], i) => `<span style="width:${100 * parts[i]}%;background:${ink(colour)}"></span>`).join("")}</div>` : "not known";
  }

  function scoreOf(row) {
    const [, value, low, high] = row.series.at(-1) ?? [0, null];
    return (value === null ? "–" : fixed(value, 3)) + (low != null ? ` ± ${fixed((high - low) / 2, 3)}` : "");
  }

  function writeTable() {
    const rows = get("table"), keys = differing(rows), held = document.activeElement, focus = home.contains(held) ? held.dataset.at : null;
    const act = (row, words, what, help) => `<button type="button" data-at="${row.id}${what}" data-row="${row.id}" data-act="${what}" title="${help}">${words}</button>`;
    const line = row => `<tr><td><span class="swatch" style="color:${ink(colourOf(row.values.method))};border-top-style:${dashOf(row) === "none" ? "solid" : "dashed"}"></span><span data-label>${escaped(wordsOf(row, keys))}</span></td>`
      + `<td><b>${scoreOf(row)}</b></td><td>${escaped(row.epsilon)}</td><td>${barOf(row.parts)}</td><td class="${/:/.test(row.state) ? "bad" : ""}">${escaped(row.state)}</td>`
      + `<td>${act(row, "forget", "forget", "take this run out")}</td></tr>`;
    find("table").innerHTML = `<thead><tr><th>run</th><th>${escaped(setup.measure)}</th><th>ε spent</th><th>its product</th><th>state</th><th>${rows.length ? `<button type="button" data-do="forget">forget all</button>` : "actions"}</th></tr></thead><tbody>`
      + (rows.map(line).join("") || `<tr><td colspan="6">No run yet. Train adds a row for each method, which keeps its settings.</td></tr>`) + "</tbody>";
    if (focus) find(`[data-at="${focus}"]`)?.focus();
  }

  home.addEventListener("input", e => {
    const spec = specs.get(e.target.dataset.knob);
    if (spec) turn(spec.key, spec.options ? e.target.value : spec.values[e.target.value]);
  });
  home.addEventListener("click", e => {
    const {do: what, over: axis, row, act} = e.target.dataset;
    if (later) flush();
    if (what === "sweep" || what === "train") over = what === "sweep" ? "lr" : "round";
    if (what) send(what);
    if (axis) over = axis;
    if (act === "forget") send("forget", {id: Number(row)});
    repaint();
  });
  watchPointer(svg, () => view);
  keepEvents(home);

  const heard = {values: () => { writeKnobs(); repaint(); }, facts: () => { writeFacts(); repaint(); }, status: writeStatus, table: () => { writeTable(); repaint(); }};
  for (const [name, act] of Object.entries(heard)) {
    model.on(`change:${name}`, act);
    act();
  }
  const watch = new ResizeObserver(repaint);
  watch.observe(home);
  return () => {
    closed = true;
    watch.disconnect();
    for (const [name, act] of Object.entries(heard)) model.off(`change:${name}`, act);
  };
}

export default { render({model, el}) { return mountBench(el, model); } };
