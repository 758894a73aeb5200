import json
import sqlite3
from contextlib import closing
from importlib.util import find_spec

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from transformers import TrainerCallback, TrainerControl
from transformers.trainer_callback import CallbackHandler

from eden_hf.modeling_eden import pruned_info_nce
from eden_hf.training.curriculum import Progress
from eden_hf.training.monitors import LossGuard, Monitor, NonFiniteLossError, TrackerCallback, health, read_metrics


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def test_embedding_std_tells_spread_from_collapse():
    bank, spread = unit(10, 64), unit(512, 64)
    collapsed = spread[:1].expand(512, 64)
    assert health(pruned_info_nce(spread, spread, bank, 0.2))["embedding_std"].item() == pytest.approx(1, abs=0.02)
    assert health(pruned_info_nce(collapsed, spread, bank, 0.2))["embedding_std"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_with_the_ids_of_its_batch(tmp_path, bad):
    guard = LossGuard(tmp_path, rank=0)
    guard.watch(torch.tensor(1.0), ["fine.png"], {"step": 4})
    guard.check()
    guard.watch(torch.tensor(2.0), ["fine too.png"], {"step": 4})
    guard.watch(torch.tensor(bad), ["a.png", "b.png"], {"step": 5})
    guard.watch(torch.tensor(bad), ["next.png"], {"step": 6})
    with pytest.raises(NonFiniteLossError, match=r"step 5.*nonfinite.json"):
        guard.check()
    saved = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (saved["ids"], saved["step"]) == (["a.png", "b.png"], 5)


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_weights_that_are_not_finite_are_not_kept(tmp_path, bad):
    guard = LossGuard(tmp_path, rank=0)
    guard.check_weights([torch.ones(3), torch.full((2, 2), 1e38)], step=1)
    with pytest.raises(NonFiniteLossError, match="step 2"):
        guard.check_weights([torch.ones(3), torch.tensor([1.0, bad])], step=2)


def test_lines_hold_means_and_a_resumed_run_rewrites_its_own(tmp_path):
    accelerator = Accelerator(cpu=True)
    scalars = {name: torch.tensor(1.0) for name in ("positive_similarity", "pruned_share", "embedding_std")}
    where = {"stage": 0, "epoch": 0, "level": 0}
    monitor = Monitor(accelerator, tmp_path, 10, Progress())
    for step in (1, 2, 3):
        for loss in (1.0, 2.0):
            monitor.add({"loss": torch.tensor(loss * step), **scalars}, images=8)
        monitor.log({"step": step, **where}, learning_rate=0.1)
    lines = [json.loads(line) for line in monitor.file.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [1.5, 3.0, 4.5]
    assert all(line["images_per_second"] > 0 and line["learning_rate"] == 0.1 for line in lines)
    Monitor(accelerator, tmp_path, 10, Progress(step=2))
    assert [json.loads(line)["step"] for line in monitor.file.read_text().splitlines()] == [1, 2]


def test_a_run_that_prunes_everything_is_warned_about_once(tmp_path, caplog):
    monitor = Monitor(Accelerator(cpu=True), tmp_path, 10, Progress())
    names = ("loss", "positive_similarity", "pruned_share", "embedding_std")
    for step in (1, 2):
        monitor.add(dict.fromkeys(names, torch.tensor(1.0)), images=8)
        monitor.log({"step": step, "stage": 0, "epoch": 0, "level": 0}, learning_rate=0.1)
    assert caplog.text.count("nothing is learned") == 1


class Failing(GeneralTracker):
    """A tracker whose server does not answer `when` it is asked."""

    name, requires_logging_directory, tracker = "failing", False, None

    def __init__(self, when):
        super().__init__()
        self.when, self.asked = when, []

    def _ask(self, what):
        self.asked.append(what)
        if what in self.when:
            raise ConnectionError("no answer")

    def start(self):
        self._ask("start")

    def log(self, values, step):
        self._ask("log")

    def finish(self):
        self._ask("finish")


@pytest.mark.parametrize("when", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_told_of_once_and_nothing_else(when, tmp_path, caplog):
    failing, fine = Failing([when, "finish"]), Failing([])
    accelerator = Accelerator(cpu=True, log_with=[failing, fine])
    monitor = Monitor(accelerator, tmp_path, 10, Progress())
    for step in (1, 2):
        monitor.write({"step": step}, {"loss": 1.0})
    monitor.close()
    assert caplog.text.count("the tracker") == caplog.text.count("failing failed (ConnectionError: no answer)") == 1
    assert failing.asked == (["start"] if when == "start" else ["start", "log", "log", "finish"])
    assert fine.asked == ["start", "log", "log", "finish"]
    assert [line["step"] for line in read_metrics(monitor.file)] == [1, 2]
    accelerator.end_training()


@pytest.mark.skipif(find_spec("trackio") is None, reason="needs the extra trackio, which holds pillow below 13")
def test_trackio_gets_every_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    accelerator = Accelerator(cpu=True, log_with="trackio")
    monitor = Monitor(accelerator, tmp_path, 10, Progress())
    for step in (1, 2):
        monitor.write({"step": step}, {"loss": 1 / step})
    monitor.close()
    with closing(sqlite3.connect(tmp_path / "trackio" / "pretrain.db")) as database:
        rows = list(database.execute("select step, metrics from metrics order by step"))
    assert [(step, json.loads(values)) for step, values in rows] == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]


def test_a_line_that_was_cut_short_does_not_stop_a_resumed_run(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1, "loss": 1.0}]
    Monitor(Accelerator(cpu=True), tmp_path, 10, Progress(step=1))
    assert file.read_text() == '{"step": 1, "loss": 1.0}\n'


def test_a_callback_of_trainer_that_fails_is_told_of_once(caplog):
    class WandbCallback(TrainerCallback):
        def on_log(self, *args, **kwargs):
            raise ConnectionError("no answer")

    handler = CallbackHandler([TrackerCallback(WandbCallback())], None, None, None, None)
    for _ in range(2):
        handler.on_log(None, None, TrainerControl(), logs={})
        handler.on_step_end(None, None, TrainerControl())
    assert caplog.text.count("the tracker Wandb failed (ConnectionError: no answer)") == 1
