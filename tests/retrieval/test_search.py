"""What is most alike to an image or a region of one: found where it is known to be."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.anatomy import Box
from eden_hf.cli import COMMANDS
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import draw_phantom
from eden_hf.retrieval import SearchError, embed_images, search
from eden_hf.retrieval.searching import _alike_windows, _maps, parse_region
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Six phantoms, a tiny dense model, and both kinds of embeddings."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("search")
    (path / "images").mkdir()
    for seed in range(6):
        Image.fromarray(draw_phantom(seed, 128).image).save(path / "images" / f"{seed}.png")
    EdenModel(tiny_config(dense_dim=16)).eval().save_pretrained(path / "model")
    EdenImageProcessor(size={"height": 64, "width": 64}).save_pretrained(path / "model")
    for kind in (False, True):
        embed_images(str(path / "model"), str(path / "images"), str(path / f"{kind}.parquet"), dense=kind)
    return path


@pytest.fixture
def asked(work):
    """The options that all searches share."""
    return {"model": str(work / "model"), "query": str(work / "images" / "3.png")}


def test_an_image_finds_itself_first(work, asked):
    hits = search(embeddings=str(work / "False.parquet"), top=4, **asked)
    assert [hits[0].image, len(hits)] == ["3.png", 4]
    assert hits[0].similarity == pytest.approx(1, abs=1e-3)
    assert sorted((hit.similarity for hit in hits), reverse=True) == [hit.similarity for hit in hits]
    assert all(hit.box is None for hit in hits)
    now = search(images=str(work / "images"), top=4, **asked)
    assert [hit.image for hit in now] == [hit.image for hit in hits]


def test_a_region_is_found_where_it_is(work, asked):
    region = {"region": "40,32,80,64", **asked}
    hits = search(embeddings=str(work / "True.parquet"), **region)
    assert len(hits) == 6
    assert hits[0].image == "3.png"
    assert hits[0].similarity == pytest.approx(1, abs=1e-3)
    assert hits[0].box == (40, 32, 80, 64)
    now = search(images=str(work / "images"), embeddings=str(work / "False.parquet"), **region)
    assert [(hit.image, hit.box) for hit in now] == [(hit.image, hit.box) for hit in hits]


def points(image, vectors, spacing=4):
    """Rows of an image of dense embeddings `[D, h, w]`, its nodes `spacing` pixels apart."""
    dim, height, width = vectors.shape
    rows, columns = (index.flatten() for index in np.indices((height, width)))
    x, y = (np.float32(spacing * (index + 0.5) - 0.5) for index in (columns, rows))
    embedding = pa.array(vectors.flatten(1).T.tolist(), pa.list_(pa.float32(), dim))
    names = [image] * len(rows)
    return pa.record_batch({"image": names, "row": rows, "column": columns, "x": x, "y": y, "embedding": embedding})


def test_a_region_is_found_where_it_lies_in_another_image():
    query, other, small = (F.normalize(torch.randn(16, *sides), dim=0) for sides in ((8, 10), (12, 9), (2, 2)))
    other[:, 7:10, 1:5] = query[:, 2:5, 3:7]
    hits = list(_alike_windows(points("query", query), Box(12, 8, 28, 20), [points("a", other), points("b", small)]))
    assert [hit.image for hit in hits] == ["a", "b"]
    assert hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert hits[0].box == Box(4, 28, 20, 40)
    assert hits[1].box == Box(0, 0, 8, 8)  # smaller than the region: all of it is compared


def test_a_sheet_is_drawn_of_the_source_that_was_embedded(work, asked, tmp_path):
    for kind, region in ((False, None), (True, "40,32,80,64")):
        sheet = tmp_path / "new" / f"{kind}.png"
        search(embeddings=str(work / f"{kind}.parquet"), region=region, output=str(sheet), top=3, **asked)
        with Image.open(sheet) as picture:
            assert picture.width > picture.height
    (tmp_path / "others").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "others" / "x.png")
    with pytest.raises(SourceError, match=r"3\.png was embedded and is not in the images given"):
        search(embeddings=str(work / "False.parquet"), images=str(tmp_path / "others"), output="x.png", **asked)


def test_what_cannot_be_searched_is_refused(work, asked, tmp_path):
    pooled, dense = (str(work / f"{kind}.parquet") for kind in (False, True))
    with pytest.raises(SearchError, match=r"give embeddings .* or images"):
        search(**asked)
    with pytest.raises(SearchError, match="make one with --dense, or give images"):
        search(embeddings=pooled, region="0,0,9,9", **asked)
    with pytest.raises(SearchError, match="give a region, or make one without --dense"):
        search(embeddings=dense, **asked)
    with pytest.raises(SearchError, match=r"was made by .* search with the model that made it"):
        search(embeddings=pooled, **{**asked, "model": "random:resnet18-half"})
    fresh = str(embed_images("random:resnet18-half", "phantoms:2", str(tmp_path / "fresh.parquet"), size=32).file)
    with pytest.raises(
        SearchError, match=r"was made by random:resnet18-half \(seed 0\), and random:resnet18 is seed 0"
    ):
        search(embeddings=fresh, **{**asked, "model": "random:resnet18"})
    with pytest.raises(SourceError, match="no Parquet of embeddings"):
        search(embeddings=asked["query"], **asked)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(SourceError, match="not of `eden embed`"):
        search(embeddings=str(tmp_path / "other.parquet"), **asked)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3", "four whole numbers"),
        ("1,2,3,4.5", "four whole numbers"),
        ("0,0,11,5", "not inside .* 10 x 20 pixels"),
        ("5,5,5,9", "not inside"),
        ("-1,0,5,9", "not inside"),
    ],
)
def test_a_region_that_is_none(text, words):
    assert parse_region("0,0,10,20", (10, 20)) == Box(0, 0, 10, 20)
    with pytest.raises(SearchError, match=words):
        parse_region(text, (10, 20))


@settings(deadline=None, max_examples=50)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 80), max_size=6),
)
def test_maps_are_put_together_over_the_bounds_of_batches(shapes, cuts):
    names, rows, columns, values = [], [], [], []
    for number, (height, width) in enumerate(shapes):
        for node in range(height * width):
            names.append(f"{number}")
            rows.append(node // width + 2)  # padding above was left out
            columns.append(node % width)
            values.append([number, node])
    x, y = ([float(4 * place) for place in places] for places in (columns, rows))
    embedding = pa.array(values, pa.list_(pa.float32(), 2))
    whole = pa.record_batch({"image": names, "row": rows, "column": columns, "x": x, "y": y, "embedding": embedding})
    bounds = sorted({0, len(names), *(cut for cut in cuts if cut < len(names))})
    batches = [whole.slice(start, end - start) for start, end in pairwise(bounds)]
    found = list(_maps(batches))
    assert [part.image for part in found] == [f"{number}" for number in range(len(shapes))]
    for number, ((height, width), part) in enumerate(zip(shapes, found, strict=True)):
        assert part.vectors.shape == (2, height, width)
        assert (part.vectors[0] == number).all()
        assert part.vectors[1].flatten().tolist() == list(range(height * width))
        assert part.x.tolist() == [4.0 * column for column in range(width)]
        assert part.y.tolist() == [4.0 * (row + 2) for row in range(height)]


def test_the_commands_print_what_they_did(work, tmp_path, capsys):
    output = str(tmp_path / "e.parquet")
    COMMANDS["embed"](["--model", str(work / "model"), "--images", str(work / "images"), "--output", output])
    assert capsys.readouterr().out == f"{output}: 6 images\n"
    options = ["--model", str(work / "model"), "--query", str(work / "images" / "1.png"), "--embeddings", output]
    COMMANDS["search"]([*options, "--top", "2"])
    found = capsys.readouterr().out.splitlines()
    assert found[0].split("\t")[2] == "1.png"
    assert len(found) == 2
    with pytest.raises(SystemExit, match=r"^2$"):
        COMMANDS["search"]([*options, "--region", "0,0,4,4"])
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("eden search: ")
    assert json.loads(pq.read_schema(output).metadata[b"eden_hf"])["images"] == str(work / "images")
