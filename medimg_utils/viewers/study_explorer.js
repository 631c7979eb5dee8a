// A thousand studies that compare two designs, with so many seeds and patients each.

const BETTER = "#0072b2"; // solid
const WORSE = "#d55e00"; // hatched

/** Numbers in [0, 1) that are the same everywhere: mulberry32 from seed 1 on. */
function randomNumbers() {
  let state = 1;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Differences of two tables of thousandths: one row a seed. */
function subtract(one, other) {
  return one.map((row, s) => row.map((value, p) => (value - other[s][p]) / 1000));
}

/** The mean difference that each of the studies finds. */
function replay(table, studies, seeds, patients) {
  const random = randomNumbers();
  const [rows, columns] = [table.length, table[0].length];
  const found = new Float64Array(studies);
  for (let study = 0; study < studies; study++) {
    const drawn = Array.from({ length: seeds }, () => table[Math.floor(random() * rows)]);
    let sum = 0;
    for (let k = 0; k < patients; k++) {
      const column = Math.floor(random() * columns);
      for (const row of drawn) sum += row[column];
    }
    found[study] = sum / (seeds * patients);
  }
  return found;
}

/** Histogram of the studies on an axis from -reach to reach. */
function drawStudies(canvas, found, sign, reach, low, high) {
  const context = canvas.getContext("2d");
  const [left, right, top, bottom, bins] = [20, 20, 26, 46, 60];
  const width = canvas.width - left - right;
  const tall = canvas.height - top - bottom;
  const place = (value) => left + ((value / reach + 1) / 2) * width;
  const counts = new Array(bins).fill(0);
  for (const value of found) {
    counts[clamp(Math.floor(((value / reach + 1) / 2) * bins), 0, bins - 1)] += 1;
  }
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const pattern = stripes(context, WORSE);
  const unit = tall / Math.max(...counts);
  const step = width / bins;
  counts.forEach((count, k) => {
    if (!count) return;
    const wrong = sign * (k + 0.5 - bins / 2) < 0;
    context.fillStyle = wrong ? pattern : BETTER;
    context.strokeStyle = wrong ? WORSE : BETTER;
    context.lineWidth = 1;
    const box = [left + k * step + 0.5, top + tall - count * unit, step - 1, count * unit];
    context.fillRect(...box);
    context.strokeRect(...box);
  });
  context.strokeStyle = "#000";
  context.lineWidth = 2;
  context.setLineDash([7, 5]);
  context.beginPath();
  context.moveTo(place(0), top);
  context.lineTo(place(0), top + tall);
  context.stroke();
  context.setLineDash([]);
  context.beginPath();
  context.moveTo(place(clamp(low, -reach, reach)), top - 8);
  context.lineTo(place(clamp(high, -reach, reach)), top - 8);
  context.stroke();
  context.fillStyle = "#222";
  context.font = "15px sans-serif";
  context.textAlign = "center";
  for (const share of [-1, -0.5, 0, 0.5, 1]) {
    context.fillText((share * reach).toFixed(2), place(share * reach), canvas.height - 26);
  }
  context.fillText("mean difference in Dice that a study finds", canvas.width / 2, canvas.height - 6);
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const ended = new AbortController();
  const { signal } = ended;
  const names = get("names");
  const tables = Object.fromEntries(names.map((name, k) => [name, get("scores")[k]]));
  const plot = element("canvas", { width: 640, height: 300, role: "img", class: "medimg-chart" });
  const { cells, row } = numbersTable();
  const numbers = element(
    "table",
    { class: "medimg-numbers" },
    element("caption", { text: `From ${get("studies")} replayed studies` }),
    element(
      "tbody",
      {},
      row("difference", "Difference of all that is stored"),
      row("interval", "95 % of the studies find between"),
      row("wrong", "Studies in which the worse design leads"),
    ),
  );

  function draw() {
    const table = subtract(tables[get("first")], tables[get("second")]);
    const all = table.flat();
    const truth = all.reduce((sum, value) => sum + value, 0) / all.length;
    const found = replay(table, get("studies"), get("seeds"), get("patients"));
    const sorted = Float64Array.from(found).sort();
    const tail = Math.round(0.025 * sorted.length);
    const [low, high] = [sorted[tail], sorted[sorted.length - 1 - tail]];
    const sign = truth < 0 ? -1 : 1;
    const wrong = found.filter((value) => sign * value < 0).length / found.length;
    const widest = Math.max(Math.abs(sorted[0]), Math.abs(sorted[sorted.length - 1]));
    const reach = [0.02, 0.05, 0.1, 0.2, 0.5, 1].find((limit) => widest <= limit) ?? 1;
    cells.difference.textContent = truth.toFixed(3);
    cells.interval.textContent = `${low.toFixed(3)} and ${high.toFixed(3)}`;
    cells.wrong.textContent = `${(100 * wrong).toFixed(1)} %`;
    drawStudies(plot, found, sign, reach, low, high);
    plot.setAttribute(
      "aria-label",
      `Histogram of the differences that ${found.length} studies find; in ` +
        `${cells.wrong.textContent} of them the worse design leads.`,
    );
  }

  const whole = (text) => (value) => `${value} ${text}`;
  const options = names.map((name) => [name, name]);
  const traits = ["first", "second", "seeds", "patients"];
  const [most, many] = [get("most_seeds"), get("most_patients")];
  const root = viewerRoot(
    model,
    "Study explorer",
    element(
      "div",
      { class: "medimg-row" },
      choice(model, "first", "Design", options, signal),
      choice(model, "second", "compared with", options, signal),
    ),
    element(
      "div",
      { class: "medimg-row" },
      slider(model, "seeds", "Seeds of each design", { min: 1, max: most, step: 1, format: whole("seeds") }, signal),
      slider(model, "patients", "Test set", { min: 5, max: many, step: 5, format: whole("patients") }, signal),
    ),
    plot,
    element(
      "ul",
      { class: "medimg-legend" },
      studyItem(BETTER, false, "the design that is better over all leads"),
      studyItem(WORSE, true, "the worse one leads"),
    ),
    numbers,
  );
  el.replaceChildren(root);
  const redraw = oncePerFrame(draw);
  for (const name of traits) follow(model, `change:${name}`, redraw, signal);
  draw();
  root.dataset.ready = "true";
  return () => ended.abort();
}

/** A line of the legend with a piece of a bar. */
function studyItem(colour, striped, text) {
  const options = { width: 18, height: 18, class: "medimg-sign", "aria-hidden": "true" };
  const swatch = element("canvas", options);
  const context = swatch.getContext("2d");
  context.fillStyle = striped ? stripes(context, colour) : colour;
  context.fillRect(0, 0, 18, 18);
  return element("li", {}, swatch, text);
}

export default { render };
