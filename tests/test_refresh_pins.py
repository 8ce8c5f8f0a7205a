"""New versions of packages are kept only if the tests pass with them."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
OLD, NEW = 'pins = [\n    "sqlalchemy==2.0.58",\n]\n', 'pins = [\n    "sqlalchemy==2.1.9",\n]\n'


@pytest.fixture(scope="module")
def refresh_pins() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refresh_pins", ROOT / ".ci" / "refresh_pins.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pyproject(tmp_path: Path) -> Path:
    path = tmp_path / "pyproject.toml"
    path.write_text(OLD)
    return path


def test_pins_are_kept_after_all_checks_passed_with_them(refresh_pins: ModuleType, pyproject: Path) -> None:
    refresh_pins.keep_if_passed(pyproject, NEW, [["grep", "-q", "sqlalchemy==2.1.9", "pyproject.toml"], ["true"]])
    assert pyproject.read_text() == NEW


def test_a_check_that_fails_puts_the_old_pins_back(
    refresh_pins: ModuleType, pyproject: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="error: false fails with the new versions"):
        refresh_pins.keep_if_passed(pyproject, NEW, [["true"], ["false"], ["touch", "not-run"]])
    assert pyproject.read_text() == OLD and not pyproject.with_name("not-run").exists()
    assert "sqlalchemy==2.1.9" in capfd.readouterr().err


def test_an_interrupted_check_puts_the_old_pins_back(refresh_pins: ModuleType, pyproject: Path) -> None:
    interrupt = ["sh", "-c", f"kill -{int(signal.SIGINT)} {os.getpid()}; exec sleep 60"]
    with pytest.raises(KeyboardInterrupt):
        refresh_pins.keep_if_passed(pyproject, NEW, [interrupt])
    assert pyproject.read_text() == OLD


def test_the_first_checks_are_a_server_at_work_and_a_schedule(refresh_pins: ModuleType) -> None:
    *first, last = refresh_pins.CHECKS
    files = [check[-1] for check in first]
    assert [Path(file).name for file in files] == ["test_server_services.py", "test_up.py"]
    assert all((ROOT / file).exists() for file in [*files, *last])
