"""Break tiny pretraining runs, go on with them, and tell what was lost: docs/reliability.md has the results.

python scripts/break_runs.py kill --tries 100     # SIGKILL at random moments; --help lists the other faults

A fault strikes a run again and again, until the run ends by itself; it must then equal, to the last bit, one that
nothing happened to. After each fault the newest checkpoint and the model folders must load, once there were any.
"""

import argparse
import errno
import os
import random
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # sums do not depend on the number of threads

import psutil
import torch
import yaml
from transformers import AutoModel
from transformers.utils.logging import disable_progress_bar

from eden_hf.training.arguments import read_arguments
from eden_hf.training.checkpoints import damage
from eden_hf.training.lineage import changes
from eden_hf.training.monitors import read_metrics
from eden_hf.training.pretraining import pretrain

SETTINGS: dict[str, Any] = {
    "model": {
        "backbone": {
            "model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 12, 16, 20],
            "depths": [1, 1, 1, 1],
        },
        "projection_dim": 8, "memory_bank_size": 20,
    },
    "data": {"source": "phantoms:20", "side": 64, "holdout_share": 0.2},
    "views": {"size": 32},
    "stages": [
        {"level": 0, "epochs": 1, "learning_rate": 0.05},
        {"level": 2, "epochs": 1, "learning_rate": 0.05, "prune_threshold": 0.8},
    ],
    "training": {"batch_size": 4, "validate_every": 1},
    "run": {"checkpoint_every": 1, "log_every": 1, "num_workers": 0, "keep_checkpoints": 2, "timeout": 20.0},
}  # fmt: skip
STEPS = 8
#: Seconds in which a process must have ended, after those that it may wait for another (`run.timeout`).
LIMIT = 300


class LostError(Exception):
    """What must not happen: the message says what was lost of a run."""


@dataclass
class Child:
    """A process of a run, and the pipe through which it says how it ended."""

    pid: int
    pipe: int
    seconds: float = 0.0  # of a processor, once it ended

    def wait(self, seconds: float) -> None:
        """Until it had so much of a processor, whatever else the machine does, or ended."""
        while self.used() < seconds and not self.ended(0.002):
            pass

    def used(self) -> float:
        """Seconds of a processor that it had so far."""
        return sum(psutil.Process(self.pid).cpu_times()[:2])

    def ended(self, limit: float) -> bool:
        """Whether it ends within seconds."""
        return bool(select.select([self.pipe], [], [], limit)[0])  # readable also where it ended without a word

    def end(self, limit: float = LIMIT) -> tuple[int, str]:
        """Its exit status and what it said, in `limit` seconds."""
        ready = self.ended(limit)
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        said = os.read(self.pipe, 65536).decode() if ready else ""
        os.close(self.pipe)
        _, status, used = os.wait4(self.pid, 0)
        self.seconds = used.ru_utime + used.ru_stime
        if not ready:
            raise LostError(f"a process did not end within {limit:.0f} s")
        return os.waitstatus_to_exitcode(status), said


@dataclass
class Life:
    """A run that is started, broken and gone on with in a folder of its own, as one process or as several."""

    folder: Path
    processes: int = 1
    kept: set[str] = field(default_factory=set)  # of checkpoints and model folders, those that there were once

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    def start(self, arm: Callable[[Path], Callable[[], object]] | None = None) -> list[Child]:
        """Begin or go on, a process for each rank; `arm` puts a fault into the first, and may have a last word."""
        self.folder.mkdir(exist_ok=True)
        own = {"output_dir": str(self.run)}
        settings = {**SETTINGS, "run": SETTINGS["run"] | own}
        settings["data"] = SETTINGS["data"] | {"cache_dir": str(self.folder / "cache")}
        file = self.folder / "settings.yaml"
        file.write_text(yaml.safe_dump(settings))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [self._fork(file, rank, port, arm if rank == 0 else None) for rank in range(self.processes)]

    def _fork(self, file: Path, rank: int, port: int, arm: Any) -> Child:
        pipe, say = os.pipe()
        if child := os.fork():
            os.close(say)
            return Child(child, pipe)
        status, last_word = 2, ""
        try:
            if self.processes > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
                os.environ |= {"LOCAL_RANK": str(rank)}
                os.environ |= dict.fromkeys(["WORLD_SIZE", "LOCAL_WORLD_SIZE"], str(self.processes))
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            report = arm(self.folder) if arm else lambda: ""
            pretrain(read_arguments(file), resume=(self.run / "config.yaml").exists())
            status, last_word = 0, str(report())
        except BaseException as error:
            last_word = f"{type(error).__name__}: {error}"
        finally:
            os.write(say, last_word.encode()[:4000])
            os._exit(status)

    def finished(self) -> bool:
        """Whether its last step is kept."""
        return (self.run / "checkpoints" / f"step-{STEPS:08}" / "progress.json").exists()

    def check(self) -> None:
        """See whether what was once kept is there and loads.

        Raises:
            LostError: something is not.
        """
        whole = [folder for folder in (self.run / "checkpoints").glob("step-*") if not damage(folder)]
        if "checkpoint" in self.kept and not whole:
            raise LostError("no whole checkpoint is left")
        for folder in whole:
            for file in (*folder.glob("*.bin"), *folder.glob("*.pkl")):
                torch.load(file, weights_only=False)  # noqa: TID251 (our own)
        for name in ("best", "last"):
            places = [place for place in (self.run / name, self.run / f".{name}.old") if place.exists()]
            if name in self.kept and not places:
                raise LostError(f"the model folder {name} is gone")
            if places:
                AutoModel.from_pretrained(places[0])
                self.kept.add(name)
        self.kept |= {"checkpoint"} if whole else set()

    def compare(self, other: "Life") -> None:
        """See whether the run equals another to the last bit, in all that it learned, said and left.

        Raises:
            LostError: it does not.
        """
        mine, theirs = (
            {str(path.relative_to(life.run)) for path in life.run.rglob("*") if "damaged-" not in str(path)}
            for life in (self, other)
        )
        if mine != theirs:
            raise LostError(f"other files than of an uninterrupted run: {sorted(mine ^ theirs)}")
        weights = [name for name in mine if name.endswith((".safetensors", ".bin", ".pkl", "progress.json"))]
        if changed := [name for name in weights if (self.run / name).read_bytes() != (other.run / name).read_bytes()]:
            raise LostError(f"not equal to an uninterrupted run: {changed}")
        lines = [read_metrics(life.run / "metrics.jsonl") for life in (self, other)]
        for line in (*lines[0], *lines[1]):
            line.pop("images_per_second", None)
        if lines[0] != lines[1]:
            raise LostError("other metrics than of an uninterrupted run")
        if told := changes(self.run):
            raise LostError(f"its lineage does not fit: {told}")


#: Puts a fault into a life at a random moment, and says whether it struck before the run ended.
Fault = Callable[[Life, random.Random, "Measured"], bool]


@dataclass
class Measured:
    """What an uninterrupted run takes: seconds of a processor, and operations on files."""

    seconds: float
    operations: int


def signalled(number: signal.Signals, statuses: set[int]) -> Fault:
    """A signal to the run, at any moment; it must end with one of some statuses."""

    def fault(life: Life, moments: random.Random, measured: Measured) -> bool:
        (child,) = life.start()
        child.wait(moments.uniform(0, measured.seconds))
        os.kill(child.pid, number)
        status, said = child.end()
        if status not in statuses | {0}:
            raise LostError(f"it ended with {status}: {said}")
        return status != 0 or not life.finished()

    return fault


def at_operation(strike: Callable[[Path], None]) -> Fault:
    """`strike(path)` before one of the operations on files of the run, and before each that follows."""

    def fault(life: Life, moments: random.Random, measured: Measured) -> bool:
        moment = moments.randrange(measured.operations)
        (child,) = life.start(lambda folder: count_operations(folder, moment, strike))
        status, said = child.end()
        if status in (0, -signal.SIGKILL):
            return status != 0
        if "Error: " not in said or str(life.folder) not in said:
            raise LostError(f"an error that does not name the place: {said}")
        return True

    return fault


def count_operations(folder: Path, moment: float, strike: Callable[[Path], None]) -> Callable[[], int]:
    """Have Python count its changes of files below a folder, and `strike` from one of them on."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | os.PathLike) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            path = arguments[0]
        else:
            return
        if not Path(path).is_absolute() or Path(path).is_relative_to(folder):  # of `rmtree`, which gives names alone
            count += 1
            if count > moment:
                strike(Path(path))

    sys.addaudithook(hook)
    return lambda: count


def killed(path: Path) -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def read_only(path: Path) -> None:
    """Refuse, as a file system does that became read-only."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def no_room(path: Path) -> None:
    """Let no file grow beyond 100 bytes: the system refuses what does, to torch and safetensors as well."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def full_disk(life: Life, moments: random.Random, measured: Measured) -> bool:
    """Fill the disk, a small one, at any moment."""
    if shutil.disk_usage(life.folder.parent).total > 256e6:
        sys.exit("give --folder on a small disk, which is filled: mount -t tmpfs -o size=64m tmpfs FOLDER")
    (child,) = life.start()
    child.wait(moments.uniform(0, measured.seconds))
    filler = life.folder.parent / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    try:
        status, said = child.end()
    finally:
        filler.unlink()
    if status and str(life.folder) not in said:
        raise LostError(f"an error that does not name the place: {said}")
    return status != 0


def damaged(life: Life, moments: random.Random, measured: Measured) -> bool:
    """Kill the run; then cut short, or flip a bit of, a file of its newest checkpoint, if there is one before it."""
    struck = signalled(signal.SIGKILL, {-signal.SIGKILL})(life, moments, measured)
    whole = sorted((life.run / "checkpoints").glob("step-*"))
    if struck and len(whole) > 1:
        file = moments.choice(sorted(whole[-1].iterdir()))
        content = bytearray(file.read_bytes())
        if moments.random() < 0.5:
            del content[moments.randrange(len(content)) :]
        else:
            content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
        file.write_bytes(content)
    return struck


def clocked(life: Life, moments: random.Random, measured: Measured) -> bool:
    """Kill the run, and let all its files be of any year."""
    struck = signalled(signal.SIGKILL, {-signal.SIGKILL})(life, moments, measured)
    for path in life.folder.rglob("*"):
        year = moments.uniform(0, 70) * 365 * 86400.0
        os.utime(path, (year, year))
    return struck


def one_of_two(number: signal.Signals) -> Fault:
    """A signal to one of the processes of a run in training; the others must end in time, and say why."""

    def fault(life: Life, moments: random.Random, measured: Measured) -> bool:
        metrics = life.run / "metrics.jsonl"
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        children = life.start()
        while not children[0].ended(0.005) and (not metrics.exists() or metrics.stat().st_mtime_ns == before):
            pass  # until training begins, which writes the file anew
        children[0].wait(children[0].used() + moments.uniform(0, measured.seconds / 2))
        struck = children.pop(moments.randrange(len(children)))
        os.kill(struck.pid, number)
        since = time.monotonic()
        ends = [child.end(SETTINGS["run"]["timeout"] + LIMIT) for child in children]
        took = time.monotonic() - since
        os.kill(struck.pid, signal.SIGKILL)
        ended, _ = struck.end()
        for status, said in ends:
            if status and "another process of this launch" not in said:
                raise LostError(f"an error that does not say why: {said}")
        print(f"  the other ended after {took:.1f} s", flush=True)
        return bool(ended) or any(status for status, _ in ends)  # the main process may write after the last step

    return fault


def one_without_room(life: Life, moments: random.Random, measured: Measured) -> bool:
    """Let the first of two processes write no more; the other must end as well."""
    moment = moments.randrange(measured.operations)
    first, *others = life.start(lambda folder: count_operations(folder, moment, no_room))
    status, said = first.end()
    if status and str(life.folder) not in said:
        raise LostError(f"an error that does not name the place: {said}")
    for child in others:
        other, said = child.end()
        if bool(other) != bool(status):
            raise LostError(f"it ended with {other}, the first with {status}: {said}")
    return status != 0


FAULTS: dict[str, tuple[str, Fault, int]] = {
    "kill": ("SIGKILL at any moment", signalled(signal.SIGKILL, {-signal.SIGKILL}), 1),
    "kill-write": ("SIGKILL before any operation on a file", at_operation(killed), 1),
    "terminate": ("SIGTERM at any moment", signalled(signal.SIGTERM, {-signal.SIGTERM, 2}), 1),
    "read-only": ("a file system that becomes read-only at any operation", at_operation(read_only), 1),
    "no-room": ("files that cannot grow from any operation on (RLIMIT_FSIZE)", at_operation(no_room), 1),
    "full": ("a full disk at any moment", full_disk, 1),
    "damage": ("SIGKILL, and the newest checkpoint cut short or with a flipped bit", damaged, 1),
    "clock": ("SIGKILL, and a clock that goes back and forth by years", clocked, 1),
    "kill-one": ("one of two processes killed", one_of_two(signal.SIGKILL), 2),
    "hang-one": ("one of two processes hung (SIGSTOP)", one_of_two(signal.SIGSTOP), 2),
    "no-room-one": ("one of two processes cannot write", one_without_room, 2),
}  # fmt: skip


def main() -> None:
    """Parse, break, and print rows of the table; status 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = "; ".join(f"{name}: {what}" for name, (what, _, _) in FAULTS.items())
    parser.add_argument("faults", nargs="+", choices=FAULTS, help=told, metavar="fault")
    parser.add_argument("--tries", type=int, default=100, help="of each fault")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where the runs are made and removed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    lost = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        unbroken = {n: Unbroken(Path(folder).resolve(), n) for n in {FAULTS[name][2] for name in given.faults}}
        for name in given.faults:
            what, fault, processes = FAULTS[name]
            tries, losses = unbroken[processes].break_runs(fault, given.tries, random.Random(given.seed))
            print(f"| {what} | {tries} | {tries - len(losses)} | {len(losses)} |", flush=True)
            lost += [f"{name}: {loss}" for loss in losses]
    print(*lost, sep="\n")
    sys.exit(bool(lost))


class Unbroken:
    """A run that nothing happens to, which those that are broken must equal."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.life = Life(folder / f"unbroken-{processes}", processes)
        children = self.life.start(lambda at: count_operations(at, float("inf"), killed))
        ends = [child.end() for child in children]
        if any(status for status, _ in ends):
            raise SystemExit(f"the uninterrupted run failed: {ends}")
        self.measured = Measured(children[0].seconds, int(ends[0][1]))

    def break_runs(self, fault: Fault, tries: int, moments: random.Random) -> tuple[int, list[str]]:
        """Break runs until `tries` faults struck; how many did, and what was lost."""
        losses: list[str] = []
        done = 0
        while done < tries:
            life = Life(self.life.folder.with_name("life"), self.life.processes)
            try:
                while fault(life, moments, self.measured):
                    done += 1
                    life.check()
                    print(f"  {done} of {tries}", flush=True)
                life.compare(self.life)
            except LostError as error:
                done += 1
                losses.append(str(error))
                print(f"  LOST: {error}", flush=True)
            shutil.rmtree(life.folder)
        return done, losses


if __name__ == "__main__":
    main()
