// Stored values as intensities from black 0 to white 1.

/** A file that gives no picture; its message is for the visitor. */
export class PictureError extends Error {}

/** `change` of each value, in an array that keeps fractions: `map` of a typed array may not, and `from` is slow. */
export function mapped(values, change) {
  const changed = new Float64Array(values.length);
  for (let i = 0; i < values.length; i++) changed[i] = change(values[i]);
  return changed;
}

/** Values stretched from their minimum 0 to their maximum 1; all alike they become 0. */
export function fullRange(values) {
  let [low, high] = [Infinity, -Infinity];
  for (let i = 0; i < values.length; i++) {
    if (values[i] < low) low = values[i];
    if (values[i] > high) high = values[i];
  }
  const stretched = new Float32Array(values.length);
  if (high > low) for (let i = 0; i < values.length; i++) stretched[i] = (values[i] - low) / (high - low);
  return stretched;
}

/** Intensities in 8 bits, halves to even as numpy rounds them. */
export function toBytes(intensity) {
  const bytes = new Uint8Array(intensity.length);
  for (let i = 0; i < bytes.length; i++) {
    const level = Math.min(Math.max(intensity[i], 0), 1) * 255;
    const rounded = Math.round(level);
    bytes[i] = rounded - level === 0.5 && rounded % 2 ? rounded - 1 : rounded;
  }
  return bytes;
}
