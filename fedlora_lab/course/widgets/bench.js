// The workbench for runs. Python trains and streams small records; this draws them.
// It stands behind drawing.js in one module and uses its panels, look and numbers.

const BENCH = `.fl-bench{max-width:1180px}.fl-bench .knobs{gap:4px 18px}
.fl-bench .knob input[type=text]{width:84px;text-align:right;height:24px;font-weight:600}
.fl-bench .knob label{align-items:center;min-height:26px}.fl-bench .knob label span{flex:1}
.fl-bench .knob.wrong input,.fl-bench .knob.wrong select{border-color:${ink("red")}}.fl-bench .knob.wrong small{color:${ink("red")}}
.fl-bench .first{display:flex;flex-wrap:wrap;gap:4px 22px;align-items:flex-start}.fl-bench .first .knob{flex:1 1 200px}.fl-bench .go{flex:1 1 310px}
.fl-bench .first select{height:30px;font-size:14.5px;font-weight:600}
.fl-bench .act{display:flex;flex-wrap:wrap;gap:8px;align-items:center;padding-top:4px}
.fl-bench button.start{background:${ink("green")};border-color:${ink("green")};color:${ink("card")};font-weight:700;font-size:15px;padding:4px 20px}
.fl-bench .rate button{min-height:24px;padding:0 10px;line-height:22px}.fl-bench button[aria-expanded=true]{background:${ink("grid")}}.fl-bench button:disabled{opacity:.45;cursor:default}.fl-bench progress{width:100%;height:6px;accent-color:${ink("blue")}}
.fl-bench dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(168px,1fr));gap:2px 14px;margin:6px 0;padding:6px 10px;border-radius:6px;background:color-mix(in srgb,${ink("grid")} 45%,transparent);min-height:82px;align-content:start}
.fl-bench dl[aria-busy=true] div:not(.rate){opacity:.45}.fl-bench :is(dt,dd){float:none;width:auto;margin:0;padding:0}.fl-bench dt{font-size:12px;color:${ink("soft")};font-weight:400}.fl-bench dd{white-space:nowrap;overflow:hidden;text-overflow:ellipsis;font-weight:600;font-variant-numeric:tabular-nums}
.fl-bench .rate :is(dt,dd){display:inline;margin:0;font:inherit;color:inherit;white-space:normal}.fl-bench .rate{grid-column:1/-1;min-height:30px;line-height:30px;font-size:12.5px;color:${ink("soft")}}
.fl-bench .group{border:1px solid ${ink("grid")};border-radius:6px;padding:6px 10px;margin:4px 0}.fl-bench [hidden]{display:none!important}
.fl-bench .all{font-size:12.5px!important;color:${ink("soft")}!important;min-height:3em}.fl-bench .tries{margin:5px 0}
.fl-bench .state{min-height:21px;font-size:13px!important;color:${ink("soft")}!important}.fl-bench .state[role=alert]{color:${ink("red")}!important;font-weight:600}
.fl-bench .axes{display:flex;flex-wrap:wrap;gap:4px 8px;align-items:center;font-size:13px}.fl-bench .axes select{width:auto;max-width:190px}
.fl-bench .panels{align-items:flex-start}.fl-bench .main{flex:3 1 430px;min-width:0}.fl-bench .side{flex:1 1 180px;min-width:0}.fl-bench .seen{flex:0 0 276px}
.fl-bench figure{flex:none}.fl-bench figcaption{min-height:0;height:24px}
.fl-bench .runs{height:190px;overflow:auto;border:1px solid ${ink("grid")};border-radius:6px;margin-top:4px}
.fl-bench table{border-collapse:collapse;width:100%;font-size:13px;margin:0}.fl-bench th{position:sticky;top:0;background:${ink("card")};z-index:1}
.fl-bench :is(td,th){padding:2px 7px;text-align:left;white-space:nowrap;border-bottom:1px solid ${ink("grid")};color:${ink()}}.fl-bench td:last-child{white-space:normal;min-width:10.5em;position:sticky;right:0;background:${ink("card")}}
.fl-bench tr.off{opacity:.5}.fl-bench td.differs{background:color-mix(in srgb,${ink("blue")} 16%,transparent);font-weight:600}
.fl-bench td input[type=text]{border-color:transparent;background:transparent;font-weight:600}.fl-bench td input[type=text]:hover{border-color:${ink("edge")}}
.fl-bench td button{min-height:22px;padding:0 7px;font-size:12px}.fl-bench .bad{color:${ink("red")};font-weight:600}
.fl-bench .swatch{display:inline-block;width:22px;height:0;border-top:3px solid;vertical-align:middle;margin-left:4px}
.fl-bench textarea{width:100%;height:150px;font:12px/1.4 var(--jp-code-font-family,monospace);color:${ink()};background:${ink("card")};border:1px solid ${ink("edge")};border-radius:4px}
.fl-bench .seen p{font-size:12px;color:${ink("soft")}}.fl-bench .say{min-height:4.4em}`;
const SHAPES = ["none", "7 3", "2 3", "9 3 2 3", "5 2", "1 2"];
const NAMES = {epsilon: "ε spent", deviation: "deviation (relative)", clipped: "share that was clipped", bytes_up: "bytes up in a round", bytes_down: "bytes down in a round"};
const title = name => NAMES[name] ?? name;
const short = words => words.length > 26 ? `${words.slice(0, 25).trimEnd()}…` : words; // the table and a hover say all
const value = v => v === "inf" ? Infinity : v === "-inf" ? -Infinity : v ?? NaN;
const TURNED = [["pale", 1, "right"], ["green", 2.4, "turned right"], ["red", 1.1, "wrong"], ["red", 2.6, "turned wrong"]];

let made = 0;

function mountBench(element, model) {
  const get = name => model.get(name), setup = get("setup"), id = `fl-bench-${++made}-${Math.random().toString(36).slice(2, 6)}`;
  const send = (what, given = {}) => model.send({do: what, ...given});
  const points = new Map(), views = new Map(); // row -> seed -> records; panel -> what was drawn
  let now = setup.images?.before ?? [], against = "round", axis = against, measure = setup.measure, waiting = 0, closed = false, heardAt = 0;

  // The page

  const head = k => `<label for="${id}${k.key}"><span>${escaped(k.label)}</span>`;
  const place = k => k.options
    ? `${head(k)}</label><select id="${id}${k.key}" data-knob="${k.key}">${k.options.map(([v, words]) => `<option value="${escaped(v)}">${escaped(words)}</option>`).join("")}</select>`
    : `${head(k)}<input type="text" id="${id}${k.key}" data-knob="${k.key}" autocomplete="off" spellcheck="false">${k.unit ? ` ${escaped(k.unit)}` : ""}</label>`
      + `<input type="range" data-slide="${k.key}" min="0" max="${k.values.length - 1}" step="1" aria-label="${escaped(k.label)}, slider">`;
  const knob = k => `<div class="knob" data-of="${k.key}">${place(k)}<small id="${id}${k.key}c">${escaped(k.caption)}</small></div>`;
  const group = name => setup.knobs.filter(k => k.group === name).map(knob).join("");
  const button = (words, what, help, more = "") => `<button type="button" data-do="${what}" title="${escaped(help)}" ${more}>${words}</button>`;
  const figure = (name, height) => `<figure><figcaption id="${id}${name}t"></figcaption><svg data-panel="${name}" style="height:${height}px" role="img" aria-labelledby="${id}${name}t"></svg></figure>`;
  element.innerHTML = `<style>${STYLE}${BENCH}</style><div class="fl-dial fl-bench" role="group" aria-label="${escaped(setup.title)}">
<div class="first">${group("")}<div class="go"><div class="act">${button("▶ Start", "start", "train with these settings", 'class="start"')}${button("Pause", "pause", "pause after this local step")}${button("Stop", "stop", "stop after this local step")}${button("Reset", "reset", "stop, put every control back, and forget the runs that are not pinned")}</div>
<progress max="1" value="0" aria-label="local steps done"></progress><p class="state" role="status"></p></div></div>
<div class="tries presets"></div><dl></dl>
<div class="tries"><span>More settings:</span>${[...Object.entries(setup.groups), ["sweep", "Sweep"]].map(([name, words]) => `<button type="button" data-open="${name}" aria-expanded="false" aria-controls="${id}g${name}">${words}</button>`).join("")}</div><p class="all"></p>
${Object.keys(setup.groups).map(name => `<div class="group" id="${id}g${name}" hidden><div class="knobs">${group(name)}</div></div>`).join("")}
<div class="group" id="${id}gsweep" hidden><div class="knobs">
<div class="knob"><label for="${id}sk"><span>turn this knob</span></label><select id="${id}sk">${setup.knobs.filter(k => k.key !== "seed").map(k => `<option value="${k.key}">${escaped(k.label)}</option>`).join("")}</select><small>all others stay as they are</small></div>
<div class="knob"><label for="${id}sv"><span>through these values</span></label><input type="text" id="${id}sv" style="width:100%;text-align:left"><small>two to eight, apart by commas</small></div>
<div class="knob"><label for="${id}sn"><span>seeds</span><input type="text" id="${id}sn" inputmode="numeric"></label><input type="range" data-seeds min="1" max="10" aria-label="seeds, slider"><small>runs of each value; the band is the 95 % interval of their mean</small></div>
<div class="act">${button("▶ Sweep", "run_sweep", "train at every value, in the background", 'class="start"')}</div></div></div>
<div class="panels"><div class="main"><div class="axes"><label for="${id}m">show</label><select id="${id}m"></select><label for="${id}x">against</label><select id="${id}x"></select></div>${figure("main", 300)}</div>
<div class="side">${figure("epsilon", 138)}${figure("deviation", 138)}</div>
${setup.images ? `<div class="seen"><figcaption>${now.length} test images</figcaption><svg data-images style="height:215px" role="img" aria-label="test images and whether the model is right"></svg><p></p></div>` : ""}</div>
<p class="say" role="status" aria-live="polite"></p>
<div class="runs" tabindex="0" role="region" aria-label="runs"><table></table></div>
<div class="tries"><button type="button" data-copy="csv">Copy CSV</button><button type="button" data-copy="file">Save CSV</button>${button("Clear", "clear", "forget the runs that are not pinned")}<span class="told" role="status"></span></div>
<details><summary>Text of the last copy</summary><textarea readonly aria-label="text of the last copy"></textarea></details></div>`;
  const home = element.querySelector(".fl-bench"), find = s => home.querySelector(s), all = s => [...home.querySelectorAll(s)];
  const specs = new Map(setup.knobs.map(k => [k.key, k]));

  // Controls

  const number = text => text === "∞" || text === "all" ? Infinity : Number(text);
  const nearest = (stops, text) => stops.includes(text) ? stops.indexOf(text)
    : stops.reduce((best, s, i) => Math.abs(number(s) - number(text)) < Math.abs(number(stops[best]) - number(text)) ? i : best, 0);
  const busy = () => ["running", "preparing", "paused"].includes(get("status").state);
  let later = 0, wanted = {};

  function turn(key, text) { // sent when the hand rests: while the kernel is busy moves do not pile up
    wanted[key] = text;
    clearTimeout(later);
    later = setTimeout(flush, 60);
  }
  function flush() {
    clearTimeout(later);
    if (Object.keys(wanted).length) send("set", {values: wanted});
    wanted = {};
  }

  function write() {
    const values = get("values"), errors = get("errors");
    for (const [key, k] of specs) {
      const input = find(`[data-knob="${key}"]`), box = input.closest(".knob");
      if (!(key in wanted) && document.activeElement !== input) input.value = values[key];
      if (k.options && input.selectedIndex < 0) input.add(new Option(values[key], values[key], true, true));
      const slide = box.querySelector("[data-slide]");
      if (slide && !(key in wanted)) slide.value = nearest(k.values, values[key]);
      slide?.setAttribute("aria-valuetext", `${values[key]} ${k.unit ?? ""}`);
      box.classList.toggle("wrong", key in errors);
      input.setAttribute("aria-invalid", key in errors);
      box.querySelector("small").textContent = errors[key] ?? k.caption;
    }
    const words = k => `${k.symbol ?? ""} ${k.options?.find(o => o[0] === values[k.key])?.[1] ?? values[k.key]}`.trim();
    find(".all").textContent = find(".all").title = setup.knobs.filter(k => k.group).map(words).join(" · ");
    const held = home.contains(document.activeElement) ? document.activeElement.dataset.preset : null;
    find(".presets").innerHTML = "<span>Try:</span>" + get("setup").presets.map(([name, words, on]) => `<button type="button" data-preset="${escaped(name)}" title="${escaped(words)}" aria-pressed="${on}">${escaped(name)}</button>`).join("");
    if (held) all("[data-preset]").find(b => b.dataset.preset === held)?.focus();
  }

  function foresee() {
    const {words, offer} = get("advice");
    find("dl").setAttribute("aria-busy", get("stale"));
    find("dl").innerHTML = get("facts").map(([term, words]) => `<div><dt>${escaped(term)}</dt><dd title="${escaped(words)}">${escaped(words)}</dd></div>`).join("")
      + `<div class="rate"><dt>learning rate</dt> <dd>${escaped(get("values").lr)} · ${escaped(words)} ${offer ? button("use it", "suggest", "take the suggested learning rate") : ""}</dd></div>`;
  }

  // The panels

  const shown = () => get("table").filter(row => row.shown);
  const TONES = [72, 44, 90, 26]; // runs of one method: shares of its colour, the rest is ink
  const alike = row => get("table").filter(r => r.colour === row.colour && r.id < row.id && r.shown).length;
  const style = () => get("table").map(row => `--fl-run${row.id}:color-mix(in oklab,${row.colour} ${TONES[alike(row) % TONES.length]}%,var(--fl-ink))`).join(";");
  const half = xs => {
    const n = xs.length, m = mean(xs);
    return n < 2 ? 0 : (setup.t[n] ?? 1.96) * Math.sqrt(sum(xs.map(x => (x - m) ** 2)) / (n - 1) / n);
  };
  const runs = row => [...(points.get(row.id)?.values() ?? [])];
  const shape = row => SHAPES[alike(row) % SHAPES.length];

  function band(stats, colour) { // [x, values of the seeds] -> lines of mean and interval
    const line = {kind: "line", colour, x: stats.map(([x]) => x), y: stats.map(([, vs]) => mean(vs))};
    const wide = stats.filter(([, vs]) => vs.length > 1), back = [...wide].reverse();
    const x = [...wide, ...back].map(([at]) => at);
    const y = [...wide.map(([, vs]) => mean(vs) + half(vs)), ...back.map(([, vs]) => mean(vs) - half(vs))];
    return {line, area: wide.length > 1 ? [{kind: "area", x, y, colour}] : []};
  }

  function overRounds(name) {
    const marks = [], heads = new Set(shown().map(row => row.label.split(" · ")[0]));
    const own = row => heads.size > 1 && row.label.length <= 26 ? row.label : row.label.split(" · ").slice(1).join(" · ") || row.label; // the table says the method too
    for (const row of shown()) {
      const seeds = runs(row), long = Math.max(0, ...seeds.map(s => s.length)), colour = `run${row.id}`;
      const stats = Array.from({length: long}, (_, t) => [seeds[0][t]?.round ?? t, seeds.map(s => value(s[t]?.[name])).filter(Number.isFinite)]).filter(s => s[1].length);
      if (!stats.length) continue;
      const {line, area} = band(stats, colour);
      marks.push(...area, {...line, name: row.label, label: short(own(row)), dash: shape(row), width: row.pinned ? 3 : 2.2});
      marks.push({kind: "dots", x: [line.x.at(-1)], y: [line.y.at(-1)], colour, size: 4});
    }
    return marks;
  }

  function overKnob(name, key) {
    const rows = shown().filter(row => runs(row).length && !["stopped", "failed"].includes(row.state)), stops = [...new Set(rows.map(row => row.recipe[key]))];
    stops.sort((a, b) => number(a) - number(b) || 0);
    const lines = new Map(), marks = [];
    for (const row of rows) {
      const {[key]: _, seed: __, lr, ...rest} = row.recipe, line = JSON.stringify([rest, row.follows ? "" : lr, row.swept === key ? "" : row.id]);
      lines.set(line, [...(lines.get(line) ?? []), row]);
    }
    for (const some of lines.values()) {
      const colour = key === "method" ? "ink" : `run${some[0].id}`, label = key === "method" ? "" : some[0].parts.filter(p => p[0] && p[0] !== key).map(p => p[1]).join(" ");
      const stats = some.map(row => [stops.indexOf(row.recipe[key]), runs(row).map(s => value(s.at(-1)[name])).filter(Number.isFinite)]).filter(s => s[1].length);
      if (!stats.length) continue;
      stats.sort((a, b) => a[0] - b[0]);
      const {line, area} = band([...stats], colour);
      if (key !== "method") marks.push(...area, {...line, name: label, label: stats.length > 1 ? label : ""});
      for (const [x, vs] of stats) marks.push({kind: "line", x: [x, x], y: [mean(vs) - half(vs), mean(vs) + half(vs)], colour, width: 2});
      marks.push({...line, kind: "dots", size: 5});
    }
    return {marks, stops};
  }

  function rangeOf(name, marks) {
    const ys = marks.flatMap(m => m.y).filter(Number.isFinite), top = Math.max(...ys, 0), low = Math.min(...ys, 0);
    if (name.startsWith("accuracy")) return [Math.max(0, Math.floor(10 * Math.min(get("setup").start ?? 0.5, ...ys) - 0.5) / 10), 1];
    if (name === "epsilon") return [0, 1.15 * Math.max(top, number(get("values").epsilon) < 1e6 ? number(get("values").epsilon) : 1)];
    if (name === "deviation") return [0, Math.max(0.5, 1.12 * top)];
    return [Math.min(0, low), top > 0 ? 1.12 * top : 1];
  }

  function panel(name, small) {
    const knobbed = !small && axis !== "round", {marks, stops} = knobbed ? overKnob(name, axis) : {marks: overRounds(name)};
    const rounds = Math.max(2, ...(marks.length ? shown().map(row => Number(row.recipe.rounds)) : [Number(get("values").rounds) || 2]));
    const range = rangeOf(name, marks), start = name === setup.measure ? get("setup").start : null;
    const x = knobbed ? {label: specs.get(axis).label, range: [-0.35, Math.max(1, stops.length) - 0.65], ticks: stops.map((_, i) => i), names: stops, format: v => stops[Math.max(0, Math.min(stops.length - 1, Math.round(v)))]}
      : {label: small ? "" : "round", short: "round", range: [0, rounds], ticks: ticksOf({range: [0, rounds]}).filter(Number.isInteger), format: v => String(Math.round(v))};
    if (start != null) marks.unshift({kind: "line", x: x.range, y: [start, start], colour: "grey", dash: "2 3", width: 1.2}, {kind: "text", words: `before ${fixed(start)}`, x: x.range[0], y: start, dx: 5, dy: 14, colour: "soft", size: 11.5});
    if (small) for (const m of marks) delete m.label;
    if (name === "deviation" && shown().some(row => runs(row).some(s => s.length > 1)) && !marks.some(m => m.kind === "line" && m.x.length > 1)) marks.push({kind: "text", words: "not measured", x: rounds / 2, y: (range[0] + range[1]) / 2, anchor: "middle", colour: "soft"});
    const right = small ? 10 : Math.min(190, Math.max(96, ...marks.filter(m => m.label).map(m => 14 + 7.2 * m.label.length)));
    return {x, y: {range, format: v => num(v)}, marks, margin: {right, ...(small ? {left: 40, bottom: 22} : {})}};
  }

  function axes() { // what can be shown, and against what
    const table = get("table"), keys = [...specs.keys()].filter(key => key !== "seed" && new Set(table.map(row => row.recipe[key])).size > 1);
    const fill = (select, options, now) => {
      const html = options.map(([v, words]) => `<option value="${v}">${escaped(words)}</option>`).join("");
      if (select.dataset.html !== html) { select.innerHTML = html; select.dataset.html = html; }
      select.value = now;
    };
    axis = keys.includes(against) ? against : "round"; // of a sweep's first run nothing differs yet
    fill(find(`#${id}m`), setup.measures.map(name => [name, title(name)]), measure);
    fill(find(`#${id}x`), [["round", "round"], ...keys.map(key => [key, specs.get(key).label])], axis);
  }

  function paint() {
    waiting = 0;
    if (closed) return;
    if (!home.clientWidth) return void setTimeout(repaint, 200); // out of the page for a moment, as when themes change
    home.style.cssText = style();
    axes();
    const captions = {main: `${title(measure)}${measure === setup.measure ? " on the test examples" : ""}${axis === "round" ? "" : " at the end"}`, epsilon: title("epsilon"), deviation: title("deviation")};
    for (const svg of all("[data-panel]")) {
      const name = svg.dataset.panel;
      svg.previousElementSibling.textContent = captions[name];
      views.set(svg, drawPanel(svg, panel(name === "main" ? measure : name, name !== "main"), `${id}${name}p`, [svg.clientWidth, svg.clientHeight]));
    }
    drawImages();
    find(".say").textContent = get("say");
    if (heardAt) home.dataset.lag = Math.round(performance.now() - heardAt);
    heardAt = 0;
  }
  const repaint = () => { waiting ||= requestAnimationFrame(paint); };

  // Test images

  const sheet = document.createElement("canvas"), COLUMNS = 9;
  if (setup.images) {
    const {pixels, width, height} = setup.images, bytes = Uint8Array.from(atob(pixels), c => c.charCodeAt(0));
    sheet.width = COLUMNS * width;
    sheet.height = Math.ceil(now.length / COLUMNS) * height;
    const ink2d = sheet.getContext("2d"), image = ink2d.createImageData(width, height);
    now.forEach((_, i) => {
      for (let k = 0; k < width * height; k++) image.data.set([0, 0, 0].map(() => 255 - 0.8 * bytes[i * width * height + k]).concat(255), 4 * k);
      ink2d.putImageData(image, (i % COLUMNS) * width, Math.floor(i / COLUMNS) * height);
    });
  }

  function drawImages() {
    const svg = find("[data-images]");
    if (!svg) return;
    const {truth, before, width, height} = setup.images, lines = Math.ceil(truth.length / COLUMNS), S = 30, counts = [0, 0, 0, 0];
    svg.setAttribute("viewBox", `0 0 ${COLUMNS * S} ${lines * S}`);
    const cells = truth.map((t, i) => {
      const kind = (now[i] === t ? 0 : 2) + (now[i] === t ? Number(before[i] !== t) : Number(before[i] === t)), [x, y] = [(i % COLUMNS) * S, Math.floor(i / COLUMNS) * S];
      counts[kind]++;
      const [colour, wide, words] = TURNED[kind], wrong = now[i] === t ? "" : `<rect x="${x + 18}" y="${y + 17}" width="10" height="11" style="fill:var(--fl-red)"/><text x="${x + 23}" y="${y + 26}" text-anchor="middle" style="font-size:10px;fill:var(--fl-card);stroke:none">${now[i]}</text>`;
      return `<g><title>${words}: a ${t}, taken for ${now[i]}</title><svg x="${x + 2}" y="${y + 2}" width="${S - 4}" height="${S - 4}" viewBox="${(i % COLUMNS) * width} ${Math.floor(i / COLUMNS) * height} ${width} ${height}" preserveAspectRatio="none"><image href="${svg.sheet ??= sheet.toDataURL()}" width="${sheet.width}" height="${sheet.height}" style="image-rendering:pixelated"/></svg>`
        + `<rect x="${x + 2}" y="${y + 2}" width="${S - 4}" height="${S - 4}" style="fill:none;stroke:${ink(colour)};stroke-width:${wide}"/>${wrong}</g>`;
    });
    svg.innerHTML = cells.join("");
    svg.nextElementSibling.textContent = TURNED.map(([, , words], i) => `${counts[i]} ${words}`).join(" · ");
  }

  // The table of runs

  function tabulate() {
    const table = [...get("table")].sort((a, b) => b.pinned - a.pinned || a.id - b.id), held = document.activeElement;
    if (held?.dataset?.name && home.contains(held)) return; // somebody is typing
    const focus = home.contains(held) ? held.dataset.at : null;
    const keys = ["epsilon", ...[...specs.keys()].filter(key => !["method", "epsilon"].includes(key) && new Set(table.map(row => row.recipe[key])).size > 1)], first = table[0];
    const cell = (row, key) => `<td class="${row.recipe[key] !== first.recipe[key] ? "differs" : ""}">${escaped(row.recipe[key])}</td>`;
    const act = (row, words, at, help, more = "") => `<button type="button" data-at="${row.id}${at}" data-row="${row.id}" data-act="${at}" title="${help}" ${more}>${words}</button>`;
    find("table").innerHTML = `<thead><tr><th>run</th>${keys.map(key => `<th title="${escaped(specs.get(key).caption)}">${escaped(specs.get(key).symbol ?? specs.get(key).label)}</th>`).join("")}<th>${escaped(title(setup.measure))}</th><th>ε spent</th><th></th><th></th></tr></thead><tbody>`
      + (table.map(row => `<tr class="${row.shown ? "" : "off"}"><td>${act(row, row.shown ? "hide" : "show", "shown", "draw this run or not", `aria-pressed="${!row.shown}"`)}<span class="swatch" style="color:${ink(`run${row.id}`)};border-top-style:${shape(row) === "none" ? "solid" : "dashed"}"></span>`
        + `<input type="text" data-name="${row.id}" data-at="${row.id}n" value="${escaped(row.label)}" aria-label="name of the run" title="rename; empty: its label again" style="width:${Math.max(12, Math.min(46, row.label.length + 2))}ch"></td>${keys.map(key => cell(row, key)).join("")}<td><b>${escaped(row.score)}</b></td><td>${escaped(row.spent)}</td>`
        + `<td class="${/diverged|collapsed|fail|expected|Error/.test(row.note) ? "bad" : ""}">${escaped(row.note)}</td><td>${act(row, "pin", "pinned", "keep on top; Reset and Clear leave it", `aria-pressed="${row.pinned}"`)} ${act(row, "cell", "cell", "copy the code that repeats this run")} ${act(row, "method", "method", "copy the method's row of the table")} ${act(row, "delete", "deleted", "forget this run")}</td></tr>`).join("")
        || `<tr><td colspan="${keys.length + 5}">No run yet. Each Start adds a row, which keeps its settings.</td></tr>`) + "</tbody>";
    if (focus) find(`[data-at="${focus}"]`)?.focus();
  }

  async function copy(text, what) {
    const area = find("textarea");
    area.value = text;
    try { await navigator.clipboard.writeText(text); } catch {
      area.closest("details").open = true;
      area.select();
      document.execCommand("copy");
    }
    find(".told").textContent = `copied: ${what}`;
    setTimeout(() => { find(".told").textContent = ""; }, 2500);
  }

  function csv() {
    const names = setup.measures, quote = text => /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
    const keys = [...specs.keys()].filter(key => key !== "seed"), lines = [["run", ...keys, "seed", "round", ...names].join(",")];
    for (const row of shown()) for (const [seed, some] of points.get(row.id) ?? [])
      for (const p of some) lines.push([row.label, ...keys.map(key => row.recipe[key]), seed, p.round, ...names.map(n => p[n] ?? "")].map(v => quote(String(v))).join(","));
    return lines.join("\n") + "\n";
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
    if (slide) {
      const text = specs.get(slide).values[e.target.value];
      find(`[data-knob="${slide}"]`).value = text;
      turn(slide, text);
    } else if (knob) turn(knob, e.target.value);
    else if ("seeds" in e.target.dataset) find(`#${id}sn`).value = e.target.value;
  });
  home.addEventListener("change", e => {
    if (e.target.dataset.name) send("row", {id: Number(e.target.dataset.name), name: e.target.value.trim()});
    else if (e.target.id === `${id}m`) { measure = e.target.value; repaint(); }
    else if (e.target.id === `${id}x`) { against = e.target.value; repaint(); }
    else if (e.target.id === `${id}sk`) { // values around the present one
      const {values: stops, options} = specs.get(e.target.value), k = stops ? nearest(stops, get("values")[e.target.value]) : 0;
      const every = options ? options.slice(0, 4).map(o => o[0]) : [-6, -3, 0, 3, 6].map(d => stops[k + d]).filter(Boolean);
      find(`#${id}sv`).value = every.join(", ");
    }
  });
  home.addEventListener("focusout", e => { if (e.target.dataset.name || e.target.dataset.knob) setTimeout(() => { write(); tabulate(); }, 0); });
  home.addEventListener("keydown", e => { if (e.key === "Enter" && e.target.matches("input[type=text]")) e.target.blur(); });
  home.addEventListener("click", e => {
    const {do: what, preset, row, act, copy: kind} = e.target.dataset;
    if (what === "run_sweep") {
      flush();
      against = find(`#${id}sk`).value;
      send(what, {key: against, values: find(`#${id}sv`).value, seeds: Number(find(`#${id}sn`).value)});
    } else if (what === "pause") send(get("status").state === "paused" ? "resume" : "pause");
    else if (what) { flush(); if (what === "start") against = "round"; send(what); }
    if (e.target.dataset.open) unfold(e.target.dataset.open);
    if (preset) { flush(); send("preset", {name: preset}); }
    if (kind === "csv") copy(csv(), "all shown runs as CSV");
    if (kind === "file") {
      const link = Object.assign(document.createElement("a"), {download: "runs.csv", href: URL.createObjectURL(new Blob([csv()], {type: "text/csv"}))});
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }
    if (!row) return;
    const one = get("table").find(r => r.id === Number(row));
    if (act === "cell" || act === "method") copy(get("texts")[row][act], act === "cell" ? "a cell that repeats the run" : "the method's row");
    else send("row", {id: one.id, [act]: act === "deleted" ? true : !one[act]});
  });
  for (const svg of all("[data-panel]")) watchPointer(svg, () => views.get(svg));
  keepEvents(home);

  // What Python says

  function report() {
    const {state, text, done, total, error} = get("status"), line = find(".state"), alive = busy();
    line.setAttribute("role", error ? "alert" : "status");
    line.textContent = error || text;
    Object.assign(find("progress"), {max: Math.max(1, total), value: done});
    for (const b of all('[data-do="start"],[data-do="run_sweep"]')) b.disabled = alive;
    find('[data-do="stop"]').disabled = !alive;
    const pause = find('[data-do="pause"]');
    pause.disabled = !alive || state === "preparing";
    pause.textContent = state === "paused" ? "Resume" : "Pause";
  }

  const heard = {
    values: () => { write(); foresee(); repaint(); }, errors: write, facts: foresee, stale: foresee, advice: foresee, setup: () => { write(); repaint(); }, status: report,
    table: () => { tabulate(); repaint(); }, say: repaint,
    sweep: () => { const {key, values, seeds} = get("sweep"); find(`#${id}sk`).value = key; find(`#${id}sv`).value = values; find(`#${id}sn`).value = seeds; find("[data-seeds]").value = seeds; },
  };
  for (const [name, act] of Object.entries(heard)) model.on(`change:${name}`, act);
  const told = message => {
    for (const [row, seed, point] of message.points ?? []) {
      if (!points.has(row)) points.set(row, new Map());
      const seeds = points.get(row);
      if (!seeds.has(seed)) seeds.set(seed, []);
      const some = seeds.get(seed);
      if (!some.some(p => p.round === point.round)) some.push(point);
    }
    if (message.now) now = message.now;
    heardAt ||= performance.now();
    repaint();
  };
  model.on("msg:custom", told);
  write(); foresee(); heard.sweep(); report(); tabulate(); unfold(setup.open); paint();
  send("hello");
  const watch = new ResizeObserver(repaint);
  watch.observe(home);
  return () => { closed = true; watch.disconnect(); model.off("msg:custom", told); for (const [name, act] of Object.entries(heard)) model.off(`change:${name}`, act); };
}

export default { render({model, el}) { return mountBench(el, model); } };
