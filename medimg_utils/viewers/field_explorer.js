// What an output of a network looks at, layer by layer.

const HEAT = [230, 159, 0];
const LEVELS = 15;
const THUMB = 104;

/** The interval of an input of `length` that an interval of outputs depends on. */
function lookBack([size, stride, padding, dilation, spread], [first, last], length) {
  const reach = dilation * (size - 1);
  const [low, high] = spread
    ? [Math.ceil((first + padding - reach) / stride), Math.floor((last + padding) / stride)]
    : [first * stride - padding, last * stride - padding + reach];
  return [Math.max(0, low), Math.min(length - 1, high)];
}

/** Rows and columns of the image that output (y, x) of the layer at `place` sees. */
function fieldOf(network, place, y, x) {
  const seen = new Map([[place, [[y, y], [x, x]]]]);
  for (let k = place; k > 0; k--) {
    if (!seen.has(k)) continue;
    const [inputs, windows] = network[k];
    for (const source of inputs) {
      const lengths = network[source][2];
      const field = lengths.map((length, axis) =>
        windows.length ? lookBack(windows[axis], seen.get(k)[axis], length) : [0, length - 1],
      );
      const known = seen.get(source);
      seen.set(
        source,
        known
          ? field.map(([a, b], axis) => [Math.min(a, known[axis][0]), Math.max(b, known[axis][1])])
          : field,
      );
    }
  }
  return seen.get(0);
}

async function render({ model, el }) {
  const get = (name) => model.get(name);
  const [width, height] = [get("columns"), get("rows")];
  const [levels, maps] = await Promise.all(["image_data", "map_data"].map((name) => inflate(get(name))));
  const ended = new AbortController();
  const { signal } = ended;
  const [network, names, places] = [get("network"), get("names"), get("places")];
  const [gridRows, gridColumns] = get("grid");
  const side = get("side");

  const background = makeCanvas(width, height);
  paintGrey(background, levels);
  const heat = makeCanvas(side, side);
  const canvas = makeCanvas(width, height);
  canvas.setAttribute("aria-label", `${get("alt")} Arrow keys move the output pixel, Page Up and Page Down change the layer.`);
  const readout = element("p", { class: "medimg-readout", "aria-live": "polite" });
  const thumbs = names.map((name, k) => {
    const picture = element("canvas", { width: THUMB, height: THUMB, role: "img" });
    const caption = element("figcaption");
    const node = element("figure", {}, picture, caption);
    node.style.cursor = "pointer";
    node.addEventListener("click", () => change(model, "layer", k));
    return { name, picture, caption, node };
  });

  const boxOf = (k) => {
    const [h, w] = network[places[k]][2];
    const y = Math.floor((get("row") * h) / height);
    const x = Math.floor((get("column") * w) / width);
    return fieldOf(network, places[k], y, x);
  };
  const sizeOf = ([[top, bottom], [left, right]]) => {
    const mm = get("pixel_mm");
    const text = `${bottom - top + 1} × ${right - left + 1} pixels`;
    const cm = (n) => ((n * mm) / 10).toFixed(1);
    return mm ? `${text} (${cm(bottom - top + 1)} × ${cm(right - left + 1)} cm)` : text;
  };

  function drawHeat() {
    const r = Math.floor((get("row") * gridRows) / height);
    const c = Math.floor((get("column") * gridColumns) / width);
    const start = ((get("layer") * gridRows + r) * gridColumns + c) * side * side;
    paintLayer(heat, (rgba) => {
      for (let i = 0; i < side * side; i++) {
        rgba.set([...HEAT, Math.round((190 * maps[start + i]) / LEVELS)], 4 * i);
      }
    });
  }

  function draw() {
    drawHeat();
    const context = canvas.getContext("2d");
    context.drawImage(background, 0, 0);
    context.imageSmoothingEnabled = true;
    context.drawImage(heat, 0, 0, width, height);
    const boxes = names.map((_, k) => boxOf(k));
    boxes.forEach(([[top, bottom], [left, right]], k) => {
      const chosen = k === get("layer");
      const box = [left, top, right - left + 1, bottom - top + 1];
      context.setLineDash(chosen ? [] : [4, 4]);
      context.lineWidth = chosen ? 5 : 2.5;
      context.strokeStyle = "rgba(0, 0, 0, 0.8)";
      context.strokeRect(...box);
      context.lineWidth = chosen ? 2.5 : 1;
      context.strokeStyle = "#fff";
      context.strokeRect(...box);
      const { picture, caption, name, node } = thumbs[k];
      const small = picture.getContext("2d");
      small.imageSmoothingEnabled = false;
      small.fillStyle = "#000";
      small.fillRect(0, 0, THUMB, THUMB);
      const scale = THUMB / Math.max(box[2], box[3]);
      small.drawImage(background, ...box, 0, 0, box[2] * scale, box[3] * scale);
      caption.textContent = `${name}: ${sizeOf(boxes[k])}`;
      picture.setAttribute("aria-label", `What ${caption.textContent} of the image look like`);
      node.style.outline = chosen ? "3px solid #0072b2" : "none";
    });
    context.setLineDash([]);
    context.fillStyle = "#0072b2";
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5;
    context.beginPath();
    context.arc(get("column") + 0.5, get("row") + 0.5, 4, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
    const k = get("layer");
    readout.textContent =
      `Row ${get("row")}, column ${get("column")}, ${names[k]}: sees ${sizeOf(boxes[k])}.`;
  }
  const redraw = oncePerFrame(draw);

  function go(row, column) {
    change(model, "row", clamp(Math.floor(row), 0, height - 1));
    change(model, "column", clamp(Math.floor(column), 0, width - 1));
  }
  explore(canvas, {
    point: (u, v) => go(v * height, u * width),
    move: (dx, dy) => go(get("row") + 4 * dy, get("column") + 4 * dx),
    step: (n) => change(model, "layer", clamp(get("layer") + n, 0, names.length - 1)),
  });

  const root = viewerRoot(
    model,
    "Field explorer",
    element(
      "div",
      { class: "medimg-panes" },
      element("div", { class: "medimg-picture" }, canvas, readout),
      element(
        "div",
        { class: "medimg-side" },
        slider(
          model,
          "layer",
          "Layer",
          { min: 0, max: names.length - 1, step: 1, format: (k) => names[k] },
          signal,
        ),
        element(
          "ul",
          { class: "medimg-legend" },
          element("li", { text: "Boxes: all that can change the output, for each layer; bold: the chosen one" }),
          element("li", { text: "Colour: how much it does change the output, measured for the nearest place of a coarse grid; each third of the range is a factor of ten" }),
          element("li", { text: "Dot: the place of the output" }),
        ),
      ),
    ),
    element("div", { class: "medimg-gallery" }, ...thumbs.map(({ node }) => node)),
  );
  el.replaceChildren(root);
  for (const name of ["layer", "row", "column"]) follow(model, `change:${name}`, redraw, signal);
  draw();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
