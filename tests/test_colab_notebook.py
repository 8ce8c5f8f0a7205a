"""docs/colab.ipynb, run from top to bottom with the debug model: in place of Colab, a shell and a folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = f"{sys.executable} -m deployments.cli"
SHORTER = {"train": "--segment-seconds 3", "generate": "--duration 2"}  # two cores aren't a GPU


def code_cells() -> list[str]:
    notebook = json.loads((ROOT / "docs" / "colab.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def commands() -> Iterator[str]:
    for cell in code_cells():
        yield from re.findall(r"^!(.*)", cell.replace("\\\n", " "), re.MULTILINE)


class Secrets:
    """Of a person who has stored none."""

    class SecretNotFoundError(Exception): ...

    class NotebookAccessError(Exception): ...

    @classmethod
    def get(cls, name: str) -> str:
        raise cls.SecretNotFoundError(name)


def modules_of_colab(played: list[str]) -> dict[str, ModuleType]:
    colab, display = ModuleType("google.colab"), ModuleType("IPython.display")
    drive = ModuleType("google.colab.drive")
    drive.mount = lambda place: None  # type: ignore[attr-defined]
    colab.drive, colab.userdata = drive, Secrets  # type: ignore[attr-defined]
    display.Audio = lambda filename: filename  # type: ignore[attr-defined]
    display.display = played.append  # type: ignore[attr-defined]
    return {"google.colab": colab, "IPython.display": display}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_for_colab_runs_from_top_to_bottom(
    tmp_path: Path, demo_archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[str] = []
    for name, module in modules_of_colab(played).items():
        monkeypatch.setitem(sys.modules, name, module)
    given = {"FOLDER": str(demo_archives), "RESULTS": str(tmp_path / "drive"), "MODEL": "debug"}
    for name in ("WANDB_API_KEY", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as ipykernel exports it
    names: dict[str, object] = {}
    for cell in code_cells():
        lines = cell.replace("\\\n", " ").splitlines()
        for line in lines:
            if match := re.match(r"%env (\w+)=(.*)", line):
                monkeypatch.setenv(match[1], given.get(match[1], match[2]))
        for line in lines:
            if line.startswith("!uv run --no-sync musicgen-flows"):
                command = line[1:].replace("uv run --no-sync musicgen-flows", COMMAND)
                command = command.replace("/content/", f"{tmp_path}/content/")
                short = SHORTER.get(line.split()[5], "")
                done = subprocess.run(
                    ["bash", "-c", f"{command} {short}"], cwd=tmp_path, capture_output=True, text=True
                )
                is_fine = done.returncode == 0 or "doctor" in line  # which finds no GPU on most machines
                assert is_fine, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        python = [line for line in lines if not line.startswith(("!", "%"))]
        exec(compile("\n".join(python), "cell", "exec"), names)
    adapters = tmp_path / "drive" / "runs" / "first" / "lora_weights"
    assert {"best_lora.pt", "final_lora.pt"} <= {path.name for path in adapters.iterdir()}
    assert [Path(name).name for name in played] == [f"generated_{i:03d}.wav" for i in range(6)]


def test_the_notebook_for_colab_installs_what_a_checkout_needs() -> None:
    told = list(commands())
    assert any(command.startswith("git clone") for command in told)
    assert any("uv sync --no-dev" in command for command in told)
    assert all(" musicgen-flows " in command for command in told if command.startswith("uv run"))
