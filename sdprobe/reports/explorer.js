"use strict";
// Token explorer: similarity of one token to all tokens of two images, in every layer at once.
// Names of files, layers and mitigations come from others. They are written with textContent only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const NEAR = 0.05; // of the side: a keypoint so close to the token is joined with its match
  const LEAST = 1 / 26, ROUND = 1 / 11; // of the width: smallest box of a token, and the circle of the nearest one
  const SHOW = {
    cosine: ["cosine similarity", ""], dot: ["dot product", "squared units of the activation"],
    distance: ["distance", "units of the activation"], relative: ["relative norm", "norm ÷ mean norm of its image"],
    norm: ["norm", "units of the activation"], colours: ["principal components", "first three, as red, green and blue"],
  };

  // ------------------------------------------------------------------ stored tokens

  const distinct = (values) => [...new Set(values)];
  const layers = distinct(data.grids.map((grid) => grid.layer));
  const labels = distinct(data.grids.map((grid) => grid.label));
  const levels = distinct(data.grids.map((grid) => grid.level));
  const networks = distinct(data.grids.map((grid) => grid.weights));
  const key = (layer, weights, level, label) => JSON.stringify([layer, weights, level, label]);
  data.grids.forEach((grid, number) => { grid.number = number; });
  const byKey = new Map(data.grids.map((grid) => [key(grid.layer, grid.weights, grid.level, grid.label), grid]));

  function bytes(text) {
    const binary = atob(text), found = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) found[i] = binary.charCodeAt(i);
    return found;
  }

  function part(grid, name) {
    const kind = name === "codes" ? (grid.bits === 8 ? Int8Array : Int16Array)
      : name === "high_norm" || name === "colours" ? Uint8Array : Float32Array;
    if (typeof grid[name] === "string") {
      const raw = bytes(grid[name]);
      grid[name] = new kind(raw.buffer, 0, raw.byteLength / kind.BYTES_PER_ELEMENT);
    }
    return grid[name];
  }

  // Tokens of an image as floats, raw or without the mean token of the image, with their norms.
  function tokens(grid, image, centred) {
    const place = `${image}${centred}`;
    grid.tokens ??= {};
    if (!grid.tokens[place]) {
      const [, h, w, k] = grid.shape, count = h * w;
      const codes = part(grid, "codes"), scale = part(grid, "scale"), mean = part(grid, "mean");
      const values = new Float32Array(count * k), norms = new Float32Array(count), centre = new Float64Array(k);
      for (let t = 0; t < count; t++) {
        const s = scale[image * count + t], from = (image * count + t) * k;
        for (let i = 0; i < k; i++) {
          const value = s * codes[from + i];
          values[t * k + i] = centred ? value : value + mean[image * k + i];
          centre[i] += values[t * k + i] / count;
        }
      }
      for (let t = 0; t < count; t++) {
        let sum = 0;
        for (let i = 0; i < k; i++) {
          if (centred) values[t * k + i] -= centre[i];
          sum += values[t * k + i] ** 2;
        }
        norms[t] = Math.sqrt(sum);
      }
      grid.tokens[place] = { values, norms, count, k };
    }
    return grid.tokens[place];
  }

  // Norms of the activations of an image, their mean, and robust z-scores of their logarithms.
  function normsOf(grid, image) {
    grid.norms ??= {};
    if (!grid.norms[image]) {
      const count = grid.shape[1] * grid.shape[2];
      const values = part(grid, "norm").subarray(image * count, (image + 1) * count);
      const logs = Float64Array.from(values, (value) => Math.log(Math.max(value, 1.1754943508222875e-38)));
      const middle = median(logs);
      const spread = 1.4826 * median(logs.map((value) => Math.abs(value - middle)));
      const z = logs.map((value) => (spread > 0 ? (value - middle) / spread : 0));
      grid.norms[image] = { values, z, mean: values.reduce((sum, value) => sum + value, 0) / count };
    }
    return grid.norms[image];
  }

  // The lower median, as in torch.
  function median(values) {
    const sorted = Float64Array.from(values).sort();
    return sorted[(sorted.length - 1) >> 1];
  }

  function isHigh(grid, image, token) {
    return part(grid, "high_norm")[image * grid.shape[1] * grid.shape[2] + token] > 0;
  }

  // Similarity of one token to all tokens of an image. Every frame spends most of its time here, so loops have no branches.
  function compared(query, index, other, kind, out) {
    const { k } = query, { values, norms } = other, own = query.norms[index];
    const token = Float64Array.from(query.values.subarray(index * k, (index + 1) * k));
    if (kind === "distance") return distances(token, values, k, out);
    dots(token, values, k, out);
    if (kind === "cosine") for (let t = 0; t < out.length; t++) out[t] = own * norms[t] > 1e-24 ? out[t] / (own * norms[t]) : 0;
    return out;
  }

  function dots(token, values, k, out) {
    const most = k - (k % 4);
    for (let t = 0, j = 0; t < out.length; t++) {
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0, i = 0;
      for (; i < most; i += 4, j += 4) {
        s0 += token[i] * values[j];
        s1 += token[i + 1] * values[j + 1];
        s2 += token[i + 2] * values[j + 2];
        s3 += token[i + 3] * values[j + 3];
      }
      for (; i < k; i++, j++) s0 += token[i] * values[j];
      out[t] = s0 + s1 + s2 + s3;
    }
  }

  function distances(token, values, k, out) {
    for (let t = 0, j = 0; t < out.length; t++) {
      let sum = 0;
      for (let i = 0; i < k; i++, j++) { const d = token[i] - values[j]; sum += d * d; }
      out[t] = Math.sqrt(sum);
    }
    return out;
  }

  // ------------------------------------------------------------------ state

  const state = {
    image: 0, second: data.images.length > 1 ? 1 : 0, layer: layers[Math.floor(layers.length / 2)], u: 0.4, v: 0.4, show: "cosine",
    centred: true, label: labels[0], weights: networks[0], level: levels[0], spread: false, corner: false, border: false,
    high_norm: false, keypoints: data.keypoints.length > 0, held: false, pointer: null, // pointer: {side, u, v}
  };

  const gridOf = (layer) => byKey.get(key(layer, state.weights, state.level, state.label));
  // An image of the grid, by the side of the page that shows it.
  const imageOf = (side) => (side === "a" ? state.image : state.second);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function tokenAt(grid, u, v) {
    const [, h, w] = grid.shape;
    const row = clamp(Math.floor(v * h), 0, h - 1), col = clamp(Math.floor(u * w), 0, w - 1);
    return { row, col, index: row * w + col };
  }

  function group(grid, row, col) {
    const [, h, w] = grid.shape;
    const edges = (row === 0 || row === h - 1) + (col === 0 || col === w - 1);
    return ["interior", "border", "corner"][edges];
  }

  const vectors = () => ["cosine", "dot", "distance"].includes(state.show);
  const pointed = () => state.pointer ?? { side: "a", u: state.u, v: state.v };

  // ------------------------------------------------------------------ controls

  const controls = $("controls");
  const inputs = {};
  function choice(name, text, options, hidden = options.length < 2) {
    if (hidden) return;
    const label = document.createElement("label"), select = document.createElement("select");
    label.append(text);
    select.id = `choose-${name}`;
    for (const [value, shown] of options) {
      const option = document.createElement("option");
      option.value = JSON.stringify(value);
      option.textContent = shown;
      select.append(option);
    }
    select.addEventListener("change", () => { state[name] = JSON.parse(select.value); changed(name); });
    label.append(select);
    controls.append(label);
    inputs[name] = select;
  }
  function check(parent, name, text) {
    const label = document.createElement("label"), box = document.createElement("input");
    label.className = "check";
    box.type = "checkbox";
    box.id = `check-${name}`;
    box.addEventListener("change", () => { state[name] = box.checked; changed(name); });
    label.append(box, text);
    parent.append(label);
    inputs[name] = box;
  }
  const pictures = data.images.map((image, number) => [number, `${number + 1}: ${image.name}`]);
  choice("image", "First picture", pictures);
  choice("second", "Second picture", pictures);
  choice("show", "Show", Object.entries(SHOW).map(([name, [text]]) => [name, text]));
  choice("centred", "Tokens", [[true, "centred"], [false, "raw"]]);
  choice("label", "Mitigation", labels.map((label) => [label, label || "none"]));
  choice("weights", "Weights", networks.map((name) => [name, name]));
  choice("level", "Noise level", levels.map((level) => [level, `timestep ${level}`]));
  choice("spread", "Colours", [[false, "−1 to 1"], [true, "range of each layer"]]);
  const outlines = document.createElement("fieldset"), outlined = document.createElement("legend");
  outlined.textContent = "Outlines";
  outlines.append(outlined);
  controls.append(outlines);
  check(outlines, "corner", "corners");
  check(outlines, "border", "border");
  check(outlines, "high_norm", "high norm");
  if (data.keypoints.length) check(outlines, "keypoints", "keypoints");
  controls.addEventListener("submit", (event) => event.preventDefault());

  function showControls() {
    for (const [name, input] of Object.entries(inputs)) {
      if (input.type === "checkbox") input.checked = state[name];
      else input.value = JSON.stringify(state[name]);
    }
    if (inputs.centred) inputs.centred.disabled = !vectors();
    if (inputs.spread) inputs.spread.disabled = state.show !== "cosine";
    for (const option of inputs.label?.options ?? []) {
      const label = JSON.parse(option.value);
      option.disabled = !data.grids.some((grid) => grid.label === label && grid.weights === state.weights && grid.level === state.level);
    }
    for (const option of inputs.weights?.options ?? []) {
      option.disabled = !data.grids.some((grid) => grid.weights === JSON.parse(option.value) && grid.level === state.level);
    }
  }

  // ------------------------------------------------------------------ cards

  const lut = packed(bytes(data.colours));
  const [, tall, wide] = data.grids[0].shape; // all grids of a page have these proportions, and so have its pictures
  document.documentElement.style.setProperty("--shape", `${wide} / ${tall}`);

  // Red, green, blue → one number per pixel, as ImageData stores it.
  function packed(colours) {
    const pixels = new Uint8ClampedArray(colours.length / 3 * 4).fill(255);
    for (let i = 0; i < colours.length / 3; i++) pixels.set(colours.subarray(3 * i, 3 * i + 3), 4 * i);
    return new Uint32Array(pixels.buffer);
  }

  // A map or a picture: a canvas with a pixel per token, which the browser scales; outlines and keypoints, which seldom change;
  // and marks that move. A frame draws nothing larger than the grid of a layer.
  function panel(box, side, layer) {
    const made = { box, side, layer, marks: {}, size: 16 };
    for (const part of ["tokens", "outlines"]) {
      made[part] = document.createElement("canvas");
      made[part].className = part;
      made[part].setAttribute("aria-hidden", "true");
      box.append(made[part]);
    }
    made.context = made.tokens.getContext("2d", { alpha: false });
    made.outlines.hidden = true;
    for (const kind of ["token", "nearest", "pointer"]) {
      made.marks[kind] = document.createElement("i");
      made.marks[kind].className = kind;
      made.marks[kind].hidden = true;
      box.append(made.marks[kind]);
    }
    box.classList.add("map");
    box.setAttribute("role", "img");
    follow(box, side, layer);
    return made;
  }

  const cards = new Map();
  for (const layer of layers) {
    const section = document.createElement("section"), header = document.createElement("header");
    const name = document.createElement("h2"), size = document.createElement("span");
    const maps = document.createElement("div"), foot = document.createElement("div");
    section.className = "layer";
    section.dataset.layer = layer;
    section.tabIndex = 0;
    section.setAttribute("role", "group");
    maps.className = "maps";
    foot.className = "foot";
    name.textContent = layer;
    if (data.published[layer]) name.title = data.published[layer];
    header.append(name, size);
    const range = document.createElement("span"), value = document.createElement("b");
    foot.append(range, value);
    const panels = ["a", "b"].map((side) => {
      const box = document.createElement("div");
      maps.append(box);
      return panel(box, side, layer);
    });
    section.append(header, maps, foot);
    section.addEventListener("focus", () => { if (state.layer !== layer) { state.layer = layer; draw(); } });
    $("layers").append(section);
    cards.set(layer, { layer, section, size, range, value, panels, results: {}, seen: false });
  }
  const photos = ["a", "b"].map((side) => panel($(`photo-${side}`), side, null));
  const panels = [...photos, ...[...cards.values()].flatMap((card) => card.panels)];
  // Layers out of view are computed when they come into view.
  const views = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) cards.get(target.dataset.layer).seen = isIntersecting;
    draw();
  }, { rootMargin: "200px" });
  for (const { section } of cards.values()) views.observe(section);

  function follow(canvas, side, layer) {
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return { u: clamp((event.clientX - box.left) / box.width, 0, 1), v: clamp((event.clientY - box.top) / box.height, 0, 1) };
    };
    const move = (event) => {
      const point = at(event);
      if (layer !== null) state.layer = layer;
      if (side === "a" && !state.held) Object.assign(state, point, { pointer: null });
      else state.pointer = { side, ...point };
      draw();
    };
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("pointerdown", move);
    canvas.addEventListener("click", (event) => {
      if (side !== "a") return;
      const point = at(event), grid = gridOf(state.layer);
      const again = grid && tokenAt(grid, point.u, point.v).index === tokenAt(grid, state.u, state.v).index;
      hold(!(state.held && again), point);
    });
    canvas.addEventListener("pointerleave", () => { if (!state.held) { state.pointer = null; draw(); } });
  }

  function hold(held, point) {
    state.held = held;
    if (point) Object.assign(state, point);
    state.pointer = null;
    draw();
  }

  // Outlines have the pixels of the screen. Their sizes are read when the page changes its size: reading them in every frame would
  // lay the page out anew for each layer.
  const density = () => Math.min(2, window.devicePixelRatio || 1);
  function measure() {
    const sides = panels.map(({ box }) => Math.max(16, Math.round(box.clientWidth * density())));
    panels.forEach((each, place) => { each.size = sides[place]; });
    draw();
  }

  // Texts and names that stay as they are cost nothing.
  const written = new Map();
  function write(element, text) {
    if (written.get(element) === text) return;
    written.set(element, text);
    element.textContent = text;
  }
  function name(element, text) {
    if (element.named === text) return;
    element.named = text;
    element.setAttribute("aria-label", text);
  }

  // ------------------------------------------------------------------ drawing

  let asked = false;
  function draw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; render(); });
  }

  // Not every combination is stored. What was chosen last stays, and of the rest as much as possible.
  function settle(last) {
    if (layers.some(gridOf)) { if (!gridOf(state.layer)) state.layer = layers.find(gridOf); return; }
    const fit = (grid) => ["label", "weights", "level"].reduce(
      (sum, name, place) => sum + (grid[name] === state[name]) * (name === last ? 8 : 2 ** place), 0);
    const { layer, label, weights, level } = data.grids.reduce((best, grid) => (fit(grid) > fit(best) ? grid : best));
    Object.assign(state, { label, weights, level });
    if (!gridOf(state.layer)) state.layer = layer;
  }

  function changed(last) { // a control
    settle(last);
    matches.clear();
    showControls();
    draw();
  }

  function render() {
    for (const card of cards.values()) renderCard(card);
    renderPhotos();
    renderNumbers();
    renderLegend();
    $("hold").setAttribute("aria-pressed", String(state.held));
    write($("hold"), state.held ? "Release token" : "Hold token");
    remember();
  }

  // What a layer shows of one side: a value per token; none for principal components.
  function valuesOf(grid, side, card) {
    const image = imageOf(side), count = grid.shape[1] * grid.shape[2];
    if (state.show === "colours") return null;
    if (state.show === "norm") return normsOf(grid, image).values;
    const out = card.results[side]?.length === count ? card.results[side] : (card.results[side] = new Float32Array(count));
    if (state.show === "relative") {
      const { values, mean } = normsOf(grid, image);
      for (let t = 0; t < count; t++) out[t] = values[t] / mean;
      return out;
    }
    const query = tokens(grid, state.image, state.centred);
    return compared(query, tokenAt(grid, state.u, state.v).index, tokens(grid, image, state.centred), state.show, out);
  }

  function rangeOf(values) {
    let low = Infinity, high = -Infinity;
    for (const list of values) for (let t = 0; t < list.length; t++) {
      if (list[t] < low) low = list[t];
      if (list[t] > high) high = list[t];
    }
    return [low, high];
  }

  // Values, range and nearest token of a layer. They are computed anew only if another token or picture is compared.
  function update(card, grid) {
    const { index } = tokenAt(grid, state.u, state.v);
    const of = [grid.number, state.image, state.second, state.show, state.centred, vectors() ? index : ""].join();
    if (card.of === of) return;
    const values = { a: valuesOf(grid, "a", card), b: valuesOf(grid, "b", card) };
    const found = values.a ? rangeOf([values.a, values.b]) : null;
    Object.assign(card, { of, values, found, best: vectors() ? nearest(values.b, grid.shape[2]) : null });
  }

  function updated(layer) {
    const card = cards.get(layer), grid = gridOf(layer);
    if (grid) update(card, grid);
    return card;
  }

  function renderCard(card) {
    const { layer } = card, grid = gridOf(layer), active = layer === state.layer;
    if (card.section.hidden === Boolean(grid)) card.section.hidden = !grid;
    if (card.active !== active) card.section.classList.toggle("active", card.active = active);
    if (!grid || !(card.seen || active)) return;
    const [, h, w] = grid.shape;
    update(card, grid);
    const { values, found } = card;
    write(card.size, `${h} × ${w} tokens`);
    name(card.section, `Layer ${layer}, ${h} × ${w} tokens. Arrow keys move the token.`);
    if (card.painted !== `${card.of},${state.spread}`) {
      const [low, high] = state.show === "cosine" && !state.spread ? [-1, 1] : found ?? [0, 1];
      for (const each of card.panels) paint(each, grid, values[each.side], low, high);
      card.painted = `${card.of},${state.spread}`;
    }
    const right = state.keypoints ? matchesOf(grid) : [];
    for (const each of card.panels) {
      outline(each, grid);
      mark(each, grid, card);
      name(each.box, `${SHOW[state.show][0]} in ${layer}, ${each.side === "a" ? "first" : "second"} picture`);
    }
    write(card.range, found ? `${number(found[0])} to ${number(found[1])}` : "");
    const point = pointed();
    let text = values.a ? number(values.a[tokenAt(grid, state.u, state.v).index]) : "";
    if (state.pointer && values.a) text = `pointer ${number(values[point.side][tokenAt(grid, point.u, point.v).index])}`;
    else if (right.length) text = `✓ ${right.filter((match) => match.right).length} of ${right.length}`;
    else if (card.best) text = `nearest ${number(values.b[card.best.index])}`;
    write(card.value, text);
  }

  // A pixel per token: values as colours, or principal components if there are none.
  function paint(each, grid, values, low, high) {
    const [, h, w] = grid.shape, count = h * w, { tokens: canvas, context } = each;
    if (!each.pixels || canvas.width !== w || canvas.height !== h) {
      canvas.width = w;
      canvas.height = h;
      each.pixels = context.createImageData(w, h);
    }
    const pixels = new Uint32Array(each.pixels.data.buffer), span = high > low ? 255 / (high - low) : 0;
    if (values) for (let t = 0; t < count; t++) pixels[t] = lut[clamp((values[t] - low) * span + 0.5, 0, 255) | 0];
    else pixels.set((grid.packed ??= packed(part(grid, "colours"))).subarray(imageOf(each.side) * count, (imageOf(each.side) + 1) * count));
    context.putImageData(each.pixels, 0, 0);
  }

  // A line that can be seen on any colour: white with a dark rim.
  function rimmed(context, ratio, width, trace, colour = "#fff") {
    for (const [style, extra] of [["rgba(0,0,0,.75)", 2], [colour, 0]]) {
      context.strokeStyle = style;
      context.lineWidth = (width + extra) * ratio;
      context.beginPath();
      trace();
      context.stroke();
    }
  }

  // Outlines of groups of tokens, and keypoints, on one panel of a layer or on a picture.
  function outline(each, grid) {
    const shown = state.border || state.corner || state.high_norm || (state.keypoints && (each.side === "b" || !each.layer));
    if (each.outlines.hidden === Boolean(shown)) each.outlines.hidden = !shown;
    if (!shown) return;
    const close = state.keypoints ? among().map(({ points: [x, y] }) => +(Math.hypot(x - state.u, y - state.v) < NEAR)).join("") : "";
    const of = [
      grid.number, state.image, state.second, state.centred, state.border, state.corner, state.high_norm, state.keypoints, close, each.size,
    ].join();
    if (each.outlined === of) return;
    each.outlined = of;
    const width = each.size, height = Math.round(width * tall / wide), context = each.outlines.getContext("2d");
    each.outlines.width = width; // also clears it
    each.outlines.height = height;
    drawOutlines(context, each, grid, width, height, density());
  }

  function drawOutlines(context, { side, layer }, grid, width, height, ratio) {
    const [, h, w] = grid.shape, image = imageOf(side);
    for (const name of ["border", "corner", "high_norm"]) {
      if (!state[name]) continue;
      rimmed(context, ratio, 1, () => {
        const inside = (row, col) => row >= 0 && row < h && col >= 0 && col < w
          && (name === "high_norm" ? isHigh(grid, image, row * w + col) : group(grid, row, col) === name);
        const line = (...ends) => ends.forEach(([row, col], end) => {
          const x = clamp(col * width / w, ratio, width - ratio), y = clamp(row * height / h, ratio, height - ratio);
          if (end) context.lineTo(x, y);
          else context.moveTo(x, y);
        });
        for (let row = 0; row < h; row++) for (let col = 0; col < w; col++) if (inside(row, col)) {
          if (!inside(row - 1, col)) line([row, col], [row, col + 1]);
          if (!inside(row + 1, col)) line([row + 1, col], [row + 1, col + 1]);
          if (!inside(row, col - 1)) line([row, col], [row + 1, col]);
          if (!inside(row, col + 1)) line([row, col + 1], [row + 1, col + 1]);
        }
      });
    }
    if (side === "b" && state.keypoints) marks(context, matchesOf(grid), width, height, ratio);
    if (layer === null && state.keypoints) for (const { points } of among()) {
      const [x, y] = side === "a" ? points : points.slice(2);
      rimmed(context, ratio, 1, () => context.arc(x * width, y * height, width / 60, 0, 7));
    }
  }

  // Where the marks of a panel are, as fractions of its sides: centre and size.
  function marksOf(side, grid, card) {
    const [, h, w] = grid.shape, shape = wide / tall;
    const at = ({ row, col }, width, height) => ({ x: (col + 0.5) / w, y: (row + 0.5) / h, width, height });
    const box = ({ u, v }) => at(tokenAt(grid, u, v), Math.max(1 / w, LEAST), Math.max(1 / h, LEAST * shape));
    return {
      token: side === "a" ? box(state) : null,
      nearest: side === "b" && card.best ? at(card.best, ROUND, ROUND * shape) : null,
      pointer: state.pointer?.side === side ? box(state.pointer) : null,
    };
  }

  function mark(each, grid, card) {
    for (const [kind, found] of Object.entries(marksOf(each.side, grid, card))) {
      const element = each.marks[kind];
      if (element.hidden === Boolean(found)) element.hidden = !found;
      if (!found) continue;
      const { x, y, width, height } = found, size = `${width},${height}`, move = `translate(${100 * (x / width - 0.5)}%, ${100 * (y / height - 0.5)}%)`;
      if (element.size !== size) {
        element.size = size;
        element.style.width = `${100 * width}%`;
        element.style.height = `${100 * height}%`;
      }
      if (element.move !== move) element.style.transform = element.move = move;
    }
  }

  function nearest(values, w) {
    const sign = state.show === "distance" ? -1 : 1;
    let best = 0;
    for (let t = 1; t < values.length; t++) if (sign * values[t] > sign * values[best]) best = t;
    return { index: best, row: Math.floor(best / w), col: best % w };
  }

  // ------------------------------------------------------------------ keypoints

  const among = () => data.keypoints.filter(({ pair }) => pair[0] === state.image && pair[1] === state.second);
  const matches = new Map();
  // The token of the second picture that is nearest to each keypoint of the first by cosine, and whether it is right.
  function matchesOf(grid) {
    const place = JSON.stringify([grid.layer, grid.weights, grid.level, grid.label, state.image, state.second, state.centred]);
    if (!matches.has(place)) {
      const [, h, w] = grid.shape, out = new Float32Array(h * w);
      const from = tokens(grid, state.image, state.centred), to = tokens(grid, state.second, state.centred);
      matches.set(place, among().map(({ points: [x, y, tx, ty], reach }) => {
        compared(from, tokenAt(grid, x, y).index, to, "cosine", out);
        let best = 0;
        for (let t = 1; t < out.length; t++) if (out[t] > out[best]) best = t;
        const fx = (best % w + 0.5) / w, fy = (Math.floor(best / w) + 0.5) / h;
        const near = () => Math.hypot(x - state.u, y - state.v) < NEAR;
        return { x: fx, y: fy, tx, ty, near, right: ((fx - tx) / reach[0]) ** 2 + ((fy - ty) / reach[1]) ** 2 <= 1 };
      }));
    }
    return matches.get(place);
  }

  function marks(context, found, width, height, ratio) {
    const r = width / 40;
    for (const match of found) {
      const { right, near } = match, [x, tx] = [match.x * width, match.tx * width], [y, ty] = [match.y * height, match.ty * height];
      if (near()) {
        rimmed(context, ratio, 1, () => { context.moveTo(x, y); context.lineTo(tx, ty); });
        rimmed(context, ratio, 1, () => context.arc(tx, ty, r / 2, 0, 7));
      }
      if (right) rimmed(context, ratio, 1.5, () => {
        context.moveTo(x - r, y);
        context.lineTo(x - r / 4, y + r);
        context.lineTo(x + 1.3 * r, y - r);
      });
      else {
        rimmed(context, ratio, 1.5, () => {
          context.moveTo(x - r, y - r);
          context.lineTo(x + r, y + r);
          context.moveTo(x - r, y + r);
          context.lineTo(x + r, y - r);
        }, "#ff9a62");
      }
    }
  }

  // ------------------------------------------------------------------ pictures, numbers, legend

  const photographs = data.images.map(({ picture }) => {
    if (!picture) return null;
    const image = new Image();
    image.src = picture;
    image.decode().then(draw, () => {});
    return image;
  });

  function renderPhotos() {
    const grid = gridOf(state.layer) ?? gridOf(layers[0]), card = grid && updated(grid.layer);
    for (const each of photos) {
      const image = imageOf(each.side), picture = photographs[image], { tokens: canvas, context } = each;
      const of = picture ? `picture ${image}, ${picture.complete}` : `${grid?.number}, ${image}`;
      if (each.painted !== of) {
        each.painted = of;
        canvas.classList.toggle("smooth", Boolean(picture));
        if (picture?.complete) {
          Object.assign(canvas, { width: picture.naturalWidth || 1, height: picture.naturalHeight || 1 });
          each.pixels = null;
          context.drawImage(picture, 0, 0);
        } else if (grid && !picture) paint(each, grid, null, 0, 1);
      }
      name(each.box, `${each.side === "a" ? "First" : "Second"} picture: ${data.images[image].name}`);
      write($(`name-${each.side}`), data.images[image].name);
      $(`name-${each.side}`).title = data.images[image].name;
      if (!grid) continue;
      outline(each, grid);
      mark(each, grid, card);
    }
  }

  function number(value) {
    if (value === undefined || value === null || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    const text = size >= 1000 || (size > 0 && size < 0.0005) ? value.toPrecision(3) : size >= 100 ? value.toFixed(1) : value.toFixed(3);
    return text.replace("-", "−");
  }

  // Row, column, group, norm, z and shown value of a token.
  function facts(grid, side, token, value) {
    const { values, z } = normsOf(grid, imageOf(side));
    const high = isHigh(grid, imageOf(side), token.index);
    return [
      side === "a" ? "first" : "second", token.row, token.col, group(grid, token.row, token.col) + (high ? ", high norm" : ""),
      number(values[token.index]), number(z[token.index]), ...(valued() ? [number(value)] : []),
    ];
  }

  function columns(grid) {
    const { values, best } = updated(grid.layer), point = pointed();
    const query = tokenAt(grid, state.u, state.v), there = tokenAt(grid, point.u, point.v);
    const found = { token: facts(grid, "a", query, values.a?.[query.index]) };
    if (state.pointer) found.pointer = facts(grid, point.side, there, values[point.side]?.[there.index]);
    if (best) found.nearest = facts(grid, "b", best, values.b[best.index]);
    return found;
  }

  const valued = () => !["norm", "colours"].includes(state.show); // a value that is in no other row
  const rowNames = () => ["picture", "row", "column", "group", "norm", "z of the norm", ...(valued() ? [SHOW[state.show][0]] : [])];

  function renderNumbers() {
    const grid = gridOf(state.layer), table = $("numbers");
    if (!grid) return;
    const close = state.keypoints && among().find(({ points: [x, y] }) => Math.hypot(x - state.u, y - state.v) < NEAR);
    write(table.caption, close ? `${state.layer}, keypoint ${close.part}` : state.layer);
    const found = columns(grid), head = ["", ...Object.keys(found)];
    fill(table.tHead, [head], head.length);
    fill(table.tBodies[0], rowNames().map((text, place) => [text, ...Object.values(found).map((column) => column[place])]), head.length);
  }

  // Write texts into the cells of a table, which are made anew only if their number changes.
  function fill(part, rows, count) {
    if (part.rows.length !== rows.length || part.rows[0].cells.length !== count) {
      part.replaceChildren(...rows.map(() => {
        const line = document.createElement("tr");
        for (let place = 0; place < count; place++) {
          const heading = part.tagName === "THEAD" ? place > 0 : place === 0, cell = document.createElement(heading ? "th" : "td");
          if (heading) cell.scope = place ? "col" : "row";
          line.append(cell);
        }
        return line;
      }));
    }
    rows.forEach((texts, row) => texts.forEach((text, place) => write(part.rows[row].cells[place], String(text))));
  }

  function renderLegend() {
    const [text, unit] = SHOW[state.show], bar = $("legend"), context = bar.getContext("2d");
    const colours = state.show === "colours", common = state.show === "cosine" && !state.spread;
    bar.hidden = colours;
    if (!bar.filled) {
      const pixels = context.createImageData(256, 1);
      for (let i = 0; i < 256; i++) new Uint32Array(pixels.data.buffer)[i] = lut[i];
      context.putImageData(pixels, 0, 0);
      bar.filled = true;
    }
    write($("low"), colours ? "" : common ? "−1" : "lowest of the layer");
    write($("high"), colours ? "" : common ? "1" : "highest");
    const of = !vectors() ? "" : state.centred ? " of centred tokens" : " of raw tokens";
    write($("unit"), `${text}${of}${unit ? ` (${unit})` : ""}`);
    const place = ["cosine", "dot", "distance"].indexOf(state.show), kept = layers.map(gridOf).filter(Boolean);
    const errors = kept.map((grid) => grid.error[place] ?? NaN);
    write($("off"), place < 0 ? "" : `Values in these maps are at most ${atMost(Math.max(...errors))} off.`);
    $("matched").hidden = !(state.keypoints && among().length);
  }

  // ------------------------------------------------------------------ keyboard, address, buttons

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const grid = gridOf(state.layer);
    if (step && grid) {
      event.preventDefault();
      const [, h, w] = grid.shape;
      if (event.shiftKey || event.target.id === "photo-b") {
        const side = event.target.id === "photo-b" ? "b" : pointed().side, point = state.pointer?.side === side ? state.pointer : state;
        const { row, col } = tokenAt(grid, point.u, point.v);
        state.held = true;
        state.pointer = { side, u: (clamp(col + step[0], 0, w - 1) + 0.5) / w, v: (clamp(row + step[1], 0, h - 1) + 0.5) / h };
      } else {
        const { row, col } = tokenAt(grid, state.u, state.v);
        Object.assign(state, {
          u: (clamp(col + step[0], 0, w - 1) + 0.5) / w, v: (clamp(row + step[1], 0, h - 1) + 0.5) / h, pointer: null,
        });
      }
      draw();
      speak();
    } else if (event.key === "Enter" && !/^(BUTTON|SUMMARY|A)$/.test(event.target.tagName)) hold(!state.held);
    else if (event.key === "Escape") hold(false);
  });

  let speaking = 0;
  function speak() {
    clearTimeout(speaking);
    speaking = setTimeout(() => {
      const found = columns(gridOf(state.layer)), last = found.pointer ?? found.token;
      const best = found.nearest ? ` Nearest in the second picture: row ${found.nearest[1]}, column ${found.nearest[2]}, ${found.nearest[6]}.` : "";
      const value = valued() ? `${SHOW[state.show][0]} ${last[6]}` : `norm ${last[4]}`;
      say(`${state.layer}, row ${last[1]}, column ${last[2]}, ${last[3]}, ${value}.${best}`);
    }, 400);
  }
  const say = (text) => { $("status").textContent = text; };

  // The address says what is shown: #image=0&second=1&layer=mid&row=3&col=4
  function address() {
    const grid = gridOf(state.layer), { row, col } = tokenAt(grid, state.u, state.v);
    const parts = { image: state.image, second: state.second, layer: state.layer, row, col, show: state.show, centred: +state.centred };
    if (state.label) parts.mitigation = state.label;
    if (networks.length > 1) parts.weights = state.weights;
    if (levels.length > 1) parts.timestep = state.level;
    return `#${new URLSearchParams(Object.entries(parts).map(([name, value]) => [name, String(value)]))}`;
  }

  function follows() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const whole = (name, most) => {
      const value = wanted.get(name);
      return value !== null && /^\d+$/.test(value) && Number(value) < most ? Number(value) : null;
    };
    for (const name of ["image", "second"]) state[name] = whole(name, data.images.length) ?? state[name];
    for (const [name, options, field] of [
      ["layer", layers, "layer"], ["show", Object.keys(SHOW), "show"], ["mitigation", labels, "label"], ["weights", networks, "weights"],
      ["timestep", levels, "level"], ["centred", ["0", "1"], "centred"],
    ]) {
      const found = options.find((option) => String(option) === wanted.get(name));
      if (found !== undefined) state[field] = name === "centred" ? found === "1" : found;
    }
    settle("layer");
    const grid = gridOf(state.layer);
    if (grid) {
      const row = whole("row", grid.shape[1]), col = whole("col", grid.shape[2]);
      if (row !== null) state.v = (row + 0.5) / grid.shape[1];
      if (col !== null) state.u = (col + 0.5) / grid.shape[2];
      if (row !== null || col !== null) state.pointer = null;
    }
  }

  let remembering = 0, remembered = "";
  function remember() { // when nothing has moved for a moment: it costs more than a frame, and browsers refuse it if it is frequent
    clearTimeout(remembering);
    remembering = setTimeout(() => {
      remembered = address();
      try { history.replaceState(null, "", remembered); } catch { /* a page inside another has no address */ }
    }, 400);
  }
  window.addEventListener("hashchange", () => { if (location.hash !== remembered) { follows(); changed("layer"); } });

  async function copy(text, what) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea"), focused = document.activeElement;
      area.value = text;
      document.body.append(area);
      area.select();
      const copied = document.execCommand("copy");
      area.remove();
      focused?.focus();
      if (!copied) return say(`The browser does not let this page copy. Save it, and open the file.`);
    }
    say(`${what} copied.`);
  }

  // A line per layer and token, separated by tabs.
  function numbersAsText() {
    const lines = [["layer", "token", ...rowNames()].join("\t")];
    for (const layer of layers) {
      const grid = gridOf(layer);
      if (grid) for (const [name, column] of Object.entries(columns(grid))) lines.push([layer, name, ...column].join("\t"));
    }
    return lines.join("\n") + "\n";
  }

  // One picture of all layers with names, conditions and legend.
  function sheet() {
    const shown = layers.filter(gridOf), side = 150, high = Math.round(side * tall / wide), gap = 10, cell = 2 * side + 3 * gap;
    const across = Math.min(4, shown.length), top = 64 + high + gap, down = Math.ceil(shown.length / across);
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(across * cell + gap, 640);
    canvas.height = top + down * (high + 34) + gap;
    const context = canvas.getContext("2d"), style = getComputedStyle(document.body);
    const text = (words, x, y, font) => { context.font = `${font} ${style.fontFamily}`; context.fillText(words, x, y); };
    const drawn = (each, grid, card, x, y) => {
      context.save();
      context.translate(x, y);
      context.beginPath();
      context.rect(0, 0, side, high);
      context.clip();
      context.imageSmoothingEnabled = each.tokens.classList.contains("smooth");
      context.drawImage(each.tokens, 0, 0, side, high);
      drawOutlines(context, each, grid, side, high, 1);
      for (const [kind, found] of Object.entries(marksOf(each.side, grid, card))) {
        if (!found) continue;
        const { x, y, width, height } = found;
        context.setLineDash(kind === "pointer" ? [3, 2] : []);
        rimmed(context, 1, 1.5, () => {
          if (kind === "nearest") context.arc(x * side, y * high, width / 2 * side, 0, 7);
          else context.rect((x - width / 2) * side, (y - height / 2) * high, width * side, height * high);
        });
      }
      context.restore();
    };
    context.fillStyle = style.backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = style.color;
    text(data.title, gap, 22, "600 16px");
    const conditions = [SHOW[state.show][0], state.centred ? "centred tokens" : "raw tokens",
      state.label ? `mitigation ${state.label}` : "", networks.length > 1 ? `${state.weights} weights` : "", state.level === null ? "" : `timestep ${state.level}`];
    text(conditions.filter(Boolean).join(", "), gap, 42, "12px");
    const active = gridOf(state.layer) ?? gridOf(shown[0]);
    photos.forEach((each, place) => drawn(each, active, updated(active.layer), gap + place * (side + gap), 54));
    if (state.show !== "colours") {
      context.drawImage($("legend"), 2 * (side + gap) + 2 * gap, 54, 200, 10);
      text(`${$("low").textContent}  to  ${$("high").textContent}`, 2 * (side + gap) + 2 * gap, 80, "12px");
    }
    shown.forEach((layer, place) => {
      const x = gap + (place % across) * cell, y = top + Math.floor(place / across) * (high + 34), card = cards.get(layer);
      renderCard(Object.assign(card, { seen: true })); // the observer says again what is out of view
      text(layer, x, y + 16, "600 13px");
      card.panels.forEach((each, column) => drawn(each, gridOf(layer), card, x + column * (side + gap), y + 24));
    });
    return canvas;
  }

  $("hold").addEventListener("click", () => hold(!state.held));
  $("link").hidden = /^(about|blob|data):/.test(location.protocol); // a page inside a notebook has no address
  $("copy").addEventListener("click", () => copy(numbersAsText(), "Numbers"));
  $("link").addEventListener("click", () => copy(location.href.split("#")[0] + address(), "Link"));
  $("save").addEventListener("click", () => sheet().toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "tokens.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say("Picture saved.");
  }));

  // ------------------------------------------------------------------ words below

  // Two digits, rounded up.
  function atMost(error) {
    if (!(error > 0)) return error === 0 ? "0" : "–";
    const unit = 10 ** (Math.floor(Math.log10(error)) - 1);
    return (Math.ceil(error / unit) * unit).toPrecision(2);
  }

  function exactness() {
    const table = document.createElement("table"), rows = [["layer", "stored as", "cosine ±", "dot product ±", "distance ±"]];
    for (const grid of data.grids) {
      const name = [grid.layer, grid.label, levels.length > 1 ? `timestep ${grid.level}` : "", networks.length > 1 ? grid.weights : ""];
      const errors = grid.error.map(atMost);
      rows.push([name.filter(Boolean).join(", "), `${grid.shape[3]} numbers of ${grid.bits} bits`, ...errors]);
    }
    table.append(...rows.map((row, place) => {
      const line = document.createElement("tr");
      line.append(...row.map((text) => Object.assign(document.createElement(place ? "td" : "th"), { textContent: text })));
      return line;
    }));
    const words = document.createElement("p");
    words.textContent = "Tokens are stored as integers, and as coordinates along their main directions where they are many. The largest "
      + "error of any shown number, against the network's floating-point activations:";
    $("exactness").append(words, table);
  }

  $("title").textContent = data.title;
  $("about").textContent = data.about;
  $("given").textContent = [
    photographs.some(Boolean) ? "This page contains the pictures that it was given." : "The pictures were left out.",
    "Centred tokens are those minus the mean token of their image.",
    data.leftOut.length ? `Left out: ${data.leftOut.join("; ")}.` : "",
  ].filter(Boolean).join(" ");
  exactness();
  follows();
  $("app").hidden = false;
  changed("layer");
  new ResizeObserver(measure).observe($("layers"));
  measure();
  render();
  window.explorer = { state, values: (layer, side) => Array.from(updated(layer).values?.[side] ?? []), draw: () => changed("layer"), render };
})();
