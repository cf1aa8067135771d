// Tables can be sorted by their columns; without this script they are as they are.
for (const table of document.querySelectorAll("table.sortable")) {
  const header = table.tHead.rows[table.tHead.rows.length - 1];
  const body = table.tBodies[0];
  const original = [...body.rows];
  [...header.cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const last = cell.getAttribute("aria-sort");
      const order = last === "ascending" ? "descending" : last === "descending" ? null : "ascending";
      for (const other of header.cells) other.removeAttribute("aria-sort");
      if (order) cell.setAttribute("aria-sort", order);
      const sign = order === "descending" ? -1 : 1;
      const keys = new Map(original.map((row) => [row, key(row.cells[column])]));
      const rows = order ? [...original].sort((a, b) => compare(keys.get(a), keys.get(b), sign)) : original;
      body.append(...rows);
    });
  });
}

function key(cell) {
  const text = cell.textContent.trim();
  const number = cell.matches(".number, .range") && text.replace("\u2212", "-").match(/[+-]?\d+(\.\d+)?/);
  return text === "" ? null : number ? parseFloat(number[0]) : text.toLowerCase();
}

// Empty cells stay at the end, numbers come before words.
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
}
