"""What `eden prepare` takes for many files, and when it is killed: `python scripts/measure_preparing.py`.

The files are JPEG of 64 drawn chests under as many names as asked for (hard links), so that they are read from memory;
what a disk takes comes on top.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from jsonargparse import auto_cli

from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.prepared import PreparedImages, split_holdout
from eden_hf.training.curriculum import epoch_order
from eden_hf.training.settings import ConfigParser

DRAWN, PER_FOLDER, MANY = 64, 1000, 10_000_000


def measure_preparing(
    files: int = 300_000, size: int = 256, side: int = 128, storage: str = "raw", num_proc: int = 2, output: str = ""
) -> None:
    """Print what each call took, and what opening the result takes; everything made is removed.

    Args:
        files: How many.
        size: Pixels a side of the files.
        side: Pixels a side that they are brought to.
        storage: Of `eden prepare`.
        num_proc: Of `eden prepare`.
        output: Folder in which everything is made and removed; the system's temporary one by default.
    """
    with tempfile.TemporaryDirectory(dir=output or None) as name:
        source, prepared = Path(name) / "images", Path(name) / "prepared"
        _files(source, files, size)
        begin = [sys.executable, "scripts/prepare_images.py", str(source), str(prepared), "--quiet"]
        begin += [f"--side={side}", f"--storage={storage}", f"--num-proc={num_proc}"]
        half = -(-files // 8192) // 2
        print("| call | wall seconds | seconds of cores | peak MB | chunks there |\n| --- | --- | --- | --- | --- |")
        _call("killed in the middle", begin, prepared, until=half)
        _call("goes on", begin, prepared)
        _call("finds all done", begin, prepared)
        size_on_disk = sum(file.stat().st_size for file in prepared.rglob("*") if file.is_file())
        since, me = time.perf_counter(), psutil.Process()
        before = me.memory_info().rss
        images = PreparedImages(prepared)
        epoch_order(split_holdout(images.ids, 0.1, seed=0)[0], seed=0, epoch=0)
        took, kept = time.perf_counter() - since, me.memory_info().rss - before
        print(
            f"\n{len(images)} images in {size_on_disk / 1e9:.2f} GB; opened and ordered in {took:.2f} s "
            f"and {kept / 1e6:.0f} MB; {MANY:,} in {size_on_disk * MANY / files / 1e9:,.0f} GB"
        )


def _files(folder: Path, count: int, size: int) -> None:
    for index, phantom in enumerate(phantom_dataset(min(DRAWN, count), size=size)["image"]):
        file = folder / f"{index // PER_FOLDER:05}" / f"{index:08}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        phantom.save(file, quality=92)
    for index in range(DRAWN, count):
        file = folder / f"{index // PER_FOLDER:05}" / f"{index:08}.jpg"
        if index % PER_FOLDER == 0:
            file.parent.mkdir()
        file.hardlink_to(folder / "00000" / f"{index % DRAWN:08}.jpg")


def _call(what: str, command: list[str], prepared: Path, until: int | None = None) -> None:
    """Run a command, killed once `until` chunks are there, and print what it took."""
    since, before, peak = time.perf_counter(), os.times(), 0
    process = subprocess.Popen(command, start_new_session=True)
    try:
        while process.poll() is None and (until is None or len(list(prepared.glob("chunk-*"))) < until):
            peak = max(peak, _memory(process.pid))
            time.sleep(0.5)
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if until is None and process.returncode:
        sys.exit(process.returncode)
    after = os.times()
    cores = sum(after[2:4]) - sum(before[2:4])
    chunks = len(list(prepared.glob("chunk-*")))
    told = f"{cores:.0f}" if until is None else "not told"  # of processes that are killed nobody learns it
    print(f"| {what} | {time.perf_counter() - since:.0f} | {told} | {peak / 1e6:.0f} | {chunks} |", flush=True)


def _memory(pid: int) -> int:
    """Bytes of a process and those it started, what they share counted once."""
    try:
        family = psutil.Process(pid)
        return sum(p.memory_full_info().pss for p in [family, *family.children(recursive=True)])
    except psutil.Error:  # one ended in between
        return 0


if __name__ == "__main__":
    auto_cli(measure_preparing, as_positional=False, parser_class=ConfigParser)
