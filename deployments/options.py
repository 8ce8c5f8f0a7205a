"""Command-line options made from a flow's parameters, so that both have the same names, defaults and checks."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from musicgen_core.config import describe_problems, read_yaml
from musicgen_core.errors import ConfigError

_CONFIG = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class UsageError(Exception):
    """Wrong usage; `problems` has all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class FlowOptions:
    """How a flow's parameters look on the command line.

    Attributes:
        positionals: parameters that are arguments, all of them required.
        required: parameters that are options and required.
        short: other names for options.
        with_config: whether `--config FILE.yaml` gives settings.
    """

    positionals: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    short: Mapping[str, str] = field(default_factory=dict)
    with_config: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError([message])


def parse(command: str, function: Callable[..., Any], options: FlowOptions, arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments → the parameters that were given, checked.

    Raises:
        UsageError: with every problem at once.
        SystemExit: `--help` was asked for, and answered.
    """
    fields = _fields(function)
    parser = _parser(command, inspect.getdoc(function) or "", fields, options)
    namespace, unknown = parser.parse_known_intermixed_args(arguments)  # options may stand between arguments
    given = vars(namespace)
    problems = describe_unknown(unknown)
    if options.with_config and (config := given.pop("config", None)):
        try:
            given = {**read_yaml(config), **given}
        except ConfigError as error:
            problems.append(str(error))
    for name, (kind, info) in fields.items():
        if kind is str and not info.metadata:  # a text with a check of its own may be empty
            problems += describe_empty(_shown(name, options), given.get(name))
    needed = (*options.positionals, *options.required)
    problems += [f"{_shown(name, options)} is missing" for name in needed if given.get(name) is None]
    model = _model(function, fields)
    try:
        checked = model(**given)
    except ValidationError as error:
        problems += describe_problems(error, lambda name: _shown(name, options) if name in fields else name)
        checked = None
    if problems or checked is None:
        raise UsageError(problems)
    return {name: getattr(checked, name) for name in given}


def _fields(function: Callable[..., Any]) -> dict[str, tuple[Any, FieldInfo]]:
    """name → (type without None, pydantic's field)."""
    fields = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        info = FieldInfo.from_annotated_attribute(parameter.annotation, parameter.default)
        kinds = [kind for kind in get_args(info.annotation) if kind is not NoneType]
        optional = NoneType in get_args(info.annotation)
        fields[name] = (kinds[0] if optional and len(kinds) == 1 else info.annotation, info)
    return fields


def _model(function: Callable[..., Any], fields: Mapping[str, tuple[Any, FieldInfo]]) -> type[BaseModel]:
    parameters = inspect.signature(function, eval_str=True).parameters
    definitions: dict[str, Any] = {name: (parameters[name].annotation, parameters[name].default) for name in fields}
    return create_model("Parameters", __config__=_CONFIG, **definitions)


def _parser(
    command: str, description: str, fields: Mapping[str, tuple[Any, FieldInfo]], options: FlowOptions
) -> argparse.ArgumentParser:
    parser = _Parser(f"musicgen-flows {command}", description=description, allow_abbrev=False)
    for name in options.positionals:
        help_text = (fields[name][1].description or "").replace("%", "%%").split("; by default the variable")[0]
        parser.add_argument(name, nargs="?", metavar=name.upper(), default=argparse.SUPPRESS, help=help_text)
    for name, (kind, info) in fields.items():
        if name in options.positionals:
            continue
        flags = [_flag(name), *([options.short[name]] if name in options.short else [])]
        default = "" if info.default in (None, False) else f" (default {info.default})"
        common: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "help": ((info.description or "") + default).replace("%", "%%"),
        }
        if kind is bool:
            action = "store_true" if info.default is False else argparse.BooleanOptionalAction
            parser.add_argument(*flags, action=action, **common)
        elif get_origin(kind) is list:
            parser.add_argument(*flags, action="append", metavar="TEXT", **common)
        else:
            parser.add_argument(*flags, metavar="X", **common)
    if options.with_config:
        parser.add_argument(
            "--config", metavar="FILE.yaml", default=argparse.SUPPRESS, help="settings; options come first"
        )
    return parser


def describe_empty(option: str, value: str | None) -> list[str]:
    """A problem if an empty text was given, as a shell's variable that is not set is: it would count as not given."""
    return (
        [f"{option} is empty: give a value, and check the shell variable that it may come from"] if value == "" else []
    )


def describe_range(option: str, value: int | None, least: int, most: int) -> list[str]:
    """A problem if a number that was given is out of its range."""
    if value is None or least <= value <= most:
        return []
    return [f"{option}: should be {f'{least} or more' if value < least else f'at most {most}'}, not {value}"]


def describe_unknown(arguments: Sequence[str]) -> list[str]:
    """A problem for each argument that a parser did not know."""
    return [
        f"there is no option {argument.split('=')[0]}"
        if argument.startswith("-")
        else f"{argument!r} is one argument too many"
        for argument in arguments
    ]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shown(name: str, options: FlowOptions) -> str:
    return name.upper() if name in options.positionals else options.short.get(name, _flag(name))
