// Dials: controls, panels and a sentence, for which Python has computed what stands at every stop.
// A part of the scene that depends on controls is {by: [names], table: [a value for each stop]}.

function choose(part, at, controls) { // the scene where the controls stand
  if (part === null || typeof part !== "object") return part;
  if (Array.isArray(part)) return typeof part[0] === "object" ? part.map(one => choose(one, at, controls)) : part;
  if (part.table) return part.table[part.by.reduce((k, name) => k * controls[name].values.length + at[name], 0)];
  return Object.fromEntries(Object.entries(part).map(([key, one]) => [key, choose(one, at, controls)]));
}

let made = 0;

export function mountDial(element, spec, start, changed = () => {}) {
  const {controls, presets, play: moved} = spec, id = `fl-dial-${++made}-${Math.random().toString(36).slice(2, 6)}`;
  const names = Object.keys(controls);
  let values = {...start}, views = [], sizes = [], clock = null;

  const knob = (name, i) => {
    const c = controls[name], about = `id="${id}-${i}" data-control="${name}" aria-describedby="${id}-${i}c"`;
    const options = c.texts.map((words, k) => `<option value="${k}">${escaped(words)}</option>`).join("");
    const input = c.menu ? `<select ${about}>${options}</select>` : `<input type="range" ${about} min="0" max="${c.values.length - 1}" step="1">`;
    return `<div class="knob"><label for="${id}-${i}"><span>${escaped(c.label)}</span><output style="min-width:5ch"></output></label>`
      + `${input}<small id="${id}-${i}c">${escaped(c.caption)}</small></div>`;
  };
  const button = (words, preset) => `<button type="button" data-preset="${escaped(preset)}">${escaped(words)}</button>`;
  element.innerHTML = `<style>${STYLE}</style><div class="fl-dial" role="group" aria-label="${escaped(spec.title)}"><p class="lead">${escaped(spec.lead)}</p>`
    + `<div class="tries"><span>Try:</span>${Object.keys(presets).map(words => button(words, words)).join("")}<button type="button" data-reset>Reset</button>`
    + `${moved ? `<button type="button" data-play>Play</button>` : ""}</div><div class="knobs">${names.map(knob).join("")}</div>`
    + `<div class="panels">${spec.panels.map((p, i) => `${p.row ? "<hr>" : ""}<figure class="${p.wide ? "wide" : p.bare ? "bare" : ""}"><figcaption id="${id}t${i}"></figcaption>`
      + `<svg style="height:${p.bare ? 140 : p.height}px" role="img" aria-labelledby="${id}t${i}"></svg></figure>`).join("")}</div>`
    + `<p class="say" role="status" aria-live="polite"></p></div>`;
  const home = element.querySelector(".fl-dial"), find = s => home.querySelector(s), all = s => [...home.querySelectorAll(s)];
  const stop = name => controls[name].values.indexOf(values[name]);

  // Sizes are read when they change and not at every move, which would lay out the page each time.
  const measure = () => { sizes = all("svg").map(svg => [svg.clientWidth || 380, svg.clientHeight || 270]); };

  function paint() {
    const at = Object.fromEntries(names.map(name => [name, stop(name)]));
    const {panels, say} = choose({panels: spec.panels, say: spec.say}, at, controls);
    all("figure").forEach((figure, i) => {
      figure.firstElementChild.textContent = panels[i].title;
      views[i] = drawPanel(figure.lastElementChild, panels[i], `${id}p${i}`, sizes[i]);
    });
    find(".say").textContent = say.map(piece => piece.words).join("");
    for (const input of all("[data-control]")) {
      const {values: stops, texts: words, menu} = controls[input.dataset.control], k = at[input.dataset.control];
      input.value = k;
      input.closest(".knob").querySelector("output").textContent = menu ? "" : words[k];
      if (!menu) input.setAttribute("aria-valuetext", words[k]);
    }
    const stands = wanted => Object.entries(wanted).every(([name, v]) => values[name] === v);
    for (const b of all("[data-preset]")) b.setAttribute("aria-pressed", stands(presets[b.dataset.preset]));
  }

  function set(some, told = true) {
    values = {...values, ...some};
    paint();
    if (told) changed(values);
  }

  function play(on) { // step through the stops of one control; its sentence is read out at the end
    clearInterval(clock);
    const stops = controls[moved].values, last = stops.length - 1;
    clock = on ? setInterval(() => {
      set({[moved]: stops[stop(moved) + 1]});
      if (stop(moved) === last) play(false);
    }, 400) : null;
    if (on && stop(moved) === last) set({[moved]: stops[0]});
    find("[data-play]").textContent = on ? "Pause" : "Play";
    find(".say").setAttribute("aria-live", on ? "off" : "polite");
  }

  home.addEventListener("input", e => {
    const name = e.target.dataset.control;
    if (clock) play(false);
    set({[name]: controls[name].values[e.target.value]});
  });
  home.addEventListener("click", e => {
    const {preset, reset, play: pressed} = e.target.dataset;
    if (pressed !== undefined) return play(!clock);
    if (clock && (preset || reset !== undefined)) play(false);
    if (preset) set(presets[preset]);
    if (reset !== undefined) set(start);
  });
  all("svg").forEach((svg, i) => watchPointer(svg, () => views[i]));
  keepEvents(home);
  measure();
  paint();
  const watch = new ResizeObserver(() => { const before = String(sizes); measure(); if (String(sizes) !== before) paint(); });
  watch.observe(home);
  return {get values() { return values; }, set, close: () => { clearInterval(clock); watch.disconnect(); }};
}

// On a page without a kernel, and in a notebook

export function mountAll() {
  for (const place of document.querySelectorAll("[data-fedlora-dial]")) {
    const {spec, values} = JSON.parse(place.dataset.fedloraDial);
    mountDial(place, spec, values);
  }
}

export default {
  render({model, el}) {
    const dial = mountDial(el, model.get("spec"), model.get("values"), values => {
      model.set("values", values);
      model.save_changes();
    });
    model.on("change:values", () => {
      const told = model.get("values");
      if (JSON.stringify(told) !== JSON.stringify(dial.values)) dial.set(told, false);
    });
    return () => dial.close();
  },
};
