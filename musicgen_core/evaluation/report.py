"""`report.html`: an evaluation on one self-contained page.

Its plots are in the user's language if there is a font for it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.captioning.tagger_features import WINDOW_SECONDS
from musicgen_core.embedding import data_url, encode_mp3
from musicgen_core.escaping import html_page
from musicgen_core.evaluation.feature_space import FEWEST_WINDOWS
from musicgen_core.evaluation.generated import NearestPair
from musicgen_core.evaluation.held_out import Losses
from musicgen_core.evaluation.music import Pair
from musicgen_core.evaluation.originality import Originality
from musicgen_core.evaluation.request import Comparison, Evaluation
from musicgen_core.generation.page import OwnPage
from musicgen_core.generation.player import PlayedSample, comparison, player_texts, voted_sample
from musicgen_core.language import message, plot_text, say, translated
from musicgen_core.run_layout import EVALUATION_REPORT

MOST_PAIRS = 24
"""Maximum number of pairs per heading; 24 of 10 s take 8 MB"""
REPORT = OwnPage("musicgen-flows: evaluation", message("Evaluation of an adapter"))
_WIDE = 100
"""Ratio of perplexities from which small bars would be invisible on a linear axis"""


def write_report(
    target: UPath,
    evaluation: Evaluation,
    pictures: Mapping[str, bytes],
    music: Mapping[str, Sequence[Pair]],
    nearest: NearestPair | None = None,
) -> None:
    """Write the report.

    Args:
        pictures: PNGs by caption.
        music: pairs by heading, of which the first `MOST_PAIRS` each are included.
        nearest: the sample and the training clip that have most in common.
    """
    page = html_page(
        "musicgen_core.evaluation",
        "report.html.j2",
        generator=REPORT.generator,
        title=translated(REPORT.title),
        fewest_windows=FEWEST_WINDOWS,
        window_seconds=WINDOW_SECONDS,
        evaluation=evaluation,
        sentence=translated(evaluation.sentence()),
        clips=_clips(evaluation),
        remarks=[translated(remark) for remark in evaluation.remarks],
        pictures={text: data_url("image/png", png) for text, png in pictures.items()},
        music=_music(evaluation, music),
        player=player_texts(),
        originality=None if evaluation.originality is None else _originality(evaluation.originality, nearest),
    )
    storage.write_text(target, page)


def _clips(evaluation: Evaluation) -> str:
    held_out = say("held out") if evaluation.is_held_out else say("that the adapter may have learned from")
    return say(
        "{clips:,} of {total:,} {held_out}, at most the first {seconds:.3g} s of each: {tokens:,} tokens",
        clips=evaluation.clips,
        total=evaluation.validation_clips,
        held_out=held_out,
        seconds=evaluation.segment_seconds,
        tokens=evaluation.codes,
    )


def _originality(found: Originality, nearest: NearestPair | None) -> dict[str, Any]:
    """Return the values of the section on copying: a sentence, rows of a table, a note and a pair to play."""
    columns = (found.held_out, found.base, found.adapter)
    rows = []
    if found.training_clips:
        rows += [
            (say("N-grams that occur in training clips"), [f"{one.shared:.2%}" for one in columns]),
            (say("Longest run in one training clip (s)"), [f"{one.longest_seconds:.2f}" for one in columns]),
            (say("Longest run, mean of the samples (s)"), [f"{one.mean_longest_seconds:.2f}" for one in columns]),
        ]
    rows.append((say("N-grams that repeat an earlier part"), [f"{one.repeated:.2%}" for one in columns]))
    if (distances := found.distances) is not None:
        values = (distances.held_out, distances.base, distances.adapter)
        cells = ["–" if value is None else f"{value:.2f}" for value in values]
        rows.append((say("Fréchet distance to held-out clips"), cells))
    return {
        "sentence": translated(found.sentence()),
        "verdict": {"copies": "worse", "more": "worse"}.get(found.verdict, ""),
        "rows": rows,
        "nearest": nearest and translated(nearest.excerpt.sentence()),
        "players": nearest
        and {
            label: data_url("audio/mpeg", encode_mp3(audio))
            for label, audio in ((say("Sample"), nearest.sample), (say("Training clip"), nearest.clip))
        },
    }


def _music(
    evaluation: Evaluation, music: Mapping[str, Sequence[Pair]]
) -> dict[str, list[tuple[str, dict[str, str], Mapping[str, Any]]]]:
    """Return by heading each pair's prompt, the URLs of both models' music by label, and their comparison."""
    sections = enumerate(((heading, pairs) for heading, pairs in music.items() if pairs), 1)
    return {
        heading: [
            _players(evaluation, pair, f"music-{section}-{number}") for number, pair in enumerate(pairs[:MOST_PAIRS], 1)
        ]
        for section, (heading, pairs) in sections
    }


def _players(evaluation: Evaluation, pair: Pair, place: str) -> tuple[str, dict[str, str], Mapping[str, Any]]:
    adapter = {"path": evaluation.adapter.path, "sha256": evaluation.adapter.sha256}
    heard = {say("Base model"): pair.base, translated(pair.adapter_label): pair.adapter}
    samples = [
        PlayedSample(
            voted_sample(f"{EVALUATION_REPORT}#{place}-{number}", {"adapter": used}),
            label,
            audio=f"{place}-{number}-audio",
        )
        for number, (label, used) in enumerate(zip(heard, (None, adapter), strict=True), 1)
    ]
    urls = {label: data_url("audio/mpeg", encode_mp3(audio)) for label, audio in heard.items()}
    return pair.prompt, urls, comparison({"prompt": pair.prompt}, samples) or {}


def plot_codebook_perplexities(codebooks: Sequence[Comparison]) -> bytes:
    """Plot the perplexity of each codebook as bars of both models, side by side."""
    target, words = io.BytesIO(), (message("Perplexity of each codebook"), message("perplexity"), message("codebook"))
    with tracking.picture(target, *map(plot_text, words), layout="constrained") as axes:
        places = np.arange(len(codebooks))
        for shift, name, values in (
            (-0.2, plot_text(message("base model")), [one.base_perplexity for one in codebooks]),
            (0.2, plot_text(message("with adapter")), [one.adapter_perplexity for one in codebooks]),
        ):
            bars = axes.bar(places + shift, values, width=0.38, label=name)
            axes.bar_label(bars, fmt="%.4g", padding=2)
        perplexities = [value for one in codebooks for value in (one.base_perplexity, one.adapter_perplexity)]
        if max(perplexities) > _WIDE * min(perplexities):
            axes.set_yscale("log")
        axes.set_xticks(places)
        axes.margins(y=0.12)
        axes.figure.legend(loc="outside upper right", ncols=2)
    return target.getvalue()


def plot_differences(base: Losses, adapter: Losses) -> bytes:
    """Plot a histogram of the loss differences, [clips] each."""
    differences = adapter - base
    title, x = message("What the adapter changes, clip by clip"), message("loss with adapter − base (nats per code)")
    target, words = io.BytesIO(), (title, message("clips"), x)
    with tracking.picture(target, *map(plot_text, words), layout="constrained") as axes:
        axes.hist(differences, bins=min(40, max(5, len(differences) // 5)))
        axes.axvline(0, color="tab:gray", linewidth=1)
        mean = plot_text(message("mean {value:+.4f}", value=differences.mean()))
        axes.axvline(differences.mean(), color="tab:orange", label=mean)
        axes.figure.legend(loc="outside upper right")
    return target.getvalue()


def plot_training(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Plot the losses in metrics.jsonl."""
    target = io.BytesIO()
    tracking.plot_losses(rows, target, plot_text)
    return target.getvalue()
