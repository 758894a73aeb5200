import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from eden_hf import plots
from eden_hf.anatomy import Box, part_boxes
from eden_hf.data.phantoms import draw_phantom
from eden_hf.plots import (
    Part,
    plot_correspondence,
    plot_history,
    plot_hits,
    plot_landmarks,
    plot_levels,
    plot_matches,
    plot_neighbours,
    plot_tsne,
)


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(draw_phantom(0, 64).image)


def written(figure):
    """The figure as pixels, as `savefig` writes it."""
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    return np.asarray(Image.open(file).convert("RGB"))


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_levels_show_every_part_of_every_level(image):
    figure = plot_levels(image, [0, 2, 3])
    assert [axes.get_title() for axes in figure.axes] == [
        "level 0: 1 part (1 x 1)",
        "level 2: 4 parts (2 x 2)",
        "level 3: 8 parts (2 x 4)",
    ]
    for axes, level in zip(figure.axes, [0, 2, 3], strict=True):
        drawn = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in axes.patches]
        boxes = part_boxes(64, 64, level)
        assert drawn == [(box.x0 - 0.5, box.y0 - 0.5, box.width, box.height) for box in boxes]
        assert texts(axes) == [str(index) for index in range(2**level)]
    assert written(figure).std() > 0
    with pytest.raises(ValueError, match="at least one level"):
        plot_levels(image, [])


def test_notebooks_show_figures(image):
    """Without pyplot, which teaches them to show those of matplotlib."""
    with Image.open(io.BytesIO(plot_levels(image, [0])._repr_png_())) as picture:
        assert (picture.format, picture.width) == ("PNG", 320)


HISTORY = [
    {"step": 2, "stage": 0, "epoch": 0, "level": 0, "loss": 8.0, "pruned_share": 0.0, "learning_rate": 0.03},
    {"step": 4, "stage": 0, "epoch": 0, "level": 0, "loss": 7.0, "pruned_share": 0.0, "learning_rate": 0.01},
    {"step": 4, "stage": 0, "epoch": 0, "level": 0, "validation_loss": 7.5},
    {"step": 6, "stage": 1, "epoch": 1, "level": 2, "loss": 6.5, "pruned_share": 0.2, "learning_rate": 0.03},
    {"step": 8, "stage": 1, "epoch": 1, "level": 2, "loss": 6.0, "pruned_share": 0.1, "learning_rate": 0.01},
]


def test_history_draws_each_stage_apart(image):
    figure = plot_history(HISTORY[::-1])  # in any order
    losses, pruned = figure.axes
    lines = [(line.get_label(), line.get_xydata().tolist()) for line in losses.lines]
    assert lines == [
        ("training", [[2, 8], [4, 7]]),
        ("validation", [[4, 7.5]]),
        ("training", [[6, 6.5], [8, 6]]),
    ]
    assert [line.get_ydata().tolist() for line in pruned.lines] == [[0, 0], [0.2, 0.1]]
    assert texts(losses) == ["stage 0: level 0", "stage 1: level 2"]
    assert [text.get_text() for text in losses.get_legend().texts] == ["training", "validation"]
    assert pruned.get_xlim() == (0, 8)
    assert written(figure).std() > 0


def test_history_without_losses_is_refused():
    with pytest.raises(ValueError, match="no training loss in any of its 1 rows"):
        plot_history(HISTORY[2:3])


def test_tsne_gives_every_label_its_own_look():
    labels = np.arange(40) % 10
    figure = plot_tsne(np.random.default_rng(0).normal(size=(40, 2)), labels, [f"part {i}" for i in range(10)])
    (axes,) = figure.axes
    looks = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in axes.collections}
    assert len(looks) == 10
    assert sum(len(collection.get_offsets()) for collection in axes.collections) == 40
    assert sorted(texts(axes)) == sorted(text.get_text() for text in axes.get_legend().texts)
    assert written(figure).std() > 0


@pytest.mark.parametrize(
    ("labels", "named"), [([0, 1], "3 points and 2 labels"), ([0, 1, 2], "0 to 2, but .* 2 names")]
)
def test_tsne_refuses_labels_that_do_not_fit(labels, named):
    with pytest.raises(ValueError, match=named):
        plot_tsne(np.zeros((3, 2)), labels, ["left", "right"])


def test_correspondence_joins_points_with_their_matches(image):
    start, end = torch.tensor([[10.0, 12.0], [30.0, 40.0]]), torch.tensor([[11.0, 12.0], [31.0, 44.0]])
    figure = plot_correspondence(image, image, start, end)
    for axes, points in zip(figure.axes, (start, end), strict=True):
        assert [line.get_xydata()[0].tolist() for line in axes.lines] == points.tolist()
        assert texts(axes) == ["1", "2"]
    assert [(patch.xy1, patch.xy2) for patch in figure.artists] == [
        (a, b) for a, b in zip(start.tolist(), end.tolist(), strict=True)
    ]
    assert written(figure).std() > 0
    with pytest.raises(ValueError, match="2 points and 1 matches"):
        plot_correspondence(image, image, start, end[:1])


def test_neighbours_show_crop_place_source_and_cosine(image):
    boxes = part_boxes(64, 64, 4)
    parts = [Part(image, boxes[i], f"folder/with/a/long/name/{i}.png") for i in range(3)]
    figure = plot_neighbours(parts[:1], [parts[1:]], torch.tensor([[0.91, 0.5]]))
    crops, wholes = figure.axes[:3], figure.axes[3:]
    assert [axes.get_title() for axes in crops] == ["query", "cosine 0.910", "cosine 0.500"]
    for index, (crop, whole) in enumerate(zip(crops, wholes, strict=True)):
        assert np.array_equal(crop.images[0].get_array(), np.asarray(image.crop(boxes[index])))
        assert whole.patches[0].get_xy() == (boxes[index].x0 - 0.5, boxes[index].y0 - 0.5)
        assert whole.get_xlabel() == f"…ith/a/long/name/{index}.png"
    assert written(figure).std() > 0


def test_neighbours_that_do_not_fit_are_refused(image):
    part = Part(image, part_boxes(64, 64, 0)[0], "a.png")
    with pytest.raises(ValueError, match=r"1 queries with \[2\] neighbours .* got \[1, 3\]"):
        plot_neighbours([part], [[part, part]], torch.zeros(1, 3))


def test_masks_are_outlined_in_a_panel_each():
    images = [Image.new("L", (20, 16), 100)] * 4
    masks = np.zeros((2, 16, 20), bool)
    masks[0, 4:10, 5:15] = True
    figure = plots.plot_masks(images, [masks] * 4, [~masks] * 4, ["heart", "lung"], list("abcd"))
    assert [axes.get_title() for axes in figure.axes[:4]] == list("abcd")
    outlined = figure.axes[0].collections
    assert len(outlined) == 2  # of the heart, found and true; nothing of the lung, which is nowhere or everywhere
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "heart, predicted", "lung, predicted", "true",
    ]  # fmt: skip
    true, found = ({tuple(edge) for edge in lines.get_edgecolor()} for lines in outlined)
    assert true.isdisjoint(found), "what is true and what was found look alike"


def test_densities_and_groups_show_every_sample():
    figure = plots.plot_densities({"own": np.array([0.1, 0.2, 0.4]), "others": np.array([0.0, 0.3])}, "cosine")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["own", "others"]
    with pytest.raises(ValueError, match="too few in single"):
        plots.plot_densities({"single": np.array([1.0])}, "cosine")
    figure = plots.plot_groups(
        {"retrieval": {"adam": [0.9, 0.8], "moco_v2": [0.7]}, "margin": {"adam": [1], "random": [2]}}
    )
    assert [axes.get_title() for axes in figure.axes[:2]] == ["retrieval", "margin"]
    groups = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert groups == ["random", "moco v2", "adam"]
    drawn = [{groups[line.get_ydata()[0]] for line in axes.lines} for axes in figure.axes[:2]]
    assert drawn == [{"adam", "moco v2"}, {"adam", "random"}], "a group stands only where it has values"


def test_few_shot_curves_go_through_the_means():
    cells = [
        {"label": "heart", "encoder": name, "seed": seed, "shots": k, "mean": base + k + seed, "deviation": 2.5}
        for name, base in (("ours", 55), ("theirs", 30))
        for seed in (0, 1)
        for k in (6, 3)
    ]
    axes = plots.plot_few_shot(cells).axes[0]
    drawn = axes.containers
    assert len(drawn) == 4
    assert drawn[1].lines[0].get_xdata().tolist() == [3, 6]
    assert drawn[1].lines[0].get_ydata().tolist() == [59, 62]
    (bars,) = drawn[0].lines[2]
    assert bars.get_segments()[0][:, 1].tolist() == [58 - 2.5, 58 + 2.5]
    assert drawn[0].lines[0].get_color() == drawn[1].lines[0].get_color() != drawn[2].lines[0].get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours", "theirs"]


FOUND = {"apex": SimpleNamespace(x=10.0, y=20.0, confidence=0.9, found=True),
         "base": SimpleNamespace(x=30.0, y=40.0, confidence=0.1, found=False)}  # fmt: skip


def test_matches_show_what_was_found_and_say_what_was_not(image):
    points = {"apex": (11.0, 12.0), "base": (13.0, 14.0)}
    maps = {name: np.zeros((8, 8)) for name in points}
    figure = plot_matches((image, image), points, FOUND, maps)
    left, right, *small = figure.get_axes()
    assert right.get_title() == "found (not found: base)"
    assert texts(left) == ["apex", "base"]
    assert texts(right) == ["apex"]
    assert [axes.get_title() for axes in small[:2]] == ["apex: 0.90", "base: not found"]
    assert [line.get_xydata().tolist() for line in small[0].lines] == [[[10, 20]]]
    assert small[0].images[1].get_extent() == [-0.5, 63.5, 63.5, -0.5]
    assert written(figure).std() > 0


def test_landmarks_are_numbered_as_in_the_legend(image):
    figure = plot_landmarks([image, image], [{"base": FOUND["base"]}, FOUND], ["one", "two"])
    first, second = figure.get_axes()[:2]
    assert first.get_title() == "one\n1 not found"
    assert texts(second) == ["2"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["1 base", "2 apex"]
    assert written(figure).std() > 0


def test_hits_stand_in_order_with_their_parts_outlined(image):
    whole, box = Box(0, 0, *image.size), Box(8, 16, 24, 40)
    parts = [Part(image, box, "query"), Part(image, box, "a/rather/long/name/of/one.png"), Part(image, whole, "b")]
    figure = plot_hits(parts, [0.9, 0.25])
    assert [axes.get_title() for axes in figure.axes] == ["query", "1. 0.900", "2. 0.250"]
    assert [len(axes.patches) for axes in figure.axes] == [1, 1, 0]
    assert figure.axes[1].patches[0].get_bbox().bounds == (7.5, 15.5, 16, 24)
    assert figure.axes[1].get_xlabel().startswith("…")
    assert written(figure).std() > 0
    many = plot_hits([Part(image, whole, "x")] * 8, [0.5] * 7)
    assert sum(axes.axison for axes in many.axes) == 8
