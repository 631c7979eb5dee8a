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

/** For each layer the rows and columns that output (y, x) of the layer at `place` asks. */
function fieldsOf(network, place, y, x) {
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
  return seen;
}

/** Left, top, width and height of rows and columns, on a canvas. */
const boxAround = ([[top, bottom], [left, right]]) => [left, top, right - left + 1, bottom - top + 1];
const sides = ([, , w, h]) => `${h} × ${w}`;

async function render({ model, el }) {
  const get = (name) => model.get(name);
  const [width, height] = [get("columns"), get("rows")];
  const [levels, nearMaps, farMaps] = await Promise.all(
    ["image_data", "near_data", "far_data"].map((name) => inflate(get(name))),
  );
  const ended = new AbortController();
  const { signal } = ended;
  const [network, names, places, grid] = ["network", "names", "places", "grid"].map(get);
  const cells = get("cells");
  const output = places.length - 1;

  const background = makeCanvas(width, height);
  paintGrey(background, levels);
  const near = names.map(() => makeCanvas(cells.near, cells.near));
  const far = makeCanvas(cells.far, cells.far);
  const canvas = makeCanvas(width, height);
  canvas.setAttribute("aria-label", `${get("alt")} Arrow keys move the output to another place, Page Up and Page Down change the layer.`);
  const readout = element("p", { class: "medimg-readout", "aria-live": "polite" });
  const thumbs = names.map((name, k) => {
    const picture = element("canvas", { width: THUMB, height: THUMB, role: "img" });
    const caption = element("figcaption");
    const node = element("figure", {}, picture, caption);
    node.style.cursor = "pointer";
    node.addEventListener("click", () => change(model, "layer", k));
    return { name, picture, caption, node };
  });

  /** The pixel in the middle of a cell of the grid. */
  const middle = (cell, length) => Math.floor(((2 * cell + 1) * length) / (2 * grid));
  const chosen = () => [middle(get("grid_row"), height), middle(get("grid_column"), width)];
  const fieldsFrom = (k, row, column) => {
    const [h, w] = network[places[k]][2];
    const [y, x] = [Math.floor((row * h) / height), Math.floor((column * w) / width)];
    return fieldsOf(network, places[k], y, x);
  };
  const sizeOf = (box) => {
    const mm = get("pixel_mm");
    const [h, w] = [box[3], box[2]].map((n) => ((n * mm) / 10).toFixed(1));
    return `${sides(box)} pixels${mm ? ` (${h} × ${w} cm)` : ""}`;
  };

  /** Paint the influence on layer `k` at the chosen place into a layer of its own. */
  function paintHeat(layer, maps, k) {
    const size = layer.width * layer.height;
    const start = ((k * grid + get("grid_row")) * grid + get("grid_column")) * size;
    paintLayer(layer, (rgba) => {
      for (let i = 0; i < size; i++) {
        rgba.set([...HEAT, Math.round((190 * maps[start + i]) / LEVELS)], 4 * i);
      }
    });
  }

  /** The influence on the chosen layer: fine inside its box, coarse outside of it. */
  function drawHeat(context, k, box) {
    context.save();
    context.beginPath();
    context.rect(0, 0, width, height);
    context.rect(...box);
    context.clip("evenodd");
    context.drawImage(far, 0, 0, width, height);
    context.restore();
    context.drawImage(near[k], ...box);
  }

  function drawThumb(k, box, asked) {
    const { picture, caption, name, node } = thumbs[k];
    const small = picture.getContext("2d");
    small.fillStyle = "#000";
    small.fillRect(0, 0, THUMB, THUMB);
    const scale = THUMB / Math.max(box[2], box[3]);
    const target = [0, 0, box[2] * scale, box[3] * scale];
    small.imageSmoothingEnabled = false;
    small.drawImage(background, ...box, ...target);
    small.imageSmoothingEnabled = true;
    small.drawImage(near[k], ...target);
    const map = network[places[k]][2].join(" × ");
    const share = asked && k !== output ? `; the output asks ${sides(asked)} of its ${map} places` : "";
    caption.textContent = `${name}: sees ${sizeOf(box)}${share}`;
    picture.setAttribute("aria-label", `What ${caption.textContent}, in the image`);
    node.style.outline = k === get("layer") ? "3px solid #0072b2" : "none";
  }

  function drawBox(context, box, bold) {
    context.setLineDash(bold ? [] : [4, 4]);
    const path = new Path2D();
    path.rect(...box);
    strokeTwice(context, path, "#fff", bold ? 2.5 : 1);
  }

  function draw() {
    const [row, column] = chosen();
    const k = get("layer");
    names.forEach((_, each) => paintHeat(near[each], nearMaps, each));
    paintHeat(far, farMaps, k);
    const boxes = names.map((_, each) => boxAround(fieldsFrom(each, row, column).get(0)));
    const asked = fieldsFrom(output, row, column);
    const context = canvas.getContext("2d");
    context.setLineDash([]);
    context.drawImage(background, 0, 0);
    drawHeat(context, k, boxes[k]);
    for (let cell = 0; cell < grid * grid; cell++) {
      const [y, x] = [middle(Math.floor(cell / grid), height), middle(cell % grid, width)];
      context.fillStyle = "rgba(0, 0, 0, 0.5)";
      context.fillRect(x - 1, y - 1, 3, 3);
      context.fillStyle = "#fff";
      context.fillRect(x, y, 1.5, 1.5);
    }
    boxes.forEach((box, each) => {
      if (each !== k) drawBox(context, box, false);
      const seen = asked.get(places[each]);
      drawThumb(each, box, seen && boxAround(seen));
    });
    drawBox(context, boxes[k], true);
    context.setLineDash([]);
    context.fillStyle = "#0072b2";
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5;
    context.beginPath();
    context.arc(column + 0.5, row + 0.5, 4, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
    readout.textContent = `Row ${row}, column ${column}: ${names[k]} sees ${sizeOf(boxes[k])}.`;
  }
  const redraw = oncePerFrame(draw);

  function go(row, column) {
    change(model, "grid_row", clamp(Math.floor(row), 0, grid - 1));
    change(model, "grid_column", clamp(Math.floor(column), 0, grid - 1));
  }
  explore(canvas, {
    point: (u, v) => go(v * grid, u * grid),
    move: (dx, dy) => go(get("grid_row") + dy, get("grid_column") + dx),
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
          element("li", { text: "Blue dot: the place that is asked; a click goes to the nearest of the small dots" }),
          element("li", { text: "Boxes: all that can change each layer there; bold: the chosen layer" }),
          element("li", { text: "Colour: how much it does change the chosen layer there, as measured; each third of the range is a factor of ten" }),
        ),
      ),
    ),
    element("div", { class: "medimg-gallery" }, ...thumbs.map(({ node }) => node)),
  );
  el.replaceChildren(root);
  for (const name of ["layer", "grid_row", "grid_column"]) follow(model, `change:${name}`, redraw, signal);
  draw();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
