"""The command line's help, in the user's language."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve
from cyclopts import Group
from cyclopts.help import ColumnSpec, DefaultFormatter, DescriptionRenderer, HelpEntry, NameRenderer
from cyclopts.help.inline_text import InlineText
from cyclopts.help.specs import CommandNameRenderer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.containers import Lines, Renderables
from rich.text import Text

from deployments.command import Command
from deployments.console import wrapped
from musicgen_core.language import message, say, stored_message, translated

ARGUMENTS, REQUIRED, OPTIONS = message("Arguments"), message("Required"), message("Options")
"""Titles of the first panels, in their order"""
_NAMES_WIDTH = 34
"""Width of the column of names, in which the longest option with its metavar fits unbroken at 80 characters a line."""


def group(title: str, place: int) -> Group:
    """Return a panel of the help page, at a position among the panels."""
    return Group(in_users_language(title), sort_key=place)


def describe(command: Command, name: str) -> str:
    """Return the description of a parameter."""
    return in_users_language(_description(command, name))


def in_users_language(text: str) -> str:
    """Return the translation of a text from the definitions of commands and parameters, which are in English."""
    return translated(stored_message(text))


def texts_of_help(commands: Mapping[str, Command]) -> set[str]:
    """Return the texts of the definitions that the help shows. No call of `message` marks them."""
    texts = {command.summary for command in commands.values()}
    for command in commands.values():
        texts |= {_description(command, name) for name in command.fields} | set(command.titles.values())
    return texts - {""}


def _description(command: Command, name: str) -> str:
    text = command.fields[name].description or ""
    return without_default(text) if name in command.needed else text


def without_default(text: str) -> str:
    """Return a description without its default, which only forms have if the command line requires a value."""
    return re.split(r"; by default|\. Default:", text)[0]


def columns(console: Console, options: ConsoleOptions, entries: Sequence[HelpEntry]) -> tuple[ColumnSpec, ...]:
    """Return the columns of a panel: names and descriptions."""
    return _columns(NameRenderer(_NAMES_WIDTH))


def columns_of_commands(
    console: Console, options: ConsoleOptions, entries: Sequence[HelpEntry]
) -> tuple[ColumnSpec, ...]:
    """Return the columns of the list of commands."""
    return _columns(CommandNameRenderer(_NAMES_WIDTH))


def _columns(renderer: NameRenderer | CommandNameRenderer) -> tuple[ColumnSpec, ...]:
    names = ColumnSpec(renderer=renderer, style="cyclopts.name", max_width=_NAMES_WIDTH)
    return names, ColumnSpec(renderer=_Described(), overflow="fold")


class HelpConsole(Console):
    """The console that cyclopts prints help to. Prose is wrapped like all other prose in the terminal."""

    def print(self, *objects: Any, **given: Any) -> None:
        # rich joins texts to one of its own class, but leaves renderables as they are.
        super().print(*(Renderables([_as_prose(each)]) for each in objects), **given)


class Formatter(DefaultFormatter):
    """Shows the usage in the user's language."""

    def render_usage(self, console: Console, options: ConsoleOptions, usage: object) -> None:
        if usage:
            console.print(Text(say("Usage: {usage}", usage=str(usage).strip()), "bold"))


class _Described(DescriptionRenderer):
    """Renders descriptions with choices and default, in the user's language."""

    def __call__(self, entry: HelpEntry) -> RenderableType:
        shown = _as_prose(super().__call__(evolve(entry, choices=(), default=None)))
        assert isinstance(shown, _Prose)
        if entry.choices:
            choices = Text(say("[choices: {choices}]", choices=", ".join(entry.choices)), "cyclopts.choices")
            shown.append(" ").append_text(choices)
        if entry.default is not None:
            default = Text(say("[default: {default}]", default=entry.default), "cyclopts.default")
            shown.append(" ").append_text(default)
        return shown


class _Prose(Text):
    """Text that is broken between words, by the rules of Japanese. rich breaks it anywhere between blanks."""

    def wrap(self, console: Console, width: int, *_: Any, **__: Any) -> Lines:
        """Return the lines. A word that is longer than a line, such as a path, is broken as rich does it."""
        lines = Lines()
        for part in (part for line in self.split(allow_blank=True) for part in wrapped(line, width)):
            lines.extend([part] if cell_len(part.plain) <= width else part.wrap(console, width, overflow="fold"))
        return lines


def _as_prose(shown: Any) -> Any:
    """Return a text of cyclopts as prose; other objects, such as panels, stay as they are."""
    text = shown.primary_renderable if isinstance(shown, InlineText) and not shown.texts else shown
    if not isinstance(text, Text):
        return shown
    prose = _Prose(style=text.style).append_text(text)
    return prose.append("\n") if isinstance(shown, InlineText) and shown.force_empty_end else prose
