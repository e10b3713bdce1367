// Who votes for a patch: its prediction and the labelled patches with the largest votes, by two runs side by side
{
const { images, evaluations } = JSON.parse(document.getElementById("votes").textContent), tool = document.querySelector(".voting");
const [byEvaluation, byQuery, byLeft, byRight] = tool.querySelectorAll("select"), said = tool.querySelector(".said");
const NO_LABEL = 65535, FULL = 65535, decoded = new Map();
const numbers = text => {
  if (!decoded.has(text)) decoded.set(text, new Uint16Array(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer));
  return decoded.get(text);
};
const short = name => name.split("/").pop();
const source = number => `data:image/webp;base64,${images[number]}`;
const place = (element, { rows, columns }, patch) => Object.assign(element.style, {
  left: `${100 * (patch % columns) / columns}%`, top: `${100 * Math.floor(patch / columns) / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%`,
});
const create = (name, className, text = "") => Object.assign(document.createElement(name), { className, textContent: text });
const patchAt = ({ rows, columns }, { x, y }) => Math.min(rows - 1, Math.floor(y * rows)) * columns + Math.min(columns - 1, Math.floor(x * columns));
let asked = { x: 0.5, y: 0.5 };
const sides = [byLeft, byRight].map((select, side) => {
  const button = create("button", "patches"), image = create("img", ""), mark = create("span", "mark"), owner = create("span", "owner");
  const answer = create("p", "answer"), list = create("ol", "voters"), column = create("div", ""), table = create("table", "shares");
  const unknown = create("p", "note", "How the votes of each neighbor are divided is not in this file of an earlier version: evaluate again to see it.");
  unknown.hidden = true;
  table.createTHead();
  table.createTBody();
  button.type = "button";
  button.tabIndex = side ? -1 : 0;
  image.alt = "";
  button.append(image, mark, owner);
  column.append(button, answer, list, table, unknown);
  const votes = () => evaluations[byEvaluation.value]?.[select.value];
  button.addEventListener("click", event => {
    const box = button.getBoundingClientRect();
    if (event.detail) ask((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  button.addEventListener("keydown", event => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key], found = votes();
    if (!step || !found) return;
    event.preventDefault();
    const { rows, columns } = found, patch = patchAt(found, asked);
    const limited = (value, count) => (Math.min(count - 1, Math.max(0, value)) + 0.5) / count;
    ask(limited(patch % columns + step[0], columns), limited(Math.floor(patch / columns) + step[1], rows));
  });
  return { select, votes, button, image, mark, owner, answer, list, column, table, unknown };
});
const options = (select, names) => {
  const before = select.value;
  select.replaceChildren(...names.map(([text, value]) => new Option(text, value)));
  if (names.some(([, value]) => value === before)) select.value = before;
};
const fill = () => {
  const runs = Object.keys(evaluations[byEvaluation.value]), first = byLeft.options.length === 0;
  for (const select of [byLeft, byRight]) options(select, runs.map(run => [run, run]));
  if (first) byRight.value = runs[runs.length - 1];
  byLeft.parentElement.hidden = byRight.parentElement.hidden = sides[1].column.hidden = runs.length < 2;
  const { queries } = evaluations[byEvaluation.value][byLeft.value];
  options(byQuery, queries.map(([name], i) => [short(name), String(i)]));
};
// shares in tenths of a percent, so that what is shown adds up; the number and its sign stay on one line
const tenths = share => Math.round(1000 * share / FULL), shown = value => `${(value / 10).toFixed(1)}\u00a0%`, percent = share => shown(tenths(share));
// of a patch's classes that are kept: label, share of all votes, and what each of the kept voters gives to it
const mixtureOf = (found, text, patch) => Array.from({ length: found.classes }, (_, i) => {
  const size = 2 + found.voters, [label, all, ...given] = numbers(text).subarray(size * (patch * found.classes + i), size * (patch * found.classes + i + 1));
  return { name: found.labels[label], all: tenths(all), given: given.map(tenths) };
});
const sum = values => values.reduce((a, b) => a + b, 0);
const fillTable = (table, mixture, weights) => {
  table.hidden = mixture.length === 0;
  if (table.hidden) return;
  const rows = mixture.map(({ name, all, given }) => [name, all, sum(given)]);
  const rest = [1000, sum(weights)].map((whole, i) => Math.max(0, whole - sum(rows.map(row => row[i + 1]))));
  if (rest[0]) rows.push(["other or no label", ...rest]);
  rows.push(["together", 1000, sum(weights)]);
  const cells = rows.map(([name, all, these]) => [name, shown(all), shown(these), shown(Math.max(0, all - these))]);
  const lines = [["votes for", "all", `these ${weights.length}`, "other neighbors"], ...cells].map((texts, line) => {
    const row = create("tr", "");
    row.append(...texts.map((text, column) => Object.assign(create(line && column ? "td" : "th", line && column ? "number" : "", text), line && column ? {} : { scope: line ? "row" : "col" })));
    return row;
  });
  table.tHead.replaceChildren(lines[0]);
  table.tBodies[0].replaceChildren(...lines.slice(1));
};
const draw = () => {
  const words = sides.map(({ votes, select, button, image, mark, owner, answer, list, table, unknown }) => {
    const found = votes(), query = found?.queries[Number(byQuery.value)];
    list.replaceChildren();
    table.hidden = true;
    owner.textContent = select.value;
    if (!query) return (answer.textContent = `There are no votes of ${select.value}.`);
    const [name, number, predicted, shares, truth, voters, mixed] = query, patch = patchAt(found, asked), { labels } = found;
    const mixture = mixtureOf(found, mixed, patch), weights = [];
    image.src = source(number);
    button.setAttribute("aria-label", `${name}, ${select.value}`);
    place(mark, found, patch);
    const label = numbers(predicted)[patch], real = numbers(truth)[patch];
    const rest = real === NO_LABEL ? "it has no label" : real === label ? "correct" : `wrong, it is ${labels[real]}${mixture.length ? ` (${shown(mixture.find(({ name }) => name === labels[real]).all)})` : ""}`;
    answer.textContent = `${labels[label]}, ${percent(numbers(shares)[patch])} of the votes: ${rest}.`;
    answer.classList.toggle("wrong", real !== NO_LABEL && real !== label);
    for (let i = 0; i < found.voters; i++) {
      const [from, at, own, weight] = numbers(voters).subarray(4 * (patch * found.voters + i));
      const item = create("li", ""), frame = create("span", "voter"), [title, drawn] = found.memory[from];
      const given = mixture.map(({ name, given }) => [name, given[i]]), rest = tenths(weight) - sum(given.map(([, value]) => value));
      if (mixture.length && rest > 0) given.push(["other or no label", rest]);
      weights.push(tenths(weight));
      if (drawn !== null) {
        const seen = create("img", ""), spot = create("span", "mark");
        seen.src = source(drawn);
        seen.alt = title;
        place(spot, found, at);
        frame.append(seen, spot);
        item.append(frame);
      }
      item.append(create("strong", "", percent(weight)));
      if (!mixture.length) item.append(create("span", "part", `mostly ${labels[own]}`));
      for (const [label, value] of given) if (value) item.append(create("span", "part", `${label} ${shown(value)}`));
      item.append(Object.assign(create("span", "note", short(title)), { title }));
      list.append(item);
    }
    fillTable(table, mixture, weights);
    unknown.hidden = mixture.length > 0;
    return `${select.value}: ${answer.textContent}`;
  });
  said.textContent = words.join(" ");
};
const ask = (x, y) => { asked = { x, y }; draw(); };
options(byEvaluation, Object.keys(evaluations).map(name => [name, name]));
tool.querySelector(".columns").append(...sides.map(({ column }) => column));
tool.querySelector("form").addEventListener("change", () => { fill(); draw(); });
tool.querySelector("form").addEventListener("submit", event => event.preventDefault());
tool.hidden = false;
fill();
draw();
}
