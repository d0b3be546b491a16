// A choice in a prediction is repeated where the answer opens.
document.addEventListener("change", ({target}) => {
  if (target.type !== "radio") return;
  for (const place of document.querySelectorAll(`[data-guess="${target.name}"]`))
    place.textContent = `You chose ${target.value}).`;
});
