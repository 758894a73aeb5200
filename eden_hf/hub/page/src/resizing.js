// Resizing as PIL and the image processor do it: an anti-aliased triangle filter, in floating point.

/** Weights of `length` pixels in each of `target` pixels: [first, weights] each. */
function triangles(length, target) {
  const scale = length / target;
  const reach = Math.max(scale, 1);
  return Array.from({ length: target }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(length, Math.trunc(centre + reach + 0.5));
    const weights = [];
    for (let pixel = first; pixel < end; pixel++) {
      weights.push(Math.max(0, 1 - Math.abs(pixel - centre + 0.5) / reach));
    }
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return [first, weights.map((weight) => weight / total)];
  });
}

/** One channel of `picture` (see pictures.js) at `width` x `height`, Float32Array of the same range. */
function resizedChannel(picture, channel, width, height) {
  const { width: columns, channels, data } = picture;
  const rows = new Float32Array(height * columns);
  triangles(picture.height, height).forEach(([first, weights], row) => {
    weights.forEach((weight, index) => {
      let from = (first + index) * columns * channels + channel;
      for (let column = 0; column < columns; column++, from += channels) {
        rows[row * columns + column] += weight * data[from];
      }
    });
  });
  const resized = new Float32Array(height * width);
  triangles(columns, width).forEach(([first, weights], column) => {
    for (let row = 0; row < height; row++) {
      let sum = 0;
      for (let index = 0; index < weights.length; index++) sum += weights[index] * rows[row * columns + first + index];
      resized[row * width + column] = sum;
    }
  });
  return resized;
}

/** What the model is given: 0 to 255, [3, side, side]. */
export function squareOf(picture, side) {
  const square = new Float32Array(3 * side * side);
  for (let channel = 0; channel < 3; channel++) {
    const grey = channel > 0 && picture.channels === 1;
    square.set(
      grey ? square.subarray(0, side * side) : resizedChannel(picture, channel, side, side),
      channel * side * side,
    );
  }
  return square;
}
