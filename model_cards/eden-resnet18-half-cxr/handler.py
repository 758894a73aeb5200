"""What Inference Endpoints run of a published folder: embeddings of images, or landmarks found from one example.

`eden stage` puts this file into the folder, with a `requirements.txt` that asks for the package.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from eden_hf.data.reading import decode_image
from eden_hf.encoders import load_encoder, pooled
from eden_hf.matching import AnatomyMatcher, Reference


class EndpointHandler:
    """Called by the endpoint's toolkit, once with the folder and then with each request."""

    def __init__(self, path: str = "") -> None:
        self.encoder = load_encoder(path)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a request.

        Args:
            data: `inputs`, an image: a picture of PIL, the bytes of a file (PNG, JPEG, TIFF, DICOM), or those as
                base64. For landmarks also `parameters`: `reference`, an image in the same forms, and `points`, pixel
                indices in it by name: `{"apex": [310, 122]}`; (0, 0) is the centre of the top left pixel.

        Returns:
            `embedding`, C numbers; or `landmarks` by name: `x` and `y` in pixels of the image, `confidence`, `found`.

        Raises:
            ValueError: what was given is no image, or the reference lacks its points.
        """
        image, asked = _image(data.get("inputs"), "inputs"), data.get("parameters") or {}
        if "reference" in asked or "points" in asked:
            return {"landmarks": self._landmarks(image, asked)}
        with torch.inference_mode():
            pixel_values = self.encoder.pixel_values([image])
            outputs = self.encoder.model(pixel_values=pixel_values)
            embedding = pooled(outputs, pixel_values, self.encoder.model.config)[0]
        return {"embedding": embedding.float().tolist()}

    def _landmarks(self, image: Image.Image, asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        points = asked.get("points")
        if not isinstance(points, Mapping) or not points:
            raise ValueError(
                f'`points` must be pixels of the reference by name, {{"apex": [310, 122]}}, got {points!r}'
            )
        reference = _image(asked.get("reference"), "reference")
        try:
            places = {name: (float(x), float(y)) for name, (x, y) in points.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"`points` must be pairs of numbers, x and y, got {points!r}") from error
        found = AnatomyMatcher(self.encoder, [Reference(reference, points=places)]).find(image)
        return {name: point._asdict() for name, point in found.items()}


def _image(given: Any, name: str) -> Image.Image:
    if isinstance(given, str):
        try:
            given = base64.b64decode(given.rpartition("base64,")[2], validate=True)
        except binascii.Error as error:
            raise ValueError(f"`{name}` is no image as base64: {error}") from error
    if isinstance(given, (bytes, bytearray)):
        return decode_image(bytes(given), name)
    if isinstance(given, Image.Image):
        return given if given.mode in ("L", "RGB") else given.convert("RGB")
    raise ValueError(f"`{name}` must be an image: the bytes of a file, or those as base64, got {type(given).__name__}")
