"""Reader of WandB's offline files, as none ships with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def _records(file: Path) -> Iterator[Any]:
    """Yield the records of a `.wandb` file: a LevelDB log, blocks of 32 KiB of fragments, after a 7-byte header."""
    record_type: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]
    data, position, whole = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # too little for a fragment's header: the block's rest is padding
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last fragment of one
            yield record_type.FromString(whole)
            whole = b""


def _values(items: Iterable[Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *above, name = item.nested_key or [item.key]
        place = values
        for key in above:
            place = place.setdefault(key, {})
        place[name] = json.loads(item.value_json)
    return values


@dataclass(frozen=True)
class Logged:
    """Logged data under a folder's `wandb/`, over all parts of a resumed run, oldest first."""

    folder: Path

    @cached_property
    def parts(self) -> list[Path]:
        return sorted((self.folder / "wandb").glob("offline-run-*"))

    def _of(self, kind: str) -> Iterator[Any]:
        for part in self.parts:
            (file,) = part.glob("run-*.wandb")
            yield from (getattr(record, kind) for record in _records(file) if record.WhichOneof("record_type") == kind)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Return the rows, without WandB's own values."""
        rows = [_values(row.item) for row in self._of("history")]
        return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]

    @property
    def axes(self) -> dict[str, str]:
        return {metric.glob_name or metric.name: metric.step_metric for metric in self._of("metric")}

    @property
    def runs(self) -> list[Any]:
        return list(self._of("run"))

    @property
    def config(self) -> dict[str, Any]:
        return {item.key: json.loads(item.value_json) for run in self.runs for item in run.config.update}

    @property
    def summary(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for summary in self._of("summary"):
            values |= _values(summary.update)
        return values

    @property
    def system_metrics(self) -> set[str]:
        return {item.key for stats in self._of("stats") for item in stats.item}

    @property
    def adapters(self) -> list[tuple[list[str], dict[str, Any], dict[str, bytes]]]:
        """Return aliases, metadata and files of each version."""
        return [
            (
                list(one.aliases),
                json.loads(one.metadata),
                {entry.path: (self.folder / entry.local_path).read_bytes() for entry in one.manifest.contents},
            )
            for one in self._of("artifact")
        ]

    def media(self, row: dict[str, Any], key: str) -> bytes:
        """Return the file of a row's audio, in the part that logged it."""
        (file,) = (self.folder / "wandb").glob(f"offline-run-*/files/{row[key]['path']}")
        return file.read_bytes()
