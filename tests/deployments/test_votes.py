from __future__ import annotations

from pathlib import Path

import pytest

from deployments.cli import main
from musicgen_core.generation.votes import Vote, append_vote


def test_votes_of_folders_and_files_are_tallied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = {"path": "/runs/jazz/lora_weights/best_lora.pt", "sha256": "ab" * 32, "strength": 0.7}
    for number, choice in enumerate(["b"] * 9 + ["a", "none"]):
        line = {
            "a": {"file": "generated_000.wav"},
            "b": {"file": "generated_001.wav", "adapter": [adapter]},
            "vote": choice,
            "seed": number,
        }
        place = tmp_path / "saved.jsonl" if number < 5 else tmp_path / "music" / "votes.jsonl"
        append_vote(place, Vote.model_validate(line))
    with open(tmp_path / "saved.jsonl", "a") as file:
        file.write('{"vote": "a", "torn')
    assert main(["votes", str(tmp_path / "music"), str(tmp_path / "saved.jsonl")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "ignored, as not readable as votes: 1 line" in printed
    assert "base model : jazz/best_lora.pt 0.7" in printed and "1 : 9, 1 without a difference" in printed
    assert "90% of decided votes (95 % interval 60% to 98%)" in printed
    assert "jazz/best_lora.pt 0.7 is preferred" in printed


def test_a_folder_without_votes_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["votes", str(tmp_path)]) == 1
    assert f"there are no votes at {tmp_path}/votes.jsonl" in capsys.readouterr().err
