"""Annotations in each program's own shape, with the pixel that each of its coordinates means."""

import base64
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eden_hf.data.annotations import load_references
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.skips import TooManyUnreadable
from eden_hf.data.sources import load_source


@pytest.fixture
def refs(tmp_path):
    """A folder with two images, 40 x 30 pixels."""
    folder = tmp_path / "refs"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(rng.integers(0, 255, (30, 40), dtype=np.uint8)).save(folder / name)
    return folder


def write(refs, text, name="landmarks.csv"):
    data = text if isinstance(text, bytes) else text.encode()
    (refs / name).parent.mkdir(exist_ok=True)
    (refs / name).write_bytes(data)
    return refs


def only(references):
    assert len(references) == 1
    return references[0]


# tables


def test_a_table_written_by_hand(refs):
    write(refs, "image,name,x,y\na.png,apex,10,20.5\nsub/b.png,apex,0,0\na.png,base,-0.5,29.5\n")
    first, second = load_references(refs)
    assert (first.name, first.points) == ("a.png", {"apex": (10.0, 20.5), "base": (-0.5, 29.5)})
    assert (second.name, second.points) == ("sub/b.png", {"apex": (0.0, 0.0)})
    assert first.image.size == (40, 30)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage;name;x;y\r\na.png;apex;10,25;20,5\r\n",
        "Name\tIMAGE\tY\tX\na\x70ex\ta.png\t20.5\t10.25\n",
        b"\xff\xfe" + "image,name,x,y\na.png,apex,10.25,20.5\n".encode("utf-16-le"),
        ' image , name, x,y ,comment\n\n"a.png","apex", 10.25,20.5,"one, two"\n\n',
        "image,name,x,y\n.\\a.png,apex,10.25,20.5",
    ],
)
def test_tables_of_spreadsheet_programs(refs, text):
    assert only(load_references(write(refs, text))).points == {"apex": (10.25, 20.5)}


def test_an_output_corrected_by_hand_is_a_reference(refs):
    lines = [
        "image,name,x,y,confidence,found,x_mm,y_mm",
        "a.png,apex,10.00,20.00,0.913,true,1.4,2.8",
        "a.png,base,,,0.020,false,,",
        "sub/b.png,apex,3,4,0.1,TRUE,,",
        "sub/b.png,base,99999,4,0.1,False,,",
    ]
    first, second = load_references(write(refs, "\n".join(lines)))
    assert (first.points, second.points) == ({"apex": (10.0, 20.0)}, {"apex": (3.0, 4.0)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,name,x\na.png,apex,10\n", r"landmarks.csv, line 1: there is no column y; .*it is 'image,name,x'"),
        ("image,name,x,y,X\na.png,apex,1,2,3\n", "line 1: there are two columns x"),
        ("image,name,x,y\n\na.png,apex,10,5,20\n", "line 3: 5 values where the header has 4: .* decimal commas"),
        ("image,name,x,y\na.png,apex,ten,20\n", "line 2: x is a number of pixels, got 'ten'"),
        ("image,name,x,y\na.png,apex,1,nan\n", "line 2: y is a number of pixels, got 'nan'"),
        ("image,name,x,y\na.png,apex,1,\n", "line 2: y is a number of pixels, got ''"),
        ("image,name,x,y\na.png, ,1,2\n", "line 2: name is empty"),
        ("image,name,x,y,found\na.png,apex,1,2,WAHR\n", "line 2: found is true or false, got 'WAHR'"),
        ("image,name,x,y\na.png,apex,40,20\n", r"line 2: 'apex' at \(40, 20\) lies off a.png, which has 40 x 30"),
        ("image,name,x,y\na.png,apex,1,2\n./a.png,apex,3,4\n", "line 3: a.png has a point 'apex' already, .*line 2"),
        ("image,name,x,y\n../a.png,apex,1,2\n", r"line 2: image '../a.png' lies outside the folder"),
        ("image,name,x,y\n/etc/a.png,apex,1,2\n", "line 2: image '/etc/a.png' lies outside the folder"),
        ("image,name,x,y\nC:\\x\\a.png,apex,1,2\n", "line 2: image .* lies outside the folder"),
        ("image,name,x,y\nA.PNG,apex,1,2\n", "line 2: there is no image 'A.PNG' in the folder"),
        ("image,name,x,y\naa.png,apex,1,2\n", "line 2: there is no image 'aa.png' .* did you mean 'a.png'?"),
        ("image,name,x,y\n", "name no point and no mask"),
        ("", "line 1: there is no column image, name, x, y"),
    ],
)
def test_wrong_lines_are_named(refs, text, message):
    with pytest.raises(SourceError, match=message):
        load_references(write(refs, text))


def test_a_file_name_is_enough_where_only_one_image_has_it(refs):
    write(refs, "image,name,x,y\nb.png,apex,1,2\n")
    assert only(load_references(refs)).name == "sub/b.png"
    (refs / "other").mkdir()
    (refs / "other" / "b.png").write_bytes((refs / "a.png").read_bytes())
    with pytest.raises(SourceError, match=r"image 'b.png' may be other/b.png, sub/b.png"):
        load_references(refs)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(x=st.floats(-0.5, 39.5), y=st.floats(-0.5, 29.5), semicolons=st.booleans())
def test_any_place_in_the_image_is_read_as_it_was_written(refs, x, y, semicolons):
    line = f"image,name,x,y\na.png,p,{x!r},{y!r}\n"
    line = line.replace(",", ";").replace(".", ",").replace("a,png", "a.png") if semicolons else line
    assert only(load_references(write(refs, line))).points["p"] == pytest.approx((x, y), abs=1e-6)


# COCO


def coco(**annotation):
    return {
        "info": {"description": "chest"},
        "licenses": [],
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}, {"id": 8, "file_name": "absent.png"}],
        "categories": [{"id": 1, "name": "chest", "keypoints": ["apex", "base", "carina"], "skeleton": [[1, 2]]}],
        "annotations": [{"id": 3, "image_id": 7, "category_id": 1, "iscrowd": 0, **annotation}],
    }


def test_coco_keypoints_are_pixel_indices_and_unlabelled_ones_left_out(refs):
    content = coco(keypoints=[10, 20, 2, 0, 0, 0, 5.5, 6, 1], num_keypoints=2, bbox=[0, 0, 5, 5], area=25)
    write(refs, json.dumps(content), "annotations/person_keypoints_default.json")
    assert only(load_references(refs)).points == {"apex": (10.0, 20.0), "carina": (5.5, 6.0)}


def test_coco_segmentations_are_regions_by_category(refs):
    write(refs, json.dumps(coco(segmentation=[[2, 3, 6, 3, 6, 8, 2, 8]])), "coco.json")
    mask = only(load_references(refs)).masks["chest"]
    assert mask.shape == (30, 40)
    assert mask[3:8, 2:6].all()
    assert mask.sum() <= 30
    counts = [30 * 4 + 5, 3, 30 * 36 - 8]  # column after column
    write(refs, json.dumps(coco(segmentation={"size": [30, 40], "counts": counts})), "coco.json")
    assert np.argwhere(only(load_references(refs)).masks["chest"]).tolist() == [[5, 4], [6, 4], [7, 4]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coco(keypoints=[1, 2, 2]), "annotation 3: 3 numbers of keypoints do not fit the 3 names .* category 'chest'"),
        (coco(image_id=9), "annotation 3 is of image 9, which the file does not list"),
        (coco(category_id=2), "annotation 3 is of category 2, which the file does not list"),
        (coco(segmentation={"size": [30, 40], "counts": "abc"}), "compressed run lengths are not read"),
        (coco(segmentation={"size": [30, 40], "counts": [3, 4]}), "run lengths of 7 pixels do not fill .* 40 x 30"),
        (coco(segmentation=[[2, 3, 400, 3, 6, 8]]), "annotation 3: an outline reaches .* beyond the image of 40 x 30"),
        (coco(keypoints="abc"), "not of the shape that its program writes|do not fit"),
        ({**coco(), "images": [{"id": 7, "file_name": "a.png", "width": 30, "height": 40}]}, None),
    ],
)
def test_wrong_coco_is_refused(refs, content, message):
    if message is None:
        content["annotations"][0]["keypoints"] = [1, 1, 2, 0, 0, 0, 0, 0, 0]
        message = "annotation 3: it was drawn on an image of 30 x 40 pixels, a.png has 40 x 30"
    with pytest.raises(SourceError, match=message):
        load_references(write(refs, json.dumps(content), "coco.json"))


# LabelMe


def labelme(*shapes, path="a.png", **changes):
    content = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": path, "imageData": None}
    return json.dumps({**content, "imageHeight": 30, "imageWidth": 40, **changes})


def shape(label, kind, points, **more):
    common = {"group_id": None, "description": "", "flags": {}, "mask": None}
    return {"label": label, "points": points, "shape_type": kind, **common, **more}


def test_labelme_counts_from_the_corner(refs, caplog):
    polygon = [[2.0, 3.0], [6.0, 3.0], [6.0, 8.0], [2.0, 8.0]]
    content = labelme(
        shape("apex", "point", [[10.5, 20.5]]),
        shape("heart", "polygon", polygon),
        shape("lung", "rectangle", [[2.0, 3.0], [6.0, 8.0]]),
        shape("spine", "line", [[1.0, 1.0], [2.0, 2.0]]),
    )
    with caplog.at_level(logging.WARNING):
        reference = only(load_references(write(refs, content, "a.json")))
    assert reference.points == {"apex": (10.0, 20.0)}  # the centre of that pixel
    assert (reference.masks["heart"] == reference.masks["lung"]).all()
    assert reference.masks["heart"][3:8, 2:6].all()
    assert "1 of kind line" in caplog.text


def test_labelme_masks_lie_in_their_box(refs):
    patch = np.array([[True, False, True], [False, True, True]])
    buffer = io.BytesIO()
    Image.fromarray(patch).save(buffer, "PNG")
    mask = base64.b64encode(buffer.getvalue()).decode()
    write(refs, labelme(shape("heart", "mask", [[5.0, 9.0], [7.0, 10.0]], mask=mask)), "a.json")
    drawn = only(load_references(refs)).masks["heart"]
    assert np.array_equal(drawn[9:11, 5:8], patch)
    assert drawn.sum() == patch.sum()
    write(refs, labelme(shape("heart", "mask", [[39.0, 9.0], [41.0, 10.0]], mask=mask)), "a.json")
    with pytest.raises(SourceError, match=r"a mask reaches from \(39, 9\) to \(42, 11\), beyond"):
        load_references(refs)


def test_labelme_in_a_folder_of_its_own_names_the_image_by_the_way_there(refs):
    write(refs, labelme(shape("apex", "point", [[1, 1]]), path="..\\sub\\b.png"), "json/b.json")
    assert only(load_references(refs)).name == "sub/b.png"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (labelme(shape("apex", "point", [[1, 1], [2, 2]])), r"shape 1 \('apex'\): a point has one place, got 2"),
        (labelme(*[shape("apex", "point", [[1, 1]])] * 2), "a.png has a point 'apex' already, by .*shape 1"),
        (labelme(shape("apex", "point", [[1, 1]]), imageWidth=400), "drawn on an image of 400 x 30 pixels"),
        (labelme(shape("apex", "point", [[50, 1]])), r"'apex' at \(49.5, 0.5\) lies off a.png"),
        (labelme(shape("apex", "point", ["left"])), "is not of the shape that its program writes"),
        (labelme({"label": "apex"}), r"KeyError: 'points'\); export it again"),
        ("{", "a.json is no JSON"),
    ],
)
def test_wrong_labelme_is_refused(refs, content, message):
    with pytest.raises(SourceError, match=message):
        load_references(write(refs, content, "a.json"))


@pytest.mark.parametrize("key", ["label", "imagePath"])
@pytest.mark.parametrize("value", [None, 1.5, ["a.png"], {"a": 1}])
def test_names_that_are_no_text_are_refused(refs, key, value):
    shapes = [{"label": "apex", "shape_type": "point", "points": [[1, 1]]}]
    content = {"imagePath": "a.png", "shapes": shapes}
    (shapes[0] if key == "label" else content)[key] = value
    with pytest.raises(SourceError, match=r"a\.json, shape 1 .*: names are texts, got"):
        load_references(write(refs, json.dumps(content), "a.json"))


def test_masks_larger_than_their_image_are_refused_before_they_are_drawn(refs, monkeypatch):
    """A few bytes of run lengths, or of a PNG, stand for any number of pixels."""
    side = 1_000_000
    for name in ("repeat", "zeros"):
        monkeypatch.setattr(np, name, lambda *_, **__: pytest.fail("drawn"))
    runs = {"size": [side, side], "counts": [0, side * side]}
    with pytest.raises(
        SourceError, match=r"a mask reaches from \(0, 0\) to \(1000000, 1000000\), beyond the image of 40"
    ):
        load_references(write(refs, json.dumps(coco(segmentation=runs)), "c.json"))
    (refs / "c.json").unlink()
    mask = f'<mask label="rib" rle="0,{side**2}" left="0" top="0" width="{side}" height="{side}"/>'
    text = f'<annotations><image name="a.png" width="40" height="30">{mask}</image></annotations>'
    with pytest.raises(SourceError, match="beyond the image of 40 x 30"):
        load_references(write(refs, text, "c.xml"))


def test_a_bomb_as_mask_is_refused(refs, monkeypatch):
    buffer = io.BytesIO()
    Image.new("1", (100, 100)).save(buffer, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    mask = {"label": "rib", "shape_type": "mask", "points": [[0, 0], [1, 1]]}
    mask["mask"] = base64.b64encode(buffer.getvalue()).decode()
    content = {"imagePath": "a.png", "shapes": [mask]}
    with pytest.raises(
        SourceError, match=r"10000 pixels\) exceeds limit of 4000 .*raise PIL\.Image\.MAX_IMAGE_PIXELS"
    ):
        load_references(write(refs, json.dumps(content), "a.json"))


@pytest.mark.parametrize(("name", "text"), [("a.json", '{"shapes":' + "[" * 100_000), ("a.xml", "<annotations>\0")])
def test_files_that_no_parser_takes_are_named(refs, name, text):
    with pytest.raises(SourceError, match=rf"{name} "):
        load_references(write(refs, text, name))


# CVAT

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>4</id><name>chest</name><mode>annotation</mode></task></meta>
  <image id="0" name="a.png" width="40" height="30">
    {shapes}
    <tag label="good_frame" source="manual"></tag>
  </image>
  <image id="1" name="never_seen.png" width="10" height="10"></image>
</annotations>
"""
CVAT_SHAPES = """
    <points label="apex" source="manual" occluded="0" points="10.50,20.50" z_order="0"></points>
    <skeleton label="chest" source="manual" z_order="0">
      <points label="1" source="manual" outside="0" occluded="0" points="5.00,6.00"></points>
      <points label="2" source="manual" outside="1" occluded="0" points="7.00,8.00"></points>
      <points label="3" source="manual" outside="0" occluded="1" points="1.50,2.50"></points>
    </skeleton>
    <polygon label="heart" source="manual" occluded="0" points="2.00,3.00;6.00,3.00;6.00,8.00;2.00,8.00" z_order="0">
      <attribute name="quality">good</attribute>
    </polygon>
    <box label="lung" source="manual" occluded="0" xtl="2.00" ytl="3.00" xbr="6.00" ybr="8.00" z_order="0"></box>
    <mask label="clavicle" source="manual" occluded="0" rle="1, 2, 1, 2" left="5" top="9" width="3" height="2"></mask>
    <polyline label="spine" source="manual" points="1.00,1.00;2.00,2.00" z_order="0"></polyline>
"""


def test_cvat_counts_from_the_corner(refs, caplog):
    with caplog.at_level(logging.WARNING):
        reference = only(load_references(write(refs, CVAT.format(shapes=CVAT_SHAPES), "annotations.xml")))
    assert reference.points == {"apex": (10.0, 20.0), "1": (4.5, 5.5), "3": (1.0, 2.0)}
    assert (reference.masks["heart"] == reference.masks["lung"]).all()
    assert reference.masks["heart"][3:8, 2:6].all()
    assert np.argwhere(reference.masks["clavicle"]).tolist() == [[9, 6], [9, 7], [10, 6], [10, 7]]
    assert "1 polyline" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            CVAT.format(shapes='<points label="rib" points="1.00,2.00;3.00,4.00"></points>'),
            "points 'rib' of image 'a.png': 2 points have one label",
        ),
        (CVAT.format(shapes='<mask label="m" rle="1, 2" left="5" top="9" width="3" height="2"/>'), "do not fill"),
        (CVAT.format(shapes='<points label="rib" points="here"></points>'), "not of the shape"),
        (CVAT.format(shapes="<points"), "is no XML"),
        ('<annotations><track id="0" label="a"></track></annotations>', "export it as that"),
        (f"<!DOCTYPE x [<!ENTITY a 'b'>]>{CVAT[CVAT.index('<ann') :].format(shapes='')}", "declares a document type"),
    ],
)
def test_wrong_cvat_is_refused(refs, content, message):
    with pytest.raises(SourceError, match=message):
        load_references(write(refs, content, "annotations.xml"))


# masks, mixtures, images


def test_masks_lie_beside_the_images(refs):
    inside = np.zeros((30, 40), np.uint8)
    inside[3:8, 2:6] = 255
    for name in ("masks/heart/a.png", "masks/heart/sub/b.png", "masks/lung/a.png.png"):
        (refs / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(inside).save(refs / name)
    write(refs, "image,name,x,y\na.png,apex,10,20\n")
    first, second = load_references(refs)
    assert list(first.masks) == ["heart", "lung"]
    assert np.array_equal(first.masks["heart"], inside > 0)
    assert first.points == {"apex": (10.0, 20.0)}
    assert (second.name, second.points, list(second.masks)) == ("sub/b.png", {}, ["heart"])
    Image.fromarray(inside[:20]).save(refs / "masks/heart/a.png")
    with pytest.raises(SourceError, match="40 x 20 pixels, its image 40 x 30"):
        load_references(refs)
    (refs / "masks/heart/a.png").rename(refs / "masks/heart/c.png")
    with pytest.raises(SourceError, match=r"c.png is the mask of no image: there is no c\.\*"):
        load_references(refs)


def test_one_file_alone_may_be_named(refs):
    write(refs, "image,name,x,y\na.png,apex,10,20\n", "mine.csv")
    write(refs, "image,name,x,y\na.png,apex,11,21\n")
    assert only(load_references(refs / "mine.csv")).points == {"apex": (10.0, 20.0)}
    with pytest.raises(SourceError, match=r"x.json is of no kind that is read: landmarks.csv"):
        load_references(write(refs, "{}", "x.json") / "x.json")


def test_a_point_in_two_files_is_refused(refs):
    write(refs, "image,name,x,y\na.png,apex,10,20\n")
    write(refs, labelme(shape("apex", "point", [[1, 1]])), "a.json")
    with pytest.raises(SourceError, match=r"a.json, shape 1 \('apex'\): a.png has a point 'apex' already, by .*csv"):
        load_references(refs)


def test_unreadable_images_are_named_and_counted(refs, caplog):
    (refs / "torn.png").write_bytes(b"no image")
    write(refs, "image,name,x,y\ntorn.png,apex,1,2\na.png,apex,10,20\n")
    with caplog.at_level(logging.WARNING):
        assert only(load_references(refs)).name == "a.png"
    assert "skipped torn.png" in caplog.text
    assert "1 images left out as unreadable, of 2 annotated ones" in caplog.text
    (refs / "a.png").write_bytes(b"torn too")
    with pytest.raises(TooManyUnreadable):
        load_references(refs)


@pytest.mark.parametrize("source", ["absent", "."])
def test_a_folder_without_annotations_says_what_is_looked_for(refs, source):
    with pytest.raises(SourceError, match=r"holds no annotated images.*landmarks.csv|has no landmarks"):
        load_references(refs / source)


def test_coordinates_are_of_the_stored_pixels(refs):
    """A PNG of pixels twice as high as wide: its picture has square ones."""
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(refs / "a.png", dpi=(200, 100))
    write(refs, "image,name,x,y\na.png,apex,10,20\n")
    inside = np.zeros((30, 40), np.uint8)
    inside[3:8, 2:6] = 255
    (refs / "masks" / "heart").mkdir(parents=True)
    Image.fromarray(inside).save(refs / "masks" / "heart" / "a.png")
    reference = only(load_references(refs))
    assert reference.image.size == (40, 60)
    assert reference.points["apex"] == pytest.approx((10, 40.5))
    assert np.array_equal(reference.masks["heart"], np.repeat(inside > 0, 2, axis=0))


def test_dicom_images_are_references(refs):
    pydicom = pytest.importorskip("pydicom")
    path = pydicom.data.get_testdata_file("CT_small.dcm")
    (refs / "IM0001").write_bytes(Path(path).read_bytes())
    reference = only(load_references(write(refs, "image,name,x,y\nIM0001,a,64,64\n")))
    assert reference.image.size == (128, 128)
    assert reference.points == {"a": (64.0, 64.0)}
    assert reference.image.info["pixel_spacing_mm"] == pytest.approx((0.661468, 0.661468))


# data sets


def test_data_sets_with_landmarks_and_masks():
    data = phantom_dataset(2, size=64)
    first = load_references(data, id_column="image_id")[0]
    x, y = data[0]["landmarks"]["carina"]
    assert first.name == "phantom-0-000000"
    assert first.points["carina"] == pytest.approx((x * 64 - 0.5, y * 64 - 0.5), abs=1e-4)
    assert first.masks == {}
    masked = load_references(data, mask_columns=["heart"])[0]
    assert masked.points == first.points
    assert np.array_equal(masked.masks["heart"], np.asarray(data[0]["heart"]))
    alone = load_references(data.remove_columns("landmarks"), mask_columns=["heart"])
    assert [reference.points for reference in alone] == [{}, {}]
    with pytest.raises(SourceError, match="has no landmarks"):
        load_references(data.remove_columns("landmarks"))
    with pytest.raises(SourceError, match="no column liver"):
        load_references(data, mask_columns=["liver"])


def test_a_parquet_of_a_single_split_needs_no_name_of_it(tmp_path):
    file = tmp_path / "test-00000-of-00001.parquet"
    phantom_dataset(2, size=64).to_parquet(file)
    assert len(load_references(str(file))) == 2


@pytest.mark.real_data
def test_scr_gives_its_landmarks(shared_data):
    images = load_source(str(shared_data / "scr" / "test-*.parquet"), split="test", id_column="image_id")
    references = load_references(images.select(range(2)))
    assert [len(reference.points) for reference in references] == [17, 17]
    assert references[0].name == images[0]["source_id"]


def test_rows_without_anything_are_left_out():
    rows = phantom_dataset(2, size=64)
    empty = dict.fromkeys(rows[0]["landmarks"])
    data = Dataset.from_list([{"image": row["image"], "landmarks": row["landmarks"]} for row in rows])
    data = data.map(lambda row, index: {"landmarks": empty if index else row["landmarks"]}, with_indices=True)
    assert len(load_references(data)) == 1
