// A kernel of 3 × 3 weights that slides over an image and leaves a response.

const SIDE = 3;
const SECONDS = 6; // for one way over the image

async function render({ model, el }) {
  const get = (name) => model.get(name);
  const [width, height] = [get("columns"), get("rows")];
  const levels = await inflate(get("image_data"));
  const ended = new AbortController();
  const { signal } = ended;
  const background = makeCanvas(width, height);
  paintGrey(background, levels);

  const scale = Math.max(1, Math.round(512 / Math.max(width, height)));
  const picture = makeCanvas(width * scale, height * scale);
  const result = makeCanvas(width * scale, height * scale);
  for (const canvas of [picture, result]) canvas.setAttribute("role", "img");
  const size = element("figcaption");
  const sum = element("p", { class: "medimg-readout" });
  sum.dataset.value = "sum";
  let place = [0, 0]; // row and column of the output under the magnifier
  let response = null; // { values, h, w, most }

  const value = (y, x) => (y < 0 || x < 0 || y >= height || x >= width ? 0 : levels[y * width + x] / 255);

  function compute() {
    const [kernel, stride, pad] = [get("kernel"), get("stride"), Number(get("pad"))];
    const h = Math.floor((height + 2 * pad - SIDE) / stride) + 1;
    const w = Math.floor((width + 2 * pad - SIDE) / stride) + 1;
    const values = new Float64Array(h * w);
    for (let y = 0, i = 0; y < h; y++) {
      for (let x = 0; x < w; x++, i++) {
        let total = 0;
        for (let k = 0; k < SIDE * SIDE; k++) {
          const [dy, dx] = [Math.floor(k / SIDE), k % SIDE];
          total += kernel[k] * value(y * stride - pad + dy, x * stride - pad + dx);
        }
        values[i] = get("rectify") ? Math.max(0, total) : total;
      }
    }
    const most = values.reduce((so_far, v) => Math.max(so_far, Math.abs(v)), 1e-12);
    response = { values, h, w, most };
  }

  /** The last output pixel that the kernel has reached. */
  const reached = () => {
    const { h, w } = response;
    return Math.max(0, Math.min(h * w - 1, Math.round((get("slid") / 100) * h * w) - 1));
  };

  function drawResult() {
    const { values, h, w, most } = response;
    const small = makeCanvas(w, h);
    const context = small.getContext("2d");
    const data = context.createImageData(w, h);
    const last = reached();
    for (let i = 0; i < values.length; i++) {
      const [y, x] = [Math.floor(i / w), i % w];
      // Where the kernel has not been yet: stripes.
      const stripe = Math.floor((x + y) / 3) % 2 ? [34, 48, 66] : [24, 34, 48];
      const grey = Math.round(127.5 * (1 + values[i] / most));
      data.data.set(i <= last ? [grey, grey, grey, 255] : [...stripe, 255], 4 * i);
    }
    context.putImageData(data, 0, 0);
    const shown = result.getContext("2d");
    shown.imageSmoothingEnabled = false;
    shown.clearRect(0, 0, result.width, result.height);
    // At the scale of the image, so that stride and padding can be seen.
    const step = get("stride") * scale;
    shown.drawImage(small, 0, 0, w * step, h * step);
    mark(shown, place[1] * step, place[0] * step, step);
    size.textContent =
      `Response: ${h} × ${w}. Black is ${(-most).toFixed(2)}, middle grey 0, ` +
      `white ${most.toFixed(2)}.`;
    result.setAttribute("aria-label", size.textContent);
  }

  function mark(context, x, y, side) {
    context.lineWidth = 4;
    context.strokeStyle = "#000";
    context.strokeRect(x - 2, y - 2, side + 4, side + 4);
    context.lineWidth = 2;
    context.strokeStyle = "#e69f00";
    context.strokeRect(x - 2, y - 2, side + 4, side + 4);
  }

  const under = Array.from({ length: SIDE * SIDE }, () => element("td"));
  function drawPicture() {
    const [stride, pad] = [get("stride"), Number(get("pad"))];
    const [top, left] = [place[0] * stride - pad, place[1] * stride - pad];
    const context = picture.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(background, 0, 0, picture.width, picture.height);
    mark(context, left * scale, top * scale, SIDE * scale);
    under.forEach((cell, k) => {
      cell.textContent = value(top + Math.floor(k / SIDE), left + (k % SIDE)).toFixed(2);
    });
    const at = response.values[place[0] * response.w + place[1]];
    sum.textContent =
      `Values times weights, added${get("rectify") ? ", not below 0" : ""}: ${at.toFixed(3)}`;
    picture.setAttribute("aria-label", `${get("alt")} ${sum.textContent}`);
  }

  const draw = () => (drawResult(), drawPicture());
  const redraw = oncePerFrame(draw);
  const recompute = oncePerFrame(() => {
    compute();
    const last = reached();
    place = [Math.floor(last / response.w), last % response.w];
    draw();
  });

  for (const canvas of [picture, result]) {
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = pointerAt(canvas, event);
      const step = get("stride") * scale;
      const middle = canvas === picture ? scale : 0; // the kernel's middle under the pointer
      const within = (n, most) => clamp(Math.floor(n / step), 0, most - 1);
      place = [within(y - middle, response.h), within(x - middle, response.w)];
      redraw();
    });
  }

  const fields = Array.from({ length: SIDE * SIDE }, (_, k) => {
    const input = element("input", {
      type: "number",
      step: "any",
      "aria-label": `Weight in row ${Math.floor(k / SIDE) + 1}, column ${(k % SIDE) + 1}`,
    });
    input.dataset.weight = k;
    input.addEventListener("input", () => {
      const typed = Number(input.value);
      if (input.value === "" || !Number.isFinite(typed)) return;
      const kernel = [...get("kernel")];
      kernel[k] = typed;
      change(model, "kernel", kernel);
    });
    return input;
  });
  const showKernel = () =>
    fields.forEach((input, k) => {
      const weight = Math.round(get("kernel")[k] * 1000) / 1000;
      if (Number(input.value) !== weight || input.value === "") input.value = weight;
    });
  const grid = (name, cells) =>
    element(
      "table",
      { class: "medimg-kernel" },
      element("caption", { text: name }),
      element(
        "tbody",
        {},
        ...Array.from({ length: SIDE }, (_, y) =>
          element("tr", {}, ...cells.slice(SIDE * y, SIDE * (y + 1))),
        ),
      ),
    );

  const presets = get("presets").map(([name, weights]) =>
    button(name, `Kernel: ${name}`, () => change(model, "kernel", weights)),
  );
  const slide = button("Slide", "Slide the kernel over the image", () => {
    const began = performance.now();
    const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    const step = (now) => {
      if (signal.aborted) return;
      const share = still ? 1 : Math.min(1, (now - began) / 1000 / SECONDS);
      model.set("slid", Math.round(1000 * share) / 10);
      if (share < 1) requestAnimationFrame(step);
      else model.save_changes();
    };
    requestAnimationFrame(step);
  });

  const root = viewerRoot(
    model,
    "Kernel explorer",
    element(
      "div",
      { class: "medimg-panes" },
      element("div", { class: "medimg-picture" }, picture, sum),
      element("div", { class: "medimg-picture" }, result, size),
    ),
    element(
      "div",
      { class: "medimg-buttons", role: "group", "aria-label": "Kernels" },
      ...presets,
    ),
    element(
      "div",
      { class: "medimg-panes" },
      grid("Weights: type your own", fields.map((input) => element("td", {}, input))),
      grid("Values under the kernel", under),
      element(
        "div",
        { class: "medimg-side" },
        slider(
          model,
          "slid",
          "How far it has slid",
          { min: 0, max: 100, step: 0.1, format: (share) => `${share.toFixed(0)} %` },
          signal,
        ),
        element("div", { class: "medimg-buttons" }, slide),
        slider(
          model,
          "stride",
          "Stride",
          { min: 1, max: 4, step: 1, format: (n) => `${n} pixel${n > 1 ? "s" : ""}` },
          signal,
        ),
        checkbox(model, "pad", "Pad the image with zeros", signal),
        checkbox(model, "rectify", "ReLU: show negative responses as 0", signal),
      ),
    ),
  );
  el.replaceChildren(root);
  follow(model, "change:kernel", showKernel, signal);
  for (const name of ["kernel", "stride", "pad", "rectify"]) {
    follow(model, `change:${name}`, recompute, signal);
  }
  follow(
    model,
    "change:slid",
    oncePerFrame(() => {
      const last = reached();
      place = [Math.floor(last / response.w), last % response.w];
      draw();
    }),
    signal,
  );
  showKernel();
  compute();
  // Start where there is something to see.
  const strongest = response.values.findIndex((v) => Math.abs(v) === response.most);
  place = [Math.floor(Math.max(0, strongest) / response.w), Math.max(0, strongest) % response.w];
  draw();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
