"""Chest phantoms: drawn radiographs with exact masks and landmarks, the data of the demo and of the tests.

A phantom is drawn the way a radiograph comes about. Every structure (chest wall, air, heart, bones ...) adds to
or takes from the thickness that the rays cross, and the picture is `1 - exp(-thickness)` through an exposure.
Anatomy, pose and exposure are random but plausible: the same structures in the same order every time, as in
people, which is what anatomy-aware training feeds on. No patient is behind them and nothing clinical follows.

Left and right are the patient's, as in radiology and in SCR: `left_*` lies on the right-hand side of the picture.

The sheet in the documentation:
`python -c "from eden_hf.data.phantoms import phantom_sheet; phantom_sheet().save('docs/phantoms.png')"`
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter

SIDES = {"left": 1, "right": -1}  # the patient's side -> sign of x in the picture
STRUCTURES = ("heart", "left_lung", "right_lung", "left_clavicle", "right_clavicle")
LANDMARKS = (
    *("left_lung_apex", "left_costophrenic_angle", "left_dome_top", "left_hilum"),
    *("left_clavicle_medial_end", "left_clavicle_middle", "left_clavicle_lateral_end"),
    *("right_lung_apex", "right_costophrenic_angle", "right_dome_top", "right_hilum"),
    *("right_clavicle_medial_end", "right_clavicle_middle", "right_clavicle_lateral_end"),
    *("heart_apex", "aortic_knob", "carina"),
)
SMALLEST = 32  # pixels a side: below this the clavicles vanish
GRID = 512  # outlines are filled on a grid of about this side or more, at least twice as fine as the picture
CLAVICLE_WIDTH = 0.026  # of the picture's side

Points = np.ndarray  # [n, 2] float64: x, y


@dataclass(frozen=True)
class Phantom:
    """One drawn radiograph.

    Attributes:
        image: uint8 `[size, size]`, air dark, bone bright.
        masks: bool `[size, size]` for each of `STRUCTURES`. Lungs end where heart and mediastinum cover them;
            clavicles lie over the lungs and reach the shoulders.
        landmarks: `(x, y)` for each of `LANDMARKS`, in [0, 1] of width and height: the pixel index in an image
            of side S is `x * S - 0.5`.
    """

    image: np.ndarray
    masks: dict[str, np.ndarray]
    landmarks: dict[str, tuple[float, float]]


def smooth(points: Sequence, closed: bool = False, steps: int = 8) -> Points:
    """A Catmull-Rom curve through `points`, `steps` points to a segment."""
    p = np.asarray(points, dtype=float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    curve = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([curve.reshape(-1, 2), p[-2:-1]])


def ribbon(path: Points, width: float) -> Points:
    """The outline of a band of `width` along `path`."""
    along = np.gradient(path, axis=0)
    across = along[:, ::-1] * (-1, 1) * (width / 2) / np.linalg.norm(along, axis=1, keepdims=True)
    return np.concatenate([path + across, (path - across)[::-1]])


def ellipse(x: float, y: float, a: float, b: float) -> Points:
    """An upright ellipse of half axes `a` and `b` around `(x, y)`."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.stack([x + a * np.cos(angle), y + b * np.sin(angle)], axis=1)


def both(*outlines: Points) -> list[Points]:
    """Outlines written with x outwards from the midline, on both sides of the patient."""
    return [outline * (sign, 1) for outline in outlines for sign in SIDES.values()]


@dataclass(frozen=True)
class Chest:
    """One anatomy: proportions, and the outlines that follow from them.

    Points have x = 0 on the midline, y = 0 at the top and y = 1 at the bottom of the picture.
    """

    apex: float  # y of the lung tops
    width: float  # half width of the rib cage
    dome: dict[str, float]  # y of the diaphragm
    angle: dict[str, float]  # y of the costophrenic angles
    heart_reach: dict[str, float]  # from the midline
    hilum: float  # y of the lung roots
    knob: float  # reach of the aortic arch from the midline
    tilt: float  # rise of the clavicles from their inner to their outer end

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Chest":
        """Proportions of a grown person who has breathed in."""
        apex, right_dome = rng.uniform(0.09, 0.13), rng.uniform(0.63, 0.71)
        dome = {"right": right_dome, "left": right_dome + rng.uniform(0.015, 0.04)}
        return cls(
            apex=apex,
            width=rng.uniform(0.36, 0.40),
            dome=dome,
            angle={side: y + rng.uniform(0.09, 0.13) for side, y in dome.items()},
            heart_reach={"right": rng.uniform(0.08, 0.12), "left": rng.uniform(0.19, 0.26)},
            hilum=apex + rng.uniform(0.27, 0.31),
            knob=rng.uniform(0.075, 0.10),
            tilt=rng.uniform(0.01, 0.06),
        )

    def wall(self, y: float | np.ndarray) -> np.ndarray:
        """Half width of the rib cage at height `y`: zero at the apex, full at the costophrenic angles."""
        depth = np.clip((y - self.apex) / (max(self.angle.values()) - self.apex), 0, 1)
        return self.width * (1 - (1 - depth) ** 2.2) ** 0.4

    def lung(self, side: str) -> Points:
        """The air of one lung; its inner border lies behind mediastinum and heart."""
        top, dome = self.apex, self.dome[side]
        down = np.linspace(self.angle[side], top + 0.04, 7)
        outer = np.stack([self.wall(down), down], axis=1)
        inner = [(0.12, top), (0.065, top + 0.05), (0.03, self.hilum - 0.05), (0.03, dome)]
        base = [inner[-1], (0.12, dome), (0.2, dome), (0.27, dome + 0.02), (0.33, dome + 0.055), outer[0]]
        return np.concatenate([smooth([*outer, *inner]), smooth(base)]) * (SIDES[side], 1)

    def heart(self) -> Points:
        """The heart, two thirds of it on the patient's left."""
        right, left, top, floor = -self.heart_reach["right"], self.heart_reach["left"], self.hilum, self.floor
        points = [(-0.04, top), (right + 0.015, top + 0.08), (right, floor - 0.09), (right + 0.03, floor)]
        points += [(0.05, floor + 0.025), (left - 0.06, floor + 0.03), (left, floor - 0.03)]
        points += [(left - 0.025, floor - 0.1), (0.5 * left + 0.015, top + 0.1), (0.075, top + 0.03)]
        return smooth(points, closed=True)

    @property
    def floor(self) -> float:
        """Height at which the heart lies on the diaphragm."""
        return self.dome["right"] + 0.02

    def mediastinum(self) -> Points:
        """Great vessels, gullet and spine between the lungs; the aortic knob on the patient's left."""
        arch, floor = self.hilum - 0.1, self.floor
        right = [(-0.05, -0.1), (-0.05, self.apex), (-0.055, arch), (-0.062, self.hilum), (-0.05, 1.1)]
        left = [(0.05, 1.1), (0.055, floor), (0.06, self.hilum + 0.02), (0.065, arch + 0.05)]
        left += [(self.knob, arch), (0.06, arch - 0.045), (0.05, self.apex), (0.055, -0.1)]
        return np.concatenate([smooth(right), smooth(left)])

    def clavicle(self) -> Points:
        """The S-shaped axis of a clavicle, from the breastbone outwards."""
        y, tilt = self.apex + 0.09, self.tilt
        return smooth([(0.045, y), (0.12, y - 0.005), (0.22, y - 0.02 - tilt / 2), (0.33, y - 0.015 - tilt)])

    def posterior_rib(self, number: int) -> Points:
        """The axis of a rib from the spine to the chest wall."""
        y = self.apex + 0.005 + 0.066 * number
        end = y + 0.045 + 0.008 * number
        reach = float(self.wall(end))
        return smooth([(0.03, y), (0.4 * reach, y - 0.02), (0.8 * reach, y + 0.005), (reach, end)])

    def anterior_rib(self, number: int) -> Points:
        """The axis of the same rib on its way in front, down to the cartilage."""
        reach, y = self.posterior_rib(number)[-1]
        turn = 0.97 * float(self.wall(y + 0.05))
        return smooth([(reach, y), (turn, y + 0.05), (0.6 * reach + 0.03, y + 0.10), (0.12, y + 0.115)])

    def body(self) -> list[Points]:
        """The skin of both halves: neck, shoulder, an arm that leaves the picture, flank."""
        shoulder = smooth([(0.10, -0.1), (0.11, 0.03), (0.24, 0.075), (0.40, 0.12), (0.55, 0.25), (0.7, 0.5)])
        width = self.width
        flank = smooth([(0.60, 0.5), (width + 0.085, 0.37), (width + 0.065, 0.6), (width + 0.085, 1.1)])
        return both(np.concatenate([shoulder, flank, [(-0.01, 1.1), (-0.01, -0.1)]]))

    def landmarks(self) -> dict[str, Points]:
        """The named points, `LANDMARKS`; the left dome's top may lie behind the heart."""
        points = []
        for side, sign in SIDES.items():
            lung, clavicle = self.lung(side), self.clavicle() * (sign, 1)
            points += [lung[np.argmin(lung[:, 1])], lung[np.argmax(lung[:, 1])]]
            points += [(sign * 0.2, self.dome[side]), (sign * 0.085, self.hilum)]
            points += [clavicle[0], clavicle[len(clavicle) // 2], clavicle[-1]]
        points += [(self.heart_reach["left"], self.floor - 0.03), (self.knob, self.hilum - 0.1)]
        points += [(-0.005, self.hilum - 0.05)]
        return dict(zip(LANDMARKS, map(np.asarray, points), strict=True))


def vessels(chest: Chest, rng: np.random.Generator) -> list[Points]:
    """Outlines of the vessels of both lungs, which branch and thin out from the hila."""
    outlines: list[Points] = []
    for sign in SIDES.values():
        angle = np.linspace(-1.4, 1.4, 6) + rng.normal(0, 0.15, 6)
        start = np.tile((0.065, chest.hilum), (len(angle), 1))
        for half_width in 0.007 * 0.72 ** np.arange(5):
            along = np.stack([np.cos(angle), np.sin(angle)], axis=1)
            across = half_width * along[:, ::-1] * (-1, 1)
            end = start + along * rng.uniform(0.035, 0.065, (len(angle), 1))
            corners = np.stack([start + across, end + across, end - across, start - across], axis=1)
            outlines += list(corners * (sign, 1))
            start = np.repeat(end, 2, axis=0)
            angle = np.repeat(angle, 2) + rng.normal(np.tile([-0.3, 0.3], len(angle)), 0.15)
    return outlines


@dataclass(frozen=True)
class Canvas:
    """Paints outlines of the anatomy, in one pose, on `size` x `size` pixels."""

    size: int
    matrix: np.ndarray  # [2, 2]: scale and rotation
    centre: np.ndarray  # [2]: where the middle of the chest comes to lie in the picture

    @classmethod
    def random(cls, size: int, rng: np.random.Generator) -> "Canvas":
        """A patient who stands a little off, askew, near or far."""
        angle, zoom, stretch = np.radians(rng.normal(0, 2.5)), rng.uniform(0.95, 1.1), rng.uniform(-0.03, 0.03)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        scale = zoom * np.diag([1 + stretch, 1 - stretch])
        return cls(size, turn @ scale, 0.5 + rng.uniform(-0.03, 0.03, 2))

    def pose(self, points: Points) -> Points:
        """Where points of the anatomy lie in the picture, in [0, 1]."""
        return (points - (0, 0.5)) @ self.matrix.T + self.centre

    def paint(self, outlines: Iterable[Points], *, cut: Iterable[Points] = (), blur: float = 0) -> np.ndarray:
        """Float32 `[size, size]`: 1 inside any of `outlines`, 0 elsewhere and inside any of `cut`.

        `blur` is the sigma of a Gaussian as a share of the picture's side.
        """
        finer = max(2, GRID // self.size)
        side = finer * self.size
        layer = PILImage.new("L", (side, side))
        brush = ImageDraw.Draw(layer)
        for shapes, value in ((outlines, 255), (cut, 0)):
            for outline in shapes:
                brush.polygon((self.pose(outline) * side - 0.5).ravel().tolist(), fill=value)
        layer = layer.reduce(finer)
        if blur:
            layer = layer.filter(ImageFilter.GaussianBlur(blur * self.size))
        return np.asarray(layer, dtype=np.float32) / 255

    def paint_bones(self, axes: Iterable[Points], width: float) -> np.ndarray:
        """The same for bands along `axes`: 1 on their dense rims, 0.5 inside."""
        axes = list(axes)
        inside = self.paint([ribbon(axis, 0.6 * width) for axis in axes])
        return self.paint([ribbon(axis, width) for axis in axes]) - 0.5 * inside


def thickness(chest: Chest, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """What the rays cross, float32 `[size, size]`: about 1 for the body without its air."""
    paint, bones = canvas.paint, canvas.paint_bones
    heart, centre, lungs = chest.heart(), chest.mediastinum(), [chest.lung(side) for side in SIDES]
    covered = [heart, centre]

    total = paint(chest.body(), blur=0.012)
    depth = 0.6 + 0.4 * paint(lungs, blur=0.03)  # lungs are thin at their edges
    total -= rng.uniform(0.60, 0.70) * depth * paint(lungs, cut=covered, blur=0.006)
    total += 0.10 * paint([heart], blur=0.02) + 0.12 * paint([centre], blur=0.02)
    fading = paint(both(ellipse(0.06, chest.hilum, 0.08, 0.14)), blur=0.07)
    total += 0.35 * fading * paint(vessels(chest, rng), cut=covered)
    total += 0.15 * paint(both(ellipse(0.065, chest.hilum, 0.025, 0.05)), blur=0.012)

    windpipe = np.array([(0, -0.1), (0, 0.1), (-0.005, chest.hilum - 0.05)])
    bronchi = both(np.array([(0, chest.hilum - 0.055), (0.06, chest.hilum - 0.01)]))
    total -= 0.16 * paint([ribbon(windpipe, 0.032), *(ribbon(path, 0.018) for path in bronchi)], blur=0.004)
    if rng.random() < 0.6:  # gas in the stomach
        bubble = ellipse(rng.uniform(0.13, 0.20), chest.floor + 0.07, rng.uniform(0.03, 0.06), 0.025)
        total -= 0.25 * paint([bubble], blur=0.006)
    if rng.random() < 0.4:  # breasts
        total += 0.12 * paint(both(ellipse(0.23, chest.floor - 0.05, 0.16, 0.14)), blur=0.015)

    total += 0.13 * bones(both(*map(chest.posterior_rib, range(10))), 0.024)
    total += 0.09 * bones(both(*map(chest.anterior_rib, range(6))), 0.028)
    total += 0.22 * bones(both(chest.clavicle()), CLAVICLE_WIDTH)
    total += 0.16 * bones(both(smooth([(0.36, 0.13), (0.44, 0.17), (0.47, 0.30), (0.52, 0.60)])), 0.05)
    vertebrae = [np.array([(-0.032, y), (0.032, y)]) for y in np.arange(0.02, 1.1, 0.056)]
    return total + 0.14 * bones(vertebrae, 0.044)


def expose(total: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture of a thickness, uint8: uneven tissue, dose, film curve, noise, sometimes a collimator."""
    size = len(total)
    clouds = PILImage.fromarray(rng.normal(1, 0.04, (8, 8)).astype(np.float32))
    uneven = total * np.asarray(clouds.resize((size, size), PILImage.Resampling.BICUBIC))
    picture = (1 - np.exp(-rng.uniform(1.3, 1.9) * np.maximum(uneven, 0))) ** rng.uniform(0.9, 1.5)
    black, white, grain = rng.uniform(0, 0.1), rng.uniform(0.9, 1.05), rng.uniform(0.004, 0.016)
    picture = black + (white - black) * picture
    left, top, right, bottom = (rng.uniform(0, 0.04, 4) * (rng.random() < 0.3) * size).round().astype(int)
    beam = np.zeros(total.shape, dtype=bool)
    beam[top : size - bottom, left : size - right] = True
    picture = np.where(beam, picture + rng.normal(0, grain, total.shape), 0.02)
    return (255 * np.clip(picture, 0, 1)).round().astype(np.uint8)


def draw_phantom(seed: int | Sequence[int], size: int = 256) -> Phantom:
    """The phantom of a seed; its anatomy, pose and exposure are the same at every size.

    Args:
        seed: one or several non-negative integers. Row i of `phantom_dataset(n, seed=s)` is that of `(s, i)`.
        size: side of the picture in pixels.

    Raises:
        ValueError: `size` is below 32 pixels, or a seed is negative.
    """
    if size < SMALLEST:
        raise ValueError(f"a phantom needs a side of at least {SMALLEST} pixels, got size={size}")
    rng = np.random.default_rng(seed)
    chest, canvas = Chest.random(rng), Canvas.random(size, rng)
    image = expose(thickness(chest, canvas, rng), rng)
    covered = [chest.heart(), chest.mediastinum()]
    painted = {"heart": canvas.paint(covered[:1])}
    for side, clavicle in zip(SIDES, both(chest.clavicle()), strict=True):
        painted[f"{side}_lung"] = canvas.paint([chest.lung(side)], cut=covered)
        painted[f"{side}_clavicle"] = canvas.paint([ribbon(clavicle, CLAVICLE_WIDTH)])
    masks = {name: painted[name] >= 0.5 for name in STRUCTURES}
    landmarks = {name: tuple(canvas.pose(point).tolist()) for name, point in chest.landmarks().items()}
    return Phantom(image, masks, landmarks)


@cache  # 60 a second are drawn, and a program asks for the same ones again
def phantom_dataset(n: int, *, seed: int = 0, size: int = 256) -> Dataset:
    """`n` phantoms, held in memory (about 60 kB each at 256 pixels), with columns named as in SCR.

    Columns: `image` (PNG, mode L), a mask (mode 1) for each of `STRUCTURES`, `image_id`, and `landmarks`, a struct
    with [x, y] in [0, 1] for each of `LANDMARKS`. Row i depends on `(seed, i)` and `size` only, not on `n`.

    Raises:
        ValueError: `n` is below 1, or as `draw_phantom`.
    """
    if n < 1:
        raise ValueError(f"a data set needs at least one phantom, got n={n}")
    features = Features({name: Image() for name in ("image", *STRUCTURES)})
    features["image_id"] = Value("string")
    features["landmarks"] = {name: List(Value("float32"), length=2) for name in LANDMARKS}
    rows = []
    for index in range(n):
        phantom = draw_phantom((seed, index), size)
        pictures = {"image": phantom.image, **phantom.masks}
        row = {name: PILImage.fromarray(pixels) for name, pixels in pictures.items()}
        rows.append(row | {"image_id": f"phantom-{seed}-{index:06d}", "landmarks": phantom.landmarks})
    return Dataset.from_list(rows, features=features)


def phantom_sheet(seed: int = 0, *, rows: int = 4, columns: int = 4, size: int = 176) -> PILImage.Image:
    """The first `rows * columns` phantoms of a seed side by side in one picture, mode L."""
    sheet = PILImage.new("L", (columns * size, rows * size))
    for index in range(rows * columns):
        phantom = draw_phantom((seed, index), size)
        sheet.paste(PILImage.fromarray(phantom.image), (index % columns * size, index // columns * size))
    return sheet
