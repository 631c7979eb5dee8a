// Three planes of a volume, linked by a crosshair, with labels.

// Axes of the volume across, down and through each plane. The high end of an axis,
// right, anterior or superior, is drawn on the left or above.
const PLANES = [
  { name: "Axial", across: 0, down: 1, through: 2 },
  { name: "Coronal", across: 0, down: 2, through: 1 },
  { name: "Sagittal", across: 1, down: 2, through: 0 },
];
const ENDS = ["LR", "PA", "IS"]; // low and high

async function render({ model, el }) {
  const get = (name) => model.get(name);
  const [shape, extent, names] = [get("shape"), get("extent"), get("names")];
  const [origin, steps, ranges] = [get("origin"), get("steps"), get("ranges")];
  const size = shape[0] * shape[1] * shape[2];
  const unpack = async (name) => (get(name)?.byteLength ? inflate(get(name)) : null);
  const [all, truth, predicted] = await Promise.all(
    ["volume_data", "label_data", "predicted_data"].map(unpack),
  );
  const volumes = cut(all, names.map(() => size));
  const [values, labelNames] = [get("label_values"), get("label_names")];
  const colours = get("colours").map(rgb);
  const order = new Map(values.map((value, k) => [value, k]));
  const ended = new AbortController();
  const { signal } = ended;
  const strides = [shape[1] * shape[2], shape[2], 1];
  const index = ([x, y, z]) => x * strides[0] + y * strides[1] + z;
  const voxel = (axis, at) => origin[axis] + Math.floor((at + 0.5) * steps[axis]);
  const readout = element("p", { class: "medimg-readout", "aria-live": "polite" });
  const perMm = 400 / Math.max(...extent);

  /** Set the crosshair along some of the axes. */
  function goTo(places) {
    const place = [...get("place")];
    for (const [axis, at] of places) place[axis] = clamp(at, 0, shape[axis] - 1);
    change(model, "place", place);
  }

  const panes = PLANES.map(({ name, across, down, through }) => {
    const [w, h] = [shape[across], shape[down]];
    const width = Math.max(1, Math.round(extent[across] * perMm));
    const height = Math.max(1, Math.round(extent[down] * perMm));
    const [sx, sy] = [width / w, height / h];
    const canvas = makeCanvas(width, height);
    const [picture, ink] = [makeCanvas(w, h), makeCanvas(width, height)];

    /** The plane of `volume` through the crosshair, as it is drawn. */
    function section(volume) {
      const out = new Uint8Array(w * h);
      const from = get("place")[through] * strides[through];
      for (let y = 0, i = 0; y < h; y++) {
        const row = from + (h - 1 - y) * strides[down];
        for (let x = 0; x < w; x++, i++) out[i] = volume[row + (w - 1 - x) * strides[across]];
      }
      return out;
    }

    /** Labels as patterns in the pixels of the canvas, which are finer than voxels. */
    function paintLabels(rgba, labels) {
      const alpha = Math.round(255 * get("opacity"));
      for (let y = 0, i = 0; y < height; y++) {
        const row = Math.min(h - 1, Math.floor(y / sy)) * w;
        for (let x = 0; x < width; x++, i++) {
          const label = labels[row + Math.min(w - 1, Math.floor(x / sx))];
          if (!label) continue;
          const k = order.get(label);
          if (inPattern(k, x, y)) rgba.set([...colours[k], alpha], 4 * i);
        }
      }
    }

    function outline(context, labels, dash) {
      context.setLineDash(dash);
      values.forEach((value, k) => {
        const one = labels.map((label) => (label === value ? 1 : 0));
        strokeTwice(context, borders(one, w, h, sx, sy), get("colours")[k], 1.4);
      });
      context.setLineDash([]);
    }

    function drawCrosshair(context) {
      const [x, y] = [
        (w - get("place")[across] - 0.5) * sx,
        (h - get("place")[down] - 0.5) * sy,
      ];
      const lines = new Path2D();
      const gap = 9;
      lines.moveTo(0, y);
      lines.lineTo(x - gap, y);
      lines.moveTo(x + gap, y);
      lines.lineTo(width, y);
      lines.moveTo(x, 0);
      lines.lineTo(x, y - gap);
      lines.moveTo(x, y + gap);
      lines.lineTo(x, height);
      strokeTwice(context, lines, "rgba(255, 255, 255, 0.9)", 1);
    }

    function draw() {
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      const table = windowTable(0, 1, get("window_centre"), get("window_width"));
      const chosen = volumes[names.indexOf(get("volume"))];
      paintLayer(picture, (rgba) => paintImage(rgba, section(chosen), table));
      context.drawImage(picture, 0, 0, width, height);
      const shown = get("shown_labels");
      const filled = { true: truth, both: truth, predicted }[shown];
      if (filled) {
        const labels = section(filled);
        paintLayer(ink, (rgba) => paintLabels(rgba, labels));
        context.drawImage(ink, 0, 0);
        outline(context, labels, shown === "predicted" ? [0.6 * sx, 0.4 * sx] : []);
        if (shown === "both") outline(context, section(predicted), [0.6 * sx, 0.4 * sx]);
      }
      if (get("show_crosshair")) drawCrosshair(context);
      context.font = "600 18px sans-serif";
      context.textBaseline = "middle";
      context.textAlign = "center";
      writeTwice(context, ENDS[across][1], 12, height / 2);
      writeTwice(context, ENDS[across][0], width - 12, height / 2);
      writeTwice(context, ENDS[down][1], width / 2, 14);
      writeTwice(context, ENDS[down][0], width / 2, height - 12);
    }

    explore(canvas, {
      point: (u, v) =>
        goTo([
          [across, w - 1 - Math.floor(u * w)],
          [down, h - 1 - Math.floor(v * h)],
        ]),
      move: (dx, dy) =>
        goTo([
          [across, get("place")[across] - dx],
          [down, get("place")[down] - dy],
        ]),
      step: (n) => goTo([[through, get("place")[through] + n]]),
    });
    canvas.setAttribute("aria-roledescription", "plane of a volume");
    const help = "Arrow keys move the crosshair, Page Up and Page Down change the plane.";
    canvas.setAttribute("aria-label", `${name} plane. ${get("alt")} ${help}`);
    const axis = "xyz"[through];
    const format = (at) => `${axis} ${voxel(through, at)}`;
    const range = { min: 0, max: shape[through] - 1, step: 1, format, index: through };
    const node = element(
      "div",
      { class: "medimg-picture", style: `flex: ${width} 1 0` },
      canvas,
      slider(model, "place", name, range, signal),
    );
    return { node, draw };
  });

  function describe() {
    const place = get("place");
    const chosen = names.indexOf(get("volume"));
    const [low, high] = ranges[chosen];
    const value = low + ((high - low) * volumes[chosen][index(place)]) / 255;
    const where = place.map((at, axis) => voxel(axis, at)).join(", ");
    const meaning = (label) => (label ? labelNames[order.get(label)] : "background");
    const parts = [`Voxel (${where})`, `${names[chosen]} ${value.toFixed(high - low > 20 ? 0 : 2)}`];
    if (truth) parts.push(`true label: ${meaning(truth[index(place)])}`);
    if (predicted) parts.push(`predicted: ${meaning(predicted[index(place)])}`);
    readout.textContent = `${parts.join("; ")}.`;
  }

  const controls = [];
  if (names.length > 1) {
    const options = names.map((name) => [name, name]);
    controls.push(choice(model, "volume", "Volume", options, signal));
  }
  const options = [];
  if (truth) options.push(["true", "True labels"]);
  if (predicted) options.push(["predicted", "Predicted labels"]);
  if (truth && predicted) options.push(["both", "True labels, outline of the predicted"]);
  const sliders = windowSliders(model, signal);
  const legend = element("ul", { class: "medimg-legend" });
  if (options.length) {
    options.push(["none", "None"]);
    controls.push(choice(model, "shown_labels", "Labels", options, signal));
    sliders.push(slider(model, "opacity", "Opacity of the labels", PERCENT, signal));
    legend.append(...values.map((_, k) => labelItem(get("colours")[k], k, labelNames[k])));
  }
  controls.push(checkbox(model, "show_crosshair", "Show the crosshair", signal));
  if (predicted) legend.append(element("li", { text: "Predicted labels have a broken outline." }));
  const root = viewerRoot(
    model,
    "Planes of a volume",
    element("div", { class: "medimg-planes" }, ...panes.map((pane) => pane.node)),
    readout,
    element("div", { class: "medimg-row" }, ...controls),
    element("div", { class: "medimg-trio" }, ...sliders),
    legend,
    hint("Click where the planes shall meet; then wheel, Page Up and Page Down go through them."),
  );
  el.replaceChildren(root);

  const drawAll = () => (panes.forEach((pane) => pane.draw()), describe());
  const redraw = oncePerFrame(drawAll);
  const shownBy = ["place", "volume", "shown_labels", "window_centre", "window_width"];
  for (const name of [...shownBy, "opacity", "show_crosshair"]) {
    follow(model, `change:${name}`, redraw, signal);
  }
  drawAll();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
