"""Programs launched as users launch them, with the child's whole output shown if it fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import transformers

REPOSITORY = Path(__file__).parents[1]
#: One thread a process: two processes on two cores must not fight, and sums must not depend on the number of threads.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests' / 'offline'}",
    "HF_HUB_OFFLINE": "1",
    "PYTHONFAULTHANDLER": "1",
}
#: Snippets import it as users do; transformers 5.17 has it at the top only where torchvision is installed.
takes_auto_image_processor = pytest.mark.skipif(
    hasattr(transformers.AutoImageProcessor, "_backends"),
    reason="this transformers gives AutoImageProcessor only with torchvision",
)


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    """Run `command` to its end and return it; its output is in the error if it does not end with status 0."""
    options = {"cwd": REPOSITORY, "env": ENVIRONMENT, **options}
    seconds = options.pop("timeout", 300)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=seconds)
            status = f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            # With the workers of a launcher, which have sessions of their own; each tells where it was.
            programs = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for program in programs:
                program.send_signal(signal.SIGABRT)
            for program in psutil.wait_procs(programs, timeout=5)[1]:
                program.kill()
            stdout, stderr = process.communicate()
            status = f"did not end within {seconds} s"
    assert status == "ended with 0", f"{command} {status}\n{stdout}\n{stderr}"
    return subprocess.CompletedProcess(command, 0, stdout, stderr)


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Run this interpreter on `arguments`."""
    return run([sys.executable, *arguments], **options)


def terminated(program: str, *arguments: str | Path, once: Callable[[], object], group: bool = False) -> int:
    """The exit status of a Python program that gets SIGTERM `once` something holds; none of its processes is left.

    The program alone gets it, or, as `timeout` does it, all of its `group`.
    """
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not once():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM) if group else process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=120)
    while _group_lives(process.pid):  # the system may take a moment to bury the others
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.1)
    return status


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def torchrun(processes: int, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Run a program in `processes` processes on this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return python(*launcher, *arguments, **options)
