from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from eden_hf.encoders import Encoder
from eden_hf.evaluation.nuisances import MARKS, nuisances

from .conftest import Places


class Pixels(Places):
    """An encoder whose embedding is the picture."""

    def forward(self, pixel_values):
        return SimpleNamespace(pooler_output=pixel_values.flatten(1))


@pytest.fixture
def pixels(places):
    return Encoder(Pixels(), places.processor)


def repeated(charts):
    """Three patients of each chart."""
    return [item._replace(source_id=f"{item.source_id}-{number}") for number in range(3) for item in charts]


def from_two_places(charts):
    """The charts with a tint of the place where each was taken, and the places."""
    taken = []
    for number, item in enumerate(charts):
        pixels = np.asarray(item.image).copy()
        pixels[..., 2] = 255 * (number % 2)
        taken.append(item._replace(image=Image.fromarray(pixels), origin=f"place {number % 2}"))
    return taken


def test_marks_decide_who_is_nearest_to_an_encoder_of_pixels(pixels, charts):
    """The charts are alike but for a small shift, so a border or a box is what they differ by."""
    values = nuisances(pixels, charts).values
    for name in MARKS:
        assert values[name].value > 0.95
    assert values["mark_chance"].value == pytest.approx(2 / 5)  # of 6 images 3 are marked
    assert values["border"].n == 6
    assert "source_neighbours" not in values  # where it is not known


def test_noise_and_collapsed_encoders_are_at_chance(noise, collapsed, charts):
    for encoder, margin in ((noise, 0.15), (collapsed, 1e-6)):
        values = nuisances(encoder, from_two_places(repeated(charts))).values
        for name, chance in [*((mark, "mark_chance") for mark in MARKS), ("source_neighbours", "source_chance")]:
            assert values[name].value == pytest.approx(values[chance].value, abs=margin), name
        assert values["parts_across_sources"].value == pytest.approx(1 / 16, abs=max(margin, 1e-3))


def test_a_tint_of_the_source_is_found(pixels, charts):
    values = nuisances(pixels, from_two_places(charts)).values
    assert values["source_neighbours"].value == pytest.approx(2 / 5)  # 5 neighbours are all there are
    assert values["source_chance"].value == pytest.approx(2 / 5)
    values = nuisances(pixels, from_two_places(repeated(charts))).values
    assert values["source_neighbours"].value == 1
    assert values["source_chance"].value == pytest.approx(8 / 17)
    untinted = [item._replace(origin=f"place {number % 2}") for number, item in enumerate(charts)]
    assert nuisances(pixels, untinted).values["parts_across_sources"].value > max(
        0.9, values["parts_across_sources"].value
    )
