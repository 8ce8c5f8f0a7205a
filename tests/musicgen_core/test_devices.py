from __future__ import annotations

import pytest
import torch

from musicgen_core import devices
from musicgen_core.devices import can_compile, compute_dtype, pick_device
from musicgen_core.errors import DeviceError


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # so that the tests hold on machines with one


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("no_gpu")
def test_cuda_without_a_gpu_is_an_error_with_advice() -> None:
    with pytest.raises(DeviceError) as refused:
        pick_device("cuda")
    assert torch.__version__ in refused.value.found and "no GPU" in refused.value.found
    assert "nvidia-smi" in refused.value.next_step and "--device cpu" in refused.value.next_step


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


@pytest.mark.usefixtures("gpu")
def test_auto_prefers_the_gpu_and_cpu_is_the_cpu() -> None:
    assert pick_device("auto").type == pick_device("cuda").type == "cuda"
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:1", "", "CPU"])
def test_an_unknown_device_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(DeviceError, match=f"no device '{name}'. Use auto, cpu or cuda"):
        pick_device(name)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_gpus_that_compute_in_bf16_do_and_older_ones_in_fp16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert compute_dtype(torch.device("cuda")) == dtype


def test_a_cpu_computes_in_fp32() -> None:
    assert compute_dtype(torch.device("cpu")) == torch.float32


def test_without_a_compiler_or_headers_execution_is_eager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(devices, "_has_headers", lambda: True)
    assert can_compile() and not caplog.text
    monkeypatch.setattr(devices, "_has_headers", lambda: False)
    assert not can_compile() and "no Python.h" in caplog.text
    monkeypatch.delenv("CC")
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    assert not can_compile() and "no C compiler" in caplog.text
