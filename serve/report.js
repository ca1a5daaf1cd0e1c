// Sort and filter the table of classes; tell the cell of the confusion matrix under the pointer. The page is complete
// without this script.
"use strict";
(() => {
  const table = document.querySelector(".classes");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const nameOf = (row) => row.cells[0].textContent;
  const compareNames = new Intl.Collator(undefined, { numeric: true }).compare;

  // A cell's value: a number where the column has numbers; classes without images come last in either direction.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!("numbers" in headings[column].dataset)) return cell.textContent;
    return Number.parseFloat(cell.dataset.value ?? cell.textContent);
  };

  const sortBy = (column) => {
    const heading = headings[column];
    const isNumber = "numbers" in heading.dataset;
    // Names begin with A, accuracies with the lowest, counts with the highest.
    const first = !isNumber || heading.textContent.startsWith("Top") ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = heading.getAttribute("aria-sort") === first ? other : first;
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = rows.map((row, place) => ({ row, place, value: valueOf(row, column) }));
    keyed.sort((a, b) => {
      if (!isNumber) return sign * compareNames(a.value, b.value) || a.place - b.place;
      if (Number.isNaN(a.value) || Number.isNaN(b.value)) return Number.isNaN(a.value) - Number.isNaN(b.value);
      return sign * (a.value - b.value) || a.place - b.place;
    });
    for (const each of headings) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
    body.append(...keyed.map((each) => each.row));
  };

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(column));
    heading.append(button);
  });

  const filter = document.getElementById("filter");
  const filtered = document.getElementById("filtered");
  document.querySelector(".filter").hidden = false;
  const simplify = (text) => text.normalize("NFKD").replace(/\p{Mn}/gu, "").toLowerCase();
  const names = rows.map((row) => simplify(nameOf(row)));
  filter.addEventListener("input", () => {
    const wanted = simplify(filter.value.trim());
    let count = 0;
    rows.forEach((row, place) => {
      row.hidden = !names[place].includes(wanted);
      count += !row.hidden;
    });
    filtered.textContent = wanted ? `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} classes` : "";
  });

  const heat = document.getElementById("heat");
  if (!heat) return;
  const cell = document.getElementById("cell");
  cell.hidden = false;
  const flat = JSON.parse(document.getElementById("mistaken").textContent);
  const mistakes = new Map();
  for (let at = 0; at < flat.length; at += 3) mistakes.set(`${flat[at]} ${flat[at + 1]}`, flat[at + 2]);
  const byLabel = new Map(rows.map((row) => [Number(row.dataset.label), row]));
  const size = rows.length;

  // A cell may be smaller than a pixel: take the largest mistake within four pixels of the pointer, if there is one.
  const tell = (event) => {
    const box = heat.getBoundingClientRect();
    const column = Math.floor((size * (event.clientX - box.left)) / box.width);
    const line = Math.floor((size * (event.clientY - box.top)) / box.height);
    const reach = Math.floor((4 * size) / box.width);
    let [label, guess, count] = [line, column, mistakes.get(`${line} ${column}`) ?? 0];
    for (let down = -reach; down <= reach; down++) {
      for (let right = -reach; right <= reach; right++) {
        const found = mistakes.get(`${line + down} ${column + right}`) ?? 0;
        if (found > count) [label, guess, count] = [line + down, column + right, found];
      }
    }
    const [from, to] = [byLabel.get(label), byLabel.get(guess)];
    if (!from || !to) return;
    const images = Number(from.cells[1].textContent);
    cell.textContent =
      from === to
        ? `${nameOf(from)}: ${from.cells[2].textContent}% of ${images} images are predicted correctly`
        : `${nameOf(from)} predicted as ${nameOf(to)}: ${count} of ${images} images`;
  };
  heat.addEventListener("pointermove", tell);
  heat.addEventListener("pointerdown", tell);
})();
