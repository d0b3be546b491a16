import { num, percent } from "../widgets/dial.js";

const FLOOR = 0.006, LAYERS = 8, VERBS = {both: "sends and receives", up: "sends", down: "receives"};

export function bytesText(bytes) {
  const [unit, size] = [["GB", 1e9], ["MB", 1e6], ["kB", 1e3], ["bytes", 1]].find(([, s]) => bytes >= s) ?? ["bytes", 1];
  return `${num(bytes / size)} ${unit}`;
}

export const dials = {
  exactness_explorer: ({methods, widths, ranks, counts}) => ({
    title: "What exactness costs in bytes",
    lead: "Make the layers wider and add clients. What does an exact server cost?",
    controls: {
      mark: {label: "method", options: methods.map(m => [m.slug, m.name]), caption: "is marked; hover for the others"},
      way: {label: "bytes", options: [["both", "both ways"], ["up", "up"], ["down", "down"]], caption: "which way they go"},
      width: {label: "layer width", values: widths, caption: "d_in = d_out of each of eight layers"},
      rank: {label: "rank r", values: ranks, caption: "inner dimension of B A"},
      clients: {label: "clients K", values: counts, caption: "how many upload in a round"},
    },
    presets: [["FedEx-LoRA, wide layers", {mark: "fedex-lora", way: "both", width: 4096, rank: 4, clients: 10}], ["the same, 200 clients", {mark: "fedex-lora", way: "both", width: 4096, rank: 4, clients: 200}], ["FFA-LoRA", {mark: "ffa-lora", way: "both", width: 4096, rank: 4, clients: 10}], ["FedSVD", {mark: "fedsvd", way: "both", width: 4096, rank: 4, clients: 10}]],
    draw({mark, way, width, rank, clients}) {
      const w = widths.indexOf(width), r = ranks.indexOf(rank), c = counts.indexOf(clients);
      const sent = m => { const down = m.down[w][r]; return {up: LAYERS * m.up[w][r], down: LAYERS * (Array.isArray(down) ? down[c] : down)}; };
      const total = m => { const {up, down} = sent(m); return way === "both" ? up + down : way === "up" ? up : down; };
      const one = methods.find(m => m.slug === mark), plain = methods.find(m => m.slug === "fedlora"), whole = 4 * LAYERS * width ** 2;
      const place = m => [Math.max(40, total(m)), Math.min(1, Math.max(FLOOR, m.deviation))], shown = methods.filter(m => m.deviation !== null);
      const server = one.deviation === null ? "forms no common product" : one.deviation < 1e-5 ? "is exact" : `is ${percent(one.deviation, 1)} off`;
      const at = new Map();
      for (const m of shown) { const key = place(m).join(); at.set(key, [...(at.get(key) ?? []), m.name]); }
      const spots = [...at].map(([key, names]) => [...key.split(",").map(Number), `${names.slice(0, 3).join(", ")}${names.length > 3 ? ` and ${names.length - 3} more` : ""}`]);
      const bars = [[one.name, sent(one), "blue"], ["FedLoRA", sent(plain), "grey"]], widest = Math.max(whole, ...bars.map(b => b[1].up + b[1].down));
      const tell = (m, colour) => m.deviation === null ? [] : [{text: m.name, at: place(m), dx: total(m) > 3e6 ? -10 : 10, dy: m === plain ? -9 : 17, anchor: total(m) > 3e6 ? "end" : "start", colour, bold: true}];
      return {
        panels: [{
          title: `${one.name}: the server ${server}`, wide: true, basis: 360, height: 290,
          x: {label: "bytes of a client in a round", short: "bytes", range: [32, 4e9], log: true, ticks: [1e2, 1e4, 1e6, 1e8], names: ["100 B", "10 kB", "1 MB", "100 MB"], format: bytesText},
          y: {label: "deviation, as measured on digits", range: [0.004, 1.3], log: true, ticks: [FLOOR, 0.03, 0.1, 0.3, 1], names: ["exact", "3 %", "10 %", "30 %", "100 %"]},
          marks: [
            {line: [[whole, 0.004], [whole, 1.3]], colour: "soft", dash: "4 4", width: 1.4}, {text: "layers sent whole", at: [whole, 0.6], anchor: whole > 1e6 ? "end" : "start", dx: whole > 1e6 ? -6 : 6, colour: "soft"},
            {dots: shown.map(place), colour: "grey", size: 5, opacity: 0.75, spots}, {dots: shown.includes(one) ? [place(one)] : [], colour: "blue", size: 8}, ...tell(one, "blue"), ...(one === plain ? [] : tell(plain, "ink")),
          ],
        }, {
          title: `${bytesText(total(one))}: ${num(total(one) / total(plain))} times FedLoRA`, basis: 280, height: 290,
          x: {label: "bytes (dark up, pale down)", range: [0, widest * 1.02], format: bytesText, ticks: [0, widest / 2, widest]}, y: {range: [2.6, -0.6], ticks: [0, 1, 2], names: [one.name, "FedLoRA", "whole layers"]}, margin: {right: 34},
          marks: [...bars.flatMap(([, {up, down}, colour], i) => [{bars: [[0, i - 0.3, up, i + 0.3]], colour}, {bars: [[up, i - 0.3, up + down, i + 0.3]], colour, opacity: 0.4}]), {bars: [[0, 1.7, whole, 2.3]], colour: "pale"}],
        }],
        say: `A client of ${one.name} ${VERBS[way]} ${bytesText(total(one))} a round, ${num(total(one) / total(plain))} times FedLoRA's ${bytesText(total(plain))}; its server ${server}. The eight layers themselves, sent whole, would be ${bytesText(whole)}.`,
      };
    },
  }),
};
