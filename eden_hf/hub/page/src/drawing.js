// What is drawn on a picture: heat, masks, marks.

const HEAT = [255, 140, 0];
const MASK = [0, 160, 255];

export function drawPicture(context, picture) {
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, context.canvas.width, context.canvas.height);
}

/** How alike each place is, cosines {values, side}: the more, the brighter. */
export function drawHeat(context, heat) {
  overlay(context, heat, HEAT, (cosine) => 0.85 * Math.max(cosine, 0) ** 3);
}

/** Where {values, side} are above 0. */
export function drawMask(context, mask) {
  overlay(context, mask, MASK, (value) => 0.6 / (1 + Math.exp(-12 * value)));
}

/** Values over the model's square in one colour, as opaque as `alpha` tells of each. */
function overlay(context, { values, side }, colour, alpha) {
  const layer = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const pixels = new ImageData(side, side);
  values.forEach((value, node) => pixels.data.set([...colour, Math.round(255 * alpha(value))], 4 * node));
  layer.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
}

/** A ring at {x, y} in shares of the sides, with its `number`, or filled by whether a click was `inside`. */
export function drawMark(context, { x, y, number, inside }) {
  const [left, top] = [x * context.canvas.width, y * context.canvas.height];
  const radius = number === undefined ? 13 : 6;
  context.beginPath();
  context.arc(left, top, radius, 0, 2 * Math.PI);
  if (inside !== undefined) {
    context.fillStyle = inside ? "#00a0ff" : "#d3263d";
    context.fill();
  }
  for (const [width, colour] of [
    [7, "#000000"],
    [3.5, "#ffffff"],
  ]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
  if (number !== undefined) drawText(context, String(number), left + 8, top - 8);
}

function drawText(context, text, left, top) {
  context.font = "bold 17px system-ui, sans-serif";
  context.lineWidth = 4;
  context.strokeStyle = "#000000";
  context.strokeText(text, left, top);
  context.fillStyle = "#ffffff";
  context.fillText(text, left, top);
}

/** The cross that the arrow keys move. */
export function drawCross(context, { x, y }) {
  const [left, top] = [x * context.canvas.width, y * context.canvas.height];
  context.beginPath();
  for (const [across, down] of [
    [-1, 0],
    [1, 0],
    [0, -1],
    [0, 1],
  ]) {
    context.moveTo(left + 6 * across, top + 6 * down);
    context.lineTo(left + 24 * across, top + 24 * down);
  }
  for (const [width, colour] of [
    [5, "#000000"],
    [2, "#ffe600"],
  ]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
}
