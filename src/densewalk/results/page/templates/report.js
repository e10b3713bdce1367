"use strict";
// a press on a heading sorts by that column, a second press turns the order; cells without a value stay last
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, body = heading.closest("table").tBodies[0];
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = row => { const cell = row.cells[heading.cellIndex]; return cell && !cell.hasAttribute("colspan") ? (cell.dataset.value ?? cell.textContent).trim() : ""; };
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const difference = Number(x) - Number(y);
      return (Number.isNaN(difference) ? x.localeCompare(y) : difference) * (descending ? -1 : 1);
    };
    body.append(...[...body.rows].sort(order));
  });
}
// a run's name leads to how its numbers were made: open it
const reveal = () => {
  const target = document.getElementById(location.hash.slice(1));
  for (let folded = target?.closest("details"); folded; folded = folded.parentElement.closest("details")) folded.open = true;
  target?.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();
// a press on an image shows it large; Escape, the button or a press outside closes it
const viewer = document.getElementById("viewer");
for (const button of document.querySelectorAll(".open")) {
  button.addEventListener("click", () => {
    const large = button.querySelector("img").cloneNode();
    viewer.querySelector("div").replaceChildren(large);
    viewer.querySelector("p").textContent = large.alt;
    viewer.classList.toggle("pixels", button.classList.contains("pixels"));
    viewer.showModal();
  });
}
viewer.addEventListener("click", event => { if (event.target === viewer) viewer.close(); });
// printed, everything that is folded is open, and as it was afterwards
const folds = [...document.querySelectorAll("main details:not(.every)")];
let opened = [];
const unfold = () => { opened = folds.filter(folded => !folded.open); for (const folded of opened) folded.open = true; };
const fold = () => { for (const folded of opened) folded.open = false; opened = []; };
addEventListener("beforeprint", unfold);
addEventListener("afterprint", fold);
