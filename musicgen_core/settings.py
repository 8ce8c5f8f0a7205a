"""Base of all settings, and bounds of their values: one definition serves YAML, the command line, flows and forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from musicgen_core.errors import ConfigError
from musicgen_core.language import as_message, message
from musicgen_core.wording import joined_sentences

if TYPE_CHECKING:
    from musicgen_core.storage import Location


LONGEST_SECONDS = 3600
"""Longest sample that can be generated"""

LARGEST_COUNT = 10**9
"""Upper bound of counts without a tighter one: fits 32 bits. Integers over 64 bits break Prefect's database."""

MOST_WORKERS = 1024
"""Upper bound of threads and processes"""

MOST_SIDE_BY_SIDE = 64
"""Upper bound of the samples that are generated in one batch"""


class Settings(BaseModel):
    """Base of all settings: unknown names are errors, numbers are finite, instances are frozen.

    In the JSON schema, from which the Prefect UI draws its run forms, a field's title is its own name. Alternatives of
    a union such as None are left out, as the form would offer a switch between the types.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, field_title_generator=lambda name, _: name
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        reference = handler(schema)
        for field in handler.resolve_ref_schema(reference).get("properties", {}).values():
            kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
            if len(kinds) == 1:
                del field["anyOf"]
                field.update(kinds[0])
            if field.get("default") is None or (isinstance(field["default"], str) and field.get("type") != "string"):
                field.pop("default", None)
        return reference


def names_in(given: Any) -> Any:
    """Return the names in a text or in a list of texts, which are separated by commas; other values unchanged."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple):
        return given
    parts = [part for text in texts for part in (text.split(",") if isinstance(text, str) else [text])]
    return [part.strip() if isinstance(part, str) else part for part in parts if part != ""]


S = TypeVar("S", bound=Settings)


def validate(kind: type[S], values: Mapping[str, Any], origin: str = message("the settings")) -> S:
    """Build settings of a kind.

    Raises:
        ConfigError: lists every problem at once, each with the setting's name and the value given.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        problems = describe_problems(error)
        number = message("a problem") if len(problems) == 1 else message("{number} problems", number=len(problems))
        raise ConfigError(
            message(
                "{origin} have {problems}: {names}", origin=origin, problems=number, names=joined_sentences(problems)
            ),
            message("Change or remove what is named"),
        ) from error


_PROBLEMS = {
    "int_parsing": message("{name}: expected a whole number, not {given}"),
    "int_from_float": message("{name}: expected a whole number, not {given}"),
    "float_parsing": message("{name}: expected a number, not {given}"),
    "bool_parsing": message("{name}: expected true or false, not {given}"),
    "greater_than": message("{name}: expected a number greater than {gt}, not {given}"),
    "greater_than_equal": message("{name}: expected {ge} or more, not {given}"),
    "less_than": message("{name}: expected a number less than {lt}, not {given}"),
    "less_than_equal": message("{name}: expected {le} or less, not {given}"),
    "literal_error": message("{name}: expected {expected}, not {given}"),
}
"""Messages by pydantic's error types, for translation; the English texts are pydantic's own"""


def describe_problems(error: ValidationError, shown: Callable[[str], str] = str) -> list[str]:
    """Return a description of the problems of each setting; `shown` maps a field to the name that users know."""
    by_name: dict[str, list[Any]] = {}
    for problem in error.errors():  # a union has one for each of its types
        by_name.setdefault(str(problem["loc"][0]), []).append(problem)
    return [_describe(shown(name), problems) for name, problems in by_name.items()]


def _describe(name: str, problems: Sequence[Any]) -> str:
    if problems[0]["type"] == "extra_forbidden":
        return message("there is no setting {name}", name=name)
    first, *others = dict.fromkeys(problem["msg"] for problem in problems)
    reasons = [f"{first[0].lower()}{first[1:]}", *(other.removeprefix("Input should be ") for other in others)]
    given = repr(problems[0]["input"])
    given = given if len(given) <= 100 else f"{given[:100]}…"
    english = f"{name}: {' or '.join(reasons)}, not {given}"
    kind = problems[0]["type"]
    if others or kind not in _PROBLEMS:  # rare types, and those of our own validators
        return english
    problem = {"name": name, "given": given, **problems[0].get("ctx", {})}
    if kind == "literal_error":
        choices, _, last = problem["expected"].rpartition(" or ")
        problem["expected"] = message("{choices} or {last}", choices=choices, last=last) if choices else last
    return as_message(english, _PROBLEMS[kind], problem)


def read_yaml(path: Location) -> dict[str, Any]:
    """Read settings from a YAML file of `name: value` lines.

    Raises:
        ConfigError: the file is missing or not of this form.
    """
    import yaml  # not at the top, to keep the command line's help fast

    from musicgen_core import storage

    try:
        values = yaml.safe_load(storage.as_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: of encodings, dates
        reason = " ".join(str(error).split())  # YAML's reasons have several lines
        raise ConfigError(
            message("the settings file {path} can't be read ({reason})", path=path, reason=reason),
            message("Check path and file"),
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(
            message("the settings file {path} holds no settings", path=path), message("Write one `name: value` a line")
        )
    return values


def collect(kind: type[S], form: Settings) -> S:
    """Build settings from the fields of a form and of its groups. Other fields are ignored."""
    given = dict(form)
    for group in dict(form).values():
        given |= dict(group) if isinstance(group, Settings) else {}
    return kind(**{name: value for name, value in given.items() if name in kind.model_fields})
