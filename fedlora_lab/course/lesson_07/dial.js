import { curve, mean, normals, num, percent, sum } from "../widgets/dial.js";

const SIZE = 64;

// The cosine transform (DCT-II, orthonormal), in which the binomial filter is a product
const wave = (j, i, n) => Math.sqrt((j ? 2 : 1) / n) * Math.cos(Math.PI * j * (i + 0.5) / n);
export const dct = row => row.map((_, j) => sum(row.map((v, i) => v * wave(j, i, row.length))));
export const idct = waves => waves.map((_, i) => sum(waves.map((v, j) => v * wave(j, i, waves.length))));
export const response = (taps, n) => Array.from({length: n}, (_, j) => Math.cos(Math.PI * j / (2 * n)) ** (taps - 1));
export const filteredEnergy = (energy, taps) => sum(response(taps, energy.length).map((g, j) => g * g * energy[j])) / sum(energy);

const DRAWS = Array.from(normals(5, SIZE)), NOISE = Array.from(normals(11, SIZE)), KEYS = normals(3, SIZE);
const ORDER = [...KEYS.keys()].sort((a, b) => KEYS[a] - KEYS[b]);

function signal(smoothness, shuffle) { // mean square 1: white at smoothness 0, slow at 1
  const row = idct(DRAWS.map((z, j) => z * Math.exp(-9 * smoothness * j / SIZE)));
  const size = Math.sqrt(mean(row.map(v => v * v)));
  return (shuffle ? ORDER : [...row.keys()]).map(i => row[i] / size);
}

export const dials = {
  filter_explorer: () => ({
    title: "What a low-pass filter keeps",
    lead: "Shuffle the channels, or make neighbours unlike. Does the filter still tell signal from noise?",
    controls: {
      taps: {label: "taps", values: [1, 3, 5, 7, 9, 15], caption: "length of the filter; 1 leaves all as it is"},
      smoothness: {label: "smoothness", min: 0, max: 1, step: 0.05, caption: "how alike neighbouring channels are"},
      noise: {label: "noise", min: 0, max: 2, step: 0.1, caption: "std on every channel; the gradient's is 1"},
      shuffle: {label: "channels", options: [[false, "as they are"], [true, "shuffled"]], caption: "in a network the order means nothing"},
    },
    presets: [["neighbours alike", {taps: 5, smoothness: 0.6, shuffle: false}], ["the same, shuffled", {taps: 5, smoothness: 0.6, shuffle: true}], ["long filter, very smooth", {taps: 15, smoothness: 1, shuffle: false}], ["unlike neighbours", {taps: 5, smoothness: 0, shuffle: false}]],
    draw({taps, smoothness, noise, shuffle}) {
      const wanted = signal(smoothness, shuffle), noised = wanted.map((v, i) => v + noise * NOISE[i]), gain = response(taps, SIZE);
      const filtered = idct(dct(noised).map((v, j) => v * gain[j])), energy = dct(wanted).map(v => v * v), floor = 1e-3;
      const kept = filteredEnergy(energy, taps), left = mean(gain.map(g => g * g)), line = row => row.map((v, i) => [i, v]);
      const bars = f => energy.map((e, j) => [j / SIZE, floor, (j + 0.85) / SIZE, Math.max(floor, f(e, j))]), apart = kept > 2 * left;
      const verdict = taps === 1 ? "One tap is no filter." : apart ? "The filter tells them apart." : "Signal and noise look alike to the filter: it takes as much of both.";
      return {
        panels: [{
          title: "— gradient, • with noise, — filtered", wide: true,
          x: {label: "channel", range: [0, SIZE - 1]}, y: {label: "gradient", range: [-5, 5]}, margin: {right: 70},
          marks: [{dots: line(noised), colour: "grey", size: 2.8}, {line: line(wanted), colour: "ink", width: 1.5, name: "gradient", label: "gradient"}, {line: line(filtered), colour: "pink", width: 2.6, name: "filtered", label: "filtered"}],
        }, {
          title: `Kept: ${percent(kept)} of the signal, ${percent(left)} of the noise`, basis: 320,
          x: {label: "frequency (1: every other channel)", short: "frequency", range: [0, 1]}, y: {label: "energy", range: [floor, 100], log: true},
          marks: [
            {bars: bars(e => e), colour: "pale"}, {bars: bars((e, j) => e * gain[j] ** 2), colour: "ink", opacity: 0.75},
            {line: [[0, noise ** 2], [1, noise ** 2]], colour: "grey", name: "noise before"}, {line: curve([...gain.keys()].map(j => j / SIZE), x => Math.max(noise ** 2 * gain[Math.round(x * SIZE)] ** 2, 1e-9)), colour: "pink", name: "noise after", width: 2.6},
            {text: "signal: faint bars before, full bars after", at: [1, 60], anchor: "end", dx: -4, colour: "soft", size: 11.5}, {text: "noise: straight line before, curve after", at: [1, 25], anchor: "end", dx: -4, colour: "soft", size: 11.5},
          ],
        }],
        say: `${taps} tap${taps > 1 ? "s" : ""} keep${taps > 1 ? "" : "s"} ${percent(kept)} of the signal's energy and ${percent(left)} of the noise's: ${num(kept / left, 2)} times as much signal to noise as before. ${verdict}`,
      };
    },
  }),
};
