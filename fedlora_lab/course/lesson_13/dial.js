import { fixed, gdpEpsilon, gdpSigma, num } from "../widgets/dial.js";

const DELTA = 1e-5, TRUSTS = {local: "nobody", secagg: "secure aggregation", central: "the server"}, COLOURS = {local: "pink", secagg: "purple", central: "teal"};

export function noiseOnMean(trust, sigma, clients) { // in units of C, as theory.trust_level
  return trust === "local" ? sigma / Math.sqrt(clients) : sigma / clients;
}

export function faced(trust, sigma, clients, colluders) { // ε for the public, the server, and it with colluders
  const stated = gdpEpsilon(1 / sigma, DELTA);
  if (trust === "central") return [stated, Infinity, Infinity];
  if (trust === "local") return [gdpEpsilon(1 / sigma / Math.sqrt(clients), DELTA), stated, stated];
  return [stated, stated, gdpEpsilon(1 / (sigma * Math.sqrt((clients - colluders) / clients)), DELTA)];
}

export const dials = {
  trust_explorer: () => ({
    title: "Whom do you trust?",
    lead: "Change whom the clients trust. Who pays in noise, and who sees what?",
    controls: {
      trust: {label: "clients trust", options: Object.entries(TRUSTS), caption: "who may see single uploads, or their sum only"},
      clients: {label: "clients K", values: [5, 10, 20, 50, 100, 300, 1000], caption: "that upload in a round"},
      epsilon: {label: "promised ε", values: [0.5, 1, 2, 4, 8], caption: "to each client, for one release"},
      colluders: {label: "colluders", min: 0, max: 49, step: 1, caption: "clients that tell the server their noise"},
    },
    presets: [["trust nobody", {trust: "local"}], ["secure aggregation", {trust: "secagg", colluders: 0}], ["half of 50 collude", {trust: "secagg", clients: 50, colluders: 25}], ["trust the server", {trust: "central"}]],
    draw({trust, clients, epsilon, colluders}) {
      const others = Math.min(colluders, clients - 1), sigma = gdpSigma(epsilon, DELTA), seen = faced(trust, sigma, clients, others), kinds = Object.keys(TRUSTS);
      const means = kinds.map(k => noiseOnMean(k, sigma, clients)), own = noiseOnMean(trust, sigma, clients);
      const each = trust === "local" ? sigma : sigma / Math.sqrt(clients), more = own / noiseOnMean("central", sigma, clients);
      const adds = trust === "central" ? `the server adds ${num(sigma, 2)} C to the sum` : `each client adds ${num(each, 2)} C`;
      const end = trust === "central" ? ". The server sees every update as it is." : trust === "local" ? `, ${num(more, 2)} times what a trusted server needs. Nobody faces more than ε = ${num(epsilon)}.`
        : `. With ${others} clients on its side the server faces ε = ${fixed(seen[2])}.`;
      const rows = {range: [2.6, -0.6], ticks: [0, 1, 2]};
      return {
        panels: [{
          title: "The same promise needs other noise", basis: 330, margin: {right: 64},
          x: {label: "noise on the mean, in units of C", range: [1e-4, 100], log: true}, y: {...rows, names: kinds.map(k => `trust ${TRUSTS[k]}`)},
          marks: kinds.flatMap((k, i) => [{bars: [[1e-4, i - 0.28, means[i], i + 0.28]], colour: k === trust ? COLOURS[k] : "pale"}, {text: `${num(means[i], 2)} C`, at: [means[i], i], dx: 6, dy: 4, bold: k === trust, colour: k === trust ? "ink" : "soft"}]),
        }, {
          title: "Who faces which ε", basis: 330,
          x: {label: "ε (dashed: promised)", range: [0.03, 300], log: true}, y: {...rows, names: ["who sees the model", "the server", `server + ${others} clients`]},
          marks: [
            ...seen.flatMap((v, i) => { const colour = v <= epsilon * 1.000001 ? "green" : "red", at = Math.min(v, 300), far = at > 20; return [{bars: [[0.03, i - 0.28, at, i + 0.28]], colour},
              {text: Number.isFinite(v) ? fixed(v) : "everything", at: [at, i], dx: far ? -7 : 6, dy: 4, anchor: far ? "end" : "start", colour: far ? "card" : colour, on: far ? colour : undefined, bold: true}]; }),
            {line: [[epsilon, 2.6], [epsilon, -0.6]], colour: "ink", dash: "4 3", width: 1.6},
          ],
        }],
        say: `ε = ${num(epsilon)} for ${clients} clients, trust in ${TRUSTS[trust]}: ${adds}; the mean carries ${num(own, 2)} C${end}`,
      };
    },
  }),
};
