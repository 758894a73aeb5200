"""The page of a Space in a real browser: what it computes is what Python computes, and the way through it."""

import base64
import io
import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image

from eden_hf.data.phantoms import draw_phantom
from eden_hf.data.reading import decode_image
from eden_hf.data.references import Reference
from eden_hf.encoders import load_encoder
from eden_hf.hub.export import export_model
from eden_hf.hub.space import make_space
from eden_hf.matching import AnatomyMatcher

from ..launching import REPOSITORY
from . import browsing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsing.CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm, which builds the page"),
]
MODEL = str(REPOSITORY / "model_cards" / "eden-resnet18-half-cxr")
SECONDS = 60  # for the page to load, in milliseconds below
ISOLATED, PLAIN = True, False


@pytest.fixture(scope="session")
def space(tmp_path_factory, worker_id):
    """The Space of the released model, made once for all processes of the tests."""
    pytest.importorskip("onnxruntime")
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with FileLock(shared / "space.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("eden_hf.hub.space.export_model", export_once)
        if not (shared / "space").exists():
            make_space(MODEL, str(shared / "space"))
    return shared / "space"


def export_once(model, output, **settings):
    """Export the trained network; make the untrained one of it by shuffling weights: a second export takes long."""
    import onnx_ir

    file = Path(output)
    if file.name == "trained.onnx":
        return export_model(model, output, **settings)
    graph, shuffle = onnx_ir.load(file.with_name("trained.onnx")), np.random.default_rng(0)
    for name, weights in graph.graph.initializers.items():
        if name.endswith("_half"):
            values = weights.const_value.numpy()
            weights.const_value = onnx_ir.tensor(shuffle.permutation(values.ravel()).reshape(values.shape), name=name)
    onnx_ir.save(graph, file)


@pytest.fixture(scope="module")
def chromium():
    with browsing.browser() as chromium:
        yield chromium


def headers(space):
    """What the Hub sends with each file, as the Space's metadata asks it to."""
    return yaml.safe_load((space / "README.md").read_text().split("---")[1])["custom_headers"]


@pytest.fixture(scope="module")
def worker(space, chromium):
    """Calls of the page's worker, on a page that does nothing else."""
    with browsing.served(space, {}) as address:
        page = chromium.new_page()
        page.goto(address + "LICENCES.txt")
        page.evaluate(WORKER)

        def call(name, given=None):
            return page.evaluate("([name, given]) => call(name, given)", [name, given or {}])

        call("start")
        yield call
        page.close()


WORKER = """() => {
  const worker = new Worker("engine.js", { type: "module" });
  const send = (call, given) => new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.error === undefined ? resolve(data.result) : reject(new Error(data.error)));
    worker.postMessage({ key: 1, call, given });
  });
  const base64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  const bytes = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
  self.call = async (call, given) => {
    if (call === "start") {
      const settings = await (await fetch("space.json")).json();
      await send("prepare", { settings, runtime: await bytes("ort/ort-wasm-simd-threaded.wasm") });
      return send("load", { model: "trained", bytes: await bytes("trained.onnx") });
    }
    if (call === "read") given.bytes = Uint8Array.from(atob(given.bytes), (c) => c.charCodeAt(0)).buffer;
    const result = await send(call, given);
    if (call === "read") result.pixels = result.pixels.length;
    if (call === "embeddings") result.vectors = base64(new Uint8Array(result.vectors.buffer));
    if (call === "find") result.heat = null;
    return result;
  };
}"""


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(MODEL)


def phantom(index, size=256):
    return Image.fromarray(draw_phantom((0, index), size).image)


def saved(image, format="PNG", **options):  # noqa: A002
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def dicom(inverted=False):
    """A DICOM file of 12 bits, a little wider than high, with a window and signed values."""
    pydicom = pytest.importorskip("pydicom")
    pixels = np.asarray(phantom(2).resize((301, 277)), np.int16) * 8 - 1024
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = (
        pydicom.uid.DigitalXRayImageStorageForPresentation
    )
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *pixels.shape, 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", "100"
    dataset.WindowCenter, dataset.WindowWidth = "120", "900"
    dataset.PixelData = (pixels & 0x0FFF).astype("<u2").tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def lossless_dicom():
    """The same image compressed as scanners do: lossless JPEG, each pixel told by its difference from the one before.

    Categories of differences get codes of five bits each, in order.
    """
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("libjpeg", reason="lossless JPEG needs the extra dicom-jpeg")
    dataset = pydicom.dcmread(io.BytesIO(dicom()))
    pixels = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns).astype(int)
    before = np.concatenate([pixels[:, :1], pixels[:, :-1]], axis=1)
    before[1:, 0], before[0, 0] = pixels[:-1, 0], 1 << 11
    bits = []
    for difference in (pixels - before).ravel().tolist():
        category = abs(difference).bit_length()
        extra = difference if difference >= 0 else difference + (1 << category) - 1
        bits.append(f"{category:05b}" + (f"{extra:0{category}b}" if category else ""))
    coded = "".join(bits)
    coded += "1" * (-len(coded) % 8)
    scan = int(coded, 2).to_bytes(len(coded) // 8, "big").replace(b"\xff", b"\xff\0")
    codes = bytes([0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    frame = bytes([12, *dataset.Rows.to_bytes(2, "big"), *dataset.Columns.to_bytes(2, "big"), 1, 1, 0x11, 0])
    segments = {0xC3: frame, 0xC4: b"\0" + codes, 0xDA: bytes([1, 1, 0, 1, 0, 0])}
    headers = (bytes([0xFF, mark]) + (len(data) + 2).to_bytes(2, "big") + data for mark, data in segments.items())
    jpeg = b"\xff\xd8" + b"".join(headers) + scan + b"\xff\xd9"
    dataset.PixelData = pydicom.encaps.encapsulate([jpeg])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def coloured(image):
    return Image.merge("RGB", [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.rotate(90)])


def odd_images():
    first, wide, tall = phantom(0), phantom(1).resize((517, 203)), phantom(4).resize((97, 331))
    shaded = Image.fromarray(np.linspace(40, 255, 256 * 256).reshape(256, 256).astype(np.uint8))
    deep = Image.fromarray(np.asarray(wide, np.uint16) * 37 + 500)
    return {
        "grey.png": saved(wide),
        "colour.png": saved(coloured(first)),
        "alpha.png": saved(Image.merge("RGBA", [*coloured(first).split(), shaded])),
        "grey-alpha.png": saved(Image.merge("LA", [first, shaded])),
        "palette.png": saved(coloured(first).quantize(31)),
        "one-bit.png": saved(tall.convert("1")),
        "sixteen.png": saved(deep),
        "grey.jpg": saved(tall, "JPEG", quality=91),
        "turned.jpg": saved(coloured(first.crop((0, 0, 256, 190))), "JPEG", exif=exif(6), subsampling=0),
        "tiny.png": saved(phantom(5).resize((31, 19))),
        "signed.dcm": dicom(),
        "inverted.dcm": dicom(inverted=True),
        "lossless.dcm": lossless_dicom(),
    }


@pytest.mark.parametrize("name", odd_images())
def test_embeddings_are_torchs(name, worker, encoder):
    data = odd_images()[name]
    worker("read", {"id": 1, "bytes": base64.b64encode(data).decode(), "name": name})
    found = worker("embeddings", {"id": 1, "model": "trained"})
    with torch.inference_mode():
        expected = encoder.model(encoder.pixel_values([decode_image(data, name)])).dense_embeddings[0]
    vectors = np.frombuffer(base64.b64decode(found["vectors"]), "<f4").reshape(expected.shape)
    assert np.abs(vectors - expected.numpy()).max() < 1e-3


def test_points_are_those_of_the_matcher(worker, encoder, monkeypatch):
    monkeypatch.setattr(import_module("eden_hf.matching.dense_maps"), "gains_from_bfloat16", lambda device: False)
    reference, target = draw_phantom((0, 3), 256), phantom(11).resize((300, 256))
    for number, image in enumerate((Image.fromarray(reference.image), target), start=1):
        data = base64.b64encode(saved(image)).decode()
        worker("read", {"id": number, "bytes": data, "name": "phantom.png"})
    points = [{"x": x, "y": y} for x, y in reference.landmarks.values()]
    found = worker("find", {"source": 1, "target": 2, "model": "trained", "points": points})["points"]
    pixels = {name: (256 * x - 0.5, 256 * y - 0.5) for name, (x, y) in reference.landmarks.items()}
    matcher = AnatomyMatcher(encoder, [Reference(Image.fromarray(reference.image), points=pixels)])
    for point, expected in zip(found, matcher.find(target).values(), strict=True):
        assert point["x"] * 300 - 0.5 == pytest.approx(expected.x, abs=0.05)
        assert point["y"] * 256 - 0.5 == pytest.approx(expected.y, abs=0.05)
        assert point["confidence"] == pytest.approx(expected.confidence, abs=2e-3)
        assert point["found"] == expected.found


@pytest.fixture
def visit(space, chromium):
    """Open the page in a window, with the Hub's headers or without, and wait until all is loaded."""
    closing = []

    def open_page(isolated, **window):
        address = browsing.served(space, headers(space) if isolated else {})
        context = chromium.new_context(**window)
        closing.extend([context.close, lambda: address.__exit__(None, None, None)])
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.faults, page.requests = [], []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
        page.goto(address.__enter__())
        page.wait_for_selector("body[data-loaded=all]", state="attached")
        context.on("request", lambda request: page.requests.append(request.url))
        return page

    yield open_page
    for close in closing:
        close()


def answers(page):
    page.wait_for_selector("body[data-state=done]", state="attached")
    return page.locator("figcaption output").all_inner_texts()


def press(page, where, x, y):
    box = where.bounding_box()
    where.click(position={"x": box["width"] * x, "y": box["height"] * y})
    return answers(page)


def drop(page, name, data):
    """Drop a file on the page."""
    handle = page.evaluate_handle(
        """([name, data]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
          return transfer;
        }""",
        [name, base64.b64encode(data).decode()],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": handle})


def test_the_way_by_mouse(visit, space):
    page = visit(ISOLATED, viewport={"width": 1280, "height": 900}, color_scheme="dark")
    assert page.evaluate("crossOriginIsolated")
    first = page.locator("#gallery canvas").first
    point = json.loads((space / "space.json").read_text())["examples"][0]["landmarks"]["left_lung_apex"]
    own, *others = press(page, first, **point)
    assert own == ""
    assert all(float(text.removeprefix("confidence ")) > 0.9 for text in others)
    assert page.locator("#result").inner_text() == "Found in 5 of 5 other pictures."

    page.get_by_label("Untrained network").check()
    assert all(text.startswith("not found") for text in answers(page)[1:])
    page.get_by_label("Untrained network").uncheck()

    page.get_by_role("radio", name="landmarks").check()
    assert all(text == "17 of 17 found" for text in answers(page)[1:])
    assert page.locator("#names li").count() == 17

    page.get_by_label("a mask").check()
    for x, y in ((0.27, 0.35), (0.3, 0.6), (0.5, 0.5)):  # in the right lung twice, in the heart
        shares = press(page, first, x, y)
    assert all(6 < float(text.removesuffix(" % of the picture")) < 16 for text in shares)

    page.get_by_role("tab", name="Levels").click()
    page.locator("#level").fill("4")
    press(page, page.locator("#parts"), 0.6, 0.6)
    assert page.locator("#part").inner_text() == (
        "Level 4: 16 parts, 4 x 4. Part 10 lies in part 6 of level 3 and is cut into parts 20 and 21 of level 5."
    )
    assert page.faults == []
    assert page.requests == []


def test_the_way_by_keyboard_on_a_phone(visit):
    page = visit(PLAIN, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert not page.evaluate("crossOriginIsolated")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("a point").focus()
    for _ in range(6):  # past the switch and the button, to the second picture
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "phantom-11.png":
            break
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.locator("figure.source figcaption").inner_text() == "phantom-11.png"
    assert sum(text.startswith("confidence") for text in answers(page)) == 5
    page.get_by_role("tab", name="Points").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # the level's slider
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert page.locator("#part").inner_text().startswith("Level 3: 8 parts, 2 x 4. Part 4 lies in part 2 of level 2")
    assert page.faults == []
    assert page.requests == []


def test_files_of_the_visitor(visit):
    page = visit(PLAIN)
    press(page, page.locator("#gallery canvas").first, 0.63, 0.2)
    drop(page, "chest.dcm", dicom())
    added = page.locator("figure", has_text="chest.dcm")
    added.wait_for()
    assert answers(page)[-1].startswith(("confidence", "not found"))
    assert added.locator("canvas").evaluate("canvas => [canvas.width, canvas.height]") == [512, 471]

    page.locator("#files").set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    page.locator("#fault:not([hidden])").wait_for()
    assert page.locator("#fault").inner_text() == (
        "notes.txt is no picture that this page can read: give a PNG, a JPEG or a DICOM file"
    )
    assert page.locator("figure").count() == 7
    page.get_by_label("Remove chest.dcm").click()
    assert len(answers(page)) == 6
    assert page.requests == []


def test_a_browser_that_lacks_something(space, chromium):
    with browsing.served(space, {}) as address:
        page = chromium.new_page()
        page.add_init_script("delete self.OffscreenCanvas")
        page.goto(address)
        page.locator("#status.fault").wait_for()
        assert page.locator("#status").inner_text() == (
            "This browser lacks OffscreenCanvas, which reads pictures in the background. "
            "A current Firefox, Chrome, Edge or Safari has it."
        )
        page.close()
