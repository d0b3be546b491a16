import { curve, fixed, gdpEpsilon, normals, percent, span } from "../widgets/dial.js";

const ROUNDS = 6, STEPS = 4, REACH = 2.9;

export function parse(text) { // "B | A" -> rounds of words, as methods.Cycle reads it
  const rounds = text.split("|").map(round => round.trim().split(/\s+/).filter(Boolean));
  if (!rounds.every(words => words.length)) throw new RangeError("Each round needs a word: A, B or AB, rounds apart by |, such as B | B A | AB.");
  const odd = rounds.flat().find(word => !["A", "B", "AB", "BA"].includes(word));
  if (odd) throw new RangeError(`“${odd}” is no word here: A, B or AB, rounds apart by |, such as B | B A | AB.`);
  return (t, s) => { const words = rounds[t % rounds.length]; return words[s % words.length]; };
}

export function counted(cycle) {
  const words = Array.from({length: ROUNDS}, (_, t) => Array.from({length: STEPS}, (_, s) => cycle(t, s))), flat = words.flat();
  const share = side => flat.filter(w => w.includes(side)).length / flat.length;
  const moved = words.map(round => ["A", "B"].filter(side => round.some(w => w.includes(side))).length);
  return {words, B: share("B"), A: share("A"), both: moved.flatMap((n, t) => n === 2 ? [t + 1] : []), sent: moved.reduce((a, b) => a + b, 0) / (2 * ROUNDS)};
}

// Separation of the worst allowed change from the noise, as theory.regulated_multiplier has it
export const separation = (first, second, sigma, clip) => (clip === "factor" ? Math.max(first, second) : 1) / sigma;

const CLOUD = normals(4, 520);

// Noise (dots, ellipses of one and two deviations), the changes that the clip allows, the worst of them.
function plane(title, noise, allowed, turn) {
  const at = (u, v) => [u * Math.cos(turn) - v * Math.sin(turn), u * Math.sin(turn) + v * Math.cos(turn)];
  const shape = (a, b) => span(0, 2 * Math.PI, 73).map(t => at(a * Math.cos(t), b * Math.sin(t))), axis = {range: [-REACH, REACH], ticks: [-2, 0, 2]};
  const tip = allowed[0] / noise[0] >= allowed[1] / noise[1] ? at(allowed[0], 0) : at(0, allowed[1]);
  return {title, basis: 225, height: 250, square: true, x: {...axis, label: "in units of the clip C"}, y: axis, margin: {left: 26, right: 8}, marks: [
    {dots: Array.from({length: 260}, (_, i) => at(noise[0] * CLOUD[2 * i], noise[1] * CLOUD[2 * i + 1])).filter(p => p.every(v => Math.abs(v) < REACH)), colour: "teal", size: 1.8, opacity: 0.45},
    {line: shape(...noise), colour: "teal", width: 1.6}, {line: shape(...noise.map(v => 2 * v)), colour: "teal", width: 0.9}, {area: shape(...allowed), colour: "ink", opacity: 0.12}, {line: shape(...allowed), colour: "ink", width: 1.8},
    {line: [[0, 0], tip], colour: "red", width: 3}, {dots: [tip], colour: "red", size: 5},
  ]};
}

export const dials = {
  schedule_explorer: ({known}) => ({
    title: "Who moves when",
    lead: "Pick a schedule or type one. In which rounds is the mean of the products missed?",
    controls: {
      known: {label: "schedule", options: known, caption: "published ones, and two of our own"},
      own: {label: "or type one", text: "such as B | B A | AB", caption: "a word for each local step; | ends a round"},
    },
    presets: [["RoLoRA", {known: "B | A", own: ""}], ["LA-LoRA", {known: "B A", own: ""}], ["FedLoRA", {known: "AB", own: ""}]],
    draw({known: picked, own}) {
      const {words, B, A, both, sent} = counted(parse(own.trim() || picked)), width = ROUNDS * STEPS;
      const cells = (side, row, on) => words.flat().flatMap((w, i) => w.includes(side) === on ? [[i + 0.08, row + 0.1, i + 0.92, row + 0.9]] : []);
      const exact = both.length === 0 ? "one factor is fixed in every round, so the mean of the products is exact" : both.length === ROUNDS ? "both move in every round, so the mean of the products is missed" : `the mean of the products is missed in rounds ${both.join(", ")}, where both move`;
      return {
        panels: [{
          title: both.length ? `The mean of the products is missed in ${both.length} of ${ROUNDS} rounds` : "The mean of the products is exact in every round", height: 170,
          x: {label: "round, four local steps each (red: both factors move)", range: [0, width], ticks: Array.from({length: ROUNDS}, (_, t) => (t + 0.5) * STEPS), names: Array.from({length: ROUNDS}, (_, t) => String(t + 1))},
          y: {range: [0, 2], ticks: [0.5, 1.5], names: [`A  ${percent(A)}`, `B  ${percent(B)}`]},
          marks: [
            ...both.map(t => ({area: [[(t - 1) * STEPS, 0], [(t - 1) * STEPS, 2], [t * STEPS, 2], [t * STEPS, 0]], colour: "red", opacity: 0.15})),
            ...[["B", 1, "blue"], ["A", 0, "orange"]].flatMap(([side, row, colour]) => [{bars: cells(side, row, false), fill: "none", edge: "pale", round: 3}, {bars: cells(side, row, true), colour, round: 3}]),
            ...Array.from({length: ROUNDS - 1}, (_, t) => ({line: [[(t + 1) * STEPS, 0], [(t + 1) * STEPS, 2]], colour: "ink", width: 1.8})),
          ],
        }],
        say: `B moves in ${percent(B)} of the steps, A moves in ${percent(A)} of the steps; ${exact}. Sent up: ${percent(sent)} of FedLoRA's.`,
      };
    },
  }),

  regulator_explorer: () => ({
    title: "Noise shaped by the frozen factor",
    lead: "Stretch the frozen factor, then clip on the product instead. What does the promise say?",
    controls: {
      first: {label: "1st stretch", min: 0.3, max: 2.6, step: 0.1, caption: "singular value of the frozen factor"},
      second: {label: "2nd stretch", min: 0.3, max: 2.6, step: 0.1, caption: "its other singular value"},
      angle: {label: "angle", min: 0, max: 180, step: 5, unit: "°", caption: "direction of the first stretch"},
      sigma: {label: "noise σ", min: 0.4, max: 2.5, step: 0.1, unit: "× C", caption: "nominal noise multiplier"},
      clip: {label: "clip on the", options: [["factor", "factor (as published)"], ["product", "product"]], caption: "what the clip bounds"},
    },
    presets: [["as published, stretched", {first: 1.8, second: 0.6, clip: "factor"}], ["the same, clip on the product", {first: 1.8, second: 0.6, clip: "product"}], ["a small frozen factor", {first: 0.5, second: 0.4, clip: "factor"}]],
    draw({first, second, angle, sigma, clip}) {
      const peer = [first, second], mu = separation(first, second, sigma, clip), promised = 1 / sigma;
      const allowed = clip === "product" ? peer.map(s => 1 / s) : [1, 1], turn = angle * Math.PI / 180, far = mu > promised + 1e-9;
      const bell = m => x => Math.exp(-((x - m) ** 2) / 2), xs = span(-4, 7, 150), real = gdpEpsilon(mu, 1e-5), nominal = gdpEpsilon(promised, 1e-5), colour = far ? "red" : "green";
      const judged = clip === "product" ? "exactly as promised, whatever the frozen factor" : mu > promised + 1e-9 ? `more than the ${fixed(promised)} promised` : mu < promised - 1e-9 ? `less than the ${fixed(promised)} promised` : `as the ${fixed(promised)} promised`;
      return {
        panels: [plane("The factor: a row of ΔB", peer.map(s => sigma / s), allowed, turn), plane("The product: a row of ΔB·A", [sigma, sigma], allowed.map((v, i) => v * peer[i]), turn), {
          title: `The worst change stands ${fixed(mu)} deviations out`, basis: 225, height: 250,
          x: {label: "along the worst direction, in deviations", range: [-4, 7]}, y: {range: [0, 1.3], ticks: []}, margin: {left: 12, right: 10},
          marks: [
            {area: [[-4, 0], ...curve(xs, bell(0)), [7, 0]], colour: "teal"}, {line: curve(xs, bell(0)), colour: "teal"},
            {line: curve(xs, bell(promised)), colour: "grey", dash: "5 4", width: 1.6}, {line: curve(xs, bell(mu)), colour, width: 2.6},
            {text: `real ${fixed(mu)}`, at: [7, 1.18], anchor: "end", dx: -4, colour, bold: true}, {text: `promised ${fixed(promised)}`, at: [7, 1.06], anchor: "end", dx: -4, colour: "soft"}, {text: "noise", at: [-4, 1.18], dx: 4, colour: "teal", bold: true},
          ],
        }],
        say: `Dots and thin ellipses are noise, the filled shape holds the changes that the clip allows, red is the worst of them. Clip on the ${clip}: the worst change stands ${fixed(mu)} deviations out, ${judged}; one release gives ε = ${fixed(real)}${clip === "product" ? "" : `, promised ${fixed(nominal)}`} at δ = 0.00001.`,
      };
    },
  }),

  rounds_explorer: ({path, sigma}) => ({
    title: "Round by round",
    lead: "Go through the rounds. Who moves, how is its noise shaped, and how far does the worst change stand out?",
    controls: {
      round: {label: "round", min: 1, max: path.length, step: 1, caption: "of a run as published, rank 2"},
      clip: {label: "clip on the", options: [["factor", "factor (as published)"], ["product", "product"]], caption: "what the clip bounds"},
    },
    presets: [["B moves first", {round: 1, clip: "factor"}], ["A moves for the first time", {round: 2, clip: "factor"}], ["last round", {round: path.length, clip: "factor"}], ["the same, clip on the product", {round: path.length, clip: "product"}]],
    draw({round, clip}) {
      const {moves, rests, stretches, angle} = path[round - 1], colours = {A: "orange", B: "blue"};
      const mus = path.map(one => separation(...one.stretches, sigma, clip)), mu = mus[round - 1], promised = 1 / sigma, worse = mu > promised + 1e-9;
      const most = axis => 1.1 * Math.max(...path.flatMap(one => [one.from[axis], one.to[axis]])), tops = path.map(one => Math.max(...one.stretches) / sigma);
      const walk = path.flatMap((one, i) => i < round ? [{line: [one.from, one.to], colour: colours[one.moves], width: 3.2}] : [{line: [one.from, one.to], colour: "pale", width: 1.6}]);
      const side = {basis: 235, height: 250};
      return {
        panels: [
          plane(`Round ${round}: ${moves === "B" ? "a row of ΔB" : "a column of ΔA"}`, stretches.map(s => sigma / s), clip === "product" ? stretches.map(s => 1 / s) : [1, 1], angle * Math.PI / 180),
          {title: "One factor at a time: a staircase", ...side, x: {label: "largest singular value of B", range: [0, most(0)]}, y: {label: "of A", range: [0, most(1)]},
            marks: [...walk, {dots: [path[round - 1].to], colour: "ink", size: 6}]},
          {title: `The worst change: ${fixed(mu)} deviations; dashed: promised ${fixed(promised)}`, ...side, x: {label: "round", range: [0.5, path.length + 0.5], ticks: path.map((_, i) => i + 1).filter(n => n % Math.ceil(path.length / 6) === 0)}, y: {label: "deviations of the noise", range: [0, 1.15 * Math.max(promised, ...tops)]},
            marks: [{line: [[0.5, promised], [path.length + 0.5, promised]], colour: "ink", dash: "5 4", width: 1.4},
              {line: mus.map((v, i) => [i + 1, v]), colour: "grey", width: 1.4, name: "worst change"}, {dots: mus.map((v, i) => [i + 1, v]), colour: "grey", size: 4}, {dots: [[round, mu]], colour: worse ? "red" : "green", size: 7}]},
        ],
        say: `Round ${round}: ${moves} moves, ${rests} is frozen with singular values ${fixed(stretches[0])} and ${fixed(stretches[1])}. The noise on ${moves} is smallest along the first. With the clip on the ${clip} the worst change stands ${fixed(mu)} deviations out, ${clip === "product" ? "as promised" : worse ? `more than the ${fixed(promised)} promised` : `less than the ${fixed(promised)} promised`}.`,
      };
    },
  }),
};
