import { cdf, curve, fixed, gdpDelta, logCdf, logFactorial, logSpan, num, pdf, percent, quantile, span, sum } from "../widgets/dial.js";

// The privacy loss of N Gaussian releases, each from a Poisson sample of rate q, in both directions

const GRID = 8192, TURNS = Array.from({length: GRID / 2}, (_, k) => 2 * Math.PI * k / GRID);
const COS = Float64Array.from(TURNS, Math.cos), SIN = Float64Array.from(TURNS, Math.sin);

function fft(re, im, sign) { // in place, for arrays as long as the grid
  const n = GRID;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j], im[i], im[j]] = [re[j], re[i], im[j], im[i]];
  }
  for (let size = 2; size <= n; size *= 2) for (let k = 0; k < size / 2; k++) {
    const c = COS[k * n / size], s = sign * SIN[k * n / size];
    for (let i = k, j = k + size / 2; i < n; i += size, j += size) {
      const a = re[j] * c - im[j] * s, b = re[j] * s + im[j] * c;
      re[j] = re[i] - a; im[j] = im[i] - b; re[i] += a; im[i] += b;
    }
  }
}

function composed(losses, masses, N, M = GRID) { // {low, step, p}: the law of the sum of N losses
  const m = sum(losses.map((l, i) => l * masses[i])), range = Math.max(...losses.map(l => Math.abs(l - m)));
  const sd = Math.sqrt(sum(losses.map((l, i) => (l - m) ** 2 * masses[i])));
  const half = Math.max(10 * sd * Math.sqrt(N), range) + range, step = 2 * half / M;
  const re = new Float64Array(M), im = new Float64Array(M);
  losses.forEach((l, i) => { // each mass goes to two neighbours on the grid, so that means stay
    const at = (l - m) / step, low = Math.floor(at), part = at - low;
    re[(low + M) % M] += masses[i] * (1 - part);
    re[(low + 1 + M) % M] += masses[i] * part;
  });
  fft(re, im, -1);
  for (let i = 0; i <= M / 2; i++) { // the masses are real: the other half mirrors this one
    const size = (re[i] * re[i] + im[i] * im[i]) ** (N / 2), angle = size && Math.atan2(im[i], re[i]) * N, j = (M - i) % M;
    re[i] = re[j] = size * Math.cos(angle); im[i] = size * Math.sin(angle); im[j] = i === j ? im[i] : -im[i];
  }
  fft(re, im, 1);
  const p = Float64Array.from({length: M}, (_, i) => Math.max(0, re[(i + M / 2) % M] / M));
  return {low: N * m - half, step, p};
}

function tails({low, step, p}) { // sums from the right: of p, and of p e^-loss
  const M = p.length, S = new Float64Array(M + 1), R = new Float64Array(M + 1);
  for (let i = M - 1; i >= 0; i--) {
    S[i] = S[i + 1] + p[i];
    R[i] = R[i + 1] + (p[i] > 1e-15 ? p[i] * Math.exp(-(low + i * step)) : 0);
  }
  const at = epsilon => Math.max(0, Math.min(M, Math.floor((epsilon - low) / step) + 1));
  return {S, R, delta: e => Math.max(0, S[at(e)] - Math.exp(e) * R[at(e)])};
}

let kept = {};
export function privacyLoss(sigma, q, N) {
  if (kept.key === `${sigma} ${q} ${N}`) return kept;
  const mu = Math.sqrt(N) / sigma, found = {key: `${sigma} ${q} ${N}`};
  if (q === 1) Object.assign(found, { // Gaussian DP, exact
    delta: e => gdpDelta(mu, e), found: f => cdf(quantile(f) + mu),
  });
  else {
    const x = span(-9 * sigma, 1 + 9 * sigma, 3001), dx = x[1] - x[0], law = m => x.map(v => pdf((v - m) / sigma) / sigma * dx);
    const out = law(0), into = law(1), loss = x.map(v => { const z = (2 * v - 1) / (2 * sigma ** 2); return z > 0 ? z + Math.log(q + (1 - q) * Math.exp(-z)) : Math.log1p(q * Math.expm1(z)); });
    const ways = [tails(composed(loss, out.map((p, i) => (1 - q) * p + q * into[i]), N)), tails(composed(loss.map(l => -l), out, N))];
    const tpr = ({S, R}, f) => { // found at a false positive rate: R falls
      let low = 0, high = R.length - 1;
      while (high - low > 1) { const k = (low + high) >> 1; if (R[k] > f) low = k; else high = k; }
      const part = R[low] > R[high] ? Math.min(1, Math.max(0, (f - R[high]) / (R[low] - R[high]))) : 0;
      return Math.min(1, S[high] + part * (S[low] - S[high]));
    };
    Object.assign(found, {delta: e => Math.max(...ways.map(w => w.delta(e))), found: f => Math.max(...ways.map(w => tpr(w, f)))});
  }
  found.epsilon = delta => {
    if (found.delta(0) <= delta) return 0;
    let low = 0, high = 1;
    while (found.delta(high) > delta && high < 1e5) high *= 2;
    for (let i = 0; i < 50; i++) { const m = (low + high) / 2; if (found.delta(m) > delta) low = m; else high = m; }
    return high;
  };
  return kept = found;
}

// Closed forms, as theory.membership_bound, sampled_gaussian_rdp and rdp_to_epsilon

export const membershipBound = (f, epsilon, delta) =>
  Math.min(1, delta + f * Math.exp(Math.min(epsilon, 700)), 1 - Math.exp(-epsilon) * (1 - delta - f));

const ORDERS = Array.from({length: 63}, (_, i) => i + 2);
export function renyi(order, q, sigma) {
  if (q === 1) return order / (2 * sigma ** 2);
  const terms = Array.from({length: order + 1}, (_, j) => logFactorial(order) - logFactorial(j) - logFactorial(order - j)
    + (order - j) * Math.log1p(-q) + j * Math.log(q) + (j * j - j) / (2 * sigma ** 2));
  const top = Math.max(...terms);
  return (top + Math.log(sum(terms.map(t => Math.exp(t - top))))) / (order - 1);
}
export const renyiEpsilon = (one, N, delta) => Math.max(0, Math.min(...ORDERS.map((a, i) =>
  N * one[i] + Math.log1p(-1 / a) - (Math.log(delta) + Math.log(a)) / (a - 1))));
export const renyiOrders = (q, sigma) => ORDERS.map(a => renyi(a, q, sigma));

const RATES = [...logSpan(1e-4, 0.1, 40), ...span(0.11, 1, 60)];
const DELTA = 1e-4;
const interpolate = (xs, ys, x) => {
  const k = Math.max(1, xs.findIndex(v => v >= x)), part = (x - xs[k - 1]) / (xs[k] - xs[k - 1]);
  return ys[k - 1] + Math.min(1, part) * (ys[k] - ys[k - 1]);
};
function withLaw(sigma, q, N) { // density of the mean of N releases with the example in it, over the other's peak
  const chances = Array.from({length: N + 1}, (_, k) => [k / N, q === 1 ? Number(k === N)
    : Math.exp(logFactorial(N) - logFactorial(k) - logFactorial(N - k) + k * Math.log(q) + (N - k) * Math.log1p(-q))]).filter(c => c[1] > 1e-5);
  return x => sum(chances.map(([at, p]) => p * Math.exp(-((x - at) ** 2) * N / (2 * sigma ** 2))));
}

export const dials = {
  two_worlds: () => ({
    title: "Two worlds",
    lead: "Turn the noise down: when can an attacker tell the two worlds apart?",
    controls: {
      sigma: {label: "noise multiplier σ", min: 0.3, max: 30, log: true, caption: "noise on the sum has std σC"},
      C: {label: "clip norm C", min: 0.1, max: 10, log: true, caption: "most that one example adds"},
      q: {label: "sample rate q", values: [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], caption: "chance to be in a release"},
      N: {label: "releases N", values: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], caption: "all seen by the attacker"},
      epsilon: {label: "ε", min: 0, max: 10, step: 0.1, caption: "at which δ is read"},
    },
    presets: [
      ["one release, σ = 1", {sigma: 1, C: 1, q: 1, N: 1, epsilon: 1}],
      ["σ = 4: well hidden", {sigma: 4, C: 1, q: 1, N: 1, epsilon: 1}],
      ["a training run near ε = 8", {sigma: 1.1, C: 1, q: 0.1, N: 200, epsilon: 8}],
      ["ten times the clip", {sigma: 1, C: 10, q: 1, N: 1, epsilon: 1}],
    ],
    draw({sigma, C, q, N, epsilon}) {
      const one = privacyLoss(sigma, q, N), delta = one.delta(epsilon), std = sigma / Math.sqrt(N);
      const ends = [-4 * std, q + 4 * Math.hypot(std, Math.sqrt(q * (1 - q) / N))], xs = span(...ends, 161);
      const out = xs.map(x => Math.exp(-x * x / (2 * std * std))), into = xs.map(withLaw(sigma, q, N));
      const law = ys => xs.map((x, i) => [x * C, ys[i]]), edge = ends.map(x => x * C), worst = Math.exp(Math.min(epsilon, 30));
      const rates = [0, ...RATES], roc = rates.map(f => [f, one.found(Math.max(f, 1e-12))]);
      const best = roc.reduce((a, b) => b[1] - b[0] > a[1] - a[0] ? b : a), advantage = one.delta(0), few = one.found(0.01);
      return {
        panels: [{
          title: N === 1 ? "The released sum, with and without you" : `Mean of the ${N} releases, with and without you`, basis: 235,
          x: {label: "released number", range: edge}, y: {range: [0, 1.3], ticks: []}, margin: {left: 14},
          marks: [
            {area: [[edge[0], 0], ...law(xs.map((_, i) => Math.min(out[i], into[i]))), [edge[1], 0]], colour: "grey", opacity: 0.3},
            ...(q === 1 ? [{area: [...law(into.map((v, i) => Math.max(v, Math.min(1.3, worst * out[i])))), ...law(out.map(v => Math.min(1.3, worst * v))).reverse()], colour: "red", opacity: 0.45}] : []),
            {line: law(out), colour: "blue", name: "without"}, {line: law(into), colour: "pink", name: "with"},
            {text: "without you", at: [edge[0], 1.19], dx: 6, colour: "blue", bold: true}, {text: "with you", at: [edge[1], 1.19], dx: -6, anchor: "end", colour: "pink", bold: true},
            {text: q === 1 ? "grey: overlap, red: δ" : "grey: overlap", at: [edge[0], 1.07], dx: 6, colour: "soft", size: 11.5},
          ],
        }, {
          title: `The best attacker finds ${percent(few)} at 1 % false alarms`, basis: 235,
          x: {label: "others wrongly accused (FPR)", short: "FPR", range: [0, 1]}, y: {label: "members found (TPR)", range: [0, 1]},
          marks: [
            {line: [[0, 0], [1, 1]], colour: "edge", dash: "3 3", width: 1.2}, {text: "guessing", at: [0.7, 0.6], colour: "soft", size: 11.5},
            {area: [...roc, [1, 1]], colour: "ink", opacity: 0.07},
            {line: [...rates].map(f => [f, membershipBound(f, epsilon, delta)]), colour: "red", dash: "6 4", name: "allowed by (ε, δ)"},
            {line: roc, colour: "ink", name: "best attacker", width: 2.6},
            {line: [[best[0], best[0]], best], colour: "purple", width: 2}, {text: `advantage ${fixed(advantage)}`, at: [best[0], (best[0] + best[1]) / 2], dx: 6, dy: 4, colour: "purple", bold: true},
            {dots: [[0.01, few]], colour: "red", spots: [[0.01, few, `TPR ${percent(few, 1)} at FPR 1 %`]]},
            {text: "red: (ε, δ) allows", at: [1, 0.06], dx: -4, anchor: "end", colour: "red", size: 11.5},
          ],
        }, {
          title: `δ(${num(epsilon)}) = ${num(delta, 2)}`, basis: 235,
          x: {label: "ε", range: [0, 10]}, y: {label: "δ", range: [1e-10, 1], log: true},
          marks: [
            {line: curve(span(0, 10, 101), one.delta).filter(p => p[1] > 1e-13), name: "δ", colour: "ink"},
            {line: [[epsilon, 1e-10], [epsilon, 1]], colour: "soft", dash: "3 3", width: 1.4},
            {dots: delta > 1e-10 ? [[epsilon, delta]] : [], colour: "red", size: 6},
          ],
        }],
        say: `σ = ${num(sigma)}, ${N} release${N > 1 ? "s" : ""} at q = ${num(q)}: ε = ${num(epsilon)} holds with δ = ${num(delta, 2)}, and δ = 10⁻⁵ with ε = ${num(one.epsilon(1e-5))}. The best attacker has an advantage of ${fixed(advantage)} and finds ${percent(few, few < 0.1 ? 1 : 0)} of the members while accusing 1 % of the others wrongly. C = ${num(C)} only stretches the axis: the noise is σC.`,
      };
    },
  }),

  clip_explorer: ({norms}) => ({
    title: "What the clip costs",
    lead: "Move the clip norm. Where does the release point best along the mean gradient?",
    controls: {
      clip_norm: {label: "clip norm C", min: 0.03, max: 100, log: true, caption: "longest gradient left as it is"},
      noise_multiplier: {label: "noise σ", min: 0.1, max: 10, log: true, unit: "× C", caption: "noise on the sum has std σC"},
      batch: {label: "batch", values: [16, 64, 256, 1024, 4096], caption: "examples in the released mean"},
    },
    presets: [
      ["too low: turned", {clip_norm: 0.1, noise_multiplier: 1, batch: 1024}],
      ["too high: noisy", {clip_norm: 50, noise_multiplier: 1, batch: 1024}],
      ["small batch", {clip_norm: 1, noise_multiplier: 1, batch: 16}],
    ],
    draw({clip_norm: C, noise_multiplier, batch}, {norms, at, length, cosine, square, mean, count, numbers}) {
      const spread = at.map((c, i) => Math.max(0, 1 - batch / count) / batch * square[i] + numbers * (noise_multiplier * c / batch) ** 2);
      const released = cosine.map((x, i) => x * length[i] * mean / Math.hypot(length[i] * mean, Math.sqrt(spread[i])));
      const best = released.indexOf(Math.max(...released)), cut = norms.filter(v => v > C).length / norms.length;
      const edges = logSpan(0.03, 100, 43), counts = edges.slice(1).map((right, i) => norms.filter(v => v >= edges[i] && v < right).length / norms.length);
      const top = 1.3 * Math.max(...counts), bars = over => counts.flatMap((c, i) => (edges[i] >= C) === over ? [[edges[i], 0, edges[i + 1], c]] : []);
      const x = {label: "clip norm C", short: "C", range: [0.03, 100], log: true}, along = ys => at.map((a, i) => [a, ys[i]]);
      return {
        panels: [{
          title: `How long each gradient is: ${percent(cut)} are cut down to C`,
          x: {...x, label: "length of an example's gradient"}, y: {label: "share of the examples", range: [0, top], format: v => percent(v)},
          marks: [{bars: bars(false), colour: "grey", edge: "card"}, {bars: bars(true), colour: "pink", edge: "card"},
            {line: [[C, 0], [C, top]], colour: "ink"}, {text: "C", at: [C, top], dx: 5, dy: 12, bold: true}],
        }, {
          title: `The release points best along the mean gradient near C = ${num(at[best], 2)}`, basis: 320,
          x, y: {label: "relative to the mean gradient", range: [0, 1.1]},
          marks: [
            {line: along(length), colour: "soft", dash: "6 4", width: 1.6, name: "length after the clip"},
            {line: along(cosine), colour: "pink", name: "cosine after the clip"}, {line: along(released), colour: "teal", name: "cosine with draw and noise", width: 2.6},
            {text: "dashed: length", at: [100, 0.9], anchor: "end", dx: -4, colour: "soft", size: 11.5},
            {text: "cosine after the clip", at: [0.033, cosine[0]], dy: -7, colour: "pink", size: 11.5}, {text: "with draw and noise", at: [0.033, released[0]], dy: released[0] < 0.15 ? -7 : 15, colour: "teal", size: 11.5},
            {line: [[C, 0], [C, 1.1]], colour: "ink", width: 1.4}, {dots: [[at[best], released[best]]], colour: "ink", size: 6},
          ],
        }],
        say: `C = ${num(C)}: ${percent(cut)} of ${num(count)} gradients are cut. The mean of the clipped ones is ${num(1 / interpolate(at, length, C), 2)} times shorter than the mean gradient, which a learning rate makes up for, and turned by ${num(Math.acos(Math.min(1, interpolate(at, cosine, C))) * 180 / Math.PI, 2)}°, which none does. With the draw of the batch and the noise the cosine is ${fixed(interpolate(at, released, C))}, at best ${fixed(released[best])} near C = ${num(at[best], 2)}.`,
      };
    },
  }),

  privacy_planner: () => ({
    title: "A privacy planner",
    lead: "Plan a run: what ε does it spend, and what does that leave to an attacker?",
    controls: {
      unit: {label: "protected unit", options: [["example", "an example"], ["client", "a client"]], caption: "who is protected"},
      noise_multiplier: {label: "noise multiplier σ", min: 0.3, max: 10, log: true, caption: "noise on the sum has std σC"},
      drawn: {label: "drawn in a release", values: [1, 2, 4, 8, 16, 32, 64, 128, 256], caption: "expected number of units"},
      of: {label: "units in all", values: [20, 50, 120, 200, 500, 1000, 2000, 5000, 20000], caption: "a client's examples, or clients"},
      releases: {label: "releases N", values: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], caption: "noised sums in the whole run"},
    },
    presets: [
      ["120 examples, 100 steps", {unit: "example", noise_multiplier: 2, drawn: 16, of: 120, releases: 100}],
      ["twice the noise", {unit: "example", noise_multiplier: 4, drawn: 16, of: 120, releases: 100}],
      ["5,000 examples", {unit: "example", noise_multiplier: 2, drawn: 16, of: 5000, releases: 100}],
      ["20 clients, all in every round", {unit: "client", noise_multiplier: 2, drawn: 32, of: 20, releases: 20}],
    ],
    draw({unit, noise_multiplier: sigma, drawn, of, releases}) {
      const q = Math.min(1, drawn / of), one = privacyLoss(sigma, q, releases), spent = one.epsilon(DELTA), orders = renyiOrders(q, sigma);
      const bound = curve(logSpan(1, 1000, 40), t => renyiEpsilon(orders, t, DELTA)), rates = logSpan(1e-3, 1, 60);
      const allowed = curve(rates, one.found), loose = curve(rates, f => membershipBound(f, spent, DELTA)), who = unit === "example" ? "one example" : "one client, with all its examples,";
      return {
        panels: [{
          title: `One ${unit} is promised ε = ${fixed(spent)} after ${releases} releases`,
          x: {label: "releases", range: [1, 1000], log: true}, y: {label: "ε at δ = 0.0001", range: [0.01, 1000], log: true},
          marks: [
            {line: bound, name: "Rényi bound", colour: "purple", label: "Rényi bound", at: [1.3, bound[3][1]], dy: -16},
            {dots: [[releases, spent]], colour: "ink", size: 6.5, spots: [[releases, spent, `privacy loss, composed: ε = ${fixed(spent)}`]]}, {text: `ε = ${num(spent)}`, at: [releases, spent], bold: true, anchor: releases > 200 ? "end" : "start", dx: releases > 200 ? -9 : 9, dy: 18},
          ],
        }, {
          title: `An attacker finds at most ${percent(allowed[0][1], 1)} at one false alarm in 1,000`,
          x: {label: "others wrongly accused", short: "FPR", range: [1e-3, 1], log: true}, y: {label: "members found", range: [1e-3, 1], log: true},
          marks: [
            {area: [[1e-3, 1], ...loose, [1, 1]], colour: "red", opacity: 0.1}, {text: "forbidden", at: [1e-3, 1], dx: 8, dy: 18, colour: "red", bold: true},
            {line: curve(rates, f => f), colour: "edge", dash: "3 3"}, {text: "guessing", at: [0.2, 0.1], colour: "soft"},
            {line: loose, name: "by (ε, δ) alone", colour: "red", dash: "6 4", width: 1.4}, {line: allowed, name: "at most", colour: "ink"}, {dots: [allowed[0]], colour: "ink", size: 6},
          ],
        }],
        say: `${releases} releases, each of ${drawn} out of ${num(of)} ${unit}s (q = ${num(q, 2)}), σ = ${num(sigma)}: ${who} is promised ε = ${fixed(spent)} at δ = 0.0001. Wrongly accusing 1 in 1,000, an attacker finds at most ${percent(allowed[0][1], 1)} of the members; ε and δ alone (dashed) would allow ${percent(loose[0][1], 1)}.`,
      };
    },
  }),
};
