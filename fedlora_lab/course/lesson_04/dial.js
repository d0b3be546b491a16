import { num, percent, logSpan, span, curve } from "../widgets/dial.js";

// Expected energies in γ (B + Ξ_B)(A + Ξ_A) − γ B A, as theory.noise_terms; ‖A‖² = r / 3
export function noiseTerms({std, rank, alpha, width, size_B}) {
  const s2 = (alpha / rank) ** 2, A2 = rank / 3;
  return [s2 * std ** 2 * width * A2, s2 * std ** 2 * width * size_B ** 2 * A2, s2 * std ** 4 * width ** 2 * rank];
}

// Noise of one release on an entry of the averaged factor, releases of a run, amplification
export function amplification({unit, sigma, C, lr, batch, clients, rounds, steps, width, scale}) {
  const step = unit === "example";
  const tau = step ? lr * sigma * C / batch / Math.sqrt(clients) : sigma * C / clients;
  const releases = step ? rounds * steps : rounds;
  return {tau, releases, rho: 3 * width * releases * tau ** 2 / scale ** 2};
}

// Norms of noise over the largest norm the signal can reach in the run, after a share t of it
export function noiseToSignal(v, t) {
  const {tau, releases, rho} = amplification(v);
  const most = releases * (v.unit === "example" ? v.lr * v.C : v.C); // all clients and steps agree
  const linear = Math.sqrt(v.width * v.rank * releases * t) * tau / most;
  return {signal: t, linear, quadratic: linear * Math.sqrt(rho * t)};
}

const TERMS = [["noise on B", "blue"], ["noise on A", "orange"], ["noise × noise", "purple"]];
const WIDTHS = [64, 256, 768, 4096], RANKS = [1, 2, 4, 8, 16, 32, 64];

// One scan's probabilities in a round, and what the noise did to the decision
export function decision({scans}, {scan, round}) {
  const {truth, noisy, clean} = scans[scan], best = row => row.indexOf(Math.max(...row));
  return {truth, noisy: noisy[round], clean: clean[round], decided: best(noisy[round]), would: best(clean[round])};
}

export const dials = {
  noise_explorer: () => ({
    title: "Noise on the factors, seen in the product",
    lead: "Turn the noise up. Where does noise × noise take over?",
    controls: {
      std: {label: "noise τ", min: 0.001, max: 1, log: true, caption: "on every entry of both factors"},
      width: {label: "layer width", values: WIDTHS, caption: "d_in = d_out of the layer"},
      rank: {label: "rank r", values: RANKS, caption: "inner dimension of B A"},
      alpha: {label: "LoRA's α", values: [1, 2, 4, 8, 16, 32], caption: "the product is multiplied by γ = α / r"},
      size_B: {label: "norm of B", min: 0, max: 2, step: 0.1, unit: "× A's", caption: "0 before training"},
    },
    presets: [
      ["at the start of training", {std: 0.02, width: 64, rank: 4, alpha: 8, size_B: 0}],
      ["same noise, wide layer", {std: 0.02, width: 4096, rank: 4, alpha: 8, size_B: 0}],
      ["after training", {std: 0.02, width: 64, rank: 4, alpha: 8, size_B: 1}],
    ],
    draw(v) {
      const at = logSpan(1e-3, 1, 61), here = noiseTerms(v), total = here[0] + here[1] + here[2];
      const one = noiseTerms({...v, std: 1}), cross = Math.sqrt((one[0] + one[1]) / one[2]);
      const shares = here.map(e => e / total);
      return {
        panels: [{
          title: `Noise × noise takes over at τ = ${num(cross, 2)}`, wide: true,
          x: {label: "τ, standard deviation of the noise on each entry of B and A", short: "τ", range: [1e-3, 1], log: true},
          y: {label: "energy in γ B A", range: [1e-6, 1e8], log: true},
          marks: [
            {line: [[v.std, 1e-6], [v.std, 1e8]], colour: "soft", width: 1.4, dash: "3 3"},
            ...TERMS.map(([name, colour], i) => ({line: one[i] ? curve(at, s => one[i] * s ** (i < 2 ? 2 : 4)) : [], name, colour, dash: i === 1 ? "7 4" : undefined, label: one[i] ? name : ""})),
            {dots: [[cross, (one[0] + one[1]) * cross ** 2]], colour: "ink", size: 6},
            ...TERMS.map(([, colour], i) => ({dots: here[i] ? [[v.std, here[i]]] : [], colour})),
          ],
        }, {
          title: `Shares of the energy at τ = ${num(v.std)}`, margin: {right: 48},
          x: {label: "share of the energy", range: [0, 1], ticks: [0, 0.5, 1]}, y: {range: [2.6, -0.6], ticks: [0, 1, 2], names: TERMS.map(t => t[0])},
          marks: TERMS.flatMap(([, colour], i) => [{bars: [[0, i - 0.32, shares[i], i + 0.32]], colour},
            {text: i === 1 && !v.size_B ? "0 %: B = 0" : percent(shares[i]), at: [shares[i], i], dx: 6, dy: 4, bold: true, anchor: shares[i] > 0.8 ? "end" : "start", ...(shares[i] > 0.8 ? {dx: -6, colour: "card", on: TERMS[i][1]} : {})}]),
        }],
        say: `Noise of τ = ${num(v.std)} on both factors of a ${v.width} × ${v.width} layer, rank ${v.rank}, α = ${v.alpha}: the product moves by ${num(Math.sqrt(total))} (root mean square norm). Noise × noise carries ${percent(shares[2])} of that energy; from τ = ${num(cross, 2)} on it carries more than half.`,
      };
    },
  }),

  noise_signal: () => ({
    title: "Noise against signal over the rounds",
    lead: "Where does noise × noise cross the linear noise, and where does noise pass the signal?",
    controls: {
      unit: {label: "protected unit", options: [["client", "client: the round's update"], ["example", "example: each local step"]], caption: "what is clipped and noised"},
      sigma: {label: "noise multiplier σ", min: 0.1, max: 20, log: true, caption: "noise on a sum has std σC"},
      C: {label: "clip norm C", min: 0.01, max: 10, log: true, caption: "longest contribution of a unit"},
      clients: {label: "clients K", values: [5, 10, 20, 50, 100, 200, 500, 1000], caption: "averaged in a round"},
      rounds: {label: "rounds T", values: [5, 10, 20, 40, 80, 160, 320], caption: "communication rounds"},
      width: {label: "layer width d", values: WIDTHS, caption: "d_in = d_out"},
      rank: {label: "rank r", values: RANKS, caption: "inner dimension of B A"},
      scale: {label: "start scale c", values: [1, 1.5, 2, 3, 4, 6, 8], caption: "A starts c times as large"},
      lr: {label: "learning rate η", min: 0.001, max: 2, log: true, caption: "example unit only"},
      batch: {label: "batch b", values: [4, 8, 16, 32, 64, 128], caption: "example unit only"},
      steps: {label: "local steps S", values: [1, 2, 5, 10, 20], caption: "releases a round in the example unit"},
    },
    presets: [
      ["client unit, 100 clients", {unit: "client", sigma: 3, C: 0.7, clients: 100, rounds: 40, width: 64, rank: 4, scale: 1}],
      ["the same, c = 4", {unit: "client", sigma: 3, C: 0.7, clients: 100, rounds: 40, width: 64, rank: 4, scale: 4}],
      ["example unit", {unit: "example", sigma: 1, C: 1, clients: 10, rounds: 20, width: 64, rank: 4, scale: 1, lr: 0.5, batch: 16, steps: 5}],
      ["the same, wide layer", {unit: "example", sigma: 1, C: 1, clients: 10, rounds: 20, width: 4096, rank: 4, scale: 1, lr: 0.5, batch: 16, steps: 5}],
    ],
    draw(v) {
      const {tau, releases, rho} = amplification(v), T = v.rounds, end = noiseToSignal(v, 1);
      const ts = span(0, T, 81).slice(1), crossing = T / rho, at = k => curve(ts, t => noiseToSignal(v, t / T)[k]);
      const noise = Math.hypot(end.linear, end.quadratic), share = rho / (1 + rho);
      const crosses = crossing <= T ? `noise × noise crosses the linear noise in round ${num(Math.ceil(crossing))} of ${T}` : `noise × noise stays below the linear noise in all ${T} rounds; it would cross in round ${num(Math.ceil(crossing))}`;
      return {
        panels: [{
          title: "Norms in the product: 1 is the largest signal that the run can reach", wide: true, height: 290,
          x: {label: "round", range: [0, T]}, y: {label: "norm, relative", range: [1e-3, 1e3], log: true},
          marks: [
            ...(crossing <= T ? [{line: [[crossing, 1e-3], [crossing, 1e3]], colour: "soft", width: 1.4, dash: "3 3"}] : []),
            {line: at("signal"), name: "signal at most", label: "signal at most", colour: "green", dash: "7 4"},
            {line: at("linear"), name: "linear noise", label: "linear noise", colour: "blue"},
            {line: at("quadratic"), name: "noise × noise", label: "noise × noise", colour: "purple"},
          ],
        }, {
          title: `ρ = 3 d N τ² / c² = ${num(rho)}`, height: 290,
          x: {label: "round", range: [0, T]}, y: {label: "noise × noise, share of energy", range: [0, 1], format: x => percent(x)},
          marks: [
            {line: [[0, 0.5], [T, 0.5]], colour: "soft", width: 1.4, dash: "3 3"}, {text: "ρ = 1: one half", at: [T, 0.5], anchor: "end", dy: -5, colour: "soft"},
            {line: curve([0, ...ts], t => rho * t / T / (1 + rho * t / T)), name: "share", colour: "purple", width: 3},
            {dots: [[T, share]], colour: "purple", spots: [[T, share, `at the end ${percent(share)}`]]},
          ],
        }],
        say: `One release puts noise of std τ = ${num(tau, 2)} on an entry of the averaged factors; ${releases} releases make ρ = ${num(rho)}: ${crosses}. At the end the noise is ${num(noise, 2)} times the largest signal, which needs all clients and steps to agree, and noise × noise is ${percent(share)} of its energy.`,
      };
    },
  }),

  decision_film: data => ({
    title: "One scan, round by round",
    lead: "Press Play. The scan stays the same. What becomes of the decision as noise gathers?",
    play: "round",
    controls: {
      scan: {label: "scan", options: data.scans.map(({truth}, i) => [i, `a ${truth}`]), caption: "of the test scans"},
      round: {label: "round", values: data.scans[0].noisy.map((_, t) => t), caption: "0 is before training"},
    },
    presets: data.scans.map(({truth}, i) => [`a ${truth}`, {scan: i, round: data.scans[i].noisy.length - 1}]),
    draw(v) {
      const {pixels} = data.scans[v.scan], one = decision(data, v), rounds = data.scans[v.scan].noisy.length - 1;
      const truth = key => data.scans[v.scan][key].map((row, t) => [t, row[one.truth]]), classes = one.noisy.map((_, c) => c);
      const unit = {range: [0, 1], format: x => percent(x)}, changed = one.decided !== one.would;
      return {
        panels: [{
          title: `The scan: a ${one.truth}`, basis: 180, bare: true, height: 220, x: {range: [0, 8]}, y: {range: [8, 0]},
          margin: {left: 4, right: 4, top: 4, bottom: 4}, marks: [{image: pixels, wide: 8}],
        }, {
          title: changed ? `Round ${v.round}: it says ${one.decided}; with the noise taken out, ${one.would}` : `Round ${v.round}: it says ${one.decided} either way`, height: 250, wide: true,
          x: {label: "digit", range: [-0.6, 9.6], ticks: classes}, y: {...unit, label: "probability"},
          marks: [
            {bars: one.noisy.map((p, c) => [c - 0.4, 0, c, p]), colour: "purple"}, {bars: one.clean.map((p, c) => [c, 0, c + 0.4, p]), colour: "green"},
          ],
        }, {
          title: `Probability of the ${one.truth} over the rounds`, height: 250, wide: true,
          x: {label: "round", range: [0, rounds]}, y: {...unit, range: [0, 1]},
          marks: [
            {line: truth("clean"), name: "noise taken out", label: "noise taken out", colour: "green"},
            {line: truth("noisy"), name: "as trained", label: "as trained", colour: "purple"},
            {dots: [truth("clean")[v.round]], colour: "green"}, {dots: [truth("noisy")[v.round]], colour: "purple"},
          ],
        }],
        say: `Round ${v.round} of ${rounds}: the model, with the noise that its factors have gathered, gives the ${one.truth} a probability of ${percent(one.noisy[one.truth])} and says ${one.decided}. With that noise taken out (γ B̂ Â alone) it would be ${percent(one.clean[one.truth])}, and it would say ${one.would}. Of all ${data.examples} test scans ${percent(data.changed[v.round])} are decided differently; ${percent(data.right[0][v.round])} are right as trained and ${percent(data.right[1][v.round])} with the noise taken out.`,
      };
    },
  }),
};
