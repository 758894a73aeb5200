import numpy as np
import pytest

from eden_hf.evaluation.correspondence_windows import correspondence_windows


def test_an_encoder_that_knows_places_finds_landmarks(places, charts):
    result = correspondence_windows(places, charts, window=0.1, steps=48, side_mm=96)
    assert result.values["mean_radial_error_mm"].value < 3
    assert result.values["within_5_mm"].value == 1
    assert result.values["left_a_mm"].n == len(charts)
    assert result.values["same_place_mm"].value < 4
    assert len(result.figure.axes) == 2


def test_a_collapsed_encoder_finds_nothing(collapsed, charts):
    assert (
        correspondence_windows(collapsed, charts, window=0.1, steps=16, side_mm=96)
        .values["mean_radial_error_mm"]
        .value
        > 20
    )


def test_errors_are_in_millimetres_of_the_target(places, charts):
    larger = [item._replace(image=item.image.resize((192, 192))) for item in charts]
    small, large = (
        correspondence_windows(places, images, window=0.1, steps=24, side_mm=96).values["same_place_mm"].value
        for images in (charts, larger)
    )
    assert small == pytest.approx(large, abs=1e-3)
    doubled = correspondence_windows(places, charts, window=0.1, steps=24, side_mm=192).values["same_place_mm"].value
    assert doubled == pytest.approx(2 * small)
    shares = np.array([list(item.landmarks.values()) for item in charts])
    errors = [np.linalg.norm(96 * (a - b), axis=1).mean() for a in shares for b in shares if a is not b]
    assert small == pytest.approx(np.sum(errors) / 30, rel=1e-4)
