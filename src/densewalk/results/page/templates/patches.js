// Ask a patch: the cosine similarity of every patch of every image to the pressed one, by two runs side by side
(async () => {
const asked = JSON.parse(document.getElementById("patches").textContent), tool = document.querySelector(".ask");
const [byLeft, byRight, byColors] = tool.querySelectorAll("select");
const pairs = tool.querySelector(".pairs"), said = tool.querySelector(".said"), keys = tool.querySelector(".keys");
const names = Object.keys(asked.runs), decoded = {};
// from dark to bright, even steps of lightness
const STOPS = [[8, 8, 38], [72, 16, 110], [146, 38, 104], [211, 67, 75], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const color = t => {
  const x = Math.min(1, Math.max(0, t)) * (STOPS.length - 1), i = Math.min(STOPS.length - 2, Math.floor(x));
  return STOPS[i].map((from, c) => from + (x - i) * (STOPS[i + 1][c] - from));
};
// a deflated stream: the first component of all patches of all images, then the second, ...
const unpacked = async text => {
  const packed = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return new Int8Array(await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).arrayBuffer());
};
const unpack = async ({ scales, images, codes }) => {
  const every = await unpacked(codes), patches = every.length / scales.length;
  return images.map(image => {
    if (!image) return null;
    const [rows, columns, first] = image, own = new Int8Array(rows * columns * scales.length);
    for (let i = 0, at = 0; i < rows * columns; i++) for (let k = 0; k < scales.length; k++) own[at++] = every[k * patches + first + i];
    return { rows, columns, codes: own };
  });
};
const codesOf = name => decoded[name];
// where the asked patch is: an image and a place in it, 0 to 1, as runs may have other patches
let query = { image: 0, x: 0.5, y: 0.5 };
const patchAt = ({ rows, columns }, { x, y }) => ({ row: Math.min(rows - 1, Math.floor(y * rows)), column: Math.min(columns - 1, Math.floor(x * columns)) });
// the similarity of all patches of all images; of the asked patch to itself it is 1
const similarities = name => {
  const images = codesOf(name), { scales } = asked.runs[name], size = scales.length, from = images[query.image];
  if (!from) return null;
  const { row, column } = patchAt(from, query), own = row * from.columns + column;
  const weights = scales.map((scale, k) => scale * scale * from.codes[own * size + k]);
  return images.map((image, number) => {
    if (!image) return null;
    const values = new Float32Array(image.rows * image.columns);
    for (let i = 0, at = 0; i < values.length; i++) {
      let sum = 0;
      for (let k = 0; k < size; k++) sum += weights[k] * image.codes[at++];
      values[i] = Math.max(-1, Math.min(1, sum));
    }
    if (number === query.image) values[own] = 1;
    return values;
  });
};
const cells = asked.images.map(({ title, element }, number) => {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption"), seen = document.getElementById(element);
  const sides = [byLeft, byRight].map((_, side) => {
    const button = document.createElement("button"), image = document.createElement("img"), canvas = document.createElement("canvas");
    const mark = document.createElement("span"), best = document.createElement("span"), value = document.createElement("span"), owner = document.createElement("span");
    button.type = "button";
    button.className = "patches";
    button.tabIndex = side ? -1 : 0;  // one stop of the Tab key for each image
    image.src = seen.src;
    image.alt = "";
    image.width = seen.width;
    image.height = seen.height;
    mark.className = "mark";
    best.className = "best";
    value.className = "value";
    owner.className = "owner";
    button.append(image, canvas, mark, best, owner, value);
    button.addEventListener("click", event => {
      const box = button.getBoundingClientRect();
      // pressed by a key, it asks where the image was asked last, or its center
      if (event.detail) ask(number, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
      else ask(number, query.image === number ? query.x : 0.5, query.image === number ? query.y : 0.5);
    });
    button.addEventListener("keydown", event => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      const shape = codesOf((side ? byRight : byLeft).value)[number];
      if (!step || !shape) return;
      event.preventDefault();
      const { row, column } = query.image === number ? patchAt(shape, query) : { row: Math.floor(shape.rows / 2), column: Math.floor(shape.columns / 2) };
      const limited = (value, count) => (Math.min(count - 1, Math.max(0, value)) + 0.5) / count;
      ask(number, limited(column + step[0], shape.columns), limited(row + step[1], shape.rows));
    });
    return { button, canvas, mark, best, owner, value };
  });
  const row = document.createElement("div");
  row.className = "pair";
  row.append(...sides.map(side => side.button));
  caption.textContent = title;
  figure.append(caption, row);
  return { figure, sides, title };
});
const outline = (element, { rows, columns }, { row, column }, shown) => {
  element.hidden = !shown;
  Object.assign(element.style, { left: `${100 * column / columns}%`, top: `${100 * row / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%` });
};
const paint = (canvas, { rows, columns }, values, low) => {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
  values.forEach((value, i) => { pixels.data.set([...color((value - low) / (1 - low || 1)), 255], 4 * i); });
  context.putImageData(pixels, 0, 0);
};
const draw = () => {
  const words = [];
  keys.replaceChildren();
  [byLeft.value, byRight.value].slice(0, names.length).forEach((name, side) => {
    const images = codesOf(name), found = similarities(name);
    const low = byColors.value === "whole" ? 0 : found?.reduce((least, values) => values ? values.reduce((a, b) => Math.min(a, b), least) : least, 1) ?? 0;
    const others = [];
    cells.forEach(({ sides, title }, number) => {
      const { button, canvas, mark, best, owner, value } = sides[side], shape = images[number], values = found?.[number];
      canvas.hidden = !values;
      mark.hidden = best.hidden = true;
      owner.textContent = name;
      value.textContent = values ? "" : "not seen";
      button.setAttribute("aria-label", `${title}, ${name}`);
      if (!values) return;
      paint(canvas, shape, values, low);
      outline(mark, shape, patchAt(shape, query), number === query.image);
      const at = values.reduce((most, v, i) => v > values[most] ? i : most, 0);
      outline(best, shape, { row: Math.floor(at / shape.columns), column: at % shape.columns }, number !== query.image);
      if (number !== query.image) {
        value.textContent = values[at].toFixed(2);
        others.push([values[at], title]);
      }
    });
    const key = document.createElement("p"), bar = document.createElement("span");
    bar.className = "bar";
    bar.style.background = `linear-gradient(to right, ${STOPS.map(stop => `rgb(${stop})`)})`;
    key.append(Object.assign(document.createElement("strong"), { textContent: name }), ` ${low.toFixed(2)} `, bar, " 1.00");
    keys.append(key);
    others.sort(([a], [b]) => b - a);
    if (others.length) words.push(`by ${name} most similar in ${others[0][1]} (${others[0][0].toFixed(2)})`);
  });
  const shape = codesOf(byLeft.value)[query.image] ?? codesOf(byRight.value)[query.image];
  const place = shape ? `row ${patchAt(shape, query).row + 1}, column ${patchAt(shape, query).column + 1}` : "";
  said.textContent = `Asked: ${cells[query.image].title}, ${place}${words.length ? `: ${words.join("; ")}` : ""}.`;
  const errors = [...new Set([byLeft.value, byRight.value])].map(name => `${Math.max(0.01, asked.runs[name].error).toFixed(2)} (${name})`);
  tool.querySelector(".errors").textContent = errors.join(", ");
};
// of one run there is nothing to compare
if (names.length < 2) {
  byLeft.parentElement.hidden = byRight.parentElement.hidden = true;
  for (const { sides } of cells) sides[1].button.hidden = true;
  tool.classList.add("alone");
}
const ask = (image, x, y) => { query = { image, x, y }; draw(); };
pairs.append(...cells.map(({ figure }) => figure));
tool.querySelector("form").addEventListener("change", draw);
tool.querySelector("form").addEventListener("submit", event => event.preventDefault());
const able = (() => {
  try { return Boolean(new DecompressionStream("deflate-raw")); } catch { return false; }
})();
if (able) {
  for (const name of names) decoded[name] = await unpack(asked.runs[name]);
  draw();
} else {
  said.textContent = "This browser is too old to unpack the similarities: Chrome 103, Firefox 113 and Safari 16.4 can.";
  pairs.hidden = tool.querySelector("form").hidden = true;
}
tool.hidden = false;
})();
