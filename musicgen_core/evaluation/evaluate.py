"""Evaluate an adapter on tokens, and write `evaluation.json` and `report.html`."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import torch
from pydantic import TypeAdapter
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.codes import CODEBOOKS
from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.devices import pick_device, release_memory
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation import plots
from musicgen_core.evaluation.clap import Clap
from musicgen_core.evaluation.comparison import Losses, compare, confidence_interval, verdict_of
from musicgen_core.evaluation.evaluated_adapter import Subject, find_subject
from musicgen_core.evaluation.held_out import HeldOut, held_out
from musicgen_core.evaluation.losses import OnProgress, clip_losses_of_both
from musicgen_core.evaluation.music import Pair, decoded, music_scores, pairs_of_training, render_pairs
from musicgen_core.evaluation.report import write_report
from musicgen_core.evaluation.request import ENOUGH_CLIPS, EvaluateRequest, Evaluation, MusicScores
from musicgen_core.generated_pages import REPORT
from musicgen_core.language import message, say
from musicgen_core.model.adapters import choose_model, displayed_path, find_adapter, hub_name
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import BaseModel, find_model
from musicgen_core.run_layout import EVALUATION, EVALUATION_DATA, EVALUATION_REPORT
from musicgen_core.stages import announce

logger = logging.getLogger(__name__)

FEWEST_DESCRIBED = 2
"""Minimum number of described clips for a Fréchet distance"""
_EVALUATION = TypeAdapter(Evaluation)


def evaluate(request: EvaluateRequest, on_progress: OnProgress = lambda done, total, text: None) -> Evaluation:
    """Compare an adapter with its base model on held-out clips, and write both files.

    Args:
        on_progress: called with the units done, their total, and a description.

    Raises:
        MusicgenError: any error that the user can act on.
    """
    device, subject = pick_device(request.device), find_subject(request.adapter)
    model = find_model(choose_model(request.model, request.default_model, subject.adapter, subject.path))
    subject.adapter.check_base(model, str(subject.path))
    request = replace(request, model=model.name)
    out = storage.as_path(request.output) if request.output else subject.output
    # The folder of an adapter from the Hub has only its name, which another user's adapter may share.
    _check_own(out, subject, is_default=not request.output and hub_name(subject.path) is None)
    storage.delete_partials(out)
    clips = load_clips(storage.as_path(request.tokens), codec_identity(model))
    for problem in clips.problems():
        logger.warning("%s", problem)
    chosen = held_out(clips, request.settings, subject.config)
    release_memory(device)  # a training run in this process may have just ended
    scoring = (
        _Scoring(request, subject=subject, model=model, clips=clips, chosen=chosen, device=device)
        if request.settings.clap_weights
        else None
    )
    losses = clip_losses_of_both(
        model,
        adapter=subject.adapter,
        clips=clips,
        indices=chosen.indices,
        segment_frames=chosen.segment_frames,
        device=device,
        on_progress=on_progress,
    )
    release_memory(device)
    prompts = request.settings.prompts
    rendered = render_pairs(request, subject.path, prompts, on_progress) if prompts else []
    scores = scoring.run(on_progress) if scoring else None
    announce(message("writing the report"))
    evaluation = _summarize(
        request,
        subject=subject,
        model=model,
        clips=clips,
        chosen=chosen,
        losses=losses,
        scores=scores,
        report=str(out / EVALUATION_REPORT),
    )
    _write(out, evaluation, subject, losses, rendered)
    return evaluation


def stored_evaluation(run_dir: storage.Location) -> Evaluation | None:
    """Return the evaluation in a run directory if it is complete and of the current best adapter, else None."""
    root = storage.as_path(run_dir)
    try:
        found = _EVALUATION.validate_json(storage.read_text(root / EVALUATION / EVALUATION_DATA))
    except (OSError, ValueError):
        return None
    is_current = found.adapter.sha256 == storage.content_sha256(find_adapter(str(root)))
    return found if is_current and (root / EVALUATION / EVALUATION_REPORT).exists() else None


def _check_own(out: UPath, subject: Subject, is_default: bool) -> None:
    """Raise a ConfigError if `out` has another adapter's evaluation, or files of another program."""
    evaluation, report = out / EVALUATION_DATA, out / EVALUATION_REPORT
    if evaluation.exists():
        adapter = _adapter_in(evaluation)
        if adapter is not None and (
            is_default
            or adapter.get("path") == displayed_path(subject.path)
            or adapter.get("sha256") == storage.content_sha256(subject.path)
        ):
            return
        of = f"of another adapter, {adapter.get('path')}" if adapter is not None else "not of this program"
        raise ConfigError(
            message("{evaluation} is {of}, and would be written over", evaluation=evaluation, of=of),
            message("Give another --output"),
        )
    if report.exists() and not _is_report(report):
        raise ConfigError(
            message("{report} is not of this program, and would be written over", report=report),
            message("Give another --output"),
        )


def _is_report(path: UPath) -> bool:
    try:
        storage.require_file(path)
        return REPORT.is_at(path)
    except OSError:
        return False


def _adapter_in(evaluation: UPath) -> dict[str, Any] | None:
    try:
        adapter = json.loads(storage.read_text(evaluation))["adapter"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return adapter if isinstance(adapter, dict) else None


class _Scoring:
    """CLAP scores of music generated from the clips' descriptions. Invalid requests fail in the constructor.

    Raises:
        ConfigError: too few clips have a description.
        ModelError: the CLAP weights can't be used.
    """

    def __init__(
        self,
        request: EvaluateRequest,
        subject: Subject,
        model: BaseModel,
        clips: Clips,
        chosen: HeldOut,
        device: torch.device,
    ) -> None:
        self._request, self._subject, self._model, self._clips, self._device = request, subject, model, clips, device
        described = [index for index in chosen.indices if clips.descriptions[index]]
        if len(described) < FEWEST_DESCRIBED:
            raise ConfigError(
                message(
                    "{number} of the {total} clips to evaluate on have a description, which is too little "
                    "for CLAP's scores",
                    number=len(described),
                    total=len(chosen.indices),
                ),
                message("Leave out --clap-weights, or tokenize with --metadata"),
            )
        self._indices = described[: request.settings.clap_clips]
        self._clap = Clap(str(request.settings.clap_weights))

    def run(self, on_progress: OnProgress) -> MusicScores:
        settings = self._request.settings
        texts = [str(self._clips.descriptions[index]) for index in self._indices]
        pairs = render_pairs(self._request, self._subject.path, texts, on_progress)
        release_memory(self._device)
        on_progress(0, 1, message("CLAP's scores"))
        sounds = list(decoded(self._clips, self._indices, settings.duration, Codec(self._model, self._device)))
        self._clap.to(self._device)
        scores = music_scores(self._clap, str(settings.clap_weights), texts, sounds, pairs)
        on_progress(1, 1, message("CLAP's scores"))
        return scores


def _summarize(
    request: EvaluateRequest,
    subject: Subject,
    model: BaseModel,
    clips: Clips,
    chosen: HeldOut,
    losses: tuple[Losses, Losses],
    scores: MusicScores | None,
    report: str,
) -> Evaluation:
    base, adapted = losses
    interval = confidence_interval(base.mean(axis=1), adapted.mean(axis=1))
    verdict = verdict_of(interval)
    return Evaluation(
        adapter=subject.described(),
        base_model=model.identity,
        tokens=request.tokens,
        validation_fraction=chosen.fraction,
        validation_clips=chosen.total,
        is_held_out=chosen.is_certain,
        clips=len(chosen.indices),
        codes=CODEBOOKS * int(clips.frames[chosen.indices].clip(max=chosen.segment_frames).sum()),
        segment_seconds=chosen.segment_seconds,
        loss=compare(base.mean(axis=1), adapted.mean(axis=1)),
        codebooks=[compare(base[:, k], adapted[:, k]) for k in range(CODEBOOKS)],
        interval=interval,
        verdict=verdict if chosen.is_certain or verdict != "better" else "undecided",
        music=scores,
        remarks=chosen.remarks,
        report=report,
    )


def _write(
    out: UPath, evaluation: Evaluation, subject: Subject, losses: tuple[Losses, Losses], rendered: list[Pair]
) -> None:
    """Write both files, the JSON last: its presence means that the page beside it is complete and matches."""
    base, adapted = losses
    perplexities = plots.plot_codebook_perplexities(evaluation.codebooks)
    pictures = {say("Perplexity of each codebook, with and without the adapter"): perplexities}
    if evaluation.clips >= ENOUGH_CLIPS:
        differences = plots.plot_differences(base.mean(axis=1), adapted.mean(axis=1))
        pictures[say("Distribution of the loss's change over clips")] = differences
    if rows := subject.metrics():
        pictures[say("Loss of training and validation, step by step")] = plots.plot_training(rows)
    trained = pairs_of_training(subject.run_dir, subject.adapter.epoch) if subject.run_dir is not None else []
    (out / EVALUATION_DATA).unlink(missing_ok=True)
    music = {say("Samples of the training run"): trained, say("Rendered for this report"): rendered}
    write_report(out / EVALUATION_REPORT, evaluation, pictures, music)
    storage.write_text(out / EVALUATION_DATA, _EVALUATION.dump_json(evaluation, indent=1).decode())
