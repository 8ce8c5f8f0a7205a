"""The data of `player.js` on a page: samples that differ in their adapters alone, and the texts around them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from musicgen_core.escaping import one_line, printable
from musicgen_core.generation.sidecars import Sidecar, adapter_entries, number_of, strength_of
from musicgen_core.generation.votes import MOST_CHARACTERS, VotedAdapter, VotedSample
from musicgen_core.language import say


@dataclass(frozen=True)
class PlayedSample:
    """A sample of a comparison.

    Attributes:
        sample: what a vote records of it.
        label: its name on the page.
        url: of its sound; None if `audio` is given.
        audio: id of the `<audio>` element of the page that has the sound's URL.
    """

    sample: VotedSample
    label: str
    url: str | None = None
    audio: str | None = None


def voted_sample(file: str, sidecar: Sidecar) -> VotedSample:
    """Return what a vote records of a sample, whatever values its sidecar has."""
    adapters = (
        VotedAdapter(
            path=_text(one.get("path")),
            sha256=_text(one.get("sha256")),
            strength=strength_of(one),
        )
        for one in adapter_entries(sidecar)
    )
    return VotedSample(file=_text(file), adapter=tuple(adapters))


def voted_prompt(sidecar: Sidecar) -> dict[str, Any]:
    """Return what a vote records of both samples: `prompt`, `seed` and `variation`, whatever values they have."""
    seed, variation = sidecar.get("seed"), sidecar.get("variation")
    return {
        "prompt": _text(sidecar.get("prompt")),
        "seed": seed if _is_whole(seed) else None,
        "variation": variation if _is_whole(variation) else 0,
    }


def comparison(sidecar: Sidecar, samples: Iterable[PlayedSample]) -> dict[str, Any] | None:
    """Return the attribute `data-comparison` of a player; None if fewer than two samples are different.

    Args:
        sidecar: `prompt`, `seed`, `variation` and `duration` in seconds, which the samples share.
    """
    different = list({one.sample.side: one for one in reversed(list(samples))}.values())[::-1]
    if len(different) < 2:
        return None
    return {
        **voted_prompt(sidecar),
        "seconds": number_of(sidecar.get("duration")) or 0,
        "pieces": [
            one.sample.model_dump() | {"label": one_line(one.label), "url": one.url, "audio": one.audio}
            for one in different
        ],
    }


def _text(value: Any) -> str:
    return printable(value or "")[:MOST_CHARACTERS]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def player_texts() -> dict[str, str]:
    """Return the texts of the player, by their names in `player.js`, which puts values in place of `{name}`."""
    return {
        "compare": say("Compare"),
        "play": say("Play"),
        "pause": say("Pause"),
        "position": say("Position"),
        "keys": say("Keys: 1, 2 … switch, space plays, ← → seek"),
        "blind": say("Blind comparison"),
        "loading": say("loading"),
        "unreadable": say("The sound can't be loaded"),
        "listen": say("Switch between A and B, then vote. Names are shown after the vote"),
        "better": say("{name} is better", name="{name}"),
        "same": say("No difference"),
        "again": say("Compare another pair"),
        "were": say("Recorded. A was: {a}. B was: {b}", a="{a}", b="{b}"),
        "lost": say("The vote was not recorded: {reason}", reason="{reason}"),
        "save": say("Save votes.jsonl ({number})", number="{number}"),
    }
