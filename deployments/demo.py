"""`musicgen-flows demo`: the whole job on made-up music with the debug model, cut off once and resumed."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.api import ensure_api
from deployments.commands import call_heard, rendered_rows, run_flow, tokenized_rows, trained_rows
from deployments.console import output, print_table, progress_bars
from deployments.options import UsageError, describe_unknown
from musicgen_core.demo_data import STYLES, make_demo_archives

if TYPE_CHECKING:
    from tasks.progress import Update

# The debug model is small: it learns fast, and its base weights mean nothing.
SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 3e-3,
    "num_epochs": 10,
    "segment_seconds": 3.0,
    "validation_fraction": 0.1,
    "save_every_steps": 100,
    "sample_prompts": [description for _, description in STYLES.values()][:1],
    "sample_seconds": 2.0,
}
CUT_OFF_AT_STEP = 90


class _CutOff(BaseException):
    """Stands for the machine being taken away: no code of the training expects it."""


def demo(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("musicgen-flows demo", description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("demo"), help="where everything goes (default ./demo)")
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(describe_unknown(unknown))
    # The demo's runs never go to anyone's WandB account.
    if os.environ.get("WANDB_MODE") != "disabled":
        os.environ["WANDB_MODE"] = "offline"
    started = time.monotonic()
    workdir = known.workdir.resolve()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run_dir, music = workdir / "runs" / stamp, workdir / "music" / stamp
    output.print(f"Making three archives of made-up music in {workdir / 'archives'} …")
    make_demo_archives(workdir / "archives")
    parameters = {
        "archives": str(workdir / "archives"),
        "tokens": str(workdir / "tokens"),
        "run_dir": str(run_dir),
        "output": str(music),
        "model": "debug",
        "device": "cpu",
        "prompts": [description for _, description in STYLES.values()],
        "duration": 4.0,
        **SETTINGS,
    }
    from flows.finetune import finetune

    ensure_api()
    _run_until_cut_off(finetune, parameters)
    output.print(
        f"The training was cut off at step {CUT_OFF_AT_STEP}, on purpose. The same flow again goes on from there:"
    )
    result = run_flow(finetune, parameters)
    seconds = time.monotonic() - started
    rows = [*tokenized_rows(result.tokenized), *trained_rows(result.trained), *rendered_rows(result.rendered)]
    rows.append(("Prefect UI", _how_to_open_ui()))
    print_table(f"The demo took {seconds:.0f} s and made", rows)
    output.print("The debug model has random weights: its music is noise. facebook/musicgen-large takes the same path.")
    return 0


def _run_until_cut_off(flow: Any, parameters: dict[str, Any]) -> None:
    with progress_bars() as bars:
        try:
            call_heard(flow, parameters, _cutting(bars))
        except _CutOff:
            return
    raise AssertionError("the training ended before it was cut off")


def _cutting(listener: Callable[[Update], None]) -> Callable[[Update], None]:
    def cut(update: Update) -> None:
        listener(update)
        if update.stage == "train" and update.done == CUT_OFF_AT_STEP:
            raise _CutOff

    return cut


def _how_to_open_ui() -> str:
    from prefect.settings import get_current_settings

    url = os.environ.get("PREFECT_API_URL")
    if url:
        return f"{url.removesuffix('/api')} has these runs"
    database = get_current_settings().home
    return f"uv run musicgen-flows up, then http://127.0.0.1:4200 has these runs (kept in {database})"
