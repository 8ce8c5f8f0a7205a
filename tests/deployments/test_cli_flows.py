"""Tokenizing, training and generating from the command line, and common mistakes, on a real, temporary server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deployments.cli import main
from tasks.next_steps import command_line
from tests.deployments.error_line import error_of

DEBUG_CPU = ["--model", "debug", "--device", "cpu"]
ON = {"model": "debug", "device": "cpu"}
QUICK = ["--batch-size", "4", "--gradient-accumulation-steps", "1", "--segment-seconds", "1", "--epochs", "1"]


@pytest.mark.usefixtures("prefect_server")
class TestCommonMistakes:
    def test_no_archives(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["tokenize", str(tmp_path / "none"), str(tmp_path / "tokens"), *DEBUG_CPU]) == 1
        assert "no archives found at" in error_of(capsys)

    def test_a_foreign_file_in_place_of_a_shard_gets_fitting_advice(
        self, demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "tokens").mkdir()
        mine = tmp_path / "tokens" / "archive_batch_0001.json"
        mine.write_text('{"mine": true}')
        archive = str(demo_archives / "archive_batch_0001.zip")
        assert main(["tokenize", archive, str(mine.parent), *DEBUG_CPU]) == 1
        error = error_of(capsys)
        assert f"would replace {mine}, which is no report of a shard. Give another directory" in error
        again = command_line("tokenize", {"archives": archive, "tokens": str(mine.parent), **ON})
        assert error.endswith(
            "move that file away if it isn't needed. Do what each reason says, then run it again, which keeps what is "
            f"finished: {again}"
        )
        assert mine.read_text() == '{"mine": true}'

    @pytest.mark.parametrize("command", ["tokenize", "finetune"])
    def test_archives_that_fail_or_are_left_out_are_named(
        self, command: str, demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        archives = Path(shutil.copytree(demo_archives, tmp_path / "archives"))
        (archives / "archive_batch_0002.zip").write_bytes(b"not an archive")
        (archives / "more.7z").touch()
        places = {
            "tokenize": [str(tmp_path / "tokens")],
            "finetune": [f"--{name}={tmp_path / name}" for name in ("tokens", "run-dir", "output")],
        }
        assert main([command, str(archives), *places[command], *DEBUG_CPU]) == 1
        printed = capsys.readouterr()
        assert "more.7z not read" in printed.out
        failed = str(archives / "archive_batch_0002.zip")
        assert f"error: 1 of 2 archives failed: {failed} can't be read" in printed.err
        assert (printed.out + printed.err).count(failed) == 1
        if command == "tokenize":
            again = command_line("tokenize", {"archives": str(archives), "tokens": places["tokenize"][0], **ON})
            assert printed.err.endswith(f"{again}\n")

    def test_metadata_that_match_nothing(
        self, demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        metadata = tmp_path / "metadata.jsonl"
        metadata.write_text('{"path": "nothing.wav"}\n')
        arguments = ["tokenize", str(demo_archives), str(tmp_path / "tokens"), "--metadata", str(metadata), *DEBUG_CPU]
        assert main(arguments) == 1
        assert "matches none of the 17 clips" in error_of(capsys)

    def test_tokens_that_are_not_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", str(tmp_path / "none"), str(tmp_path / "run"), *DEBUG_CPU]) == 1
        assert "no tokenized clips" in error_of(capsys)

    def test_cuda_where_there_is_no_gpu(
        self, demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        out = str(tmp_path / "out")
        assert main(["generate", out, "--prompt", "jazz", "--model", "debug", "--device", "cuda"]) == 1
        assert "finds no GPU on this machine" in error_of(capsys)

    def test_a_model_that_is_not_supported(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = [
            "generate",
            str(tmp_path),
            "--prompt",
            "x",
            "--model",
            "facebook/musicgen-style",
            "--device",
            "cpu",
        ]
        assert main(arguments) == 1
        assert "MERT" in error_of(capsys)


@pytest.mark.usefixtures("prefect_server")
def test_tokenize_train_and_generate_one_after_the_other(
    demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, run, out = (str(tmp_path / name) for name in ("tokens", "run", "music"))
    settings = tmp_path / "settings.yaml"
    settings.write_text("learning_rate: 0.002\nlora_r: 4\nseed: 3\n")
    assert main(["tokenize", str(demo_archives), tokens, *DEBUG_CPU]) == 0
    assert main(["train", tokens, run, "--config", str(settings), "--lora-r", "2", *QUICK, *DEBUG_CPU]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["lora_r"], config["learning_rate"], config["seed"]) == (2, 0.002, 3)
    assert config["base_model"].startswith("debug@sha256:")
    generate = [
        "generate",
        out,
        "--prompt",
        "jazz",
        "--prompt",
        "rock",
        "--adapter",
        run,
        "--duration",
        "0.5",
        *DEBUG_CPU,
    ]
    assert main(generate) == 0
    assert len(list((tmp_path / "music").glob("generated_*.wav"))) == 2
    capsys.readouterr()

    assert main(["train", tokens, run, "--config", str(settings), "--lora-r", "4", *QUICK, *DEBUG_CPU]) == 1
    assert "belongs to another run: lora_r is 2 there and 4 here" in error_of(capsys)
