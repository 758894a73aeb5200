// DICOM shown as `eden_hf.data.dicom` shows it: first frame, stored bits, rescaling, VOI LUT or window, MONOCHROME1.
import { Decoder } from "@cornerstonejs/jpeg-lossless-decoder-js";
import dicomParser from "dicom-parser";
import { fullRange, mapped, PictureError, toBytes } from "./values.js";

const UNCOMPRESSED = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]; // both little-endian
const JPEG = "1.2.840.10008.1.2.4.50";
const JPEG_LOSSLESS = ["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"];
/** Names of other ways to store pixels, by how their identifiers begin. */
const OTHERS = {
  "1.2.840.10008.1.2.1.99": "deflated",
  "1.2.840.10008.1.2.2": "big-endian",
  "1.2.840.10008.1.2.4.5": "JPEG of 12 bits",
  "1.2.840.10008.1.2.4.8": "JPEG-LS",
  "1.2.840.10008.1.2.4.9": "JPEG 2000",
  "1.2.840.10008.1.2.5": "RLE",
};
const MEND = "convert it to PNG, or to uncompressed DICOM";

/** The picture in a DICOM file; `decodeJpeg` makes pictures of JPEG's bytes. */
export async function readDicom(bytes, decodeJpeg) {
  const dataset = dicomParser.parseDicom(bytes, { inflater: () => refuse("deflated files") });
  const pixels = dataset.elements.x7fe00010;
  if (!pixels) throw new PictureError("this DICOM file holds no image");
  const frames = dataset.intString("x00280008") ?? 1;
  if (frames > 1) refuse(`several frames (${frames})`);
  const colours = (dataset.string("x00280004") ?? "").trim().toUpperCase();
  const samples = dataset.uint16("x00280002") ?? 1;
  const size = { width: dataset.uint16("x00280011"), height: dataset.uint16("x00280010") };
  const syntax = dataset.string("x00020010") ?? UNCOMPRESSED[0];
  if (syntax === JPEG && samples === 1) {
    const picture = await decodeJpeg(fragment(dataset, pixels));
    return shown(dataset, picture, picture.data, colours);
  }
  if (samples > 1 && !UNCOMPRESSED.includes(syntax)) refuse("compressed colours");
  const values = storedValues(dataset, pixels, syntax, size.width * size.height * samples);
  if (samples === 1) return shown(dataset, size, values, colours);
  return coloured(dataset, size, values, colours);
}

function refuse(what) {
  throw new PictureError(`DICOM with ${what} is not read here: ${MEND}`);
}

function fragment(dataset, pixels) {
  if (pixels.basicOffsetTable?.length) return dicomParser.readEncapsulatedImageFrame(dataset, pixels, 0);
  return dicomParser.readEncapsulatedPixelDataFromFragments(dataset, pixels, 0, pixels.fragments.length);
}

/** `count` values as stored, of which `BitsStored` bits below `HighBit` count. */
function storedValues(dataset, pixels, syntax, count) {
  const allocated = dataset.uint16("x00280100");
  if (![8, 16].includes(allocated)) refuse(`${allocated} bits a value`);
  let bytes;
  if (UNCOMPRESSED.includes(syntax)) {
    bytes = dataset.byteArray.slice(pixels.dataOffset, pixels.dataOffset + (count * allocated) / 8);
  } else if (JPEG_LOSSLESS.includes(syntax)) {
    const coded = fragment(dataset, pixels);
    bytes = new Uint8Array(new Decoder().decompress(coded.buffer, coded.byteOffset, coded.length));
  } else {
    const known = Object.keys(OTHERS).find((start) => syntax.startsWith(start));
    refuse(`${OTHERS[known] ?? `the transfer syntax ${syntax}`} pixels`);
  }
  if (bytes.length * 8 < count * allocated) throw new PictureError("its pixels are cut off: restore the file");
  const view = new DataView(bytes.buffer);
  const stored = dataset.uint16("x00280101") ?? allocated;
  const told = dataset.uint16("x00280102") ?? 0;
  const high = told >= stored && told < allocated ? told : stored - 1;
  const signed = dataset.uint16("x00280103") === 1;
  const values = new Float32Array(count);
  for (let index = 0; index < count; index++) {
    const value = allocated === 8 ? bytes[index] : view.getUint16(2 * index, true);
    const lifted = value << (31 - high); // the highest stored bit becomes the sign's
    values[index] = signed ? lifted >> (32 - stored) : lifted >>> (32 - stored);
  }
  return values;
}

/** Red, green and blue, pixel by pixel or plane by plane, as a picture. */
function coloured(dataset, { width, height }, values, colours) {
  if (colours !== "RGB") refuse(`${colours || "untold"} colours`);
  const pixels = width * height;
  const byPlane = dataset.uint16("x00280006") === 1;
  const inOrder = byPlane ? values.map((_, index) => values[(index % 3) * pixels + Math.floor(index / 3)]) : values;
  const white = 2 ** (dataset.uint16("x00280101") ?? 8) - 1;
  return { width, height, channels: 3, data: toBytes(mapped(inOrder, (value) => value / white)) };
}

/** Grey values as a picture: the best of VOI LUT, window and full range that shows something. */
function shown(dataset, { width, height }, values, colours) {
  if (!["MONOCHROME1", "MONOCHROME2"].includes(colours)) {
    refuse(`${colours || "untold"} colours`);
  }
  const fills = paddingOf(dataset, values);
  const content = throughModality(dataset, fills ? values.filter((value) => !fills(value)) : values);
  if (isBlank(content)) throw new PictureError("a blank image: every pixel has the same value");
  const inverted = colours === "MONOCHROME1" || (dataset.string("x20500020") ?? "").toUpperCase() === "INVERSE";
  let grey;
  for (const through of [throughVoiLut, throughWindow, (_, content) => fullRange(content)]) {
    const intensity = through(dataset, content);
    if (!intensity) continue;
    grey = toBytes(inverted ? mapped(intensity, (value) => 1 - value) : intensity);
    if (!isBlank(grey)) break;
  }
  let next = 0;
  const data = fills ? Uint8Array.from(values, (value) => (fills(value) ? 0 : grey[next++])) : grey;
  return { width, height, channels: 1, data };
}

const isBlank = (values) => values.every((value) => value === values[0]);

/** Tells whether a stored value only fills up the frame; undefined where none does. */
function paddingOf(dataset, values) {
  if (!dataset.elements.x00280120?.length) return undefined;
  const signed = dataset.uint16("x00280103") === 1;
  const ends = ["x00280120", "x00280121"]
    .filter((tag) => dataset.elements[tag]?.length)
    .map((tag) => (signed ? dataset.int16(tag) : dataset.uint16(tag)));
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const fills = (value) => value >= low && value <= high;
  const content = values.filter((value) => !fills(value));
  return content.length && content.length < values.length && !isBlank(content) ? fills : undefined;
}

function throughModality(dataset, stored) {
  const lut = lookUpTable(dataset, "x00283000");
  if (lut) return lookedUp(stored, lut.entries, lut.first);
  const slope = dataset.floatString("x00281053") ?? 1;
  const intercept = dataset.floatString("x00281052") ?? 0;
  return mapped(stored, (value) => value * slope + intercept);
}

function throughVoiLut(dataset, values) {
  const lut = lookUpTable(dataset, "x00283010");
  return lut && lookedUp(values, fullRange(lut.entries), lut.first);
}

/** The first window: linear, exact or sigmoid (PS3.3 C.11.2.1.2). */
function throughWindow(dataset, values) {
  const [centre, width] = [dataset.floatString("x00281050"), dataset.floatString("x00281051")];
  if (centre === undefined || width === undefined) return undefined;
  const shape = (dataset.string("x00281056") ?? "LINEAR").toUpperCase();
  if (shape === "SIGMOID") return mapped(values, (value) => 1 / (1 + Math.exp((-4 * (value - centre)) / width)));
  const [middle, extent] = shape === "LINEAR_EXACT" ? [centre, width] : [centre - 0.5, width - 1];
  if (!(extent > 0)) return mapped(values, (value) => (value > middle ? 1 : 0));
  return mapped(values, (value) => (value - middle) / extent + 0.5);
}

/** The first look-up table of a sequence. */
function lookUpTable(dataset, tag) {
  const item = dataset.elements[tag]?.items?.[0]?.dataSet;
  if (!item?.elements.x00283006) return undefined;
  const [count, first, bits] = [0, 1, 2].map((index) => item.uint16("x00283002", index));
  const signed = dataset.uint16("x00280103") === 1;
  const words = item.elements.x00283006.length / 2;
  const entries = Array.from({ length: words }, (_, index) => item.uint16("x00283006", index));
  const declared = count || 65536;
  const packed = bits <= 8 && words < declared; // two entries in a word, the first in its low byte
  const unpacked = packed ? entries.flatMap((word) => [word & 255, word >> 8]) : entries;
  return { entries: unpacked.slice(0, declared), first: signed && first > 32767 ? first - 65536 : first };
}

function lookedUp(values, table, first) {
  return mapped(values, (value) => table[Math.min(Math.max(Math.round(value) - first, 0), table.length - 1)]);
}
