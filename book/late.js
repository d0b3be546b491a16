// What stands below the first screen is loaded when its reader comes near: the numbers of a dial and
// the engine of the playground are more than half of what a lesson weighs.
for (const late of document.querySelectorAll("script[data-near]")) {
  const load = () => {
    watch.disconnect();
    const script = document.createElement("script");
    script.async = false; // in the order of the page: a dial's numbers before what draws them
    script.src = late.dataset.src;
    late.replaceWith(script);
  };
  const watch = new IntersectionObserver(seen => { if (seen.some(one => one.isIntersecting)) load(); }, {rootMargin: "800px"});
  document.querySelectorAll(`[data-fedlora-${late.dataset.near}]`).forEach(place => watch.observe(place));
  addEventListener("beforeprint", load, {once: true});
}
