// A loss of two weights, and how an optimiser walks down it.

const SECOND = 0.999; // Adam's second decay
const TINY = 1e-8; // and what it adds below

/** Logits of all images at the weights `u` and `v`. */
function logits(features, u, v) {
  return features.map(([a, b]) => a * u + b * v);
}

/** The loss of two weights and its slope, as [loss, slope 1, slope 2]. */
function lossAndSlope(name, features, labels, u, v) {
  let [loss, first, second] = [0, 0, 0];
  logits(features, u, v).forEach((z, k) => {
    let wrong;
    if (name === "squared error") {
      wrong = z - (2 * labels[k] - 1);
      loss += (wrong * wrong) / 2;
    } else {
      // log(1 + e^z) without overflow
      loss += Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z))) - labels[k] * z;
      wrong = 1 / (1 + Math.exp(-z)) - labels[k];
    }
    first += wrong * features[k][0];
    second += wrong * features[k][1];
  });
  const n = features.length;
  return [loss / n, first / n, second / n];
}

/** Weights and loss of each step; ends early where the weights overflow. */
function walk(slopeAt, { optimiser, rate, momentum, steps, start }) {
  let weights = [...start];
  let first = [0, 0];
  let second = [0, 0];
  const walked = [{ weights, loss: slopeAt(...weights)[0] }];
  for (let step = 1; step <= steps; step++) {
    const slope = slopeAt(...weights).slice(1);
    let move = slope;
    if (optimiser === "Adam") {
      first = first.map((m, k) => momentum * m + (1 - momentum) * slope[k]);
      second = second.map((s, k) => SECOND * s + (1 - SECOND) * slope[k] ** 2);
      move = first.map(
        (m, k) =>
          m / (1 - momentum ** step) / (Math.sqrt(second[k] / (1 - SECOND ** step)) + TINY),
      );
    } else if (optimiser === "momentum") {
      first = first.map((m, k) => momentum * m + slope[k]);
      move = first;
    }
    weights = weights.map((w, k) => w - rate * move[k]);
    if (!(Math.max(...weights.map(Math.abs)) < 1e12)) break;
    walked.push({ weights, loss: slopeAt(...weights)[0] });
  }
  return walked;
}

/** Three colours from low to high, close to cividis. */
function height(p) {
  const stops = [[0, 32, 77], [124, 123, 120], [255, 234, 70]];
  const place = Math.min(Math.max(p, 0), 1) * 2;
  const low = Math.min(Math.floor(place), 1);
  return stops[low].map((c, k) => Math.round(c + (place - low) * (stops[low + 1][k] - c)));
}

/** Paint the surface with contour lines on a canvas of its own. */
function paintSurface(side, limit, lossAt) {
  const canvas = makeCanvas(side, side);
  const values = new Float64Array(side * side);
  for (let y = 0, i = 0; y < side; y++) {
    for (let x = 0; x < side; x++, i++) {
      const u = limit * ((2 * (x + 0.5)) / side - 1);
      const v = limit * (1 - (2 * (y + 0.5)) / side);
      values[i] = Math.log(lossAt(u, v));
    }
  }
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const band = (i) => Math.floor((14 * (values[i] - low)) / Math.max(high - low, 1e-12));
  const context = canvas.getContext("2d");
  const picture = context.createImageData(side, side);
  for (let i = 0; i < values.length; i++) {
    const line =
      ((i + 1) % side && band(i) !== band(i + 1)) ||
      (i + side < values.length && band(i) !== band(i + side));
    const colour = height((values[i] - low) / Math.max(high - low, 1e-12));
    const shade = line ? 0.72 : 1;
    picture.data.set([...colour.map((c) => c * shade), 255], 4 * i);
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** Where the minimum is: a cross with a dark rim. */
function drawCross(context, x, y) {
  for (const [colour, width] of [["#000", 7], ["#ff8c3a", 3.5]]) {
    context.beginPath();
    context.moveTo(x - 8, y - 8);
    context.lineTo(x + 8, y + 8);
    context.moveTo(x - 8, y + 8);
    context.lineTo(x + 8, y - 8);
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
}

const MARGIN = { left: 54, bottom: 44, top: 12, right: 12 };

/** The area of a plot inside its margins. */
function inside(canvas) {
  const { left, bottom, top, right } = MARGIN;
  return { left, top, width: canvas.width - left - right, height: canvas.height - top - bottom };
}

function drawPath(canvas, surface, state, walked, minimum) {
  const context = canvas.getContext("2d");
  const { left, top, width, height: tall } = inside(canvas);
  const { limit, names } = state;
  const at = ([u, v]) => [
    left + (width * (u / limit + 1)) / 2,
    top + (tall * (1 - v / limit)) / 2,
  ];
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  context.drawImage(surface, left, top, width, tall);
  context.save();
  context.beginPath();
  context.rect(left, top, width, tall);
  context.clip();
  // Far points would overflow the canvas; they lie outside in any case.
  const near = ([x, y]) => [x, y].map((value) => Math.min(Math.max(value, -1e5), 1e5));
  const points = walked.map(({ weights }) => near(at(weights)));
  for (const [colour, thick] of [["#000", 4], ["#fff", 2]]) {
    context.beginPath();
    points.forEach((point, k) => (k ? context.lineTo(...point) : context.moveTo(...point)));
    context.lineWidth = thick;
    context.strokeStyle = colour;
    context.stroke();
  }
  points.forEach((point, k) => {
    context.beginPath();
    context.arc(...point, k ? 3 : 7, 0, 2 * Math.PI);
    context.fillStyle = "#fff";
    context.fill();
    context.lineWidth = 1.5;
    context.strokeStyle = "#000";
    context.stroke();
  });
  if (minimum) drawCross(context, ...at(minimum));
  context.restore();
  labelAxes(context, canvas, names);
  ends(context, canvas, [-limit, limit].map(String), [-limit, limit].map(String));
}

/** The names of the two axes. */
function labelAxes(context, canvas, [across, up]) {
  const { left, top, width, height: tall } = inside(canvas);
  context.fillStyle = "#222";
  context.font = "15px sans-serif";
  context.textAlign = "center";
  context.fillText(across, left + width / 2, canvas.height - 8);
  context.save();
  context.translate(16, top + tall / 2);
  context.rotate(-Math.PI / 2);
  context.fillText(up, 0, 0);
  context.restore();
}

/** The numbers at the ends of both axes. */
function ends(context, canvas, [first, last], [low, high]) {
  const { left, top, width, height: tall } = inside(canvas);
  context.font = "13px sans-serif";
  context.fillStyle = "#222";
  context.textAlign = "left";
  context.fillText(first, left, canvas.height - 26);
  context.textAlign = "right";
  context.fillText(last, left + width, canvas.height - 26);
  context.fillText(low, left - 5, top + tall);
  context.fillText(high, left - 5, top + 11);
}

function drawCurve(canvas, state, walked, lowest) {
  const context = canvas.getContext("2d");
  const { left, top, width, height: tall } = inside(canvas);
  const cap = 1e4 * walked[0].loss;
  const losses = walked.map(({ loss }) => Math.min(loss, cap));
  const floor = lowest > 0 ? lowest : Infinity; // 0 has no place on a logarithmic axis
  const [low, high] = [Math.min(floor, ...losses) * 0.9, Math.max(...losses) * 1.1];
  const place = (loss) =>
    top + tall * (1 - (Math.log(loss) - Math.log(low)) / (Math.log(high) - Math.log(low)));
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.lineWidth = 1;
  context.strokeStyle = "#444";
  context.strokeRect(left, top, width, tall);
  if (lowest > 0) {
    context.setLineDash([5, 5]);
    context.strokeStyle = "#666";
    context.beginPath();
    context.moveTo(left, place(lowest));
    context.lineTo(left + width, place(lowest));
    context.stroke();
    context.setLineDash([]);
  }
  context.beginPath();
  losses.forEach((loss, k) => {
    const point = [left + (width * k) / state.steps, place(loss)];
    if (k) context.lineTo(...point);
    else context.moveTo(...point);
  });
  context.lineWidth = 2.5;
  context.strokeStyle = "#0072b2";
  context.stroke();
  labelAxes(context, canvas, ["step", `${state.loss} (logarithmic)`]);
  ends(context, canvas, ["0", String(state.steps)], [low, high].map(short));
}

/** A number with three digits that count. */
function short(value) {
  const small = value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5);
  return small ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const ended = new AbortController();
  const { signal } = ended;
  const [features, labels, limit] = [get("features"), get("labels"), get("limit")];
  const map = element("canvas", { width: 420, height: 400, role: "img", class: "medimg-chart" });
  const curve = element("canvas", { width: 420, height: 400, role: "img", class: "medimg-chart" });
  const surfaces = {};

  const { cells, row } = numbersTable();
  const table = element(
    "table",
    { class: "medimg-numbers" },
    element(
      "tbody",
      {},
      row("first", "Loss at the start"),
      row("last", "Loss at the end"),
      row("lowest", "Lowest possible loss"),
      row("limit", "Plain descent is unstable at the minimum above a learning rate of"),
      row("verdict", "Verdict"),
    ),
  );

  function draw() {
    const state = {
      ...Object.fromEntries(["loss", "optimiser", "momentum", "steps"].map((n) => [n, get(n)])),
      rate: 10 ** get("log_rate"),
      start: [get("start_1"), get("start_2")],
      names: get("names"),
      limit,
    };
    const [place, lowest, curvature] = get("minima")[state.loss];
    const slopeAt = (a, b) => lossAndSlope(state.loss, features, labels, a, b);
    surfaces[state.loss] ??= paintSurface(140, limit, (a, b) => slopeAt(a, b)[0]);
    const walked = walk(slopeAt, state);
    const [first, last] = [walked[0].loss, walked.at(-1).loss];
    const late = walked.slice(Math.floor(walked.length / 2)).map(({ loss }) => loss);
    const rises = (loss, k) => k > 0 && loss - late[k - 1] > 0.01 * (first - lowest);
    let verdict = "on its way";
    if (walked.length <= state.steps || last > first) verdict = "diverges";
    else if (last - lowest < 0.01 * (first - lowest)) verdict = "arrived";
    else if (late.some(rises)) verdict = "swings";
    const meaning = {
      "on its way": "on its way: more than 1 % of the climb is left",
      arrived: "arrived: less than 1 % of the climb is left",
      swings: "swings: the loss still rises and falls",
      diverges: "diverges: it ends higher than it began",
    }[verdict];
    cells.first.textContent = short(first);
    cells.last.textContent = walked.length <= state.steps ? "too large to show" : short(last);
    cells.lowest.textContent = place ? short(lowest) : "0, at infinite weights";
    cells.limit.textContent = curvature ? short(2 / curvature) : "no limit";
    cells.verdict.textContent = meaning;
    drawPath(map, surfaces[state.loss], state, walked, place);
    drawCurve(curve, state, walked, lowest);
    map.setAttribute(
      "aria-label",
      `Contours of the ${state.loss} and the path of ${state.optimiser} in ` +
        `${walked.length - 1} steps from ${state.start.map(short).join(", ")}. Verdict: ${meaning}.`,
    );
    curve.setAttribute(
      "aria-label",
      `The loss by step: from ${short(first)} to ${cells.last.textContent}.`,
    );
  }

  map.addEventListener("click", (event) => {
    const box = map.getBoundingClientRect();
    const { left, top, width, height: tall } = inside(map);
    const x = ((event.clientX - box.left) * map.width) / box.width;
    const y = ((event.clientY - box.top) * map.height) / box.height;
    const clip = (value) => Math.round(20 * limit * Math.min(Math.max(value, -1), 1)) / 20;
    model.set("start_1", clip((2 * (x - left)) / width - 1));
    model.set("start_2", clip(1 - (2 * (y - top)) / tall));
    model.save_changes();
  });

  const twice = (name) => [name, name];
  const start = { min: -limit, max: limit, step: 0.05, format: (value) => value.toFixed(2) };
  const [first, second] = get("names");
  const root = element(
    "div",
    { class: "medimg-viewer", role: "group", "aria-label": get("title") || "Descent explorer" },
    ...(get("title") ? [element("p", { class: "medimg-title", text: get("title") })] : []),
    element(
      "div",
      { class: "medimg-row" },
      choice(model, "loss", "Loss", get("losses").map(twice), signal),
      choice(model, "optimiser", "Optimiser", get("optimisers").map(twice), signal),
    ),
    element(
      "div",
      { class: "medimg-row" },
      slider(
        model,
        "log_rate",
        "Learning rate",
        { min: -3, max: 2, step: 0.05, format: (value) => short(10 ** value) },
        signal,
      ),
      slider(
        model,
        "momentum",
        "Momentum (β₁ of Adam)",
        { min: 0, max: 0.99, step: 0.01, format: (value) => value.toFixed(2) },
        signal,
      ),
      slider(
        model,
        "steps",
        "Steps",
        { min: 1, max: 300, step: 1, format: (value) => String(value) },
        signal,
      ),
      slider(model, "start_1", `Start: ${first}`, start, signal),
      slider(model, "start_2", `Start: ${second}`, start, signal),
    ),
    element("div", { class: "medimg-panes" }, map, curve),
    element(
      "ul",
      { class: "medimg-legend" },
      element("li", { text: "White line with dots: one dot a step; the large one is the start" }),
      element("li", { text: "Cross: the lowest point. Click on the surface to start there." }),
    ),
    table,
  );
  el.replaceChildren(root);
  const redraw = oncePerFrame(draw);
  for (const name of ["loss", "optimiser", "log_rate", "momentum", "steps", "start_1", "start_2"]) {
    follow(model, `change:${name}`, redraw, signal);
  }
  draw();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
