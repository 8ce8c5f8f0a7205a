"""`musicgen-flows votes`: tally the votes of blind comparisons."""

from __future__ import annotations

from typing import Any

from deployments.console import print_rows, print_text
from deployments.parameters import VotesParameters
from musicgen_core.generation.votes import tally, votes_in
from musicgen_core.language import message, translated
from musicgen_core.wording import counted


def votes(parameters: dict[str, Any]) -> int:
    found, unreadable = votes_in(VotesParameters(**parameters).places or ["music"])
    if unreadable:
        lines = counted(unreadable, "line")
        print_text(translated(message("ignored, as not readable as votes: {lines}", lines=lines)), "yellow")
    if not found:
        print_text(translated(message("There are no votes yet")))
    for pair in tally(found):
        rows = [(message("votes"), pair.counts()), (message("result"), pair.sentence())]
        print_rows(pair.title(), rows)
    return 0
