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
  const answer = create("p", "answer"), list = create("ol", "voters"), column = create("div", "");
  button.type = "button";
  button.tabIndex = side ? -1 : 0;
  image.alt = "";
  button.append(image, mark, owner);
  column.append(button, answer, list);
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
  return { select, votes, button, image, mark, owner, answer, list, column };
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
  const { queries } = evaluations[byEvaluation.value][byLeft.value];
  options(byQuery, queries.map(([name], i) => [short(name), String(i)]));
};
const percent = share => `${Math.round(100 * share / FULL)} %`;
const draw = () => {
  const words = sides.map(({ votes, select, button, image, mark, owner, answer, list }) => {
    const found = votes(), query = found?.queries[Number(byQuery.value)];
    list.replaceChildren();
    owner.textContent = select.value;
    if (!query) return (answer.textContent = `There are no votes of ${select.value}.`);
    const [name, number, predicted, shares, truth, voters] = query, patch = patchAt(found, asked), { labels } = found;
    image.src = source(number);
    button.setAttribute("aria-label", `${name}, ${select.value}`);
    place(mark, found, patch);
    const label = numbers(predicted)[patch], real = numbers(truth)[patch];
    const rest = real === NO_LABEL ? "it has no label" : real === label ? "correct" : `wrong, it is ${labels[real]}`;
    answer.textContent = `${labels[label]}, ${percent(numbers(shares)[patch])} of the votes: ${rest}.`;
    answer.classList.toggle("wrong", real !== NO_LABEL && real !== label);
    for (let i = 0; i < found.voters; i++) {
      const [from, at, own, weight] = numbers(voters).subarray(4 * (patch * found.voters + i));
      const item = create("li", ""), frame = create("span", "voter"), [title, drawn] = found.memory[from];
      if (drawn !== null) {
        const seen = create("img", ""), spot = create("span", "mark");
        seen.src = source(drawn);
        seen.alt = title;
        place(spot, found, at);
        frame.append(seen, spot);
        item.append(frame);
      }
      item.append(create("strong", "", `${labels[own]} ${percent(weight)}`), Object.assign(create("span", "note", short(title)), { title }));
      list.append(item);
    }
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
