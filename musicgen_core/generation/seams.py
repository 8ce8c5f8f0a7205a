"""New music that has to lead to music that is known: the end of a loop, or a stretch within a piece.

Several candidates are generated from what stays before them. The language model judges each by the log-likelihood of
the frames that follow, teacher-forced after the candidate; the one after which they are likeliest is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE
from musicgen_core.errors import ConfigError
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.loops import Loop, decode_circularly, loop_length, tempo_of
from musicgen_core.generation.plan import Continuation, PlannedSample
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.redone import Redo, check_stretch, decode_around, piece_seconds
from musicgen_core.generation.seam_settings import parse_stretch
from musicgen_core.language import message
from musicgen_core.seeds import stream_of

JUDGED_SECONDS = 5
"""How much of the music that follows is judged"""

Share = Callable[[int, int], tuple[int, int]]
"""Maps the steps done and in total of a part of the work to those of the whole"""
Generate = Callable[[Sequence[PlannedSample], int, Share], list[Tensor]]
"""Generates the codes [K, frames] of samples, in a batch of a size"""


@dataclass(frozen=True)
class Joined:
    """A sample with a seam.

    Attributes:
        codes: [K, frames].
        wav: [channels, samples], decoded; of a stretch made again, what is around it.
        described: what its sidecar says of the seam.
    """

    codes: Tensor
    wav: Tensor
    described: dict[str, Any]


def check_seams(prompts: Iterable[Prompt], melody: str | None) -> None:
    """Check what prompts want of loops and of stretches, before a model is loaded.

    Args:
        prompts: with the defaults of the request.
        melody: the melody of prompts that name none.

    Raises:
        ConfigError: what they want doesn't fit together, or a stretch isn't a part of its recording.
    """
    for prompt in prompts:
        if not (prompt.loop or prompt.redo):
            continue
        option = "--redo" if prompt.redo else "--loop"
        if prompt.redo and prompt.loop:
            raise ConfigError(message("--loop and --redo are given for one sample"), message("Give one of the two"))
        if prompt.melody or melody:
            raise ConfigError(
                message("{option} can't follow a melody", option=option), message("Leave out one of the two")
            )
        if (prompt.best_of or 1) > 1:
            raise ConfigError(
                message("{option} can't be the best of several: its candidates have their own score", option=option),
                message("Give their number with --seam-candidates, and leave out --best-of"),
            )
        if prompt.loop and prompt.continue_from:
            raise ConfigError(
                message("--loop can't continue a recording: {file}", file=prompt.continue_from),
                message("Leave out --loop or --continue-from"),
            )
        if prompt.redo and not prompt.continue_from:
            raise ConfigError(
                message("--redo needs the recording of which a part is made again"),
                message("Give it with --continue-from"),
            )
        if prompt.redo and prompt.continue_from and (stretch := parse_stretch(prompt.redo)):
            check_stretch(prompt.continue_from, piece_seconds(prompt.continue_from), stretch)


def join(sample: PlannedSample, engine: Engine, codec: Codec, generate: Generate, size: int) -> Joined:
    """Generate a sample with a seam.

    Args:
        sample: a sample whose `seam` is a loop, or a stretch to make again.
        engine: judges the candidates.
        codec: decodes the sample.
        generate: generates candidates.
        size: candidates in a batch.
    """
    seam = sample.seam
    if isinstance(seam, Redo):
        chosen, described = _chosen(sample, seam.stretch.end, seam.following, engine, generate, size, stages=0)
        codes = torch.cat([chosen, seam.following], dim=1)
        described["begin"], described["end"] = (frame / FRAME_RATE for frame in seam.stretch)
        described["codes"] = "saved" if seam.piece.has_saved_codes else "encoded"
        return Joined(codes, decode_around(codec, codes, seam.stretch), {"redo": described})
    assert isinstance(seam, Loop)
    length, draft = loop_length(sample.frames, seam.tempo), None
    parts = 1 + _batches(seam.candidates, size)
    if seam.tempo is None:
        [draft] = generate([sample], 1, lambda done, total: (done, parts * total))
        length = loop_length(sample.frames, tempo_of(codec.decode(draft[None])[0]))
    begin = length.frames - length.ending
    if draft is None:
        [draft] = generate([replace(sample, frames=begin)], 1, lambda done, total: (done, parts * total))
    begun = replace(sample, frames=length.frames, continuation=Continuation(draft[:, :begin]))
    beginning = draft[:, : min(begin, JUDGED_SECONDS * FRAME_RATE)]
    codes, described = _chosen(begun, 0, beginning, engine, generate, size, stages=1)
    described |= {"bars": length.bars, "tempo": length.tempo, "measured": seam.tempo is None}
    described |= {"ending": length.ending / FRAME_RATE, "wanted_seconds": sample.frames / FRAME_RATE}
    return Joined(codes, decode_circularly(codec, codes), {"loop": described})


def _chosen(
    sample: PlannedSample,
    frame: int,
    following: Tensor,
    engine: Engine,
    generate: Generate,
    size: int,
    stages: int,
) -> tuple[Tensor, dict[str, Any]]:
    """Return the codes [K, frames] up to the seam of the candidate after which `following` is likeliest.

    Args:
        sample: what the candidates have in common.
        frame: the frame of the piece at which `following` begins.
        following: [K, frames], the frames after the seam.
        engine: judges the candidates.
        generate: generates them.
        size: candidates in a batch.
        stages: parts of the sample's work that are done, each as long as a batch of candidates.
    """
    following = following[:, : JUDGED_SECONDS * FRAME_RATE]
    can_judge = following.shape[-1] > engine.lm.config.codes.most_delay
    assert sample.seam is not None
    candidates = [replace(sample, stream=stream_of(sample.stream, number)) for number in range(sample.seam.candidates)]
    candidates = candidates if can_judge else candidates[:1]
    parts = stages + _batches(len(candidates), size)
    found: list[Tensor] = []
    for start in range(0, len(candidates), size):
        before = stages + start // size

        def share(done: int, total: int, before: int = before) -> tuple[int, int]:
            return before * total + done, parts * total

        found += generate(candidates[start : start + size], size, share)
    if not can_judge:
        return found[0], {"candidates": 1, "score": None}
    scores = engine.log_likelihoods(sample.text_at(frame), found, following)
    best = max(range(len(found)), key=scores.__getitem__)
    rounded = [round(score, 4) for score in scores]
    return found[best], {"candidates": len(found), "score": rounded[best], "scores": rounded}


def _batches(count: int, size: int) -> int:
    return -(-count // size)
