"""The findings of `musicgen-flows doctor` about a machine: GPUs, compiler, packages, memory and disk space."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from deployments.checks.capacity import check_disk, needed_gib, run_directory_bytes
from deployments.checks.finding import Check, Finding, attempt_all
from deployments.checks.machine import check_compiler, check_gpus, check_packages
from deployments.parameters import ASSUMED_CLIPS
from musicgen_core.config import TrainSettings
from musicgen_core.model.debug_model import debug_model_directory
from musicgen_core.model.model_size import measure_model
from musicgen_core.training.files.disk_space import Sizes

HANGS = "exec sleep 300"


class TestMachine:
    def test_a_check_that_hangs_does_not_hold_up_the_rest(self) -> None:
        never = threading.Event()

        def hangs() -> Finding:
            never.wait(200)
            return Finding("never", "ok", "")

        found = attempt_all(2.0, [Check("driver", hangs), Check("quick", lambda: Finding("quick", "ok", "there"))])
        never.set()
        assert found[0].level == "problem" and "no answer within 2 seconds" in found[0].found
        assert found[1] == Finding("quick", "ok", "there")

    def test_no_gpu_is_a_warning_unless_one_is_asked_for(self) -> None:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        [found] = check_gpus("auto")
        assert found.level == "warning" and "--model demo" in found.found
        assert check_gpus("cuda")[0].level == "problem"
        assert check_gpus("cpu")[0].level == "ok"

    @pytest.mark.parametrize(
        ("script", "environment", "said"),
        [
            ('echo "535.183.01, NVIDIA A100-SXM4-80GB"', {}, "the driver is too old"),
            ('echo "590.01, NVIDIA L4"', {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES is ''"),
            ('echo "590.01, NVIDIA L4"', {}, "Found no NVIDIA driver"),
            (
                'echo "NVIDIA-SMI has failed because it could not talk to the driver."; exit 9',
                {},
                "NVIDIA-SMI has failed",
            ),
            (HANGS, {}, "TimeoutExpired"),
        ],
    )
    def test_an_unusable_gpu_is_a_problem_with_its_reason(
        self, script: str, environment: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A fake nvidia-smi stands in for the GPU, which the test machine lacks."""
        import torch

        if torch.cuda.is_available() or torch.version.cuda is None:
            pytest.skip("wants a torch with CUDA and no GPU")
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr("deployments.checks.machine.SMI_SECONDS", 1.0 if script == HANGS else 120.0)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        [found] = check_gpus("auto")
        assert found.level == "problem" and said in found.found and found.fix

    def test_a_compiler_is_tried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert check_compiler(on_gpu=True).level == "ok"
        monkeypatch.setenv("CC", "false")
        assert [check_compiler(on_gpu).level for on_gpu in (True, False)] == ["problem", "warning"]
        monkeypatch.delenv("CC")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert check_compiler(on_gpu=True).level == "warning"

    def test_packages_are_compared_with_pyproject(self, tmp_path: Path) -> None:
        assert [finding.level for finding in check_packages()] == ["ok", "ok"]
        project = tmp_path / "pyproject.toml"
        project.write_text(
            '[project]\nrequires-python = ">=3.99"\n'
            'dependencies = ["prefect==1.0", "no-such-package>=2", "rich", "wandb<0; sys_platform == \'never\'"]\n'
        )
        python, packages = check_packages(project)
        assert python.level == "problem" and "not >=3.99" in python.found
        assert packages.level == "problem" and packages.fix.endswith("uv sync")
        assert "prefect is 3." in packages.found and "no-such-package>=2 is not installed" in packages.found
        assert "rich" not in packages.found and "wandb" not in packages.found


class TestCapacity:
    def test_sizes_are_those_of_the_model_itself(self) -> None:
        size = measure_model("debug")
        file = debug_model_directory() / "state_dict.bin"
        assert size.file_bytes == pytest.approx(file.stat().st_size, rel=0.1)
        assert measure_model(str(file.parent)).parameters == size.parameters

    def test_musicgen_large_is_as_measured_on_an_h200(self) -> None:
        """bench/RESULTS.md: GiB at most at each micro-batch; README: 78 MB an adapter."""
        size = measure_model("facebook/musicgen-large")
        for micro, measured in ((1, 10.2), (2, 14.0), (4, 21.4), (8, 36.3), (16, 66.3)):
            assert needed_gib(size, "fused", micro) == pytest.approx(measured, rel=0.06)
        assert needed_gib(size, "checkpointing", 1) == pytest.approx(6.9, rel=0.06)
        assert 4 * size.lora_parameters / 2**20 == pytest.approx(78, rel=0.02)

    def test_a_disk_without_room_names_what_fits(self, tmp_path: Path) -> None:
        size = measure_model("debug")
        places = {"runs": str(tmp_path / "runs"), "tokens": str(tmp_path / "tokens")}
        assert [finding.level for finding in check_disk(size, places, clips=100)] == ["ok"]
        [found] = check_disk(size, places, clips=10**12)
        assert found.level == "problem" and "--keep-last 1" in found.fix and "a run directory" in found.found

    def test_a_disk_without_room_for_an_assumed_number_of_clips_is_no_problem(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = measure_model("debug")
        places = {"runs": str(tmp_path / "runs"), "tokens": str(tmp_path / "tokens")}
        room = 100 * size.file_bytes  # for a run directory of few clips, and not for the tokens of many
        monkeypatch.setattr("deployments.checks.capacity.shutil.disk_usage", lambda path: SimpleNamespace(free=room))
        [found] = check_disk(size, places, clips=None)
        assert found.level == "warning" and found.fix
        assert f"{ASSUMED_CLIPS:,} clips (assumed; --clips N for yours) take up to" in found.found
        [found] = check_disk(size, places, clips=ASSUMED_CLIPS)
        assert found.level == "problem" and "assumed" not in found.found
        room = 0
        [found] = check_disk(size, places, clips=None)
        assert found.level == "problem"

    def test_a_remote_run_directory_takes_no_room_here(self) -> None:
        size = measure_model("facebook/musicgen-large")
        places = {"runs": "memory://bucket/runs", "tokens": "memory://bucket/tokens"}
        found = check_disk(size, places, clips=1000)
        assert found and all("a run directory" not in finding.found for finding in found)

    def test_the_run_directorys_size_is_that_of_its_checkpoints(self) -> None:
        size = measure_model("facebook/musicgen-large")
        needed = run_directory_bytes(size, TrainSettings(save_every_steps=10**6), 16 * 100)
        sizes = Sizes(size.file_bytes, 4 * size.lora_parameters)
        assert 7 * sizes.full_model < needed < 7.6 * sizes.full_model
