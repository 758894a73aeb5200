"""DICOM to 8-bit pictures, shown as a viewer would show them; needs the extra `dicom` (pydicom and its decoders).

Grey images go through the pipeline of DICOM PS3.3 C.11: stored values, of which only the stored bits count (overlays
in the bits above are dropped); modality LUT or rescale slope and intercept; VOI LUT, else the first window, else the
full range of the image; MONOCHROME1 inverted. Black and white are the ends of the VOI LUT or window, so the slices of
a series stay comparable. Padding (`PixelPaddingValue`) is black and counts in no range. Colours (RGB, YBR, palette)
become RGB.

A VOI LUT or window that shows nothing, every pixel alike, is passed over with a logged warning. An image whose pixels
are all alike is an error: never a silent blank.
"""

import logging
from collections.abc import Callable
from copy import deepcopy
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from eden_hf.image_processing_eden import full_range

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

logger = logging.getLogger(__name__)

# What turns stored values into shown ones; enhanced images hold them in functional groups, for all or for each frame.
_DISPLAY_KEYWORDS = (
    "BitsStored", "ModalityLUTSequence", "PhotometricInterpretation", "PixelRepresentation", "RescaleIntercept",
    "RescaleSlope", "VOILUTFunction", "VOILUTSequence", "WindowCenter", "WindowWidth",
)  # fmt: skip
_DISPLAY_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_DECODED_TO_RGB = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # by pydicom


class DecodeError(ValueError):
    """Why bytes give no picture, and what to do about it; `eden_hf.data.reading` adds the name of the file."""


def open_dicom(data: bytes, name: str) -> "FileDataset":
    """Parse a DICOM file, with or without the preamble and file meta information it should have.

    Args:
        data: the whole file.
        name: what log messages call it.

    Raises:
        DecodeError: pydicom is not installed, or this is no DICOM image.
        Exception: whatever pydicom raises on damaged files.
    """
    try:
        import pydicom
    except ImportError as error:
        raise DecodeError("DICOM needs pydicom: pip install eden_hf[dicom]") from error
    dataset = pydicom.dcmread(BytesIO(data), force=True)
    dataset.filename = name
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
        found = f"DICOM without pixel data ({kind.name})" if kind else "no DICOM image in it"
        raise DecodeError(f"{found}; leave the file out")
    _complete_transfer_syntax(dataset)
    return dataset


def frame_count(dataset: "Dataset") -> int:
    """Number of frames, 1 where the file does not tell."""
    return max(int(dataset.get("NumberOfFrames") or 1), 1)


def dicom_image(dataset: "FileDataset", frame: int) -> PIL.Image.Image:
    """One frame (counted from 0), mode "L" or "RGB".

    Raises:
        DecodeError: no decoder for the compression, a colour space that is not known, too large or blank.
        Exception: whatever pydicom and its decoders raise on damaged files.
    """
    from pydicom.pixels import apply_color_lut, pixel_array

    _refuse_undecodable(dataset)
    pixels = pixel_array(dataset, index=frame)
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


def _refuse_undecodable(dataset: "FileDataset") -> None:
    """Compressions without decoder, and images of a size that PIL would take for a decompression bomb."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DecodeError(f"the transfer syntax {syntax.name} is not supported; convert the file") from error
    if not decoder.is_available:
        missing = ", or ".join(decoder.missing_dependencies)
        raise DecodeError(f"no decoder for {syntax.name} is installed ({missing}): pip install eden_hf[dicom-jpeg]")
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and dataset.Rows * dataset.Columns > 2 * limit:
        raise DecodeError(
            f"{dataset.Rows} x {dataset.Columns} pixels are more than {2 * limit}; raise PIL.Image.MAX_IMAGE_PIXELS "
            "if you trust the file"
        )


def _grey(dataset: "FileDataset", pixels: np.ndarray, frame: int) -> np.ndarray:
    """Stored grey values [H, W] as uint8 [H, W]."""
    from pydicom.pixels import apply_modality_lut

    settings = _display_settings(dataset, frame)
    padding = _padding(dataset, pixels)
    content = pixels[~padding]
    if content.dtype.kind in "iu" and content.itemsize < 8:
        content = content.astype(np.int64)  # pydicom looks LUTs up in the type it is given, which may be too narrow
    content = apply_modality_lut(content, settings)
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(content.max() - content.min()):
            raise DecodeError("pixel values that are not finite, or too far apart; leave the file out")
    if _is_blank(content):
        raise DecodeError(f"a blank image: every pixel has the value {content[0]}; leave it out")
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
    """Intensities in [0, 1] as uint8, MONOCHROME1 inverted."""
    return _eight_bits(1 - intensity if settings.PhotometricInterpretation == "MONOCHROME1" else intensity)


def _display_settings(dataset: "Dataset", frame: int) -> "Dataset":
    """The elements of `_DISPLAY_KEYWORDS` that hold for `frame`."""
    from pydicom import Dataset

    holders = [dataset]
    for groups in (dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")):
        if groups:
            group = groups[frame] if len(groups) > 1 else groups[0]
            holders += [group[name][0] for name in _DISPLAY_GROUPS if group.get(name)]
    settings = Dataset()
    settings.BitsStored, settings.PixelRepresentation = 16, 0  # float pixel data has none, and no use for them
    for holder in holders:
        for keyword in _DISPLAY_KEYWORDS:
            if keyword in holder:
                settings.add(holder[keyword])
    settings.file_meta = dataset.file_meta  # LUTs are bytes in its byte order
    return settings


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


def _through_voi_lut(values: np.ndarray, settings: "Dataset") -> np.ndarray:
    """The first VOI LUT; its lowest entry is black and its highest white, as few use all the bits they declare."""
    from pydicom.pixels import apply_voi

    count, first, _ = settings.VOILUTSequence[0].LUTDescriptor
    count = count or 2**16
    whole = deepcopy(settings)
    whole.VOILUTSequence[0].LUTDescriptor[2] = 16  # pydicom wraps the index at 8 bits where entries have 8 bits
    table = full_range(apply_voi(np.arange(first, first + count), whole))
    return table[np.clip(np.rint(values) - first, 0, count - 1).astype(np.int64)]


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
