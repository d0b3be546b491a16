// What stands below the first screen is loaded when its reader comes near: the numbers of a dial and
// the engine of the playground are more than half of what a lesson weighs.
for (const near of ["dial", "playground"]) {
  const waiting = document.querySelectorAll(`script[data-near=${near}]`);
  const load = () => {
    watch.disconnect();
    for (const late of waiting) {
      const script = document.createElement("script");
      script.async = false; // in the order of the page: a dial's numbers before what draws them
      script.src = late.dataset.src;
      late.replaceWith(script);
    }
  };
  // One for all scripts of a kind: several would be told in any order.
  const watch = new IntersectionObserver(seen => { if (seen.some(one => one.isIntersecting)) load(); }, {rootMargin: "800px"});
  document.querySelectorAll(`[data-fedlora-${near}]`).forEach(place => watch.observe(place));
  addEventListener("beforeprint", load, {once: true});
}
