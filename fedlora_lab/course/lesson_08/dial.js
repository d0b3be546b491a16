import { num, percent, quantile } from "../widgets/dial.js";

export function levels(width, reach = 0.9677083) { // as methods.quantization.normal_levels
  const half = 2 ** (width - 1), up = n => Array.from({length: n}, (_, i) => quantile(reach + (0.5 - reach) * i / n) / quantile(reach));
  return [...up(half - 1).map(v => -v), 0, ...up(half).reverse()];
}

export const dials = {
  quantiser_explorer: ({kinds, blocks, widths}) => ({
    title: "What a normal-float code does to numbers",
    lead: "Take bits away. What arrives, and how far is it off?",
    controls: {
      width: {label: "bits", min: widths[0], max: widths.at(-1), step: 1, caption: "of a code: 2 to this power levels"},
      block: {label: "block", values: blocks, caption: "numbers that share a scale"},
      kind: {label: "numbers", options: kinds.map(k => [k, k]), caption: "what is quantised"},
    },
    presets: [["NF4, as in QLoRA", {width: 4, block: 64}], ["2 bits", {width: 2, block: 64}], ["outliers, large blocks", {width: 4, block: 256, kind: kinds[1]}], ["outliers, small blocks", {width: 4, block: 8, kind: kinds[1]}]],
    draw({width, block, kind}, {histograms, errors, closed}) {
      const code = levels(width), k = kinds.indexOf(kind), b = blocks.indexOf(block), w = widths.indexOf(width);
      const heights = histograms[k][b], n = heights.length, off = errors[k][b][w], normal = closed[b][w], bits = width + 32 / block;
      const middles = [-1, ...code.slice(1).map((v, i) => (v + code[i]) / 2), 1];
      const stairs = code.flatMap((v, i) => [[middles[i], v], [middles[i + 1], v]]);
      return {
        panels: [{
          title: `The numbers, and the ${code.length} levels below`, basis: 235,
          x: {label: "number ÷ largest of its block", range: [-1.03, 1.03], ticks: [-1, 0, 1]}, y: {range: [-0.25, 2.2], ticks: []}, margin: {left: 14},
          marks: [
            {bars: heights.map((h, i) => [2 * i / n - 1, 0, 2 * (i + 1) / n - 1, h]), colour: "pale"},
            {bars: code.map(v => [v - (width > 5 ? 0.0015 : 0.006), -0.2, v + (width > 5 ? 0.0015 : 0.006), -0.02]), colour: "purple"},
          ],
        }, {
          title: "What arrives", basis: 235,
          x: {label: "sent", range: [-1.03, 1.03], ticks: [-1, 0, 1]}, y: {label: "received", range: [-1.06, 1.06], ticks: [-1, 0, 1]},
          marks: [{line: [[-1, -1], [1, 1]], colour: "edge", width: 1.2}, {line: stairs, colour: "purple"}],
        }, {
          title: `Off by ${percent(off, 1)}`, basis: 235,
          x: {label: "bits of a code", short: "bits", range: [1.6, 8.4], ticks: [2, 4, 6, 8]}, y: {label: "relative error", range: [0.002, 1.2], log: true, format: v => percent(v, v < 0.01 ? 1 : 0)},
          marks: [
            {line: closed[b].map((e, i) => [widths[i], e]), colour: "grey", name: "normal numbers, closed form"}, {text: "normal numbers", at: [8.3, 0.8], anchor: "end", colour: "soft"},
            {line: errors[k][b].map((e, i) => [widths[i], e]), colour: "purple", dash: "2 4", name: kind}, {dots: [[width, off]], colour: "purple", size: 7},
          ],
        }],
        say: `${width} bits, ${code.length} levels, blocks of ${block}: ${num(bits)} bits a number on the wire, ${num(32 / bits, 2)} times fewer than float32. What arrives is ${percent(off, 1)} off; normal numbers would be ${percent(normal, 1)} off.`,
      };
    },
  }),
};
