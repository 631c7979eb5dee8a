// A threshold, a clinic and its staff: who waits how long, and what is it worth.

const STEPS = 100; // of the curve of net benefit

/** Mean waits (minutes) of a steady list; null where it grows for ever. */
function steadyWaits(rate, minutes, readers, marked) {
  const offered = (rate * minutes) / 60;
  const busy = offered / readers;
  if (busy >= 1) return null;
  let blocked = 1; // Erlang's recursion
  for (let k = 1; k <= readers; k++) blocked = (offered * blocked) / (k + offered * blocked);
  const waiting = blocked / (1 - busy * (1 - blocked));
  const free = (waiting * minutes) / readers;
  const first = free / (1 - busy * marked);
  return { everyone: free / (1 - busy), first, later: first / (1 - busy) };
}

/** Minutes with digits enough, hours where they are many. */
function duration(minutes) {
  return minutes < 120 ? `${minutes.toFixed(1)} min` : `${(minutes / 60).toFixed(1)} h`;
}

const percentage = (value) => `${(100 * value).toFixed(1)} %`;

/** Bars with their names and values; the first is set apart by its pattern. */
function drawWaits(canvas, rows) {
  const context = canvas.getContext("2d");
  const [left, right, step] = [208, 90, canvas.height / rows.length];
  const longest = Math.max(...rows.map(([, value]) => value));
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = "16px sans-serif";
  context.textBaseline = "middle";
  rows.forEach(([name, value, colour], k) => {
    const [y, tall] = [(k + 0.18) * step, 0.64 * step];
    const wide = ((canvas.width - left - right) * value) / longest;
    context.fillStyle = colour;
    context.fillRect(left, y, wide, tall);
    context.strokeStyle = "#222";
    context.lineWidth = 1;
    if (k === 0) context.setLineDash([5, 4]);
    context.strokeRect(left, y, wide, tall);
    context.setLineDash([]);
    context.fillStyle = "#222";
    context.textAlign = "right";
    context.fillText(name, left - 10, y + tall / 2);
    context.textAlign = "left";
    context.fillText(duration(value), left + wide + 8, y + tall / 2);
  });
}

/** Say in the picture that there is nothing to draw. */
function drawOverload(canvas) {
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#222";
  context.font = "18px sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  const text = "More work comes in than is done: the list grows for ever.";
  context.fillText(text, canvas.width / 2, canvas.height / 2);
}

/** Net benefit against the threshold, with the line of doing nothing. */
function drawBenefit(canvas, curve, threshold, now) {
  const context = canvas.getContext("2d");
  const [left, right, top, bottom] = [62, 14, 16, 46];
  const wide = canvas.width - left - right;
  const tall = canvas.height - top - bottom;
  const best = Math.max(...curve, 1e-9);
  const floor = -best; // below that the curve leaves the picture
  const x = (share) => left + share * wide;
  const y = (value) => top + ((best - Math.max(value, floor)) / (best - floor)) * tall;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.strokeStyle = "#444";
  context.lineWidth = 1;
  context.strokeRect(left, top, wide, tall);
  context.setLineDash([6, 5]);
  context.beginPath();
  context.moveTo(x(0), y(0));
  context.lineTo(x(1), y(0));
  context.stroke();
  context.setLineDash([]);
  context.beginPath();
  curve.forEach((value, k) => context.lineTo(x(k / STEPS), y(value)));
  context.strokeStyle = "#0072b2";
  context.lineWidth = 3;
  context.stroke();
  context.beginPath();
  context.arc(x(threshold), y(now), 8, 0, 2 * Math.PI);
  context.fillStyle = "#d55e00";
  context.fill();
  context.strokeStyle = "#000";
  context.lineWidth = 2;
  context.stroke();
  context.fillStyle = "#222";
  context.font = "15px sans-serif";
  context.textBaseline = "alphabetic";
  context.textAlign = "center";
  context.fillText("threshold of the score", left + wide / 2, canvas.height - 8);
  context.fillText("0", left, canvas.height - 26);
  context.fillText("1", left + wide, canvas.height - 26);
  context.textAlign = "right";
  context.fillText(best.toFixed(1), left - 6, top + 12);
  context.fillText("0", left - 6, y(0) + 5);
  context.save();
  context.translate(16, top + tall / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillText("net benefit per 1000 exams", 0, 0);
  context.restore();
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const ended = new AbortController();
  const { signal } = ended;
  const [scores, labels, minutes] = [get("scores"), get("labels"), get("minutes")];
  const chart = (width, height) =>
    element("canvas", { width, height, role: "img", class: "medimg-chart" });
  const [waits, benefit] = [chart(640, 260), chart(400, 360)];
  waits.classList.add("medimg-crowd");

  const { cells, row } = numbersTable();
  const table = (caption, ...rows) =>
    element(
      "table",
      { class: "medimg-numbers" },
      element("caption", { text: caption }),
      element("tbody", {}, ...rows),
    );
  const rates = table(
    `The network, on ${scores.length} exams`,
    row("sensitivity", "Sensitivity"),
    row("specificity", "Specificity"),
    row("marked", "Marked, of all exams that arrive"),
    row("load", "Share of the readers' time that is filled"),
  );
  const worth = table(
    "Per 1000 exams, in patients found",
    row("net_benefit", "Net benefit of calling the marked"),
    row("all", "Net benefit of calling everybody"),
  );

  const rateAt = (threshold) => ({
    found: rate(scores, labels, 1, (score) => score >= threshold).value,
    alarms: rate(scores, labels, 0, (score) => score >= threshold).value,
  });
  // The curve needs the rates at every step, but they change with nothing.
  const steps = Array.from({ length: STEPS + 1 }, (_, k) => rateAt(k / STEPS));

  function draw() {
    const [threshold, ill] = [get("threshold"), 10 ** get("log_prevalence")];
    const [readers, hourly] = [get("readers"), get("rate")];
    const worthOf = ({ found, alarms }) =>
      1000 * (found * ill - (alarms * (1 - ill)) / 10 ** get("log_exchange"));
    const now = rateAt(threshold);
    const marked = now.found * ill + now.alarms * (1 - ill);
    cells.sensitivity.textContent = percentage(now.found);
    cells.specificity.textContent = percentage(1 - now.alarms);
    cells.marked.textContent = percentage(marked);
    cells.load.textContent = percentage((hourly * minutes) / 60 / readers);
    cells.net_benefit.textContent = worthOf(now).toFixed(1);
    cells.all.textContent = worthOf(rateAt(0)).toFixed(1);
    drawBenefit(benefit, steps.map(worthOf), threshold, worthOf(now));
    benefit.setAttribute(
      "aria-label",
      `Net benefit against the threshold; now ${worthOf(now).toFixed(1)} per 1000 exams.`,
    );
    const found = steadyWaits(hourly, minutes, readers, marked);
    if (!found) {
      drawOverload(waits);
      waits.setAttribute("aria-label", "The list grows for ever.");
      return;
    }
    const mixed = (share) => share * found.first + (1 - share) * found.later;
    const rows = [
      ["everybody, first come", found.everyone, "#fff"],
      ["ill and marked", found.first, "#0072b2"],
      ["ill, on average", mixed(now.found), "#56b4e9"],
      ["well, on average", mixed(now.alarms), "#e69f00"],
      ["ill and missed", found.later, "#d55e00"],
    ];
    drawWaits(waits, rows);
    const told = rows.map(([name, value]) => `${name} ${duration(value)}`);
    waits.setAttribute("aria-label", `Mean waits: ${told.join(", ")}.`);
  }

  const scale = (name, label, options) => slider(model, name, label, options, signal);
  const root = viewerRoot(
    model,
    "Worklist explorer",
    element(
      "div",
      { class: "medimg-row" },
      scale("threshold", "Threshold of the score", {
        min: 0, max: 1, step: 0.01, format: (value) => value.toFixed(2),
      }),
      scale("log_prevalence", "Prevalence", {
        min: -3, max: -0.3, step: 0.01, format: (value) => percentage(10 ** value),
      }),
      scale("log_exchange", "False alarms accepted for one found", {
        min: 0, max: 3, step: 0.01, format: (value) => (10 ** value).toFixed(0),
      }),
    ),
    element(
      "div",
      { class: "medimg-row" },
      scale("readers", "Radiologists", { min: 1, max: 6, step: 1, format: String }),
      scale("rate", `Exams an hour, ${minutes} minutes each`, {
        min: 1, max: 60, step: 0.5, format: (value) => value.toFixed(1),
      }),
    ),
    element("div", { class: "medimg-panes" }, waits, benefit),
    element("div", { class: "medimg-panes" }, rates, worth),
    hint(
      "Mean waits of a list that has settled. Dashed: without marks. " +
        "The line at 0 is calling nobody; the curve leaves the picture far below it.",
    ),
  );
  el.replaceChildren(root);
  const redraw = oncePerFrame(draw);
  for (const name of ["threshold", "log_prevalence", "log_exchange", "readers", "rate"]) {
    follow(model, `change:${name}`, redraw, signal);
  }
  draw();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
