"""Labels of the tagger clap, by category: the built-in ones, or those of a YAML file."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from musicgen_core.language import message
from musicgen_core.music_tags import VOCABULARY, Category
from musicgen_core.settings import Settings, read_yaml, validate
from musicgen_core.storage import Location

Labels = tuple[tuple[Category, tuple[str, ...]], ...]
"""Categories in the order of `VOCABULARY`, each with its labels"""

FEWEST = 2
"""Labels of a category are compared with one another, so it takes two"""
_MORE_INSTRUMENTS = (
    *("accordion", "acoustic guitar", "banjo", "bass guitar", "bells", "brass", "clarinet", "double bass"),
    *("electric guitar", "electric piano", "harmonica", "mandolin", "marimba", "oboe", "organ", "percussion"),
    *("saxophone", "synthesizer bass", "trombone", "trumpet", "ukulele", "vibraphone"),
)
"""Instruments that musicnn doesn't know"""
_TOO_GENERAL = {"vocals"}
"""A label that others imply would take their probability"""

DEFAULT_LABELS: Labels = tuple(
    (
        category,
        (
            *(name for name in names if name not in _TOO_GENERAL),
            *(_MORE_INSTRUMENTS if category == "instruments" else ()),
        ),
    )
    for category, names in VOCABULARY.items()
)


def _check(labels: list[str], info: ValidationInfo) -> list[str]:
    """Strip labels, which are at least two, not empty, and each of them listed once in all categories."""
    labels = [" ".join(label.split()) for label in labels]
    if len(labels) < FEWEST or not all(labels):
        raise PydanticCustomError("labels", "should be a list of two or more labels")
    seen = {label.lower() for others in info.data.values() for label in others or ()}
    for label in labels:
        if label.lower() in seen:
            raise PydanticCustomError("labels", "should not have {label}, which is listed before", {"label": label})
        seen.add(label.lower())
    return labels


_List = Annotated[list[str], AfterValidator(_check)]


class _LabelsFile(Settings):
    genre: _List | None = None
    instruments: _List | None = None
    mood: _List | None = None
    vocals: _List | None = None


def read_labels(path: Location) -> Labels:
    """Return the labels of a YAML file. A category that it leaves out has the built-in labels, less those of the file.

    Raises:
        ConfigError: the file is missing or not of this form; lists every problem at once.
    """
    given = validate(_LabelsFile, read_yaml(path), message("the labels in {path}", path=path)).model_dump(
        exclude_none=True
    )
    own = {label.lower() for labels in given.values() for label in labels}
    return tuple(
        (category, tuple(given.get(category) or (label for label in labels if label not in own)))
        for category, labels in DEFAULT_LABELS
    )
