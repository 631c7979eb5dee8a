// An image with a mask, a probability map, a window and a read-out.

async function render({ model, el }) {
  const get = (name) => model.get(name);
  const [width, height] = [get("columns"), get("rows")];
  const [image, truth, probability] = await Promise.all(
    ["image_data", "mask_data", "probability_data"].map((name) =>
      get(name) && get(name).byteLength ? inflate(get(name)) : null,
    ),
  );
  const ended = new AbortController();
  const { signal } = ended;

  // Layers at the size of the image; the visible canvas shows a part of them.
  const base = makeCanvas(width, height);
  const overlay = makeCanvas(width, height);
  const canvas = makeCanvas(width, height);
  canvas.setAttribute("tabindex", "0");
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "image with mask overlay");
  canvas.setAttribute("aria-label", `${get("alt")} Arrow keys move the read-out.`);
  const readout = element("p", { class: "medimg-readout", "aria-live": "polite" });
  const overlap = element("p", { class: "medimg-overlap" });

  const [low, high] = get("value_range");
  const unit = get("unit") ? ` ${get("unit")}` : "";
  const digits = high - low > 20 ? 0 : 2;
  const number = (value) => value.toFixed(digits);
  const view = { zoom: 1, x: 0, y: 0 }; // part shown: its corner, in pixels
  const cursor = { x: width >> 1, y: height >> 1, shown: false };

  function drawBase() {
    const table = windowTable(low, high, get("window_centre"), get("window_width"));
    paintLayer(base, (rgba) => paintImage(rgba, image, table));
  }

  function drawOverlay() {
    const opacity = get("opacity");
    const predicted = probability && aboveThreshold(probability, get("threshold"));
    const showPrediction = probability && get("show_prediction");
    paintLayer(overlay, (rgba) => {
      if (probability && get("show_map")) paintMap(rgba, probability, CIVIDIS, () => opacity);
      const shownTruth = truth && get("show_mask") ? truth : null;
      const shownPrediction = showPrediction ? predicted : null;
      paintMasks(rgba, width, height, shownTruth, shownPrediction, opacity);
    });
    if (truth && predicted) {
      const value = dice(truth, predicted);
      const note = value === 1 && !count(truth) ? ", as both masks are empty" : "";
      overlap.textContent = `Dice: ${value.toFixed(3)}${note}`;
    }
  }

  function drawView() {
    const context = canvas.getContext("2d");
    const [w, h] = [width / view.zoom, height / view.zoom];
    context.imageSmoothingEnabled = view.zoom < 4;
    for (const layer of [base, overlay]) {
      context.drawImage(layer, view.x, view.y, w, h, 0, 0, width, height);
    }
    if (cursor.shown) {
      const [x, y] = [(cursor.x + 0.5 - view.x) * view.zoom, (cursor.y + 0.5 - view.y) * view.zoom];
      context.strokeStyle = "#fff";
      context.lineWidth = Math.max(1, width / 300);
      context.strokeRect(x - width / 80, y - width / 80, width / 40, width / 40);
    }
  }

  function describePixel() {
    const i = cursor.y * width + cursor.x;
    const value = low + ((high - low) * image[i]) / 255;
    const parts = [`row ${cursor.y}, column ${cursor.x}: ${number(value)}${unit}`];
    if (probability) parts.push(`probability ${(probability[i] / 255).toFixed(2)}`);
    if (truth) parts.push(truth[i] ? "inside the mask" : "outside the mask");
    readout.textContent = parts.join(", ");
  }

  function zoomTo(zoom) {
    view.zoom = Math.min(16, Math.max(1, zoom));
    const [w, h] = [width / view.zoom, height / view.zoom];
    view.x = Math.min(width - w, Math.max(0, cursor.x - w / 2));
    view.y = Math.min(height - h, Math.max(0, cursor.y - h / 2));
    drawView();
  }

  function moveCursor(x, y, shown) {
    cursor.x = Math.min(width - 1, Math.max(0, x));
    cursor.y = Math.min(height - 1, Math.max(0, y));
    cursor.shown = shown;
    describePixel();
  }

  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const [dx, dy] = [width / view.zoom / box.width, height / view.zoom / box.height];
    if (event.buttons === 1 && view.zoom > 1) {
      view.x = Math.min(width - width / view.zoom, Math.max(0, view.x - event.movementX * dx));
      view.y = Math.min(height - height / view.zoom, Math.max(0, view.y - event.movementY * dy));
      drawView();
    }
    const x = Math.floor(view.x + (event.clientX - box.left) * dx);
    const y = Math.floor(view.y + (event.clientY - box.top) * dy);
    const wasShown = cursor.shown;
    moveCursor(x, y, false);
    if (wasShown) drawView();
  });

  canvas.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 1;
    const moves = {
      ArrowLeft: [-step, 0],
      ArrowRight: [step, 0],
      ArrowUp: [0, -step],
      ArrowDown: [0, step],
    };
    if (moves[event.key]) {
      const [dx, dy] = moves[event.key];
      moveCursor(cursor.x + dx, cursor.y + dy, true);
      zoomTo(view.zoom);
    } else if (event.key === "+" || event.key === "=") zoomTo(view.zoom * 1.5);
    else if (event.key === "-") zoomTo(view.zoom / 1.5);
    else if (event.key === "0") zoomTo(1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const range = high - low;
  const grey = { step: range / 200, format: (value) => number(value) + unit };
  const fraction = { min: 0, max: 1, step: 0.01, format: (value) => value.toFixed(2) };
  const controls = [
    slider(model, "window_centre", "Window centre", { min: low, max: high, ...grey }, signal),
    slider(
      model,
      "window_width",
      "Window width",
      { min: range / 100, max: 1.5 * range, ...grey },
      signal,
    ),
  ];
  const legend = element("ul", { class: "medimg-legend" });
  if (truth || probability) {
    controls.push(slider(model, "opacity", "Opacity of the overlay", fraction, signal));
  }
  if (probability) {
    controls.push(slider(model, "threshold", "Probability threshold", fraction, signal));
  }
  if (truth) {
    controls.push(checkbox(model, "show_mask", "Show the mask", signal));
    legend.append(legendItem("truth", `${get("mask_name")}: solid outline`));
  }
  if (probability) {
    controls.push(checkbox(model, "show_prediction", "Show the prediction", signal));
    controls.push(checkbox(model, "show_map", "Show the probabilities as colour", signal));
    legend.append(
      legendItem("prediction", "Prediction, at or above the threshold: hatched"),
      legendItem("map", "Probability, from 0 to 1"),
    );
  }
  const zoom = element(
    "div",
    { class: "medimg-buttons", role: "group", "aria-label": "Zoom" },
    button("+", "Zoom in", () => zoomTo(view.zoom * 1.5)),
    button("−", "Zoom out", () => zoomTo(view.zoom / 1.5)),
    button("1:1", "Show the whole image", () => zoomTo(1)),
  );

  const root = viewerRoot(
    model,
    "Image viewer",
    element(
      "div",
      { class: "medimg-panes" },
      element("div", { class: "medimg-picture" }, canvas, zoom, readout),
      element("div", { class: "medimg-side" }, ...controls, overlap, legend),
    ),
  );
  el.replaceChildren(root);

  const redrawBase = oncePerFrame(() => (drawBase(), drawView()));
  const redrawOverlay = oncePerFrame(() => (drawOverlay(), drawView()));
  for (const name of ["window_centre", "window_width"]) {
    follow(model, `change:${name}`, redrawBase, signal);
  }
  for (const name of ["opacity", "threshold", "show_mask", "show_prediction", "show_map"]) {
    follow(model, `change:${name}`, redrawOverlay, signal);
  }
  drawBase();
  drawOverlay();
  drawView();
  describePixel();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
