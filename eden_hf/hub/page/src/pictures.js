// Files as pictures {width, height, channels: 1 | 3, data: Uint8Array}, as `eden_hf.data.read_image` reads them.
import { convertIndexedToRgb, decode as decodePng } from "fast-png";
import { readDicom } from "./dicom.js";
import { fullRange, PictureError, toBytes } from "./values.js";

const MOST_PIXELS = 100e6;
const PNG = [0x89, 0x50, 0x4e, 0x47];

/** The picture in a file; `PictureError` says why there is none, and what to do. */
export async function readPicture(bytes, name) {
  if (!bytes.length) throw new PictureError(`${name} is empty`);
  try {
    if (isDicom(bytes, name)) return await readDicom(bytes, decodedByBrowser);
    if (PNG.every((byte, index) => bytes[index] === byte)) return await readPng(bytes);
    return await decodedByBrowser(bytes);
  } catch (error) {
    if (error instanceof PictureError) throw new PictureError(`${name}: ${error.message}`);
    throw new PictureError(`${name} is no picture that this page can read: give a PNG, a JPEG or a DICOM file`);
  }
}

function isDicom(bytes, name) {
  return String.fromCharCode(...bytes.subarray(128, 132)) === "DICM" || /\.(dcm|dicom)$/i.test(name);
}

/** PNG in its own depth: browsers keep 8 bits of 16, and what they keep of transparent pixels differs. */
async function readPng(bytes) {
  const header = new DataView(bytes.buffer, bytes.byteOffset);
  refuseLarge(header.getUint32(16), header.getUint32(20));
  const [depth, colours] = [header.getUint8(24), header.getUint8(25)];
  if (depth < 8 && colours === 0) return decodedByBrowser(bytes); // packed bits
  const png = decodePng(bytes);
  if (png.transparency?.length) return decodedByBrowser(bytes); // one colour stands for transparent
  const channels = png.palette ? png.palette[0].length : png.channels;
  const values = png.palette ? convertIndexedToRgb(png) : png.data;
  return blended({ width: png.width, height: png.height, channels, values });
}

/** Values of 1 to 4 channels, the last of 2 or 4 their alpha, blended over black; 16 bits by the range they use. */
function blended({ width, height, channels, values }) {
  const colours = channels - 1 + (channels % 2);
  const white = values instanceof Uint16Array ? 65535 : 255;
  let intensity = new Float32Array(width * height * colours);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let c = 0; c < colours; c++) intensity[pixel * colours + c] = values[pixel * channels + c];
  }
  const black = intensity.every((value) => value === 0);
  intensity = white === 255 ? intensity.map((value) => value / 255) : fullRange(intensity);
  if (colours < channels) {
    const alpha = (pixel) => values[pixel * channels + colours] / white;
    const onlyAlpha = black && new Set(values.filter((_, index) => index % channels === colours)).size > 1;
    intensity = intensity.map((value, index) => (onlyAlpha ? 1 : value) * alpha(Math.floor(index / colours)));
  }
  return greyWhereGrey({ width, height, channels: colours, data: toBytes(intensity) });
}

/** What the browser makes of a file, without colour management, over black. */
async function decodedByBrowser(bytes) {
  const bitmap = await createImageBitmap(new Blob([bytes]), { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  refuseLarge(width, height);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const pixels = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  for (let pixel = 0; pixel < width * height; pixel++) data.set(pixels.subarray(4 * pixel, 4 * pixel + 3), 3 * pixel);
  return greyWhereGrey({ width, height, channels: 3, data });
}

function greyWhereGrey(picture) {
  const { channels, data } = picture;
  if (channels === 1) return picture;
  for (let i = 0; i < data.length; i += 3) {
    if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return picture;
  }
  return { ...picture, channels: 1, data: data.filter((_, index) => index % 3 === 0) };
}

function refuseLarge(width, height) {
  if (width * height > MOST_PIXELS) {
    throw new PictureError(`${width} x ${height} pixels are too many for a page: make it smaller`);
  }
}
