"use strict";

// The page of `explore_sorting.py`. Blocks of the document on one side, what they read on the other; all numbers are in
// the element `data`, packed by `packing.py`. Nothing is fetched.

const data = JSON.parse(document.getElementById("data").textContent);
const N = data.num_blocks;
const EVEN = 1 / N;
const byId = (id) => document.getElementById(id);
const state = { layer: 0, head: 0, view: "after", paint: "sorting", block: 0, token: null, source: null };

// Numbers -------------------------------------------------------------------------------------------------------------

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

function integersOf(text, width, signed = false) {
  const buffer = bytesOf(text).buffer; // little-endian, as all machines with a browser are
  return width === 1 ? new Uint8Array(buffer) : signed ? new Int16Array(buffer) : new Uint16Array(buffer);
}

function weightsOf(text, bits) {
  const integers = integersOf(text, bits / 8);
  const scale = bits === 16 ? (q) => q / 65535 : (q) => (q / 255) ** 2;
  return Float32Array.from(integers, scale);
}

const unpacked = new Map();

// A matrix `(rows, N)`: of each row, `kept` weights with their blocks.
function matrixOf(layer, head, kind) {
  const key = `${layer}/${head}/${kind}`;
  if (!unpacked.has(key)) {
    const form = data.formats[kind], packed = data.layers[layer].heads[head][kind];
    const after = weightsOf(packed.after, form.bits);
    unpacked.set(key, {
      kept: form.kept ?? N,
      index: packed.index ? integersOf(packed.index, N <= 256 ? 1 : 2) : null,
      chosen: packed.chosen ? integersOf(packed.chosen, 2, true) : null,
      after,
      before: packed.before ? weightsOf(packed.before, form.bits) : after,
    });
  }
  return unpacked.get(key);
}

const countsOf = data.layers.map((layer) => (layer.counts ? integersOf(layer.counts, 1) : null));

// What row `row` reads: its blocks with weights, and the weight on all others together.
function rowOf(matrix, row, layer, kind) {
  const entries = [];
  let sum = 0, sumBefore = 0;
  for (let place = 0; place < matrix.kept; place++) {
    const at = row * matrix.kept + place;
    const entry = {
      block: matrix.index ? matrix.index[at] : place, after: matrix.after[at], before: matrix.before[at], chosen: false,
    };
    sum += entry.after;
    sumBefore += entry.before;
    entries.push(entry);
  }
  const chooses = data.is_hard && (kind === "tokens" || !data.by_token);
  if (chooses) {
    const count = countsOf[layer][row];
    for (let place = 0; place < count; place++) {
      if (!matrix.chosen) entries[place].chosen = true;
      else {
        const block = matrix.chosen[row * data.num_sorted_blocks + place];
        entries[block].chosen = true; // without an index, the place is the block
      }
    }
  }
  return { entries, rest: { after: sum > 0 ? Math.max(0, 1 - sum) : 0, before: sumBefore > 0 ? Math.max(0, 1 - sumBefore) : 0 } };
}

// The row of a block as `N` weights; what was not kept is spread over the others that the block may read.
function denseRow(matrix, row, view, out) {
  const values = matrix[view];
  if (!matrix.index) {
    out.set(values.subarray(row * N, row * N + N));
    return out;
  }
  let sum = 0;
  for (let place = 0; place < matrix.kept; place++) sum += values[row * matrix.kept + place];
  const others = data.possible[row] - matrix.kept;
  const each = sum > 0 && others > 0 ? Math.max(0, 1 - sum) / others : 0;
  const end = data.is_decoder ? row : N;
  out.fill(0);
  out.fill(each, 0, end);
  for (let place = 0; place < matrix.kept; place++) {
    const at = row * matrix.kept + place;
    if (matrix.index[at] < end || values[at] > 0) out[matrix.index[at]] = values[at];
  }
  return out;
}

// Where the scale of colours ends: at four times the even weight or beyond, so that even weights stay pale.
function highestOf(matrix) {
  matrix.highest ??= {};
  return (matrix.highest[state.view] ??= matrix[state.view].reduce((most, x) => Math.max(most, x), 4 * EVEN));
}

const shown = (x) => x.toFixed(3);
// Weights of a token may be stored in 8 bits, which are exact to two places.
const shownRow = (x) => x.toFixed(state.token !== null && data.formats.tokens.bits === 8 ? 2 : 3);
const percent = (x) => `${(100 * x).toFixed(1)} %`;
const times = (x) => { const n = x / EVEN; return n >= 9.95 ? n.toFixed(0) : n.toFixed(1); };
const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`;

// The document --------------------------------------------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const blockElements = [], infoElements = [], tokenElements = [];
const readShares = new Map((data.read_last?.tokens ?? []).map(([token, share]) => [token, share]));
const words = (block) => data.tokens.slice(block * data.block_size, (block + 1) * data.block_size).join("");
const begins = Array.from({ length: N }, (_, block) => words(block).replace(/\s+/g, " ").trim().slice(0, 60));

function buildDocument() {
  const all = document.createDocumentFragment();
  const most = Math.max(...readShares.values(), 1e-9);
  for (let block = 0; block < N; block++) {
    const body = make("div", { class: "body" });
    let plain = "";
    const end = Math.min((block + 1) * data.block_size, data.tokens.length);
    for (let token = block * data.block_size; token < end; token++) {
      const share = readShares.get(token);
      if (!data.by_token && share === undefined) {
        plain += data.tokens[token];
        continue;
      }
      if (plain) body.append(plain);
      plain = "";
      const span = make("span", {}, data.tokens[token]);
      if (data.by_token) {
        span.className = "token";
        span.dataset.token = token;
        tokenElements[token] = span;
      }
      if (share !== undefined) {
        span.classList.add("read");
        span.title = `the last token gives it ${percent(share)} of its attention`;
        span.style.setProperty("--share", (0.1 + 0.6 * Math.sqrt(share / most)).toFixed(3));
      }
      body.append(span);
    }
    if (plain) body.append(plain);
    const info = make("span", { class: "info" });
    const head = make("div", { class: "head" }, make("span", { class: "number" }, `Block ${block}`), info);
    const element = make("div", { class: "block", role: "option", id: `block-${block}`, "aria-selected": "false" }, head, body);
    element.dataset.block = block;
    blockElements.push(element);
    infoElements.push(info);
    all.append(element);
  }
  byId("document").append(all);
}

// Colours -------------------------------------------------------------------------------------------------------------

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const RAMPS = {
  light: [[255, 255, 255], [142, 190, 240], [11, 87, 196], [8, 29, 88]],
  dark: [[20, 23, 28], [27, 68, 133], [90, 155, 255], [226, 238, 255]],
};

function colourOf(share) {
  const ramp = RAMPS[dark.matches ? "dark" : "light"];
  const place = Math.min(1, Math.max(0, share)) * (ramp.length - 1);
  const low = Math.min(ramp.length - 2, Math.floor(place));
  return ramp[low].map((x, i) => Math.round(x + (ramp[low + 1][i] - x) * (place - low)));
}

// The root shows small weights next to large ones.
const strengthOf = (weight, highest) => Math.sqrt(Math.max(0, weight) / highest);

// Drawing -------------------------------------------------------------------------------------------------------------

function drawMatrix() {
  const matrix = matrixOf(state.layer, state.head, "blocks"), highest = highestOf(matrix);
  const canvas = byId("matrix"), cell = Math.max(1, Math.floor(480 / N));
  canvas.width = canvas.height = N * cell;
  const small = document.createElement("canvas");
  small.width = small.height = N;
  const image = new ImageData(N, N), row = new Float32Array(N);
  for (let i = 0; i < N; i++) {
    denseRow(matrix, i, state.view, row);
    for (let j = 0; j < N; j++) {
      const [r, g, b] = colourOf(strengthOf(row[j], highest));
      image.data.set([r, g, b, 255], 4 * (i * N + j));
    }
  }
  small.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, N * cell, N * cell);
  const line = Math.max(1, (N * cell) / 240);
  context.lineWidth = line;
  context.strokeStyle = dark.matches ? "#ffb454" : "#d2500a";
  context.strokeRect(line / 2, state.block * cell, N * cell - line, cell);
  if (state.source !== null) {
    context.setLineDash([4 * line, 2 * line]);
    context.strokeRect(state.source * cell, line / 2, cell, N * cell - line);
  }
  const { number } = data.layers[state.layer];
  canvas.setAttribute("aria-label",
    `Sort matrix of layer ${number}, head ${data.heads[state.head]}, ${state.view} balancing. The row of block ${state.block} is marked; the table gives its numbers.`);
  drawBar(highest);
}

function drawBar(highest) {
  const bar = byId("bar"), context = bar.getContext("2d");
  for (let x = 0; x < bar.width; x++) {
    context.fillStyle = `rgb(${colourOf(x / (bar.width - 1)).join(" ")})`;
    context.fillRect(x, 0, 1, bar.height);
  }
  const one = 100 * strengthOf(EVEN, highest);
  byId("bar-labels").replaceChildren(
    make("span", { style: "left:0" }, "0"),
    make("span", { style: `left:${one.toFixed(1)}%` }, "1 × even"),
    make("span", { style: "left:100%" }, `${times(highest)} × even (${shown(highest)})`),
  );
}

function localBlocks() {
  const type = data.layers[state.layer].type, found = new Set();
  if (type === "sortcut_attention") return found;
  const reach = data.num_local_blocks - 1;
  for (let j = Math.max(0, state.block - reach); j <= Math.min(N - 1, data.is_decoder ? state.block : state.block + reach); j++) found.add(j);
  for (let j = 0; j < Math.min(data.num_sink_blocks, data.is_decoder ? state.block : N); j++) found.add(j);
  return found;
}

function currentRow() {
  const kind = state.token === null ? "blocks" : "tokens";
  const matrix = matrixOf(state.layer, state.head, kind);
  return rowOf(matrix, state.token ?? state.block, state.layer, kind);
}

function paintDocument() {
  document.body.classList.toggle("paint-last", state.paint === "last");
  const row = currentRow(), always = localBlocks();
  const weights = new Float32Array(N), picked = new Set(), infos = new Array(N).fill("");
  let highest = highestOf(matrixOf(state.layer, state.head, "blocks"));
  let tones = null;
  if (state.paint === "sorting") {
    if (state.token === null) denseRow(matrixOf(state.layer, state.head, "blocks"), state.block, state.view, weights);
    for (const entry of row.entries) {
      weights[entry.block] = entry[state.view];
      if (entry.chosen) picked.add(entry.block);
    }
    if (state.token !== null) highest = weights.reduce((most, x) => Math.max(most, x), highest);
    weights.forEach((weight, j) => { if (weight >= 0.0005) infos[j] = `${shownRow(weight)} · ${times(weight)} × even`; });
    for (const j of always) infos[j] = infos[j] ? `always read · ${infos[j]}` : "always read";
  } else if (state.paint === "left_out") {
    tones = new Array(N);
    highest = 1e-9;
    for (const [first, last, , score] of data.left_out) {
      const drop = effectOf(score);
      for (let j = first; j <= last; j++) {
        weights[j] = Math.abs(drop);
        tones[j] = drop >= 0 ? "var(--accent-rgb)" : "var(--against-rgb)";
        infos[j] = `without it ${signed(-drop)}${first === last ? "" : ` (blocks ${first} to ${last} together)`}`;
      }
      highest = Math.max(highest, Math.abs(drop));
    }
  } else {
    const shares = lastShares();
    shares.forEach((share, j) => { weights[j] = share; if (share >= 0.0005) infos[j] = percent(share); });
    highest = shares.reduce((most, x) => Math.max(most, x), 1e-9);
  }
  for (let j = 0; j < N; j++) {
    const element = blockElements[j];
    element.style.setProperty("--strength", (0.5 * strengthOf(weights[j], highest)).toFixed(3));
    element.style.setProperty("--tone", tones?.[j] ?? "var(--accent-rgb)");
    element.classList.toggle("always", state.paint === "sorting" && always.has(j));
    element.classList.toggle("picked", picked.has(j));
    element.classList.toggle("source", state.source === j);
    element.setAttribute("aria-selected", String(j === state.block));
    if (infoElements[j].textContent !== infos[j]) infoElements[j].textContent = infos[j];
  }
  byId("document").setAttribute("aria-activedescendant", `block-${state.block}`);
  document.querySelector(".token.current")?.classList.remove("current");
  if (state.token !== null) tokenElements[state.token].classList.add("current");
}

function blockButton(block) {
  return make("button", { type: "button", class: "goto", "data-block": block, onclick: () => showSource(block) }, `block ${block}`);
}

function listReads() {
  const row = currentRow(), layer = data.layers[state.layer];
  const name = state.token === null ? `Block ${state.block}` : `Token “${data.tokens[state.token].trim() || "␣"}” of block ${state.block}`;
  const best = row.entries.filter((entry) => entry.after > 0 || entry.before > 0 || entry.chosen);
  best.sort((a, b) => b.chosen - a.chosen || b[state.view] - a[state.view] || a.block - b.block);
  const top = best.slice(0, Math.max(8, data.num_sorted_blocks));
  const mean = data.by_token && state.token === null ? " (mean over its tokens)" : "";
  byId("reads-title").textContent = top.length
    ? `${name} reads block ${top[0].block}: ${shownRow(top[0][state.view])}${mean}`
    : `${name} has nothing to be sorted next to it`;
  const others = [...localBlocks()].filter((j) => j !== state.block).sort((a, b) => a - b);
  let always = layer.type === "sortcut_attention"
    ? `Every token of the document reads what is sorted to the rows 0 to ${Math.min(data.sortcut_blocks, N) - 1}, and nothing else.`
    : `It always reads itself${others.length ? ` and block${others.length > 1 ? "s" : ""} ${others.join(", ")}` : ""}.`;
  if (layer.type === "mixture_attention") always += " Half of this layer is full attention, which reads everything.";
  byId("always").textContent = always;
  const table = byId("reads");
  table.replaceChildren();
  if (top.length) {
    const columns = [["reads", ""], ["begins", "words"], ["before", "number"], ["after", "number"], ["× even", "number"]];
    table.append(make("tr", {}, ...columns.map(([text, kind]) => make("th", { class: kind, scope: "col" }, text))));
    for (const entry of top) {
      const share = make("span", { class: "share" });
      share.style.width = `${Math.min(100, 100 * entry[state.view]).toFixed(1)}%`;
      table.append(make("tr", {},
        make("td", { class: "which" }, blockButton(entry.block), entry.chosen ? " ✓" : ""),
        make("td", { class: "words", title: begins[entry.block] }, begins[entry.block], share),
        make("td", { class: "number" }, shownRow(entry.before)),
        make("td", { class: "number" }, shownRow(entry.after)),
        make("td", { class: "number" }, times(entry[state.view]))));
    }
    const left = best.slice(top.length).reduce((sum, entry) => ({ after: sum.after + entry.after, before: sum.before + entry.before }), { ...row.rest });
    if (left.after >= 0.0005 || left.before >= 0.0005) {
      table.append(make("tr", {}, make("td", { class: "which" }, "all others"), make("td", { class: "words" }, ""),
        make("td", { class: "number" }, shownRow(left.before)), make("td", { class: "number" }, shownRow(left.after)), make("td", {})));
    }
  }
  const matrix = matrixOf(state.layer, state.head, "blocks"), buffer = new Float32Array(N), readers = [];
  for (let i = 0; i < N; i++) {
    const weight = denseRow(matrix, i, state.view, buffer)[state.block];
    if (i !== state.block && weight >= 2 * EVEN) readers.push([i, weight]);
  }
  readers.sort((a, b) => b[1] - a[1]);
  byId("read-by").replaceChildren(readers.length ? `Block ${state.block} is read by ` : `No block reads block ${state.block} with twice the even weight.`,
    ...readers.slice(0, 5).flatMap(([i, weight], place) => [place ? ", " : "",
      make("button", { type: "button", onclick: () => choose(i) }, `block ${i}`), ` (${shown(weight)})`]));
}

function tellLearned() {
  const { moved } = data.layers[state.layer].heads[state.head];
  const element = byId("learned");
  element.hidden = moved >= data.learned;
  const equally = data.balances_equally && !data.by_token && data.iterations > 0;
  element.textContent = `No sorting learned: after balancing, the weights are those that equal preferences would give, but for ${percent(moved)}.` +
    (equally ? " This balancing gives the block before the largest weight, whatever is preferred." : "");
}

function drawOverview() {
  const table = byId("overview");
  table.replaceChildren(make("tr", {}, make("th", { scope: "col" }, "layer"), ...data.heads.map((head) => make("th", { scope: "col" }, `head ${head}`))));
  data.layers.forEach((layer, l) => {
    table.append(make("tr", {}, make("th", { scope: "row" }, String(layer.number)), ...layer.heads.map(({ moved }, h) => {
      const button = make("button", {
        type: "button", "aria-pressed": String(l === state.layer && h === state.head),
        "aria-label": `layer ${layer.number}, head ${data.heads[h]}: ${percent(moved)}`, onclick: () => update({ layer: l, head: h }),
      }, String(Math.round(100 * moved)));
      const [r, g, b] = colourOf(moved);
      button.style.background = `rgb(${r} ${g} ${b})`;
      button.style.color = 0.3 * r + 0.6 * g + 0.1 * b > 140 ? "#111" : "#fff";
      return make("td", {}, button);
    })));
  });
}

// Answers -------------------------------------------------------------------------------------------------------------

function lastShares() {
  const shares = weightsOf(data.read_last.layers[state.layer], 16), each = data.queries_per_head;
  const first = data.heads[state.head] * each, mean = new Float32Array(N);
  for (let head = first; head < first + each; head++) for (let j = 0; j < N; j++) mean[j] += shares[head * N + j] / each;
  return mean;
}

// What a part of the document adds to the answer.
const effectOf = (scoreWithout) => data.classes.score - scoreWithout;

function buildAnswer() {
  const rows = [];
  if (data.classes) {
    const { listed, scale } = data.classes, [name, value] = data.classes.best;
    byId("answer-title").textContent = scale === "value" ? `Output: ${value.toFixed(3)}` : `${name}: ${shown(value)}`;
    for (const [name, x] of listed.slice(0, 8)) rows.push([name, scale === "value" ? x.toFixed(3) : shown(x), x]);
    const strongest = data.left_out.map(([first, last, x, score]) => [first, last, x, effectOf(score)])
      .sort((a, b) => Math.abs(b[3]) - Math.abs(a[3])).slice(0, 5);
    const what = scale === "value" ? "the output" : `the log-odds of ${data.classes.best[0]} (${data.classes.score.toFixed(2)})`;
    if (strongest.length) byId("answer-list").append(make("p", { class: "hint" },
      `What it hangs on: ${data.left_out.length} more passes read the document without a part of it; how that changes ${what}.`),
    make("table", { id: "left-out" }, ...strongest.map(([first, last, x, effect]) => make("tr", {},
      make("td", {}, make("button", { type: "button", "data-block": first, onclick: () => { setPaint("left_out"); choose(first); } },
        first === last ? `block ${first}` : `blocks ${first}–${last}`)),
      make("td", { class: "words" }, begins[first]),
      make("td", { class: "number" }, signed(-effect)),
      make("td", { class: "number", title: "what the model says without it" }, scale === "value" ? "" : shown(x))))));
  } else if (data.next) {
    byId("answer-title").textContent = "Next token";
    for (const [token, x] of data.next.listed.slice(0, 6)) rows.push([JSON.stringify(token).slice(1, -1).replaceAll(" ", "␣"), shown(x), x]);
    const { following, rank } = data.next;
    byId("answer-note").textContent = following
      ? `The text goes on with “${following[0].trim() || following[0]}”: probability ${shown(following[1])}, rank ${rank.toLocaleString("en")}.` : "";
    const mean = weightsOf(data.read_last.mean, 16), order = [...mean.keys()].sort((a, b) => mean[b] - mean[a]).slice(0, 5);
    byId("answer-list").append(make("p", { class: "hint" }, "Where it comes from: the last token's attention, the mean of all layers and heads."),
      make("table", { id: "read-last" }, ...order.filter((j) => mean[j] >= 0.0005).map((j) => make("tr", {},
        make("td", {}, make("button", { type: "button", "data-block": j, onclick: () => { setPaint("last"); showSource(j); } }, `block ${j}`)),
        make("td", { class: "words" }, begins[j]), make("td", { class: "number" }, percent(mean[j]))))));
  } else return;
  byId("answer").hidden = false;
  byId("answer-table").replaceChildren(...rows.map(([name, text, x]) => {
    const share = make("span", { class: "share" });
    share.style.width = `${(100 * Math.min(1, Math.max(0, x))).toFixed(1)}%`;
    return make("tr", {}, make("td", { class: "words" }, name, share), make("td", { class: "number" }, text));
  }));
}

// Control -------------------------------------------------------------------------------------------------------------

function update(changes = {}) {
  Object.assign(state, changes);
  byId("layer").value = state.layer;
  byId("head").value = state.head;
  document.querySelector(`input[name=view][value=${state.view}]`).checked = true;
  byId("cell").textContent = state.source === null ? "" : cellText(state.block, state.source);
  drawMatrix();
  paintDocument();
  listReads();
  tellLearned();
  drawOverview();
}

function cellText(i, j) {
  const matrix = matrixOf(state.layer, state.head, "blocks"), buffer = new Float32Array(N);
  const weight = denseRow(matrix, i, state.view, buffer)[j];
  return `Block ${i} reads block ${j}: ${shown(weight)}, ${times(weight)} × even.`;
}

function scrollTo(block) {
  blockElements[block].scrollIntoView({ block: "nearest" });
}

function choose(block, token = null, source = null) {
  block = Math.min(N - 1, Math.max(0, block));
  update({ block, token, source });
  scrollTo(block);
}

function showSource(block) {
  update({ source: block });
  scrollTo(block);
}

function setPaint(paint) {
  state.paint = paint;
  const input = document.querySelector(`input[name=paint][value=${paint}]`);
  if (input) input.checked = true;
}

function step(name, size, by) {
  update({ [name]: (state[name] + by + size) % size });
}

function moveToken(by) {
  const token = state.token === null ? state.block * data.block_size + (by > 0 ? 0 : -1) : state.token + by;
  if (token >= 0 && token < data.tokens.length) choose(Math.floor(token / data.block_size), token);
}

const KEYS = {
  l: () => step("layer", data.layers.length, 1), L: () => step("layer", data.layers.length, -1),
  h: () => step("head", data.heads.length, 1), H: () => step("head", data.heads.length, -1),
  b: () => update({ view: state.view === "after" ? "before" : "after" }),
  "?": () => { byId("help").open = !byId("help").open; if (byId("help").open) byId("help").scrollIntoView({ block: "nearest" }); },
};
const ARROWS = {
  ArrowDown: () => choose(state.block + 1), ArrowUp: () => choose(state.block - 1),
  ArrowRight: () => (data.by_token ? moveToken(1) : choose(state.block + 1)),
  ArrowLeft: () => (data.by_token ? moveToken(-1) : choose(state.block - 1)),
  Home: () => choose(0), End: () => choose(N - 1),
};

function listen() {
  byId("document").addEventListener("click", (event) => {
    const block = event.target.closest(".block"), token = event.target.closest(".token");
    if (token) choose(Number(block.dataset.block), Number(token.dataset.token));
    else if (block) choose(Number(block.dataset.block));
  });
  byId("matrix").addEventListener("click", (event) => {
    const [i, j] = cellAt(event);
    choose(i, null, j);
  });
  byId("matrix").addEventListener("mousemove", (event) => { byId("cell").textContent = cellText(...cellAt(event)); });
  byId("layer").addEventListener("change", (event) => update({ layer: Number(event.target.value) }));
  byId("head").addEventListener("change", (event) => update({ head: Number(event.target.value) }));
  for (const input of document.querySelectorAll("input[name=view]")) input.addEventListener("change", () => update({ view: input.value }));
  dark.addEventListener("change", () => update());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input, textarea")) return;
    const act = KEYS[event.key] ?? ARROWS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

function cellAt(event) {
  const box = byId("matrix").getBoundingClientRect();
  const cell = (x, size) => Math.min(N - 1, Math.max(0, Math.floor((x / size) * N)));
  return [cell(event.clientY - box.top, box.height), cell(event.clientX - box.left, box.width)];
}

function describe() {
  byId("title").textContent = `What ${data.model} sorts`;
  byId("text-title").textContent = data.text;
  const sorts = data.is_hard ? `the best ${data.num_sorted_blocks > 1 ? `${data.num_sorted_blocks} blocks are` : "block is"} read whole` : "all blocks are mixed by their weights";
  byId("about").textContent = `${/^[aeiou]/.test(data.kind) ? "An" : "A"} ${data.kind}. ${data.tokens.length.toLocaleString("en")} tokens in ${N.toLocaleString("en")} blocks of ${data.block_size}. ` +
    `Each ${data.by_token ? "token" : "block"} reads what is sorted next to it: ${sorts}. Even weight: 1/${N} = ${EVEN.toPrecision(2)}.`;
  const learned = data.layers.some((layer) => layer.heads.some(({ moved }) => moved >= data.learned));
  byId("notice").hidden = learned;
  byId("notice").textContent = "No sorting learned in any of these layers and heads.";
  byId("text-hint").textContent = data.by_token
    ? "Click a token to see what it reads, or the head of a block for the mean over its tokens." : "Click a block to see what it reads.";
  data.layers.forEach((layer, l) => byId("layer").append(make("option", { value: l }, `${layer.number} (${layer.type.replace("_attention", "")})`)));
  data.heads.forEach((head, h) => byId("head").append(make("option", { value: h }, String(head))));
  const keys = [["↑ ↓", "the block before, the next"], ["← →", data.by_token ? "the token before, the next" : "the same"],
    ["Home End", "first and last block"], ["l L", "next layer, layer before"], ["h H", "next head, head before"], ["b", "before or after balancing"], ["?", "this help"]];
  byId("keys").append(...keys.map(([key, text]) => make("li", {}, ...key.split(" ").flatMap((k) => [make("kbd", {}, k), " "]), text)));
  const less = data.formats.blocks.kept === null ? "" : ` Of each row the ${data.formats.blocks.kept} largest weights are stored; the rest is drawn evenly.`;
  byId("terms").textContent = "Sorting gives each block a row of weights over the blocks that it may read. Balancing then keeps all from reading the same ones. " +
    `“× even” is the weight in multiples of 1/${N}.${data.is_hard ? " ✓ marks what is read." : ""} A double edge marks blocks that are always read.${less}`;
  const paints = [["sorting", data.by_token ? "what is chosen reads" : "what the chosen block reads"]];
  if (data.left_out?.length) paints.push(["left_out", "what the answer hangs on"]);
  if (data.read_last) paints.push(["last", "what the last token attends to, in this layer and head"]);
  if (paints.length > 1) {
    byId("paints").hidden = false;
    byId("paints").append(...paints.map(([value, text]) => {
      const input = make("input", { type: "radio", name: "paint", value, onchange: () => update({ paint: value }) });
      input.checked = value === state.paint;
      return make("label", {}, input, ` ${text}`);
    }));
  }
}

function start() {
  // The layer and head that sort most, and a block in the middle, say more than the first ones.
  let most = -1;
  data.layers.forEach((layer, l) => layer.heads.forEach(({ moved }, h) => {
    if (moved > most) { most = moved; state.layer = l; state.head = h; }
  }));
  state.block = data.is_decoder ? N - 1 : 0;
  buildDocument();
  describe();
  buildAnswer();
  listen();
  update();
  document.documentElement.dataset.ready = performance.now().toFixed(0); // milliseconds since the page was asked for
}

start();
