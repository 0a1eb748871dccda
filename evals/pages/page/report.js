"use strict";
// Figures of a mark on hover, tap and focus; tables sorted by a column. No network, nothing stored.
const tip = document.getElementById("tip");

function show(mark) {
  tip.textContent = mark.dataset.tip;
  const box = mark.getBoundingClientRect(), own = tip.getBoundingClientRect(), edge = 8;
  const left = Math.min(Math.max(box.left + box.width / 2 - own.width / 2, edge), innerWidth - own.width - edge);
  const above = box.top - own.height - 8;
  tip.style.left = `${Math.max(left, edge)}px`;
  tip.style.top = `${above > edge ? above : box.bottom + 8}px`;
  tip.classList.add("is-shown");
}

function hide() { tip.classList.remove("is-shown"); }

for (const event of ["pointerover", "focusin", "click"]) {
  document.addEventListener(event, (happened) => {
    const mark = happened.target.closest?.("[data-tip]");
    if (mark) show(mark); else hide();
  });
}
document.addEventListener("scroll", hide, { passive: true, capture: true });
document.addEventListener("keydown", (happened) => { if (happened.key === "Escape") hide(); });

function keyOf(row, column) {
  const cell = row.cells[column], given = cell.dataset.value ?? cell.textContent.trim(), number = Number(given);
  return given !== "" && !Number.isNaN(number) ? number : given;
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (happened) => {
    const head = happened.target.closest("th");
    if (!head) return;
    const column = head.cellIndex, body = table.tBodies[0];
    const isRising = head.getAttribute("aria-sort") === "descending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", isRising ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
    const isText = rows.some(([key]) => typeof key === "string" && key !== "");
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isText ? String(a).localeCompare(String(b)) : a - b;
      return isRising ? order : -order;
    });
    for (const [, row] of rows) body.append(row);
  });
}
