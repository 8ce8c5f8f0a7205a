"""The definition of a command: its parameters, and their form on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import NoneType
from typing import Any, Union, get_args, get_origin

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from flows.fields import Places
from flows.parameters import groups_in
from musicgen_core.settings import Settings

MORE, AS_OPTION = "more_of_it", "as_option"
"""Parameters, beside its own, of the argument that may be repeated"""


@dataclass(frozen=True)
class Command:
    """A command, and the form of its parameters on the command line.

    Attributes:
        summary: one line of help.
        function: `module:name` of the function to call with the given parameters. Imported when the command runs.
        form: the model whose fields are the parameters and groups of parameters.
        example: one or more working command lines.
        arguments: names of the positional arguments. A list takes the rest; all others are required.
        required: names of the required options.
        short: alternative names of options.
        with_config: whether `--config FILE.yaml` provides settings.
        repeated: name of an argument, a list, that may be given several times before the last one, or as an option.
        continues: whether the same command, run again, continues after an interruption.
    """

    summary: str
    function: str
    form: type[Settings]
    example: str
    arguments: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    short: Mapping[str, str] = field(default_factory=dict)
    with_config: bool = False
    repeated: str = ""
    continues: bool = False

    @cached_property
    def groups(self) -> dict[str, type[Settings]]:
        return groups_in(self.form)

    @cached_property
    def fields(self) -> dict[str, FieldInfo]:
        """All parameters by name, arguments first. Groups are flattened."""
        fields = {name: info for name, info in self.form.model_fields.items() if name not in self.groups}
        for kind in self.groups.values():
            fields |= kind.model_fields
        return {name: fields[name] for name in dict.fromkeys((*self.arguments, *fields))}

    @cached_property
    def titles(self) -> dict[str, str]:
        """The title of its group, by name of the field."""
        return {
            name: str(kind.model_config.get("title")) for kind in self.groups.values() for name in kind.model_fields
        }

    @cached_property
    def needed(self) -> list[str]:
        arguments = [name for name in self.arguments if name == self.repeated or not is_list(self.fields[name])]
        return [*arguments, *self.required]

    def gathered(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return parameters with all values of the repeated argument in its list; the last argument stands alone."""
        if not self.repeated:
            return given
        places = [given.pop(name) for name in self.arguments if given.get(name) is not None]
        places += given.pop(MORE, ())
        options = list(given.pop(AS_OPTION, ()))
        if places and (len(places) > 1 or options):
            given[self.arguments[-1]] = places.pop()
        return ({self.repeated: [*places, *options]} if places or options else {}) | given

    def shown(self, name: str) -> str:
        """Return the name of a parameter on the command line. Other names are returned unchanged."""
        if name not in self.fields:
            return name
        return name.upper() if name in self.arguments else self.short.get(name, flag(name))


def kind_of(info: FieldInfo) -> Any:
    """Return the type of a field, without its `None`."""
    kinds = [kind for kind in get_args(info.annotation) if kind is not NoneType]
    return Union[tuple(kinds)] if NoneType in get_args(info.annotation) else info.annotation  # noqa: UP007


def is_list(info: FieldInfo) -> bool:
    """Return whether a field holds several values."""
    return get_origin(kind_of(info)) in (list, tuple)


def is_place(info: FieldInfo) -> bool:
    """Return whether a field is the name of something, such as a file, or several names, and not free text."""
    if any(isinstance(each, Places) for each in info.metadata):
        return True
    return kind_of(info) is str and not any(isinstance(each, AfterValidator) for each in info.metadata)


def flag(name: str) -> str:
    """Return the option of a parameter."""
    return f"--{name.replace('_', '-')}"
