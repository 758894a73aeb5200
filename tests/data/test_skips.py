import json
import multiprocessing

import pytest

from eden_hf.data.reading import ImageReadError, NoImageError
from eden_hf.data.skips import SkipLog, TooManyUnreadable, left_out


def test_a_skip_log_is_json_lines(tmp_path):
    log = SkipLog(tmp_path / "run/skipped.jsonl", max_share=0.5)
    assert log.count == 0
    log.add("a.png", 'torn, "so to say"\nin two')
    log.add("b.png", "Ünlesbar", split="test")
    lines = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert lines == log.entries
    assert lines == [
        {"source_id": "a.png", "reason": 'torn, "so to say"\nin two'},
        {"source_id": "b.png", "reason": "Ünlesbar", "split": "test"},
    ]
    assert log.count == 2
    assert SkipLog(tmp_path / "run/skipped.jsonl").count == 0


def test_a_skip_log_goes_on_with_what_is_listed(tmp_path):
    """Without a line that an interruption cut short; what was listed is not listed again, and counts."""
    log = SkipLog(tmp_path / "skipped.jsonl")
    for name in "ab":
        log.add(name, "torn")
    for part in ("", '{"source_id": "c", "rea'):
        with (tmp_path / "skipped.jsonl").open("a") as file:
            file.write(part)
        log = SkipLog(tmp_path / "skipped.jsonl", goes_on=True)
        log.add("b", "torn")
    log.add("c", "torn")
    assert [entry["source_id"] for entry in log.entries] == ["a", "b", "c"]
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 3
    with pytest.raises(TooManyUnreadable, match="3 of 100 images"):
        log.check(100)
    assert SkipLog(tmp_path / "no" / "skipped.jsonl", goes_on=True).count == 0


@pytest.mark.parametrize("in_file", [True, False])
def test_a_skip_log_bears_a_share(tmp_path, in_file):
    log = SkipLog(tmp_path / "skipped.jsonl" if in_file else None)
    log.check(0)
    for name in "ab":
        log.add(f"{name}.png", "torn")
    log.check(200)
    with pytest.raises(
        TooManyUnreadable, match=r"2 of 199 images .* limit of 1.00% forbids \(a.png: torn; b.png: torn\)"
    ) as e:
        log.check(199)
    assert ("skipped.jsonl" in str(e.value)) == in_file


def test_a_skip_log_never_bears_the_loss_of_all():
    log = SkipLog(None, max_share=1)
    log.add("a.png", "torn")
    log.check(2)
    with pytest.raises(TooManyUnreadable, match="1 of 1 images"):
        log.check(1)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5"):
        SkipLog(None, max_share=1.5)


def test_what_holds_no_image_is_listed_and_does_not_count():
    log = SkipLog(None, max_share=0.1)
    for name in "abc":
        log.add(name, NoImageError(f"{name}: a report"))
    log.check(3)
    assert log.count == 0
    assert log.entries[0] == {"source_id": "a", "reason": "a: a report", "no_image": True}
    assert left_out(log.entries) == "3 files left out that hold no image"
    log.add("d", ImageReadError("d: torn"))
    assert log.count == 1
    assert left_out(log.entries) == "1 images left out as unreadable and 3 files left out that hold no image"
    log.check(13)
    with pytest.raises(TooManyUnreadable, match=r"1 of 9 images .*\(d: d: torn\)"):
        log.check(12)


def _add_many(log, name):
    for index in range(200):
        log.add(f"{name}{index}", "torn " * 20)


def test_processes_share_a_skip_log(tmp_path):
    log = SkipLog(tmp_path / "skipped.jsonl")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_add_many, args=(log, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert {entry["source_id"] for entry in log.entries} == {f"{name}{i}" for name in "ab" for i in range(200)}
    assert log.count == 400
