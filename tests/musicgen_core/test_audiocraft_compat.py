from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from pathlib import Path

import pytest
import torch

from musicgen_core.audiocraft_compat import import_audiocraft

STOOD_IN_FOR = ("xformers", "spacy", "librosa")


@pytest.fixture(autouse=True, scope="module")
def _audiocraft() -> None:
    import_audiocraft()


def skip_if_installed(package: str) -> None:
    if package in importlib.metadata.packages_distributions():
        pytest.skip(f"{package} itself is installed here")


@pytest.mark.parametrize("package", STOOD_IN_FOR)
def test_a_stand_in_names_the_package_when_more_is_asked_of_it(package: str) -> None:
    skip_if_installed(package)
    module = importlib.import_module(package)
    with pytest.raises(ImportError, match=f"{package}.anything .* pip install {package}"):
        _ = module.anything


def test_xformers_own_attention_names_xformers() -> None:
    skip_if_installed("xformers")
    ops = importlib.import_module("xformers.ops")
    with pytest.raises(ImportError, match="pip install xformers"):
        ops.memory_efficient_attention(torch.zeros(1), torch.zeros(1), torch.zeros(1))


def test_xformers_unbind_is_torchs() -> None:
    skip_if_installed("xformers")
    assert importlib.import_module("xformers.ops").unbind is torch.unbind


def test_audiocraft_attends_with_torch() -> None:
    assert import_audiocraft("audiocraft.modules.transformer")._efficient_attention_backend == "torch"


def test_importing_audiocraft_leaves_logging_as_it_is() -> None:
    assert "submitit" in sys.modules  # which would configure it
    assert logging.getLogger("submitit").handlers == []


@pytest.mark.parametrize("package", STOOD_IN_FOR)
def test_a_real_package_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("real = True")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    import_audiocraft()
    assert importlib.import_module(package).real


@pytest.mark.parametrize("package", STOOD_IN_FOR)
def test_a_real_package_already_imported_stays(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = type(sys)(package)
    monkeypatch.setitem(sys.modules, package, real)
    import_audiocraft()
    assert sys.modules[package] is real
