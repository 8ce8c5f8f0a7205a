"""How tokenizing goes, in WandB: archives and clips done, rejected and failed, speed, and time left."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from musicgen_core import storage
from musicgen_core.data.shards import ShardReport
from musicgen_core.tracking import Wandb


class TokenizingLog:
    """Counts outcomes as they come. One row an archive that ends."""

    def __init__(self, run: Wandb, archives: int) -> None:
        self._run = run
        self._archives = archives
        self._started = time.monotonic()
        self._outcomes: dict[str, ShardReport | None] = {}

    def add(self, stem: str, report: ShardReport | None) -> None:
        """An archive ended: with its report, or with None if it failed."""
        self._outcomes[stem] = report
        reports = [outcome for outcome in self._outcomes.values() if outcome is not None]
        done, clips = len(self._outcomes), sum(outcome.clips for outcome in reports)
        rejected = sum(len(outcome.rejected) for outcome in reports)
        seconds = max(1e-6, time.monotonic() - self._started)
        self._run.log(
            {
                "global_step": done,
                "tokenize/archives_done": done,
                "tokenize/archives_failed": done - len(reports),
                "tokenize/clips": clips,
                "tokenize/clips_rejected": rejected,
                "tokenize/clips_per_sec": (clips + rejected) / seconds,
                "tokenize/eta_seconds": seconds / done * (self._archives - done),
            }
        )


@contextmanager
def log_tokenizing(tokens: str, archives: int) -> Iterator[TokenizingLog]:
    """A WandB run of its own under `TOKENS/wandb`; for a remote TOKENS it goes up at the end."""
    target = storage.as_path(tokens)
    with tempfile.TemporaryDirectory(prefix="musicgen-") as scratch:
        stage = Path(str(target)) if storage.is_local(target) else Path(scratch)
        stage.mkdir(parents=True, exist_ok=True)
        config = {"tokens": tokens, "archives": archives}
        run = Wandb(stage, secrets.token_hex(4), f"tokenize {target.name}", job_type="tokenize", config=config)
        try:
            yield TokenizingLog(run, archives)
        finally:
            run.finish()
            if not storage.is_local(target):
                storage.upload_tree(stage, target)
