// Surfaces of a tumour's classes in a translucent brain, to be turned.

const SIZE = 440; // of the canvas
const GREY = [200, 204, 212]; // of the brain
const ENDS = ["LR", "PA", "IS"]; // of the axes, low and high

/** Undo what Python's `_encode` did: corners in mm from `centre`, and triangles. */
function decode(bytes, corners, triangles, low, span, centre) {
  const count = 3 * (corners + triangles);
  const undo = (from, length) => {
    const out = new Uint16Array(length);
    for (let i = 0; i < length; i++) {
      const difference = bytes[from + i] + 256 * bytes[count + from + i];
      out[i] = difference + (i >= 3 ? out[i - 3] : 0); // modulo 65536
    }
    return out;
  };
  const steps = undo(0, 3 * corners);
  const places = Float32Array.from(
    steps,
    (step, i) => low[i % 3] + (step * span) / 65535 - centre[i % 3],
  );
  return { places, triangles: undo(3 * corners, 3 * triangles) };
}

/** A normal for each corner: the mean of those of its triangles, by their areas. */
function normalsOf({ places, triangles }) {
  const normals = new Float32Array(places.length);
  for (let t = 0; t < triangles.length; t += 3) {
    const [a, b, c] = [3 * triangles[t], 3 * triangles[t + 1], 3 * triangles[t + 2]];
    const u = [0, 1, 2].map((k) => places[b + k] - places[a + k]);
    const v = [0, 1, 2].map((k) => places[c + k] - places[a + k]);
    for (let k = 0; k < 3; k++) {
      const [i, j] = [(k + 1) % 3, (k + 2) % 3];
      const normal = u[i] * v[j] - u[j] * v[i];
      for (const corner of [a, b, c]) normals[corner + k] += normal;
    }
  }
  for (let i = 0; i < normals.length; i += 3) {
    const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
    for (let k = 0; k < 3; k++) normals[i + k] /= length;
  }
  return normals;
}

/** Turn a direction or place into the view: to the right, upward, to the viewer. */
function viewFrom(turn, tilt) {
  const [a, b] = [(turn * Math.PI) / 180, (tilt * Math.PI) / 180];
  const [ca, sa, cb, sb] = [Math.cos(a), Math.sin(a), Math.cos(b), Math.sin(b)];
  return (x, y, z) => {
    const near = y * ca + x * sa;
    return [y * sa - x * ca, z * cb - near * sb, near * cb + z * sb];
  };
}

/**
 * Draw one surface: for each pixel how near it is and how much it faces the viewer
 * and the light. Only the nearest point of the surface counts.
 */
function rasterise({ places, triangles, normals }, view, perMm, layer) {
  layer.depth.fill(-Infinity);
  const count = places.length / 3;
  const [xs, ys, zs] = [0, 1, 2].map(() => new Float32Array(count));
  const [facing, light] = [new Float32Array(count), new Float32Array(count)];
  for (let i = 0; i < count; i++) {
    const [x, y, z] = view(places[3 * i], places[3 * i + 1], places[3 * i + 2]);
    xs[i] = SIZE / 2 + x * perMm;
    ys[i] = SIZE / 2 - y * perMm;
    zs[i] = z;
    const [u, v, w] = view(normals[3 * i], normals[3 * i + 1], normals[3 * i + 2]);
    facing[i] = Math.max(0, w);
    light[i] = Math.max(0, -0.35 * u + 0.5 * v + 0.79 * w); // from above, left
  }
  for (let t = 0; t < triangles.length; t += 3) {
    const [a, b, c] = [triangles[t], triangles[t + 1], triangles[t + 2]];
    const area = (xs[b] - xs[a]) * (ys[c] - ys[a]) - (xs[c] - xs[a]) * (ys[b] - ys[a]);
    if (area >= 0) continue; // seen from inside: y runs downward here
    const left = Math.max(0, Math.ceil(Math.min(xs[a], xs[b], xs[c])));
    const right = Math.min(SIZE - 1, Math.floor(Math.max(xs[a], xs[b], xs[c])));
    const top = Math.max(0, Math.ceil(Math.min(ys[a], ys[b], ys[c])));
    const bottom = Math.min(SIZE - 1, Math.floor(Math.max(ys[a], ys[b], ys[c])));
    for (let y = top; y <= bottom; y++) {
      for (let x = left; x <= right; x++) {
        const q = ((x - xs[a]) * (ys[c] - ys[a]) - (xs[c] - xs[a]) * (y - ys[a])) / area;
        const r = ((xs[b] - xs[a]) * (y - ys[a]) - (x - xs[a]) * (ys[b] - ys[a])) / area;
        const p = 1 - q - r;
        if (p < 0 || q < 0 || r < 0) continue;
        const i = y * SIZE + x;
        const depth = p * zs[a] + q * zs[b] + r * zs[c];
        if (depth <= layer.depth[i]) continue;
        layer.depth[i] = depth;
        layer.facing[i] = p * facing[a] + q * facing[b] + r * facing[c];
        layer.light[i] = p * light[a] + q * light[b] + r * light[c];
      }
    }
  }
}

async function render({ model, el }) {
  const get = (name) => model.get(name);
  const [names, counts, low, span] = [get("names"), get("counts"), get("low"), get("span")];
  const data = await inflate(get("mesh_data"));
  const parts = cut(data, counts.map(([corners, triangles]) => 6 * (corners + triangles)));
  const ended = new AbortController();
  const { signal } = ended;
  const brain = names.length; // its place after the classes
  const high = [-Infinity, -Infinity, -Infinity];
  const corner = [0, 0, 0];
  const meshes = parts.map((part, k) => part && decode(part, ...counts[k], low, span, corner));
  for (const mesh of meshes) {
    mesh?.places.forEach((value, i) => (high[i % 3] = Math.max(high[i % 3], value)));
  }
  const half = high.map((value, k) => (value - low[k]) / 2);
  for (const mesh of meshes) {
    if (!mesh) continue;
    mesh.places.forEach((value, i) => (mesh.places[i] = value - low[i % 3] - half[i % 3]));
    mesh.normals = normalsOf(mesh);
  }
  let radius = 0;
  for (const mesh of meshes) {
    for (let i = 0; i < (mesh?.places.length ?? 0); i += 3) {
      radius = Math.max(radius, Math.hypot(...mesh.places.subarray(i, i + 3)));
    }
  }
  const perMm = SIZE / 2 / (radius * 1.1);
  const layers = meshes.map((mesh) =>
    mesh === null
      ? null
      : {
          depth: new Float32Array(SIZE * SIZE),
          facing: new Float32Array(SIZE * SIZE),
          light: new Float32Array(SIZE * SIZE),
        },
  );
  const colours = [...get("colours").map(rgb), GREY];

  const canvas = makeCanvas(SIZE, SIZE);
  const readout = element("p", { class: "medimg-readout", "aria-live": "polite" });

  /** Lay the surfaces over each other, the farthest first. */
  function compose(rgba, used) {
    const order = used.slice();
    const [opacity, glass] = [get("opacity"), get("brain_opacity")];
    const gap = 0.35 + 0.65 * Math.max(0, 2 * opacity - 1) ** 3; // 1 if all is opaque
    for (let i = 0; i < SIZE * SIZE; i++) {
      // Nearly sorted, since the pixel before was: insertion is the fastest here.
      for (let m = 1; m < order.length; m++) {
        const k = order[m];
        const depth = layers[k].depth[i];
        let n = m;
        for (; n > 0 && layers[order[n - 1]].depth[i] > depth; n--) order[n] = order[n - 1];
        order[n] = k;
      }
      let [red, green, blue] = [0, 0, 0];
      for (const k of order) {
        const layer = layers[k];
        if (layer.depth[i] === -Infinity) continue;
        const shade = 0.35 + 0.7 * layer.light[i];
        let [alpha, cover] = [opacity, 1];
        if (k === brain) {
          // Glass: clear where it faces the viewer, bright at its rim; it shines more
          // than it covers.
          alpha = Math.min(1, glass * (0.7 + 3 * (1 - layer.facing[i]) ** 2));
          cover = alpha;
        } else if (!inPattern(k, i % SIZE, Math.floor(i / SIZE))) {
          alpha *= gap; // what lies inside shows through the gaps of the pattern
        }
        red += alpha * (shade * colours[k][0] - cover * red);
        green += alpha * (shade * colours[k][1] - cover * green);
        blue += alpha * (shade * colours[k][2] - cover * blue);
      }
      rgba[4 * i] = red;
      rgba[4 * i + 1] = green;
      rgba[4 * i + 2] = blue;
      rgba[4 * i + 3] = 255;
    }
  }

  function draw() {
    const view = viewFrom(get("turn"), get("tilt"));
    const used = meshes.map((_, k) => k).filter((k) => meshes[k] && get("shown")[k]);
    for (const k of used) rasterise(meshes[k], view, perMm, layers[k]);
    paintLayer(canvas, (rgba) => compose(rgba, used));
    drawLetters(canvas.getContext("2d"), view);
    readout.textContent = describe();
  }

  /** Letters at the ends of the axes; those behind are dim. */
  function drawLetters(context, view) {
    context.font = "600 17px sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let axis = 0; axis < 3; axis++) {
      [-1, 1].forEach((side, end) => {
        const place = [0, 0, 0];
        place[axis] = side * (half[axis] + 0.06 * radius);
        const [x, y, z] = view(...place);
        context.globalAlpha = z < 0 ? 0.5 : 1;
        writeTwice(
          context,
          ENDS[axis][end],
          clamp(SIZE / 2 + x * perMm, 10, SIZE - 10),
          clamp(SIZE / 2 - y * perMm, 12, SIZE - 12),
        );
      });
    }
    context.globalAlpha = 1;
  }

  function describe() {
    const [turn, tilt] = [get("turn"), get("tilt")];
    const sides = ["the front", "the right", "the back", "the left"];
    const side = sides[((Math.round(turn / 90) % 4) + 4) % 4];
    if (Math.abs(tilt) > 60) return `Seen from ${tilt > 0 ? "above" : "below"}.`;
    const height = Math.abs(tilt) < 10 ? "" : tilt > 0 ? ", from above" : ", from below";
    return `Seen from ${side} of the patient${height}.`;
  }

  function turnTo(turn, tilt) {
    model.set("turn", ((((turn + 180) % 360) + 360) % 360) - 180);
    model.set("tilt", clamp(tilt, -90, 90));
    model.save_changes();
  }

  let last = [0, 0];
  explore(canvas, {
    press: (u, v) => (last = [u, v]),
    point: (u, v) => {
      turnTo(get("turn") + 200 * (u - last[0]), get("tilt") + 200 * (v - last[1]));
      last = [u, v];
    },
    move: (dx, dy) => turnTo(get("turn") + 5 * dx, get("tilt") + 5 * dy),
  });
  canvas.setAttribute("aria-roledescription", "surfaces that can be turned");
  canvas.setAttribute("aria-label", `${get("alt")} Arrow keys turn and tilt them.`);

  const degrees = (value) => `${Math.round(value)}°`;
  const angles = [
    slider(model, "turn", "Turn", { min: -180, max: 179, step: 1, format: degrees }, signal),
    slider(model, "tilt", "Tilt", { min: -90, max: 90, step: 1, format: degrees }, signal),
  ];
  const views = [
    ["Front", "From the front", 0, 0],
    ["Right", "From the patient's right", 90, 0],
    ["Left", "From the patient's left", -90, 0],
    ["Top", "From above", 0, 90],
  ].map(([text, name, turn, tilt]) => button(text, name, () => turnTo(turn, tilt)));
  const boxes = [];
  const legend = element("ul", { class: "medimg-legend" });
  names.forEach((name, k) => {
    const volume = get("class_volumes")[k];
    const text = meshes[k] ? `${name}: ${volume.toFixed(1)} cm³` : `${name}: none`;
    legend.append(labelItem(get("colours")[k], k, text));
    if (meshes[k]) boxes.push(checkbox(model, "shown", `Show: ${name}`, signal, k));
  });
  const opacities = [slider(model, "opacity", "Opacity of the classes", PERCENT, signal)];
  if (meshes[brain]) {
    boxes.push(checkbox(model, "shown", "Show: brain", signal, brain));
    opacities.push(slider(model, "brain_opacity", "Opacity of the brain", PERCENT, signal));
  }
  const help = "Drag the picture, or use the arrow keys in it, to turn and tilt.";
  const root = viewerRoot(
    model,
    "Surfaces",
    element(
      "div",
      { class: "medimg-panes" },
      element("div", { class: "medimg-picture medimg-turn" }, canvas, readout, hint(help)),
      element(
        "div",
        { class: "medimg-side" },
        ...angles,
        element(
          "div",
          { class: "medimg-buttons", role: "group", "aria-label": "Views" },
          ...views,
        ),
        legend,
        ...boxes,
        ...opacities,
      ),
    ),
  );
  el.replaceChildren(root);

  const redraw = oncePerFrame(draw);
  for (const name of ["turn", "tilt", "shown", "opacity", "brain_opacity"]) {
    follow(model, `change:${name}`, redraw, signal);
  }
  draw();
  root.dataset.ready = "true";
  return () => ended.abort();
}

export default { render };
