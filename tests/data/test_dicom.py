"""DICOM as a viewer would show it: made here element by element, and all files that pydicom brings along."""

import logging
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eden_hf.data.reading import ImageReadError, NoImageError, decode_image, image_sizes, read_image

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import get_decoder  # noqa: E402
from pydicom.uid import (  # noqa: E402
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom warns of what is wrong in files, which is the point here

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16  # 12 bits, 0 to 4080
SHOWN = np.arange(256).reshape(16, 16)


@pytest.fixture(autouse=True)
def _quiet():
    """Also pydicom's log of each decoder that fails."""
    log = logging.getLogger("pydicom")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    yield
    log.setLevel(before)


def dicom(pixels, *, syntax=ExplicitVRLittleEndian, frames=False, **elements) -> Dataset:
    """A data set of grey [H, W], frames of it, or RGB [H, W, 3]; `elements` add and replace (None removes)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    colour = pixels.ndim == 3 and not frames
    dataset.Rows, dataset.Columns = pixels.shape[frames : frames + 2]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if frames:
        dataset.NumberOfFrames = len(pixels)
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    raw = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")).tobytes()
    if pixels.dtype.kind == "f":
        setattr(dataset, "FloatPixelData" if pixels.itemsize == 4 else "DoubleFloatPixelData", raw)
        del dataset.BitsStored, dataset.PixelRepresentation
    else:
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
        dataset["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
        if keyword == "BitsStored":
            dataset.HighBit = value - 1
    return dataset


def saved(dataset, **options) -> bytes:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, **{"enforce_file_format": True, **options})
    return buffer.getvalue()


def shown(pixels, frame=None, **elements) -> np.ndarray:
    dataset = pixels if isinstance(pixels, Dataset) else dicom(pixels, **elements)
    return np.asarray(decode_image(saved(dataset), "name", frame=frame)).astype(int)


def lut(values, first=0, bits=16, vr="US", packed=False) -> list[Dataset]:
    """Of a LUT sequence; `packed` has two entries of 8 bits a word."""
    item = Dataset()
    if packed:
        item.add_new("LUTDescriptor", "US", [len(values), first, bits])
        values = np.append(values, [0] * (len(values) % 2)).astype(np.uint8).view("<u2")
        item.add_new("LUTData", vr, values.tobytes() if vr == "OW" else values.tolist())
        return [item]
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values), first, bits])
    item.add_new(
        "LUTData", vr, np.asarray(values, "<u2").tobytes() if vr == "OW" else [int(value) for value in values]
    )
    return [item]


# Grey


def test_grey_without_window_spans_its_own_range():
    image = decode_image(saved(dicom(RAMP)), "name")
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), SHOWN)
    np.testing.assert_array_equal(shown(RAMP // 2 + 300), SHOWN)
    np.testing.assert_array_equal(shown(SHOWN.astype(np.uint8)), SHOWN)


def test_monochrome1_is_inverted():
    np.testing.assert_array_equal(shown(RAMP, PhotometricInterpretation="MONOCHROME1"), 255 - SHOWN)
    window = {"WindowCenter": 2048, "WindowWidth": 1000, "BitsStored": 12}
    inverted = shown(RAMP, PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_allclose(inverted, 255 - shown(RAMP, **window), atol=1)


def window_by_the_standard(values, center, width, function):
    """Grey in [0, 255] by the pseudocode of DICOM PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2."""
    values = values.astype(float)
    if function == "SIGMOID":
        return 255 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        inside = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255 if width > 1 else 0
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    else:
        inside = ((values - center) / width + 0.5) * 255
        low, high = center - width / 2, center + width / 2
    return np.where(values <= low, 0, np.where(values > high, 255, inside))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(2048, 4096), (1000, 600), (300, 1), (4000, 3000), (-500, 3000)])
@pytest.mark.parametrize(("slope", "intercept"), [(None, None), (1, -1024), (0.5, 100), (-1, 3000)])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_after_slope_and_intercept(function, center, width, slope, intercept, signed):
    pixels = RAMP.astype(np.int16) - 1000 if signed else RAMP
    elements = {"WindowCenter": [center, 7], "WindowWidth": [width, 9]}  # the first of several counts
    if slope is not None:
        elements |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    if function:
        elements["VOILUTFunction"] = function
    values = pixels.astype(float) * (slope or 1) + (intercept or 0)
    expected = window_by_the_standard(values, center, width, function or "LINEAR")
    if np.ptp(np.rint(expected)) > 0:
        np.testing.assert_allclose(shown(pixels, **elements), expected, atol=0.51)


def test_black_and_white_are_the_ends_of_the_window_not_of_the_image():
    dark = shown(RAMP // 4, WindowCenter=2048, WindowWidth=4096)
    assert dark.max() == 64
    assert shown(RAMP // 4).max() == 255


def test_negative_slope_without_window():
    np.testing.assert_array_equal(shown(RAMP, RescaleSlope=-1, RescaleIntercept=100), 255 - SHOWN)


def test_a_window_that_shows_nothing_is_passed_over_with_a_warning(caplog):
    for center, width, reason in (
        (90000, 10, "every pixel alike"), (-5000, 100, "every pixel alike"), (100, 0, "Window Width"),
    ):  # fmt: skip
        caplog.clear()
        np.testing.assert_array_equal(shown(RAMP, WindowCenter=center, WindowWidth=width), SHOWN)
        (record,) = caplog.records
        assert record.getMessage().startswith("name: its window is passed over")
        assert reason in record.getMessage()
    caplog.clear()
    np.testing.assert_array_equal(shown(RAMP, WindowCenter=None, WindowWidth=None), SHOWN)
    assert not caplog.records


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_only_stored_bits_count(syntax):
    overlay = np.random.default_rng(0).integers(0, 16, RAMP.shape).astype(np.uint16) << 12
    dataset = dicom(RAMP | overlay, BitsStored=12)
    if syntax != dataset.file_meta.TransferSyntaxUID:
        dataset.compress(syntax)
    np.testing.assert_array_equal(shown(dataset), SHOWN)
    signed = (RAMP.astype(np.int16) - 2048).view(np.uint16) & 0x0FFF
    dataset = dicom(signed | overlay, BitsStored=12, PixelRepresentation=1)
    np.testing.assert_array_equal(shown(dataset), SHOWN)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64])
def test_integers_of_any_width(dtype):
    limits = np.iinfo(dtype)
    pixels = [limits.min + step * (limits.max - limits.min) // 255 for step in range(256)]
    np.testing.assert_allclose(shown(np.array(pixels, dtype).reshape(16, 16)), SHOWN, atol=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_pixels(dtype):
    for pixels in (RAMP.astype(dtype) / 7 - 90, np.linspace(-1e30, 1e30, 256, dtype=dtype).reshape(16, 16)):
        np.testing.assert_allclose(shown(pixels), SHOWN, atol=1)
    window = {"WindowCenter": 1000, "WindowWidth": 600}
    np.testing.assert_array_equal(shown(RAMP.astype(dtype), **window), shown(RAMP, **window))
    for value in (np.nan, np.inf, -np.inf):
        pixels = RAMP.astype(dtype)
        pixels[3, 4] = value
        with pytest.raises(ImageReadError, match=r"^name: pixel values that are not finite"):
            shown(pixels)
    with pytest.raises(ImageReadError, match="too far apart"):
        shown(np.array([[-1.5e308, 1.5e308]]))


def test_single_bits():
    mask = SHOWN % 3 == 0
    packed = np.packbits(mask.ravel(), bitorder="little")
    dataset = dicom(SHOWN.astype(np.uint8), BitsAllocated=1, BitsStored=1, PixelData=packed.tobytes())
    np.testing.assert_array_equal(shown(dataset), np.where(mask, 255, 0))


def test_padding_is_black_and_counts_in_no_range():
    pixels = RAMP.astype(np.int16) + 100
    pixels[:, :3] = -2000
    expected = np.rint((SHOWN - 3) / 252 * 255)
    expected[:, :3] = 0
    np.testing.assert_array_equal(shown(pixels, PixelPaddingValue=-2000), expected)
    inverted = 255 - expected
    inverted[:, :3] = 0
    monochrome1 = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": -2000}
    np.testing.assert_allclose(shown(pixels, **monochrome1), inverted, atol=1)
    pixels[:, 1] = -1999
    np.testing.assert_array_equal(shown(pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990), expected)
    pixels[:, :3] -= -1990 + 1999
    np.testing.assert_array_equal(shown(pixels, PixelPaddingValue=-2009, PixelPaddingRangeLimit=0), expected)
    np.testing.assert_array_equal(shown(np.where(SHOWN > 99, 7, 3).astype(np.int16), PixelPaddingValue=3),
                                  np.where(SHOWN > 99, 255, 0))  # fmt: skip


@pytest.mark.parametrize("empty", [
    "RescaleSlope", "RescaleIntercept", "VOILUTFunction", "ModalityLUTSequence", "VOILUTSequence", "PixelPaddingValue",
    "PresentationLUTShape", "NumberOfFrames", "PixelSpacing", "HighBit",
])  # fmt: skip
def test_elements_that_are_present_but_empty_count_as_absent(empty):
    elements = {"WindowCenter": 1000, "WindowWidth": 600, "BitsStored": 12}
    value = [] if empty.endswith("Sequence") else None
    dataset = dicom(RAMP, **elements, **{empty: value})
    assert empty in dataset
    np.testing.assert_array_equal(shown(dataset), window_by_the_standard(RAMP, 1000, 600, "LINEAR").round())


def test_slope_and_intercept_count_alone():
    np.testing.assert_array_equal(shown(RAMP, RescaleSlope=-2, RescaleIntercept=None), 255 - SHOWN)
    np.testing.assert_array_equal(shown(RAMP, RescaleSlope=-1), 255 - SHOWN)
    window = {"WindowCenter": 100, "WindowWidth": 600}
    moved = shown(RAMP, RescaleIntercept=-900, **window)
    np.testing.assert_array_equal(moved, window_by_the_standard(RAMP - 900.0, 100, 600, "LINEAR").round())


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_end_at_the_high_bit(syntax, signed):
    below = np.random.default_rng(0).integers(0, 16, RAMP.shape).astype(np.uint16)
    pixels = (RAMP << 4) | below  # 12 bits from bit 15 down
    if signed:
        pixels = (pixels - 0x8000).astype(np.int16)
    dataset = dicom(pixels, syntax=ExplicitVRBigEndian if syntax == ExplicitVRBigEndian else ExplicitVRLittleEndian,
                    BitsStored=12)  # fmt: skip
    dataset.HighBit = 15
    if syntax == RLELossless:
        dataset.compress(syntax)
    np.testing.assert_array_equal(shown(dataset), SHOWN)
    middle = dicom(((RAMP << 2) | (below << 14) | (below & 3)).astype(np.uint16), BitsStored=12)
    middle.HighBit = 13
    np.testing.assert_array_equal(shown(middle), SHOWN)


def test_high_bits_that_cannot_be_are_passed_over_and_compressed_ones_refused():
    for high in (3, 16):
        dataset = dicom(RAMP, BitsStored=12)
        dataset.HighBit = high
        np.testing.assert_array_equal(shown(dataset), SHOWN)
    pytest.importorskip("openjpeg")
    dataset = dicom(np.kron(RAMP, np.ones((4, 4), np.uint16)), BitsStored=12)
    dataset.compress(JPEG2000Lossless)
    dataset.HighBit = 15
    with pytest.raises(ImageReadError, match="compressed, with HighBit 15 for 12 stored bits; convert"):
        shown(dataset)


def test_inverse_presentation_is_inverted_once():
    np.testing.assert_array_equal(shown(RAMP, PresentationLUTShape="INVERSE"), 255 - SHOWN)
    np.testing.assert_array_equal(shown(RAMP, PresentationLUTShape="IDENTITY"), SHOWN)
    both = {"PresentationLUTShape": "INVERSE", "PhotometricInterpretation": "MONOCHROME1"}
    np.testing.assert_array_equal(shown(RAMP, **both), 255 - SHOWN)


def test_lower_case_interpretations():
    np.testing.assert_array_equal(shown(RAMP, PhotometricInterpretation="monochrome2"), SHOWN)
    np.testing.assert_array_equal(shown(RAMP, PhotometricInterpretation="Monochrome1 "), 255 - SHOWN)
    np.testing.assert_array_equal(shown(COLOUR, PhotometricInterpretation="rgb"), COLOUR)


# Size of pixels


@pytest.mark.parametrize(("elements", "size", "spacing", "source"), [
    ({"PixelSpacing": [0.143, 0.143]}, (16, 16), (0.143, 0.143), "PixelSpacing"),
    ({"PixelSpacing": [0.4, 0.2]}, (16, 32), (0.2, 0.2), "PixelSpacing"),  # the first is from row to row
    ({"PixelSpacing": [0.2, 0.5]}, (40, 16), (0.2, 0.2), "PixelSpacing"),
    ({"PixelSpacing": [0.1, 0.1005]}, (16, 16), (0.1005, 0.1), "PixelSpacing"),
    ({"PixelSpacing": [0.2, 0.3]}, (24, 16), (0.2, 0.2), "PixelSpacing"),
    ({"ImagerPixelSpacing": [0.148, 0.148]}, (16, 16), (0.148, 0.148), "ImagerPixelSpacing"),
    ({"ImagerPixelSpacing": [0.148, 0.148], "PixelSpacing": [0.12, 0.12]}, (16, 16), (0.12, 0.12), "PixelSpacing"),
    ({"NominalScannedPixelSpacing": [0.1, 0.1]}, (16, 16), (0.1, 0.1), "NominalScannedPixelSpacing"),
    ({"PixelAspectRatio": [2, 1]}, (16, 32), None, None),  # the first is the height
    ({"PixelAspectRatio": [3, 6]}, (32, 16), None, None),
    ({"PixelAspectRatio": [2, 1], "PixelSpacing": [0.1, 0.1]}, (16, 16), (0.1, 0.1), "PixelSpacing"),
    ({"PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.2]}, (16, 16), (0.2, 0.2), "ImagerPixelSpacing"),
    ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.2]}, (16, 16), (0.2, 0.2), "ImagerPixelSpacing"),
    ({}, (16, 16), None, None),
])  # fmt: skip
def test_pixels_are_made_square_and_millimetres_kept(elements, size, spacing, source):
    image = decode_image(saved(dicom(RAMP, **elements)), "name")
    assert image.size == size
    assert image.info.pop("stored_size") == (16, 16)
    assert image_sizes(saved(dicom(RAMP, **elements)), "a.img") == ((16, 16), size)
    if source is None:
        assert image.info == {}
    else:
        assert image.info["pixel_spacing_source"] == source
        assert image.info["pixel_spacing_mm"] == pytest.approx(spacing)


@pytest.mark.parametrize("wrong", [[0.1], [0.1, -0.1], [0, 0.1], [0.1, 9], [0.1, 0.1, 0.1], "abc"])
def test_spacings_that_no_pixel_has_are_passed_over_with_a_warning(wrong, caplog):
    dataset = dicom(RAMP)
    dataset.add_new("PixelSpacing", "LO" if wrong == "abc" else "DS", wrong)
    image = decode_image(saved(dataset), "name")
    assert (image.size, image.info) == ((16, 16), {"stored_size": (16, 16)})
    assert "name: its PixelSpacing is passed over" in caplog.text


def test_spacing_of_functional_groups():
    measures = Dataset()
    measures.PixelSpacing = [0.6, 0.3]
    group = Dataset()
    group.PixelMeasuresSequence = [measures]
    image = decode_image(saved(dicom(RAMP, SharedFunctionalGroupsSequence=[group])), "name")
    assert (image.size, image.info["pixel_spacing_mm"]) == ((16, 32), (0.3, 0.3))


# Look-up tables


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_voi_lut(bits, vr):
    table = np.sqrt(np.linspace(0, 1, 3000)) * (2 ** min(bits, 10) - 1)  # 10 of the bits that it declares
    table = table.astype(int)
    index = np.clip(RAMP.astype(int) - 500, 0, 2999)
    expected = (table[index] - table[0]) / (table[-1] - table[0]) * 255
    elements = {"VOILUTSequence": lut(table, 500, bits, vr), "WindowCenter": 1, "WindowWidth": 2}
    np.testing.assert_allclose(shown(RAMP, **elements), expected, atol=0.51)
    below = {"VOILUTSequence": lut(table, -500, bits, vr), "RescaleSlope": 1, "RescaleIntercept": -1000}
    np.testing.assert_allclose(shown(RAMP.astype(np.int16), **below), expected, atol=0.51)


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("count", [256, 251])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_luts_of_8_bits_may_be_packed_two_a_word(count, vr, syntax):
    table = (255 * np.sqrt(np.arange(count) / (count - 1))).astype(int)
    expected = table[np.minimum(SHOWN, count - 1)]
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        sequence = lut(table, bits=8, vr=vr, packed=True)
        if syntax == ExplicitVRBigEndian and vr == "OW":
            sequence[0].LUTData = np.frombuffer(sequence[0].LUTData, "<u2").astype(">u2").tobytes()
        dataset = dicom(SHOWN.astype(np.uint16), syntax=syntax, **{name: sequence})
        np.testing.assert_array_equal(shown(dataset), expected)


def test_a_short_modality_lut_is_refused():
    sequence = lut(range(256), vr="OW")
    sequence[0].LUTData = bytes(200)
    with pytest.raises(ImageReadError, match="a look-up table of 100 entries where 256 are declared; convert"):
        shown(RAMP, ModalityLUTSequence=sequence)


def test_a_broken_voi_lut_gives_way_to_the_window(caplog):
    window = {"WindowCenter": 1000, "WindowWidth": 600}
    short = lut([1, 2, 3], vr="OW")
    short[0].LUTData = b"\1\0"
    for broken in (lut([5] * 20), short, [Dataset()]):
        caplog.clear()
        np.testing.assert_array_equal(shown(RAMP, VOILUTSequence=broken, **window), shown(RAMP, **window))
        assert "name: its VOI LUT is passed over" in caplog.text


@pytest.mark.parametrize(("pixels", "first"), [
    (RAMP, 0), ((RAMP // 16).astype(np.uint8), -200), (np.linspace(-30000, 30000, 256).astype(np.int16), -30000),
], ids=["uint16", "uint8", "int16"])  # fmt: skip
def test_modality_lut(pixels, first):
    table = 65535 - np.arange(60001)
    values = table[pixels.reshape(16, 16).astype(int) - first]
    expected = (values - values.min()) / (values.max() - values.min()) * 255
    modality = lut(table, first, vr="OW")
    np.testing.assert_allclose(shown(pixels.reshape(16, 16), ModalityLUTSequence=modality), expected, atol=0.51)


# Colour


COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_rgb():
    image = decode_image(saved(dicom(COLOUR)), "name")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), COLOUR)
    planes = dicom(COLOUR, PlanarConfiguration=1, PixelData=np.moveaxis(COLOUR, -1, 0).tobytes())
    np.testing.assert_array_equal(shown(planes), COLOUR)
    wide = dicom(COLOUR.astype(np.uint16) * 16, BitsStored=12)
    np.testing.assert_allclose(shown(wide), COLOUR * (16 * 255 / 4095), atol=0.51)


def test_ybr():
    ybr = np.asarray(PIL.Image.fromarray(COLOUR).convert("YCbCr"))
    np.testing.assert_allclose(shown(ybr, PhotometricInterpretation="YBR_FULL"), COLOUR, atol=3)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(bits):
    index = np.arange(64, dtype=np.uint8).reshape(8, 8)
    colours = np.random.default_rng(1).integers(0, 256, (64, 3), dtype=np.uint8)
    elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        entries = colours[:, channel].astype(np.uint16) * 257 if bits == 16 else colours[:, channel]
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [64, 0, bits]
        elements[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    image = decode_image(saved(dicom(index, **elements)), "name")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), colours[index])


@pytest.mark.parametrize("colours", ["YBR_PARTIAL_422", "HSV", "NONSENSE"])
def test_unknown_colours_are_refused(colours):
    with pytest.raises(ImageReadError, match=r"^name: .*"):
        shown(COLOUR, PhotometricInterpretation=colours)


# Frames


def test_frames_are_refused_or_chosen():
    frames = np.stack([RAMP, RAMP[::-1], RAMP // 2])
    with pytest.raises(
        ImageReadError, match=r"name: it holds 3 frames; choose one by frame=0 to frame=2 .* one picture a file"
    ):
        shown(frames, frames=True)
    np.testing.assert_array_equal(shown(frames, frames=True, frame=1), SHOWN[::-1])
    with pytest.raises(ImageReadError, match="from 0 to 2"):
        shown(frames, frames=True, frame=3)
    np.testing.assert_array_equal(shown(RAMP, frame=0), SHOWN)
    np.testing.assert_array_equal(shown(RAMP, NumberOfFrames=1), SHOWN)


def test_functional_groups_hold_for_their_frame():
    def group(**sequences):
        item = Dataset()
        for name, elements in sequences.items():
            inner = Dataset()
            for keyword, value in elements.items():
                setattr(inner, keyword, value)
            setattr(item, name, [inner])
        return item

    frames = np.stack([RAMP, RAMP])
    elements = {
        "SharedFunctionalGroupsSequence": [
            group(PixelValueTransformationSequence={"RescaleSlope": 2, "RescaleIntercept": -100})
        ],
        "PerFrameFunctionalGroupsSequence": [
            group(FrameVOILUTSequence={"WindowCenter": 700, "WindowWidth": 400}),
            group(FrameVOILUTSequence={"WindowCenter": 3000, "WindowWidth": 900}),
        ],
    }
    for index, (center, width) in enumerate(((700, 400), (3000, 900))):
        expected = window_by_the_standard(RAMP * 2.0 - 100, center, width, "LINEAR")
        np.testing.assert_allclose(shown(frames, frames=True, frame=index, **elements), expected, atol=0.51)


# Files


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian], ids=lambda uid: uid.name
)
def test_uncompressed_transfer_syntaxes(syntax):
    np.testing.assert_array_equal(shown(dicom(RAMP, syntax=syntax)), SHOWN)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_compressed_transfer_syntaxes(syntax):
    pytest.importorskip("openjpeg")
    large = np.kron(RAMP, np.ones((4, 4), np.uint16))
    dataset = dicom(large)
    dataset.compress(syntax)
    np.testing.assert_array_equal(shown(dataset), shown(large))


def test_dicom_is_known_by_its_mark_or_its_name(tmp_path):
    for name in ("IM0001", "x.png", "x.dcm", "x.img", "X.IMG"):
        (tmp_path / name).write_bytes(saved(dicom(RAMP)))
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name)), SHOWN)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_files_without_preamble_or_meta_information(syntax):
    dataset = dicom(RAMP, syntax=syntax)
    without_preamble = saved(dataset)[132:]
    for data in (without_preamble, saved_without_meta(dataset)):
        for name in ("x.dcm", "X.DCM", "x.dicom"):
            np.testing.assert_array_equal(np.asarray(decode_image(data, name)), SHOWN)
        with pytest.raises(ImageReadError, match="no image format that PIL knows"):
            decode_image(data, "x.png")


def saved_without_meta(dataset) -> bytes:
    """As files were before DICOM had a preamble and meta information."""
    whole = saved(dataset)
    return whole[144 + int.from_bytes(whole[140:144], "little") :]  # after the group length at 132


def without(keyword, dataset=None) -> Dataset:
    dataset = dicom(RAMP) if dataset is None else dataset
    del dataset[keyword]
    return dataset


@pytest.mark.parametrize(("dataset", "cause"), [
    (without("PixelData"), r"DICOM without pixel data \(CT Image Storage\); leave the file out"),
    (dicom(RAMP, PixelData=b""), "less than expected|damaged"),
    (dicom(RAMP, PixelData=RAMP.tobytes()[:-2]), "less than expected .510 vs 512"),
    (without("Rows"), "Rows"), (without("BitsAllocated"), "Bits ?Allocated"),
    (without("PhotometricInterpretation"), "Photometric ?Interpretation"),
    (dicom(RAMP, BitsStored=17), "Bits ?Stored"),
    (dicom(RAMP, Rows=65535, Columns=65535), r"65535 x 65535 pixels .* raise PIL.Image.MAX_IMAGE_PIXELS"),
    (dicom(RAMP * 0 + 9), "a blank image: every pixel has the value 9"),
    (dicom(RAMP, RescaleSlope=0, RescaleIntercept=3), "a blank image: every pixel has the value 3;"),
    (dicom(RAMP * 0, WindowCenter=0, WindowWidth=100), "a blank image: every pixel has the value 0"),
    (dicom(COLOUR * 0 + 5), r"a blank image: every pixel has the colour \[5, 5, 5\]"),
])  # fmt: skip
def test_files_that_give_no_picture(dataset, cause):
    with pytest.raises(ImageReadError, match=cause) as error:
        shown(dataset)
    assert str(error.value).startswith("name: ")
    assert any(mend in str(error.value) for mend in ("leave", "convert", "restore", "raise PIL"))


@pytest.mark.parametrize("kind", [
    "BasicTextSRStorage", "GrayscaleSoftcopyPresentationStateStorage", "KeyObjectSelectionDocumentStorage",
    "EncapsulatedPDFStorage", "RTStructureSetStorage", "MediaStorageDirectoryStorage",
])  # fmt: skip
def test_objects_without_pixels_are_no_images(kind):
    dataset = without("PixelData")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = getattr(pydicom.uid, kind)
    with pytest.raises(NoImageError, match=r"^name: no image but .*; leave the file out"):
        shown(dataset)


@pytest.mark.parametrize("kind", ["1.2.84", "1.2.840.10008.5.1.4.1.1.999"])
def test_a_damaged_class_makes_an_image_unreadable_and_no_other_object(kind):
    """It counts as an image that is lost."""
    dataset = without("PixelData")
    dataset.SOPClassUID = kind
    with pytest.raises(ImageReadError, match="DICOM without pixel data") as error:
        shown(dataset)
    assert not isinstance(error.value, NoImageError)


@pytest.fixture
def small_limit(monkeypatch):
    """A setting under which an image of 64 x 64 pixels is a bomb."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGBaseline8Bit], ids=lambda uid: uid.name)
def test_compressed_data_larger_than_the_header_says_are_refused_before_decoding(small_limit, monkeypatch, syntax):
    pixels = np.tile(SHOWN, (4, 4)).astype(np.uint8)
    dataset = dicom(pixels)
    if syntax == JPEGBaseline8Bit:
        buffer = BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "JPEG")
        dataset.PixelData = pydicom.encaps.encapsulate([buffer.getvalue()])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    else:
        dataset.compress(syntax)
    data = saved(dataset)
    with pytest.raises(ImageReadError, match=r"name: 64 x 64 pixels are more than 2000; raise PIL\.Image\.MAX_IMAGE"):
        decode_image(data, "name")
    with pytest.raises(ImageReadError, match=r"name: 64 x 64 pixels are more than 2000; raise PIL\.Image\.MAX_IMAGE"):
        image_sizes(data, "name")
    dataset.Rows = dataset.Columns = 16
    monkeypatch.setattr(pydicom.pixels, "pixel_array", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ImageReadError, match="64 x 64 pixels, as the compressed data tell, are more than 2000"):
        shown(dataset)


def test_deflated_bombs_are_refused_before_they_are_parsed(small_limit, monkeypatch):
    dataset = dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(shown(dataset), SHOWN)
    dataset.add_new(0x00091001, "OB", bytes(100_000))
    data = saved(dataset)
    monkeypatch.setattr(pydicom, "dcmread", lambda *_, **__: pytest.fail("parsed"))
    for read in (decode_image, image_sizes):
        with pytest.raises(ImageReadError, match=r"deflated data are of more than 16000 bytes, .*raise PIL"):
            read(data, "name")


def test_images_that_have_lost_their_pixels_are_unreadable():
    with pytest.raises(ImageReadError, match="DICOM without pixel data") as error:
        shown(without("PixelData"))
    assert not isinstance(error.value, NoImageError)


@pytest.mark.parametrize("data", [
    b"\0" * 3000, b"not DICOM at all" * 40, bytes(range(256)) * 9, b"\x89PNG\r\n\x1a\n", b"\0" * 128 + b"DICM", b"",
])  # fmt: skip
def test_what_is_no_dicom(data):
    with pytest.raises(ImageReadError, match=r"^x\.dcm: "):
        decode_image(data, "x.dcm")


def test_compressed_data_without_transfer_syntax():
    dataset = dicom(RAMP)
    dataset.compress(RLELossless)
    with pytest.raises(ImageReadError, match="compressed, but its transfer syntax is missing"):
        decode_image(saved_without_meta(dataset), "x.dcm")


def test_transfer_syntaxes_without_decoder(monkeypatch):
    video = dicom(RAMP)
    video.file_meta.TransferSyntaxUID = MPEG2MPML
    video["PixelData"].VR, video["PixelData"].is_undefined_length = "OB", True
    video.PixelData = pydicom.encaps.encapsulate([b"\0" * 8])
    with pytest.raises(ImageReadError, match=r"^name: the transfer syntax MPEG2 .* is not supported; convert"):
        shown(video)
    dataset = dicom(np.kron(RAMP, np.ones((4, 4), np.uint16)))
    dataset.compress(JPEG2000Lossless)
    decoder = get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": ("pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.0")})
    with pytest.raises(
        ImageReadError, match=r"JPEG 2000 .*pylibjpeg-openjpeg>=2.0.*: pip install eden_hf\[dicom(-jpeg)?\]"
    ):
        shown(dataset)


def test_without_pydicom(monkeypatch):
    data = saved(dicom(RAMP))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageReadError, match=r"^name: DICOM needs pydicom: pip install eden_hf\[dicom(-jpeg)?\]"):
        decode_image(data, "name")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data):
    elements = {"WindowCenter": 900, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": -3}
    damaged = bytearray(saved(dicom(RAMP[:4, :4], **elements)))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode_image(bytes(damaged), "x.dcm")
        except ImageReadError:
            return
    assert image.mode in ("L", "RGB")
    assert np.ptp(np.asarray(image)) > 0


# pydicom's own files


FILES = sorted(
    path
    for folder in ("test_files", "charset_files", "palettes")
    for path in (Path(pydicom.__file__).parent / "data" / folder).rglob("*")
    if path.is_file()
)  # only what the wheel holds: its own functions would download the rest


def test_all_files_of_pydicom_give_a_picture_or_one_error():
    pictures, errors = {}, {}
    for path in FILES:
        try:
            try:
                pictures[path] = read_image(path)
            except ImageReadError as error:
                if "frames; choose one" not in str(error):
                    raise
                pictures[path] = read_image(path, frame=0)
        except ImageReadError as error:
            errors[path] = str(error)
    assert len(FILES) >= 200
    assert len(pictures) >= 100
    for path, picture in pictures.items():
        assert picture.mode in ("L", "RGB"), path
        assert any(low < high for low, high in np.atleast_2d(picture.getextrema())), f"{path} is blank"
    for path, message in errors.items():
        assert message.startswith(f"{path}: "), message
    failed = {path.name for path, message in errors.items() if "damaged or not supported" in message}
    assert failed <= {
        "JPEG-lossy.dcm",  # 12-bit progressive, for GDCM only
        "JPEG2000-embedded-sequence-delimiter.dcm", "MR_truncated.dcm", "badVR.dcm",
        "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm",  # no rows and columns
    }  # fmt: skip


@pytest.mark.parametrize("name", [
    "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm",
    "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
])  # fmt: skip
def test_one_image_in_many_encodings(name):
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    np.testing.assert_array_equal(
        np.asarray(read_image(folder / name)), np.asarray(read_image(folder / "MR_small.dcm"))
    )
