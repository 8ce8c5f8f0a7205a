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
    """Colab's secrets of a person who has stored none and doesn't answer the request for access."""

    class SecretNotFoundError(Exception): ...

    class TimeoutException(Exception): ...

    @classmethod
    def get(cls, name: str) -> str:
        raise cls.SecretNotFoundError(name) if name == "HF_TOKEN" else cls.TimeoutException(name)


def modules_of_colab(shown: list[str]) -> dict[str, ModuleType]:
    colab, display = ModuleType("google.colab"), ModuleType("IPython.display")
    drive = ModuleType("google.colab.drive")
    drive.mount = lambda place: None  # type: ignore[attr-defined]
    drive.flush_and_unmount = lambda: shown.append("Drive has everything")  # type: ignore[attr-defined]
    colab.drive, colab.userdata = drive, Secrets  # type: ignore[attr-defined]
    display.Audio = display.Image = lambda filename: filename  # type: ignore[attr-defined]
    display.display = shown.append  # type: ignore[attr-defined]
    return {"google.colab": colab, "IPython.display": display}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_for_colab_runs_from_top_to_bottom(
    tmp_path: Path, demo_archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    for name, module in modules_of_colab(shown).items():
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "my drive").mkdir()  # blanks, as names on Drive have
    (tmp_path / "my drive" / "my music").symlink_to(demo_archives)
    given = {"FOLDER": str(tmp_path / "my drive" / "my music"), "RESULTS": str(tmp_path / "my drive"), "MODEL": "debug"}
    given["REPOSITORY"] = "an address"
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
                short = SHORTER.get(line.split()[4], "")
                done = subprocess.run(
                    ["bash", "-c", f"{command} {short}"], cwd=tmp_path, capture_output=True, text=True
                )
                is_fine = done.returncode == 0 or "doctor" in line  # which finds no GPU on most machines
                assert is_fine, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        python = [line for line in lines if not line.startswith(("!", "%"))]
        exec(compile("\n".join(python), "cell", "exec"), names)
    adapters = tmp_path / "my drive" / "runs" / "first" / "lora_weights"
    assert {"best_lora.pt", "final_lora.pt"} <= {path.name for path in adapters.iterdir()}
    music = [f"generated_{i:03d}.wav" for i in range(6)]
    assert [Path(name).name for name in shown] == ["loss.png", *music, "Drive has everything"]
    assert Path(shown[0]).stat().st_size > 1000


def test_the_notebook_for_colab_installs_what_a_checkout_needs() -> None:
    shown = list(commands())
    assert any("git clone" in command for command in shown)
    assert any("uv sync --no-dev" in command for command in shown)
    assert all(" musicgen-flows " in command for command in shown if command.startswith("uv run"))


def test_an_empty_repository_url_is_reported_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = [cell for cell in code_cells() if "git clone" in cell]
    before = cell[: cell.index("!")]
    monkeypatch.setenv("REPOSITORY", "")
    with pytest.raises(ValueError, match="REPOSITORY is empty: write the address"):
        exec("\n".join(line for line in before.splitlines() if not line.startswith("%")), {})


def test_places_with_blanks_in_their_names_are_quoted() -> None:
    for command in commands():
        assert not re.search(r"(?<![\"/])\$(FOLDER|RESULTS|MODEL|REPOSITORY)", command), command
