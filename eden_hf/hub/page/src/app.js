// The page: what the visitor does, and what is drawn of it. All computing is the worker's (engine.js).
import { showLevels } from "./levels.js";
import { drawCross, drawHeat, drawMark, drawMask, drawPicture } from "./drawing.js";

const $ = (id) => document.getElementById(id);
const HINTS = {
  point: "Click a point in any picture, or move the cross with the arrow keys and press Enter.",
  landmarks: "The landmarks of the outlined phantom, found in the others. Click another phantom for its own.",
  mask: "Click twice inside a structure and once outside of it; more clicks mend what is wrong.",
};

let settings;
const images = []; // {id, name, width, height, picture (canvas), canvas, output, landmarks, cursor}
const state = { mode: "point", model: "trained", source: null, point: null, clicks: [] };

// The worker: call(...) answers with its result.
const worker = new Worker(new URL("./engine.js", import.meta.url), { type: "module" });
const waiting = new Map();
worker.onmessage = ({ data: { key, result, error, ofPicture } }) => {
  const { resolve, reject } = waiting.get(key);
  waiting.delete(key);
  if (error === undefined) resolve(result);
  else reject(Object.assign(new Error(error), { ofPicture }));
};
worker.onerror = () =>
  stop("This browser cannot start the page's worker: try a current Firefox, Chrome, Edge or Safari.");

let calls = 0;
function call(name, given = {}, moved = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++calls, { resolve, reject });
    worker.postMessage({ key: calls, call: name, given }, moved);
  });
}

/** What the browser lacks, in words; nothing if it has all. */
function lacking() {
  if (typeof WebAssembly !== "object") return "WebAssembly, which runs the network";
  if (typeof OffscreenCanvas !== "function") return "OffscreenCanvas, which reads pictures in the background";
  if (typeof createImageBitmap !== "function") return "createImageBitmap, which reads pictures";
  return null;
}

function stop(message) {
  $("progress").hidden = true;
  $("loading").hidden = false;
  $("status").className = "fault";
  $("status").textContent = message;
}

function tell(message) {
  $("fault").hidden = !message;
  $("fault").textContent = message;
}

/** Fetch a file of the page, telling how far it has come. */
async function fetched(name, progress = () => {}) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: the server answers ${response.status}`);
  const reader = response.body.getReader();
  const parts = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    progress(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function start() {
  const missing = lacking();
  if (missing) return stop(`This browser lacks ${missing}. A current Firefox, Chrome, Edge or Safari has it.`);
  settings = JSON.parse(new TextDecoder().decode(await fetched("space.json")));
  $("about").textContent = settings.about;
  let loaded = 0;
  const progress = (bytes) => {
    loaded += bytes;
    $("progress").value = loaded / (settings.sizes.runtime + settings.sizes.trained);
    $("status").textContent = `Loading the network: ${(loaded / 1e6).toFixed(1)} MB`;
  };
  const [runtime, trained] = await Promise.all([
    fetched("ort/ort-wasm-simd-threaded.wasm", progress),
    fetched("trained.onnx", progress),
  ]);
  $("status").textContent = "Starting the network …";
  $("progress").removeAttribute("value");
  await call("prepare", { settings, runtime });
  await call("load", { model: "trained", bytes: trained });
  for (const example of settings.examples)
    await add(example.file.split("/").pop(), await fetched(example.file), example);
  $("loading").hidden = true;
  $("main").hidden = false;
  await update();
  await call("load", { model: "untrained", bytes: await fetched("untrained.onnx") });
  $("untrained").disabled = false;
  document.body.dataset.loaded = "all"; // from here on nothing is fetched
  await relate();
}

/** Embed all pictures and relate each to each, one after the other, so that later clicks need not wait. */
async function relate() {
  for (const source of images) {
    for (const target of images) {
      if (source !== target) await call("relate", { source: source.id, target: target.id, model: state.model });
    }
  }
}

/** Read a file and put it into the gallery. */
async function add(name, bytes, { landmarks } = {}) {
  const id = images.length ? Math.max(...images.map((image) => image.id)) + 1 : 1;
  const { width, height, pixels } = await call("read", { id, bytes: bytes.buffer, name }, [bytes.buffer]);
  const picture = Object.assign(document.createElement("canvas"), { width, height });
  picture.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  const image = { id, name, width, height, picture, landmarks, cursor: { x: 0.5, y: 0.5 } };
  images.push(image);
  show(image);
  levels.offer(images);
}

function show(image) {
  const figure = document.createElement("figure");
  const canvas = Object.assign(document.createElement("canvas"), { tabIndex: 0 });
  const longest = 512 / Math.max(image.width, image.height);
  canvas.width = Math.max(1, Math.round(image.width * longest));
  canvas.height = Math.max(1, Math.round(image.height * longest));
  canvas.setAttribute("role", "img");
  canvas.addEventListener("click", ({ offsetX, offsetY }) => {
    image.cursor = { x: offsetX / canvas.clientWidth, y: offsetY / canvas.clientHeight };
    choose(image);
  });
  canvas.addEventListener("keydown", (event) => steer(event, image));
  canvas.addEventListener("focus", () => draw(image));
  canvas.addEventListener("blur", () => draw(image));
  const caption = document.createElement("figcaption");
  const name = Object.assign(document.createElement("span"), { textContent: image.name });
  Object.assign(image, { figure, canvas, output: document.createElement("output") });
  caption.append(name, image.output);
  if (!image.landmarks) caption.append(removal(image));
  figure.append(canvas, caption);
  $("gallery").append(figure);
  draw(image);
}

function removal(image) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Remove" });
  button.setAttribute("aria-label", `Remove ${image.name}`);
  button.addEventListener("click", () => {
    images.splice(images.indexOf(image), 1);
    image.figure.remove();
    levels.offer(images);
    call("forget", { id: image.id });
    if (state.source === image) Object.assign(state, { source: null, point: null, clicks: [] });
    update();
  });
  return button;
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Move the cross of a picture by the arrow keys, far with Shift; Enter and Space choose. */
function steer(event, image) {
  if (STEPS[event.key]) {
    const step = event.shiftKey ? 0.1 : 0.02;
    const [x, y] = STEPS[event.key].map((sign) => sign * step);
    const within = (share) => Math.min(Math.max(share, 0), 1);
    image.cursor = { x: within(image.cursor.x + x), y: within(image.cursor.y + y) };
    draw(image);
  } else if (event.key === "Enter" || event.key === " ") {
    choose(image);
  } else {
    return;
  }
  event.preventDefault();
}

/** The visitor chose the place of the cursor in a picture. */
function choose(image) {
  const at = { ...image.cursor };
  if (state.mode === "landmarks") {
    if (!image.landmarks) return tell(`${image.name} is not annotated: choose a phantom, or show a point`);
  } else if (state.mode === "mask") {
    const inside = document.querySelector("[name=brush]:checked").value === "inside";
    if (state.source !== image) state.clicks = [];
    state.clicks.push({ ...at, inside });
    if (state.clicks.length === 2 && state.clicks.every((click) => click.inside))
      $("brush").querySelector("[value=outside]").checked = true;
  } else {
    state.point = at;
  }
  state.source = image;
  update();
}

function setMode(mode) {
  Object.assign(state, { mode, clicks: [], point: null, source: null });
  document.querySelector(`[name=mode][value=${mode}]`).checked = true;
  document.querySelector("[name=brush][value=inside]").checked = true;
  if (mode === "landmarks") state.source = images.find((image) => image.landmarks);
  $("brush").hidden = mode !== "mask";
  $("names").hidden = mode !== "landmarks";
}

let round = 0;

/** Find what is asked for in every picture, and draw it; a newer question takes over. */
async function update() {
  const mine = ++round;
  tell("");
  $("hint").textContent = HINTS[state.mode];
  for (const image of images) {
    image.figure.classList.toggle("source", image === state.source);
    Object.assign(image, { found: null, heat: null, mask: null });
    image.output.textContent = "";
    draw(image);
  }
  $("result").textContent = "";
  document.body.dataset.state = "busy";
  try {
    const answer = { point: findPoint, landmarks: findLandmarks, mask: findMask }[state.mode];
    await answer(() => mine === round);
  } catch (error) {
    tell(`That did not work: ${error.message}`);
  }
  if (mine === round) document.body.dataset.state = "done";
}

async function findPoint(current) {
  if (!state.point) return;
  await findIn(current, [state.point], (image, { points: [point], heat, side }) => {
    Object.assign(image, { found: point.found ? [point] : [], heat: { values: heat, side } });
    return point.found
      ? `confidence ${point.confidence.toFixed(2)}`
      : `not found (confidence ${point.confidence.toFixed(2)})`;
  });
}

async function findLandmarks(current) {
  const names = Object.keys(state.source.landmarks);
  $("names").replaceChildren(...names.map((name) => item(name.replaceAll("_", " "))));
  await findIn(
    current,
    names.map((name) => state.source.landmarks[name]),
    (image, { points }) => {
      image.found = points.map((point, index) => ({ ...point, number: index + 1 })).filter((point) => point.found);
      return `${image.found.length} of ${points.length} found`;
    },
  );
}

const item = (text) => Object.assign(document.createElement("li"), { textContent: text });

/** Look for points of the source in every other picture; `take` keeps what was found, and says it. */
async function findIn(current, points, take) {
  const { source, model } = state;
  const others = images.filter((image) => image !== source);
  let found = 0;
  for (const target of others) {
    const result = await call("find", { source: source.id, target: target.id, model, points });
    if (!current()) return;
    target.output.textContent = take(target, result);
    found += target.found.length > 0;
    draw(target);
  }
  $("result").textContent = `Found in ${found} of ${others.length} other pictures.`;
}

async function findMask(current) {
  const { source, model, clicks } = state;
  if (!clicks.some((click) => click.inside) || !clicks.some((click) => !click.inside)) return;
  const targets = [source, ...images.filter((image) => image !== source)];
  for (const target of targets) {
    const mask = await call("segment", { source: source.id, target: target.id, model, clicks });
    if (!current()) return;
    const inside = mask.values.reduce((count, value) => count + (value > 0), 0);
    target.mask = mask;
    target.output.textContent = `${((100 * inside) / mask.values.length).toFixed(1)} % of the picture`;
    draw(target);
  }
  $("result").textContent = `Outlined in ${targets.length} pictures.`;
}

/** Draw a picture with all that was found in it. */
function draw(image) {
  const context = image.canvas.getContext("2d");
  drawPicture(context, image.picture);
  if (image.heat) drawHeat(context, image.heat);
  if (image.mask) drawMask(context, image.mask);
  const marks = image === state.source ? own(image) : (image.found ?? []);
  for (const mark of marks) drawMark(context, mark);
  if (image.canvas.matches(":focus-visible")) drawCross(context, image.cursor);
  const result = image.output.textContent;
  image.canvas.setAttribute("aria-label", `${image.name}${result && `: ${result}`}`);
}

function own(image) {
  if (state.mode === "landmarks")
    return Object.values(image.landmarks).map((point, index) => ({ ...point, number: index + 1 }));
  return state.mode === "mask" ? state.clicks : [state.point];
}

/** Read files of the visitor's; what cannot be read is told by name. */
async function addFiles(files) {
  const faults = [];
  for (const file of files) {
    try {
      await add(file.name, new Uint8Array(await file.arrayBuffer()));
    } catch (error) {
      faults.push(error.ofPicture ? error.message : `${file.name}: ${error.message}`);
    }
  }
  await update();
  tell(faults.join("; "));
  await relate();
}

const levels = showLevels();
for (const [event, dropping] of [
  ["dragover", true],
  ["dragleave", false],
  ["drop", false],
]) {
  document.addEventListener(event, (dragged) => {
    dragged.preventDefault();
    document.body.classList.toggle("dropping", dropping);
    if (event === "drop" && settings && !$("main").hidden) addFiles([...dragged.dataTransfer.files]);
  });
}
$("files").addEventListener("change", async ({ target }) => {
  await addFiles([...target.files]);
  target.value = "";
});
for (const input of document.querySelectorAll("[name=mode]")) {
  input.addEventListener("change", () => {
    setMode(input.value);
    update();
  });
}
$("clear").addEventListener("click", () => {
  setMode("mask");
  update();
});
$("untrained").addEventListener("change", ({ target }) => {
  state.model = target.checked ? "untrained" : "trained";
  update();
});
const tabs = [...document.querySelectorAll("[role=tab]")];
for (const tab of tabs) {
  tab.addEventListener("click", () => openTab(tab));
  tab.addEventListener("keydown", ({ key }) => {
    if (["ArrowLeft", "ArrowRight"].includes(key)) openTab(tabs.find((other) => other !== tab)).focus();
  });
}

function openTab(chosen) {
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
  levels.draw();
  return chosen;
}

start().catch((error) => stop(`The page could not start: ${error.message}`));
