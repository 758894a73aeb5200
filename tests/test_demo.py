"""The demo ends in six lines that a newcomer understands."""

import runpy

from eden_hf.evaluation.results import Estimate, Results

from .launching import REPOSITORY


def test_the_end_of_the_demo(tmp_path):
    measured = {
        "correspondence": {"last": {"mean_radial_error_mm": 7.3}, "random-last": {"mean_radial_error_mm": 14.8}},
        "locality": {"last": {"auroc": 0.97}, "random-last": {"auroc": 0.936}},
    }
    for name, models in measured.items():
        for model, values in models.items():
            estimates = {key: Estimate(value, 0, 1, 12) for key, value in ({"same_place_mm": 17.3} | values).items()}
            results = Results(name, model, None, "phantoms:64 (train, 12 images)", "", 0, estimates)
            results.save(tmp_path / "report" / model / name)
    (tmp_path / "levels.png").touch()
    said = runpy.run_path(str(REPOSITORY / "scripts" / "demo.py"))["summary"](tmp_path)
    lines = said.splitlines()
    assert len(lines) == 6
    assert "7 mm off on average (untrained 15 mm, copied coordinates 17 mm)" in lines[1]
    assert "97% of cases (untrained 94%)" in lines[2]
    assert lines[3] == f"Pictures: {tmp_path / 'levels.png'}"
    assert str(tmp_path / "report" / "comparison.md") in lines[4]
