// Masks from a few clicks: kernel regression of "inside" on what tells places apart: embedding, grey values, place.
import { enlarged, nodePlaces, solved } from "./matching.js";
import { squareOf } from "./resizing.js";

const SIDE = 64;
const AROUND = 3; // nodes to each side, of the mean grey value
// Chosen on phantoms: how much each feature weighs, how firm clicks are, and how far from all of them is outside.
const [OF_EMBEDDING, OF_GREY, OF_PLACE] = [0.5, 0.7, 4];
const [RIDGE, OUTSIDE] = [0.05, 0.45];

/**
 * Features of the places of a picture: {vectors: rows, dim, side}.
 * @param map its dense map at the first scale
 * @param carried where places of it lie in the picture that is clicked in
 */
export function features(picture, map, carried) {
  const nodes = SIDE * SIDE;
  const dim = map.dim + 4;
  const vectors = new Float32Array(nodes * dim);
  const put = (column, values, weight) =>
    values.forEach((value, node) => (vectors[node * dim + column] = weight * value));
  for (let d = 0; d < map.dim; d++) {
    put(d, enlarged(map.vectors.subarray(d * map.side ** 2, (d + 1) * map.side ** 2), map.side, SIDE), OF_EMBEDDING);
  }
  const grey = standardGrey(picture);
  put(map.dim, grey, OF_GREY);
  put(
    map.dim + 1,
    grey.map((_, node) => meanAround(grey, node)),
    OF_GREY,
  );
  const places = nodePlaces(SIDE).map(carried);
  for (const axis of [0, 1])
    put(
      map.dim + 2 + axis,
      places.map((place) => place[axis]),
      OF_PLACE,
    );
  return { vectors, dim, side: SIDE };
}

/** Grey values [SIDE * SIDE] of mean 0 and deviation 1. */
function standardGrey(picture) {
  const nodes = SIDE * SIDE;
  const square = squareOf(picture, SIDE);
  const grey = square
    .slice(0, nodes)
    .map((value, node) => (value + square[nodes + node] + square[2 * nodes + node]) / 3);
  const mean = grey.reduce((sum, value) => sum + value, 0) / nodes;
  const deviation = Math.sqrt(grey.reduce((sum, value) => sum + (value - mean) ** 2, 0) / nodes);
  return grey.map((value) => (value - mean) / (deviation || 1));
}

function meanAround(values, node) {
  const [row, column] = [Math.floor(node / SIDE), node % SIDE];
  const within = (index) => Math.min(Math.max(index, 0), SIDE - 1);
  let sum = 0;
  for (let down = -AROUND; down <= AROUND; down++) {
    for (let across = -AROUND; across <= AROUND; across++)
      sum += values[within(row + down) * SIDE + within(column + across)];
  }
  return sum / (2 * AROUND + 1) ** 2;
}

/**
 * How far inside each place of an image is: above 0 inside, below outside.
 * @param reference features of the image that was clicked in
 * @param clicks {x, y, inside} in shares of its sides
 * @param searched features of the image that is told
 */
export function classify(reference, clicks, searched) {
  const rows = clicks.map(({ x, y }) => rowAt(reference, x, y));
  const matrix = rows.map((a, i) => rows.map((b, j) => kernel(a, b) + (i === j ? RIDGE : 0)));
  const [weights] = solved(matrix, [clicks.map(({ inside }) => (inside ? 1 : -1) + OUTSIDE)]);
  return Float32Array.from({ length: searched.side ** 2 }, (_, node) => {
    const place = searched.vectors.subarray(node * searched.dim, (node + 1) * searched.dim);
    return rows.reduce((sum, row, index) => sum + weights[index] * kernel(row, place), -OUTSIDE);
  });
}

function rowAt({ vectors, dim, side }, x, y) {
  const [column, row] = [x, y].map((share) => Math.min(Math.floor(share * side), side - 1));
  const node = row * side + column;
  return vectors.subarray(node * dim, (node + 1) * dim);
}

function kernel(a, b) {
  let squared = 0;
  for (let d = 0; d < a.length; d++) squared += (a[d] - b[d]) ** 2;
  return Math.exp(-squared);
}
