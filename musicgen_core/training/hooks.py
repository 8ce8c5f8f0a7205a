"""The callbacks of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a training run, which report, save and stop it.

    Attributes:
        on_step: called after each step with its metrics, as written to metrics.jsonl.
        on_epoch: called after an epoch's validation, with the epoch and whether it is the best so far.
        on_interval: called to save: with True every `save_every_steps` steps; with False every `save_every_minutes`.
        cancelled: asked before each step and during validation.
        on_best: called when a validation within an epoch is the best so far.
        after_epoch: called with the epoch once everything of it is saved.
        must_wait: asked before each step and after the last whether the progress could not be saved yet. The run
            waits until it is; each call blocks for about a second or retries saving.
        on_interruption: called to save when the run ends early, on request or by an error.
        on_end: called once all steps are done, to write the final files.
    """

    on_step: Callable[[dict[str, float]], None] = lambda row: None
    on_epoch: Callable[[int, bool], None] = lambda epoch, is_best: None
    on_interval: Callable[[bool], None] = lambda save_step_checkpoint: None
    cancelled: Callable[[], bool] = lambda: False
    on_best: Callable[[], None] = lambda: None
    after_epoch: Callable[[int], None] = lambda epoch: None
    must_wait: Callable[[], bool] = lambda: False
    on_interruption: Callable[[], None] = lambda: None
    on_end: Callable[[], None] = lambda: None
