"""Pretraining of which torchrun must start the processes again: rank 1 kills itself at its fifth step, the first time.

torchrun --nproc_per_node 2 --max-restarts 1 -m tests.training.killed_program SETTINGS
"""

import os
import signal
import sys

from eden_hf.training.arguments import read_arguments
from eden_hf.training.monitors import Monitor
from eden_hf.training.pretraining import pretrain

log = Monitor.log


def log_or_die(monitor, where, learning_rate):
    """As `Monitor.log`, which every process calls."""
    if where["step"] == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    log(monitor, where, learning_rate)


if __name__ == "__main__":
    Monitor.log = log_or_die
    pretrain(read_arguments(sys.argv[1]))
