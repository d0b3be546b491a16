// A long table is sorted by the column whose head is pressed; pressed again, the other way round.
// Tables with groups, whose first cell is empty in some rows, keep their order.
const LONG = 8;

function worth(row, column) {
  const text = row.cells[column].textContent.trim().replace("−", "-");
  const number = parseFloat(text);
  return Number.isNaN(number) ? text.toLowerCase() : number;
}

function sortBy(table, head) {
  const rows = [...table.tBodies[0].rows];
  const keys = new Map(rows.map((row) => [row, worth(row, head.cellIndex)]));
  const isText = (row) => typeof keys.get(row) === "string";
  // The largest number first, and words from A to Z.
  const [usual, other] = rows.every(isText) ? ["ascending", "descending"] : ["descending", "ascending"];
  const order = head.getAttribute("aria-sort") === usual ? other : usual;
  for (const one of table.tHead.rows[0].cells) one.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  rows.sort((one, two) => {
    // What is not a number stands below all numbers, whichever way.
    if (isText(one) !== isText(two)) return isText(one) ? 1 : -1;
    const [a, b] = [keys.get(one), keys.get(two)];
    return sign * (isText(one) ? a.localeCompare(b) : a - b);
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.table")) {
  const rows = [...table.tBodies[0].rows];
  if (!table.tHead || rows.length < LONG) continue;
  if (rows.some((row) => !row.cells[0].textContent.trim())) continue;
  for (const head of table.tHead.rows[0].cells) {
    if (!head.textContent.trim()) continue; // a button needs a name
    const button = document.createElement("button");
    button.className = "sorts";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, head));
  }
}
