// The playground: federated LoRA under differential privacy that trains in the page. The first half
// is the engine, in float64 and without any drawing; the second half is what one sees of it.

// What the tables hold

const SIZE = 64; // pixels, and hidden units: both sides of the adapted layer
const SQUARE = SIZE * SIZE;
const CLASSES = 10;
const SIDES = ["A", "B"];

const letters = text => Uint8Array.from(text, letter => letter.charCodeAt(0) - 65);
const zeros = count => new Float64Array(count);
const fourSquares = () => Array.from({length: 4}, () => zeros(SQUARE));

function unpack(tables) {
  const bytes = Uint8Array.from(atob(tables.weights), letter => letter.charCodeAt(0));
  const numbers = Float64Array.from(new Float32Array(bytes.buffer));
  const ends = [SQUARE, SQUARE + SIZE, SQUARE + SIZE + CLASSES * SIZE, numbers.length];
  const [weight, bias, head, headBias] = ends.map((end, i) => numbers.subarray(ends[i - 1] ?? 0, end));
  const scans = ({pixels, labels}) => {
    const x = Float64Array.from(letters(pixels), ink => ink / 8);
    const frozen = zeros(x.length); // this part of the layer is the same in every round
    for (let i = 0; i < x.length; i += SIZE) {
      for (let o = 0; o < SIZE; o++) {
        frozen[i + o] = bias[o] + dot(weight, o * SIZE, x, i, SIZE);
      }
    }
    return {x, y: letters(labels), frozen, count: labels.length};
  };
  const splits = tables.splits.map(({words, owners, noise}) => ({words, noise, lists: owners.map((text, i) => {
    const lists = Array.from({length: tables.clients[i]}, () => []);
    letters(text).forEach((k, scan) => lists[k].push(scan));
    return lists;
  })}));
  let own = null; // of the clients: unpacked when the first of them trains
  return {...tables, head, headBias, size: Math.sqrt(squares(weight)), splits, labels: letters(tables.private.labels), test: scans(tables.test), get private() { return own ??= scans(tables.private); }};
}

// Linear algebra: A is (r, 64) and B is (64, r), row by row

function dot(a, from, b, start, count) {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += a[from + i] * b[start + i];
  return sum;
}
const squares = x => dot(x, 0, x, 0, x.length);
const minus = (a, b) => a.map((value, i) => value - b[i]);
function add(to, what, weight = 1) {
  for (let i = 0; i < to.length; i++) to[i] += weight * what[i];
}
function dotColumn(matrix, width, column, vector) {
  let sum = 0;
  for (let i = 0; i < vector.length; i++) sum += matrix[i * width + column] * vector[i];
  return sum;
}
function addOuter(to, left, right, start, count, weight) { // to += weight left right^T
  for (let i = 0; i < left.length; i++) {
    const value = weight * left[i];
    for (let j = 0; j < count; j++) to[i * count + j] += value * right[start + j];
  }
}
function addProduct(to, B, A, rank, weight = 1) { // to += weight B A
  for (let i = 0; i < SIZE; i++) {
    for (let l = 0; l < rank; l++) {
      const value = weight * B[i * rank + l];
      if (value === 0) continue;
      for (let j = 0; j < SIZE; j++) to[i * SIZE + j] += value * A[l * SIZE + j];
    }
  }
  return to;
}

// Random numbers: a stream for each seed, purpose, round, client and step, the same for all methods,
// so that two of them are given the same batches and draws. Not for anybody's protection.

function stream(...indices) {
  let state = [0x9e3779b9, 0x243f6a88, 0xb7e15162, 0x85ebca6b];
  const mix = word => { // a round of xorshift128 with multiplications, over all four words
    state = state.map((value, i) => {
      let mixed = Math.imul(value ^ word ^ (state[(i + 3) % 4] >>> 15), 0x2c1b3c6d + 2 * i);
      mixed = Math.imul(mixed ^ (mixed >>> 12), 0x297a2d39);
      return mixed ^ (mixed >>> 15);
    });
  };
  for (const index of indices) mix(index + 1);
  for (let i = 0; i < 4; i++) mix(i);
  let [a, b, c, d] = state;
  const next = () => { // sfc32
    const sum = (a + b + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + sum | 0;
    return sum >>> 0;
  };
  for (let i = 0; i < 12; i++) next();
  return () => ((next() >>> 5) * 67108864 + (next() >>> 6)) / 9007199254740992; // 53 bits
}

function normals(count, uniform) { // by Box and Muller
  const out = zeros(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    out[i] = radius * Math.cos(angle);
    if (i + 1 < count) out[i + 1] = radius * Math.sin(angle);
  }
  return out;
}
const PURPOSE = {start: 1, sampling: 2, A: 3, B: 4};

// Rules of methods

function filtered(x, side, rank, weights) { // along the long axis, edges mirrored and repeated
  const out = zeros(x.length);
  const half = (weights.length - 1) / 2;
  const [stride, step] = side === "A" ? [1, SIZE] : [rank, 1];
  for (let l = 0; l < rank; l++) {
    for (let i = 0; i < SIZE; i++) {
      for (let k = 0; k < weights.length; k++) {
        let j = i + k - half;
        if (j < 0) j = -1 - j;
        if (j >= SIZE) j = 2 * SIZE - 1 - j;
        out[l * step + i * stride] += weights[k] * x[l * step + j * stride];
      }
    }
  }
  return out;
}

function quantised(x, levels) { // each block of 64 numbers is scaled by its largest
  const out = zeros(x.length);
  for (let from = 0; from < x.length; from += 64) {
    const most = Math.max(...x.subarray(from, from + 64).map(Math.abs));
    for (let i = from; i < from + 64; i++) {
      const unit = most > 0 ? x[i] / most : 0;
      let code = 0;
      while (code < levels.length - 1 && unit > (levels[code] + levels[code + 1]) / 2) code++;
      out[i] = levels[code] * most;
    }
  }
  return out;
}

const tableOf = ({splits}, {split, clients, steps}) => splits[split].noise[clients][steps]; // a row for each epsilon

function wordAt({rounds}, t, s) { // the factors that move in this step
  const words = rounds[t % rounds.length].split(" ");
  return words[s % words.length];
}

class Run {
  // settings: method, rate, clip, rank, bits, seed, and places in the tables: split, clients, steps,
  // noise (-1: none); start: factors to begin from.
  constructor(problem, settings, start) {
    const {rank, seed} = settings;
    this.problem = problem;
    this.settings = settings;
    this.row = problem.methods.find(row => row.slug === settings.method);
    this.levels = this.row.quantised ? problem.levels[settings.bits] : null;
    this.lists = problem.splits[settings.split].lists[settings.clients];
    this.count = this.lists.length; // of clients
    this.steps = problem.steps[settings.steps];
    this.rates = this.lists.map(list => Math.min(1, problem.batch / list.length));
    this.sigma = settings.noise < 0 ? Array(this.count).fill(0) : tableOf(problem, settings)[settings.noise].sigma;
    this.round = 0;
    const uniform = stream(seed, PURPOSE.start, rank);
    this.factors = {
      A: start ? Float64Array.from(start.A) : zeros(rank * SIZE).map(() => (2 * uniform() - 1) / 8),
      B: start ? Float64Array.from(start.B) : zeros(rank * SIZE),
    };
    // What the factors hold of noise: known here, because the page draws it.
    this.noise = {A: zeros(rank * SIZE), B: zeros(rank * SIZE)};
    // FedEx-LoRA's residual, and its four parts.
    this.residual = this.row.residual ? zeros(SQUARE) : null;
    this.residualParts = this.row.residual ? fourSquares() : null;
    this.latest = this.parts(); // those of the last record, which a round under way leaves alone
    // Untrained runs are all alike: a slider that moves must not wait for their scores.
    if (!start) problem.untrained ??= this.record();
    this.history = [start ? this.record() : problem.untrained];
  }

  received() { // what clients get of the factors
    if (!this.levels) return this.factors;
    return {A: quantised(this.factors.A, this.levels), B: quantised(this.factors.B, this.levels)};
  }

  // The sum of the clipped gradients of a batch, over the factors that move.
  clippedSum({A, B}, batch, word) {
    const {rank, clip} = this.settings;
    const {scaling, head} = this.problem;
    const {x, y, frozen} = this.problem.private;
    const model = this.model({A, B});
    const sums = {};
    for (const side of word) sums[side] = zeros(rank * SIZE);
    const inner = zeros(rank);
    const hidden = zeros(SIZE);
    const scores = zeros(CLASSES);
    const delta = zeros(SIZE);
    const back = zeros(rank);
    for (const i of batch) {
      const at = i * SIZE;
      forward(model, x, frozen, at, inner, hidden, scores);
      const top = Math.max(...scores);
      let total = 0;
      for (let c = 0; c < CLASSES; c++) {
        scores[c] = Math.exp(scores[c] - top);
        total += scores[c];
      }
      for (let c = 0; c < CLASSES; c++) scores[c] /= total;
      scores[y[i]] -= 1;
      for (let o = 0; o < SIZE; o++) delta[o] = scaling * dotColumn(head, SIZE, o, scores) * (1 - hidden[o] * hidden[o]);
      for (let l = 0; l < rank; l++) back[l] = dotColumn(B, rank, l, delta);
      // The gradients are outer products, delta inner^T and back x^T; one clip over all that move.
      let square = 0;
      if (sums.B) square += squares(delta) * squares(inner);
      if (sums.A) square += squares(back) * dot(x, at, x, at, SIZE);
      const norm = Math.sqrt(square);
      if (!Number.isFinite(norm)) continue;
      const shorter = norm > clip ? clip / norm : 1;
      if (sums.B) addOuter(sums.B, delta, inner, 0, rank, shorter);
      if (sums.A) addOuter(sums.A, back, x, at, SIZE, shorter);
    }
    return sums;
  }

  batchOf(k, s, given) {
    const list = this.lists[k];
    if (given) return given[s][k].map(place => list[place]);
    const uniform = stream(this.settings.seed, PURPOSE.sampling, this.round, k, s);
    return list.filter(() => uniform() < this.rates[k]);
  }

  noiseOf(side, k, s, given) {
    if (given) return Float64Array.from(given[s][k][side]);
    const count = this.settings.rank * SIZE;
    const std = this.sigma[k] * this.settings.clip;
    if (std === 0) return zeros(count);
    const uniform = stream(this.settings.seed, PURPOSE[side], this.round, k, s);
    return normals(count, uniform).map(value => std * value);
  }

  // What a client releases in a step: clipped sums with noise, and the noise in them.
  release(k, s, factors, word, given) {
    const sums = this.clippedSum(factors, this.batchOf(k, s, given.batches), word);
    return Array.from(word, side => {
      const noise = this.noiseOf(side, k, s, given.noise);
      add(sums[side], noise);
      return {side, value: sums[side], noise};
    });
  }

  localStep(k, s, factors, noise, given) {
    const {rank, rate} = this.settings;
    const weights = this.row.filter;
    for (const released of this.release(k, s, factors, wordAt(this.row, this.round, s), given)) {
      const {side} = released;
      // All that follows is post-processing, for which the noise passes the same map.
      const smooth = values => weights.length > 1 ? filtered(values, side, rank, weights) : values;
      add(factors[side], smooth(released.value), -rate / this.problem.batch);
      add(noise[side], smooth(released.noise), -rate / this.problem.batch);
    }
  }

  // One round, client by client: whoever calls may draw in between.
  *clients(given = {}) {
    const {rank} = this.settings;
    // Copies: all clients begin from the same factors, while the mean grows below.
    const before = {A: this.factors.A.slice(), B: this.factors.B.slice()};
    const start = this.levels ? this.received() : before;
    const earlier = {A: this.noise.A.slice(), B: this.noise.B.slice()};
    const mean = this.residual && zeros(SQUARE);
    const meanParts = this.residual && fourSquares();
    for (let k = 0; k < this.count; k++) {
      const factors = {A: start.A.slice(), B: start.B.slice()};
      const noise = {A: zeros(rank * SIZE), B: zeros(rank * SIZE)}; // that they take up
      for (let s = 0; s < this.steps; s++) this.localStep(k, s, factors, noise, given);
      for (const side of SIDES) {
        // As a change of what the server holds, which a quantised broadcast does not show.
        factors[side] = minus(factors[side], start[side]);
        add(this.factors[side], factors[side], 1 / this.count);
        add(this.noise[side], noise[side], 1 / this.count);
        add(factors[side], before[side]);
        add(noise[side], earlier[side]);
      }
      if (mean) {
        addProduct(mean, factors.B, factors.A, rank, 1 / this.count);
        addParts(meanParts, factors, noise, rank, 1 / this.count);
      }
      yield k;
    }
    if (this.residual) { // what the mean of the factors misses goes into the frozen weight
      addProduct(mean, this.factors.B, this.factors.A, rank, -1);
      add(this.residual, mean);
      addParts(meanParts, this.factors, this.noise, rank, -1);
      this.residualParts.forEach((part, i) => add(part, meanParts[i]));
    }
    yield this.count; // the scores take as long as a client
    this.round += 1;
    this.history.push(this.record());
  }

  roundAtOnce(given) {
    for (const _ of this.clients(given)); // every client trains
    return this.history.at(-1);
  }

  product() {
    return addProduct(this.residual?.slice() ?? zeros(SQUARE), this.factors.B, this.factors.A, this.settings.rank);
  }

  sizeOf(matrix) { // beside the layer that it is added to
    return this.problem.scaling * Math.sqrt(squares(matrix)) / this.problem.size;
  }

  // Signal, noise on B times A, B times noise on A, and noise times noise: their sum is the product.
  parts() {
    const parts = this.residualParts?.map(part => part.slice()) ?? fourSquares();
    addParts(parts, this.factors, this.noise, this.settings.rank, 1);
    return parts;
  }

  model({A, B}) { // what a forward pass needs
    const {scaling, head, headBias} = this.problem;
    return {scaling, head, headBias, A, B, residual: this.residual, rank: this.settings.rank};
  }

  answers(factors = this.factors) { // to the test digits
    const {test} = this.problem;
    const model = this.model(factors);
    const inner = zeros(model.rank);
    const hidden = zeros(SIZE);
    const scores = zeros(CLASSES);
    return Uint8Array.from(test.y, (_, i) => {
      forward(model, test.x, test.frozen, i * SIZE, inner, hidden, scores);
      return scores.indexOf(Math.max(...scores));
    });
  }

  record() {
    const right = answers => answers.reduce((sum, digit, i) => sum + (digit === this.problem.test.y[i]), 0) / answers.length;
    const answers = this.answers();
    const accuracy = right(answers);
    this.latest = this.parts();
    return {
      round: this.round,
      answers,
      accuracy,
      received: this.levels ? right(this.answers(this.received())) : accuracy,
      size: this.sizeOf(this.product()),
      sizes: this.latest.map(part => this.sizeOf(part)),
    };
  }
}

function forward({A, B, residual, rank, scaling, head, headBias}, x, frozen, at, inner, hidden, scores) {
  for (let l = 0; l < rank; l++) inner[l] = dot(A, l * SIZE, x, at, SIZE);
  for (let o = 0; o < SIZE; o++) {
    let sum = dot(B, o * rank, inner, 0, rank);
    if (residual) sum += dot(residual, o * SIZE, x, at, SIZE);
    hidden[o] = Math.tanh(frozen[at + o] + scaling * sum);
  }
  for (let c = 0; c < CLASSES; c++) scores[c] = headBias[c] + dot(head, c * SIZE, hidden, 0, SIZE);
}

function addParts(parts, {A, B}, noise, rank, weight) {
  const cleanA = minus(A, noise.A);
  const cleanB = minus(B, noise.B);
  addProduct(parts[0], cleanB, cleanA, rank, weight);
  addProduct(parts[1], noise.B, cleanA, rank, weight);
  addProduct(parts[2], cleanB, noise.A, rank, weight);
  addProduct(parts[3], noise.B, noise.A, rank, weight);
}

// What one sees of it

const PARTS = [["green", "learned", ""], ["blue", "noise on B", "B"], ["orange", "noise on A", "A"], ["purple", "noise × noise", "AB"]];
const octaves = (from, count, step) => Array.from({length: count}, (_, i) => from * 2 ** (i / step));
const STOPS = {rate: octaves(0.05, 15, 2), clip: octaves(0.25, 9, 2)};
const FIRST = {methods: ["fedlora", "ffa-lora"], rate: 10, noise: 4, clip: 4, rank: 7, steps: 1, clients: 1, split: 2, bits: 1, seed: 0};
const BUDGET = 2; // milliseconds of training in a slice
const PICTURE = 60; // milliseconds at least between two pictures of a run
const TURNING = 500; // milliseconds without them after a knob has moved: the answer has the screen
const CALM = 2000; // milliseconds after it in which they are SELDOM, for another move may come
const SELDOM = 240;
const ANSWER = 30; // milliseconds without training, until the answer is on the screen
const KEPT = 6; // earlier runs that stay in sight
const COLUMNS = 24; // of the wall of test digits, in 15 rows
const RIGHT = 124; // pixels for the names at the ends of lines
const percent = share => `${Math.round(100 * share)} %`;
const short = value => num(value, 2);
const SHARES = {label: "", range: [0, 1], ticks: [0, 0.25, 0.5, 0.75, 1], format: percent};
const times = size => `${short(size)} ×`;
const shareOf = ({sizes}, part) => sizes[part] ** 2 / (squares(sizes) || 1);

const trains = ({row: {rounds}, settings}, side) => settings.noise >= 0 && rounds.join("").includes(side);
const isPart = (lane, sides) => [...sides].every(side => trains(lane, side));

function expansionOf(lane) { // the product of what trains and what rests, written out
  const factors = ["B", "A"].map(side => trains(lane, side) ? `(${side} + noise)` : side).join(" ");
  const parts = PARTS.filter(([,, sides]) => isPart(lane, sides));
  return `${factors}&nbsp;=<br>${parts.map(([colour, words]) => `<span style="color:${ink(colour)}">${words}</span>`).join(" + ")}`;
}

function knobsOf({splits, clients, steps}) { // key, label, its stops in words; the symbol that is explained
  const stops = (numbers, format = short) => numbers.map(format);
  return [
    {key: "rate", label: "Learning rate", stops: stops(STOPS.rate)},
    {key: "noise", label: "Privacy", symbol: "ε", stops: [...stops(splits[0].noise[0][0].map(row => row.epsilon)), "∞"]},
    {key: "clip", label: "Clip norm", symbol: "C", stops: stops(STOPS.clip)},
    {key: "rank", label: "Rank", symbol: "r", stops: Array.from({length: 16}, (_, i) => String(i + 1))},
    {key: "steps", label: "Local steps", stops: stops(steps)},
    {key: "clients", label: "Clients", stops: stops(clients)},
    {key: "split", label: "Clients are", stops: splits.map(split => split.words)},
    {key: "bits", label: "FedLPP's bits", stops: ["1: three levels", "2", "3", "4"]},
  ];
}

function skeleton(id, knobs, {methods, stories}, why) {
  const options = methods.map(({slug, name}) => `<option value="${slug}">${escaped(name)}</option>`).join("");
  const below = {split: '<svg data-chart="clients" height="36" role="img"></svg><small>a row a client, a column a digit</small>'};
  const knob = ({key, label, symbol, stops}) => `<div class="knob"><div class="name"><label for="${id}-${key}">${label} ${symbol ?? ""}</label>${symbol ? why(symbol) : ""}<output data-words="${key}"></output></div>
    <input type="range" id="${id}-${key}" data-knob="${key}" min="0" max="${stops.length - 1}" step="1">${below[key] ?? ""}</div>`;
  const map = ([colour, words], part) => `<figure><canvas width="64" height="64" data-map="${part}" role="img" aria-label="Heat map of the part ${words}"></canvas>
    <figcaption style="color:${ink(colour)}"><b data-size="${part}"></b> ${words}</figcaption></figure>`;
  const lane = i => `<section class="lane" data-lane="${i}" aria-label="${i ? "Second" : "First"} method">
    <div class="head"><i class="dot"></i><select aria-label="${i ? "Second" : "First"} method" data-method="${i}">${options}</select><strong data-score></strong></div>
    <p class="moves"></p><canvas class="wall" width="${9 * COLUMNS - 1}" height="${9 * 15 - 1}" role="img"></canvas>
    <p class="turned" data-adapter></p>
    <svg class="energy" height="104" role="img"></svg>
    <div class="turned expansion"></div>
    <div class="turned factors">${i ? "" : ["B", "A"].map(symbol => `${symbol} ${why(symbol)}`).join(" ")}</div>
    <div class="maps">${PARTS.map(map).join("")}</div></section>`;
  const chart = (name, title, height) => `<figure class="chart"><figcaption>${title}</figcaption>
    <svg data-chart="${name}" height="${height}" role="img"></svg></figure>`;
  return `<div class="bar"><button data-do="reset" aria-label="Reset"><span aria-hidden="true">↺</span></button>
    <button data-do="play" class="main">Start</button><button data-do="step">Step</button><button data-do="save">Save the picture</button>
    <span class="count">Round <b data-round></b></span><span class="count" data-spent></span>
    <span class="stories" role="group" aria-label="Stories"><span class="count" aria-hidden="true">Watch a story</span>${stories.map((story, i) => `<button data-story="${i}" aria-pressed="false"><span aria-hidden="true">▸</span> ${escaped(story.title)}</button>`).join("")}</span></div>
    <div class="knobs" role="group" aria-label="Settings">${knobs.map(knob).join("")}
    <div class="knob few"><label for="${id}-seed">Seed</label><input type="number" id="${id}-seed" data-seed min="0" max="999" step="1">
    <label for="${id}-speed">Rounds a second</label><select id="${id}-speed" data-speed><option>3</option><option selected>12</option><option value="1000">max</option></select></div></div>
    <p class="say"></p><p class="unseen" aria-live="polite"></p>
    <div class="stage">${lane(0)}<div class="charts">${chart("accuracy", "Right answers on 360 test digits", 236)}
    ${chart("rate", "Right answers at the end, over the learning rate", 204)}<div class="known"></div></div>${lane(1)}</div>
    <p class="foot">Clients with 1,257 real handwritten digits train in this page. It protects nobody: a browser's
    random numbers can be guessed.</p>`;
}

export function mountPlayground(home, tables) {
  const problem = unpack(tables);
  const knobs = knobsOf(problem);
  const id = `fl-playground-${Math.random().toString(36).slice(2)}`; // a cell has a module of its own
  const find = name => home.querySelector(name);
  const all = name => [...home.querySelectorAll(name)];
  const isPage = home.matches("main"); // alone, it has the address for itself
  const lessons = home.dataset.lessons ?? (location.pathname.endsWith(".html") ? "*.html" : "*.ipynb");
  const why = symbol => { // opened by a click, one at a time
    const {say, lesson} = problem.help[symbol];
    return `<details class="why" name="${id}"><summary aria-label="What is ${symbol}?">?</summary><span>${escaped(say)}
      <a href="${lessons.replace("*", lesson)}" target="_blank">Lesson ${lesson.slice(0, 2)}</a></span></details>`;
  };
  home.classList.add("fl-dial", "fl-playground");
  home.innerHTML = `<style>${STYLE}${LOOK}</style>${skeleton(id, knobs, problem, why)}`;
  const state = {...FIRST, ...(isPage && stateIn(location.hash))}; // what a page begins with
  let lanes = [];
  let earlier = [];
  let story = null;
  let running = false;
  let working = null; // the round that is being trained
  let due = 0;
  let colours = {};
  let drawn = {}; // of each lane: the last record, and its row
  let turned = -CALM; // when a knob moved
  let next = 0; // when a run may be painted again
  let sizes = new Map();
  let views = {};
  let frame = 0;
  let rest = 0; // the frame after it, which draws what the answer could leave out
  let slice = 0;

  const settingsOf = method => ({
    method,
    rate: STOPS.rate[state.rate],
    clip: STOPS.clip[state.clip],
    rank: state.rank + 1,
    noise: state.noise < knobs[1].stops.length - 1 ? state.noise : -1,
    steps: state.steps,
    clients: state.clients,
    split: state.split,
    bits: state.bits + 1,
    seed: state.seed,
  });
  const isStandard = () => ["noise", "clip", "rank", "steps", "clients", "split"].every(key => state[key] === FIRST[key]) && (state.bits === FIRST.bits || !lanes.some(lane => lane.levels));
  const isPrivate = () => settingsOf("").noise >= 0;
  const sameBut = (key, one, other) => JSON.stringify({...one, [key]: 0}) === JSON.stringify({...other, [key]: 0});

  // The setting in the address, in the words of the knobs

  function stateIn(address) {
    const given = new URLSearchParams(address.slice(1));
    const found = {};
    for (const {key, stops} of knobs) {
      if (stops.includes(given.get(key))) found[key] = stops.indexOf(given.get(key));
    }
    const methods = (given.get("methods") ?? "").split(" ");
    if (methods.length === 2 && methods.every(slug => slug in problem.means)) found.methods = methods;
    if (/^\d{1,3}$/.test(given.get("seed"))) found.seed = Number(given.get("seed"));
    return found;
  }
  function showAddress() {
    const words = knobs.map(({key, stops}) => [key, stops[state[key]]]);
    const address = `#${new URLSearchParams([["methods", state.methods.join(" ")], ...words, ["seed", state.seed]])}`;
    if (isPage && address !== location.hash) history.replaceState(null, "", address);
  }

  function reset() { // to round 0, with what the controls say; what has run to its end stays in sight
    for (const {settings, history, row} of lanes.filter(lane => lane.round >= problem.rounds)) {
      earlier = earlier.filter(one => !sameBut("", one.settings, settings));
      earlier.push({settings, history, row});
    }
    earlier = earlier.slice(-KEPT);
    working = null;
    lanes = state.methods.map(method => new Run(problem, settingsOf(method)));
    showControls();
    paintSoon();
  }

  function showControls() {
    for (const {key, stops} of knobs) {
      const input = find(`[data-knob=${key}]`);
      input.value = state[key];
      input.setAttribute("aria-valuetext", stops[state[key]]);
      write(find(`[data-words=${key}]`), stops[state[key]]);
    }
    showAddress();
    find("[data-knob=bits]").parentElement.style.visibility = lanes.some(lane => lane.levels) ? "" : "hidden";
    write(find("[data-do=play]"), running ? "Pause" : lanes[0].round === 0 ? "Start" : !isOver() ? "Go on" : hasNext() ? "Next" : "Start again");
    find("[data-seed]").value = state.seed;
    all("[data-method]").forEach((select, i) => { select.value = state.methods[i]; });
    all("[data-story]").forEach((button, i) => button.setAttribute("aria-pressed", story?.number === i));
    all(".lane .dot").forEach((dot, i) => { dot.style.background = ink(state.methods[i]); });
  }

  function change(values) {
    story = null;
    turned = performance.now();
    next = turned + TURNING;
    due = turned + ANSWER;
    Object.assign(state, values);
    reset();
  }

  // The loop: slices of training, between which the page hears its reader and paints

  function play(on) {
    if (on && isOver()) {
      if (hasNext()) return void act(story.number, story.act + 1);
      reset();
    }
    running = on;
    due = performance.now();
    showControls();
    paintSoon();
    trainSoon();
  }
  const isOver = () => !working && lanes[0].round >= problem.rounds;
  function trainSoon() { // after all that the page has to do for its reader
    const number = ++slice;
    const delay = Math.max(0, due - performance.now());
    const work = () => number === slice && train();
    if (globalThis.scheduler?.postTask) scheduler.postTask(work, {priority: "background", delay});
    else setTimeout(work, delay);
  }
  function train() {
    if (!running || frame || rest) return; // a picture that is due goes first, and then lets training go on
    const now = performance.now();
    do advance(); while (working && performance.now() < now + BUDGET && !navigator.scheduling?.isInputPending({includeContinuous: true}));
    if (!working) {
      due = Math.max(now, due + 1000 / find("[data-speed]").value);
      if (isOver()) play(false);
      else if (now > next) paintSoon();
    }
    trainSoon();
  }
  function advance() { // one client of one method, or its scores
    working ??= lanes.map(lane => lane.clients());
    const [first, ...others] = working;
    working = first.next().done ? others : [...others, first];
    if (!working.length) working = null;
  }
  function step() {
    if (!isOver()) {
      do advance(); while (working);
    }
    play(false);
  }

  // Stories: settings in turn, each run to its end; the reader says when the next one begins

  const hasNext = () => story !== null && story.act + 1 < problem.stories[story.number].acts.length;
  function act(number, which) {
    story = {number, act: which};
    if (which === 0) lanes = earlier = [];
    Object.assign(state, FIRST, problem.stories[number].acts[which].set);
    reset();
    play(true);
  }

  // The picture

  function paintSoon() {
    frame ||= requestAnimationFrame(paint);
  }
  function paint() {
    frame = 0;
    if (!home.isConnected) return void paintSoon(); // outside of a page it has no colours
    if (!colours.ink) readColours();
    // All sizes before the first change: each would lay out the page again.
    if (!sizes.size) for (const svg of all("svg")) sizes.set(svg, [svg.clientWidth, svg.clientHeight]);
    paintWords();
    const isSeen = lanes.every((lane, i) => drawn[i]?.record === lane.history.at(-1));
    // Round 0 is the answer to a reader, who waits for it.
    if (lanes[0].round === 0 && !isSeen) rest ||= requestAnimationFrame(paintRuns);
    else paintRuns();
  }
  function paintRuns() {
    rest = 0;
    const now = performance.now();
    next = Math.max(next, now + (now < turned + CALM ? SELDOM : PICTURE));
    paintRates();
    paintClients();
    paintCharts();
    lanes.forEach(paintLane);
    if (running) trainSoon();
  }

  function readColours() { // canvas knows no variables
    const style = getComputedStyle(home);
    const rgb = name => style.getPropertyValue(`--fl-${name}`).trim().match(/[0-9a-f]{2}/gi).map(pair => parseInt(pair, 16));
    // On a dark ground the ink is light, whatever it is that made it dark.
    const dark = rgb("ink")[0] > 127;
    home.dataset.ground = dark ? "dark" : "light";
    for (const method of problem.methods) home.style.setProperty(`--fl-${method.slug}`, dark ? method.dark : method.light);
    colours = Object.fromEntries(["ink", "soft", "ground", "red", ...PARTS.map(part => part[0])].map(name => [name, rgb(name)]));
    // Wrong is light on red, right is ink on the ground: told apart without colour as well.
    colours.wrong = ramp(colours.red, colours.ground);
    colours.right = ramp(colours.ground, colours.ink, 0.8);
    colours.map = [ramp(colours.ground, colours.soft, 0.5), ...PARTS.map(([name]) => ramp(colours.ground, colours[name]))];
  }

  function draw(name, panel, label) {
    const svg = find(`[data-chart=${name}]`);
    views[name] = drawPanel(svg, panel, `${id}-clip-${name}`, sizes.get(svg));
    svg.setAttribute("aria-label", label);
  }

  function paintCharts() {
    const axis = {label: "round", range: [0, problem.rounds], ticks: [0, 20, 40, 60]};
    const curve = ({settings, history}, key) => ({
      kind: "line", x: history.map(record => record.round), y: history.map(record => record[key]), colour: settings.method,
    });
    const lines = lanes.flatMap(lane => {
      const line = (key, words, looks) => ({...curve(lane, key), ...looks, name: words, label: `${words} ${percent(lane.history.at(-1)[key])}`});
      const own = line("accuracy", lane.row.name, {width: 3});
      const copy = lane.levels ? [line("received", "its copy", {dash: "2 3", width: 1.8})] : [];
      return [...copy, own, {...own, kind: "dots", x: own.x.slice(-1), y: own.y.slice(-1), label: "", size: 4.5}];
    });
    const faint = earlier.map(one => {
      const {settings, row} = one;
      const words = {noise: `ε ${knobs[1].stops.at(settings.noise)}`, clip: `C ${short(settings.clip)}`, rank: `r ${settings.rank}`, steps: `${problem.steps[settings.steps]} steps`, clients: `${problem.clients[settings.clients]} clients`, split: problem.splits[settings.split].words, seed: `seed ${settings.seed}`};
      if (row.quantised) words.bits = `${settings.bits} bits`;
      const others = Object.keys(words).filter(key => settings[key] !== lanes[0].settings[key]).map(key => words[key]);
      const label = [`${others.length ? row.name.replace(/-?LoRA$/, "") : row.name} ${short(settings.rate)}`, ...others].join(", ");
      return {...curve(one, "accuracy"), width: 1.2, opacity: 0.8, name: label, label, bold: false};
    });
    const start = lanes[0].history[0].accuracy;
    const before = {kind: "line", x: [0, problem.rounds], y: [start, start], colour: "edge", dash: "3 3", width: 1.2};
    draw("accuracy", {x: axis, y: SHARES, marks: [before, ...faint, ...lines], margin: {right: RIGHT}},
      `Right answers by round. ${lanes.map(lane => `${lane.row.name}: ${percent(lane.history.at(-1).accuracy)} after ${lane.round} rounds`).join("; ")}`);
  }

  function paintRates() { // what came out so far, and in the standard setting the means of 20 seeds
    const range = [STOPS.rate[0] * 0.85, STOPS.rate.at(-1) * 1.15];
    const start = lanes[0].history[0].accuracy;
    const now = STOPS.rate[state.rate];
    const marks = [
      {kind: "area", x: [now / 1.06, now * 1.06, now * 1.06, now / 1.06], y: [0, 0, 1, 1], colour: "edge", opacity: 0.25},
      {kind: "line", x: range, y: [start, start], colour: "edge", dash: "3 3", width: 1.2},
    ];
    lanes.forEach((lane, i) => {
      const colour = lane.settings.method;
      const means = isStandard() ? problem.means[colour] ?? [] : [];
      marks.push({kind: "line", x: means.map(p => p[0]), y: means.map(p => p[1]), colour, width: 1.3, opacity: 0.8, name: `${lane.row.name}, mean of 20 seeds`});
      const done = [...earlier, lane].filter(one => sameBut("rate", one.settings, lane.settings))
        .filter(one => one.history.length > problem.rounds)
        .map(one => [one.settings.rate, one.history.at(-1).accuracy]);
      marks.push({kind: "dots", x: done.map(p => p[0]), y: done.map(p => p[1]), colour, size: i ? 5 : 7}); // the second method's dots may lie on the first's
    });
    const empty = !marks.some(mark => mark.name && mark.x.length || mark.kind === "dots" && mark.x.length);
    if (empty) marks.push({kind: "text", x: STOPS.rate[7], y: 0.12, words: "a dot for each run that has ended", colour: "soft", anchor: "middle"});
    draw("rate", {x: {label: "learning rate", range, log: true, ticks: [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]}, y: SHARES, marks, margin: {right: 20}},
      "Right answers at the end of runs, over the learning rate");
  }

  function paintLane(lane, i) {
    const part = find(`[data-lane="${i}"]`);
    const record = lane.history.at(-1);
    write(part.querySelector(".expansion"), expansionOf(lane));
    part.querySelectorAll(".maps figure").forEach((figure, n) => { figure.hidden = !isPart(lane, PARTS[n][2]); });
    if (drawn[i]?.record === record && drawn[i].row === lane.row) return; // a slider moved before Start
    write(part.querySelector(".moves"), `trains ${lane.row.moves}`);
    const {y} = problem.test;
    write(part.querySelector("[data-score]"), percent(record.accuracy));
    const right = record.answers.map((digit, d) => digit === y[d]);
    drawn[i] = {record, row: lane.row};
    write(part.querySelector("[data-adapter]"), `${lane.round ? `Its adapter, <b>${short(record.size)} times</b> as large as` : "Its adapter, as a multiple of"} the layer that it corrects:`);
    const wall = part.querySelector(".wall");
    paintTiles(wall, right.length, COLUMNS, 9, (digit, p) => shadeOf(digit, p, right[digit]));
    wall.setAttribute("aria-label", `${lane.row.name} reads ${Math.round(record.accuracy * y.length)} of ${y.length} test digits; red is read wrongly`);
    const largest = 2.2 * Math.max(...record.sizes) * problem.size / Math.sqrt(SQUARE) / problem.scaling || 1;
    lane.latest.forEach((values, n) => {
      paintTiles(part.querySelector(`[data-map="${n}"]`), SIZE, 8, 8, (unit, p) => { // each hidden unit as a picture
        const value = SHADES * values[unit * SIZE + p] / largest;
        return colours.map[value > 0 ? n + 1 : 0][Math.min(SHADES, Math.abs(value) | 0)];
      });
      write(part.querySelector(`[data-size="${n}"]`), record.round ? times(record.sizes[n]) : "");
    });
    paintEnergy(part.querySelector(".energy"), lane, `${id}-energy${i}`);
  }

  // Round by round: how large the adapter is beside its layer, and of what it is made.
  function paintEnergy(svg, {history, row}, clip) {
    const records = history.slice(1);
    const x = records.map(record => record.round);
    const y = {range: [0.1, 100], log: true, ticks: [0.1, 1, 10, 100], format: times};
    y.range[1] = Math.max(y.range[1], ...lanes.flatMap(lane => lane.history.map(record => record.size)));
    let low = records.map(() => 0);
    const height = shares => records.map((record, i) => y.range[0] * Math.max(1, record.size / y.range[0]) ** shares[i]);
    const marks = PARTS.map(([colour], n) => {
      const high = records.map((record, i) => low[i] + shareOf(record, n));
      const mark = {kind: "area", x: [...x, ...[...x].reverse()], y: [...height(high), ...height(low).reverse()], colour, opacity: 1};
      low = high;
      return mark;
    });
    const one = {kind: "line", x: [0, problem.rounds], y: [1, 1], colour: "ink", dash: "3 3", width: 1.2};
    drawPanel(svg, {x: {range: [0, problem.rounds], ticks: [0, 20, 40, 60]}, y, marks: [...records.length > 1 ? marks : [], one], margin: {bottom: 20}}, clip, sizes.get(svg));
    const last = history.at(-1);
    svg.setAttribute("aria-label", `${row.name}, size of the adapter beside its layer: ${times(last.size)}. ${PARTS.map(([, words], n) => `${words} ${times(last.sizes[n])}`).join(", ")}`);
  }

  const shadeOf = (digit, p, right) => colours[right ? "right" : "wrong"][SHADES / 2 * problem.test.x[digit * SIZE + p]];
  function paintClients() { // a column of digits for each client: how much it has of which
    const {words} = problem.splits[state.split];
    const lists = problem.splits[state.split].lists[state.clients];
    const pixels = zeros(CLASSES * lists.length).fill(15);
    lists.forEach((list, k) => {
      for (const i of list) pixels[lists.length * problem.labels[i] + k] += 480 / list.length;
    });
    const marks = [{kind: "image", columns: lists.length, pixels: pixels.map(shade => Math.min(255, shade)), colour: "ink"}];
    draw("clients", {x: {range: [0, lists.length]}, y: {range: [CLASSES, 0]}, marks, bare: true}, `Which digits each of ${lists.length} clients has: ${words}`);
  }

  function paintWords() {
    const {round} = lanes[0];
    write(find("[data-round]"), `${round} / ${problem.rounds}`);
    const row = tableOf(problem, state)[state.noise];
    write(find("[data-spent]"), row ? `ε <b>${round ? num(row.spent[round], 3) : 0}</b> of ${short(row.epsilon)} spent` : "no privacy");
    write(find(".say"), sentence());
    // Read out at rest only: a screen reader cannot follow ten rounds a second.
    if (!running && round) write(find(".unseen"), sentence());
    write(find(".known"), isStandard() ? "The curves are means of 20 seeds." : "");
  }

  // One sentence: what just happened

  function sentence() {
    if (!story) return happened();
    const {acts} = problem.stories[story.number];
    const {say, seeds: [count, all]} = acts[story.act];
    return `<small>${story.act + 1} of ${acts.length} · ${escaped(say)}. True for ${count} of ${all} other seeds.</small>${happened()}`;
  }
  function happened() {
    const [one, two] = lanes;
    const now = lane => lane.history.at(-1);
    const start = one.history[0].accuracy;
    const bold = share => `<b>${percent(share)}</b>`;
    const named = lane => `<b style="color:${ink(lane.settings.method)}">${escaped(lane.row.name)}</b>`;
    const reads = lane => `${named(lane)} reads ${bold(now(lane).accuracy)}${lane.levels ? `, its clients' copy ${bold(now(lane).received)}` : ""}`;
    const size = lane => `an adapter <b>${short(now(lane).size)} times</b> as large as its layer`;
    if (one.round === 0) {
      const untaught = `Taught printed digits only, the network reads ${bold(start)} of the handwritten ones.`;
      return `${untaught} Now ${named(one)} and ${named(two)} train it at the learning rate <b>${short(one.settings.rate)}</b>${running ? "." : ": press Start to see what they make of it."}`;
    }
    const [worse, better] = now(one).accuracy <= now(two).accuracy ? [one, two] : [two, one];
    const best = worse.history.reduce((high, record) => record.accuracy > high.accuracy ? record : high);
    const when = one.round < problem.rounds ? `Round ${one.round}:` : isPrivate() ? `ε = ${knobs[1].stops[state.noise]} is spent:` : "At the end,";
    if (!worse.levels && best.accuracy > now(worse).accuracy + 0.05) {
      return `${when} ${named(worse)} started at ${bold(start)}, was at ${bold(best.accuracy)} and is now at ${bold(now(worse).accuracy)}, with ${size(worse)}. ${reads(better)}, with one <b>${short(now(better).size)} times</b> as large.`;
    }
    if (now(better).accuracy < now(worse).accuracy + 0.02) return `${when} ${reads(one)} and ${reads(two)}: they are level.`;
    return `${when} ${reads(better)}, ${reads(worse)}; both started at ${bold(start)}.`;
  }

  // What a reader does

  async function save() { // what is seen, as a PNG of twice its size
    const {width, height} = home.getBoundingClientRect();
    const copy = home.cloneNode(true);
    const style = getComputedStyle(home);
    // A picture has no theme: colours are those that are seen.
    for (const name of new Set(STYLE.match(/--fl-[\w-]+/g))) copy.style.setProperty(name, style.getPropertyValue(name));
    const drawings = all("canvas");
    copy.querySelectorAll("canvas").forEach((canvas, i) => {
      const {className, clientWidth} = drawings[i];
      const image = Object.assign(new Image(), {src: drawings[i].toDataURL(), className, width: clientWidth});
      canvas.replaceWith(image);
    });
    // What a reader has set is no part of a copy.
    copy.querySelectorAll("input").forEach((input, i) => input.setAttribute("value", all("input")[i].value));
    copy.querySelectorAll("select").forEach((select, i) => select.options[all("select")[i].selectedIndex].setAttribute("selected", ""));
    const page = new XMLSerializer().serializeToString(copy);
    const svg = `<svg xmlns="${find("svg").namespaceURI}" width="${width}" height="${height}"><foreignObject width="100%" height="100%">${page}</foreignObject></svg>`;
    const image = Object.assign(new Image(), {src: `data:image/svg+xml,${encodeURIComponent(svg)}`});
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), {width: 2 * width, height: 2 * height});
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    Object.assign(document.createElement("a"), {href: canvas.toDataURL(), download: "playground.png"}).click();
  }

  home.addEventListener("input", event => {
    const {knob, seed, method} = event.target.dataset;
    if (knob) change({[knob]: Number(event.target.value)});
    if (seed !== undefined && event.target.checkValidity()) change({seed: Number(event.target.value)});
    if (method) change({methods: state.methods.map((slug, i) => i === Number(method) ? event.target.value : slug)});
  });
  home.addEventListener("click", event => {
    const chart = event.target.closest("[data-chart=rate]");
    if (chart) {
      const rate = views.rate.X.back(event.clientX - chart.getBoundingClientRect().left);
      const stop = Math.round(2 * Math.log2(rate / STOPS.rate[0]));
      change({rate: Math.max(0, Math.min(STOPS.rate.length - 1, stop))});
    }
    const button = event.target.closest("button");
    if (!button) return;
    const {do: what, story: told} = button.dataset;
    if (told !== undefined) act(Number(told), 0);
    if (what === "play") play(!running);
    if (what === "step") step();
    if (what === "save") save();
    if (what === "reset") {
      play(false);
      lanes = [];
      earlier = [];
      change({});
    }
  });
  keepEvents(home);
  for (const name of ["accuracy", "rate"]) watchPointer(find(`[data-chart=${name}]`), () => views[name]);
  const repaint = () => {
    colours = {};
    drawn = {};
    sizes.clear();
    cancelAnimationFrame(rest);
    rest = 0;
    paintSoon();
  };
  let wide = 0;
  const watch = new ResizeObserver(([{contentRect: {width}}]) => { // a longer sentence changes no picture
    if (width !== wide) repaint();
    wide = width;
  });
  watch.observe(home);
  const themes = new MutationObserver(repaint); // of JupyterLab, of the site, of VS Code
  for (const place of [document.documentElement, document.body]) themes.observe(place, {attributes: true});
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", repaint);
  if (isPage) addEventListener("hashchange", () => change({...FIRST, ...stateIn(location.hash)}));
  reset();
  return {
    get lanes() { return lanes; },
    problem, state, change, act, play, step, Run, stream, normals,
    close() {
      play(false);
      cancelAnimationFrame(frame);
      cancelAnimationFrame(rest);
      watch.disconnect();
      themes.disconnect();
      scheme.removeEventListener("change", repaint);
    },
  };
}

// In a page of its own, and in a notebook

export function mountAll() {
  for (const place of document.querySelectorAll("[data-fedlora-playground]")) {
    place.playground = mountPlayground(place, TABLES);
  }
}

export default {render: ({el}) => mountPlayground(el, TABLES).close};
