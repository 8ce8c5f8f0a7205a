"""Generated samples compared with training clips and held-out clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from upath import UPath

from musicgen_core.codec import Codec, Codes
from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.data.dataset import Clips
from musicgen_core.data.shards import described_clips, read_report
from musicgen_core.errors import TokensError
from musicgen_core.evaluation.feature_space import FEWEST_WINDOWS, count_windows, feature_distances
from musicgen_core.evaluation.music import Pair
from musicgen_core.evaluation.originality import (
    COPIED_SECONDS,
    Excerpt,
    FeatureDistances,
    Originality,
    Overlap,
    Verdict,
)
from musicgen_core.generation.loudness import Audio, normalize, sound_of
from musicgen_core.generation.render import OnProgress
from musicgen_core.language import message
from musicgen_core.ngrams import Frames, Matches, Run, find_matches, repeated_share
from musicgen_core.stages import announce

DEFAULT_SAMPLES = {"cuda": 32, "cpu": 8}
"""Held-out clips from whose descriptions both models make a sample by default"""
MARGIN = FRAME_RATE
"""Frames that are played before and after a run"""
SIGNIFICANCE = 0.05
CLIPS_A_REPORT = 1_000


@dataclass(frozen=True)
class NearestPair:
    """The adapter's sample with the longest run, and the training clip that it is from, to hear.

    Attributes:
        excerpt: the run.
        sample: audio of the sample's part, with a margin.
        clip: audio of the clip's part, with the same margin.
    """

    excerpt: Excerpt
    sample: Audio
    clip: Audio


@dataclass(frozen=True)
class _Group:
    """Samples of one origin, with what they have in common with training clips."""

    texts: list[str]
    codes: list[Codes]
    matches: list[Matches]

    @property
    def longest(self) -> tuple[int, Run] | None:
        """Return the number of the sample with the longest run, and the run; None if nothing is shared."""
        runs = [(i, found.longest) for i, found in enumerate(self.matches) if found.longest is not None]
        return max(runs, key=lambda one: one[1].frames, default=None)

    def overlap(self, nearest: Excerpt | None) -> Overlap:
        seconds = [found.longest.seconds if found.longest else 0.0 for found in self.matches]
        return Overlap(
            samples=len(self.codes),
            shared=float(np.mean([found.share for found in self.matches])),
            longest_seconds=max(seconds),
            mean_longest_seconds=float(np.mean(seconds)),
            repeated=float(np.mean([repeated_share(codes[0]) for codes in self.codes])),
            nearest=nearest,
        )


def compare_samples(
    pairs: Sequence[Pair],
    clips: Clips,
    held_out: Sequence[int],
    others: Sequence[int],
    training: NDArray[np.int64],
    tokens: UPath,
    codec: Codec,
    on_progress: OnProgress = lambda done, total, text: None,
) -> tuple[Originality, NearestPair | None]:
    """Compare samples of both models, and held-out clips, with training clips.

    Args:
        pairs: samples with their codes, first those from the descriptions of `held_out`, in their order.
        held_out: indices of held-out clips, at most as many as pairs. Of each, as much is used as its pair is long.
        others: indices of other held-out clips.
        training: indices of the clips that the adapter has learned from.
        tokens: directory of the shards, for the clips' names.
        on_progress: called with the training clips done and their total, every `CLIPS_A_REPORT`.
    """
    base, adapter = map(list, zip(*map(_codes_of_both, pairs), strict=True))
    real = [clips.codes_of(i)[:, : codes.shape[1]] for i, codes in zip(held_out, adapter, strict=False)]
    matches = find_matches(
        [codes[0] for codes in (*base, *adapter, *real)], _coarsest_codes(clips, training, on_progress)
    )
    texts = [pair.prompt for pair in pairs]
    groups = [
        _Group(texts, base, matches[: len(base)]),
        _Group(texts, adapter, matches[len(base) : 2 * len(base)]),
        _Group([clips.description(index) or "" for index in held_out], real, matches[2 * len(base) :]),
    ]
    excerpts = [_excerpt(group, clips, training, tokens) for group in groups]
    overlaps = [group.overlap(excerpt) for group, excerpt in zip(groups, excerpts, strict=True)]
    result = Originality(
        seconds=sum(codes.shape[1] for codes in adapter) / len(adapter) / FRAME_RATE,
        training_clips=len(training),
        base=overlaps[0],
        adapter=overlaps[1],
        held_out=overlaps[2],
        verdict=_verdict(groups[1], groups[2]) if len(training) else "unknown",
        distances=_distances(pairs[: len(real)], real, [clips.codes_of(i) for i in others[: len(real)]], codec),
    )
    return result, _nearest_pair(groups[1], excerpts[1], pairs, clips, training, codec)


def _coarsest_codes(clips: Clips, indices: NDArray[np.int64], on_progress: OnProgress) -> Iterator[Frames]:
    text = message("comparing the samples with {clips:,} training clips", clips=len(indices))
    announce(text)
    for done, index in enumerate(indices):
        if done % CLIPS_A_REPORT == 0:
            on_progress(done, len(indices), text)
        yield clips.codes_of(int(index))[0]


def _codes_of_both(pair: Pair) -> tuple[Codes, Codes]:
    if pair.base_codes is None or pair.adapter_codes is None:
        raise ValueError("samples are compared by their codes")
    return pair.base_codes, pair.adapter_codes


def _verdict(adapter: _Group, held_out: _Group) -> Verdict:
    from scipy.stats import mannwhitneyu

    seconds = [[one.longest.seconds if one.longest else 0.0 for one in group.matches] for group in (adapter, held_out)]
    if max(seconds[0]) >= max(seconds[1]) + COPIED_SECONDS:
        return "copies"
    shares = [[one.share for one in group.matches] for group in (adapter, held_out)]
    if len({*shares[0], *shares[1]}) == 1:  # the test's statistic has no variance
        return "no more"
    return "more" if mannwhitneyu(*shares, alternative="greater").pvalue < SIGNIFICANCE else "no more"


def _distances(
    pairs: Sequence[Pair], held_out: Sequence[Codes], others: Sequence[Codes], codec: Codec
) -> FeatureDistances | None:
    """Return the distances of samples to held-out clips, at the same loudness; None if there is too little sound."""
    if count_windows(codes.shape[1] / FRAME_RATE for codes in held_out) < FEWEST_WINDOWS:
        return None
    announce(message("comparing the sound of the samples with that of held-out clips"))
    alike = [other[:, : codes.shape[1]] for other, codes in zip(others, held_out, strict=False)]
    return feature_distances(
        held_out=[_sound(codes, codec) for codes in held_out],
        base=[pair.base for pair in pairs],
        adapter=[pair.adapter for pair in pairs],
        others=[_sound(codes, codec) for codes in alike],
        device=codec.device,
    )


def _sound(codes: Codes, codec: Codec) -> Audio:
    """Decode codes, at the loudness of rendered music."""
    return normalize(sound_of(codec.decode(torch.from_numpy(codes.astype(np.int64))[None])[0]), SAMPLE_RATE)


def _excerpt(group: _Group, clips: Clips, training: NDArray[np.int64], tokens: UPath) -> Excerpt | None:
    if group.longest is None:
        return None
    number, run = group.longest
    archive, clip = _name(clips, int(training[run.clip]), tokens)
    return Excerpt(
        archive=archive,
        clip=clip,
        clip_start=run.clip_start / FRAME_RATE,
        text=group.texts[number],
        start=run.start / FRAME_RATE,
        seconds=run.seconds,
    )


def _name(clips: Clips, index: int, tokens: UPath) -> tuple[str, str]:
    """Return the names of a clip's archive and of the clip."""
    stem, row = clips.location(index)
    report = read_report(tokens, stem)
    try:
        clip = described_clips(tokens, stem)[row][0]
    except (TokensError, IndexError):  # the clips were read from the cached copy
        clip = f"clip {row + 1}"
    return report.archive if report else stem, clip


def _nearest_pair(
    group: _Group,
    excerpt: Excerpt | None,
    pairs: Sequence[Pair],
    clips: Clips,
    training: NDArray[np.int64],
    codec: Codec,
) -> NearestPair | None:
    if group.longest is None or excerpt is None:
        return None
    number, run = group.longest
    codes, sample = clips.codes_of(int(training[run.clip])), group.codes[number]
    before = min(MARGIN, run.start, run.clip_start)
    after = min(MARGIN, sample.shape[1] - run.start - run.frames, codes.shape[1] - run.clip_start - run.frames)
    clip_part, sample_part = (
        slice(start - before, start + run.frames + after) for start in (run.clip_start, run.start)
    )
    audio = pairs[number].adapter[sample_part.start * SAMPLES_PER_FRAME : sample_part.stop * SAMPLES_PER_FRAME]
    return NearestPair(excerpt, audio, _sound(codes[:, clip_part], codec))
