// A threshold between two groups of scores, and what it means for patients.

const ILL = "#0072b2"; // solid
const WELL = "#d55e00"; // hatched

/** Share of the scores of a class in each bin. */
function histogram(scores, labels, wanted, bins) {
  const members = scores.filter((_, k) => labels[k] === wanted);
  const shares = new Array(bins).fill(0);
  for (const score of members) {
    shares[Math.min(Math.floor(score * bins), bins - 1)] += 1 / members.length;
  }
  return shares;
}

function drawScores(canvas, above, below, threshold) {
  const context = canvas.getContext("2d");
  const [left, right, top, bottom] = [44, 12, 14, 46];
  const width = canvas.width - left - right;
  const tall = canvas.height - top - bottom;
  const middle = top + tall / 2;
  const unit = tall / 2 / Math.max(...above, ...below);
  const step = width / above.length;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const bars = (shares, sign, style, edge) => {
    shares.forEach((share, k) => {
      const size = share * unit;
      context.fillStyle = style;
      context.fillRect(left + k * step, sign > 0 ? middle - size : middle, step - 1, size);
      context.lineWidth = 1;
      context.strokeStyle = edge;
      context.strokeRect(left + k * step, sign > 0 ? middle - size : middle, step - 1, size);
    });
  };
  bars(above, 1, ILL, ILL);
  bars(below, -1, stripes(context, WELL), WELL);
  const x = left + threshold * width;
  context.fillStyle = "rgba(0, 0, 0, 0.07)";
  context.fillRect(x, top, left + width - x, tall);
  context.setLineDash([7, 5]);
  context.lineWidth = 2;
  context.strokeStyle = "#000";
  context.beginPath();
  context.moveTo(x, top);
  context.lineTo(x, top + tall);
  context.stroke();
  context.setLineDash([]);
  context.lineWidth = 1;
  context.strokeStyle = "#444";
  context.strokeRect(left, top, width, tall);
  context.fillStyle = "#222";
  context.font = "15px sans-serif";
  context.textAlign = "center";
  context.fillText("score", left + width / 2, canvas.height - 8);
  context.fillText("0", left, canvas.height - 26);
  context.fillText("1", left + width, canvas.height - 26);
  for (const [text, y] of [["negative", top + (3 * tall) / 4], ["positive", top + tall / 4]]) {
    context.save();
    context.translate(18, y);
    context.rotate(-Math.PI / 2);
    context.fillText(text, 0, 0);
    context.restore();
  }
}

/** Everybody as a sign of their own: who is ill, and who is called so. */
function drawPeople(canvas, { found, missed, alarms, left }) {
  const context = canvas.getContext("2d");
  const columns = 40;
  const step = canvas.width / columns;
  const kinds = [
    ...Array(found).fill("found"),
    ...Array(missed).fill("missed"),
    ...Array(alarms).fill("alarm"),
    ...Array(left).fill("left"),
  ];
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  kinds.forEach((kind, k) => {
    const x = ((k % columns) + 0.5) * step;
    const y = (Math.floor(k / columns) + 0.5) * step;
    sign(context, kind, x, y, 0.36 * step);
  });
}

/** The sign of one person. */
function sign(context, kind, x, y, size) {
  context.beginPath();
  context.lineWidth = 1.8;
  if (kind === "found" || kind === "missed") {
    context.arc(x, y, size, 0, 2 * Math.PI);
    context.fillStyle = kind === "found" ? ILL : "#fff";
    context.fill();
    context.strokeStyle = ILL;
    context.stroke();
  } else if (kind === "alarm") {
    context.moveTo(x - size, y + size);
    context.lineTo(x, y - size);
    context.lineTo(x + size, y + size);
    context.closePath();
    context.fillStyle = WELL;
    context.fill();
  } else {
    context.arc(x, y, size / 3, 0, 2 * Math.PI);
    context.fillStyle = "#999";
    context.fill();
  }
}

/** A line of the legend with a person's sign. */
function personItem(kind, text) {
  const options = { width: 18, height: 18, class: "medimg-sign", "aria-hidden": "true" };
  const swatch = element("canvas", options);
  const context = swatch.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, 18, 18);
  sign(context, kind, 9, 9, 6);
  return element("li", {}, swatch, text);
}

/** A share as a percentage with digits enough for rare diseases. */
function share(value) {
  if (Number.isNaN(value)) return "not defined";
  return `${(100 * value).toFixed(1)} %`;
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const ended = new AbortController();
  const { signal } = ended;
  const [scores, labels, people] = [get("scores"), get("labels"), get("people")];
  const above = histogram(scores, labels, 1, get("bins"));
  const below = histogram(scores, labels, 0, get("bins"));
  const curve = rocCurve(scores, labels);
  const chart = (width, height) =>
    element("canvas", { width, height, role: "img", class: "medimg-chart" });
  const [plot, roc, crowd] = [chart(400, 400), chart(400, 400), chart(640, 400)];
  crowd.classList.add("medimg-crowd");

  const { cells, row } = numbersTable();
  const rates = element(
    "table",
    { class: "medimg-numbers" },
    element("caption", { text: `From ${scores.length} exams` }),
    element("tbody", {}, row("sensitivity", "Sensitivity"), row("specificity", "Specificity")),
  );
  const values = element(
    "table",
    { class: "medimg-numbers" },
    element("caption", { text: "At the chosen prevalence" }),
    element(
      "tbody",
      {},
      row("ppv", "Of those called positive, truly so (PPV)"),
      row("npv", "Of those called negative, truly so (NPV)"),
      row("price", "False alarms for each one found"),
    ),
  );

  function draw() {
    const [threshold, ill] = [get("threshold"), 10 ** get("log_prevalence")];
    const found = rate(scores, labels, 1, (score) => score >= threshold).value;
    const spared = rate(scores, labels, 0, (score) => score < threshold).value;
    const [hits, alarms] = [found * ill, (1 - spared) * (1 - ill)];
    const [missed, left] = [(1 - found) * ill, spared * (1 - ill)];
    cells.sensitivity.textContent = share(found);
    cells.specificity.textContent = share(spared);
    cells.ppv.textContent = share(hits / (hits + alarms));
    cells.npv.textContent = share(left / (left + missed));
    cells.price.textContent = hits > 0 ? (alarms / hits).toFixed(1) : "nobody is found";
    const sick = Math.round(people * ill);
    const counts = { found: Math.round(found * sick) };
    counts.missed = sick - counts.found;
    counts.left = Math.round(spared * (people - sick));
    counts.alarms = people - sick - counts.left;
    drawScores(plot, above, below, threshold);
    drawRoc(roc, curve, [1 - spared, found]);
    drawPeople(crowd, counts);
    plot.setAttribute(
      "aria-label",
      `Histograms of the scores of both classes, and the threshold at ${threshold.toFixed(2)}.`,
    );
    roc.setAttribute(
      "aria-label",
      `ROC curve with the point of this threshold: sensitivity ${share(found)}, ` +
        `specificity ${share(spared)}.`,
    );
    crowd.setAttribute(
      "aria-label",
      `Of ${people} people ${counts.found} are found, ${counts.missed} missed, ` +
        `${counts.alarms} alarmed for nothing, ${counts.left} left alone.`,
    );
  }

  const root = element(
    "div",
    { class: "medimg-viewer", role: "group", "aria-label": get("title") || "Prevalence explorer" },
    ...(get("title") ? [element("p", { class: "medimg-title", text: get("title") })] : []),
    element(
      "div",
      { class: "medimg-row" },
      slider(
        model,
        "threshold",
        "Threshold of the score",
        { min: 0, max: 1, step: 0.01, format: (value) => value.toFixed(2) },
        signal,
      ),
      slider(
        model,
        "log_prevalence",
        "Prevalence",
        { min: -3, max: -0.05, step: 0.01, format: (value) => share(10 ** value) },
        signal,
      ),
    ),
    element("div", { class: "medimg-panes" }, plot, roc),
    element("div", { class: "medimg-panes" }, rates, values),
    crowd,
    element(
      "ul",
      { class: "medimg-legend" },
      personItem("found", "ill and called positive: found"),
      personItem("missed", "ill and called negative: missed"),
      personItem("alarm", "well and called positive: a false alarm"),
      personItem("left", "well and called negative: left alone"),
    ),
  );
  el.replaceChildren(root);
  const redraw = oncePerFrame(draw);
  for (const name of ["threshold", "log_prevalence"]) {
    follow(model, `change:${name}`, redraw, signal);
  }
  draw();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
