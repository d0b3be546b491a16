import { bisect, fixed, gdpEpsilon, gdpSigma, logFactorial, normals, num } from "../widgets/dial.js";

const DELTA = 1e-5, EDGE = 13;

// Largest chance of so many correct guesses under (ε, δ)-DP, as audit.bounds.one_run_p_value
export function pValue(m, guesses, correct, epsilon, delta) {
  const log = -Math.log1p(Math.exp(-epsilon)), out = log - epsilon, tail = new Float64Array(guesses + 2);
  const mean = guesses * Math.exp(log), wide = 12 * Math.sqrt(mean * Math.exp(out)) + 40; // beyond: below 1e-30
  const low = Math.max(0, Math.floor(mean - wide)), high = Math.min(guesses, Math.ceil(mean + wide));
  tail.fill(1, 0, low);
  for (let k = high; k >= low; k--)
    tail[k] = tail[k + 1] + Math.exp(logFactorial(guesses) - logFactorial(k) - logFactorial(guesses - k) + k * log + (guesses - k) * out);
  let extra = 0;
  for (let i = 1; i <= correct && correct - i >= low - 1; i++) extra = Math.max(extra, (tail[correct - i] - tail[correct]) / i);
  return Math.min(1, tail[correct] + 2 * m * delta * extra);
}

export function lowerBound(m, guesses, correct, delta, significance) {
  const refuted = e => pValue(m, guesses, correct, e, delta) < significance;
  if (!refuted(0)) return 0;
  let high = 1;
  while (refuted(high)) high *= 2;
  return bisect(refuted, high > 1 ? high / 2 : 0, high, 28);
}

export const guessesOf = m => [4, 2, 1].map(k => [Math.max(1, Math.floor(Math.floor(m / 2) / k)), Math.max(1, Math.floor((m - Math.floor(m / 2)) / k))]);
const best = (m, correct) => Math.max(...guessesOf(m).map(g => lowerBound(m, g[0] + g[1], correct(g), DELTA, 0.05 / 3)));
const ceilings = {};
export const ceiling = m => ceilings[m] ??= best(m, g => g[0] + g[1]);

const drawn = {};
const draws = m => drawn[m] ??= [Array.from(normals(m, m), z => z > 0), normals(m + 7919, m), normals(11, m)];

function audit(m, epsilon, leak) { // coins, noised numbers, guesses: the same draws for all promises and bugs
  const sigma = gdpSigma(epsilon, DELTA), [coins, noise] = draws(m);
  const scores = coins.map((c, i) => leak * c + sigma * noise[i]);
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]);
  const lower = best(m, ([up, down]) => order.slice(0, up).filter(i => coins[i]).length + order.slice(m - down).filter(i => !coins[i]).length);
  return {sigma, coins, scores, lower, ceiling: ceiling(m), truth: gdpEpsilon(leak / sigma, DELTA)};
}

export const dials = {
  audit_explorer: () => ({
    title: "One audit in one run",
    lead: "Plant a bug and add canaries. When is the ledger caught?",
    controls: {
      canaries: {label: "canaries", values: [10, 20, 50, 100, 200, 500, 1000, 2000, 5000], caption: "examples, each in or out by a fair coin"},
      epsilon: {label: "stated ε", values: [0.5, 1, 2, 3, 5, 8], caption: "the ledger's, at δ = 0.00001: it sets the noise"},
      leak: {label: "bug", values: [1, 1.5, 2, 3, 4, 5, 8], unit: "× too loud", caption: "1 is no bug: a canary adds at most C"},
    },
    presets: [["no bug", {canaries: 200, epsilon: 2, leak: 1}], ["a bug, caught", {canaries: 200, epsilon: 2, leak: 4}], ["the same bug, too few canaries", {canaries: 20, epsilon: 2, leak: 4}], ["ε = 8: nothing can be caught", {canaries: 200, epsilon: 8, leak: 8}]],
    draw({canaries: m, epsilon, leak}) {
      const one = audit(m, epsilon, leak), caught = one.lower > epsilon, colour = caught ? "red" : "green", shift = draws(m)[2];
      const group = side => one.scores.map((s, i) => [s / one.sigma, side + 0.22 * Math.max(-1.2, Math.min(1.2, shift[i] / 1.5)), i]).filter(p => one.coins[p[2]] === Boolean(side)).slice(0, 400);
      const marks = [[one.ceiling, `${num(m)} canaries can show ${fixed(one.ceiling)}`, "soft"], [epsilon, `the ledger states ${num(epsilon)}`, "ink"], [one.truth, `true ${fixed(one.truth)}`, leak > 1 ? "red" : "soft"]].sort((a, b) => a[0] - b[0]);
      const bug = leak > 1 ? `a bug makes the true ε ${fixed(one.truth)}` : "there is no bug";
      const verdict = caught ? ", more than stated. Caught." : one.ceiling < epsilon ? ` and could prove ${fixed(one.ceiling)} at most, so no bug of any size can be caught.` : ` of the ${fixed(one.ceiling)} it could prove at most; nothing is refuted, nothing shown to be sound.`;
      return {
        panels: [{
          title: "What is seen of each canary: the further apart, the easier to guess", basis: 300,
          x: {label: "trace of a canary, in noise deviations", range: [-5, 13]}, y: {range: [-0.6, 1.6], ticks: [0, 1], names: ["out", "in"]},
          marks: [{dots: group(0), colour: "blue", size: 2.6, opacity: 0.6}, {dots: group(1), colour: "pink", size: 2.6, opacity: 0.6}],
        }, {
          title: `The audit ${caught ? "refutes" : "does not contradict"} the ledger`, basis: 340, wide: true,
          x: {label: "ε at δ = 0.00001", range: [0, EDGE]}, y: {range: [-0.8, 1.1], ticks: []}, margin: {left: 18},
          marks: [
            {bars: [[0, -0.09, EDGE, 0.09]], colour: "pale"}, {bars: [[0, -0.09, Math.min(one.lower, EDGE), 0.09]], colour},
            {text: `proved ${fixed(one.lower)}`, at: [0, -0.4], dx: 4, colour, bold: true, size: 15},
            ...marks.flatMap(([v, words, ink], i) => { const at = Math.min(v, EDGE), up = [0.85, 0.58, 0.31][i], left = at > 0.55 * EDGE; return [{line: [[at, -0.16], [at, up]], colour: ink, width: 1.6}, {text: words, at: [at, up], dx: left ? -5 : 5, dy: 4, anchor: left ? "end" : "start", colour: ink, bold: true}]; }),
          ],
        }],
        say: `${num(m)} canaries, the ledger states ε = ${num(epsilon)}, ${bug}: the audit proves ${fixed(one.lower)}${verdict}`,
      };
    },
  }),
};
