// Shared by the viewers: Python puts this file in front of each viewer's own.

// The Okabe-Ito colours, which colour-blind readers can tell apart.
const TRUTH = [230, 159, 0]; // orange: solid outline
const PREDICTION = [86, 180, 233]; // sky blue: hatched, dashed outline

/** Unpack a zlib-compressed Bytes trait. */
async function inflate(view) {
  const stream = new Blob([view])
    .stream()
    .pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Cut `data` into the parts that `sizes` gives; a part of size 0 is null. */
function cut(data, sizes) {
  let from = 0;
  return sizes.map((size) => (size ? data.subarray(from, (from += size)) : null));
}

/** Make an element: attributes from `options`, then its children. */
function element(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") node.textContent = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function makeCanvas(width, height) {
  return element("canvas", { width, height });
}

let serial = 0;

/**
 * A labelled range input that follows the trait `name` in both directions; with
 * `index` that element of it. `format` turns the value into the text beside it.
 */
function slider(model, name, label, { min, max, step, format, index }, signal) {
  const id = `medimg-${name}-${++serial}`;
  const input = element("input", { type: "range", id, min, max, step });
  const output = element("output", { for: id });
  const value = () => read(model, name, index);
  input.dataset.trait = name;
  const show = () => {
    input.value = value();
    output.textContent = format(value());
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => change(model, name, Number(input.value), index));
  follow(model, `change:${name}`, show, signal);
  show();
  return control(id, label, output, input);
}

/** The trait `name`, or its element `index`. */
function read(model, name, index) {
  return index === undefined ? model.get(name) : model.get(name)[index];
}

/** Set the trait `name`, or its element `index`, and tell the kernel, if there is one. */
function change(model, name, value, index) {
  if (index !== undefined) {
    const values = [...model.get(name)]; // a new list: only then the model sees a change
    values[index] = value;
    value = values;
  }
  model.set(name, value);
  model.save_changes();
}

/** A labelled list of `options` to choose from, [value, text]; follows the trait `name`. */
function choice(model, name, label, options, signal) {
  const id = `medimg-${name}-${++serial}`;
  const list = element(
    "select",
    { id },
    ...options.map(([value, text]) => element("option", { value, text })),
  );
  list.dataset.trait = name;
  const show = () => (list.value = model.get(name));
  list.addEventListener("change", () => change(model, name, list.value));
  follow(model, `change:${name}`, show, signal);
  show();
  return control(id, label, list);
}

/** What is set, with the label of its input `id`. */
function control(id, label, ...parts) {
  const text = element("label", { for: id, text: label });
  return element("div", { class: "medimg-control" }, text, ...parts);
}

/**
 * A table of numbers in the making: `row(key, text)` gives a row of it, and the number
 * goes into `cells[key]`.
 */
function numbersTable() {
  const cells = {};
  const row = (key, text) => {
    cells[key] = element("td", { "data-value": key });
    return element("tr", {}, element("th", { scope: "row", text }), cells[key]);
  };
  return { cells, row };
}

/** A button that shows `text`; `name` says what it does. */
function button(text, name, action) {
  const node = element("button", { type: "button", "aria-label": name, title: name, text });
  node.addEventListener("click", action);
  return node;
}

/** The element that holds a whole viewer, with its title. */
function viewerRoot(model, fallback, ...children) {
  const title = model.get("title");
  const heading = title ? [element("p", { class: "medimg-title", text: title })] : [];
  const name = { class: "medimg-viewer", role: "group", "aria-label": title || fallback };
  return element("div", name, ...heading, ...children);
}

const PERCENT = {
  min: 0,
  max: 1,
  step: 0.01,
  format: (value) => `${Math.round(100 * value)} %`,
};

/** Sliders for a window that is given as shares of the range of the intensities. */
function windowSliders(model, signal) {
  const width = { ...PERCENT, min: 0.02, max: 1.5 };
  return [
    slider(model, "window_centre", "Window centre", PERCENT, signal),
    slider(model, "window_width", "Window width", width, signal),
  ];
}

/** A labelled checkbox that follows the boolean trait `name`, or its element `index`. */
function checkbox(model, name, label, signal, index) {
  const input = element("input", { type: "checkbox" });
  input.dataset.trait = name;
  const show = () => (input.checked = read(model, name, index));
  input.addEventListener("change", () => change(model, name, input.checked, index));
  follow(model, `change:${name}`, show, signal);
  show();
  return element("label", { class: "medimg-check" }, input, ` ${label}`);
}

/** Call `handler` on every `event` of the model until `signal` is aborted. */
function follow(model, event, handler, signal) {
  model.on(event, handler);
  signal.addEventListener("abort", () => model.off(event, handler));
}

/** Run `draw` at most once per frame, however often it is asked for. */
function oncePerFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}

/** A pattern of stripes to fill with, so that colour is never alone. */
function stripes(context, colour) {
  const tile = makeCanvas(8, 8);
  const pen = tile.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, 8, 8);
  pen.strokeStyle = colour;
  pen.lineWidth = 3;
  for (const shift of [-8, 0, 8]) {
    pen.beginPath();
    pen.moveTo(shift - 2, 10);
    pen.lineTo(shift + 10, -2);
    pen.stroke();
  }
  return context.createPattern(tile, "repeat");
}

/** A line that says how a viewer is used. */
function hint(text) {
  return element("p", { class: "medimg-hint", text });
}

/** Line of a legend: a swatch and what it means. */
function legendItem(kind, text) {
  const swatch = element("span", { class: `medimg-swatch ${kind}`, "aria-hidden": "true" });
  return element("li", {}, swatch, text);
}

/** The 256 colours of a map that runs through `stops` at equal distances. */
function colourMap(stops) {
  return Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    return stops[low].map((c, k) => Math.round(c + (place - low) * (stops[low + 1][k] - c)));
  });
}

// From improbable to probable.
const CIVIDIS = colourMap([
  [0, 32, 77],
  [64, 77, 107],
  [124, 123, 120],
  [188, 175, 111],
  [255, 234, 70],
]);

// For heat above a grey picture: cividis is grey itself half way.
const VIRIDIS = colourMap([
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
]);

/** Grey level on screen for each of the 256 stored levels. */
function windowTable(low, high, centre, width) {
  const table = new Uint8ClampedArray(256);
  for (let level = 0; level < 256; level++) {
    const value = low + ((high - low) * level) / 255;
    table[level] = 255 * ((value - centre) / Math.max(width, 1e-12) + 0.5);
  }
  return table;
}

/** Paint grey levels through the window. */
function paintImage(rgba, image, table) {
  for (let i = 0; i < image.length; i++) {
    const grey = table[image[i]];
    rgba[4 * i] = rgba[4 * i + 1] = rgba[4 * i + 2] = grey;
    rgba[4 * i + 3] = 255;
  }
}

/**
 * Paint probabilities (0 to 255) in `colours`, each level as opaque as `alpha` says
 * (0 to 1); improbable pixels stay clear.
 */
function paintMap(rgba, probability, colours, alpha) {
  for (let i = 0; i < probability.length; i++) {
    const level = probability[i];
    if (level < 8) continue;
    rgba.set(colours[level], 4 * i);
    rgba[4 * i + 3] = Math.round(255 * alpha(level));
  }
}

/**
 * Let the reader explore a picture. Called are `point(u, v)` with the place of a click
 * or drag, as shares of width and height; `press(u, v)`, if given, instead of it where
 * a drag begins; `hover(u, v)` while the mouse moves above; `move(dx, dy)` for the
 * arrow keys; `step(n)`, if given, for wheel, Page Up and Page Down, and with an
 * infinite `n` for Home and End.
 */
function explore(canvas, { point, press = point, hover, move, step }) {
  canvas.setAttribute("tabindex", "0");
  canvas.setAttribute("role", "application");
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const share = (at, length) => Math.min(0.999999, Math.max(0, at / length));
    return [
      share(event.clientX - box.left, box.width),
      share(event.clientY - box.top, box.height),
    ];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    press(...place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) point(...place(event));
    else if (hover) hover(...place(event));
  });
  // Only a picture that was chosen takes the wheel: otherwise it would stop the page.
  let turned = 0;
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!step || !canvas.matches(":focus") || event.ctrlKey) return;
      event.preventDefault();
      turned += event.deltaY * (event.deltaMode === 1 ? 20 : 1);
      if (Math.abs(turned) < 40) return;
      step(Math.sign(turned));
      turned = 0;
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? 10 : 1;
    const actions = {
      ArrowLeft: () => move(-far, 0),
      ArrowRight: () => move(far, 0),
      ArrowUp: () => move(0, -far),
      ArrowDown: () => move(0, far),
    };
    if (step) {
      actions.PageUp = () => step(-1);
      actions.PageDown = () => step(1);
      actions.Home = () => step(-Infinity);
      actions.End = () => step(Infinity);
    }
    if (!actions[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    actions[event.key]();
    event.preventDefault();
    event.stopPropagation();
  });
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** Paint into a layer of its own size with `painter`, which fills RGBA. */
function paintLayer(layer, painter) {
  const context = layer.getContext("2d");
  const data = context.createImageData(layer.width, layer.height);
  painter(data.data);
  context.putImageData(data, 0, 0);
}

/** Enlarge `source` (w × h) to W × H; both cover the same area, edges are kept. */
function bilinear(source, w, h, W, H) {
  const axis = (from, to) =>
    Array.from({ length: to }, (_, i) => {
      const at = clamp(((i + 0.5) * from) / to - 0.5, 0, from - 1);
      const low = Math.min(Math.floor(at), Math.max(from - 2, 0));
      return { low, high: Math.min(low + 1, from - 1), part: at - low };
    });
  const [columns, rows] = [axis(w, W), axis(h, H)];
  const out = new Uint8Array(W * H);
  let i = 0;
  for (const y of rows) {
    for (const x of columns) {
      const above = source[y.low * w + x.low] * (1 - x.part) + source[y.low * w + x.high] * x.part;
      const below = source[y.high * w + x.low] * (1 - x.part) + source[y.high * w + x.high] * x.part;
      out[i++] = Math.round(above * (1 - y.part) + below * y.part);
    }
  }
  return out;
}

/** Draw a line twice, dark and then light, so that it shows on every ground. */
function strokeTwice(context, path, colour, width) {
  context.strokeStyle = "rgba(0, 0, 0, 0.75)";
  context.lineWidth = 2 * width;
  context.stroke(path);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke(path);
}

/** Write `text` in white with a dark rim. */
function writeTwice(context, text, x, y) {
  context.lineJoin = "round";
  context.lineWidth = 4;
  context.strokeStyle = "rgba(0, 0, 0, 0.85)";
  context.strokeText(text, x, y);
  context.fillStyle = "#fff";
  context.fillText(text, x, y);
}

/**
 * Edges between pixels of different value, as a path; a pixel is `sx` by `sy` large.
 * Beyond the picture all is 0.
 */
function borders(values, width, height, sx, sy) {
  const path = new Path2D();
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : values[y * width + x]);
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      const here = at(x, y);
      if (here !== at(x - 1, y)) {
        path.moveTo(x * sx, y * sy);
        path.lineTo(x * sx, (y + 1) * sy);
      }
      if (here !== at(x, y - 1)) {
        path.moveTo(x * sx, y * sy);
        path.lineTo((x + 1) * sx, y * sy);
      }
    }
  }
  return path;
}

/** Is pixel `i` of `mask` on the outline, i.e. has it a neighbour outside? */
function onOutline(mask, i, x, y, width, height) {
  return (
    x === 0 ||
    y === 0 ||
    x === width - 1 ||
    y === height - 1 ||
    !mask[i - 1] ||
    !mask[i + 1] ||
    !mask[i - width] ||
    !mask[i + width]
  );
}

/**
 * Paint masks into an RGBA image: the truth filled with a solid outline, the
 * prediction hatched with a dashed outline, so that colour is never alone.
 */
function paintMasks(rgba, width, height, truth, predicted, opacity) {
  const period = Math.max(3, Math.round(width / 96));
  const strong = Math.min(255, Math.round(2 * opacity * 255));
  const weak = Math.round(opacity * 0.6 * 255);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      let colour = null;
      let alpha = 0;
      if (truth && truth[i]) {
        colour = TRUTH;
        alpha = onOutline(truth, i, x, y, width, height) ? strong : weak;
      }
      if (predicted && predicted[i] && alpha !== strong) {
        const outline = onOutline(predicted, i, x, y, width, height);
        const stripe = Math.floor((x + y) / period) % 2 === 0;
        if (stripe) {
          colour = PREDICTION;
          alpha = outline ? strong : weak;
        }
      }
      if (colour === null || alpha === 0) continue;
      rgba[4 * i] = colour[0];
      rgba[4 * i + 1] = colour[1];
      rgba[4 * i + 2] = colour[2];
      rgba[4 * i + 3] = alpha;
    }
  }
}

/** The three numbers of a colour such as "#56b4e9". */
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** Is the pixel (x, y) inked in the pattern of that number? Labels differ by it. */
function inPattern(number, x, y) {
  switch (number % 7) {
    case 0:
      return true;
    case 1:
      return (x + y) % 9 < 4;
    case 2:
      return x % 7 < 4 && y % 7 < 4;
    case 3:
      return (x + 9000 - y) % 9 < 4;
    case 4:
      return y % 7 < 3;
    case 5:
      return x % 7 < 3;
    default:
      return x % 9 < 3 || y % 9 < 3;
  }
}

/** Line of a legend for a label: its colour, its pattern and what it means. */
function labelItem(colour, number, text) {
  const swatch = element("canvas", {
    class: "medimg-swatch",
    width: 28,
    height: 16,
    style: `border-color: ${colour}`,
    "aria-hidden": "true",
  });
  paintLayer(swatch, (rgba) => {
    for (let i = 0; i < 28 * 16; i++) {
      if (inPattern(number, i % 28, Math.floor(i / 28))) rgba.set([...rgb(colour), 255], 4 * i);
    }
  });
  return element("li", {}, swatch, text);
}

/** Pixels of `probability` (0 to 255) that reach `threshold` (0 to 1). */
function aboveThreshold(probability, threshold) {
  const mask = new Uint8Array(probability.length);
  for (let i = 0; i < mask.length; i++) mask[i] = probability[i] / 255 >= threshold;
  return mask;
}

function count(mask) {
  let n = 0;
  for (let i = 0; i < mask.length; i++) n += mask[i];
  return n;
}

/** Dice coefficient of two masks; two empty ones agree, as in `metrics.dice`. */
function dice(truth, predicted) {
  let both = 0;
  for (let i = 0; i < truth.length; i++) both += truth[i] & predicted[i];
  const total = count(truth) + count(predicted);
  return total ? (2 * both) / total : 1;
}

/** Where on the canvas an event happened, in pixels of the canvas. */
function pointerAt(canvas, event) {
  const box = canvas.getBoundingClientRect();
  return [
    ((event.clientX - box.left) * canvas.width) / box.width,
    ((event.clientY - box.top) * canvas.height) / box.height,
  ];
}

/** Paint grey levels (0 to 255) into a canvas of their size. */
function paintGrey(canvas, levels) {
  paintLayer(canvas, (rgba) => {
    for (let i = 0; i < levels.length; i++) {
      rgba[4 * i] = rgba[4 * i + 1] = rgba[4 * i + 2] = levels[i];
      rgba[4 * i + 3] = 255;
    }
  });
}

/** Share of `positive` decisions among the exams with the given label. */
function rate(scores, labels, wanted, decide) {
  let [hits, all] = [0, 0];
  scores.forEach((score, k) => {
    if (labels[k] !== wanted) return;
    all += 1;
    if (decide(score)) hits += 1;
  });
  return { hits, all, value: all ? hits / all : NaN };
}

/** Corners of the ROC curve, from (0, 0) to (1, 1). */
function rocCurve(scores, labels) {
  const order = scores.map((_, k) => k).sort((a, b) => scores[b] - scores[a]);
  const positives = labels.filter((label) => label === 1).length;
  const negatives = labels.length - positives;
  const points = [[0, 0]];
  let [tp, fp] = [0, 0];
  order.forEach((k, place) => {
    if (labels[k] === 1) tp += 1;
    else fp += 1;
    // Exams with the same score pass a threshold together.
    const next = order[place + 1];
    if (next === undefined || scores[next] !== scores[k]) {
      points.push([fp / Math.max(negatives, 1), tp / Math.max(positives, 1)]);
    }
  });
  return points;
}

const percent = (share) =>
  Number.isNaN(share.value)
    ? "not defined"
    : `${(100 * share.value).toFixed(1)} % (${share.hits} of ${share.all})`;

function drawRoc(canvas, points, now) {
  const size = canvas.width;
  const margin = 46;
  const span = size - margin - 14;
  const at = ([x, y]) => [margin + x * span, 14 + (1 - y) * span];
  const context = canvas.getContext("2d");
  const line = (path, style, dash = []) => {
    context.beginPath();
    path.forEach((point, k) => (k ? context.lineTo(...at(point)) : context.moveTo(...at(point))));
    context.setLineDash(dash);
    context.lineWidth = style.width;
    context.strokeStyle = style.colour;
    context.stroke();
    context.setLineDash([]);
  };
  context.fillStyle = "#fff";
  context.fillRect(0, 0, size, size);
  line([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], { width: 1, colour: "#444" });
  line([[0, 0], [1, 1]], { width: 1.5, colour: "#767676" }, [6, 6]);
  line(points, { width: 3, colour: "#0072b2" });
  context.fillStyle = "#222";
  context.font = "16px sans-serif";
  context.textAlign = "center";
  context.fillText("1 − specificity", margin + span / 2, size - 8);
  context.save();
  context.translate(18, 14 + span / 2);
  context.rotate(-Math.PI / 2);
  context.fillText("sensitivity", 0, 0);
  context.restore();
  context.fillText("0", margin - 12, 14 + span + 5);
  context.fillText("1", margin - 12, 20);
  context.fillText("1", margin + span, 14 + span + 20);
  if (now.some(Number.isNaN)) return;
  context.beginPath();
  context.arc(...at(now), 8, 0, 2 * Math.PI);
  context.fillStyle = "#d55e00";
  context.fill();
  context.lineWidth = 2;
  context.strokeStyle = "#000";
  context.stroke();
}
