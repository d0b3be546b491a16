import { fixed, span, sum } from "../widgets/dial.js";

export function deviation(points, first) { // weights: `first` for client 1, equal for the others
  const p = points.map((_, k) => k ? (1 - first) / (points.length - 1) : first);
  const mean = i => sum(points.map((x, k) => p[k] * x[i])), B = mean(0), A = mean(1);
  const parts = points.map(([b, a], k) => -p[k] * (b - B) * (a - A));
  return {B, A, server: B * A, wanted: sum(points.map(([b, a], k) => p[k] * b * a)), parts, D: sum(parts)};
}

const ring = (f, n = 6) => Array.from({length: n}, (_, k) => f(2 * Math.PI * k / n + 0.4).map(v => Number(v.toFixed(2))));
const hyperbola = product => [span(0.02, 4, 160), span(-4, -0.02, 160)].map(xs => xs.map(x => [x, product / x]));

export const dials = {
  deviation_explorer: () => ({
    title: "Clients as points",
    lead: "Drag the clients. When does the server miss the mean of their products?",
    controls: {
      weight: {label: "weight of client 1", min: 0.02, max: 0.8, log: true, caption: "p₁ in the server's mean; the others share the rest equally"},
    },
    presets: [
      ["go together", {points: ring(t => [1 + 0.9 * Math.cos(t), 1 + 0.8 * Math.cos(t - 0.3)]), weight: 1 / 6}],
      ["go against each other", {points: ring(t => [1 + 0.9 * Math.cos(t), 1 - 0.8 * Math.cos(t - 0.3)]), weight: 1 / 6}],
      ["all hold the same A", {points: ring(t => [1 + 1.2 * Math.cos(t), 1]), weight: 1 / 6}],
      ["both differ, D = 0", {points: [[2, 2], [2, 0], [0, 2], [0, 0], [1, 1.6], [1, 0.4]], weight: 1 / 6}],
    ],
    draw({points, weight}) {
      const {B, A, server, wanted, parts, D} = deviation(points, weight), n = points.length;
      const lines = (product, more) => hyperbola(product).map((line, i) => ({line, ...more, ...(i ? {label: undefined} : {})}));
      const move = k => (x, y) => ({points: points.map((p, i) => i === k ? [x, y] : p)});
      const top = Math.max(0.5, ...parts.map(Math.abs), Math.abs(D)) * 1.25, wide = 0.36;
      const why = points.every(p => p[1] === points[0][1]) ? "All clients hold the same A, so nothing is lost wherever B goes."
        : points.every(p => p[0] === points[0][0]) ? "All clients hold the same B, so nothing is lost wherever A goes."
        : Math.abs(D) < 0.005 ? "B and A do not go together over these clients, so nothing is lost, though both factors differ. Move the weight of client 1: does that stay so?"
        : `That is ${fixed(Math.abs(D))} too ${D < 0 ? "little: clients with a large B tend to have a large A" : "much: clients with a large B tend to have a small A"}.`;
      return {
        panels: [{
          title: "One dot a client (drag it, or use the arrow keys); × their averages", wide: true, basis: 420, height: 330,
          x: {label: "a client's B", range: [-1.5, 3.5]}, y: {label: "a client's A", range: [-1.5, 3.5]},
          marks: [
            {line: [[-1.5, 0], [3.5, 0]], colour: "edge", width: 1}, {line: [[0, -1.5], [0, 3.5]], colour: "edge", width: 1},
            ...lines(wanted, {colour: "green", dash: "6 4"}), ...lines(server, {colour: "ink"}),
            {text: `— server: B̄·Ā = ${fixed(server)}`, at: [3.45, 3.25], anchor: "end", bold: true},
            {text: `– – mean of products = ${fixed(wanted)}`, at: [3.45, 2.95], anchor: "end", bold: true, colour: "green"},
            {text: "a curve holds all pairs of one product", at: [3.45, -1.4], anchor: "end", colour: "soft", size: 11.5},
            {cross: [B, A], colour: "ink"},
            ...points.map(([b, a], k) => ({text: `${k + 1}`, at: [b, a], dx: 11, dy: -6, colour: k ? "blue" : "orange", bold: true})),
          ],
          handles: points.map((at, k) => ({at, move: move(k), words: `client ${k + 1}: B and A`, colour: k ? "blue" : "orange"})),
        }, {
          title: `D = B̄·Ā − mean of products = ${fixed(D)}`, height: 330,
          x: {label: "client's part −p (B − B̄)(A − Ā)", range: [0.4, n + 1.9], ticks: [...points.keys(), n].map(k => k + 1 + (k === n) * 0.3), names: [...points.map((_, k) => `${k + 1}`), "D"]},
          y: {range: [-top, top]},
          marks: [
            {bars: parts.slice(1).map((v, k) => [k + 2 - wide, 0, k + 2 + wide, v]), colour: "blue"},
            {bars: [[1 - wide, 0, 1 + wide, parts[0]]], colour: "orange"},
            {bars: [[n + 1.3 - wide, 0, n + 1.3 + wide, D]], colour: "red", spots: [[n + 1.3, D, `D = ${fixed(D, 3)}`], ...parts.map((v, k) => [k + 1, v, `client ${k + 1}: ${fixed(v, 3)}`])]},
            {line: [[0, 0], [n + 2, 0]], colour: "edge", width: 1},
          ],
        }],
        say: `The server holds ${fixed(server)} where the clients' products average ${fixed(wanted)}. ${why}`,
      };
    },
  }),
};
