"""What all commands of the line share: how they are called, how they answer, and what a mistake ends with."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from dis import opname
from functools import partialmethod, wraps
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser, capture_parser

Command = Callable[[list[str] | None], None]
COMMANDS: dict[str, Command] = {}
FOR_ALL = (
    "with every command: --quiet shows no progress and no remarks; --json prints the answer for programs, as one line "
    "of JSON. Options may be written with underscores too"
)


@dataclass(frozen=True)
class Answer:
    """What a command has to say.

    Attributes:
        lines: For people; may be told one by one while the command works.
        data: The same for programs, what JSON can hold; paths become text.
        status: What the command exits with.
        complaint: What people should also know, on stderr.
    """

    lines: Iterable[object]
    data: Any
    status: int = 0
    complaint: str | None = None


def files_answer(files: Iterable[object]) -> Answer:
    """That files were written."""
    files = list(files)
    return Answer(files, {"files": files})


def command(function: Callable[[list[str], str], Answer]) -> Command:
    """Make a function the sub-command of its name: what a user has to mend ends it with one message and status 2."""
    name = function.__name__.replace("_", "-")
    prog = f"eden {name}"

    @wraps(function)
    def run(arguments: list[str] | None = None) -> None:
        words = sys.argv[1:] if arguments is None else arguments
        own = [word for word in words if word not in ("--quiet", "--json")]
        if "--quiet" in words:
            _be_quiet()
        try:
            if not {"-h", "--help"}.intersection(own):
                import_module("eden_hf.auto_classes")
            answer = function(own, prog)
            _tell(answer, as_json="--json" in words)
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            if (message := _for_users(error)) is None:
                raise
            print(f"{prog}: {message}", file=sys.stderr)
            sys.exit(2)

    COMMANDS[name] = run
    return run


def _be_quiet() -> None:
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("eden_hf").setLevel(logging.ERROR)
    for library in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ[library] = "1"  # read when they are imported
    if "tqdm" in sys.modules:  # by a script, say
        bar: Any = sys.modules["tqdm"].tqdm
        bar.__init__ = partialmethod(bar.__init__, disable=True)


def _tell(answer: Answer, as_json: bool) -> None:
    for line in [json.dumps(answer.data, default=_plain)] if as_json else answer.lines:
        print(line, flush=True)
    if answer.complaint:
        print(answer.complaint, file=sys.stderr)
    if answer.status:
        sys.exit(answer.status)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, Iterator) else str(value)


def _for_users(error: Exception) -> str | None:
    """What to tell of an error that the user has to mend; none of another, which is a fault of the program.

    The package's own `raise` statements say what to mend. Of libraries' errors, those of files and models that are not
    there do so in their first line.
    """
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    assert traceback is not None
    code = traceback.tb_frame.f_code.co_code
    raised = opname[code[traceback.tb_lasti]] == "RAISE_VARARGS"  # and not by C, called in that line
    ours = raised and traceback.tb_frame.f_globals["__name__"].startswith("eden_hf.")
    if ours and type(error) not in (RuntimeError, ModuleNotFoundError):  # which libraries and Python raise
        return str(error)
    return (str(error) or type(error).__name__).splitlines()[0] if isinstance(error, OSError) else None


def parser_of(name: str) -> ArgumentParser:
    """The parser of a command, without running it."""
    return capture_parser(lambda: COMMANDS[name]([]))


def completion_script(shell: str) -> str:
    """What a shell evaluates to complete `eden`, its commands and their options.

    Raises:
        ImportError: shtab, which writes it, is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ImportError("completion needs shtab: pip install eden_hf[completion]") from error
    eden = argparse.ArgumentParser(prog="eden")
    commands = eden.add_subparsers()
    for name in COMMANDS:
        words = commands.add_parser(name, help=COMMANDS[name].__doc__, add_help=False)
        for action in parser_of(name)._actions:
            if action.option_strings:
                options = [option.replace("_", "-") for option in action.option_strings]
                takes = {"action": "store_true"} if action.nargs == 0 else {"nargs": action.nargs}
                words.add_argument(*options, dest=action.dest, **takes).complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(eden, shell)


def command_parser(prog: str, description: str | None) -> Any:
    """A parser for a command's own options."""
    from eden_hf.training.settings import ConfigParser

    return ConfigParser(prog=prog, description=(description or "").replace("`", ""), epilog=FOR_ALL)


def call(
    function: Callable,
    arguments: list[str],
    prog: str,
    several: Sequence[str] = (),
    by_place: Sequence[str] = (),
) -> Any:
    """Call `function` by a command line.

    Args:
        function: Its parameters are the options, and their descriptions in its docstring the help.
        arguments: The words of the line.
        prog: What messages call the command.
        several: Options that take values one after the other: `--model a b`.
        by_place: Parameters that are given by place, or by name as the others.
    """
    from docstring_parser import parse

    from eden_hf.training.settings import at_home

    about = parse(function.__doc__ or "")
    told = {
        name.strip(): " ".join((parameter.description or "").split())
        for parameter in about.params
        for name in parameter.arg_name.split(",")
    }
    parser = command_parser(prog, about.short_description)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options; later ones override it")
    parameters = signature(function).parameters
    placed = [name for name in by_place if not _is_named(name, arguments)]
    for name in placed:
        parser.add_argument(name, type=parameters[name].annotation, help=told[name])
    for name in several:
        required = parameters[name].default is Parameter.empty
        kind = get_args(parameters[name].annotation)[0]
        kind = get_args(kind)[0] if get_origin(kind) is list else kind  # of `list[str] | None`
        parser.add_argument(f"--{name}", nargs="+", type=kind, required=required, help=told[name])
    switches = [name for name, parameter in parameters.items() if parameter.default is False]
    for name in switches:
        parser.add_argument(f"--{name}", action="store_true", help=told[name])
    parser.add_function_arguments(function, skip={*several, *placed, *switches}, as_group=False)
    for action in parser._actions:
        action.help = told.get(action.dest, action.help)  # also of parameters that are described together
    chosen = parser.instantiate(parser.parse_args(arguments))
    given = {name: at_home(chosen[name]) for name in parameters if not (name in several and chosen[name] is None)}
    return function(**given)


def _is_named(name: str, arguments: Sequence[str]) -> bool:
    """Whether a parameter is given as an option, or may be by a file of options."""
    words = {word.partition("=")[0].replace("-", "_") for word in arguments}
    return bool(words & {f"__{name}", "__config"})
