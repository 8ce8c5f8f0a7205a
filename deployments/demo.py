"""`musicgen-flows demo`: fine-tuning on synthesized music, from archives to a page with players, resumed once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.activity import working
from deployments.api import ensure_api
from deployments.commands import LOADING, call_heard, run_flow
from deployments.console import print_line, print_outcome, print_text
from deployments.parameters import DemoParameters
from musicgen_core.language import message, say, stored_message, translated
from musicgen_core.wording import counted, lasting
from tasks.next_steps import Made, Outcome, Step

if TYPE_CHECKING:
    from flows.tokenize_archives import TokenizeResult
    from musicgen_core.generation.request import Rendered
    from musicgen_core.training.request import TrainResult
    from tasks.progress import Update

# About a minute on two cores. A quarter of the clips is held out, so that the report has enough to judge by.
TRAINING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "segment_seconds": 6.0,
    "num_epochs": 6,
    "validation_fraction": 0.25,
    "full_models": "best_and_final",
    "sample_prompts": [],
}
CUT_OFF_AT_STEP = 50
PROMPTS = (
    "eerie theremin music with sub bass, 80 bpm, in a minor",
    "chill lofi beats with rhodes, 84 bpm, in c major",
    "driving techno with synth bass, 126 bpm, in d minor",
    "gentle acoustic folk with flute, 100 bpm, in g major",
)
"""The first is in the new style, the others in styles that the base model knows."""
SECONDS = 8.0  # per generated clip


OWN = {"archives": "archives/"}


class _CutOff(BaseException):
    """Simulates the loss of the machine: no code of the training loop handles this exception."""


def demo(parameters: dict[str, Any]) -> int:
    workdir = Path(DemoParameters(**parameters).workdir)
    # The demo's runs are never uploaded to a WandB account.
    if os.environ.get("WANDB_MODE") != "disabled":
        os.environ["WANDB_MODE"] = "offline"
        print_text(say("WandB stays offline: the demo uploads nothing."))
        logging.getLogger("musicgen_core.tracking").setLevel(logging.WARNING)  # it would be repeated for each run
    started = time.monotonic()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    archives, tokens, run_dir, music = (
        str(workdir.resolve() / name) for name in ("archives", "tokens", f"runs/{stamp}", f"music/{stamp}")
    )
    tokenized, trained, rendered = _run(archives, tokens, run_dir, music)
    print_text(say("\nThe demo took {seconds:.0f} s:", seconds=time.monotonic() - started))
    for line in _summary(tokenized, trained):
        print_text(f"- {line}", indent=2)
    print_outcome(_outcome(trained, rendered))
    return 0


def _run(archives: str, tokens: str, run_dir: str, music: str) -> tuple[TokenizeResult, TrainResult, list[Rendered]]:
    with working(LOADING):
        from flows.generate_music import generate_music
        from flows.tokenize_archives import tokenize_archives
        from flows.train_lora import train_lora
        from musicgen_core.demo_data import KNOWN_STYLES, NEW_STYLE, make_demo_archives

    print_text(say("Making music in styles that the base model knows ({names})", names=", ".join(KNOWN_STYLES)))
    print_text(say("and in one that is new to it ({style}):", style=NEW_STYLE))
    print_line(archives)
    with working(message("synthesizing music")):
        make_demo_archives(Path(archives))
    on = {"model": "demo", "device": "cpu"}
    tokenized = run_flow(tokenize_archives, {"archives": archives, "tokens": tokens, **on})
    training = {"tokens": tokens, "run_dir": run_dir, **on, **TRAINING}
    _run_until_cut_off(train_lora, training)
    print_text(say("The run was cut off at step {step}, on purpose. The same call resumes it:", step=CUT_OFF_AT_STEP))
    trained = run_flow(train_lora, training)
    rendering = {"output": music, "prompts": list(PROMPTS), "adapter": run_dir, "compare": True, "duration": SECONDS}
    return tokenized, trained, run_flow(generate_music, {**rendering, "batch_size": len(PROMPTS), **on})


def _run_until_cut_off(flow: Any, parameters: dict[str, Any]) -> None:
    with working(message("looking for the Prefect server")) as activity:
        ensure_api()
        activity.say(message("starting the flow"))
        try:
            call_heard(flow, parameters, _cutting(activity))
        except _CutOff:
            return
    raise AssertionError("the training ended before it was cut off")


def _cutting(listener: Callable[[Update], None]) -> Callable[[Update], None]:
    def cut(update: Update) -> None:
        listener(update)
        if update.stage == "train" and update.done == CUT_OFF_AT_STEP:
            raise _CutOff

    return cut


def _summary(tokenized: TokenizeResult, trained: TrainResult) -> list[str]:
    clips = sum(report.clips for report in tokenized.reports)
    seconds = sum(report.audio_seconds for report in tokenized.reports)
    rejected = [entry for report in tokenized.reports for entry in report.rejected]
    broken = "; ".join(
        say("{clip} was rejected: {reason}", clip=each.clip, reason=stored_message(each.reason)) for each in rejected
    )
    music = {"clips": counted(clips, "clip"), "time": lasting(seconds)}
    steps = {"steps": counted(trained.steps, "step"), "step": trained.resumed_from}
    lines = [
        say("{clips} tokenized, {time} of audio; {broken}.", broken=broken, **music),
        say("{steps} trained; after the cut the run resumed at step {step}.", **steps),
    ]
    return lines if trained.evaluation is None else [*lines, translated(trained.evaluation.sentence())]


def _outcome(trained: TrainResult, rendered: Sequence[Rendered]) -> Outcome:
    from musicgen_core.generation.request import page_of

    made = [Made(message("base model and adapter, to play side by side"), page_of(rendered))]
    if trained.evaluation is not None:
        made.append(Made(message("report"), trained.evaluation.report))
    if server := os.environ.get("PREFECT_API_URL", "").removesuffix("/api"):
        made.append(Made(message("the runs in the Prefect UI"), server))
    own = Step(
        message("Take your own music: put zips of sound files into archives/, and see how long it takes"),
        "estimate",
        OWN,
    )
    return Outcome(tuple(made), (own, Step(message("Work in a browser"), "up")))
