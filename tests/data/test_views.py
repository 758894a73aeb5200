import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage, stats
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eden_hf.anatomy import part_boxes
from eden_hf.data.view_arguments import ViewArguments
from eden_hf.data.views import TwoViews, _jitter_together, draw_views, make_views
from eden_hf.image_processing_eden import EdenImageProcessor

#: Nothing is drawn: the view is the part itself.
PLAIN = {
    "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "rotation_degrees": 0.0,
    "jitter_probability": 0.0, "blur_probability": 0.0, "image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0),
}  # fmt: skip


def plain(**settings):
    return ViewArguments(**{**PLAIN, **settings})


def noise(batch=4, channels=1, height=64, width=64):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (batch, channels, height, width), generator=generator, dtype=torch.uint8)


def smooth(height=64, width=64, channels=1):
    """A batch of one image of soft blobs, where filters differ little from one another."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [128 + 100 * torch.sin(x / (6 + c)) * torch.cos(y / (9 - c)) for c in range(channels)]
    return torch.stack(waves).round().to(torch.uint8)[None]


def draw(arguments=None, count=20_000, level=0, seed=0, epoch=0, height=256, width=256):
    arguments = arguments or ViewArguments()
    return draw_views(torch.arange(count), arguments, level=level, seed=seed, epoch=epoch, height=height, width=width)


def views(images, level=0, epoch=0, arguments=None, indices=None):
    indices = torch.arange(len(images)) if indices is None else indices
    return TwoViews(arguments or ViewArguments(size=32))(images, indices, level=level, seed=1, epoch=epoch)


# --- what is drawn -------------------------------------------------------------------------------------------------


def test_crops_follow_the_recipe():
    for drawn in draw():
        x0, y0, x1, y1 = drawn.boxes.double().T
        width, height = x1 - x0, y1 - y0
        assert drawn.boxes.min() >= 0
        assert drawn.boxes.max() <= 256
        assert torch.equal(drawn.boxes, drawn.boxes.round())
        share, ratio = width * height / 256**2, width / height
        assert 0.19 < share.min() < share.max() <= 1.0
        assert 0.74 < ratio.min() < ratio.max() < 1.35
        # Crops that do not fit are drawn again, so large ones are rarer: the law below 3/4 of the area is uniform.
        below = share[share < 0.7]
        assert stats.kstest(below, stats.uniform(0.2, 0.5).cdf).statistic < 0.02
        assert abs(ratio.log().mean()) < 0.01  # wide as often as tall
        free = 256 - width
        assert abs((x0 / free.clamp(min=1))[free > 20].mean() - 0.5) < 0.02


def test_crops_are_those_of_the_definition():
    """The law of areas and ratios against random resized crops drawn one at a time with numpy."""
    rng = np.random.default_rng(0)
    expected = []
    while len(expected) < 20_000:
        for _ in range(10):
            area, ratio = 256**2 * rng.uniform(0.2, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if width <= 256 and height <= 256:
                break
        else:
            width = height = 256
        expected.append((width * height, width / height))
    boxes = draw()[0].boxes
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert stats.ks_2samp((width * height).numpy(), np.array(expected)[:, 0]).statistic < 0.02
    assert stats.ks_2samp((width / height).numpy(), np.array(expected)[:, 1]).statistic < 0.02


def test_angles_jitter_and_blur_follow_the_recipe():
    for drawn in draw():
        degrees = torch.rad2deg(drawn.angle).numpy()
        assert stats.kstest(degrees, stats.uniform(-30, 60).cdf).statistic < 0.02
        for column in range(3):
            assert stats.kstest(drawn.factors[:, column].numpy(), stats.uniform(0.6, 0.8).cdf).statistic < 0.02
        assert stats.kstest(drawn.factors[:, 3].numpy(), stats.uniform(-0.1, 0.2).cdf).statistic < 0.02
        assert stats.kstest(drawn.sigma.numpy(), stats.uniform(0.1, 1.9).cdf).statistic < 0.02
        assert drawn.jittered.float().mean().item() == pytest.approx(0.8, abs=0.01)
        assert drawn.blurred.float().mean().item() == pytest.approx(0.5, abs=0.01)
        orders = drawn.order[:, 0] * 64 + drawn.order[:, 1] * 16 + drawn.order[:, 2] * 4 + drawn.order[:, 3]
        counts = torch.unique(orders, return_counts=True)[1]
        assert len(counts) == 24
        assert stats.chisquare(counts).pvalue > 1e-4


def test_draws_are_independent_of_one_another():
    query, key = draw()
    numbers = torch.stack(
        [
            query.angle, key.angle, query.sigma, key.sigma, query.boxes[:, 0], key.boxes[:, 0],
            *query.factors.T, *key.factors.T, query.jittered.float(), query.blurred.float(),
        ]
    )  # fmt: skip
    correlation = torch.corrcoef(numbers) - torch.eye(len(numbers))
    assert correlation.abs().max() < 0.035
    along = torch.stack([query.angle[:-1], query.angle[1:]])  # neighbours in the data set
    assert torch.corrcoef(along)[0, 1].abs() < 0.035


def test_a_part_says_nothing_of_its_views():
    views_of_halves = draw(level=1)
    right = (views_of_halves[0].boxes[:, 0] >= 128).float()
    for drawn in views_of_halves:
        x0, y0, x1, y1 = drawn.boxes.T
        numbers = torch.stack([right, (x1 - x0) * (y1 - y0), (x1 - x0) / (y1 - y0), x0 % 128, y0, drawn.angle])
        assert torch.corrcoef(numbers)[0, 1:].abs().max() < 0.035


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_both_views_lie_in_one_part_and_parts_are_equally_likely(level):
    query, key = draw(level=level, height=130, width=257)
    boxes = part_boxes(257, 130, level)
    counts = []
    for box in boxes:
        inside = [
            (d.boxes[:, 0] >= box.x0)
            & (d.boxes[:, 1] >= box.y0)
            & (d.boxes[:, 2] <= box.x1)
            & (d.boxes[:, 3] <= box.y1)
            for d in (query, key)
        ]
        assert torch.equal(*inside)
        counts.append(int(inside[0].sum()))
    assert sum(counts) == 20_000
    if level:
        assert stats.chisquare(counts).pvalue > 1e-4


def test_a_part_too_long_for_any_ratio_gives_its_largest_middle_crop():
    boxes = draw(plain(), count=3, height=8, width=100)[0].boxes
    assert boxes.tolist() == [[46, 0, 54, 8]] * 3


def test_draws_depend_on_seed_epoch_and_index_only():
    whole = draw(count=50)
    some = torch.tensor([7, 3, 49])
    again = draw_views(some, ViewArguments(), level=0, seed=0, epoch=0, height=256, width=256)
    for all_rows, few_rows in zip(whole, again, strict=True):
        for a, b in zip(all_rows, few_rows, strict=True):
            assert torch.equal(a[some], b)
    assert not torch.equal(whole[0].boxes, whole[1].boxes)
    for other in (draw(count=50, seed=1), draw(count=50, epoch=1)):
        assert (other[0].angle != whole[0].angle).all()


# --- what is made --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_drawn_gives_the_very_pixels(channels):
    images = noise(channels=channels)
    query, key = views(images, arguments=plain(size=64))
    assert torch.equal(query, (images.float() / 255).expand(-1, 3, -1, -1))
    assert torch.equal(query, key)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_plain_view_of_a_level_is_a_part(level):
    images = noise(batch=16)
    boxes = part_boxes(64, 64, level)
    ratio = boxes[0].width / boxes[0].height
    for index, view in enumerate(views(images, level, arguments=plain(size=16, crop_ratio=(ratio, ratio)))[0]):
        parts = [images[index : index + 1, :, b.y0 : b.y1, b.x0 : b.x1].float() / 255 for b in boxes]
        resized = [torch.nn.functional.interpolate(p, (16, 16), mode="bilinear", antialias=True)[0] for p in parts]
        assert min((part - view[:1]).abs().max() for part in resized) < 1e-5


@pytest.mark.parametrize(("source", "size"), [((64, 64), 20), ((97, 61), 32), ((50, 50), 75), ((64, 200), 17)])
@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_resizing_is_antialiased_as_in_pil_and_torch(source, size, kind):
    images = noise(batch=2, height=source[0], width=source[1])
    arguments = plain(size=size, crop_ratio=(source[1] / source[0],) * 2, resize_filter=kind)
    made = views(images, arguments=arguments)[0][:, :1]
    expected = torch.nn.functional.interpolate(images.float() / 255, (size, size), mode=kind, antialias=True)
    torch.testing.assert_close(made, expected.clamp(0, 1), rtol=0, atol=1e-5)
    pil = Image.fromarray(images[0, 0].numpy()).resize((size, size), Image.Resampling[kind.upper()])
    error = np.abs(np.asarray(pil) / 255 - made[0, 0].numpy())
    assert error.mean() < 0.5 / 255
    if kind == "bilinear":  # PIL cuts off the overshoots of a cubic twice, in rows and in columns
        assert error.max() < 1.01 / 255


def test_a_checkerboard_becomes_grey_not_a_pattern():
    board = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).mul(255).to(torch.uint8)[None, None]
    made = views(board, arguments=plain(size=16))[0]
    assert (made - 0.5).abs().max() < 0.03


def test_a_crop_takes_no_light_from_outside_of_it():
    image = torch.full((1, 1, 64, 64), 255, dtype=torch.uint8)
    image[..., :32] = 0
    made = torch.cat(views(image.expand(64, -1, -1, -1), level=1, arguments=plain(size=8, crop_ratio=(0.5, 0.5))))
    assert {round(value, 6) for value in made.unique().tolist()} == {0.0, 1.0}  # left halves black, right halves white


@pytest.mark.parametrize("degrees", [30.0, 90.0])
def test_views_turn_as_pil_turns_and_black_comes_in(degrees):
    image = torch.zeros(1, 1, 65, 65, dtype=torch.uint8)
    image[..., 20:30, 10:50] = 200
    arguments = plain(size=65, rotation_degrees=degrees)
    images = image.expand(40, -1, -1, -1)
    drawn = draw_views(torch.arange(40), arguments, level=0, seed=1, epoch=0, height=65, width=65)
    made = make_views(images, drawn, arguments)[0]
    for index in (0, 7, 23):
        angle = math.degrees(drawn[0].angle[index])
        expected = Image.fromarray(image[0, 0].numpy()).rotate(angle, Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(expected) / 255 - made[index, 0].numpy()).mean() < 0.004
    white = torch.full_like(images, 255)
    assert (make_views(white, drawn, arguments)[0] == 0).any(dim=(1, 2, 3)).float().mean() > 0.9


def test_views_turned_by_the_nearest_pixel_have_no_new_values_and_may_be_blurred_after_it():
    image = torch.zeros(1, 1, 65, 65, dtype=torch.uint8)
    image[..., 20:30, 10:50] = 255
    settings = {"size": 65, "rotation_degrees": 30.0, "rotation_filter": "nearest"}
    turned = views(image, arguments=plain(**settings))[0]
    assert turned.unique().tolist() == [0.0, 1.0]
    blur = {"blur_probability": 1.0, "blur_sigma": (2.0, 2.0)}
    before, after = (views(image, arguments=plain(**settings, **blur, blur_last=last))[0] for last in (False, True))
    assert len(before.unique()) > 2
    torch.testing.assert_close(after[0, 0], gaussian(turned[0, 0], 2.0), rtol=0, atol=1e-3)
    assert (before - after).abs().max() > 0.1  # the nearest pixel leaves steps in what was smooth


def gaussian(view, sigma):
    return torch.from_numpy(ndimage.gaussian_filter(view.double().numpy(), sigma, mode="mirror", truncate=3.0)).float()


def test_blur_is_gaussian_with_mirrored_edges():
    arguments = plain(size=64, blur_probability=1.0, blur_sigma=(1.5, 1.5))
    made = views(noise(), arguments=arguments)[0][:, :1]
    from scipy.ndimage import gaussian_filter

    expected = np.stack([gaussian_filter(i[0].numpy() / 255, 1.5, mode="mirror", truncate=3.4) for i in noise()])
    assert np.abs(made[:, 0].numpy() - expected).max() < 2e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_an_accelerator_jitters_together_what_a_cpu_does_in_turn(channels, monkeypatch):
    in_turn = views(noise(16, channels))
    monkeypatch.setattr("eden_hf.data.views._jitter_in_turn", _jitter_together)
    for one, other in zip(in_turn, views(noise(16, channels)), strict=True):
        assert_close(one, other, rtol=0, atol=1e-5)


def test_grey_jitter_is_colour_jitter_of_three_equal_channels():
    grey = noise()
    arguments = plain(size=64, jitter_probability=1.0)
    once = views(grey, arguments=arguments)[0]
    thrice = views(grey.expand(-1, 3, -1, -1).contiguous(), arguments=arguments)[0]
    torch.testing.assert_close(once, thrice, rtol=0, atol=1e-5)
    assert (once - grey / 255).abs().mean() > 0.02


@pytest.mark.parametrize("kind", range(4))
def test_each_jitter_is_what_it_says(kind):
    images = smooth(channels=3).expand(8, -1, -1, -1)
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    name = list(off)[kind]
    arguments = plain(size=64, jitter_probability=1.0, **{**off, name: 0.1 if name == "hue" else 0.4})
    drawn = draw_views(torch.arange(8), arguments, level=0, seed=1, epoch=0, height=64, width=64)
    made = make_views(images, drawn, arguments)[0]
    for index in range(8):
        factor, rgb = drawn[0].factors[index, kind].item(), images[index].permute(1, 2, 0).numpy() / 255
        grey = rgb @ [0.299, 0.587, 0.114]
        expected = {
            "brightness": lambda: rgb * factor,  # noqa: B023
            "contrast": lambda: grey.mean() + factor * (rgb - grey.mean()),  # noqa: B023
            "saturation": lambda: grey[..., None] + factor * (rgb - grey[..., None]),  # noqa: B023
            "hue": lambda: shifted_hue(rgb, factor),  # noqa: B023
        }[name]()
        difference = made[index].permute(1, 2, 0).numpy() - np.clip(expected, 0, 1)
        assert np.abs(difference).max() < 1e-4


def shifted_hue(rgb, shift):
    import colorsys

    flat = [colorsys.rgb_to_hsv(*pixel) for pixel in rgb.reshape(-1, 3)]
    turned = [colorsys.hsv_to_rgb((h + shift) % 1, s, v) for h, s, v in flat]
    return np.array(turned).reshape(rgb.shape)


def test_views_have_the_intensities_that_the_processor_gives():
    images = noise(batch=3)
    for intensity in ("fixed", "per_image"):
        processor = EdenImageProcessor(size={"height": 64, "width": 64}, intensity=intensity)
        expected = processor(list(images.numpy()), return_tensors="pt")["pixel_values"]
        arguments = plain(
            size=64, intensity=intensity, image_mean=tuple(processor.image_mean), image_std=tuple(processor.image_std)
        )
        torch.testing.assert_close(views(images, arguments=arguments)[0], expected, rtol=1e-5, atol=1e-5)


def test_an_image_of_one_value_standardises_to_zero():
    image = torch.full((2, 1, 32, 32), 90, dtype=torch.uint8)
    assert not views(image, arguments=plain(size=16, intensity="per_image"))[0].any()


def test_views_do_not_depend_on_the_batch():
    images = noise(batch=6, channels=3)
    whole = views(images, level=2)
    for index in (0, 5):
        alone = views(images[index : index + 1], level=2, indices=torch.tensor([index]))
        for a, b in zip(whole, alone, strict=True):
            torch.testing.assert_close(a[index : index + 1], b, rtol=0, atol=1e-6)
    shapes = {tuple(view.shape) for view in whole}
    assert shapes == {(6, 3, 32, 32)}
    assert all(view.isfinite().all() and view.dtype == torch.float32 for view in whole)


def test_large_batches_are_made_in_pieces_without_a_seam(monkeypatch):
    images = noise(batch=9)
    whole = views(images)
    monkeypatch.setattr("eden_hf.data.views._CACHED_PIXELS", 32 * 32 * 4)
    for a, b in zip(whole, views(images), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_landmark_stays_visible_in_its_part():
    """A disc in one quadrant is seen by views of that part alone."""
    picture = Image.new("L", (64, 64))
    ImageDraw.Draw(picture).ellipse((36, 4, 60, 28), fill=255)
    image = torch.from_numpy(np.array(picture))[None, None]
    made = views(image.expand(400, -1, -1, -1), level=2, arguments=plain(size=16))[0]
    bright = (made[:, 0].mean(dim=(1, 2)) > 0.2).float().mean().item()
    assert bright == pytest.approx(0.25, abs=0.07)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the CPU wait: blocking copies, and indices of the CPU that are copied on the quiet."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        assert len(devices) <= 1, f"{func} on {devices}"
        if func is torch.ops.aten._to_copy.default and kwargs.get("device", args[0].device) != args[0].device:
            assert kwargs["non_blocking"], f"{kwargs['device']} is waited for"
        return func(*args, **kwargs)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("intensity", ["fixed", "per_image"])
def test_nothing_waits_for_an_accelerator_or_mixes_devices(channels, intensity):
    """On `meta`, which has no values to look at, and where tensors of the CPU are strangers as on any accelerator."""
    arguments = ViewArguments(size=32, intensity=intensity, blur_probability=1.0, jitter_probability=1.0)
    drawn = draw_views(torch.arange(8), arguments, level=2, seed=0, epoch=0, height=64, width=64)
    with NoWaiting():
        made = make_views(noise(8, channels).to("meta", non_blocking=True), drawn, arguments)
    assert [(view.device.type, tuple(view.shape)) for view in made] == [("meta", (8, 3, 32, 32))] * 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 0}, "views.size"),
        ({"crop_scale": (0.5, 0.2)}, r"views.crop_scale.*0.5, 0.2"),
        ({"crop_scale": (0.5, 2.0)}, r"views.crop_scale.*at most 1.*2"),
        ({"blur_sigma": (0.0, 1.0)}, "views.blur_sigma"),
        ({"jitter_probability": 1.5}, r"views.jitter_probability.*1.5"),
        ({"hue": 0.7}, r"views.hue.*0.5.*0.7"),
        ({"image_std": (1.0, 0.0, 1.0)}, "views.image_std"),
        ({"image_mean": (0.5,)}, r"views.image_mean.*three values.*0.5"),
        ({"crop_ratio": (0.5,)}, r"views.crop_ratio.*0.5"),
        ({"intensity": "none"}, r"views.intensity.*'fixed' or 'per_image'.*'none'"),
    ],
)
def test_nonsense_is_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        ViewArguments(**settings)


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"uint8 \[B, 1 or 3, H, W\], got torch.float32"):
        views(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match="finest possible level is 10"):
        views(noise(height=32, width=32), level=12)
