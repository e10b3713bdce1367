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
    large.removeAttribute("id");
    viewer.querySelector("div").replaceChildren(large);
    viewer.querySelector("p").textContent = large.alt;
    viewer.classList.toggle("pixels", button.classList.contains("pixels"));
    viewer.showModal();
  });
}
viewer.addEventListener("click", event => { if (event.target === viewer) viewer.close(); });
// one evaluation's predictions for one image at a time, of all runs or of one; printed, all of them are shown
const picker = document.querySelector(".picker");
if (picker) {
  const [byEvaluation, byImage, byRun] = picker.querySelectorAll("select");
  const evaluations = [...document.querySelectorAll(".evaluation")];
  const fill = (select, names) => {
    const before = select.value;
    select.replaceChildren(...names.map(([text, value]) => new Option(text, value)));
    if (names.some(([, value]) => value === before)) select.value = before;
  };
  const pick = () => {
    const chosen = evaluations[byEvaluation.selectedIndex], groups = [...chosen.querySelectorAll("details")];
    fill(byImage, groups.map(({ dataset }) => [dataset.name, dataset.name]));
    const group = groups[byImage.selectedIndex], figures = [...group.querySelectorAll("figure")];
    byImage.parentElement.hidden = groups.length < 2;
    fill(byRun, [["all, side by side", ""], ...figures.map(({ dataset }) => [dataset.run, dataset.run])]);
    for (const other of evaluations) other.classList.toggle("unpicked", other !== chosen);
    for (const other of groups) {
      other.classList.add("picked");
      other.classList.toggle("unpicked", other !== group);
      other.open = other === group;
    }
    for (const figure of figures) figure.classList.toggle("unpicked", byRun.value !== "" && figure.dataset.run !== byRun.value);
  };
  picker.addEventListener("change", pick);
  picker.addEventListener("submit", event => event.preventDefault());
  picker.hidden = false;
  pick();
}
// what is wider than the view says so, and can be reached and scrolled by keyboard; what is not is no stop for the Tab key
for (const area of document.querySelectorAll(".scroll")) {
  const frame = document.createElement("div"), hint = document.createElement("p");
  hint.className = "hint";
  hint.innerHTML = "↔ Wider than the view: scroll sideways<span>, by keyboard with the arrow keys</span>.";
  area.replaceWith(hint, frame);
  frame.append(area);
  const update = () => {
    const hidden = area.scrollWidth - area.clientWidth;
    hint.hidden = hidden <= 1;
    if (hidden > 1) area.tabIndex = 0; else area.removeAttribute("tabindex");
    frame.className = hidden - area.scrollLeft > 1 ? "frame more" : "frame";
  };
  new ResizeObserver(update).observe(area);
  area.addEventListener("scroll", update, { passive: true });
  update();
}
// on a narrow view the contents are folded
const contents = document.querySelector("nav details"), narrow = matchMedia("(max-width: 40rem)");
const fit = () => { contents.open = !narrow.matches; };
narrow.addEventListener("change", fit);
fit();
// printed, everything that is folded is open but for long lists of names, and as it was afterwards
const folds = [...document.querySelectorAll("main details:not(.every, .long)")];
let opened = [];
const unfold = () => { opened = folds.filter(folded => !folded.open); for (const folded of opened) folded.open = true; };
const fold = () => { for (const folded of opened) folded.open = false; opened = []; };
addEventListener("beforeprint", unfold);
addEventListener("afterprint", fold);
