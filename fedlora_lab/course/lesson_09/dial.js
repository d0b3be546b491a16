// The dial of notebook 09: the results of any study, two methods among all and all against one.
import { fixed, mean, num, span, sum } from "../widgets/dial.js";

// Of a study: labels {name, axis, ticks, words}, methods [slug, name], measures [name, title, axis, whether
// less is better], cells [method, [value of each label], [of each measure the scores of the seeds]], all by number.

// The cells of a study by what the labels beside x are held at, in words; those with most cells first
function settings(one, x) {
  const known = one.settings ??= {}, found = new Map(); // once for each x: every move asks for them
  if (known[x]) return known[x];
  for (const cell of one.cells) {
    const words = one.labels.flatMap((l, k) => l.name === x || l.words.length < 2 ? [] : l.words[cell[1][k]]).join(", ") || "nothing else changes";
    found.set(words, [...found.get(words) ?? [], cell]);
  }
  return known[x] = new Map([...found].sort((a, b) => b[1].length - a[1].length));
}

// The mean of some scores with Student's 95 % interval
function interval(scores, t) {
  const n = scores.length, middle = mean(scores);
  const half = n < 2 ? 0 : t[n] * Math.sqrt(sum(scores.map(s => (s - middle) ** 2)) / (n - 1) / n);
  return {mean: middle, low: middle - half, high: middle + half, n};
}

// Means of all methods over x, and what each adds to the one compared with, seed by seed
export function compare({studies, t}, {study, measure, x, where, against}) {
  const one = studies[study], k = one.labels.findIndex(l => l.name === x), m = one.measures.findIndex(([name]) => name === measure);
  const cells = settings(one, x).get(where).map(([method, at, scores]) => ({slug: one.methods[method][0], place: at[k], scores: scores[m]}));
  const there = scores => scores.filter(s => s !== null), means = [], gaps = [];
  for (const {slug, place, scores} of cells) {
    if (there(scores).length) means.push({slug, place, ...interval(there(scores), t)});
    const other = slug === against ? undefined : cells.find(c => c.slug === against && c.place === place);
    const gap = other ? there(scores.map((s, i) => s === null || other.scores[i] === null ? null : s - other.scores[i])) : [];
    if (gap.length > 1) gaps.push({slug, place, ...interval(gap, t)});
  }
  return {means, gaps};
}

// What a setting of a study was run with: methods and values of x, by number
function ran(one, {x, where}) {
  const k = one.labels.findIndex(l => l.name === x), cells = settings(one, x).get(where);
  const numbers = some => [...new Set(some)].sort((a, b) => a - b);
  return {methods: numbers(cells.map(c => c[0])).map(i => one.methods[i]), places: numbers(cells.map(c => c[1][k]))};
}

// What a study has no value of becomes the first that it has
export function settle({studies}, v) {
  const one = studies[v.study], keep = (value, offered) => offered.includes(value) ? value : offered[0];
  const longest = [...one.labels].sort((a, b) => b.ticks.length - a.ticks.length), x = keep(v.x, longest.map(l => l.name));
  const where = keep(v.where, [...settings(one, x).keys()]), {methods, places} = ran(one, {x, where});
  const slugs = methods.map(([slug]) => slug), against = keep(v.against, slugs), method = keep(v.method, slugs.filter(slug => slug !== against || slugs.length === 1));
  return {...v, x, where, against, method, measure: keep(v.measure, one.measures.map(([name]) => name)), at: keep(v.at, places)};
}

const MOST = 15; // rows that can be read
const signed = (v, digits = 3) => (v > 0 ? "+" : "") + fixed(v, digits);

export const dials = {
  results_explorer: data => {
    const study = v => data.studies[v.study], label = v => study(v).labels.find(l => l.name === v.x), methods = v => ran(study(v), v).methods;
    const first = name => settle(data, {study: name, measure: "", x: "", where: "", method: "", against: "", at: 0}), names = Object.keys(data.studies);
    return {
      title: "The results of a study",
      lead: "Choose a study and two methods. Is one above the other by more than chance?",
      settle: v => settle(data, v),
      controls: {
        study: {label: "study", options: names.map(name => [name, name]), caption: "whose results"},
        method: {label: "method", options: methods, caption: "in purple"},
        against: {label: "against", options: methods, caption: "compared with, seed by seed"},
        x: {label: "from left to right", options: v => study(v).labels.filter(l => l.ticks.length > 1 || l.name === v.x).map(l => [l.name, l.axis]), caption: "the label that changes"},
        where: {label: "where", wide: true, options: v => [...settings(study(v), v.x).keys()].map(words => [words, words]), caption: "what the other labels are held at"},
        at: {label: "at", options: v => ran(study(v), v).places.map(i => [i, label(v).words[i]]), caption: "where all methods are compared"},
        measure: {label: "measure", options: v => study(v).measures.map(([name, title]) => [name, title]), caption: "after training"},
      },
      presets: names.slice(0, 4).map(name => [name, first(name)]),
      draw(v) {
        const {means, gaps} = compare(data, v), {ticks, axis, words} = label(v), called = Object.fromEntries(methods(v)), [, title, unit, less] = study(v).measures.find(([name]) => name === v.measure);
        const of = slug => means.filter(m => m.slug === slug).sort((a, b) => a.place - b.place), points = some => some.map(m => [m.place, m.mean]);
        const two = [[v.against, "ink"], [v.method, "purple"]].map(([slug, colour]) => ({slug, colour, some: of(slug)}));
        const levels = [...means.map(m => m.mean), ...two.flatMap(({some}) => some.filter(m => m.n > 2).flatMap(m => [m.low, m.high]))];
        const low = Math.min(...levels), high = Math.max(...levels), beyond = 0.08 * (high - low) || 0.5;
        const best = (a, b) => less ? a.mean - b.mean : b.mean - a.mean;
        const tell = m => `${called[m.slug]} ${fixed(m.mean, 3)} [${fixed(m.low, 3)}, ${fixed(m.high, 3)}]`, told = m => `${called[m.slug]} ${signed(m.mean)} [${signed(m.low)}, ${signed(m.high)}]`;
        const here = gaps.filter(g => g.place === v.at).sort(best), clear = here.filter(g => g.low * g.high > 0), one = here.find(g => g.slug === v.method);
        const front = here.slice(0, MOST), rows = !one || front.includes(one) ? front : [...front.slice(0, -1), one];
        const ends = [0, ...rows.flatMap(g => [g.low, g.high])], least = Math.min(...ends), most = Math.max(...ends), room = 0.06 * (most - least) || 0.1;
        const top = means.filter(m => m.place === v.at).sort(best)[0], above = clear.filter(g => g.mean > 0).length;
        const verdict = !one ? `${called[v.method]} and ${called[v.against]} were not both run at ${words[v.at]}`
          : one.low * one.high > 0 ? `${called[v.method]} is ${fixed(Math.abs(one.mean), 3)} ${one.mean > 0 ? "above" : "below"} ${called[v.against]} at ${words[v.at]}`
            : `${called[v.method]} cannot be told from ${called[v.against]} at ${words[v.at]}`;
        return {
          panels: [{
            title: `${title}: ${verdict}`, height: 380,
            x: {label: axis, range: [-0.4, ticks.length - 0.6], ticks: ticks.map((_, i) => i), names: ticks, format: x => ticks[Math.max(0, Math.min(ticks.length - 1, Math.round(x)))]},
            y: {label: unit, range: [low - beyond, high + beyond]},
            marks: [
              {line: [[v.at, low - beyond], [v.at, high + beyond]], colour: "soft", width: 1.2, dash: "3 3"},
              ...methods(v).map(([slug]) => of(slug)).filter(some => !two.some(m => m.slug === some[0]?.slug)).flatMap(some => [
                {line: points(some), colour: "grey", width: 1, opacity: 0.45}, {dots: points(some), colour: "grey", size: 2.5, opacity: 0.7, spots: some.map(m => [m.place, m.mean, tell(m)])}]),
              ...two.flatMap(({some, colour, slug}) => [{line: points(some), colour, name: called[slug], label: some.length ? called[slug] : "", width: 2.6},
                ...some.map(m => ({line: [[m.place, m.low], [m.place, m.high]], colour, width: 2})), {dots: points(some), colour, spots: some.map(m => [m.place, m.mean, tell(m)])}]),
            ],
          }, {
            title: `Against ${called[v.against]} at ${words[v.at]}: ${above} clearly above, ${clear.length - above} below${here.length > MOST ? ` (${rows.length} of ${here.length} shown)` : ""}`, height: 380,
            x: {label: "difference, paired by seed", range: [least - room, most + room], format: x => (x > 0 ? "+" : "") + num(x, 2)}, y: {range: [Math.max(rows.length, 4) - 0.4, -0.6], ticks: span(0, rows.length - 1, rows.length), names: rows.map(g => called[g.slug])},
            marks: [
              ...rows.flatMap((g, i) => g === one ? [{bars: [[least - room, i - 0.42, most + room, i + 0.42]], colour: "purple", opacity: 0.12}] : []),
              {line: [[0, -0.6], [0, Math.max(rows.length, 4) - 0.4]], colour: "ink", width: 1.3},
              ...rows.flatMap((g, i) => {
                const colour = g.low * g.high <= 0 ? "grey" : g.mean > 0 !== less ? "green" : "red";
                return [{line: [[g.low, i], [g.high, i]], colour, width: 2.2}, {dots: [[g.mean, i]], colour, spots: [[g.mean, i, told(g)]]}];
              }),
              ...(rows.length ? [] : [{text: `${called[v.against]} was not run here`, at: [0, 1.5], anchor: "middle", colour: "soft"}]),
            ],
          }],
          say: `At ${words[v.at]}: ${top ? `${tell(top)} over ${num(top.n)} seeds is the ${less ? "lowest" : "highest"} mean of ${means.filter(m => m.place === v.at).length}` : "no method was run"}. Against ${called[v.against]}: ${clear.length ? `${clear.slice(0, 3).map(told).join("; ")}${clear.length > 3 ? "; …" : ""}` : "no interval leaves zero"}${here.length > clear.length ? `; ${here.length - clear.length} cannot be told from it` : ""}. Intervals hold 95 % each (Student's t over the seeds), not all at once.`,
        };
      },
    };
  },
};
