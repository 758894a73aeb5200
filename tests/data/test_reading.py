"""Every file is an 8-bit picture or one ImageReadError that names the file, the cause and the mend."""

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eden_hf.data.readers.masks import read_mask
from eden_hf.data.reading import ImageReadError, decode_image, image_sizes, read_image
from eden_hf.image_processing_eden import EdenImageProcessor

pytestmark = pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF", "ignore:Image appears")

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 20), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "TGA", "JPEG2000")


def encode(image, file_format="PNG", **options) -> bytes:
    buffer = BytesIO()
    image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def decode(data, **options) -> np.ndarray:
    return np.asarray(decode_image(data, "name", **options))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000"])
def test_8_bit_images_come_back_as_they_are(file_format, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(encode(GREY, file_format))
    for given_path in (path, str(path)):
        image = read_image(given_path)
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), GREY)
    if file_format != "GIF":
        assert decode_image(encode(COLOUR, file_format), "name").mode == "RGB"
        np.testing.assert_array_equal(decode(encode(COLOUR, file_format)), COLOUR)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_jpeg(image):
    data = encode(image, "JPEG")
    np.testing.assert_array_equal(decode(data), np.asarray(PIL.Image.open(BytesIO(data))))


# Depth


WIDE = np.linspace(1000, 5000, 240).reshape(12, 20).astype(np.uint16)
STRETCHED = np.rint((WIDE.astype(float) - WIDE.min()) / (WIDE.max() - WIDE.min()) * 255).astype(np.uint8)


@pytest.mark.parametrize(("image", "file_format"), [
    (PIL.Image.fromarray(WIDE), "PNG"), (PIL.Image.fromarray(WIDE), "TIFF"),
    (PIL.Image.fromarray(WIDE).convert("I").convert("I;16B"), "TIFF"), (PIL.Image.fromarray(WIDE), "JPEG2000"),
    (PIL.Image.fromarray(WIDE.astype(np.int32) * 300 - 9000), "TIFF"), (PIL.Image.fromarray(WIDE), "PPM"),
])  # fmt: skip
def test_wide_grey_is_stretched_from_its_own_range(image, file_format):
    shown = decode_image(encode(image, file_format), "name")
    assert shown.mode == "L"
    np.testing.assert_array_equal(np.asarray(shown), STRETCHED)


def test_the_processor_sees_the_same_in_the_file_and_in_the_array():
    eden = EdenImageProcessor(size={"height": 10, "width": 16}, do_normalize=False)
    np.testing.assert_allclose(
        eden(decode_image(encode(WIDE), "name")).pixel_values[0], eden(WIDE).pixel_values[0], atol=1 / 255
    )


def test_a_constant_wide_image_is_black():
    assert (decode(encode(np.full((4, 4), 40000, np.uint16))) == 0).all()


def tiff_16_bits(pixels, photometric) -> bytes:
    """An uncompressed little-endian 16-bit TIFF, since PIL writes no white-is-zero."""
    height, width = pixels.shape
    entries = [(256, width), (257, height), (258, 16), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height),
               (279, pixels.nbytes)]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
    return b"II*\0" + struct.pack("<I", 8 + pixels.nbytes) + pixels.astype("<u2").tobytes() + directory + b"\0" * 4


def test_white_is_zero_is_inverted_in_any_depth():
    np.testing.assert_array_equal(decode(tiff_16_bits(WIDE, photometric=1)), STRETCHED)
    np.testing.assert_allclose(decode(tiff_16_bits(WIDE, photometric=0)), 255 - STRETCHED.astype(int), atol=1)
    eight_bits = bytearray(encode(GREY, "TIFF"))
    at = eight_bits.index(struct.pack("<HHI", 262, 3, 1)) + 8
    assert eight_bits[at] == 1
    eight_bits[at] = 0
    np.testing.assert_array_equal(decode(bytes(eight_bits)), 255 - GREY)


def test_floats_must_lie_in_0_to_1():
    inside = (GREY / 255).astype(np.float32)
    np.testing.assert_array_equal(decode(encode(inside, "TIFF")), GREY)
    with pytest.raises(ImageReadError, match=r"name: float pixels must lie in \[0, 1\], got -3 to 2.5.*scale them"):
        decode(encode(np.array([[-3, 2.5]], np.float32), "TIFF"))


# Modes


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_that_is_in_alpha_alone_is_read(mode, tmp_path):
    """As drawing programs save a black pen on nothing."""
    alpha = np.zeros((12, 20), np.uint8)
    alpha[3:7, 5:15] = 255
    black = PIL.Image.fromarray(np.zeros_like(alpha))
    bands = [black] * (len(mode) - 1) + [PIL.Image.fromarray(alpha)]
    PIL.Image.merge(mode, bands).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(str(tmp_path / "mask.png"), (20, 12)), alpha > 0)


def test_alpha_is_blended_over_black():
    alpha = np.arange(240, dtype=np.uint8).reshape(12, 20)
    rgba = PIL.Image.fromarray(np.dstack([COLOUR, alpha]))
    expected = np.rint(COLOUR / 255 * (alpha / 255)[..., None] * 255)
    for file_format in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
        assert np.abs(decode(encode(rgba, file_format, **options)) - expected).max() <= 1
    grey = PIL.Image.merge("LA", [PIL.Image.fromarray(GREY), PIL.Image.fromarray(alpha)])
    shown = decode_image(encode(grey), "name")
    assert shown.mode == "L"
    np.testing.assert_array_equal(np.asarray(shown), np.rint(GREY / 255 * (alpha / 255) * 255))
    first = int(GREY[0, 0])
    np.testing.assert_array_equal(decode(encode(GREY, transparency=first)), np.where(first == GREY, 0, GREY))


def test_palettes_are_looked_up_and_grey_ones_give_grey():
    grey_palette = PIL.Image.fromarray(255 - GREY).convert("L")
    grey_palette = PIL.Image.frombytes("P", grey_palette.size, grey_palette.tobytes())
    grey_palette.putpalette([value for grey in range(255, -1, -1) for value in (grey,) * 3])
    shown = decode_image(encode(grey_palette), "name")
    assert shown.mode == "L"
    np.testing.assert_array_equal(np.asarray(shown), GREY)
    colours = PIL.Image.fromarray(COLOUR).quantize(16)
    np.testing.assert_array_equal(decode(encode(colours)), np.asarray(colours.convert("RGB")))


def test_bilevel_and_cmyk():
    mask = PIL.Image.fromarray(GREY > 100)
    np.testing.assert_array_equal(decode(encode(mask, "TIFF")), np.where(GREY > 100, 255, 0))
    cmyk = PIL.Image.fromarray(COLOUR).convert("CMYK")
    np.testing.assert_array_equal(decode(encode(cmyk, "TIFF")), np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("orientation", "turned"), [
    (1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (4, np.flipud), (5, lambda a: a.T),
    (6, lambda a: np.rot90(a, -1)), (7, lambda a: np.rot90(a, 2).T), (8, np.rot90),
])  # fmt: skip
def test_exif_orientation_is_applied(orientation, turned, file_format):
    image = np.zeros((16, 32), np.uint8)
    image[:8, :16] = 200
    exif = PIL.Image.Exif()
    exif[274] = orientation
    shown = decode(encode(image, file_format, exif=exif))
    shown = shown[..., 0] if shown.ndim == 3 else shown
    np.testing.assert_allclose(shown, turned(image), atol=6)


def test_exif_orientation_of_16_bits():
    exif = PIL.Image.Exif()
    exif[274] = 6
    for file_format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encode(WIDE, file_format, exif=exif)), np.rot90(STRETCHED, -1))


# Frames


@pytest.mark.parametrize("file_format", ["TIFF", "GIF"])
def test_files_of_several_frames_need_frame(file_format):
    pages = [PIL.Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (10, 100, 200)]
    data = encode(pages[0], file_format, save_all=True, append_images=pages[1:])
    with pytest.raises(ImageReadError, match="name: it holds 3 frames; choose one by frame=0 to frame=2"):
        decode(data)
    for index, value in enumerate((10, 100, 200)):
        assert (decode(data, frame=index) == value).all()
    for frame in (3, -1, True, 1.0, "0"):
        with pytest.raises(ImageReadError, match=r"name: frame must be an integer from 0 to 2"):
            decode(data, frame=frame)


def test_a_photograph_with_an_embedded_preview_is_its_primary_picture():
    photograph, preview = (PIL.Image.new("RGB", size, value) for size, value in (((40, 30), "red"), ((8, 6), "blue")))
    data = encode(photograph, "MPO", save_all=True, append_images=[preview])
    assert decode_image(data, "name.jpg").size == (40, 30)
    assert decode_image(data, "name.jpg", frame=1).size == (8, 6)


def test_smaller_copies_in_a_tiff_are_not_further_pages():
    pages = [PIL.Image.new("L", size, 7) for size in ((40, 30), (20, 15), (10, 7))]
    for page in pages[1:]:
        page.encoderinfo = {"tiffinfo": {254: 1}}  # a reduced version of another page
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decode_image(data, "name").size == (40, 30)
    assert decode_image(data, "name", frame=2).size == (10, 7)
    pages[2].encoderinfo = {}
    with pytest.raises(ImageReadError, match="it holds 3 frames"):
        decode(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))


def test_one_frame_may_be_named():
    np.testing.assert_array_equal(decode(encode(GREY), frame=0), GREY)
    with pytest.raises(ImageReadError, match="frame must be an integer from 0 to 0"):
        decode(encode(GREY), frame=1)


# Size of pixels


@pytest.mark.parametrize(("file_format", "dots"), [("PNG", 300), ("TIFF", 204), ("JPEG", 100), ("BMP", 96)])
def test_oblong_pixels_are_made_square_in_any_format(file_format, dots):
    image = decode_image(encode(GREY, file_format, dpi=(dots, dots / 2)), "name")
    assert image.size == (20, 24)
    assert image.info == {"stored_size": (20, 12)}
    square = decode(encode(GREY, file_format)).astype(int)
    np.testing.assert_allclose(np.asarray(image)[13], 0.75 * square[6] + 0.25 * square[7], atol=1)  # edges stay


def png_with_physical_size(across, down, unit, image=GREY, **options) -> bytes:
    data = encode(image, **options)
    chunk = b"pHYs" + struct.pack(">IIB", across, down, unit)
    return data[:33] + struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


@pytest.mark.parametrize(("across", "down", "unit", "size", "spacing"), [
    (5714, 5714, 1, (20, 12), (0.175, 0.175)), (7194, 7194, 1, (20, 12), (0.139, 0.139)),  # as radiographs have it
    (5000, 5000, 1, (20, 12), (0.2, 0.2)), (10000, 5000, 1, (20, 24), (0.1, 0.1)),
    (2835, 2835, 1, (20, 12), None), (3780, 3780, 1, (20, 12), None), (3779, 3779, 1, (20, 12), None),  # 72, 96
    (11811, 11811, 1, (20, 12), None), (5906, 5906, 1, (20, 12), None), (2835, 5670, 1, (40, 12), None),
    (2, 1, 0, (20, 24), None), (1, 3, 0, (60, 12), None), (1, 1, 0, (20, 12), None), (0, 0, 1, (20, 12), None),
])  # fmt: skip
def test_millimetres_of_png_are_those_that_were_measured(across, down, unit, size, spacing):
    image = decode_image(png_with_physical_size(across, down, unit), "name")
    assert image.size == size
    if spacing is None:
        assert image.info == {"stored_size": (20, 12)}
    else:
        assert image.info["pixel_spacing_mm"] == pytest.approx(spacing, rel=1e-3)
        assert image.info["pixel_spacing_source"] == "pHYs"


def test_the_size_of_pixels_turns_with_the_image():
    exif = PIL.Image.Exif()
    exif[274] = 6
    for data in (png_with_physical_size(10000, 5000, 1, exif=exif), encode(GREY, "TIFF", dpi=(100, 50), exif=exif)):
        image = decode_image(data, "name")
        assert image.size == (24, 20)
        assert image.info["stored_size"] == (12, 20)
    barely = decode_image(png_with_physical_size(10000, 9950, 1, exif=exif), "name")
    assert barely.size == (12, 20)
    assert barely.info["pixel_spacing_mm"] == pytest.approx((1000 / 9950, 0.1))


def test_a_resolution_that_no_pixel_has_is_passed_over(caplog):
    image = decode_image(encode(GREY, "TIFF", dpi=(300, 1)), "name")
    assert image.size == (20, 12)
    assert "name: its resolution is passed over" in caplog.text


def test_square_pixels_may_not_become_a_decompression_bomb(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 240)
    assert decode(encode(GREY, dpi=(100, 50))).shape == (24, 20)
    with pytest.raises(ImageReadError, match=r"20 x 36 pixels, once they are square, are more than 480; raise PIL"):
        decode(encode(GREY, dpi=(150, 50)))


def test_the_processor_turns_photographs_as_reading_does():
    processor = EdenImageProcessor(size={"height": 16, "width": 16})
    exif = PIL.Image.Exif()
    exif[274] = 6
    inside = PIL.Image.fromarray(GREY > 100)
    for image in (COLOUR, GREY, WIDE):
        data = encode(image, exif=exif)
        opened = PIL.Image.open(BytesIO(data))
        read, mask = decode_image(data, "name"), np.rot90(GREY > 100, -1)[None]
        expected = processor.preprocess(read, [mask], return_tensors="np")
        for masks in ([[PIL.Image.open(BytesIO(encode(inside, exif=exif)))]], [mask]):
            found = processor.preprocess(opened, masks, return_tensors="np")
            np.testing.assert_allclose(found["pixel_values"], expected["pixel_values"], atol=0.02)
            np.testing.assert_array_equal(found["labels"], expected["labels"])


def sized_files():
    exif = PIL.Image.Exif()
    exif[274] = 8
    turned = {"exif": exif, "dpi": (150, 50)}
    yield from ((f"turned {kind}", encode(COLOUR, kind, **turned)) for kind in ("PNG", "TIFF", "JPEG"))
    yield from ((f"flat {kind}", encode(COLOUR, kind)) for kind in ("PNG", "WEBP", "BMP", "JPEG2000"))
    yield "turned WEBP", encode(COLOUR, "WEBP", exif=exif)
    yield "x.IMG", bytes(50)


@pytest.mark.parametrize(
    ("name", "data"), list(sized_files()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_sizes_are_read_from_the_header(name, data, tmp_path):
    picture = decode_image(data, name)
    (tmp_path / name).write_bytes(data)
    for sizes in (image_sizes(data, name), image_sizes(tmp_path / name, name)):
        assert sizes == (picture.info["stored_size"], picture.size)


@pytest.mark.parametrize("name", ["torn.png", "torn.dcm", "torn.img", "absent.png"])
def test_an_image_without_readable_size_is_named(tmp_path, name):
    if name != "absent.png":
        (tmp_path / name).write_bytes(b"torn!")
    with pytest.raises(ImageReadError, match=name):
        image_sizes(tmp_path / name, name)


# Files that are no picture


def test_paths_that_cannot_be_opened(tmp_path):
    for path, cause in ((tmp_path / "none.png", "No such file"), (tmp_path, "Is a directory"), ("a\0b", "null")):
        with pytest.raises(ImageReadError, match=cause) as error:
            read_image(path)
        assert str(error.value).startswith(f"{path}: cannot be opened")
        assert "give the path of an image file" in str(error.value)


@pytest.mark.parametrize(("data", "cause"), [
    (b"", "the file is empty; restore it"), (b"hello, I am text", "of no image format that PIL knows; restore it"),
    (b"\x89PNG\r\n\x1a\n", "name"), (bytes(5000), "of no image format"), (b"\xff\xd8\xff\xe0", "name"),
])  # fmt: skip
def test_what_is_no_image(data, cause, tmp_path):
    with pytest.raises(ImageReadError, match=r"^name: ") as error:
        decode(data)
    assert cause in str(error.value)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageReadError, match=r"x\.png: "):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("file_format", FORMATS)
def test_truncated_files(file_format):
    data = encode(PIL.Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), file_format)
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(ImageReadError, match=r"^name: .*(restore it|leave)"):
            decode(data[: int(len(data) * share)])


def test_decompression_bombs(monkeypatch):
    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(ImageReadError, match=r"^name: .*1600000000 pixels.*raise PIL\.Image\.MAX_IMAGE_PIXELS"):
        decode(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    np.testing.assert_array_equal(decode(encode(GREY)), GREY)


def test_bombs_are_refused_by_their_header(monkeypatch):
    """Masks are drawn as large as headers say."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(PIL.Image.new("L", (20, 20)))
    for read in (decode_image, image_sizes):
        with pytest.raises(
            ImageReadError, match=r"^name: .*400 pixels.*; raise PIL\.Image\.MAX_IMAGE_PIXELS if you trust"
        ):
            read(data, "name")
    narrow = encode(PIL.Image.new("L", (10, 10)), dpi=(1000, 100))  # becomes 10 x 100
    with pytest.raises(
        ImageReadError, match=r"^name: 100 x 10 .*are more than 200; raise|^name: 10 x 100 .*more than 200"
    ):
        image_sizes(narrow, "name")


def test_postscript_is_not_run(monkeypatch):
    """PIL would hand it to Ghostscript, whatever the file is called."""
    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("run"))
    with pytest.raises(
        ImageReadError, match=r"^a\.png: EPS is a program that draws, and is not run; convert it to PNG"
    ):
        decode_image(encode(COLOUR, "EPS"), "a.png")


def test_indices_without_colours_are_no_blank_picture():
    """Label maps are at times saved with a palette that is all black."""
    image = PIL.Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) // 6, "P")
    image.putpalette([0] * 768)
    with pytest.raises(
        ImageReadError, match="its palette gives all of its values one colour; save the values as grey"
    ):
        decode_image(encode(image), "name")
    empty = PIL.Image.new("P", (4, 3))
    empty.putpalette([0] * 768)
    assert not np.asarray(decode_image(encode(empty), "name")).any()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data):
    file_format = data.draw(st.sampled_from(FORMATS))
    image = data.draw(st.sampled_from([GREY, COLOUR, WIDE] if file_format in ("PNG", "TIFF") else [GREY, COLOUR]))
    damaged = bytearray(encode(image, file_format))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            mode = decode_image(bytes(damaged), "name").mode
        except ImageReadError:
            return
    assert mode in ("L", "RGB")


@pytest.mark.real_data
def test_real_images(shared_data):
    for name, mode in (("scr", "L"), ("cxr-pretrain", "L"), ("chase", "RGB")):
        file = str(shared_data / name / "test-00000-of-00001.parquet")
        data = datasets.Dataset.from_parquet(file, keep_in_memory=True)
        for row in data.select(range(4)).cast_column("image", datasets.Image(decode=False)):
            image = decode_image(row["image"]["bytes"], Path(row["image"]["path"]).name)
            assert image.mode == mode
            assert np.asarray(image).std() > 10


def test_raw_radiographs_of_jsrt_are_big_endian_and_inverted(tmp_path):
    density = np.array([[0, 4095], [1365, 2730]], dtype=">u2")
    (tmp_path / "JPCLN001.IMG").write_bytes(density.tobytes())
    image = read_image(tmp_path / "JPCLN001.IMG")
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[255, 0], [170, 85]]
    assert image.info == {"stored_size": (2, 2)}


def test_the_published_radiographs_of_jsrt_have_their_spacing():
    image = decode_image(
        np.arange(2048**2, dtype=">u4").astype(">u2").__and__(0x0FFF).astype(">u2").tobytes(), "a.IMG"
    )
    assert (image.info["pixel_spacing_mm"], image.info["pixel_spacing_source"]) == ((0.175, 0.175), "JSRT")


def test_raw_radiographs_are_stretched_from_their_own_range():
    density = np.array([[1000, 3000], [1500, 2000]], dtype=">u2")
    assert np.asarray(decode_image(density.tobytes(), "a.img")).tolist() == [[255, 0], [191, 128]]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"\0" * 10, "a.IMG: 10 bytes are no square of 16-bit pixels"),
        (b"\0" * 9, "9 bytes are no square"),
        (np.full((4, 4), 300, "<u2").tobytes(), "a pixel value of 11265, above the 4095 of JSRT's 12 bits"),
        (b"", "the file is empty"),
    ],
)
def test_what_is_no_raw_radiograph(data, cause):
    with pytest.raises(ImageReadError, match=cause):
        decode_image(data, "a.IMG")


@pytest.mark.parametrize("name", ["a.dcm", "a.dicom", "JPCLN001.IMG"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_rows_called_by_the_file_that_they_were_made_of_are_read_by_their_content(name, file_format):
    data = encode(GREY, file_format)
    assert decode_image(data, name).size == image_sizes(data, name).stored == GREY.shape[::-1]
