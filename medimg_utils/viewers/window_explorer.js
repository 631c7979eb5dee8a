// An image beside its histogram: which values become which grey?

const BINS = 256;
const PLOT = { width: 560, height: 260, left: 12, right: 12, top: 14, bottom: 52 };

async function render({ model, el }) {
  const get = (name) => model.get(name);
  const [width, height] = [get("columns"), get("rows")];
  const [low, high] = [get("low"), get("high")];
  const stored = new Uint16Array((await inflate(get("value_data"))).buffer);
  const ended = new AbortController();
  const { signal } = ended;
  const unit = get("unit") ? ` ${get("unit")}` : "";
  let marked = null; // the value under the pointer

  const picture = makeCanvas(width, height);
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", get("alt"));
  const plot = makeCanvas(PLOT.width, PLOT.height);
  plot.setAttribute("role", "img");
  plot.style.cursor = "ew-resize";
  const used = element("output", { class: "medimg-readout" });
  used.dataset.value = "greys";
  const readout = element("p", { class: "medimg-readout", text: "Point at the picture to read a value." });

  const counts = new Float64Array(BINS);
  for (const value of stored) counts[Math.min(BINS - 1, Math.floor((value / (high - low)) * BINS))]++;
  const tallest = Math.log1p(Math.max(...counts));

  /** Grey on screen (0 to 255) of every value that the image can hold. */
  function table() {
    const [centre, span] = [get("window_centre"), get("window_width")];
    const greys = 2 ** get("bits");
    const range = high - low + 1;
    return Uint8ClampedArray.from({ length: range }, (_, step) => {
      let value = low + step;
      if (get("early")) value = low + ((Math.floor((step / range) * greys) + 0.5) * range) / greys;
      let share = Math.min(1, Math.max(0, (value - centre) / span + 0.5));
      if (!get("early")) share = Math.min(Math.floor(share * greys), greys - 1) / (greys - 1);
      return Math.floor(255 * share + 0.5);
    });
  }

  const inside = PLOT.width - PLOT.left - PLOT.right;
  const floor = PLOT.height - PLOT.bottom;
  const across = (value) => PLOT.left + ((value - low) / (high - low)) * inside;
  const valueAt = (x) => low + ((x - PLOT.left) / inside) * (high - low);

  function drawPlot(greyOf) {
    const context = plot.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, PLOT.width, PLOT.height);
    context.fillStyle = "#9a9a9a";
    counts.forEach((n, k) => {
      const tall = (Math.log1p(n) / tallest) * (floor - PLOT.top);
      context.fillRect(PLOT.left + (k / BINS) * inside, floor - tall, inside / BINS + 0.5, tall);
    });
    // Below the histogram: the grey that each value gets.
    for (let x = 0; x < inside; x++) {
      const grey = greyOf[Math.min(greyOf.length - 1, Math.floor((x / inside) * greyOf.length))];
      context.fillStyle = `rgb(${grey}, ${grey}, ${grey})`;
      context.fillRect(PLOT.left + x, floor + 4, 1, 16);
    }
    context.strokeStyle = "#444";
    context.lineWidth = 1;
    context.strokeRect(PLOT.left, floor + 4, inside, 16);
    // Over it: the way from black to white.
    context.beginPath();
    for (let x = 0; x < inside; x++) {
      const grey = greyOf[Math.min(greyOf.length - 1, Math.floor((x / inside) * greyOf.length))];
      context.lineTo(PLOT.left + x, floor - (grey / 255) * (floor - PLOT.top));
    }
    context.strokeStyle = "#0072b2";
    context.lineWidth = 2.5;
    context.stroke();
    const half = get("window_width") / 2;
    context.setLineDash([6, 5]);
    context.strokeStyle = "#d55e00";
    for (const edge of [get("window_centre") - half, get("window_centre") + half]) {
      context.beginPath();
      context.moveTo(across(edge), 2);
      context.lineTo(across(edge), floor);
      context.stroke();
    }
    context.setLineDash([]);
    if (marked !== null) {
      context.fillStyle = "#000";
      context.beginPath();
      context.moveTo(across(marked), floor + 4);
      context.lineTo(across(marked) - 7, floor - 9);
      context.lineTo(across(marked) + 7, floor - 9);
      context.fill();
    }
    context.fillStyle = "#222";
    context.font = "15px sans-serif";
    context.textAlign = "left";
    context.fillText(`${low}`, PLOT.left, PLOT.height - 10);
    context.textAlign = "right";
    context.fillText(`${high}${unit}`, PLOT.width - PLOT.right, PLOT.height - 10);
    context.textAlign = "center";
    context.fillText("value; height: pixels (log)", PLOT.width / 2, PLOT.height - 10);
  }

  function draw() {
    const greyOf = table();
    const levels = Uint8ClampedArray.from(stored, (value) => greyOf[value]);
    paintGrey(picture, levels);
    drawPlot(greyOf);
    const number = new Set(levels).size;
    used.textContent = `${number} different greys on the screen`;
    plot.setAttribute(
      "aria-label",
      `Histogram from ${low} to ${high}${unit}. The window lies around ` +
        `${Math.round(get("window_centre"))} and is ${Math.round(get("window_width"))} wide.`,
    );
  }
  const redraw = oncePerFrame(draw);

  picture.addEventListener("pointermove", (event) => {
    const [x, y] = pointerAt(picture, event).map(Math.floor);
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    marked = low + stored[y * width + x];
    readout.textContent = `row ${y}, column ${x}: ${marked}${unit}`;
    redraw();
  });

  // Inside the window a drag moves it; at an edge a drag widens it.
  let grip = null;
  plot.addEventListener("pointerdown", (event) => {
    const value = valueAt(pointerAt(plot, event)[0]);
    const [centre, half] = [get("window_centre"), get("window_width") / 2];
    const near = (14 / inside) * (high - low);
    const edge = Math.abs(Math.abs(value - centre) - half) < Math.min(near, half);
    grip = { edge, offset: centre - value };
    if (!edge && Math.abs(value - centre) > half) grip.offset = 0;
    plot.setPointerCapture(event.pointerId);
    drag(event);
  });
  function drag(event) {
    if (!grip) return;
    const value = valueAt(pointerAt(plot, event)[0]);
    if (grip.edge) {
      const wide = 2 * Math.abs(value - get("window_centre"));
      change(model, "window_width", Math.max(1, Math.round(wide)));
    } else {
      change(model, "window_centre", Math.round(clamp(value + grip.offset, low, high)));
    }
  }
  plot.addEventListener("pointermove", drag);
  for (const end of ["pointerup", "pointercancel"]) plot.addEventListener(end, () => (grip = null));

  const buttons = get("presets").map(([name, centre, span]) =>
    button(name, `Window: ${name}`, () => {
      change(model, "window_centre", centre);
      change(model, "window_width", span);
    }),
  );
  const grey = { step: 1, format: (value) => `${Math.round(value)}${unit}` };
  const root = viewerRoot(
    model,
    "Window explorer",
    element(
      "div",
      { class: "medimg-panes" },
      element("div", { class: "medimg-picture" }, picture, readout),
      element(
        "div",
        { class: "medimg-side medimg-plot" },
        plot,
        element(
          "div",
          { class: "medimg-buttons", role: "group", "aria-label": "Windows" },
          ...buttons,
        ),
        slider(model, "window_centre", "Window centre", { min: low, max: high, ...grey }, signal),
        slider(model, "window_width", "Window width", { min: 1, max: high - low, ...grey }, signal),
        slider(
          model,
          "bits",
          "Greys kept",
          { min: 1, max: 12, step: 1, format: (n) => `${n} bits, ${2 ** n} greys` },
          signal,
        ),
        checkbox(model, "early", "Reduce the greys before the window, not after it", signal),
        used,
      ),
    ),
  );
  el.replaceChildren(root);
  for (const name of ["window_centre", "window_width", "bits", "early"]) {
    follow(model, `change:${name}`, redraw, signal);
  }
  draw();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
