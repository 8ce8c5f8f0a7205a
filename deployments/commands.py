"""The commands that run one flow each, and those that do the same work without a Prefect server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from deployments.activity import working
from deployments.api import ensure_api
from deployments.console import print_outcome, print_rows, print_text
from deployments.inputs import check_evaluation, check_rendering, check_tokenizing, check_training
from flows.parameters import EstimateParameters, ExportParameters, archives_at_a_time, grouped, groups_in
from musicgen_core.config import DEFAULT_MODEL
from musicgen_core.language import message, stored_message, translated
from musicgen_core.model import hub
from musicgen_core.model.weighted_adapters import parse_adapters, shown_adapters
from musicgen_core.stages import advance, announce_torch
from musicgen_core.wording import counted, lasting, sized
from tasks import outcomes
from tasks.interruption import terminal_command
from tasks.next_steps import command_line
from tasks.progress import fetched, uploaded

if TYPE_CHECKING:
    from flows.finetune import FinetuneResult
    from flows.tokenize_archives import TokenizeResult
    from musicgen_core.evaluation.originality import Originality
    from musicgen_core.evaluation.request import Comparison, Evaluation
    from musicgen_core.generation.request import Rendered
    from musicgen_core.training.request import TrainResult
    from tasks.captioning import CaptionResult
    from tasks.progress import Update

LOADING = message("loading the flow")
_SHOWN = 10


def tokenize(parameters: dict[str, Any]) -> int:
    with working(LOADING):
        from flows.tokenize_archives import tokenize_archives

        check_tokenizing(parameters)
    result: TokenizeResult = run_flow(tokenize_archives, parameters)
    print_rows(message("Tokenized"), tokenized_rows(result))
    print_outcome(
        outcomes.tokenized(
            result.tokens,
            sum(report.clips > 0 for report in result.reports),
            parameters,
            _new_notice(result),
            page=result.page,
        )
    )
    return 0


def caption(parameters: dict[str, Any]) -> int:
    with working(LOADING):
        from flows.caption_archives import caption_archives

    result: CaptionResult = run_flow(caption_archives, parameters)
    print_rows(message("Captioned"), captioned_rows(result))
    print_outcome(outcomes.captioned(result.metadata, parameters["archives"], page=result.page, clips=result.clips))
    return 0


def train(parameters: dict[str, Any]) -> int:
    with working(LOADING):
        from flows.train_lora import train_lora

        check_training(parameters)
    result: TrainResult = run_flow(train_lora, parameters)
    print_rows(message("Trained"), trained_rows(result))
    print_outcome(outcomes.trained(result, parameters))
    return 0


def evaluate(parameters: dict[str, Any]) -> int:
    with working(LOADING):
        check_evaluation(parameters)
        from flows.evaluate_adapter import evaluate_adapter

    result: Evaluation = run_flow(evaluate_adapter, parameters)
    print_rows(message("Evaluated"), evaluated_rows(result))
    print_outcome(outcomes.evaluated(result, shown_adapters(parse_adapters(parameters["adapter"])), parameters))
    return 0


def generate(parameters: dict[str, Any]) -> int:
    with working(LOADING):
        from flows.generate_music import generate_music

        check_rendering(parameters)
    result: list[Rendered] = run_flow(generate_music, parameters)
    print_outcome(outcomes.rendered(result, parameters))
    return 0


def finetune(parameters: dict[str, Any]) -> int:
    with working(LOADING):
        from flows.finetune import finetune as finetune_flow

        check_tokenizing(parameters)
        check_training(parameters)
    result: FinetuneResult = run_flow(finetune_flow, parameters)
    captioned = result.captioned
    rows = [*(captioned_rows(captioned) if captioned else ()), *tokenized_rows(result.tokenized)]
    print_rows(message("Fine-tuned"), [*rows, *trained_rows(result.trained)])
    print_outcome(
        outcomes.finetuned(
            tokens=result.tokenized.tokens,
            shards=len(result.tokenized.reports),
            result=result.trained,
            pieces=result.rendered,
            on=parameters,
            notice=_new_notice(result.tokenized),
            new_captions=captioned.metadata if captioned else "",
            page=result.tokenized.page,
        )
    )
    return 0


def estimate(parameters: dict[str, Any]) -> int:
    given = EstimateParameters(**grouped(parameters, groups_in(EstimateParameters)))
    model = given.model or DEFAULT_MODEL
    done = count(1)
    with working() as activity, hub.download_listener(lambda progress: activity(fetched(progress))):
        announce_torch()
        from musicgen_core import estimate as estimating
        from musicgen_core.captioning.measuring import Measurer
        from musicgen_core.codec import Codec
        from musicgen_core.data.archive import choose_archives
        from musicgen_core.devices import pick_device
        from musicgen_core.estimate_rows import rows_of
        from musicgen_core.model.weights import find_codec

        picked = pick_device(given.device)
        activity.say(message("looking into the archives"))
        chosen, left_out = choose_archives(given.archives)
        if notice := outcomes.missing_descriptions(chosen):
            print_text(translated(notice), "yellow")
        found = estimating.estimate(
            chosen,
            lambda: Codec(find_codec(model), picked),
            given.clips,
            archives_at_a_time(given.workers.max_workers),
            lambda: advance(message("encoding a sample of the clips"), next(done), given.clips),
            load_measurer=partial(Measurer, picked) if notice else None,
        )
    print_rows(message("Estimate"), rows_of(found, model, given.hourly_price or None, left_out))
    on = {"model": given.model, "device": given.device}
    print_outcome(outcomes.estimated(given.archives, on, is_undescribed=bool(notice), unreadable=len(found.unreadable)))
    return 0


def export(parameters: dict[str, Any]) -> int:
    given = ExportParameters(**parameters)
    with working() as activity, hub.download_listener(lambda progress: activity(fetched(progress))):
        announce_torch()
        from musicgen_core.exporting.push import export_and_push

        exported, pushed = export_and_push(
            parse_adapters(given.adapter),
            given.out,
            given.format,
            given.model or None,
            given.push_to,
            is_public=given.public,
            listener=lambda progress: activity(uploaded(progress)),
        )
    print_rows(message("Exported"), [(name, sized(size)) for name, size in exported.files.items()])
    on = {"adapter": list(given.adapter), "model": given.model, "public": given.public}
    print_outcome(outcomes.exported(str(exported.directory), given.format, on, pushed))
    return 0


def _new_notice(result: TokenizeResult) -> str:
    """Return the notice of tokenizing, unless the terminal has shown it at the start."""
    return "" if result.is_announced else result.notice


def run_flow(flow: Any, parameters: dict[str, Any]) -> Any:
    """Run a flow here, with progress bars, against the local server if one is up, else a temporary one.

    Raises:
        Exception: the error that made the flow fail. For failed archives, an ArchivesFailed that names them.
    """
    with working(message("looking for the Prefect server")) as activity:
        ensure_api()
        activity.say(message("starting the flow"))
        state = call_heard(flow, parameters, activity)
        activity.say("")
    result = state.result(raise_on_failure=False)
    from flows.archive_runs import ArchivesFailed
    from tasks.captioning import CaptionResult

    if isinstance(result, ArchivesFailed):
        if isinstance(result.result, CaptionResult):
            command = "caption"
            print_rows(message("Captioned"), captioned_rows(result.result))
        else:
            command = "tokenize"
            print_rows(message("Tokenized"), tokenized_rows(cast("TokenizeResult", result.result), result.unnamed))
        result.next_step = message(
            "Do what each reason says, then run it again, which keeps what is finished: {command}",
            command=command_line(command, parameters),
        )
    if isinstance(result, BaseException):
        raise result
    return result


def call_heard(flow: Any, parameters: dict[str, Any], listener: Callable[[Update], None]) -> Any:
    """Run a flow, report its tasks' progress to `listener`, and return its final state.

    Raises:
        KeyboardInterrupt: Ctrl-C has ended the run.
    """
    from tasks.progress import listening

    with listening(listener):
        state = flow(**parameters, return_state=True)
    if (command := terminal_command()) is not None and command.is_interrupted:
        raise KeyboardInterrupt
    return state


def tokenized_rows(result: TokenizeResult, failed: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Return the results of tokenizing as rows of a table, with the reasons of all failed archives, or of some."""
    clips = sum(report.clips for report in result.reports)
    rejected = [(report.archive, entry) for report in result.reports for entry in report.rejected]
    seconds = sum(report.audio_seconds for report in result.reports)
    rows: list[tuple[str, str]] = [
        (message("shards"), str(len(result.reports))),
        (message("clips"), message("{clips:,}, {time} of audio", clips=clips, time=lasting(seconds))),
        (message("rejected clips"), str(len(rejected))),
    ]
    rows += [
        (f"  {archive}", message("{subject}: {found}", subject=entry.clip, found=stored_message(entry.reason)))
        for archive, entry in rejected[:_SHOWN]
    ]
    if result.failed:
        rows.append((message("failed archives"), str(len(result.failed))))
    failed = result.failed if failed is None else failed
    rows += [(f"  {archive}", stored_message(reason)) for archive, reason in list(failed.items())[:_SHOWN]]
    if (more := len(failed) - _SHOWN) > 0:
        rows.append(("  …", message("and {archives}", archives=counted(more, "more archive"))))
    return [*rows, *((message("note"), remark) for remark in result.remarks)]


def captioned_rows(result: CaptionResult) -> list[tuple[str, str]]:
    """Return the results of captioning as rows of a table."""
    rows: list[tuple[str, str]] = [
        (message("new descriptions"), f"{result.new:,}"),
        (message("descriptions replaced"), f"{result.replaced:,}"),
        (message("descriptions kept"), f"{result.kept:,}"),
        (message("clips without one"), f"{result.missing:,}"),
        (message("rejected clips"), f"{len(result.rejected):,}"),
        *(("  ", stored_message(rejected)) for rejected in result.rejected[:_SHOWN]),
    ]
    if result.failed:
        rows.append((message("failed archives"), str(len(result.failed))))
    return [row for row in rows if row[1] != "0" or row[0] == message("new descriptions")]


def trained_rows(result: TrainResult) -> list[tuple[str, str]]:
    best = message("none")
    if result.best_loss is not None:
        best = message("{loss:.3f} in epoch {epoch}", loss=result.best_loss, epoch=result.best_epoch)
    steps, epochs = counted(result.steps, "step"), counted(result.epochs, "epoch")
    first, last = _loss(result.first_loss), _loss(result.last_loss)
    rows = [
        (message("training"), message("{steps}, {epochs}{ending}", steps=steps, epochs=epochs, ending=_how(result))),
        (message("training loss"), message("{first} → {last} (first and last epoch)", first=first, last=last)),
        (result.best_name, best),
    ]
    return [*rows, *(evaluated_rows(result.evaluation) if result.evaluation else ())]


def _how(result: TrainResult) -> str:
    if result.ending == "complete before":
        return message(
            ": complete already, nothing was trained. More --epochs or --max-steps continue from here, "
            "after an early stop a larger --early-stopping"
        )
    resumed = message(", resumed at step {step}", step=result.resumed_from) if result.resumed_from else ""
    if result.ending != "stopped early":
        return resumed
    return message("{resumed}, stopped early: no validation since then was better", resumed=resumed)


def _loss(value: float | None) -> str:
    return message("unknown") if value is None else f"{value:.3f}"


def evaluated_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    perplexities: list[tuple[str, Comparison]] = [(message("perplexity"), evaluation.loss)]
    perplexities += [(message("  codebook {number}", number=k), one) for k, one in enumerate(evaluation.codebooks)]
    rows: list[tuple[str, str]] = [(message("is it better?"), evaluation.sentence())]
    for name, one in perplexities:
        both = {"base": one.base_perplexity, "adapter": one.adapter_perplexity}
        rows.append((name, message("{base:,.2f} → {adapter:,.2f} (base model and adapter)", **both)))
    if (music := evaluation.music) is not None:
        clap = message(
            "{base:.4f} → {adapter:.4f}, {clips:.4f} of clips",
            base=music.base_clap_score,
            adapter=music.adapter_clap_score,
            clips=music.clips_clap_score,
        )
        distances = f"{music.base_frechet_distance:.4f} → {music.adapter_frechet_distance:.4f}"
        rows += [(message("CLAP score"), clap), (message("Fréchet distance"), distances)]
    if (originality := evaluation.originality) is not None:
        rows += originality_rows(originality)
    return [*rows, *((message("note"), remark) for remark in evaluation.remarks)]


def originality_rows(found: Originality) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [(message("does it copy?"), found.sentence())]
    if found.adapter.nearest is not None:
        rows.append((message("  nearest clip"), found.adapter.nearest.sentence()))
    repeated = message(
        "{base:.1%} → {adapter:.1%}, {clips:.1%} of held-out clips",
        base=found.base.repeated,
        adapter=found.adapter.repeated,
        clips=found.held_out.repeated,
    )
    rows.append((message("repetition"), repeated))
    if (distances := found.distances) is not None:
        values = f"{distances.base:.1f} → {distances.adapter:.1f}"
        rows.append((message("distance to held-out clips"), values))
    return rows
