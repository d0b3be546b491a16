import { num, percent, sum } from "../widgets/dial.js";

export function reachable(values) { // best relative error of ranks 0 ... n, as theory.reachable_error
  const energy = values.map(v => v * v), total = sum(energy);
  return [...energy.map((_, r) => Math.sqrt(sum(energy.slice(r)) / total)), 0];
}

export const dials = {
  low_rank_explorer: ({ranks, alphas}) => ({
    title: "What rank and alpha let an adapter learn",
    lead: "Change the rank, then α. Which one moves the floor, and which one the way down?",
    controls: {
      rank: {label: "rank r", values: ranks, caption: "how many directions the adapter has"},
      alpha: {label: "LoRA's α", values: alphas, caption: "numerator of the scale γ = α / r"},
    },
    presets: [
      ["rank 1", {rank: 1, alpha: 8}], ["high rank, small α: slow", {rank: ranks.at(-1), alpha: 1}], ["small rank, large α: diverges", {rank: ranks[1] ?? 1, alpha: 32}],
    ],
    draw({rank, alpha}, {values, errors, step}) {
      const n = values.length, floor = reachable(values), best = floor[rank], scale = alpha / rank;
      const path = errors[ranks.indexOf(rank)][alphas.indexOf(alpha)].map((e, i) => [i * step, e]).filter(p => p[1] !== null);
      const whole = path.length === errors[0][0].length, last = path.at(-1)[1], near = path.find(p => p[1] <= best + 0.01), end = (errors[0][0].length - 1) * step;
      const overshoots = path.some((p, i) => i && p[1] > path[i - 1][1] + 1e-3); // the error rises on the way
      const lost = !whole || last > 1, bars = (from, to) => values.slice(from, to).map((v, i) => [from + i + 0.6, 0, from + i + 1.4, v]);
      const text = lost ? "this learning rate is too large: the descent diverges. Lower α, or raise the rank."
        : near ? `the descent is within 1 point of that after ${near[0]} steps.`
        : `${end} steps end at ${percent(last)}: the rank would allow more, ${overshoots ? "but steps this large overshoot: lower α." : "the small scale makes it slow."}`;
      const kept = {y: {label: "error, share of the change", range: [0, 1.02], format: v => percent(v)}};
      return {
        panels: [{
          title: `Keeps ${rank} of ${n} directions`, basis: 235,
          x: {label: "direction, largest first", range: [0.4, n + 0.6], ticks: [1, Math.round(n / 2), n]}, y: {label: "singular value", range: [0, 1.08 * values[0]]},
          marks: [{bars: bars(0, rank), colour: "blue"}, {bars: bars(rank, n), colour: "pale"}],
        }, {
          title: `Rank: where it ends, at ${percent(best)}`, basis: 235, ...kept,
          x: {label: "rank r", range: [1, n], log: true, ticks: ranks},
          marks: [
            {line: [[1, best], [n, best]], colour: "blue", dash: "5 4", width: 1.4},
            {line: floor.slice(1).map((e, i) => [i + 1, e]), name: "best error", colour: "ink"}, {dots: [[rank, best]], colour: "blue", size: 6.5},
          ],
        }, {
          title: `α: how fast (γ = ${num(scale)})`, basis: 235, ...kept, x: {label: "gradient step", short: "step", range: [0, end]},
          marks: [
            {line: [[0, best], [end, best]], colour: "blue", dash: "5 4", width: 1.4}, {text: "best of this rank", at: [end, best], anchor: "end", dy: best < 0.1 ? -6 : 15, colour: "blue", bold: true},
            {line: lost ? [...path, [path.length * step, 9]] : path, name: "error", colour: lost ? "red" : "green", width: 2.8}, ...(lost ? [{text: "diverges", at: [end / 2, 0.6], anchor: "middle", colour: "red", bold: true, size: 16}] : []),
          ],
        }],
        say: `Rank ${rank} can come within ${percent(best)} of the change, whatever α is. With α = ${alpha} (γ = ${num(scale)}) ${text}`,
      };
    },
  }),
};
