// The live bench. Python trains and streams small records; this draws them.
// It stands behind drawing.js in one module and uses its panels, look and numbers.

const BENCH = `.fl-bench{max-width:1180px}.fl-bench .knobs{gap:4px 18px}
.fl-bench .knob input[type=text]{width:84px;text-align:right;height:24px;font-weight:600}
.fl-bench .knob label{align-items:center;min-height:26px}.fl-bench .knob label span{flex:1}
.fl-bench .knob.wrong :is(input,select){border-color:${ink("red")}}.fl-bench .knob.wrong small{color:${ink("red")}}
.fl-bench .first{display:flex;flex-wrap:wrap;gap:4px 22px;align-items:flex-start}.fl-bench .first .knob{flex:1 1 200px}.fl-bench .go{flex:1 1 310px}
.fl-bench .act{display:flex;flex-wrap:wrap;gap:8px;align-items:center;padding-top:4px}
.fl-bench button.start{background:${ink("green")};border-color:${ink("green")};color:${ink("card")};font-weight:700;font-size:15px;padding:4px 20px}
.fl-bench button[aria-expanded=true]{background:${ink("grid")}}.fl-bench button:disabled{opacity:.45;cursor:default}
.fl-bench progress{width:100%;height:6px;accent-color:${ink("blue")}}
.fl-bench dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:2px 14px;margin:6px 0;padding:6px 10px;border-radius:6px;background:color-mix(in srgb,${ink("grid")} 45%,transparent);min-height:82px;align-content:start}
.fl-bench dl[aria-busy=true] div:not(.rate){opacity:.45}.fl-bench :is(dt,dd){float:none;width:auto;margin:0;padding:0}
.fl-bench dt{font-size:12px;color:${ink("soft")};font-weight:400}.fl-bench dd{white-space:nowrap;overflow:hidden;text-overflow:ellipsis;font-weight:600;font-variant-numeric:tabular-nums}
.fl-bench .rate button{min-height:24px;padding:0 10px;line-height:20px}.fl-bench .rate{grid-column:1/-1;min-height:30px;line-height:30px;font-size:12.5px;color:${ink("soft")}}.fl-bench .rate :is(dt,dd){display:inline;font:inherit;color:inherit;white-space:normal}
.fl-bench .group{border:1px solid ${ink("grid")};border-radius:6px;padding:6px 10px;margin:4px 0}.fl-bench [hidden]{display:none!important}
.fl-bench .tries{margin:5px 0}.fl-bench .state{min-height:21px;font-size:13px!important;color:${ink("soft")}!important}
.fl-bench .state[role=alert]{color:${ink("red")}!important;font-weight:600}
.fl-bench .axes{display:flex;flex-wrap:wrap;gap:4px 8px;align-items:center;font-size:13px}.fl-bench .axes select{width:auto;max-width:190px}
.fl-bench .panels{align-items:flex-start}.fl-bench .main{flex:3 1 min(430px,100%);min-width:0}.fl-bench .side{flex:1 1 200px;min-width:0}
.fl-bench figure{flex:none}.fl-bench figcaption{min-height:0;height:24px}
.fl-bench .runs{height:190px;overflow:auto;border:1px solid ${ink("grid")};border-radius:6px;margin-top:4px}
.fl-bench table{border-collapse:collapse;width:100%;font-size:13px;margin:0}.fl-bench th{position:sticky;top:0;background:${ink("card")};z-index:1}
.fl-bench :is(td,th){padding:2px 7px;text-align:left;white-space:nowrap;border-bottom:1px solid ${ink("grid")};color:${ink()}}
.fl-bench tr.off{opacity:.6}.fl-bench td button{min-height:24px;padding:0 7px;font-size:12px}.fl-bench .bad{color:${ink("red")};font-weight:600}
.fl-bench .swatch{display:inline-block;width:22px;height:0;border-top:3px solid;vertical-align:middle;margin:0 6px}
.fl-bench textarea{width:100%;height:150px;font:12px/1.4 var(--jp-code-font-family,monospace);color:${ink()};background:${ink("card")};border:1px solid ${ink("edge")};border-radius:4px}
.fl-bench .say{min-height:3em}`;
const DASHES = ["none", "7 3", "2 3", "9 3 2 3", "5 2", "1 2"];
const TONES = [72, 44, 90, 26]; // runs of one method: shares of its colour, the rest is ink
const NAMES = {epsilon: "ε spent", deviation: "deviation (relative)", clipped: "share that was clipped", bytes_up: "bytes up in a round", bytes_down: "bytes down in a round"};
const titleOf = name => NAMES[name] ?? name;
const shortened = (words, most) => words.length > most ? `${words.slice(0, most - 1).trimEnd()}…` : words; // the table says all
const LETTER = 7.2; // pixels of a letter in a label, on average
const numberOf = text => text === "∞" || text === "all" ? Infinity : Number(text);
let benches = 0;

// The axis of a knob: numbers stand at their place, on a log scale, since all of them are positive; what is
// endless stands a step behind the largest. Words stand side by side.
function knobAxis(texts, options) {
  const stops = [...texts].sort((a, b) => numberOf(a) - numberOf(b) || 0), numbers = stops.map(numberOf).filter(Number.isFinite);
  if (options || !numbers.length) return {range: [-0.35, Math.max(1, stops.length) - 0.65], ticks: stops.map((_, i) => i), names: stops, format: v => stops[Math.round(v)] ?? "", at: text => stops.indexOf(text)};
  const step = Math.max(2, (numbers.at(-1) / numbers[0]) ** (1 / numbers.length)), end = numbers.at(-1) * step;
  const at = text => Math.min(numberOf(text), end), ticks = stops.map(at), edge = (ticks.at(-1) / ticks[0]) ** 0.06 * 1.1;
  return {log: true, range: [ticks[0] / edge, ticks.at(-1) * edge], ticks, names: stops, format: v => v > end * 0.99 ? stops.at(-1) : num(v), at};
}

function nearestStop(stops, text) {
  if (stops.includes(text)) return stops.indexOf(text);
  const far = stop => Math.abs(numberOf(stop) - numberOf(text));
  return stops.reduce((best, stop, i) => far(stop) < far(stops[best]) ? i : best, 0);
}

function pageOf(setup, id) {
  const knob = k => {
    const about = `id="${id}${k.key}" data-knob="${k.key}"`, label = `<label for="${id}${k.key}"><span>${escaped(k.label)}</span>`;
    const options = (k.options ?? []).map(([v, words]) => `<option value="${escaped(v)}">${escaped(words)}</option>`).join("");
    const input = k.options ? `${label}</label><select ${about}>${options}</select>`
      : `${label}<input type="text" ${about} autocomplete="off" spellcheck="false">${k.unit ? ` ${escaped(k.unit)}` : ""}</label>`
        + `<input type="range" data-slide="${k.key}" min="0" max="${k.values.length - 1}" step="1" aria-label="${escaped(k.label)}, slider">`;
    return `<div class="knob" data-of="${k.key}">${input}<small>${escaped(k.caption)}</small></div>`;
  };
  const group = name => setup.knobs.filter(k => k.group === name).map(knob).join("");
  const button = (words, what, help, more = "") => `<button type="button" data-do="${what}" title="${escaped(help)}" ${more}>${words}</button>`;
  const figure = (name, height) => `<figure><figcaption id="${id}${name}t"></figcaption><svg data-panel="${name}" style="height:${height}px" role="img" aria-labelledby="${id}${name}t"></svg></figure>`;
  const turned = setup.knobs.filter(k => k.key !== "seed").map(k => `<option value="${k.key}">${escaped(k.label)}</option>`).join("");
  const groups = Object.entries(setup.groups);
  return `<style>${STYLE}${BENCH}</style><div class="fl-dial fl-bench" role="group" aria-label="live bench">
<div class="first">${group("")}<div class="go"><div class="act">${button("▶ Start", "start", "train with these settings", 'class="start"')}${button("Pause", "pause", "pause after this local step")}
${button("Stop", "stop", "stop after this local step")}${button("Reset", "reset", "stop, put every control back, and forget the runs")}</div>
<progress max="1" value="0" aria-label="local steps done"></progress><p class="state" role="status"></p></div></div>
<div class="tries presets"></div><dl></dl>
<div class="tries"><span>More settings:</span>${groups.map(([name, words]) => `<button type="button" data-open="${name}" aria-expanded="false" aria-controls="${id}g${name}">${words}</button>`).join("")}</div>
${groups.map(([name]) => `<div class="group" id="${id}g${name}" hidden><div class="knobs">${group(name)}</div></div>`).join("")}
<div class="group"><div class="knobs">
<div class="knob"><label for="${id}sk"><span>sweep: turn this knob</span></label><select id="${id}sk" data-sweep="key">${turned}</select><small>all others stay as they are</small></div>
<div class="knob"><label for="${id}sv"><span>through these values</span></label><input type="text" id="${id}sv" data-sweep="values" style="width:100%;text-align:left"><small>two to eight, apart by commas</small></div>
<div class="knob"><label for="${id}sn"><span>seeds</span><input type="text" id="${id}sn" data-sweep="seeds" inputmode="numeric"></label><small>runs of each value; the band is the 95 % interval of their mean</small></div>
<div class="act">${button("▶ Sweep", "run_sweep", "train at every value, two runs at once, in the background", 'class="start"')}</div></div></div>
<div class="panels"><div class="main"><div class="axes"><label for="${id}m">show</label><select id="${id}m" data-axis="measure"></select><label for="${id}x">against</label><select id="${id}x" data-axis="against"></select></div>${figure("main", 300)}</div>
<div class="side">${figure("epsilon", 138)}${figure("deviation", 138)}</div></div>
<p class="say" role="status" aria-live="polite"></p>
<div class="runs" tabindex="0" role="region" aria-label="runs"><table></table></div>
<div class="tries"><span class="told" role="status"></span></div>
<details><summary>Text of the last copy</summary><textarea readonly aria-label="text of the last copy"></textarea></details></div>`;
}

function mountBench(element, model) {
  const get = name => model.get(name), setup = get("setup"), id = `fl-bench-${++benches}-${Math.random().toString(36).slice(2, 6)}`;
  const send = (what, given = {}) => model.send({do: what, ...given});
  const series = new Map(), views = new Map(); // row -> measure -> [round, mean, low, high]; panel -> what was drawn
  let against = "round", measure = setup.measure, waiting = 0, closed = false, heardAt = 0;
  element.innerHTML = pageOf(setup, id);
  const home = element.querySelector(".fl-bench"), find = s => home.querySelector(s), all = s => [...home.querySelectorAll(s)];
  const specs = new Map(setup.knobs.map(k => [k.key, k]));

  // Controls. What is turned is sent when the hand rests: while the kernel is busy moves do not pile up.

  let later = 0, wanted = {};
  function turn(key, text) {
    wanted[key] = text;
    clearTimeout(later);
    later = setTimeout(flush, 60);
  }
  function flush() {
    clearTimeout(later);
    if (Object.keys(wanted).length) send("set", {values: wanted});
    wanted = {};
  }

  function writeKnobs() {
    const values = get("values"), errors = get("errors");
    for (const [key, k] of specs) {
      const input = find(`[data-knob="${key}"]`), box = input.closest(".knob"), slide = box.querySelector("[data-slide]");
      if (!(key in wanted) && document.activeElement !== input) input.value = values[key];
      if (k.options && input.selectedIndex < 0) input.add(new Option(values[key], values[key], true, true));
      if (slide && !(key in wanted)) slide.value = nearestStop(k.values, values[key]);
      slide?.setAttribute("aria-valuetext", `${values[key]} ${k.unit ?? ""}`);
      box.classList.toggle("wrong", key in errors);
      input.setAttribute("aria-invalid", key in errors);
      // Beside the field its name and value in Python's notation say nothing.
      box.querySelector("small").textContent = errors[key]?.replace(/^\w+=.*?: (?=expected)/, "") ?? k.caption;
    }
    const presets = get("setup").presets ?? [], box = find(".presets");
    const held = home.contains(document.activeElement) ? document.activeElement.dataset.preset : null;
    box.innerHTML = presets.length ? "<span>Try:</span>" + presets.map(([name, words, on]) => `<button type="button" data-preset="${escaped(name)}" title="${escaped(words)}" aria-pressed="${on}">${escaped(name)}</button>`).join("") : "";
    if (held) all("[data-preset]").find(b => b.dataset.preset === held)?.focus();
  }

  function writeFacts() {
    const {words, offer} = get("advice"), fact = ([term, text]) => `<div><dt>${escaped(term)}</dt><dd title="${escaped(text)}">${escaped(text)}</dd></div>`;
    find("dl").setAttribute("aria-busy", get("stale"));
    find("dl").innerHTML = get("facts").map(fact).join("") + (words ? `<div class="rate"><dt>learning rate</dt> <dd>${escaped(get("values").lr)} · ${escaped(words)} `
      + `${offer ? `<button type="button" data-do="suggest">use it</button>` : ""}</dd></div>` : "");
  }

  function writeStatus() {
    const {state, text, done, total, error} = get("status"), line = find(".state"), alive = state === "running" || state === "paused";
    line.setAttribute("role", error ? "alert" : "status");
    line.textContent = error || text;
    Object.assign(find("progress"), {max: Math.max(1, total), value: done});
    for (const b of all('[data-do="start"],[data-do="run_sweep"]')) b.disabled = alive;
    find('[data-do="stop"]').disabled = find('[data-do="pause"]').disabled = !alive;
    find('[data-do="pause"]').textContent = state === "paused" ? "Resume" : "Pause";
  }

  function writeSweep() {
    for (const [name, value] of Object.entries(get("sweep"))) find(`[data-sweep=${name}]`).value = value;
  }

  // The panels

  const shown = () => get("table").filter(row => row.shown);
  const before = row => get("table").filter(r => r.colours[0] === row.colours[0] && r.id < row.id && r.shown).length;
  // Of its two colours the one that is made for the ground.
  const ofGround = ([light, dark]) => `color-mix(in oklab,${dark} calc(100%*var(--fl-dark)),${light})`;
  const tones = () => get("table").map(row => `--fl-run${row.id}:color-mix(in oklab,${ofGround(row.colours)} ${TONES[before(row) % TONES.length]}%,var(--fl-ink))`).join(";");
  const dashOf = row => DASHES[before(row) % DASHES.length];

  // [x, mean, low, high] -> the band, the line and its last dot. One seed has no interval, and an open dot.
  function marksOf(points, colour, looks) {
    const [x, y] = [0, 1].map(k => points.map(p => p[k])), sure = points.filter(p => p[2] !== null), back = [...sure].reverse();
    const area = sure.length ? [{kind: "area", x: [...sure, ...back].map(p => p[0]), y: [...sure.map(p => p[3]), ...back.map(p => p[2])], colour}] : [];
    return [...area, {kind: "line", x, y, colour, ...looks}, ...dotsOf(points.slice(-1), colour, 4)];
  }
  const dotsOf = (points, colour, size) => [false, true].map(open => [open, points.filter(p => (p[2] === null) === open)]).filter(([, some]) => some.length)
    .map(([open, some]) => ({kind: "dots", x: some.map(p => p[0]), y: some.map(p => p[1]), colour, size, open}));

  function overRounds(name) {
    const heads = new Set(shown().map(row => row.parts[0][1]));
    return shown().flatMap(row => {
      const points = (series.get(row.id)?.[name] ?? []).filter(p => p[1] !== null);
      const label = heads.size > 1 ? row.label : row.parts.slice(1).map(p => p[1]).join(" ") || row.label;
      return points.length ? marksOf(points, `run${row.id}`, {name: row.label, label, dash: dashOf(row)}) : [];
    });
  }

  // The last values: a line for each sweep and label without this knob; a single run is a dot of its own.
  function overKnob(name, key) {
    const rows = shown().filter(row => series.get(row.id)?.[name]?.at(-1)?.[1] != null);
    const axis = knobAxis([...new Set(rows.map(row => row.recipe[key]))], specs.get(key).options);
    const lines = new Map();
    for (const row of rows) {
      const label = row.parts.filter(p => p[0] && p[0] !== key).map(p => p[1]).join(" "), one = row.sweep ?? `run ${row.id}`;
      lines.set(`${one}: ${label}`, [label, [...(lines.get(`${one}: ${label}`)?.[1] ?? []), row]]);
    }
    const named = new Set();
    const marks = [...lines.values()].flatMap(([label, some]) => {
      const points = some.map(row => [axis.at(row.recipe[key]), ...series.get(row.id)[name].at(-1).slice(1)]).sort((a, b) => a[0] - b[0]);
      const colour = key === "method" ? "ink" : `run${some[0].id}`;
      const bars = points.filter(p => p[2] !== null).map(([x, , low, high]) => ({kind: "line", x: [x, x], y: [low, high], colour, width: 2}));
      const line = key === "method" || some.length < 2 ? [] : marksOf(points, colour, {name: label});
      const dots = dotsOf(points, colour, 5);
      if (key !== "method" && !named.has(label)) dots.at(-1).label = label;
      named.add(label);
      return [...line, ...bars, ...dots];
    });
    return {marks, axis};
  }

  function rangeOf(name, marks) {
    const ys = marks.flatMap(m => m.y).filter(Number.isFinite), top = Math.max(...ys, 0), low = Math.min(...ys, 0);
    if (name.startsWith("accuracy")) return [Math.max(0, Math.floor(10 * Math.min(get("setup").start ?? 0.5, ...ys) - 0.5) / 10), 1];
    const promised = numberOf(get("values").epsilon);
    if (name === "epsilon") return [0, 1.15 * Math.max(top, Number.isFinite(promised) ? promised : 1)];
    if (name === "deviation") return [0, Math.max(0.5, 1.12 * top)];
    return [low, top > 0 ? 1.12 * top : 1];
  }

  function panelOf(name, axis, small, width) {
    const {marks, axis: knob} = axis === "round" ? {marks: overRounds(name)} : overKnob(name, axis);
    const rounds = Math.max(2, ...(marks.length ? shown().map(row => Number(row.recipe.rounds)) : [Number(get("values").rounds) || 2]));
    const range = rangeOf(name, marks), start = name === setup.measure ? get("setup").start : null;
    const x = axis === "round" ? {label: small ? "" : "round", range: [0, rounds], ticks: ticksOf({range: [0, rounds]}).filter(Number.isInteger), format: v => String(Math.round(v))}
      : {label: specs.get(axis).label, ...knob};
    if (start != null) marks.unshift({kind: "line", x: x.range, y: [start, start], colour: "grey", dash: "2 3", width: 1.2},
      {kind: "text", words: `before ${fixed(start)}`, x: x.range[0], y: start, dx: 5, dy: 14, colour: "soft", size: 11.5});
    if (small) for (const m of marks) delete m.label;
    const most = Math.min(200, 0.38 * width); // lines need more room than their names
    for (const m of marks) if (m.label) m.label = shortened(m.label, Math.floor((most - 14) / LETTER));
    const right = small ? 10 : Math.min(most, Math.max(96, ...marks.filter(m => m.label).map(m => 14 + LETTER * m.label.length)));
    return {x, y: {range, format: v => num(v)}, marks, margin: {right, ...(small ? {left: 40, bottom: 22} : {})}};
  }

  function fill(select, options, now) {
    const html = options.map(([v, words]) => `<option value="${v}">${escaped(words)}</option>`).join("");
    if (select.dataset.html !== html) { select.innerHTML = html; select.dataset.html = html; }
    select.value = now;
  }
  const differing = () => [...specs.keys()].filter(key => key !== "seed" && new Set(get("table").map(row => row.recipe[key])).size > 1);

  function paint() {
    waiting = 0;
    if (closed) return;
    if (!home.clientWidth) return void setTimeout(repaint, 200); // out of the page for a moment, as when themes change
    home.style.cssText = tones();
    const keys = differing(), axis = keys.includes(against) ? against : "round"; // of a sweep's first run nothing differs yet
    fill(find("[data-axis=measure]"), setup.measures.map(name => [name, titleOf(name)]), measure);
    fill(find("[data-axis=against]"), [["round", "round"], ...keys.map(key => [key, specs.get(key).label])], axis);
    const captions = {main: `${titleOf(measure)}${measure === setup.measure ? " on the test examples" : ""}${axis === "round" ? "" : " at the end"}`, epsilon: titleOf("epsilon"), deviation: titleOf("deviation")};
    for (const svg of all("[data-panel]")) {
      const name = svg.dataset.panel, main = name === "main", width = svg.clientWidth || 200;
      const panel = panelOf(main ? measure : name, main ? axis : "round", !main, width);
      // A panel without a mark says nothing: nobody was measured.
      svg.parentElement.hidden = !main && get("table").some(row => series.get(row.id)?.[name]?.length > 1) && !panel.marks.some(m => m.kind === "line" && m.x.length > 1);
      svg.previousElementSibling.textContent = captions[name];
      views.set(svg, drawPanel(svg, panel, `${id}${name}p`, [width, svg.clientHeight || 138]));
    }
    find(".say").textContent = get("say");
    if (heardAt) home.dataset.lag = Math.round(performance.now() - heardAt);
    heardAt = 0;
  }
  const repaint = () => { waiting ||= requestAnimationFrame(paint); };

  // The table of runs

  function writeTable() {
    const table = get("table"), held = document.activeElement, focus = home.contains(held) ? held.dataset.at : null;
    const keys = ["epsilon", ...differing().filter(key => !["method", "epsilon"].includes(key))];
    const act = (row, words, what, help) => `<button type="button" data-at="${row.id}${what}" data-row="${row.id}" data-act="${what}" title="${help}">${words}</button>`;
    const line = row => `<tr class="${row.shown ? "" : "off"}"><td>${act(row, row.shown ? "hide" : "show", "shown", "draw this run or not")}`
      + `<span class="swatch" style="color:${ink(`run${row.id}`)};border-top-style:${dashOf(row) === "none" ? "solid" : "dashed"}"></span><span data-label>${escaped(row.label)}</span></td>`
      + keys.map(key => `<td>${escaped(row.recipe[key])}</td>`).join("") + `<td><b>${escaped(row.score)}</b></td><td>${escaped(row.spent)}</td>`
      + `<td class="${/diverged|collapsed|fail|expected|Error/.test(row.note) ? "bad" : ""}">${escaped(row.note)}</td><td>${act(row, "cell", "cell", "copy the code that repeats this run")} ${act(row, "delete", "deleted", "forget this run")}</td></tr>`;
    const heads = keys.map(key => `<th title="${escaped(specs.get(key).caption)}">${escaped(specs.get(key).symbol ?? specs.get(key).label)}</th>`).join("");
    find("table").innerHTML = `<thead><tr><th>run</th>${heads}<th>${escaped(titleOf(setup.measure))}</th><th>ε spent</th><th>state</th><th>actions</th></tr></thead><tbody>`
      + (table.map(line).join("") || `<tr><td colspan="${keys.length + 5}">No run yet. Each Start adds a row, which keeps its settings.</td></tr>`) + "</tbody>";
    if (focus) find(`[data-at="${focus}"]`)?.focus();
  }

  async function copy(text) {
    const area = find("textarea");
    area.value = text;
    try { await navigator.clipboard.writeText(text); } catch {
      area.closest("details").open = true;
      area.select();
      document.execCommand("copy");
    }
    find(".told").textContent = "copied: a cell that repeats the run";
    setTimeout(() => { find(".told").textContent = ""; }, 2500);
  }

  // What the hand does

  function unfold(name) { // one group at a time
    for (const b of all("[data-open]")) {
      const on = b.dataset.open === name && b.getAttribute("aria-expanded") === "false";
      b.setAttribute("aria-expanded", on);
      find(`#${id}g${b.dataset.open}`).hidden = !on;
    }
  }

  home.addEventListener("input", e => {
    const {slide, knob} = e.target.dataset;
    if (!slide && !knob) return;
    const text = slide ? specs.get(slide).values[e.target.value] : e.target.value;
    if (slide) find(`[data-knob="${slide}"]`).value = text;
    turn(slide ?? knob, text);
  });
  home.addEventListener("change", e => {
    const {axis, sweep} = e.target.dataset;
    if (axis === "measure") measure = e.target.value;
    if (axis === "against") against = e.target.value;
    if (axis) repaint();
    if (sweep === "key") { // values around the present one
      const {values: stops, options} = specs.get(e.target.value), k = stops ? nearestStop(stops, get("values")[e.target.value]) : 0;
      const every = options ? options.slice(0, 4).map(o => o[0]) : [-6, -3, 0, 3, 6].map(d => stops[k + d]).filter(Boolean);
      find("[data-sweep=values]").value = every.join(", ");
    }
  });
  home.addEventListener("focusout", e => { if (e.target.dataset.knob) setTimeout(writeKnobs, 0); });
  home.addEventListener("keydown", e => { if (e.key === "Enter" && e.target.matches("input[type=text]")) e.target.blur(); });
  home.addEventListener("click", e => {
    const {do: what, preset, row, act, open} = e.target.dataset;
    if (what || preset) flush();
    if (what === "run_sweep") {
      against = find("[data-sweep=key]").value;
      send(what, {key: against, values: find("[data-sweep=values]").value, seeds: Number(find("[data-sweep=seeds]").value)});
    } else if (what === "pause") send(get("status").state === "paused" ? "resume" : "pause");
    else if (what) {
      if (what === "start") against = "round";
      send(what);
    }
    if (preset) send("preset", {name: preset});
    if (open) unfold(open);
    if (!row) return;
    const chosen = get("table").find(r => r.id === Number(row));
    if (act === "cell") copy(chosen.cell);
    else send("row", act === "deleted" ? {id: chosen.id, deleted: true} : {id: chosen.id, shown: !chosen.shown});
  });
  for (const svg of all("[data-panel]")) watchPointer(svg, () => views.get(svg));
  keepEvents(home);

  // What Python says

  const heard = {
    values: () => { writeKnobs(); writeFacts(); repaint(); }, setup: () => { writeKnobs(); repaint(); }, table: () => { writeTable(); repaint(); },
    errors: writeKnobs, facts: writeFacts, stale: writeFacts, advice: writeFacts, status: writeStatus, sweep: writeSweep, say: repaint,
  };
  for (const [name, act] of Object.entries(heard)) model.on(`change:${name}`, act);
  const told = message => {
    series.set(message.row, message.series);
    heardAt ||= performance.now();
    repaint();
  };
  model.on("msg:custom", told);
  writeKnobs(); writeFacts(); writeSweep(); writeStatus(); writeTable(); paint();
  send("hello");
  const watch = new ResizeObserver(repaint);
  watch.observe(home);
  return () => {
    closed = true;
    watch.disconnect();
    model.off("msg:custom", told);
    for (const [name, act] of Object.entries(heard)) model.off(`change:${name}`, act);
  };
}

export default { render({model, el}) { return mountBench(el, model); } };
