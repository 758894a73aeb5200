"""What the settings of any run are, and how they are read: YAML files and options, checked to the last section."""

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, get_loader, set_loader

from eden_hf.data.text_files import read_text, yaml_tree


@dataclass
class Settings:
    """What the settings of any run can do. Its dataclasses have a section `run` and a default for everything.

    Text that begins with `~/`, as a path in YAML may, is of the home folder.
    """

    def __post_init__(self) -> None:
        for section in filter(dataclasses.is_dataclass, vars(self).values()):
            for name, value in vars(section).items():
                setattr(section, name, at_home(value))

    def to_yaml(self) -> str:
        """The resolved settings, in the form that `--config` reads back."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)

    def differences(self, saved: "Settings") -> dict[str, str]:
        """`saved value -> this value` by key, for each setting outside `run` that is not the same."""
        old, new = (dict(_leaves(dataclasses.asdict(settings))) for settings in (saved, self))
        keys = [key for key in {**old, **new} if not key.startswith("run.")]
        return {key: f"{old.get(key)!r} -> {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)}

    def may_change(self, key: str) -> bool:
        """Whether a setting outside `run` may be another on resuming."""
        return False


SettingsType = TypeVar("SettingsType", bound=Settings)


def parse_settings(
    kind: type[SettingsType], arguments: list[str] | None = None, **parser_options: Any
) -> tuple[SettingsType, bool]:
    """Settings of a run from `--config FILE` and `--dotted.key VALUE` options, and whether to `--resume` it.

    Args:
        kind: The dataclass of all settings.
        arguments: The command line; the process's own by default.
        parser_options: For `jsonargparse.ArgumentParser`.

    Raises:
        SystemExit: a setting is unknown or has a wrong value; the message names it and the mend, or the nearest.
    """

    class Parser(_SettingsParser):
        names = _names(kind)
        listed = _listed(kind)

    parser = Parser(description=kind.__doc__, **parser_options)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; later options override it")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in run.output_dir")
    parser.add_class_arguments(kind, None)
    parsed = parser.parse_args(arguments)
    try:
        _refuse_wrong(kind, parsed)
        settings = parser.instantiate(parsed)
        return kind(**{f.name: settings[f.name] for f in dataclasses.fields(kind)}), parsed.resume
    except ValueError as error:  # settings that do not fit each other
        parser.error(str(error), error)


def _listed(kind: Any) -> dict[str, Any]:
    """The settings that are lists of sections, each with the dataclass of these."""
    hints = get_type_hints(kind).items()
    return {name: item for name, hint in hints for item in get_args(hint) if dataclasses.is_dataclass(item)}


def _refuse_wrong(kind: Any, given: Mapping[str, Any] | Namespace, section: str = "") -> None:
    """Raise a `ValueError` where a setting is `null` that cannot be, which jsonargparse lets pass.

    Or where one of listed sections has a wrong value: by its number, which it does not know itself.
    """
    for name, hint in get_type_hints(kind).items():
        value = given[name]
        if dataclasses.is_dataclass(hint):
            _refuse_wrong(hint, value, f"{section}{name}.")
        elif value is None:
            require(type(None) in get_args(hint), f"{section}{name}", value, "given, or left out")
        elif name in _listed(kind):
            for number, item in enumerate(value):
                if isinstance(item, Namespace):  # not those of the defaults
                    _refuse_wrong_item(_listed(kind)[name], item.get("init_args", item), name, number)


def _refuse_wrong_item(kind: Any, item: Namespace, name: str, number: int) -> None:
    _refuse_wrong(kind, item, f"{name}.{number}.")
    try:
        kind(**item.as_dict())
    except ValueError as error:
        raise ValueError(str(error).replace(f"`{name}.", f"`{name}.{number}.")) from error


def read_settings(kind: type[SettingsType], path: str | Path) -> SettingsType:
    """Settings from a YAML file, such as the `config.yaml` that each run saves."""
    return parse_settings(kind, [f"--config={path}"], exit_on_error=False)[0]


def _load(text: str) -> Any:
    """YAML as jsonargparse reads it, of texts that its parser in C can bear: that one has no bounds."""
    yaml_tree(text)
    return get_loader("yaml")(text)


_NO_YAML = (yaml.YAMLError, ValueError, AttributeError, LookupError)  # as `parse_yaml`
set_loader("bounded yaml", _load, _NO_YAML)


class ConfigParser(ArgumentParser):
    """Options with hyphens, or underscores; configuration files whatever the locale, and in any usual encoding."""

    def __init__(self, *arguments: Any, parser_mode: str = "bounded yaml", **options: Any) -> None:
        super().__init__(*arguments, parser_mode=parser_mode, **options)

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """As jsonargparse does, of options that are written with hyphens."""
        words = sys.argv[1:] if args is None else args
        try:
            return super().parse_args([re.sub(r"^--[^=]+", _underscored, word) for word in words], *others, **options)
        except (TypeError, AttributeError, LookupError, RuntimeError) as error:  # which jsonargparse does not foresee
            self.error(f"a value of a shape that no option takes ({error})", error)

    def instantiate(self, *arguments: Any, **options: Any) -> Any:
        """As jsonargparse does; a value of a type that what is made does not foresee is an error of the user's."""
        try:
            return super().instantiate(*arguments, **options)
        except TypeError as error:
            self.error(f"a setting has a value that it does not take ({error})", error)

    def format_help(self, *formatter: Any) -> str:
        """The help, of options that are written with hyphens."""
        return _hyphened(super().format_help(*formatter))

    def format_usage(self, *formatter: Any) -> str:
        """The usage, of options that are written with hyphens."""
        return _hyphened(super().format_usage(*formatter))

    def _apply_actions(self, cfg: Any, parent_key: str = "", *others: Any, **options: Any) -> Namespace:
        """As jsonargparse does, but for sections of no option that hold nothing: those it drops."""
        applied = super()._apply_actions(cfg, parent_key, *others, **options)
        for key, value in applied.items(branches=True):
            name = f"{parent_key}.{key}" if parent_key else key
            if isinstance(value, Namespace) and not value and name not in (self.groups or ()):
                raise TypeError(f"Option '{name}' is not accepted")
        return applied

    def parse_path(self, path: Any, ext_vars: Any = None, **options: Any) -> Any:
        """As jsonargparse does, but for the text's encoding; paths inside are relative to the working folder."""
        try:
            text = read_text(path)
        except ValueError as error:
            self.error(str(error), error)
        try:
            self._check_shape(yaml_tree(text))
        except ValueError as error:
            self.error(f"{path}: {error}", error)
        return self.parse_string(text, path=Path(path).name, ext_vars=ext_vars, **options)

    def _check_shape(self, tree: yaml.Node | None, section: str = "") -> None:
        """Refuse what jsonargparse does not foresee of a file, or takes for the name of another to read."""
        if not isinstance(tree, yaml.MappingNode):
            told = f"`{section[:-1]}`" if section else "it"
            raise ValueError(f"{told} holds no settings, which are lines of `name: value`")
        switches = [action.dest for action in self._actions if action.nargs == 0 and action.default is False]
        lists = [action.dest for action in self._actions if action.nargs == "+"]
        for key, value in tree.value:
            name = f"{section}{key.value}"
            if name in (self.groups or ()):
                self._check_shape(value, f"{name}.")
            if name in switches and not value.tag.endswith(":bool"):
                raise ValueError(f"`{name}` takes true or false")
            if name in lists and not (isinstance(value, yaml.SequenceNode) or value.tag.endswith(":null")):
                raise ValueError(f"`{name}` takes a list: `{name}: [first, second]`")


def _hyphened(text: str) -> str:
    return re.sub(r"(?<![\w-])--[\w.]+", lambda option: option[0].replace("_", "-"), text)


def _underscored(option: re.Match[str]) -> str:
    return "--" + option[0][2:].replace("-", "_")


class _SettingsParser(ConfigParser):
    """Names the nearest known setting where one is unknown. jsonargparse makes more of its kind for list items."""

    names: ClassVar[dict[str, str]]  # of settings: the whole name, or its last word -> the whole name
    listed: ClassVar[dict[str, Any]]  # settings that are lists of sections -> the dataclass of these

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """As of all our parsers; what is wrong with one of listed sections is told with its number."""
        words = sys.argv[1:] if args is None else args
        for option, following in pairwise([*words, ""]):
            name, equals, value = option.removeprefix("--").partition("=")
            if name in self.listed:
                try:
                    with suppress(*_NO_YAML):  # which is told in what follows
                        self._check_items({name: _load(value if equals else following)})
                except TypeError as error:
                    self.error(str(error), error)
        return super().parse_args(words, *others, **options)

    def _apply_actions(self, cfg: Any, *others: Any, **options: Any) -> Namespace:
        """As of all our parsers; likewise."""
        self._check_items(cfg)
        return super()._apply_actions(cfg, *others, **options)

    def _check_items(self, settings: Mapping[str, Any] | Namespace) -> None:
        for name in self.listed.keys() & settings.keys():
            for number, item in enumerate(settings[name] if isinstance(settings[name], list) else []):
                self._check_item(self.listed[name], item, f"{name}.{number}")

    def _check_item(self, kind: Any, item: Any, name: str) -> None:
        """Raise a `TypeError` that names a section of a list, unless `item` may become one."""
        if isinstance(item, (kind, Namespace)):  # which was checked
            return
        if not isinstance(item, dict) or not item:
            raise TypeError(f"`{name}` holds no settings, which are lines of `name: value`, got {item!r}")
        parser = type(self)(exit_on_error=False)
        parser.add_class_arguments(kind, None)
        try:
            parser.parse_object(item)
        except ArgumentError as error:
            raise TypeError(f"`{name}`: {str(error).strip()}") from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2 and the message."""
        if "Did you mean" in message:  # as an item of a list has told
            super().error(message, ex)
        unknown = re.search(r"(?:ption '|unrecognized arguments: --)([\w.]+)", message)
        words = (unknown[1], unknown[1].rsplit(".", 1)[-1]) if unknown else ()
        nearest = [match for word in words for match in difflib.get_close_matches(word, self.names, n=1, cutoff=0.7)]
        super().error(f"{message}\nDid you mean '{self.names[nearest[0]]}'?" if nearest else message, ex)


def _names(kind: type[Settings]) -> dict[str, str]:
    """The whole name of each setting of `kind`, by itself and by its last word."""
    defaults = kind()
    names: dict[str, str] = {}
    for section in dataclasses.fields(defaults):
        value = getattr(defaults, section.name)
        if isinstance(value, list):
            names |= {item.name: f"{section.name}[].{item.name}" for item in dataclasses.fields(value[0])}
    listed = tuple(f"{name.partition('[]')[0]}." for name in names.values())
    whole = [key for key, _ in _leaves(dataclasses.asdict(defaults)) if not key.startswith(listed)]
    names |= {key.rsplit(".", 1)[-1]: key for key in whole} | {key: key for key in whole}
    return names | {section.name: section.name for section in dataclasses.fields(defaults)}


def at_home(value: Any) -> Any:
    """A path at `~/`, also after `random:` and in lists, with the home folder's own; anything else as it is."""
    if isinstance(value, list):
        return [at_home(item) for item in value]
    if isinstance(value, Path):
        return value.expanduser()
    if isinstance(value, str):
        return re.sub(r"^(random:)?~/", lambda start: f"{start[1] or ''}{Path.home()}/", value)
    return value


def require(condition: bool, name: str, value: Any, mend: str) -> None:
    """Raise a `ValueError` that names a setting, its value and the mend, unless `condition` holds."""
    if not condition or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"`{name}` must be {mend}, got {value!r}")


def _plain(value: Any) -> Any:
    """`value` with tuples as lists, which YAML can hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _leaves(settings: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested settings; of lists those of sections alone are taken apart."""
    for key, value in settings.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)
