"""Files between the launcher and its workers: the request, and the reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.config import TrainSettings
from musicgen_core.errors import ConfigError
from musicgen_core.training.processes.ipc import ReportReader, Reports, read_request, write_request
from musicgen_core.training.request import TrainRequest

pytestmark = pytest.mark.timeout(900)


@given(
    request=st.builds(
        TrainRequest,
        tokens=st.text(),
        run_dir=st.text(),
        model=st.text(),
        settings=st.builds(
            TrainSettings,
            learning_rate=st.floats(1e-9, 1),
            batch_size=st.one_of(st.just("auto"), st.integers(1, 64)),
            max_steps=st.one_of(st.none(), st.integers(1, 10**9)),
            base_precision=st.sampled_from(["bf16", "fp8"]),
            compile_blocks=st.sampled_from([None, True, False]),
            seed=st.integers(0, 2**32 - 1),
        ),
        device=st.sampled_from(["auto", "cpu", "cuda"]),
        init_adapter=st.one_of(st.none(), st.text()),
    )
)
@settings(max_examples=50, deadline=None)
def test_a_request_comes_out_of_its_file_as_it_went_in(
    request: TrainRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "request.json"
    write_request(request, path)
    assert read_request(path) == request


def test_a_request_written_by_hand_needs_only_what_has_no_default(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"tokens": "t", "run_dir": "r", "model": "m", "settings": {"lora_r": 16}}))
    assert read_request(path) == TrainRequest("t", "r", "m", TrainSettings(lora_r=16))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tokens": 1}, "tokens"),
        ({"resum": "never"}, "resum"),
        ({"settings": {"lora_r": 0, "sed": 1}}, "settings.lora_r.*settings.sed"),
    ],
)
def test_every_mistake_in_a_request_is_named(tmp_path: Path, wrong: dict[str, Any], named: str) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"tokens": "t", "run_dir": "r", "model": "m", "settings": {}, **wrong}))
    with pytest.raises(ConfigError, match=named):
        read_request(path)


def test_a_request_that_is_not_there_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "request.json")):
        read_request(tmp_path / "request.json")


def test_a_report_is_read_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    reader = ReportReader(path)
    assert not list(reader.new())
    Reports(path, 0).send("step", row={"step": 1})
    Reports(path, 1).send("process", pid=7)
    with open(path, "ab") as file:
        file.write(b'{"rank": 0, "ev')
    assert [report["event"] for report in reader.new()] == ["step", "process"]
    with open(path, "ab") as file:
        file.write(b'ent": "start"}\n')
    assert list(reader.new()) == [{"rank": 0, "event": "start"}]
    assert not list(reader.new())
