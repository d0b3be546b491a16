// Statistics of the playground's random numbers, each as its distance from what is expected, in
// standard deviations. pg is the playground of a page.
() => {
  const settings = {method: "ffa-lora", rate: 0.4, clip: 2, rank: 4, split: 2, clients: 1, steps: 1, noise: 4, bits: 2};
  const rounds = 40;
  const draw = seed => { // noise on B in units of its size, and batches, of the first step of rounds
    const run = new pg.Run(pg.problem, {...settings, seed});
    const drawn = [];
    for (; run.round < rounds; run.round++) {
      drawn.push(run.lists.map((list, k) => {
        const size = run.sigma[k] * settings.clip;
        const places = run.batchOf(k, 0).map(i => list.indexOf(i));
        return {noise: Array.from(run.noiseOf("B", k, 0), value => value / size), places};
      }));
    }
    return {drawn, rates: run.rates, sizes: run.lists.map(list => list.length)};
  };
  const one = draw(0);
  const other = draw(1);
  const far = {
    "the same seed": JSON.stringify(draw(0)) === JSON.stringify(one) ? 0 : Infinity,
    "another seed": JSON.stringify(other) === JSON.stringify(one) ? Infinity : 0,
  };
  const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
  const noiseOf = ({drawn}) => drawn.map(clients => clients.map(client => client.noise));
  const noise = noiseOf(one);
  const all = noise.flat(2);
  for (const [power, expected, variance] of [[1, 0, 1], [2, 1, 2], [3, 0, 15], [4, 3, 96]]) {
    far[`moment ${power}`] = (mean(all.map(x => x ** power)) - expected) / Math.sqrt(variance / all.length);
  }
  const correlation = pairs => {
    const products = pairs.flatMap(([a, b]) => a.map((value, i) => value * b[i]));
    return mean(products) * Math.sqrt(products.length);
  };
  const rows = noise.flat();
  const next = noiseOf(other).flat();
  far["clients"] = correlation(noise.flatMap(row => row.slice(1).map((client, k) => [client, row[k]])));
  far["rounds"] = correlation(noise.slice(1).flatMap((row, t) => row.map((client, k) => [client, noise[t][k]])));
  far["seeds"] = correlation(rows.map((row, i) => [row, next[i]]));
  far["neighbours"] = correlation(rows.map(row => [row.slice(1), row.slice(0, -1)]));
  one.sizes.forEach((size, k) => {
    const rate = one.rates[k];
    const variance = size * rate * (1 - rate);
    const batches = one.drawn.map(clients => clients[k].places);
    const counts = batches.map(places => places.length);
    far[`mean batch of client ${k}`] = (mean(counts) - size * rate) / Math.sqrt(variance / rounds);
    const spread = mean(counts.map(count => (count - size * rate) ** 2)) / variance;
    far[`variance of batches of client ${k}`] = (spread - 1) / Math.sqrt(2 / rounds);
    // Every example as often as any other.
    const times = Array(size).fill(0);
    for (const place of batches.flat()) times[place] += 1;
    const chi = times.reduce((sum, count) => sum + (count - rounds * rate) ** 2, 0) / (rounds * rate * (1 - rate));
    far[`examples of client ${k}`] = (chi - size) / Math.sqrt(2 * size);
  });
  return far;
}
