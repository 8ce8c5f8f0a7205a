"""`--best-of N`: of the candidates of a sample, each from its own random stream, the one with the best score stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from musicgen_core.captioning.musicnn import Musicnn
from musicgen_core.generation.measures import Reference, measure
from musicgen_core.generation.plan import PlannedSample
from musicgen_core.generation.resident import ResidentModel
from musicgen_core.generation.training_music import reference_for
from musicgen_core.model.weighted_adapters import Mix


@dataclass(frozen=True)
class Candidate:
    """A generated sample before it is written.

    Attributes:
        piece: what was planned.
        codes: [K, frames].
        sound: [channels, samples].
        made: the part of its sidecar that says how it was generated.
        score: see `measures`; None for a sample that is the only candidate.
        measures: those of the score.
    """

    piece: PlannedSample
    codes: Tensor
    sound: Tensor
    made: Mapping[str, Any]
    score: float | None = None
    measures: Mapping[str, Any] | None = None


class Choosing:
    """Chooses among the candidates of each sample.

    Args:
        resident: the model, whose adapters may know their training music.
        keep_all: whether all candidates are written.
    """

    def __init__(self, resident: ResidentModel, keep_all: bool) -> None:
        self._resident, self._keep_all = resident, keep_all
        self._kept: dict[int, list[Candidate]] = {}
        self._scores: dict[int, dict[int, float]] = {}
        self._references: dict[Mix, Reference | str] = {}

    @cached_property
    def _tagger(self) -> Musicnn:
        return Musicnn(self._resident.device)

    def add(self, candidate: Candidate) -> list[Candidate]:
        """Return the candidates of its sample to write, once there are all; of others, nothing."""
        piece = candidate.piece
        if piece.candidates == 1:
            return [candidate]
        score, measures = measure(piece.prompt, candidate.codes, candidate.sound, self._reference(piece))
        kept, scores = self._kept.setdefault(piece.sample, []), self._scores.setdefault(piece.sample, {})
        scores[piece.candidate] = score
        kept.append(replace(candidate, score=score, measures=measures))
        best = max(kept, key=lambda one: (one.score, -one.piece.candidate))
        if not self._keep_all:
            kept[:] = [best]
        if len(scores) < piece.candidates:
            return []
        del self._kept[piece.sample], self._scores[piece.sample]
        return [self._described(one, best, scores) for one in kept]

    def _described(self, one: Candidate, best: Candidate, scores: Mapping[int, float]) -> Candidate:
        described = {
            "candidates": one.piece.candidates,
            "candidate": one.piece.candidate,
            "chosen": best.piece.candidate,
            "score": one.score,
            "measures": one.measures,
            "scores": [scores[number] for number in sorted(scores)],
            "all_kept": self._keep_all,
        }
        return replace(one, made={**one.made, "best_of": described})

    def _reference(self, piece: PlannedSample) -> Reference | str:
        if piece.mix not in self._references:
            wanted = {one.source for one in piece.mix}
            adapters: Sequence[Any] = [one.path for one in self._resident.adapters if one.source in wanted]
            model, codec = self._resident.model, self._resident.codec
            self._references[piece.mix] = reference_for(adapters, model, codec, lambda: self._tagger)
        return self._references[piece.mix]
