"""Types of what fixtures return, for the annotations of tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

if TYPE_CHECKING:
    import torch
    from prefect.client.schemas.objects import Artifact

    from musicgen_core.data.shards import Row, ShardReport
    from musicgen_core.evaluation.request import Evaluation
    from musicgen_core.model.adapters import Adapter
    from musicgen_core.training.request import TrainRequest

Contents: TypeAlias = Callable[..., list[tuple[str, bytes | str]]]
Evaluate: TypeAlias = "Callable[..., Evaluation]"
KillAfter: TypeAlias = "Callable[[TrainRequest, int], None]"
KilledIn: TypeAlias = Callable[[str, int], AbstractContextManager[None]]
LeftIn: TypeAlias = Callable[[str], Any]
MakeRequest: TypeAlias = "Callable[..., TrainRequest]"
MakeRow: TypeAlias = "Callable[..., Row]"
MakeTokens: TypeAlias = Callable[..., Path]
MakeWav: TypeAlias = Callable[..., bytes]
Members: TypeAlias = list[tuple[str, bytes]]
Pack: TypeAlias = Callable[..., Path]
RowsOf: TypeAlias = "Callable[..., list[Row]]"
SameWeights: TypeAlias = "Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None]"
Save: TypeAlias = "Callable[[Adapter], Path]"
Shown: TypeAlias = "Callable[[UUID], dict[str, Artifact]]"
TokensOf: TypeAlias = "Callable[[Sequence[Row]], Path]"
WriteShard: TypeAlias = "Callable[..., ShardReport]"
WriteZip: TypeAlias = Callable[..., Path]
