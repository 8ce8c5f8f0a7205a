"""Parse the command line with cyclopts, from the definitions of parameters, and validate its values with pydantic."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_origin

from cyclopts import App, Group, Parameter, Token
from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from pydantic import SkipValidation, ValidationError
from pydantic.fields import FieldInfo

from deployments.command import AS_OPTION, MORE, Command, flag, is_list, is_place, kind_of
from deployments.help import (
    ARGUMENTS,
    OPTIONS,
    REQUIRED,
    Formatter,
    HelpConsole,
    columns,
    columns_of_commands,
    describe,
    group,
    in_users_language,
)
from musicgen_core.errors import ConfigError
from musicgen_core.escaping import one_line
from musicgen_core.language import LANGUAGES, message, say
from musicgen_core.language import VARIABLE as LANGUAGE_VARIABLE
from musicgen_core.settings import describe_problems, read_yaml

PROGRAM = "musicgen-flows"
COMMAND_LINE = f"uv run {PROGRAM}"
"""How users call this program, which is installed in the project's environment"""
BROKEN_PIPE = 128 + signal.SIGPIPE
"""Exit code of Unix tools whose output nobody reads any more"""

_PANELS = (ARGUMENTS, REQUIRED, OPTIONS)
_LANGUAGE = "--language"
_OF_ALL = ("--help", "--version", "--debug", _LANGUAGE)
"""Options of every command"""

_SIMILARITY = 0.75
"""Minimum similarity (difflib's ratio, 1 if equal) of two names, one of which is taken for a typo of the other."""


class UsageError(Exception):
    """Wrong usage. `problems` lists every problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class _Console(HelpConsole):
    def on_broken_pipe(self) -> None:  # overrides rich's, which would exit with 1
        raise SystemExit(BROKEN_PIPE)


def choose_language(line: Sequence[str]) -> list[str]:
    """Apply `--language` to this process and its children, and return the command line without it.

    Raises:
        UsageError: the language is unknown.
    """
    rest: list[str] = []
    entries = iter(line)
    for entry in entries:
        option, _, value = entry.partition("=")
        if option != _LANGUAGE:
            rest.append(entry)
            continue
        value = value or next(entries, "")
        if value not in LANGUAGES:
            known = ", ".join(LANGUAGES)
            raise UsageError(
                [message("{option}: expected {choices}, not {given!r}", option=option, choices=known, given=value)]
            )
        os.environ[LANGUAGE_VARIABLE] = value
    return rest


def parse(commands: Mapping[str, Command], line: Sequence[str]) -> tuple[Command, dict[str, Any]] | None:
    """Parse a command line.

    Returns:
        The command and the given parameters, validated. None if the request is done already: `--help`, `--version` and
        `--install-completion`.

    Raises:
        UsageError: with every problem at once.
    """
    functions = {_function(command): (name, command) for name, command in commands.items()}
    function, bound, problems = _bind(_app(functions), _joined(line))
    if function in functions:
        _, command = functions[function]
        return command, _checked(command, dict(bound.arguments), problems)
    if problems:
        raise UsageError(problems)
    function(*bound.args, **bound.kwargs)
    return None


def _app(functions: Mapping[Callable[..., Any], tuple[str, Command]]) -> App:
    app = App(
        PROGRAM,
        help=say("Teach MusicGen your style of music, and make music with it."),
        help_epilogue=say(
            "{program} COMMAND --help shows a command's options; --debug shows tracebacks and all logs; "
            "--language ja speaks Japanese.",
            program=COMMAND_LINE,
        ),
        usage=f"{COMMAND_LINE} COMMAND",
        group_commands=Group(say("Commands")),
        help_format="plaintext",
        help_formatter=Formatter(column_specs=columns_of_commands),
        version=lambda: version(PROGRAM),
        console=_Console(),
    )
    for number, (function, (name, command)) in enumerate(functions.items()):
        arguments = "".join(f" {_usage(command, each)}" for each in command.arguments)
        part = App(
            name,
            help=in_users_language(command.summary),
            help_epilogue=say("Example:\n{example}", example=command.example),
            group_arguments=_panel_of(ARGUMENTS),
            help_formatter=Formatter(column_specs=columns),
            usage=f"{COMMAND_LINE} {name}{arguments} [OPTIONS]",
            sort_key=number,
        )
        part.default(function)
        app.command(part)
    app.register_install_completion_command(help=say("Let bash, zsh or fish complete commands and options"))
    for each in (app, *(app[name] for name, _ in functions.values())):
        each["--help"].help, each["--version"].help = say("Show this help."), say("Show the version.")
    return app


def _usage(command: Command, name: str) -> str:
    if name == command.repeated:
        return f"{name.upper()} …"
    return f"[{name.upper()} …]" if is_list(command.fields[name]) else name.upper()


def _function(command: Command) -> Callable[..., Any]:
    """Return a function whose signature has a command's parameters, for cyclopts to inspect. It is never called."""

    def function() -> None: ...

    given = [_parameter(command, name, info) for name, info in command.fields.items()]
    if command.repeated:
        given += _repeated(command)
    if command.with_config:
        config = Parameter(
            help=say("YAML file of settings; options override it"), metavar="FILE.yaml", group=_panel_of(OPTIONS)
        )
        given.append(_keyword("config", Annotated[Path, config, *_AS_TEXT], None))
    given.sort(key=lambda parameter: parameter.kind)
    function.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]
    return function


def _repeated(command: Command) -> list[inspect.Parameter]:
    """Return the parameters, beside its own, of the argument that may be repeated: more of it, and an option."""
    more = Annotated[Path, Parameter(show=False), *_AS_TEXT]
    look = Parameter(
        name=flag(command.repeated),
        help=say("The same as {argument}, as often as needed", argument=command.repeated.upper()),
        negative="",
        metavar="TEXT",
        group=_panel_of(OPTIONS),
    )
    return [
        inspect.Parameter(MORE, inspect.Parameter.VAR_POSITIONAL, annotation=more),
        _keyword(AS_OPTION, Annotated[list[Path], look, *_AS_TEXT], None),
    ]


def _parameter(command: Command, name: str, info: FieldInfo) -> inspect.Parameter:
    kind, several = kind_of(info), is_list(info)
    common: dict[str, Any] = {
        "help": describe(command, name),
        "show_default": False if info.default in (None, "", (), []) else " ".join if several else True,
    }
    if name in command.arguments:
        takes_rest = several and name != command.repeated
        where = inspect.Parameter.VAR_POSITIONAL if takes_rest else inspect.Parameter.POSITIONAL_ONLY
        look = Parameter(group=_panel_of(ARGUMENTS), **common)
        hint = Path if kind is str or several else kind
        default = inspect.Parameter.empty if takes_rest else None
        return inspect.Parameter(name, where, default=default, annotation=Annotated[hint, look, *_AS_TEXT])
    names = [command.short[name]] if name in command.short else []
    if not (kind is bool and info.default is not False):
        common["negative"] = ""
    if kind is str or several:
        common["metavar"] = "TEXT"
    look = Parameter(name=[*names, flag(name)], group=_panel(command, name), **common)
    hint = Path if is_place(info) else str if several else kind  # shells complete file names
    as_given: Any = list[hint] if several else hint  # type: ignore[valid-type]
    return _keyword(name, Annotated[as_given, look, *_AS_TEXT], info.default)


def _panel(command: Command, name: str) -> Group:
    """Return the help panel of an option."""
    if name in command.required:
        return _panel_of(REQUIRED)
    title, titles = command.titles.get(name), list(dict.fromkeys(command.titles.values()))
    return group(title, len(_PANELS) + titles.index(title)) if title else _panel_of(OPTIONS)


def _panel_of(title: str) -> Group:
    return group(title, _PANELS.index(title))


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _as_text(kind: Any, tokens: Sequence[Token]) -> Any:
    """Return a value unchanged: pydantic validates all of them together."""
    values = [token.value for token in tokens]
    return values if get_origin(kind) is list else values[-1]


_AS_TEXT = (
    Parameter(
        converter=_as_text,
        required=False,  # missing values are reported with the other problems
        allow_repeating=True,  # the last one counts
        json_list=False,
        json_dict=False,
    ),
    SkipValidation(),  # validation value by value would stop at the first problem
)


def _joined(line: Sequence[str]) -> list[str]:
    """Join a value that begins with a hyphen and holds a space, `- slow`, with the option before it."""
    joined: list[str] = []
    for entry in line:
        if entry.startswith("-") and " " in entry and joined and joined[-1].startswith("-") and "=" not in joined[-1]:
            joined[-1] += f"={entry}"
        else:
            joined.append(entry)
    return joined


def _bind(app: App, line: list[str]) -> tuple[Callable[..., Any], inspect.BoundArguments, list[str]]:
    """Return the function of the command, its arguments, and the problems.

    cyclopts stops at the first problem. The entry that caused it is removed, and the rest is parsed again.
    """
    problems: list[str] = []
    while True:
        try:
            function, bound, _ = app.parse_args(line, print_error=False, exit_on_error=False)
            return function, bound, problems
        except CycloptsError as error:
            problem, rest = _without(error, line)
            problems += problem
            if rest == line:
                raise UsageError(problems) from error
            line = rest


def _without(error: CycloptsError, line: list[str]) -> tuple[list[str], list[str]]:
    """Return descriptions of the problem, and the line without the entry that caused it."""
    if isinstance(error, UnknownOptionError):
        return _without_option(error, line)
    if isinstance(error, UnknownCommandError):
        assert error.app is not None and error.unused_tokens
        given = error.unused_tokens[0]
        if given.startswith("-"):
            return [_no_option(given, _OF_ALL)], line
        names = [name for name in error.app if not name.startswith("-")]
        others = _meant(given, names) or message("; there are {names}", names=", ".join(names))
        return [message("there is no command {given!r}{others}", given=one_line(given), others=others)], line
    if isinstance(error, UnusedCliTokensError):
        unused = error.unused_tokens or []
        for entry in unused:
            line = _replaced(line, entry, [])
        return [message("{argument!r} is one argument too many", argument=one_line(entry)) for entry in unused], line
    if isinstance(error, MissingArgumentError) and error.keyword:
        return [message("{option}: expected a value", option=error.keyword)], _replaced(line, error.keyword, [])
    if isinstance(error, CoercionError) and error.token and error.argument and error.argument.is_flag():
        flag = error.token.keyword or ""
        given = one_line(error.token.value)
        problem = message("{option}: expected no value, not {given!r}", option=flag, given=given)
        return [problem], _replaced(line, flag, [])
    error.verbose = False
    return [" ".join(str(error).split())], line


def _without_option(error: UnknownOptionError, line: list[str]) -> tuple[list[str], list[str]]:
    """Describe an unknown option. A similar name replaces it in the line, so that its value is validated, too."""
    option, _, value = (error.token.keyword or error.token.value).partition("=")
    names = [name for argument in error.argument_collection for name in argument.names]
    arguments = [name for name in names if not name.startswith("-")]
    if (argument := option.lstrip("-").replace("-", "_").upper()) in arguments:
        usage = " ".join((COMMAND_LINE, *(error.command_chain or ()), *arguments))
        problem = message(
            "{option} is no option but the argument {argument}: {usage} [OPTIONS]",
            option=one_line(option),
            argument=argument,
            usage=usage,
        )
        return [problem], _replaced(line, option, [value] if value else [], with_value=False)
    options = [name for name in names if name.startswith("-")]
    return [_no_option(option, [*options, *_OF_ALL])], _replaced(line, option, similar(option, options))


def _no_option(given: str, names: Sequence[str]) -> str:
    return message("there is no option {option}{meant}", option=one_line(given), meant=_meant(given, names))


def _meant(given: str, names: Sequence[str]) -> str:
    found = similar(given, names)
    return message("; did you mean {name}?", name=found[0]) if found else ""


def similar(given: str, names: Iterable[str]) -> list[str]:
    """Return the probably intended name, if any: the only one with this prefix, or else the most similar one."""
    plain, by_name = given.lstrip("-"), {name.lstrip("-"): name for name in names}
    begun = [name for name in by_name if name.startswith(plain)]
    found = begun if len(begun) == 1 else get_close_matches(plain, by_name, n=1, cutoff=_SIMILARITY)
    return [by_name[name] for name in found]


def _replaced(line: list[str], entry: str, names: Sequence[str], with_value: bool = True) -> list[str]:
    """Return the line with `names` in place of the last occurrence of `entry`.

    Args:
        with_value: whether the `=VALUE` of an option is kept.
    """
    for place in reversed(range(len(line))):
        option, *value = line[place].split("=", 1)
        if entry in (line[place], option):
            kept: list[str] = value if with_value else []
            return [*line[:place], *("=".join((name, *kept)) for name in names), *line[place + 1 :]]
    return line


def _checked(command: Command, given: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the validated parameters, including those of the YAML file.

    Raises:
        UsageError: there are problems, these or others.
    """
    if config := given.pop("config", None):
        try:
            given = {**read_yaml(config), **given}
        except ConfigError as error:
            problems.append(str(error))
    given, fields = command.gathered(given), command.fields
    for name, info in fields.items():
        if is_place(info) and (given.get(name) == "" or (is_list(info) and "" in given.get(name, ()))):
            problems.append(
                message(
                    "{option} is empty: give a value, and check the shell variable that it may come from",
                    option=command.shown(name),
                )
            )
    missing = [name for name in command.needed if given.get(name) is None]
    problems += [message("{parameter} is missing", parameter=command.shown(name)) for name in missing]
    checked: dict[str, Any] = {}
    for kind in (command.form, *command.groups.values()):
        values = {name: given[name] for name in kind.model_fields if name in given and name in fields}
        try:
            validated = kind(**values)
            found = {name: getattr(validated, name) for name in values}
            checked |= {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
        except ValidationError as error:
            problems += describe_problems(error, command.shown)
    problems += [message("there is no setting {name}", name=name) for name in given if name not in fields]
    if problems:
        raise UsageError(problems)
    return {name: checked[name] for name in given}
