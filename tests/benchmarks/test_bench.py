import json
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from eden_hf.benchmarks import references
from eden_hf.benchmarks.bench import bench
from eden_hf.benchmarks.curves import CURVES, Curve
from eden_hf.benchmarks.measuring import ROWS, Row, Sides, measure
from eden_hf.modeling_eden import pruned_info_nce


class Prepared:
    """A context manager of sides."""

    def __init__(self, sides):
        self.sides = sides

    def __enter__(self):
        return self.sides

    def __exit__(self, *_):
        pass


def made_row(sides, clock="wall"):
    return Row("made", "made", "made", "calls", 1, clock, None, False, lambda: Prepared(sides))


def test_ratios_are_of_seconds_an_item():
    sides = Sides(lambda: 0.5, lambda: 3.0, items=10, reference_items=20)
    found = measure(made_row(sides), rounds=3)
    assert (found.seconds, found.reference_seconds, found.ratio, found.rounds) == (0.05, 0.15, pytest.approx(3), 3)
    assert found.spread == 0


def test_clocks_tell_waiting_from_working():
    sleeping = Sides(lambda: time.sleep(0.05), lambda: time.sleep(0.05))
    assert measure(made_row(sleeping), rounds=1).seconds >= 0.05
    assert measure(made_row(sleeping, "processor"), rounds=1).seconds < 0.02


def test_the_first_turn_does_not_count_and_threads_are_put_back():
    seconds = iter([100.0, 1.0, 1.0])
    before = torch.get_num_threads()
    assert measure(made_row(Sides(lambda: next(seconds), lambda: 1.0)), rounds=2).seconds == 1
    assert torch.get_num_threads() == before


def test_the_plain_loss_is_the_packages():
    queries, keys, bank = (F.normalize(torch.randn(n, 16, generator=torch.Generator().manual_seed(n)), dim=1)
                           for n in (4, 5, 60))  # fmt: skip
    keys = keys[:4]
    plain = references.pruned_loss_by_sample(queries, keys, bank, 0.2, 0.3)
    torch.testing.assert_close(plain, pruned_info_nce(queries, keys, bank, 0.2, 0.3).loss)


def test_a_table_json_and_a_figure(tmp_path):
    told = bench(rows=["help-eden"], rounds=1, output=str(tmp_path / "bench"))
    written = json.loads((tmp_path / "bench" / "benchmark.json").read_text())
    assert written["rows"]["help-eden"]["ratio"] > 1
    assert written["machine"]["torch_threads"] == torch.get_num_threads()
    assert "| help-eden | **" in told.table
    assert told.results == written
    assert told.files == [tmp_path / "bench" / "benchmark.json", tmp_path / "bench" / "benchmark.png"]
    assert (tmp_path / "bench" / "benchmark.png").stat().st_size > 1000


@pytest.mark.parametrize(("options", "message"), [
    ({"rows": ["objectiv"]}, "no row objectiv; there are step-r50"),
    ({"rows": ["bank", "objective"], "curves": True}, "no curve objective; there are bank, level"),
    ({"rows": ["bank"]}, "no row bank; there are step-r50"),
    ({"rounds": 0}, "`rounds` must be at least 1, got 0"),
])  # fmt: skip
def test_nonsense_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        bench(**options, output=str(tmp_path))


def test_curves_are_written_by_value(tmp_path, monkeypatch):
    small = {"bank": (32, 64), "level": (0, 1), "side": (32,), "images": (20, 40), "prepare": (2,)}
    for name, values in small.items():
        monkeypatch.setitem(CURVES, name, replace(CURVES[name], values=values))
    told = bench(curves=True, rounds=1, output=str(tmp_path))
    written = json.loads((tmp_path / "curves.json").read_text())["seconds"]
    assert {name: tuple(map(int, found)) for name, found in written.items()} == small
    assert all(cost > 0 for found in written.values() for cost in found.values())
    assert "per query, by rows of the memory bank | 32: " in told.table
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_some_curves_and_few_turns(tmp_path, monkeypatch):
    turns = []
    curve = replace(
        CURVES["level"], values=(0, 1), prepare=lambda value: nullcontext((lambda: turns.append(value), 1))
    )
    monkeypatch.setitem(CURVES, "level", curve)
    bench(rows=["level"], curves=True, quick=True, rounds=9, output=str(tmp_path))
    assert list(json.loads((tmp_path / "curves.json").read_text())["seconds"]) == ["level"]
    assert turns == [0] * 4 + [1] * 4


def test_costs_are_of_an_item_and_the_first_turn_does_not_count():
    turns = iter([9.0, 1.0, 3.0, 2.0])
    curve = Curve("x", "x", "x", (5,), lambda value: nullcontext((lambda: next(turns), value)))
    assert curve.costs(rounds=3) == {5: 2 / 5}


def test_every_row_says_what_it_is():
    assert all(row.about and row.reference and row.goal > 0 for row in ROWS.values())
