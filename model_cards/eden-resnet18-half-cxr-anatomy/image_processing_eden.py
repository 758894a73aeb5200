"""Image processor of Eden models.

This file and those it imports travel to the Hub as remote code: beside each other they import numpy, PIL, torch and
transformers only. `image_processing_eden_pixels` turns images of any kind into intensities,
`image_processing_eden_resizing` brings them to a size, `image_processing_eden_labels` has the masks and classes of
their pixels follow.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, SizeDict
from transformers.processing_utils import ImagesKwargs

from .image_processing_eden_labels import LabelMasks, check_label_map, label_maps, resized_labels
from .image_processing_eden_pixels import (
    ROUNDING,
    as_numpy,
    channels_last,
    flat,
    height_and_width,
    is_one_image,
    pil_pixels,
    split_alpha,
    unit_intensity,
)
from .image_processing_eden_resizing import centred, corner, fitted_size, resized, without_padding

_CHOICES = {
    "aspect_ratio": ("resize", "pad"),
    "intensity": ("fixed", "per_image"),
    "segmentation_type": ("overlapping", "exclusive"),
}
_SWITCHES = ("do_resize", "do_rescale", "do_normalize")
_NOT_STEPS = ("do_center_crop", "crop_size", "do_pad", "pad_size")


class EdenImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of `EdenImageProcessor`, each of which a call may override."""

    aspect_ratio: str | None
    intensity: str | None
    segmentation_type: str | None
    semantic_loss_ignore_index: int | None


class EdenImageProcessor(PilBackend):
    r"""Turns medical images of any kind into `pixel_values` [B, 3, H, W], float32.

    Beside them it gives `original_sizes` [B, 2], the height and width of each image as it came, which
    `EdenForKeypointMatching` hands on to post-processing and the other models ignore.

    Images are PIL images of any mode, numpy arrays or torch tensors, [H, W], [H, W, C] or [C, H, W] with C = 1
    (grey), 3 (RGB) or 4 (RGBA), lists of them nested at will, or batches [B, C, H, W] and [B, H, W, C]. The same
    content gives the same output in any container.

    Stored values become intensities between black 0 and white 1 by their type:

    - 8-bit unsigned integers are divided by 255, booleans are 0 and 1;
    - other integers (16 and 32 bits) are stretched from the image's own minimum and maximum, since scanners use an
      unknown part of the range; an image of one value becomes black;
    - floats are taken as they are and must lie in [0, 1];
    - alpha is blended over black, and is the picture where all colours are black; palettes are looked up; grey is
      repeated to three channels.

    PIL images are turned as their EXIF orientation asks, like `eden_hf.data.reading.read_image` and
    `transformers.image_utils.load_image` do, so sizes are those of the upright image.

    Resizing is anti-aliased and in floating point, so 16-bit images keep their depth.

    Args:
        size (`dict`, *optional*, defaults to `{"height": 224, "width": 224}`):
            Size of the output in pixels.
        aspect_ratio (`str`, *optional*, defaults to `"resize"`):
            `"resize"` stretches an image to `size`; `"pad"` fits it in and centres it on black.
        resample (`int`, *optional*, defaults to 2, bilinear):
            Filter of `PIL.Image.Resampling`.
        do_rescale (`bool`, *optional*, defaults to `True`):
            Make intensities of stored values as above. Without it integers keep their values and floats in [0, 1] are
            the same as with it.
        rescale_factor (`float`, *optional*, defaults to 1/255):
            What one step of an 8-bit image is worth; other types follow, so that white is 255 * `rescale_factor`.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Normalise intensities as `intensity` tells.
        intensity (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"` subtracts `image_mean` and divides by `image_std`. `"per_image"` standardises each image by the
            mean and standard deviation of all its own pixels and channels, padding left out; an image of one value
            becomes 0. Use what the model was pretrained with.
        image_mean, image_std (`float` or `list`, *optional*, default to ImageNet's):
            One number or one a channel, for intensities in [0, 1].
        segmentation_type (`str`, *optional*, defaults to `"overlapping"`):
            How post-processing reads a segmentation model's logits: as `"overlapping"` masks (sigmoid) or as
            `"exclusive"` classes (softmax); the same as in the model's configuration.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Class of the padding beside exclusive classes; the same as in the model's configuration.

    Raises:
        ValueError: a setting is unknown or out of its range, or (at a call) an image is not as described; the message
            gives what was found and what is allowed.

    Note:
        `transformers.pipeline` turns every image into 8-bit RGB before a processor sees it, which clips 16-bit images
        to white. Read those with `eden_hf.data.reading.read_image`, or call processor and model yourself.

    Example:

        >>> from transformers import AutoImageProcessor, AutoModel
        >>> processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        >>> model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        >>> embeddings = model(**processor(images, return_tensors="pt")).pooler_output
    """

    valid_kwargs = EdenImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers' own way)

    do_resize = True
    size = {"height": 224, "width": 224}  # noqa: RUF012
    aspect_ratio = "resize"
    resample = PIL.Image.Resampling.BILINEAR
    do_rescale = True
    do_normalize = True
    intensity = "fixed"
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    segmentation_type = "overlapping"
    semantic_loss_ignore_index = 255

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    def _validate_preprocess_kwargs(self, *args: Any, **kwargs: Any) -> None:
        """Check all settings, at construction and again at each call, which may override some."""
        super()._validate_preprocess_kwargs(*args, **kwargs)
        for name, choices in _CHOICES.items():
            if kwargs[name] not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {kwargs[name]!r}")
        for name in _SWITCHES:
            if not isinstance(kwargs[name], bool | None):
                raise ValueError(f"`{name}` must be True or False, got {kwargs[name]!r}")
        for name in _NOT_STEPS:
            if kwargs[name]:
                raise ValueError(
                    f"`{name}` is no step of EdenImageProcessor, got {kwargs[name]!r}; its output always has `size`, "
                    "and `aspect_ratio='pad'` keeps proportions"
                )
        if kwargs["data_format"] not in (None, "channels_first"):
            raise ValueError(f"the output is always channels first, got `data_format` {kwargs['data_format']!r}")
        if kwargs["do_convert_rgb"] is False:
            raise ValueError("the output always has three channels, got `do_convert_rgb` False")
        _check_size(kwargs["size"])
        _check_resample(kwargs["resample"])
        _check_numbers(kwargs["rescale_factor"], kwargs["image_mean"], kwargs["image_std"])

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Make `pixel_values`, and `labels` where there are segmentation maps.

        Args:
            images: As described for the class.
            segmentation_maps: For each image its labels, of the image's own size: overlapping masks `[labels, H, W]`
                (0 to 1; a list of PIL images too), or exclusive classes `[H, W]` (integers). One image may come with
                its map alone. They follow the image's resizing (a mask's pixels become the share of them that lies
                inside) and padding; beyond the image masks are 0 and classes `semantic_loss_ignore_index`.
            kwargs: Settings to override.

        Returns:
            `pixel_values` [B, 3, H, W] float32; `original_sizes` [B, 2] int64; `labels` [B, labels, H, W] float32 or
            [B, H, W] int64.

        Raises:
            ValueError: an image, a map or a setting is not as described.
        """
        encoded = super().preprocess(images, **kwargs)
        if segmentation_maps is None:
            return encoded
        sizes = [height_and_width(image, kwargs.get("input_data_format")) for image in flat(images)]
        maps = label_maps(segmentation_maps, alone=is_one_image(images))
        if len(maps) != len(sizes):
            raise ValueError(f"each image needs its segmentation map: got {len(sizes)} images and {len(maps)} maps")
        padded = (kwargs.get("aspect_ratio") or self.aspect_ratio) == "pad"
        ignored = kwargs.get("semantic_loss_ignore_index", self.semantic_loss_ignore_index)
        labels = []
        for index, (pixels, size) in enumerate(zip(maps, sizes, strict=True)):
            check_label_map(index, pixels, size)
            height, width = encoded["pixel_values"][index].shape[-2:]
            labels.append(resized_labels(pixels, SizeDict(height=height, width=width), padded, ignored))
        tensors = kwargs.get("return_tensors")
        return BatchFeature({**encoded, "labels": labels}, tensor_type=tensors)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        threshold: float = 0.5,
        background: int = -1,
    ) -> list[torch.Tensor]:
        """The label of the highest score at each pixel.

        Args:
            outputs: Of a segmentation model, with `logits` [B, labels, h, w].
            target_sizes: Height and width of each original image, upright, which the result gets (padding is taken
                off).
            threshold: Probability from which a pixel can be inside an overlapping structure.
            background: Label of pixels that are inside none; exclusive classes have no such pixels.

        Returns:
            For each image `[H, W]` int64.
        """
        labels = []
        for scores in self._probabilities(outputs, target_sizes):
            highest, label = scores.max(dim=0)
            if self.segmentation_type == "overlapping":
                label = label.masked_fill(highest < threshold, background)
            labels.append(label)
        return labels

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.0,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, Any]]:
        """A mask for every label, overlapping ones too; this is what `pipeline("image-segmentation")` calls.

        Args:
            outputs: Of a segmentation model, with `logits` [B, labels, h, w].
            threshold: Not used: structures are named, few and all wanted. A mask without a pixel has the score 0.
            mask_threshold: Probability from which a pixel is inside an overlapping mask.
            overlap_mask_area_threshold: Not used: no mask gives way to another.
            target_sizes: Height and width of each original image, upright, which the masks get (padding is taken
                off).

        Returns:
            For each image `segmentation` (`LabelMasks`; its `masks` is bool `[labels, H, W]`), and `segments_info`,
            for each label `id`, `label_id` and `score`, the mean probability inside the mask.
        """
        results = []
        for scores in self._probabilities(outputs, target_sizes):
            masks = scores >= mask_threshold
            if self.segmentation_type == "exclusive":
                masks = scores.argmax(dim=0) == torch.arange(len(scores), device=scores.device)[:, None, None]
            inside = (scores * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2)).clamp(min=1)
            info = [{"id": i, "label_id": i, "score": round(score, 6)} for i, score in enumerate(inside.tolist())]
            results.append({"segmentation": LabelMasks(masks), "segments_info": info})
        return results

    def post_process_keypoint_matching(
        self, outputs: Any, target_sizes: Sequence[Any] | torch.Tensor | None = None, threshold: float = 0.0
    ) -> list[dict[str, torch.Tensor]]:
        """Matches of pairs of images in pixels; this is what `pipeline("keypoint-matching")` calls.

        That pipeline gives (width, height) where transformers documents (height, width). The images' own sizes, which
        came through the model as `outputs.original_sizes`, tell the two apart: a pair of `target_sizes` that is theirs
        the other way round is taken the right way round.

        Args:
            outputs: Of `EdenForKeypointMatching`, with `matches`, `matching_scores` and `keypoints`.
            target_sizes: `[B, 2, 2]`, height and width of the images in whose pixels coordinates are wanted. Not
                needed where `outputs` has `original_sizes`.
            threshold: Only matches with a higher score are given.

        Returns:
            For each pair `keypoints0` and `keypoints1` `[M, 2]`, float32 pixel indices x and y, (0, 0) the centre of
            the top left pixel, and `matching_scores` `[M]`. A match in the padding of either image is none.

        Raises:
            ValueError: sizes are missing, or are not two a pair.
        """
        originals, targets = _matched_sizes(outputs, target_sizes)
        shares = self._shares_of_images(outputs.keypoints, originals)
        pixels = shares * targets.flip(-1)[:, :, None] - 0.5
        inside = ((shares >= 0) & (shares <= 1)).all(dim=3)
        found = []
        for pair, matches, scores, within in zip(
            pixels, outputs.matches[:, 0], outputs.matching_scores[:, 0], inside, strict=True
        ):
            kept = (matches > -1) & (scores > threshold) & within[0] & within[1, matches]
            found.append(
                {
                    "keypoints0": pair[0, kept],
                    "keypoints1": pair[1, matches[kept]],
                    "matching_scores": scores[kept],
                }
            )
        return found

    def _shares_of_images(self, keypoints: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        """Keypoints `[B, 2, K, 2]` as shares of their images, which may have been padded to the processor's size."""
        if self.aspect_ratio != "pad":
            return keypoints
        square: Any = self.size
        corners, sizes = [], []
        for height, width in originals.flatten(0, 1).tolist():
            inner = fitted_size(height, width, square)
            top, left = corner(inner["height"], inner["width"], square)
            corners.append([left, top])
            sizes.append([inner["width"], inner["height"]])
        outer = keypoints.new_tensor([square["width"], square["height"]])
        first, size = (keypoints.new_tensor(sides).view(-1, 2, 1, 2) for sides in (corners, sizes))
        return (keypoints * outer - first) / size

    def _probabilities(self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | None) -> list[torch.Tensor]:
        """Probabilities `[labels, H, W]` of each image at its target size."""
        logits = outputs.logits.float()
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(f"each of {len(logits)} images needs its target size, got {len(target_sizes)}")
        found = []
        for index, scores in enumerate(logits):
            if target_sizes is not None:
                height, width = (int(side) for side in target_sizes[index])
                if self.aspect_ratio == "pad":
                    scores = without_padding(scores, height, width)
                scores = F.interpolate(scores[None], size=(height, width), mode="bilinear")[0]
            found.append(scores.softmax(dim=0) if self.segmentation_type == "exclusive" else scores.sigmoid())
        return found

    def _prepare_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        """Every image of any nesting as [C, H, W]; an error tells which image."""
        prepared = []
        for index, image in enumerate(flat(images)):
            try:
                prepared.append(self.process_image(image, **kwargs))
            except ValueError as error:
                raise ValueError(f"image {index}: {error}") from error
        if not prepared:
            raise ValueError("no images given")
        return prepared

    # transformers gives its hooks everything by keyword, so their signatures may name what they use.
    def process_image(  # type: ignore[override]
        self,
        image: PIL.Image.Image | np.ndarray | torch.Tensor,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """One image as [C, H, W], C = 1 (grey) or 3 (RGB), not yet resized nor normalised.

        float32 intensities, but for opaque 8-bit images, which stay as they are until they are small.
        """
        if isinstance(image, PIL.Image.Image):
            pixels = pil_pixels(image)
        else:
            pixels = channels_last(as_numpy(image), input_data_format)
        colour, alpha = split_alpha(pixels)
        if colour.dtype == np.uint8 and do_rescale and np.ndim(alpha) == 0:
            return np.moveaxis(np.atleast_3d(colour), -1, 0)
        intensity = unit_intensity(colour)
        if not do_rescale and colour.dtype.kind in "iu":
            self._refuse_normalising_raw(colour, **kwargs)
            intensity = colour.astype(np.float32)
        elif do_rescale and rescale_factor is not None:
            intensity *= np.float32(255 * rescale_factor)
        return np.moveaxis(np.atleast_3d(intensity * alpha), -1, 0)

    def _refuse_normalising_raw(
        self,
        pixels: np.ndarray,
        do_normalize: Any = None,
        intensity: Any = None,
        image_mean: Any = None,
        **kwargs: Any,
    ) -> None:
        """A mean for [0, 1] taken off values up to 255 and more would give numbers that mean nothing."""
        if do_normalize and intensity == "fixed" and np.max(image_mean) <= 1:
            raise ValueError(
                f"`do_rescale=False` leaves {pixels.dtype} values as they are, but `image_mean` {image_mean} is for "
                "[0, 1]: rescale, give floats in [0, 1], or set `do_normalize=False` or another `image_mean`"
            )

    def _preprocess(  # type: ignore[override]
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: int,
        aspect_ratio: str,
        do_normalize: bool,
        intensity: str,
        image_mean: float | tuple[float, ...],
        image_std: float | tuple[float, ...],
        return_tensors: str | None,
        rescale_factor: float | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Resize, rescale what is still 8 bits, normalise and stack images [C, H, W]."""
        pixel_values = []
        for image in images:
            scale = np.float32(rescale_factor) if image.dtype == np.uint8 else None
            if do_resize:
                inner = fitted_size(image.shape[1], image.shape[2], size) if aspect_ratio == "pad" else size
                image = resized(image, inner, resample)
            if scale is not None:
                image = image * scale
            if intensity == "per_image":
                image_mean, image_std = _own_mean_and_std(image)  # before padding, which does not count
            if do_resize:
                image = centred(image, size)
            if do_normalize:
                image = (image - np.reshape(image_mean, (-1, 1, 1))) / np.reshape(image_std, (-1, 1, 1))
            pixel_values.append(np.broadcast_to(image, (3, *image.shape[1:])).astype(np.float32))
        sizes = {values.shape[1:] for values in pixel_values}
        if return_tensors is not None and len(sizes) > 1:
            raise ValueError(
                f"images of the sizes {sorted(sizes)} do not stack: keep `do_resize`, or set `return_tensors` to None"
            )
        original_sizes = [image.shape[1:] for image in images]
        batch = {"pixel_values": pixel_values, "original_sizes": original_sizes}
        return BatchFeature(batch, tensor_type=return_tensors)


def _matched_sizes(
    outputs: Any, target_sizes: Sequence[Any] | torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Heights and widths `[B, 2, 2]` of pairs of images, their own and those asked for."""
    known = getattr(outputs, "original_sizes", None)
    if target_sizes is None:
        if known is None:
            raise ValueError("give `target_sizes`: `original_sizes` of the processor were not given to the model")
        return known, known
    given = torch.as_tensor(target_sizes, device=outputs.keypoints.device)
    wanted = [len(outputs.matches), 2, 2]
    if list(given.shape) != wanted:
        raise ValueError(
            f"`target_sizes` must be a height and a width for both images of each pair, {wanted}, got "
            f"{list(given.shape)}"
        )
    if known is None:
        return given, given
    swapped = (given.flip(-1) == known).flatten(1).all(dim=1)
    return known, torch.where(swapped[:, None, None], known, given)


def _own_mean_and_std(image: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation over all pixels and channels; of an image of one value such that it becomes 0."""
    mean, std = float(image.mean(dtype=np.float64)), float(image.std(dtype=np.float64))
    if std <= ROUNDING * float(np.abs(image).max()) + float(np.finfo(np.float32).tiny):  # below it nothing is exact
        return mean, math.inf
    return mean, std


def _check_size(size: SizeDict) -> None:
    sides = dict(size)
    if sides.keys() != {"height", "width"} or not all(isinstance(side, int) and side > 0 for side in sides.values()):
        raise ValueError(f"`size` must be {{'height': int, 'width': int}} with sides of at least 1, got {sides}")


def _check_resample(resample: int) -> None:
    if resample not in list(PIL.Image.Resampling):
        known = ", ".join(f"{choice.value} ({choice.name.lower()})" for choice in PIL.Image.Resampling)
        raise ValueError(f"`resample` must be one of {known}, got {resample!r}")


def _check_numbers(rescale_factor: Any, image_mean: Any, image_std: Any) -> None:
    settings = {"rescale_factor": rescale_factor, "image_mean": image_mean, "image_std": image_std}
    for name, value in settings.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if numbers == [None]:
            continue  # the base class has checked that it is not needed
        least = -math.inf if name == "image_mean" else 0
        known_count = len(numbers) == 1 or (len(numbers) == 3 and name != "rescale_factor")
        if not known_count or not all(_is_finite(number) and number > least for number in numbers):
            limit = " above 0" if least == 0 else ""
            raise ValueError(
                f"`{name}` must be a finite number{limit} (mean and std also 3, one a channel), got {value!r}"
            )


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


EdenImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["EdenImageProcessor"]
