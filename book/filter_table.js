// A field above every table in a "filtered" div shows the rows that have all of its words, and says
// how many these are. Without scripts the table is whole.
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll("div.filtered")) {
    const rows = [...box.querySelectorAll("tbody tr")];
    const label = document.createElement("label");
    const field = document.createElement("input");
    const count = document.createElement("output");
    field.type = "search";
    field.placeholder = "RoLoRA cannot tell";
    label.append("Show rows with ", field, " ");
    const update = () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
    };
    field.addEventListener("input", update);
    box.prepend(label, count);
    update();
  }
});
