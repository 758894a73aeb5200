"""DICOM to 8-bit pictures, shown as a viewer would show them; needs the extra `dicom` (pydicom and its decoders).

Grey images go through the pipeline of DICOM PS3.3 C.11: stored values, of which only the stored bits count (overlays
in the bits above or below are dropped); modality LUT or rescale slope and intercept; VOI LUT, else the first window,
else the full range of the image; MONOCHROME1, or a PresentationLUTShape of INVERSE, inverted. Black and white are the
ends of the VOI LUT or window, so the slices of a series stay comparable. Padding (`PixelPaddingValue`) is black and
counts in no range. Colours (RGB, YBR, palette) become RGB. An element that is present but empty counts as absent.

A VOI LUT or window that shows nothing, every pixel alike, is passed over with a logged warning. An image whose pixels
are all alike is an error: never a silent blank.
"""

import logging
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import PIL.Image

from eden_hf.data.errors import DecodeError, NoPixelsError
from eden_hf.data.limits import most_bytes, refuse_bomb
from eden_hf.data.pixel_size import PixelSize, pixel_size
from eden_hf.image_processing_eden_pixels import full_range

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset, FileDataset

logger = logging.getLogger(__name__)

# What turns stored values into shown ones; enhanced images hold them in functional groups, for all or for each frame.
_DISPLAY_KEYWORDS = (
    "BitsStored", "ModalityLUTSequence", "PhotometricInterpretation", "PixelRepresentation", "PresentationLUTShape",
    "RescaleIntercept", "RescaleSlope", "VOILUTFunction", "VOILUTSequence", "WindowCenter", "WindowWidth",
)  # fmt: skip
_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")
# Millimetres (height, width) in the order of trust: in the patient, at the detector, on the film that was scanned.
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
# What describes pixels, whatever unknown kind of object a damaged file says it is.
_OF_PIXELS = ("BitsAllocated", "PhotometricInterpretation", "SamplesPerPixel")
_PIECE = 2**20  # bytes, inflated at a time
_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"  # as their data begin
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {
    0xC4,
    0xC8,
    0xCC,
}  # markers before which a size stands; 0xF7 is of JPEG-LS
_DECODED_TO_RGB = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # by pydicom


def open_dicom(data: bytes, name: str) -> "FileDataset":
    """Parse a DICOM file, with or without the preamble and file meta information it should have.

    Args:
        data: the whole file.
        name: what log messages call it.

    Raises:
        NoPixelsError: an object of another kind (DICOMDIR, report, presentation state).
        DecodeError: pydicom is not installed, this is no DICOM at all, or its pixels are missing.
        Exception: whatever pydicom raises on damaged files.
    """
    dataset = parse_dicom(BytesIO(data), name)
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise _without_pixels(dataset)
    _complete_transfer_syntax(dataset)
    if colours := dataset.get("PhotometricInterpretation"):
        dataset.PhotometricInterpretation = str(colours).strip().upper()  # some write `monochrome2`
    return dataset


def dicom_size(file: BinaryIO, name: str) -> tuple[tuple[int, int], PixelSize]:
    """Stored width and height, and the size of a pixel of the first frame, from the header alone.

    Raises:
        DecodeError: pydicom is not installed, or the image is too large.
        Exception: whatever pydicom raises on damaged files.
    """
    dataset = parse_dicom(file, name, header_only=True)
    width, height = int(dataset.Columns), int(dataset.Rows)
    refuse_bomb(width, height)
    return (width, height), dicom_pixel_size(dataset, 0)


def parse_dicom(file: BinaryIO, name: str, header_only: bool = False) -> "FileDataset":
    """A DICOM object of any kind, with or without preamble, never inflated beyond the largest image allowed.

    Raises:
        DecodeError: pydicom is not installed, or its deflated data are too large.
        Exception: whatever pydicom raises on damaged files.
    """
    try:
        import pydicom
    except ImportError as error:
        raise DecodeError("DICOM needs pydicom: pip install eden_hf[dicom]") from error
    _refuse_inflated_bomb(file)
    dataset = pydicom.dcmread(file, force=True, stop_before_pixels=header_only)
    dataset.filename = name
    return dataset


def _refuse_inflated_bomb(file: BinaryIO) -> None:
    """Deflated data sets that hold more than the largest image allowed: pydicom inflates them whole."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    limit, start = most_bytes(), file.tell()
    if limit is not None and file.read(132)[128:] == b"DICM":
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)  # which is plain
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            _refuse_longer(zlib.decompressobj(-zlib.MAX_WBITS), file.read(), limit)
    file.seek(start)


def _refuse_longer(inflating: Any, data: bytes, limit: int) -> None:
    total = 0
    while data and not inflating.eof:
        total += len(inflating.decompress(data, _PIECE))
        if total > limit:
            raise DecodeError(
                f"its deflated data are of more than {limit} bytes, what the largest image allowed takes; raise "
                "PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
            )
        data = inflating.unconsumed_tail


def _without_pixels(dataset: "FileDataset") -> DecodeError:
    """Tell another kind of object from an image that has lost its pixels, and both from what is no DICOM."""
    kinds = (dataset.get("SOPClassUID"), dataset.file_meta.get("MediaStorageSOPClassUID"))
    kind = next((kind for kind in kinds if kind), None)
    if not kind:
        return DecodeError("no DICOM image in it; leave the file out")
    damaged = kind.name == kind and any(keyword in dataset for keyword in _OF_PIXELS)  # it has no name
    if damaged or "Image Storage" in kind.name:
        return DecodeError(f"DICOM without pixel data ({kind.name}); leave the file out, or restore it")
    return NoPixelsError(f"no image but {kind.name}; leave the file out")


def frame_count(dataset: "Dataset") -> int:
    """Number of frames, 1 where the file does not tell."""
    return max(int(dataset.get("NumberOfFrames") or 1), 1)


def dicom_image(dataset: "FileDataset", frame: int) -> PIL.Image.Image:
    """One frame (counted from 0), mode "L" or "RGB".

    Raises:
        DecodeError: no decoder for the compression, a colour space that is not known, too large or blank.
        Exception: whatever pydicom and its decoders raise on damaged files.
    """
    from pydicom.pixels import apply_color_lut

    _refuse_undecodable(dataset, frame)
    pixels = _stored_values(dataset, frame)
    colours = dataset.PhotometricInterpretation
    if colours in ("MONOCHROME1", "MONOCHROME2"):
        return PIL.Image.fromarray(_grey(dataset, pixels, frame))
    if colours == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)[..., :3]  # a fourth channel is alpha
        white = np.iinfo(pixels.dtype).max
    elif colours in _DECODED_TO_RGB:
        white = 2**dataset.BitsStored - 1
    else:
        raise DecodeError(f"the photometric interpretation {colours!r} is not known; convert the file to RGB")
    shown = _eight_bits(pixels / white)
    if _is_blank(shown):
        raise DecodeError(f"a blank image: every pixel has the colour {pixels[0, 0].tolist()}; leave it out")
    return PIL.Image.fromarray(shown)


def dicom_pixel_size(dataset: "FileDataset", frame: int) -> PixelSize:
    """Of a frame (counted from 0), in millimetres from the first of `_SPACINGS` that makes sense, else as a ratio."""
    holders = _holders(dataset, frame)
    for keyword in (*_SPACINGS, "PixelAspectRatio"):
        try:
            element = _last_given(holders, keyword)
            if element is None:
                continue
            height_and_width: Any = np.atleast_1d(element.value)
        except Exception as error:  # no numbers
            height_and_width = [error]
        source = keyword if keyword in _SPACINGS else None
        described = f"{dataset.filename!s}: its {keyword}"
        if (size := pixel_size(height_and_width[::-1], source, described=described)) is not None:
            return size
    return PixelSize()


def _complete_transfer_syntax(dataset: "FileDataset") -> None:
    """Files without it are uncompressed, in the encoding that they were found to have."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" in dataset.file_meta:
        return
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise DecodeError("compressed, but its transfer syntax is missing; restore the file from its source")
    implicit, little_endian = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _refuse_undecodable(dataset: "FileDataset", frame: int) -> None:
    """Compressions without decoder, and images of a size that PIL would take for a decompression bomb."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DecodeError(f"the transfer syntax {syntax.name} is not supported; convert the file") from error
    if not decoder.is_available:
        missing = ", or ".join(decoder.missing_dependencies)
        raise DecodeError(f"no decoder for {syntax.name} is installed ({missing}): pip install eden_hf[dicom-jpeg]")
    refuse_bomb(dataset.Columns, dataset.Rows)
    if syntax.is_encapsulated and syntax != RLELossless:  # whose size is that of the header
        compressed = get_frame(dataset.PixelData, frame, number_of_frames=frame_count(dataset))
        refuse_bomb(*_compressed_size(compressed), "pixels, as the compressed data tell,")


def _compressed_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of JPEG, JPEG-LS or JPEG 2000, by which decoders go; (0, 0) without one."""
    if (at := data.find(_JPEG_2000)) >= 0:
        right, bottom, left, top = struct.unpack(">4I", data[at + 8 : at + 24])
        return right - left, bottom - top
    at = data.find(_JPEG) + 2
    while at >= 2 and len(data) >= at + 9:
        if data[at] == 0xFF and data[at + 1] in _JPEG_FRAMES:
            height, width = struct.unpack(">2H", data[at + 5 : at + 9])
            return width, height
        at += 1 if data[at] != 0xFF or data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _stored_values(dataset: "FileDataset", frame: int) -> np.ndarray:
    """Pixels of a frame, of which only the bits from `HighBit` down count, `BitsStored` of them."""
    from pydicom.pixels import pixel_array
    from pydicom.uid import RLELossless

    high = dataset.get("HighBit")
    if high is None or "PixelData" not in dataset or not dataset.BitsStored - 1 < high < dataset.BitsAllocated:
        return pixel_array(dataset, index=frame)  # which takes the lowest bits
    syntax, allocated, stored = dataset.file_meta.TransferSyntaxUID, dataset.BitsAllocated, dataset.BitsStored
    if syntax.is_encapsulated and syntax != RLELossless:
        raise DecodeError(f"compressed, with HighBit {high} for {stored} stored bits; convert the file")
    whole = pixel_array(dataset, index=frame, correct_unused_bits=False)
    return (whole << (allocated - 1 - high)) >> (allocated - stored)


def _grey(dataset: "FileDataset", pixels: np.ndarray, frame: int) -> np.ndarray:
    """Stored grey values [H, W] as uint8 [H, W]."""
    settings = _display_settings(dataset, frame)
    padding = _padding(dataset, pixels)
    with np.errstate(over="ignore", invalid="ignore"):
        content = _through_modality(pixels[~padding], settings)
        if not np.isfinite(content.max() - content.min()):
            raise DecodeError("pixel values that are not finite, or too far apart; leave the file out")
    if _is_blank(content):
        raise DecodeError(f"a blank image: every pixel has the value {content[0]:g}; leave it out")
    picture = np.zeros(pixels.shape, np.uint8)
    picture[~padding] = _shown(content, settings, str(dataset.filename))
    return picture


def _shown(values: np.ndarray, settings: "Dataset", name: str) -> np.ndarray:
    """Values after the modality LUT as uint8, by the best of VOI LUT, window and full range that shows something."""
    ways: dict[str, Callable[[np.ndarray, Dataset], np.ndarray]] = {}
    if settings.get("VOILUTSequence"):
        ways["VOI LUT"] = _through_voi_lut
    if settings.get("WindowCenter") is not None and settings.get("WindowWidth") is not None:
        ways["window"] = _through_window
    for kind, through in ways.items():
        try:
            shown = _grey_levels(through(values, settings), settings)
        except Exception as error:  # headers are wrong in many ways
            logger.warning("%s: its %s is passed over: %s", name, kind, error)
            continue
        if not _is_blank(shown):
            return shown
        logger.warning("%s: its %s is passed over: it shows every pixel alike", name, kind)
    return _grey_levels(full_range(values), settings)


def _grey_levels(intensity: np.ndarray, settings: "Dataset") -> np.ndarray:
    """Intensities in [0, 1] as uint8, inverted where the file asks for it."""
    shape = str(settings.get("PresentationLUTShape", "")).upper()
    inverted = settings.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE"  # either says so
    return _eight_bits(1 - intensity if inverted else intensity)


def _display_settings(dataset: "Dataset", frame: int) -> "Dataset":
    """The elements of `_DISPLAY_KEYWORDS` that hold for `frame`."""
    from pydicom import Dataset

    settings = Dataset()
    settings.BitsStored, settings.PixelRepresentation = 16, 0  # float pixel data has none, and no use for them
    settings.RescaleSlope, settings.RescaleIntercept = 1, 0
    holders = _holders(dataset, frame)
    for keyword in _DISPLAY_KEYWORDS:
        if (element := _last_given(holders, keyword)) is not None:
            settings.add(element)
    settings.file_meta = dataset.file_meta  # LUTs are bytes in its byte order
    return settings


def _holders(dataset: "Dataset", frame: int) -> list["Dataset"]:
    """What has elements that hold for `frame`, what counts most last."""
    holders = [dataset]
    for groups in (dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")):
        if groups:
            group = groups[frame] if len(groups) > 1 else groups[0]
            holders += [group[name][0] for name in _GROUPS if group.get(name)]
    return holders


def _last_given(holders: list["Dataset"], keyword: str) -> "DataElement | None":
    """The last element of that name; some files write elements that they have no value for."""
    given = [holder[keyword] for holder in holders if keyword in holder and not holder[keyword].is_empty]
    return given[-1] if given else None


def _padding(dataset: "Dataset", pixels: np.ndarray) -> np.ndarray:
    """Where pixels only fill up the frame; nowhere if that would leave a blank."""
    if dataset.get("PixelPaddingValue") is None or pixels.dtype.kind == "f":
        return np.zeros(pixels.shape, bool)
    ends = [dataset.PixelPaddingValue, dataset.get("PixelPaddingRangeLimit")]
    stored = np.array([end for end in ends if end is not None]).astype(pixels.dtype)  # some write -2000 as 63536
    low, high = stored.min(), stored.max()
    padding = (pixels >= low) & (pixels <= high)
    content = pixels[~padding]
    return padding if content.size and not _is_blank(content) else np.zeros(pixels.shape, bool)


def _through_modality(stored: np.ndarray, settings: "Dataset") -> np.ndarray:
    """Stored values as what was measured, by the modality LUT or slope and intercept."""
    if settings.get("ModalityLUTSequence"):
        return _looked_up(stored, *_lut(settings.ModalityLUTSequence[0], settings)).astype(np.int64)
    return stored * np.float64(settings.RescaleSlope) + np.float64(settings.RescaleIntercept)


def _through_voi_lut(values: np.ndarray, settings: "Dataset") -> np.ndarray:
    """The first VOI LUT; its lowest entry is black and its highest white, as few use all the bits they declare."""
    table, first = _lut(settings.VOILUTSequence[0], settings)
    return _looked_up(values, full_range(table), first)


def _lut(item: "Dataset", settings: "Dataset") -> tuple[np.ndarray, int]:
    """The entries of a look-up table, and the value that the first is for.

    Raises:
        DecodeError: it has fewer entries than it declares.
    """
    count, first, bits = item.LUTDescriptor
    count = count % 2**16 or 2**16  # 0 stands for 65536, which 16 bits do not hold
    entries = item.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, "<u2" if settings.file_meta.TransferSyntaxUID.is_little_endian else ">u2")
    entries = np.atleast_1d(entries)
    if bits <= 8 and 2 * len(entries) in (count, count + 1):  # two in a word, the first in its low byte
        entries = entries.astype("<u2").view(np.uint8)
    if len(entries) < count:
        raise DecodeError(f"a look-up table of {len(entries)} entries where {count} are declared; convert the file")
    return entries[:count], first


def _looked_up(values: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    return table[np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)]


def _through_window(values: np.ndarray, settings: "Dataset") -> np.ndarray:
    """The first window, linear or sigmoid."""
    from pydicom.pixels import apply_windowing

    with np.errstate(over="ignore"):
        black, white = apply_windowing(np.array([-np.inf, np.inf]), settings)
        return (apply_windowing(values, settings) - black) / (white - black)


def _eight_bits(intensity: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(intensity, 0, 1) * 255).astype(np.uint8)


def _is_blank(pixels: np.ndarray) -> bool:
    """Whether all of [N], [H, W] or [H, W, 3] are alike."""
    return bool((pixels == (pixels[0, 0] if pixels.ndim == 3 else pixels.flat[0])).all())
