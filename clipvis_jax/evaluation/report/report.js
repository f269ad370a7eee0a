// Sorting and filtering of tables. Without it the page is complete, only fixed.
"use strict";

function sortValue(row, column) {
  const text = row.cells[column].dataset.value;
  if (text === undefined) return null;
  const number = Number(text);
  return text !== "" && Number.isFinite(number) ? number : text;
}

// Cells without a value come last in both directions.
function compare(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return direction * (a - b);
  return direction * String(a).localeCompare(String(b));
}

function sortBy(table, column) {
  const headers = [...table.tHead.rows[0].cells];
  const current = headers[column].getAttribute("aria-sort");
  // Names start from A, numbers from the largest.
  const first = column === 0 ? "ascending" : "descending";
  const second = column === 0 ? "descending" : "ascending";
  const order = current === first ? second : first;
  headers.forEach((header) => header.removeAttribute("aria-sort"));
  headers[column].setAttribute("aria-sort", order);
  const direction = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => [sortValue(row, column), row]);
  rows.sort((a, b) => compare(a[0], b[0], direction));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function filterRows(form, table) {
  const name = form.querySelector("[data-filter=name]").value.trim().toLowerCase();
  const group = form.querySelector("[data-filter=group]")?.value ?? "";
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const fits = row.cells[0].dataset.value.includes(name) && (!group || row.dataset.groups.includes(` ${group} `));
    row.hidden = !fits;
    shown += fits;
  }
  form.querySelector("output").textContent = `${shown.toLocaleString("en")} ${shown === 1 ? "class" : "classes"}`;
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const header = event.target.closest("th");
    if (header) sortBy(table, header.cellIndex);
  });
}

for (const form of document.querySelectorAll("form.filters")) {
  const table = document.getElementById(form.dataset.table);
  form.hidden = false;
  form.addEventListener("input", () => filterRows(form, table));
  form.addEventListener("submit", (event) => event.preventDefault());
}
