"""The `eden` command. Each sub-command is the function that the script of the same purpose calls.

    eden pretrain --config configs/adam_resnet18_small.yaml     # scripts/pretrain.py
    eden crops --source images/ --output crops/                 # scripts/build_anatomy_crops.py
"""

import sys
from collections.abc import Callable

from .data.anatomy_crops import main as crops
from .training.pretraining import main as pretrain

COMMANDS: dict[str, Callable[[list[str] | None], None]] = {"pretrain": pretrain, "crops": crops}


def main():
    """Run `eden COMMAND [options]`; exits with status 2 and the list of commands if there is none of that name."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        usage = "usage: eden {" + ",".join(COMMANDS) + "} [options]\n\n"
        lines = [f"  {command:10} {function.__doc__.splitlines()[0]}" for command, function in COMMANDS.items()]
        asked = name in ("-h", "--help")
        print(usage + "\n".join(lines), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else f"eden: unknown command {name!r}")
    COMMANDS[name](arguments)
