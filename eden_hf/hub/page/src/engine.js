// The worker: reads pictures, embeds them and finds places in them, so that the page stays awake.
// It answers messages {key, call, given} with {key, result} or {key, error}.
import * as ort from "./ort/ort.wasm.min.mjs";
import { classify, features } from "./masks.js";
import { settle, similarity, smoothMap } from "./matching.js";
import { readPicture } from "./pictures.js";
import { squareOf } from "./resizing.js";
import { PictureError } from "./values.js";

let settings;
const sessions = {}; // by the model's name
const images = new Map(); // by id: {picture, maps: by the model's name, a map for each scale}
const smoothMaps = new Map(); // by "model source target"

const calls = {
  /** Be ready for models: `settings` of space.json, and the runtime's bytes. */
  prepare(given) {
    settings = given.settings;
    const cores = navigator.hardwareConcurrency ?? 1; // one of which is left to the page
    ort.env.wasm.wasmBinary = given.runtime;
    ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.max(1, Math.min(4, cores - 1)) : 1;
  },

  async load({ model, bytes }) {
    sessions[model] = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  },

  /** Read a file: its size and what to show of it. */
  async read({ id, bytes, name }) {
    const picture = await readPicture(new Uint8Array(bytes), name);
    images.set(id, { picture, maps: {} });
    return { width: picture.width, height: picture.height, pixels: rgba(picture) };
  },

  forget({ id }) {
    images.delete(id);
    for (const key of smoothMaps.keys()) if (key.split(" ").includes(String(id))) smoothMaps.delete(key);
  },

  /** Compute what `find` needs of two images, before it is asked for. */
  async relate({ source, target, model }) {
    if (!images.has(source) || !images.has(target)) return; // forgotten meanwhile
    await mapsOf(source, model);
    await mapsOf(target, model);
    smoothMapOf(source, target, model);
  },

  /** The embeddings of an image's points at the first scale, {vectors, dim, side}. */
  async embeddings({ id, model }) {
    return mapOf(images.get(id).picture, model, settings.matcher.scales[0]);
  },

  /** Points of one image in another: {points: [{x, y, confidence, found}], heat of the first, side}. */
  async find({ source, target, model, points }) {
    const [reference, maps] = [await mapsOf(source, model), await mapsOf(target, model)];
    const carried = smoothMapOf(source, target, model);
    const similar = points.map(({ x, y }) => similarity(reference, [x, y], maps));
    const found = points.map(({ x, y }, index) => {
      const at = settle(similar[index], carried([x, y]), settings.matcher);
      const found = at.confidence >= settings.matcher.least_confidence;
      return { x: at.place[0], y: at.place[1], confidence: at.confidence, found };
    });
    return { points: found, heat: similar[0], side: Math.sqrt(similar[0].length) };
  },

  /** How far inside a structure, above 0, places of the target are, told by clicks {x, y, inside} in the source. */
  async segment({ source, target, model, clicks }) {
    const featuresOf = async (id) => {
      const [map] = await mapsOf(id, model);
      return features(images.get(id).picture, map, id === source ? (place) => place : smoothMapOf(id, source, model));
    };
    const [reference, searched] = [await featuresOf(source), await featuresOf(target)];
    return { values: classify(reference, clicks, searched), side: searched.side };
  },
};

async function mapsOf(id, model) {
  const image = images.get(id);
  if (!image.maps[model]) {
    image.maps[model] = [];
    for (const scale of settings.matcher.scales) image.maps[model].push(await mapOf(image.picture, model, scale));
  }
  return image.maps[model];
}

async function mapOf(picture, model, scale) {
  const side = 4 * Math.max(1, Math.round((scale * settings.side) / 4));
  const square = squareOf(picture, side);
  const [input, output] = [sessions[model].inputNames[0], sessions[model].outputNames[0]];
  const result = await sessions[model].run({ [input]: new ort.Tensor("float32", square, [1, 3, side, side]) });
  const [, dim, height] = result[output].dims;
  return { vectors: result[output].data, dim, side: height };
}

function smoothMapOf(source, target, model) {
  const key = `${model} ${source} ${target}`;
  if (!smoothMaps.has(key)) {
    const [from, to] = [source, target].map((id) => images.get(id).maps[model][0]);
    smoothMaps.set(key, smoothMap(from, to, settings.matcher.map_grid));
  }
  return smoothMaps.get(key);
}

function rgba({ width, height, channels, data }) {
  const pixels = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let c = 0; c < 3; c++) pixels[4 * pixel + c] = data[channels === 1 ? pixel : 3 * pixel + c];
  }
  return pixels;
}

async function answer({ key, call, given }) {
  try {
    self.postMessage({ key, result: await calls[call](given) });
  } catch (error) {
    console.error(error);
    self.postMessage({ key, error: error.message, ofPicture: error instanceof PictureError });
  }
}

let last = Promise.resolve();
self.onmessage = ({ data }) => {
  last = last.then(() => answer(data)); // one after the other: a session runs once at a time
};
