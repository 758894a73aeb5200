"""Plain ways of doing what the package does, as they are written in the field: fair, and with nothing clever."""

import copy
import math
from io import BytesIO
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor, nn
from transformers import ResNetModel

from eden_hf.encoders import Encoder, pooled


class PlainMoCo(nn.Module):
    """MoCo-v2 in float32 with the Adam loss: two ResNets, a bank, a matrix of all cosines.

    Args:
        config: `ResNetConfig` of the trunks.
        bank_size: Rows of the bank.
    """

    def __init__(self, config: Any, bank_size: int = 65536) -> None:
        super().__init__()
        width = config.hidden_sizes[-1]
        self.student = ResNetModel(config)
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
        self.teacher, self.teacher_projector = copy.deepcopy(self.student), copy.deepcopy(self.projector)
        self.bank = F.normalize(torch.randn(bank_size, 128), dim=1)
        self.pointer = 0

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The loss of views `[B, 3, H, W]`; moves teacher and bank."""
        query = F.normalize(self.projector(self.student(queries).pooler_output.flatten(1)), dim=1)
        with torch.no_grad():
            pairs = zip((self.teacher, self.teacher_projector), (self.student, self.projector), strict=True)
            for teacher, student in pairs:
                for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.mul_(0.999).add_(fast, alpha=0.001)
            key = F.normalize(self.teacher_projector(self.teacher(keys).pooler_output.flatten(1)), dim=1)
        similarity = query @ self.bank.clone().T
        similarity = similarity.masked_fill(similarity.detach() >= 0.8, -math.inf)
        logits = torch.cat([(query * key).sum(1, keepdim=True), similarity], dim=1) / 0.2
        rows = (self.pointer + torch.arange(len(key))) % len(self.bank)
        self.bank[rows] = key
        self.pointer = (self.pointer + len(key)) % len(self.bank)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def streamed(folder: str, side: int, batch: int, window: int) -> None:
    """An epoch of grey images as `datasets` streams them, shuffled in a buffer, by the batch."""
    rows = datasets.load_dataset(folder, split="train", streaming=True).cast_column("image", datasets.Image())
    for images in rows.shuffle(seed=0, buffer_size=window).iter(batch):
        resized = [image.convert("L").resize((side, side), Image.Resampling.BILINEAR) for image in images["image"]]
        torch.from_numpy(np.stack([np.asarray(image) for image in resized]))


def pruned_loss_by_sample(queries: Tensor, keys: Tensor, bank: Tensor, temperature: float, threshold: float) -> Tensor:
    """The pruned loss of arXiv 2309.15358, one query at a time, since each has its own negatives."""
    losses = []
    for query, key in zip(queries, keys, strict=True):
        similarity = bank @ query
        negatives = similarity[similarity < threshold]
        logits = torch.cat([(query * key).sum()[None], negatives]) / temperature
        losses.append(F.cross_entropy(logits[None], torch.zeros(1, dtype=torch.long)))
    return torch.stack(losses).mean()


def pil_pair(file: bytes, size: int) -> list[Tensor]:
    """Two views of one image file: decode, crop, jitter, blur, rotate, normalise, one image at a time."""
    image = Image.open(BytesIO(file)).convert("RGB")
    return [_pil_view(image, size) for _ in range(2)]


def _pil_view(image: Image.Image, size: int) -> Tensor:
    """One view of the paper's recipe by PIL; hue is left out, which only makes this faster."""
    rng = np.random.default_rng()
    area = image.width * image.height * rng.uniform(0.2, 1)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    width, height = min(image.width, round(math.sqrt(area * ratio))), min(image.height, round(math.sqrt(area / ratio)))
    x, y = (int(rng.integers(0, most + 1)) for most in (image.width - width, image.height - height))
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
    if rng.random() < 0.8:
        for enhance in rng.permutation(np.array([ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color])):
            view = enhance(view).enhance(rng.uniform(0.6, 1.4))
    if rng.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2)))
    return normalised(np.asarray(view.rotate(rng.uniform(-30, 30)), np.float32) / 255)


def normalised(pixels: np.ndarray) -> Tensor:
    """`[3, H, W]` of intensities `[H, W, 3]`, by ImageNet's mean and deviation."""
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    return torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1))


def pil_processed(image: Image.Image, size: int) -> Tensor:
    """`[3, size, size]` of an 8-bit grey image: resized in 8 bits, repeated, normalised."""
    small = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255
    return normalised(np.repeat(small[..., None], 3, axis=2))


@torch.inference_mode()
def embedded_one_by_one(encoder: Encoder, files: list[str]) -> Tensor:
    """Unit vectors of image files, one forward pass an image."""
    vectors = []
    for file in files:
        vectors.append(_unit_vectors(encoder, encoder.pixel_values([Image.open(file)])))
    return torch.cat(vectors)


def embedded_windows(encoder: Encoder, image: Image.Image, window: int, stride: int) -> Tensor:
    """Unit vectors of the windows all over an image, cut out one by one and embedded in batches of 64."""
    boxes = [
        (x, y, x + window, y + window)
        for y in range(-window // 2, image.height - window // 2, stride)
        for x in range(-window // 2, image.width - window // 2, stride)
    ]
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(boxes), 64):
            windows = [image.crop(box) for box in boxes[start : start + 64]]
            vectors.append(_unit_vectors(encoder, encoder.pixel_values(windows)))
    return torch.cat(vectors)


def _unit_vectors(encoder: Encoder, pixel_values: Tensor) -> Tensor:
    outputs = encoder.model(pixel_values=pixel_values)
    return F.normalize(pooled(outputs, pixel_values, encoder.model.config), dim=1)
