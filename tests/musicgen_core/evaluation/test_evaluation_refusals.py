"""Tokens and adapters that can't be evaluated are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from musicgen_core.data.shards import Row, ShardReport, ShardWriter, publish_shard
from musicgen_core.errors import AdapterError, ConfigError, ModelError, TokensError
from musicgen_core.evaluation.evaluate import evaluate
from musicgen_core.evaluation.request import EvaluateRequest
from musicgen_core.model.adapters import Adapter, load_adapter, save_adapter
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import BaseModel

pytestmark = pytest.mark.usefixtures("blank_plots")


def write_shard(folder: Path, codec: str, clips: int) -> Path:
    folder.mkdir()
    parquet = folder.with_suffix(".parquet")
    with ShardWriter(parquet, codec) as writer:
        for i in range(clips):
            writer.add(Row(f"{i}.wav", None, 1.0, np.zeros((4, 50), dtype=np.uint16)))
    publish_shard(parquet, ShardReport("a.zip", 1, "f", "c", clips, 1.0), UPath(folder))
    return folder


def test_tokens_that_can_not_be_evaluated_on_are_named(
    debug_model: BaseModel, request_for: Callable[..., EvaluateRequest], tmp_path: Path, clap_weights: Path
) -> None:
    codec = codec_identity(debug_model)
    for tokens, kind, words in (
        (tmp_path / "none", TokensError, "there are no tokenized clips in .*none"),
        (write_shard(tmp_path / "foreign", "sha256:other", 3), TokensError, "tokenized with another model"),
        (write_shard(tmp_path / "single", codec, 1), TokensError, "a single clip .* none is held out"),
    ):
        with pytest.raises(kind, match=words):
            evaluate(request_for(tokens=str(tokens)))
    silent = request_for(tokens=str(write_shard(tmp_path / "silent", codec, 5)), clap_weights=str(clap_weights))
    with pytest.raises(ConfigError, match=r"0 of the . clips .* have a description.*Leave out --clap-weights"):
        evaluate(silent)
    with pytest.raises(ModelError, match="CLAP weights"):
        evaluate(request_for(clap_weights=str(tmp_path)))
    assert not (tmp_path / "out").exists()


def test_adapters_that_can_not_be_evaluated_are_named(
    trained: Path, request_for: Callable[..., EvaluateRequest], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=r"there is no adapter at .*nowhere"):
        evaluate(replace(request_for(adapter=str(tmp_path / "nowhere")), model=str(tmp_path / "no-model")))
    own = load_adapter(UPath(trained / "lora_weights" / "best_lora.pt"))
    foreign = UPath(tmp_path / "foreign_lora.pt")
    save_adapter(Adapter(**{**vars(own), "base_model": "facebook/musicgen-small@sha256:0123456789abcdef"}), foreign)
    with pytest.raises(AdapterError, match=r"was trained on facebook/musicgen-small.*Give --model"):
        evaluate(request_for(adapter=str(foreign)))
    for name, factor, message in [("huge", 1e37, "aren't finite numbers"), ("infinite", math.inf, "NaN or infinite")]:
        broken = {key: value * factor for key, value in own.lora.items()}
        save_adapter(Adapter(**{**vars(own), "lora": broken}), UPath(tmp_path / f"{name}_lora.pt"))
        with pytest.raises(AdapterError, match=message):
            evaluate(request_for(adapter=str(tmp_path / f"{name}_lora.pt")))
