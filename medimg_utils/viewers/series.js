// The series of an exam, side by side, with heat maps and lesions.

// Series run from left to right, from back to front and from above downward, while
// columns run from the patient's right (or front) and rows from above (or the front).
const REVERSED = { sagittal: true, coronal: true, axial: false };

/** Is a slice of `other` a vertical line in a picture of `plane`? */
const isVertical = (plane, other) =>
  other === "sagittal" || (other === "coronal" && plane === "sagittal");

async function render({ model, el }) {
  const get = (name) => model.get(name);
  const [names, planes, shapes] = [get("names"), get("planes"), get("shapes")];
  const [heatShapes, ranges, peaks] = [get("heat_shapes"), get("ranges"), get("peaks")];
  const sizes = {
    stack_data: shapes.map(([count, , , h, w]) => count * h * w),
    heat_data: shapes.map(([count], k) => count * heatShapes[k][0] * heatShapes[k][1]),
    mask_data: shapes.map(([count, , , h, w], k) => (get("with_mask")[k] ? count * h * w : 0)),
  };
  const [images, heats, masks] = await Promise.all(
    Object.keys(sizes).map(async (name) =>
      cut(get(name)?.byteLength ? await inflate(get(name)) : [], sizes[name]),
    ),
  );
  const ended = new AbortController();
  const { signal } = ended;
  const anyHeat = heats.some(Boolean);
  const anyMask = masks.some(Boolean);

  /** Where slice `at` of series `k` lies in the pictures of the others, 0 to 1. */
  function toShare(k, at) {
    const share = 0.5 + ((at + 0.5) / shapes[k][0] - 0.5) * get("covered");
    return REVERSED[planes[k]] ? 1 - share : share;
  }

  /** The slice of series `k` nearest to that place. */
  function toSlice(k, share) {
    const along = REVERSED[planes[k]] ? 1 - share : share;
    const at = Math.floor(((along - 0.5) / get("covered") + 0.5) * shapes[k][0]);
    return clamp(at, 0, shapes[k][0] - 1);
  }

  const linked = (k) =>
    names.map((_, j) => j).filter((j) => planes[k] && planes[j] && planes[j] !== planes[k]);

  const panes = names.map((name, k) => {
    const [count, fullHeight, fullWidth, height, width] = shapes[k];
    const [image, heat, mask] = [images[k], heats[k], masks[k]];
    const [low, high] = ranges[k];
    const digits = high - low > 20 ? 0 : 2;
    const scale = Math.ceil(400 / Math.max(width, height));
    const canvas = makeCanvas(width * scale, height * scale);
    const readout = element("p", { class: "medimg-readout", "aria-live": "polite" });
    const layer = makeCanvas(width, height);
    const cursor = { x: width >> 1, y: height >> 1, shown: false };
    const slice = () => get("slices")[k];
    const part = (array, size) => array.subarray(slice() * size, (slice() + 1) * size);
    let warm = null; // heat of the slice at the size of the picture

    const goTo = (at) => change(model, "slices", clamp(at, 0, count - 1), k);

    function drawLayer(context, painter) {
      paintLayer(layer, painter);
      context.drawImage(layer, 0, 0, canvas.width, canvas.height);
    }

    function draw() {
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      const table = windowTable(0, 1, get("window_centre"), get("window_width"));
      drawLayer(context, (rgba) => paintImage(rgba, part(image, width * height), table));
      if (heat) {
        const [rows, columns] = heatShapes[k];
        warm = bilinear(part(heat, rows * columns), columns, rows, width, height);
        const alpha = (level) => (get("opacity") * level) / 255;
        if (get("show_heat")) drawLayer(context, (rgba) => paintMap(rgba, warm, VIRIDIS, alpha));
      }
      if (mask && get("show_mask")) {
        const outline = borders(part(mask, width * height), width, height, scale, scale);
        context.lineCap = "square";
        strokeTwice(context, outline, `rgb(${TRUTH})`, 1.6);
      }
      if (get("show_marks")) drawMarks(context);
      if (cursor.shown) {
        const square = new Path2D();
        const side = scale + 20;
        const corner = (at) => (at + 0.5) * scale - side / 2;
        square.rect(corner(cursor.x), corner(cursor.y), side, side);
        strokeTwice(context, square, "#fff", 1.5);
      }
      describe();
    }

    function drawMarks(context) {
      context.font = "600 13px sans-serif";
      for (const j of linked(k)) {
        const share = toShare(j, get("slices")[j]);
        const line = new Path2D();
        context.setLineDash([8, 6]);
        const [w, h] = [canvas.width, canvas.height];
        const vertical = isVertical(planes[k], planes[j]);
        if (vertical) {
          line.moveTo(share * w, 0);
          line.lineTo(share * w, h);
        } else {
          line.moveTo(0, share * h);
          line.lineTo(w, share * h);
        }
        strokeTwice(context, line, "rgba(255, 255, 255, 0.85)", 1);
        context.setLineDash([]);
        context.textAlign = vertical ? "center" : "left";
        const [x, y] = vertical ? [clamp(share * w, 28, w - 28), h - 8] : [6, share * h - 6];
        writeTwice(context, planes[j], x, y);
      }
    }

    function describe() {
      const i = cursor.y * width + cursor.x;
      const level = part(image, width * height)[i];
      const row = Math.floor(((cursor.y + 0.5) * fullHeight) / height);
      const column = Math.floor(((cursor.x + 0.5) * fullWidth) / width);
      const value = (low + ((high - low) * level) / 255).toFixed(digits);
      const parts = [`row ${row}, column ${column}: ${value}`];
      if (heat) parts.push(`heat ${(warm[i] / 255).toFixed(2)}`);
      if (mask) parts.push(part(mask, width * height)[i] ? "inside the lesion" : "no lesion");
      readout.textContent = parts.join(", ");
    }

    function moveCursor(x, y, shown) {
      const redraw = shown || cursor.shown;
      cursor.x = clamp(Math.floor(x), 0, width - 1);
      cursor.y = clamp(Math.floor(y), 0, height - 1);
      cursor.shown = shown;
      if (redraw) draw();
      else describe();
    }

    /** Move the other series to the place that was chosen here. */
    function leadOthers() {
      const slices = [...get("slices")];
      for (const j of linked(k)) {
        const vertical = isVertical(planes[k], planes[j]);
        slices[j] = toSlice(j, vertical ? (cursor.x + 0.5) / width : (cursor.y + 0.5) / height);
      }
      change(model, "slices", slices);
    }

    explore(canvas, {
      point: (u, v) => (moveCursor(u * width, v * height, true), leadOthers()),
      hover: (u, v) => cursor.shown || moveCursor(u * width, v * height, false),
      move: (dx, dy) => (moveCursor(cursor.x + dx, cursor.y + dy, true), leadOthers()),
      step: (n) => goTo(slice() + n),
    });
    canvas.setAttribute("aria-roledescription", "slice of a series");
    const help = "Arrow keys move the read-out, Page Up and Page Down change the slice.";
    canvas.setAttribute("aria-label", `${name}. ${get("alt")} ${help}`);

    const shown = [canvas];
    if (heat || mask) shown.push(profile(k, goTo));
    const format = (at) => `slice ${at + 1} of ${count}`; // readers count from 1
    const range = { min: 0, max: count - 1, step: 1, format, index: k };
    const controls = [slider(model, "slices", name, range, signal)];
    if (heat) {
      const jump = button("Hottest slice", `Hottest slice of ${name}`, () => {
        const [at, row, column] = get("hottest_places")[k];
        cursor.x = Math.floor(((column + 0.5) * width) / fullWidth);
        cursor.y = Math.floor(((row + 0.5) * height) / fullHeight);
        cursor.shown = true;
        goTo(at);
        draw();
      });
      controls.push(element("div", { class: "medimg-buttons" }, jump));
    }
    const node = element("div", { class: "medimg-picture" }, ...shown, ...controls, readout);
    return { node, draw };
  });

  /** A strip with a bar for each slice: how hot it is, and whether the lesion is in it. */
  function profile(k, goTo) {
    const [count, , , height, width] = shapes[k];
    const strip = makeCanvas(400, 44);
    strip.setAttribute("role", "img");
    const size = height * width;
    const lesion = Array.from(
      { length: count },
      (_, at) => masks[k] !== null && masks[k].subarray(at * size, (at + 1) * size).includes(1),
    );
    const texts = [];
    if (heats[k]) {
      const top = Math.max(...peaks[k]);
      texts.push(`highest heat ${top.toFixed(2)} in slice ${get("hottest_places")[k][0] + 1}`);
    }
    if (masks[k]) {
      const [first, last] = [lesion.indexOf(true), lesion.lastIndexOf(true)];
      texts.push(first < 0 ? "no lesion" : `lesion in slices ${first + 1} to ${last + 1}`);
    }
    strip.setAttribute("aria-label", `${names[k]}, all slices: ${texts.join(", ")}.`);
    strip.title = "Bars: the highest heat of each slice; orange: the lesion is in the slice";
    strip.className = "medimg-strip";
    const wide = strip.width / count;
    strip.addEventListener("pointerdown", (event) => {
      const box = strip.getBoundingClientRect();
      goTo(Math.floor(((event.clientX - box.left) / box.width) * count));
    });
    const draw = () => {
      const context = strip.getContext("2d");
      context.fillStyle = "#000";
      context.fillRect(0, 0, strip.width, strip.height);
      for (let at = 0; at < count; at++) {
        if (heats[k]) {
          context.fillStyle = `rgb(${VIRIDIS[Math.round(255 * peaks[k][at])]})`;
          const tall = Math.max(1, 32 * peaks[k][at]);
          context.fillRect(at * wide + 1, 35 - tall, wide - 2, tall);
        }
        if (lesion[at]) {
          context.fillStyle = `rgb(${TRUTH})`;
          context.fillRect(at * wide, 38, wide, 6);
        }
      }
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.strokeRect(get("slices")[k] * wide + 1, 1, wide - 2, strip.height - 2);
    };
    follow(model, "change:slices", draw, signal);
    draw();
    return strip;
  }

  const sliders = windowSliders(model, signal);
  const boxes = [];
  const legend = element("ul", { class: "medimg-legend" });
  if (anyHeat) {
    sliders.push(slider(model, "opacity", "Opacity of the heat map", PERCENT, signal));
    boxes.push(checkbox(model, "show_heat", "Show the heat map", signal));
    legend.append(legendItem("heat", "Heat, from 0 to 1; the strip shows its peak in each slice"));
  }
  if (anyMask) {
    boxes.push(checkbox(model, "show_mask", "Show the true lesion", signal));
    legend.append(legendItem("outline", "True lesion: outline, and block in the strip"));
  }
  if (new Set(planes.filter(Boolean)).size > 1) {
    boxes.push(checkbox(model, "show_marks", "Show where the other slices lie", signal));
    legend.append(
      legendItem("mark", "Slice of another series, estimated; a click moves it"),
    );
  }
  const root = viewerRoot(
    model,
    "Series of an exam",
    element("div", { class: "medimg-trio" }, ...panes.map((pane) => pane.node)),
    element("div", { class: "medimg-trio" }, ...sliders),
    element("div", { class: "medimg-row" }, ...boxes),
    legend,
    hint("In a picture that was clicked, wheel, Page Up and Page Down change the slice."),
  );
  el.replaceChildren(root);

  const drawAll = () => panes.forEach((pane) => pane.draw());
  const redraw = oncePerFrame(drawAll);
  const shownBy = ["slices", "window_centre", "window_width", "opacity"];
  for (const name of [...shownBy, "show_heat", "show_mask", "show_marks"]) {
    follow(model, `change:${name}`, redraw, signal);
  }
  drawAll();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
