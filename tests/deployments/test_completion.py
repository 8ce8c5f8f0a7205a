"""Completion of commands, options, choices and files by the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deployments.environment import ROOT


def test_a_shell_completes_commands_options_choices_and_files(tmp_path: Path) -> None:
    (tmp_path / "first_lora.pt").touch()
    home = {**os.environ, "HOME": str(tmp_path)}
    install = [sys.executable, "-m", "deployments.cli", "--install-completion", "--shell", "bash"]
    subprocess.run(install, env=home, check=True, capture_output=True, cwd=ROOT)
    script = """
    source ~/.bashrc
    complete_last() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _musicgen_flows; echo "${COMPREPLY[*]}"; }
    complete_last musicgen-flows tra
    complete_last musicgen-flows train --lora-d
    complete_last musicgen-flows train T R --device c
    complete_last musicgen-flows generate O --adapter fir
    """
    done = subprocess.run(["bash", "-c", script], env=home, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["train", "--lora-dropout --lora-dora", "cpu cuda", "first_lora.pt"]
