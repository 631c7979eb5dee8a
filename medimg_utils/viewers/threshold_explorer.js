// A gallery of predictions whose thresholds the reader chooses.

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

const IDENTITY = Uint8Array.from({ length: 256 }, (_, level) => level);

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

async function render({ model, el }) {
  const get = (name) => model.get(name);
  const [width, height] = [get("columns"), get("rows")];
  const [smallWidth, smallHeight] = [get("image_columns"), get("image_rows")];
  const [images, truths, probabilities] = await Promise.all(
    ["image_data", "mask_data", "probability_data"].map((name) => inflate(get(name))),
  );
  const ended = new AbortController();
  const { signal } = ended;
  const [scores, labels, titles] = [get("scores"), get("labels"), get("titles")];
  const part = (array, k, size) => array.subarray(k * size, (k + 1) * size);

  const exams = titles.map((title, k) => {
    const background = makeCanvas(smallWidth, smallHeight);
    paintLayer(background, (rgba) =>
      paintImage(rgba, part(images, k, smallWidth * smallHeight), IDENTITY),
    );
    const truth = part(truths, k, width * height);
    return {
      title,
      background,
      truth,
      probability: part(probabilities, k, width * height),
      positive: count(truth) > 0,
      overlay: makeCanvas(width, height),
      canvas: element("canvas", { width, height, role: "img" }),
      caption: element("figcaption"),
    };
  });

  const row = (name) => {
    const cell = element("td");
    return { cell, row: element("tr", {}, element("th", { scope: "row", text: name }), cell) };
  };
  const meanDice = row("Mean Dice of the images with a true mask");
  const sensitivity = row("Sensitivity");
  const specificity = row("Specificity");
  meanDice.cell.dataset.value = "mean-dice";
  sensitivity.cell.dataset.value = "sensitivity";
  specificity.cell.dataset.value = "specificity";
  const roc = element("canvas", { width: 360, height: 360, class: "medimg-roc", role: "img" });
  const curve = rocCurve(scores, labels);

  /** Predicted mask of an exam; a region smaller than `min_area` is dropped. */
  function predict(exam) {
    const mask = aboveThreshold(exam.probability, get("threshold"));
    return count(mask) >= get("min_area") ? mask : mask.fill(0);
  }

  function drawGallery() {
    const values = [];
    for (const exam of exams) {
      const predicted = predict(exam);
      paintLayer(exam.overlay, (rgba) =>
        paintMasks(rgba, width, height, exam.truth, predicted, get("opacity")),
      );
      const shown = exam.canvas.getContext("2d");
      shown.drawImage(exam.background, 0, 0, width, height);
      shown.drawImage(exam.overlay, 0, 0);
      const value = dice(exam.truth, predicted);
      if (exam.positive) values.push(value);
      const area = count(predicted);
      const result = exam.positive
        ? `Dice ${value.toFixed(3)}`
        : area
          ? `no true mask, ${area} false pixels`
          : "no true mask, none predicted";
      exam.caption.textContent = `${exam.title}: ${result}`;
      exam.canvas.setAttribute("aria-label", `${exam.title}, true and predicted mask. ${result}.`);
    }
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    meanDice.cell.textContent = values.length ? mean.toFixed(3) : "not defined";
  }

  function drawExams() {
    const reaches = (score) => score >= get("score_threshold");
    const found = rate(scores, labels, 1, reaches);
    const spared = rate(scores, labels, 0, (score) => !reaches(score));
    sensitivity.cell.textContent = percent(found);
    specificity.cell.textContent = percent(spared);
    drawRoc(roc, curve, [1 - spared.value, found.value]);
    roc.setAttribute(
      "aria-label",
      `ROC curve of ${scores.length} exams. The point of this threshold: ` +
        `sensitivity ${percent(found)}, specificity ${percent(spared)}.`,
    );
  }

  const fraction = { min: 0, max: 1, step: 0.01, format: (value) => value.toFixed(2) };
  const area = {
    min: 0,
    max: get("max_area"),
    step: 1,
    format: (value) => `${value} pixels`,
  };
  const root = viewerRoot(
    model,
    "Threshold explorer",
    element(
      "div",
      { class: "medimg-row" },
      slider(model, "threshold", "Pixel threshold", fraction, signal),
      slider(model, "min_area", "Smallest area that counts", area, signal),
      slider(model, "opacity", "Opacity of the overlay", fraction, signal),
    ),
    element(
      "div",
      { class: "medimg-gallery" },
      ...exams.map((exam) => element("figure", {}, exam.canvas, exam.caption)),
    ),
    element(
      "ul",
      { class: "medimg-legend" },
      legendItem("truth", "True mask: solid outline"),
      legendItem("prediction", "Prediction, at or above the threshold: hatched"),
    ),
    element("table", { class: "medimg-numbers" }, element("tbody", {}, meanDice.row)),
    element("hr"),
    slider(model, "score_threshold", "Score threshold of an exam", fraction, signal),
    element(
      "div",
      { class: "medimg-panes" },
      element(
        "table",
        { class: "medimg-numbers" },
        element("caption", { text: `All ${scores.length} exams` }),
        element("tbody", {}, sensitivity.row, specificity.row),
      ),
      roc,
    ),
  );
  el.replaceChildren(root);

  const redrawGallery = oncePerFrame(drawGallery);
  for (const name of ["threshold", "min_area", "opacity"]) {
    follow(model, `change:${name}`, redrawGallery, signal);
  }
  follow(model, "change:score_threshold", oncePerFrame(drawExams), signal);
  drawGallery();
  drawExams();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
