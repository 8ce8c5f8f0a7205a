"""Text forms of numbers of layers, such as 0-11,24, and of LoRA ranks by layer, such as 0-23=4,24-47=16."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from musicgen_core.errors import ConfigError
from musicgen_core.language import message

MOST_LAYERS = 1000
"""Upper bound of the number of a layer; musicgen-large has 48."""
LARGEST_RANK = 8192
_RANGE = re.compile(r"(\d{1,4})(?:\s*-\s*(\d{1,4}))?")


def parse_layers(text: str) -> tuple[int, ...]:
    """Return the numbers that a text such as `0-11,24` names, ascending.

    Raises:
        ValueError: it has another form, or names a layer twice.
    """
    numbers = [number for part in text.split(",") for number in _range(part)]
    _check_unique(numbers)
    return tuple(sorted(numbers))


def parse_ranks(text: str) -> dict[int, int]:
    """Return the rank of each layer that a text such as `0-23=4,24-47=16` names, by ascending number.

    Raises:
        ValueError: it has another form, or gives a layer two ranks.
    """
    pairs: list[tuple[int, int]] = []
    for part in text.split(","):
        layers, _, rank = part.partition("=")
        if not re.fullmatch(r"\s*\d{1,4}\s*", rank) or not 1 <= int(rank) <= LARGEST_RANK:
            raise ValueError(f"{part.strip()} should have the form LAYERS=RANK")
        pairs += [(number, int(rank)) for number in _range(layers)]
    _check_unique([number for number, _ in pairs])
    return dict(sorted(pairs))


def check_layers(layers: str | None, ranks: str | None, count: int) -> None:
    """Check that a model of `count` layers has those that the texts of `layers` and `ranks` name.

    Raises:
        ConfigError: it lacks some of them.
    """
    check_numbers(parse_layers(layers) if layers else (), parse_ranks(ranks) if ranks else {}, count)


def check_numbers(layers: Iterable[int], ranks: Iterable[int], count: int) -> None:
    """Check that a model of `count` layers has the numbers in the settings `layers` and `ranks`.

    Raises:
        ConfigError: it lacks some of them.
    """
    last = count - 1
    for name, numbers in (("layers", layers), ("ranks", ranks)):
        if missing := [number for number in numbers if number > last]:
            raise ConfigError(
                message(
                    "{name} has {missing}, but the model's layers are 0 to {last}",
                    name=name,
                    missing=show_layers(missing),
                    last=last,
                ),
                message("Give numbers from 0 to {last}", last=last),
            )


def show_layers(numbers: Iterable[int]) -> str:
    """Return the shortest text from which `parse_layers` reads these ascending numbers."""
    return ",".join(_shown(first, last) for first, last, _ in _runs(dict.fromkeys(numbers, 0)))


def show_ranks(ranks: Mapping[int, int]) -> str:
    """Return the shortest text from which `parse_ranks` reads these ranks, by ascending number of the layer."""
    return ",".join(f"{_shown(first, last)}={rank}" for first, last, rank in _runs(ranks))


def _range(text: str) -> range:
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text.strip()!r} is neither a number nor a range such as 24-47")
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if not first <= last < MOST_LAYERS:
        raise ValueError(f"{text.strip()!r} is not a range of layers")
    return range(first, last + 1)


def _check_unique(numbers: list[int]) -> None:
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise ValueError(f"layer {twice[0]} is named twice")


def _runs(values: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Return (first, last, value) of each run of consecutive layers with the same value."""
    runs: list[tuple[int, int, int]] = []
    for number, value in values.items():
        if runs and runs[-1][1:] == (number - 1, value):
            runs[-1] = (runs[-1][0], number, value)
        else:
            runs.append((number, number, value))
    return runs


def _shown(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
