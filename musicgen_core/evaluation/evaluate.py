"""Evaluate an adapter on tokens, and write `evaluation.json` and `report.html`."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import TypeAdapter
from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.codec import Codec
from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.devices import pick_device, release_memory
from musicgen_core.errors import ConfigError, RunDirectoryError
from musicgen_core.evaluation.generated import DEFAULT_SAMPLES, NearestPair, compare_samples
from musicgen_core.evaluation.held_out import (
    HeldOut,
    Losses,
    clip_losses_of_both,
    compare,
    confidence_interval,
    held_out,
    verdict_of,
)
from musicgen_core.evaluation.music import ClapScoring, Pair, pairs_of_training, render_described, render_pairs
from musicgen_core.evaluation.originality import Originality
from musicgen_core.evaluation.report import (
    REPORT,
    plot_codebook_perplexities,
    plot_differences,
    plot_training,
    write_report,
)
from musicgen_core.evaluation.request import (
    ENOUGH_CLIPS,
    EvaluatedAdapter,
    EvaluateRequest,
    Evaluation,
    MusicScores,
)
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import OnProgress
from musicgen_core.language import message, say
from musicgen_core.model.adapter_mix import (
    base_model_of_all,
    concatenated,
    identity_of,
    load_with_effect,
    strengths_of,
)
from musicgen_core.model.adapters import choose_model, displayed_path, find_adapter, hub_name
from musicgen_core.model.compression import code_vectors, codec_identity
from musicgen_core.model.trained_model import Learned, load_learned
from musicgen_core.model.weighted_adapters import (
    Mix,
    WeightedAdapter,
    parse_adapters,
    shown_adapters,
    split_adapters,
)
from musicgen_core.model.weights import BaseModel, find_model
from musicgen_core.run_layout import (
    CONFIG,
    EVALUATION,
    EVALUATION_DATA,
    EVALUATION_REPORT,
    RunConfig,
    RunLayout,
    load_config,
    run_of,
)
from musicgen_core.stages import announce

logger = logging.getLogger(__name__)
_EVALUATION = TypeAdapter(Evaluation)


@dataclass(frozen=True)
class Subject:
    """An adapter with its origin, or the sum of several as one adapter.

    Attributes:
        path: path of the weights; of a mix, those of its first adapter.
        run_dir: its run directory; None for an adapter elsewhere.
        config: the run's config.json; None for an adapter elsewhere. A mix of adapters of one run has it, too.
        mix: the adapters with their strengths; empty for one as it was trained.
        mix_identity: a text that is the same for the same sum.
    """

    path: UPath
    adapter: Learned
    run_dir: UPath | None
    config: RunConfig | None
    mix: Mix = ()
    mix_identity: str = ""

    @property
    def name(self) -> str:
        return shown_adapters(self.mix) if self.mix else displayed_path(self.path)

    @property
    def sha256(self) -> str:
        if self.mix:
            return hashlib.sha256(self.mix_identity.encode()).hexdigest()
        return storage.content_sha256(self.path)

    @property
    def adapters(self) -> Mix:
        return self.mix or (WeightedAdapter(str(self.path)),)

    @property
    def output(self) -> UPath:
        """Return the default output directory.

        It is the run directory for the best adapter and a subfolder of it for others; beside the adapter without a run
        directory; the working directory for an adapter on the Hub.
        """
        if self.run_dir is None:
            ending = f"mix_{self.sha256[:8]}_{EVALUATION}" if self.mix else EVALUATION  # one for each mix
            if (name := hub_name(self.path)) is not None:
                return storage.as_path(f"{name.partition('@')[0].partition('/')[2]}_{ending}")
            if self.path.suffix == ".pt":
                return self.path.with_name(f"{self.path.stem}_{ending}")
            directory = self.path.parent  # of peft
            return directory.with_name(f"{directory.name}_{ending}")
        return RunLayout(self.run_dir).evaluation(self.path.stem)

    def metrics(self) -> list[dict[str, float]]:
        """Return the rows of its run's metrics.jsonl, if any."""
        if self.run_dir is None or not (metrics := RunLayout(self.run_dir).metrics).exists():
            return []
        with storage.staged(metrics) as local:
            return tracking.read_metrics(local)


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
    clips = load_clips(
        storage.as_path(request.tokens),
        codec_identity(model),
        melody_model=model.name if model.chroma_frames else None,
        vectors=partial(code_vectors, model),
    )
    for problem in clips.problems():
        logger.warning("%s", problem)
    chosen = held_out(clips, request.settings, subject.config)
    release_memory(device)  # a training run in this process may have just ended
    described = [index for index in chosen.indices if clips.description(index)]
    scoring = (
        ClapScoring(request, clips=clips, described=described, total=len(chosen.indices), device=device)
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
    prompts = [Prompt(prompt=text) for text in request.settings.prompts]
    prompted = render_pairs(request, subject.adapters, prompts, on_progress) if prompts else []
    samples = request.settings.samples
    samples = DEFAULT_SAMPLES[device.type] if samples is None else samples
    wanted = described[: max(samples, scoring.clips if scoring else 0)]
    generated = render_described(
        request, adapters=subject.adapters, model=model, clips=clips, indices=wanted, on_progress=on_progress
    )
    release_memory(device)
    scores = originality = nearest = None
    if scoring or (samples and (generated or prompted)):
        codec = Codec(model, device)
        scores = scoring.run(generated, codec, on_progress) if scoring else None
        if samples and (generated or prompted):
            unused = [index for index in chosen.indices if index not in wanted]
            originality, nearest = compare_samples(
                pairs=[*generated, *prompted],
                clips=clips,
                held_out=wanted or unused[: len(prompted)],
                others=unused if wanted else unused[len(prompted) :],
                training=chosen.training,
                tokens=storage.as_path(request.tokens),
                codec=codec,
                on_progress=on_progress,
            )
    announce(message("writing the report"))
    evaluation = _summarize(
        request,
        subject=subject,
        model=model,
        clips=clips,
        chosen=chosen,
        losses=losses,
        scores=scores,
        originality=originality,
        report=str(out / EVALUATION_REPORT),
    )
    _write(out, evaluation, subject, losses, prompted, nearest)
    return evaluation


def find_subject(location: storage.Location) -> Subject:
    """Return the adapter at a location: a `*_lora.pt`, a run directory (its best) or a PEFT directory.

    Args:
        location: may have a strength, or be the text of several adapters, see `split_adapters`.

    Raises:
        AdapterError: no adapter was found, or a mix has DoRA.
        RunDirectoryError: the run directory's config.json is damaged.
    """
    given = parse_adapters(split_adapters(str(location)))
    if [one.strength for one in given] != [1]:
        return _mixed_subject(given)
    path = find_adapter(given[0].source)
    run_dir = run_of(path)
    if run_dir is None or not (run_dir / CONFIG).exists():
        return Subject(path, load_learned(path), run_dir=None, config=None)
    return Subject(path, load_learned(path), run_dir=run_dir, config=_config_of(run_dir))


def _mixed_subject(given: Mix) -> Subject:
    mix, loaded = load_with_effect(given)
    strengths = strengths_of(mix, loaded)
    parts = [(one.adapter, strength) for one, strength in zip(loaded, strengths, strict=True)]
    runs = {run_of(one.path) for one in loaded}
    run_dir = runs.pop() if len(runs) == 1 else None  # adapters of other runs have learned from other clips
    return Subject(
        path=loaded[0].path,
        adapter=replace(concatenated(parts), base_model=base_model_of_all(loaded)),
        run_dir=None,
        config=_config_of(run_dir) if run_dir is not None and (run_dir / CONFIG).exists() else None,
        mix=mix,
        mix_identity=identity_of(mix, loaded),
    )


def _config_of(run_dir: UPath) -> RunConfig:
    try:
        return load_config(run_dir)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            message("{run_dir}/config.json is damaged ({error})", run_dir=run_dir, error=error),
            message("Copy the adapter to another directory and evaluate it there"),
        ) from error


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
            is_default or adapter.get("path") == subject.name or adapter.get("sha256") == subject.sha256
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


def _summarize(
    request: EvaluateRequest,
    subject: Subject,
    model: BaseModel,
    clips: Clips,
    chosen: HeldOut,
    losses: tuple[Losses, Losses],
    scores: MusicScores | None,
    originality: Originality | None,
    report: str,
) -> Evaluation:
    base, adapted = losses
    interval = confidence_interval(base.mean(axis=1), adapted.mean(axis=1))
    verdict = verdict_of(interval)
    return Evaluation(
        adapter=EvaluatedAdapter(
            path=subject.name,
            sha256=subject.sha256,
            epoch=subject.adapter.epoch,
            global_step=subject.adapter.global_step,
        ),
        base_model=model.identity,
        tokens=request.tokens,
        validation_fraction=chosen.fraction,
        validation_clips=chosen.total,
        is_held_out=chosen.is_certain,
        clips=len(chosen.indices),
        codes=base.shape[1] * int(clips.frames[chosen.indices].clip(max=chosen.segment_frames).sum()),
        segment_seconds=chosen.segment_seconds,
        loss=compare(base.mean(axis=1), adapted.mean(axis=1)),
        codebooks=[compare(base[:, k], adapted[:, k]) for k in range(base.shape[1])],
        interval=interval,
        verdict=verdict if chosen.is_certain or verdict != "better" else "undecided",
        music=scores,
        remarks=chosen.remarks,
        report=report,
        originality=originality,
    )


def _write(
    out: UPath,
    evaluation: Evaluation,
    subject: Subject,
    losses: tuple[Losses, Losses],
    rendered: list[Pair],
    nearest: NearestPair | None,
) -> None:
    """Write both files, the JSON last: its presence means that the page beside it is complete and matches."""
    base, adapted = losses
    perplexities = plot_codebook_perplexities(evaluation.codebooks)
    pictures = {say("Perplexity of each codebook, with and without the adapter"): perplexities}
    if evaluation.clips >= ENOUGH_CLIPS:
        differences = plot_differences(base.mean(axis=1), adapted.mean(axis=1))
        pictures[say("Distribution of the loss's change over clips")] = differences
    if rows := subject.metrics():
        pictures[say("Loss of training and validation, step by step")] = plot_training(rows)
    trained = pairs_of_training(subject.run_dir, subject.adapter.epoch) if subject.run_dir is not None else []
    (out / EVALUATION_DATA).unlink(missing_ok=True)
    music = {say("Samples of the training run"): trained, say("Rendered for this report"): rendered}
    write_report(out / EVALUATION_REPORT, evaluation, pictures, music, nearest)
    storage.write_text(out / EVALUATION_DATA, _EVALUATION.dump_json(evaluation, indent=1).decode())
