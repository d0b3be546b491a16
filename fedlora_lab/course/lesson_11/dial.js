import { curve, fixed, gdpEpsilon, logSpan, normals, num, sum } from "../widgets/dial.js";

const PIXELS = 64, DELTA = 1e-4;

// |cos| of the input and the direction read, and the noise that ends it, as theory has them
export function overlap(sigma, rank, d, releases) {
  const square = releases / d / sigma ** 2, shape = rank / d;
  return square ** 2 <= shape ? 0 : Math.sqrt(Math.max(0, 1 - (shape + square) / (square * (square + 1))));
}
export const vanishing = (rank, d, releases) => Math.sqrt(releases) / (rank * d) ** 0.25;

// The attack: first right singular vector of the noised gradient u xᵀ / |x|, the mean of the
// releases; the noise is the same in all directions, so u may be the first unit vector.
export function read(scan, sigma, rank, releases, seed) {
  const size = Math.sqrt(sum(scan.map(v => v * v))), draws = normals(seed, rank * PIXELS), std = sigma / Math.sqrt(releases);
  const rows = Array.from({length: rank}, (_, i) => scan.map((v, j) => (i ? 0 : v / size) + std * draws[i * PIXELS + j]));
  let seen = rows[0];
  for (let k = 0; k < 150; k++) {
    const next = new Array(PIXELS).fill(0);
    for (const row of rows) { const along = sum(row.map((v, j) => v * seen[j])); row.forEach((v, j) => { next[j] += along * v; }); }
    const norm = Math.sqrt(sum(next.map(v => v * v)));
    seen = next.map(v => v / norm);
  }
  const cosine = sum(seen.map((v, j) => v * scan[j])) / size;
  return {image: seen.map(v => v * Math.sign(cosine)), cosine: Math.abs(cosine)};
}

export const dials = {
  attack_explorer: ({scans}) => ({
    title: "A scan read from one update",
    lead: "Add noise until the scan cannot be read. What does the ε say by then?",
    controls: {
      noise: {label: "noise σ", min: 0.003, max: 3, log: true, unit: "× C", caption: "noise std of a release"},
      releases: {label: "releases", values: [1, 2, 5, 10, 20, 50, 100], caption: "updates for this scan that are averaged"},
      rank: {label: "rank r", values: [1, 2, 4, 8, 16, 32], caption: "rows of the gradient of A"},
      scan: {label: "scan", min: 0, max: scans.length - 1, step: 1, caption: "which of the client's scans"},
    },
    presets: [["hardly any noise", {noise: 0.01, releases: 1}], ["just lost", {noise: 0.22, releases: 1, rank: 8}], ["the same noise, 100 releases", {noise: 0.22, releases: 100, rank: 8}], ["private", {noise: 3, releases: 1}]],
    draw({noise, releases, rank, scan}) {
      const x = scans[scan], {image, cosine} = read(x, noise, rank, releases, 100 * scan + rank), lost = vanishing(rank, PIXELS, releases);
      const low = Math.min(...image), high = Math.max(...image), top = Math.max(...x), ends = [0.003, 3];
      const spent = gdpEpsilon(Math.sqrt(releases) / noise, DELTA), closed = overlap(noise, rank, PIXELS, releases);
      const seen = noise < 0.6 * lost ? "can be read" : noise < lost ? "fades" : "is lost";
      const picture = (title, pixels) => ({title, basis: 180, bare: true, height: 220, x: {range: [0, 8]}, y: {range: [8, 0]}, margin: {left: 4, right: 4, top: 4, bottom: 4}, marks: [{image: pixels, wide: 8}]});
      return {
        panels: [picture("The scan", x.map(v => v / top)), picture(`Read from the update: it ${seen}`, image.map(v => (v - low) / (high - low))), {
          title: `|cos| with the scan: ${fixed(cosine)}`, basis: 300, wide: true, height: 220,
          x: {label: "noise multiplier σ of each release", short: "σ", range: ends, log: true}, y: {label: "|cos|", range: [0, 1.04]},
          marks: [
            {area: [[lost, 0], [lost, 1.04], [3, 1.04], [3, 0]], colour: "green", opacity: 0.13}, ...(lost < 1.5 ? [{text: "image lost", at: [3, 0.95], anchor: "end", dx: -6, colour: "green", bold: true}] : []),
            {line: curve(logSpan(...ends, 160), s => overlap(s, rank, PIXELS, releases)), colour: "ink", name: "closed form"},
            {dots: [[noise, cosine]], colour: "red", size: 7, spots: [[noise, cosine, `this draw ${fixed(cosine)}`]]},
          ],
        }],
        say: `σ = ${num(noise)}, ${releases} release${releases > 1 ? "s" : ""}: |cos| with the scan ${fixed(cosine)} (closed form for a large layer ${fixed(closed)}). The image ${seen}; in a large layer nothing of it is left above σ = ${num(lost, 2)}. Spent on this scan: ε = ${num(spent, 2)} at δ = 0.0001.`,
      };
    },
  }),
};
