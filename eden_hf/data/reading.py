"""Reading image files: all PIL knows, DICOM and raw `.IMG` of JSRT, as 8-bit grey or RGB, or as one error saying why.

Intensities follow the rule of `EdenImageProcessor` (`unit_intensity`): 8-bit images are taken as they are, wider
integers, grey or colour, are stretched from their own minimum to their own maximum, floats must lie in [0, 1], alpha
is blended over black. The orientation that EXIF asks for is applied. Pixels are made square, and millimetres kept, as
`eden_hf.data.pixel_size` tells, which also says how coordinates count. `eden_hf.data.dicom` tells how DICOM is shown.

JSRT's radiographs (Shiraishi et al., AJR 174, 2000) are raw squares, 2048 x 2048, of big-endian 16-bit integers of
which 12 bits are used, without header. They grow with the film's optical density, so air is high and bone is low:
they are inverted here, to bone bright and air dark like all other radiographs.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL.Image
from PIL import ImageOps
from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from eden_hf.data.deep_colour import deep_intensity
from eden_hf.data.dicom import dicom_image, dicom_pixel_size, dicom_size, frame_count, open_dicom
from eden_hf.data.errors import DecodeError, NoPixelsError
from eden_hf.data.limits import refuse_bomb
from eden_hf.data.pixel_size import PixelSize, square_size, stated_pixel_size, with_square_pixels
from eden_hf.image_processing_eden_pixels import full_range, pil_pixels, split_alpha, unit_intensity

_QUARTER_TURNS = (5, 6, 7, 8)  # of EXIF's orientations
_WHITE_IS_ZERO = 0  # of TIFF's photometric interpretations
_KIND_OF_PAGE, _SMALLER_COPY = 254, 1  # TIFF's NewSubfileType, and its bit
_PROGRAMS = ("EPS",)  # PIL hands PostScript to Ghostscript
_JSRT_MAXIMUM = 2**12 - 1
#: How usual pictures begin, whatever they are called: rows are called by their images' files, their masks are PNG.
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM")
_JSRT_SIDE, _JSRT_SPACING = 2048, 0.175  # millimetres


class ImageReadError(ValueError):
    """An image that cannot be read. The message names the file, the cause and the mend."""


class NoImageError(ImageReadError):
    """A sound file that holds no image: the DICOMDIR, reports and presentation states of a patient's CD."""


def read_image(path: str | Path, *, frame: int | None = None) -> PIL.Image.Image:
    """Read one image file.

    Args:
        path: any format of PIL, or DICOM (known by its mark at byte 128, or by `.dcm` or `.dicom`), or JSRT's `.img`.
        frame: which frame, counted from 0. Files of several frames or pages need it; where one of them is the picture
            and others only go with it (photographs in MPO, smaller copies in TIFF), that one is the default.

    Returns:
        Mode "L" for grey and "RGB" for colour, 8 bits a channel, upright, of square pixels. Its `info` holds
        `stored_size` and, where the file tells them, `pixel_spacing_mm` and `pixel_spacing_source`
        (`eden_hf.data.pixel_size.with_square_pixels`). They are of this picture: PIL hands them on unchanged when it
        is resized.

    Raises:
        NoImageError: the file is sound, but of a kind that holds no image.
        ImageReadError: the file is missing, empty, damaged, no image or not supported, or holds several frames and
            `frame` names none of them.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        cause = getattr(error, "strerror", None) or error
        raise ImageReadError(f"{path}: cannot be opened ({cause}); give the path of an image file") from error
    return decode_image(data, str(path), frame=frame)


def decode_image(data: bytes, name: str, *, frame: int | None = None) -> PIL.Image.Image:
    """Decode one image file held in memory; like `read_image`.

    Args:
        data: the whole file.
        name: its name: errors give it, and `.dcm`, `.dicom` or `.img` at its end tells what has no mark.
        frame: as in `read_image`.

    Raises:
        NoImageError, ImageReadError: as `read_image`.
    """
    with _told(name):
        return _decode(data, name, frame)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever is raised of a file becomes the error that names it."""
    try:
        yield
    except NoPixelsError as error:
        raise NoImageError(f"{name}: {error}") from error
    except DecodeError as error:
        raise ImageReadError(f"{name}: {error}") from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageReadError(f"{name}: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file") from error
    except Exception as error:  # decoders raise anything on damaged bytes
        raise ImageReadError(
            f"{name}: damaged or not supported ({type(error).__name__}: {error}); restore it from its source, convert "
            "it to PNG, or leave it out"
        ) from error


class Sizes(NamedTuple):
    """Width and height of an upright image: `stored`, and of the `picture` of square pixels that reading makes."""

    stored: tuple[int, int]
    picture: tuple[int, int]


def image_sizes(file: bytes | str | Path, name: str) -> Sizes:
    """The sizes of an image from its header alone.

    Args:
        file: the whole file, or its path.
        name: what errors call it.

    Raises:
        ImageReadError: there is no such file, or its header tells no size, or one that is too large.
    """
    with _told(name), BytesIO(file) if isinstance(file, bytes) else Path(file).open("rb") as opened:
        stored, pixel = _size_in_header(opened, name)
        picture = square_size(stored, pixel)
        refuse_bomb(*picture)
        return Sizes(stored, picture)


def _size_in_header(file: BinaryIO, name: str) -> tuple[tuple[int, int], PixelSize]:
    start = file.read(132)
    if is_dicom(start, name):
        file.seek(0)
        return dicom_size(file, name)
    if is_raw(start, name):
        return (raw_side(file.seek(0, os.SEEK_END)),) * 2, PixelSize()
    with PIL.Image.open(file) as image:
        pixel = stated_pixel_size(image, name)
        turn = PIL.Image.Image.getexif(image).get(Base.Orientation)  # PNG's own decodes the image first
        if turn not in _QUARTER_TURNS:
            return image.size, pixel
        return image.size if isinstance(image, TiffImageFile) else image.size[
            ::-1
        ], pixel.turned()  # TIFF's is upright


def _decode(data: bytes, name: str, frame: int | None) -> PIL.Image.Image:
    if not data:
        raise DecodeError("the file is empty; restore it from its source, or leave it out")
    if is_dicom(data[:132], name):
        dataset = open_dicom(data, name)
        index = _frame_index(frame, frame_count(dataset))
        return with_square_pixels(dicom_image(dataset, index), dicom_pixel_size(dataset, index))
    if is_raw(data[:132], name):
        return _jsrt(data)
    with open_image(data) as image:
        index = _frame_index(frame, getattr(image, "n_frames", 1), _is_one_picture(image))
    reopen = partial(open_image, data, index)
    with reopen() as image:
        turn = image.getexif().get(Base.Orientation)
        pixel = stated_pixel_size(image, name)
        deep = deep_intensity(reopen, data)
        picture = _eight_bits(image) if deep is None else _picture(deep)
    return with_square_pixels(picture, pixel.turned() if turn in _QUARTER_TURNS else pixel)


def is_dicom(start: bytes, name: str) -> bool:
    """By its mark, whatever it is called, or by its name, unless it begins as another picture does."""
    return start[128:] == b"DICM" or _called(start, name, (".dcm", ".dicom"))


def is_raw(start: bytes, name: str) -> bool:
    """Whether an image is called as JSRT's raw ones, and does not begin as another picture does."""
    return _called(start, name, (".img",))


def _called(start: bytes, name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not start.startswith(_PICTURES)


def open_image(data: bytes, frame: int = 0) -> ImageFile:
    """An image of PIL at a frame, nothing decoded.

    Raises:
        DecodeError: PIL does not know it, it is a program, or too large.
        Exception: whatever PIL raises on damaged files.
    """
    try:
        image = PIL.Image.open(BytesIO(data))
    except PIL.UnidentifiedImageError as error:
        raise DecodeError("damaged, or of no image format that PIL knows; restore it, or leave it out") from error
    if image.format in _PROGRAMS:
        raise DecodeError(f"{image.format} is a program that draws, and is not run; convert it to PNG")
    image.seek(frame)
    refuse_bomb(*image.size)  # PIL looks at the first frame
    return image


def raw_side(byte_count: int) -> int:
    """Pixels a side of a raw `.IMG` square of 16 bits a pixel (2048 as JSRT publishes it).

    Raises:
        DecodeError: no such square has that size.
    """
    side = math.isqrt(byte_count // 2)
    if side == 0 or 2 * side**2 != byte_count:
        raise DecodeError(
            f"{byte_count} bytes are no square of 16-bit pixels; .IMG is read as JSRT's raw format, 2048 x 2048 "
            "pixels in 8388608 bytes: restore the file, or convert it to PNG"
        )
    return side


def _jsrt(data: bytes) -> PIL.Image.Image:
    """A raw radiograph of JSRT, mode "L"."""
    side = raw_side(len(data))
    density = np.frombuffer(data, ">u2").reshape(side, side)
    if density.max() > _JSRT_MAXIMUM:
        raise DecodeError(
            f"a pixel value of {density.max()}, above the {_JSRT_MAXIMUM} of JSRT's 12 bits; .IMG is read as "
            "big-endian: write the file so, or convert it to PNG"
        )
    brightness = full_range(_JSRT_MAXIMUM - density.astype(np.float32))
    published = PixelSize(_JSRT_SPACING, _JSRT_SPACING, "JSRT")
    return with_square_pixels(_picture(brightness), published if side == _JSRT_SIDE else PixelSize())


def _frame_index(frame: int | None, count: int, one_picture: bool = False) -> int:
    """Which of `count` frames to read, the first by default of those that are `one_picture`."""
    if frame is None and (count == 1 or one_picture):
        return 0
    if frame is None:
        raise DecodeError(
            f"it holds {count} frames; choose one by frame=0 to frame={count - 1} of read_image, or, in a folder of "
            "images, convert it to one picture a file"
        )
    if isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < count:
        raise DecodeError(f"frame must be an integer from 0 to {count - 1}, as the file's frames, got {frame!r}")
    return frame


def _is_one_picture(image: PIL.Image.Image) -> bool:
    """Whether the first of several frames is the picture, and the others previews or smaller copies of it."""
    if image.format == "MPO":
        return True
    if not isinstance(image, TiffImageFile) or image.n_frames == 1:
        return False
    kinds = []
    for index in range(1, image.n_frames):
        image.seek(index)
        kinds.append(image.tag_v2.get(_KIND_OF_PAGE, 0))
    return all(kind & _SMALLER_COPY for kind in kinds)


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """An opened file as mode "L" or "RGB", upright."""
    white_is_zero = isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
    image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB") and not image.has_transparency_data:
        return image
    colour, alpha = split_alpha(pil_pixels(image))
    try:
        intensity = unit_intensity(colour) * alpha
    except ValueError as error:
        raise DecodeError(str(error)) from error
    if image.mode in ("P", "PA") and intensity.min() == intensity.max() and len(np.unique(np.asarray(image))) > 1:
        raise DecodeError("its palette gives all of its values one colour; save the values as grey")
    if white_is_zero and image.mode.startswith("I;16"):  # PIL inverts 1 and 8 bits only
        intensity = 1 - intensity
    return _picture(intensity)


def _picture(intensity: np.ndarray) -> PIL.Image.Image:
    """Intensities in [0, 1], [H, W] or [H, W, 3], in 8 bits."""
    return PIL.Image.fromarray(np.rint(intensity * 255).astype(np.uint8))
