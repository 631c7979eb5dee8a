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
 * A labelled range input that follows the trait `name` in both directions.
 * `format` turns the value into the text beside it.
 */
function slider(model, name, label, { min, max, step, format }, signal) {
  const id = `medimg-${name}-${++serial}`;
  const input = element("input", { type: "range", id, min, max, step });
  const output = element("output", { for: id });
  input.dataset.trait = name;
  const show = () => {
    input.value = model.get(name);
    output.textContent = format(model.get(name));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    model.set(name, Number(input.value));
    model.save_changes();
  });
  follow(model, `change:${name}`, show, signal);
  show();
  return element(
    "div",
    { class: "medimg-control" },
    element("label", { for: id, text: label }),
    output,
    input,
  );
}

/** A labelled checkbox that follows the boolean trait `name`. */
function checkbox(model, name, label, signal) {
  const input = element("input", { type: "checkbox" });
  input.dataset.trait = name;
  const show = () => (input.checked = model.get(name));
  input.addEventListener("change", () => {
    model.set(name, input.checked);
    model.save_changes();
  });
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

/** Line of a legend: a swatch and what it means. */
function legendItem(kind, text) {
  const swatch = element("span", { class: `medimg-swatch ${kind}`, "aria-hidden": "true" });
  return element("li", {}, swatch, text);
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

/** Dice coefficient of two masks; NaN when both are empty. */
function dice(truth, predicted) {
  let both = 0;
  for (let i = 0; i < truth.length; i++) both += truth[i] & predicted[i];
  return (2 * both) / (count(truth) + count(predicted));
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
  list.addEventListener("change", () => {
    model.set(name, list.value);
    model.save_changes();
  });
  follow(model, `change:${name}`, show, signal);
  show();
  return element(
    "div",
    { class: "medimg-control" },
    element("label", { for: id, text: label }),
    list,
  );
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
