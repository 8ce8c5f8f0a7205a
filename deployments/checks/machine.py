"""Check Python, the packages, the GPU with its driver, and the C compiler that training on a GPU needs."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deployments.checks.finding import INSTALL, Finding, describe
from musicgen_core.language import message
from musicgen_core.wording import joined

PROJECT = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"
PACKAGES = message("packages")
SHOWN = ("torch", "audiocraft", "peft", "transformers", "prefect", "wandb", "gcsfs")

SMI_SECONDS = 20.0
GPU = "GPU"
_OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}
"""By CUDA's major version. Source: NVIDIA, CUDA Compatibility, table "CUDA toolkits and minimum driver versions"."""


def check_packages(project: Path = PROJECT) -> list[Finding]:
    """Compare the installed packages with `pyproject.toml`. The project's installed metadata may be older."""
    asked = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    return [_check_python(asked["requires-python"]), _check_requirements(asked["dependencies"])]


def _check_python(wanted: str) -> Finding:
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("Python", "ok", f"{found}, {platform.system()} {platform.machine()}")
    return Finding(
        "Python",
        "problem",
        message("{found}, not {wanted}", found=found, wanted=wanted),
        message("Use a Python that fits: uv sync --python 3.11"),
    )


def _check_requirements(dependencies: list[str]) -> Finding:
    asked = map(Requirement, dependencies)
    requirements = [one for one in asked if one.marker is None or one.marker.evaluate()]
    wrong = [found for requirement in requirements if (found := _mismatch(requirement))]
    if wrong:
        return Finding(PACKAGES, "problem", joined(wrong), INSTALL)
    shown = ", ".join(f"{one.name} {version(one.name)}" for one in requirements if one.name in SHOWN)
    found = message("all {number} as asked for: {shown}", number=len(requirements), shown=shown)
    return Finding(PACKAGES, "ok", found)


def _mismatch(requirement: Requirement) -> str:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return message("{package} is not installed", package=requirement)
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return message("{name} is {found}, not {wanted}", name=requirement.name, found=found, wanted=requirement.specifier)


@dataclass(frozen=True)
class Smi:
    """Output of nvidia-smi.

    Attributes:
        status: `missing` if nvidia-smi is not installed, `failed` if it can't reach the driver.
        gpus: name of each GPU.
        driver: version of the driver.
        reason: cause of the failure.
    """

    status: Literal["missing", "failed", "ok"]
    gpus: tuple[str, ...] = ()
    driver: str = ""
    reason: str = ""


def ask_smi() -> Smi:
    """Query nvidia-smi, which also lists GPUs that torch can't use."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Smi("missing")
    query = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, errors="replace", timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Smi("failed", reason=describe(error))
    rows = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    if done.returncode or not rows:
        return Smi("failed", reason=" ".join((done.stdout + done.stderr).split())[:300] or message("it shows no GPU"))
    return Smi("ok", tuple(name for _, name in rows), rows[0][0])


def check_machine(device: str) -> list[Finding]:
    """Check the GPUs and the C compiler."""
    gpus = check_gpus(device)
    return [*gpus, check_compiler(on_gpu=any(gpu.level == "ok" for gpu in gpus) and device != "cpu")]


def check_gpus(device: str) -> list[Finding]:
    if device == "cpu":
        return [Finding(GPU, "ok", message("not looked at: --device cpu"))]
    import torch

    smi = ask_smi()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about conditions that are findings here
        if torch.cuda.is_available():
            return [_check_gpu(index, smi) for index in range(torch.cuda.device_count())]
        return [_no_gpu(smi, needed=device == "cuda")]


def _check_gpu(index: int, smi: Smi) -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(index)
    name = f"{GPU} {index}" if torch.cuda.device_count() > 1 else GPU
    capability = (properties.major, properties.minor)
    gpu = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    try:
        if torch.ones(2, device=f"cuda:{index}").add(1).sum().item() != 4:
            raise RuntimeError("1 + 1 is not 2 there")
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        found = message("{gpu}: can't compute ({reason})", gpu=gpu, reason=describe(error))
        return Finding(name, "problem", found, _fix_for(capability))
    found = message(
        "{gpu}, {total:.1f} GiB, {free:.1f} free{driver}, torch {torch} with CUDA {cuda}; computes in {precision}",
        gpu=gpu,
        total=total / 2**30,
        free=free / 2**30,
        driver=message(", driver {version}", version=smi.driver) if smi.driver else "",
        torch=torch.__version__,
        cuda=torch.version.cuda,
        precision="fp16" if capability < (8, 0) else "bf16" if capability < (8, 9) else "bf16, fp8",
    )
    return Finding(name, "ok", found)


def _fix_for(capability: tuple[int, int]) -> str:
    import torch

    built = [int(name.removeprefix("sm_")) for name in torch.cuda.get_arch_list() if name.removeprefix("sm_").isdigit()]
    if built and 10 * capability[0] + capability[1] < min(built):
        return message(
            "This torch is not built for a GPU that old: name the package index of a build for an older CUDA in "
            "UV_INDEX, and run uv sync"
        )
    return message(
        "See who uses it and whether it is healthy: nvidia-smi; then stop that program or restart the machine"
    )


def _no_gpu(smi: Smi, needed: bool) -> Finding:
    import torch

    cuda = torch.version.cuda
    if smi.status == "failed":
        found = message("nvidia-smi is here but can't reach a GPU ({reason})", reason=smi.reason)
        fix = message("Load or reinstall NVIDIA's driver, then look again: nvidia-smi")
        return Finding(GPU, "problem", found, fix)
    if smi.status == "ok":
        return _unusable(smi, cuda)
    found = message(
        "none. On the CPU everything works with --model demo; tokenizing and generating with a real model are slow, "
        "and training musicgen-large takes too long to be of use"
    )
    if needed:
        fix = message("Use a machine with an NVIDIA GPU and its driver (nvidia-smi shows both), or --device cpu")
        return Finding(GPU, "problem", found, fix)
    return Finding(GPU, "warning", found, message("For real training runs use a machine where nvidia-smi shows a GPU"))


def _unusable(smi: Smi, cuda: str | None) -> Finding:
    """Return the problem of a GPU that torch can't use, with the reason."""
    import torch

    unusable = message(
        "{gpus} with driver {driver}, which torch {version} can't use",
        gpus=", ".join(smi.gpus),
        driver=smi.driver,
        version=torch.__version__,
    )

    def because(reason: str, fix: str) -> Finding:
        return Finding(GPU, "problem", message("{found}: {reason}", found=unusable, reason=reason), fix)

    if cuda is None:
        return because(message("it is built without CUDA"), message("Install a build with CUDA: uv sync"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return because(
            message("CUDA_VISIBLE_DEVICES is {value!r}", value=visible),
            message("Name the GPUs to use, or all: unset CUDA_VISIBLE_DEVICES"),
        )
    oldest = _OLDEST_DRIVER.get(cuda.partition(".")[0])
    major = smi.driver.partition(".")[0]
    if oldest is not None and major.isdigit() and int(major) < oldest:
        return because(
            message("the driver is too old for its CUDA {cuda}", cuda=cuda),
            message(
                "Install NVIDIA's driver {oldest} or newer, restart, and look again: nvidia-smi. Where that can't be "
                "done, name the package index of a torch build for an older CUDA in UV_INDEX, and run uv sync",
                oldest=oldest,
            ),
        )
    reason: str = message("no reason is given")
    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError, AssertionError
        reason = describe(error)
    found = message("built for CUDA {cuda}; {reason}", cuda=cuda, reason=reason)
    return because(found, message("Look at it: nvidia-smi -q"))


def check_compiler(on_gpu: bool) -> Finding:
    """Compile one line with Python's headers, as Triton does for each kernel."""
    name = message("C compiler")
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        without = message("none, which torch.compile needs: training on a GPU runs without it, slower")
        return Finding(name, "warning", without, message("Install one, on Debian: sudo apt install gcc"))
    command = [*shlex.split(found), "-fsyntax-only", "-x", "c", "-I", sysconfig.get_paths()["include"], "-"]
    try:
        done = subprocess.run(
            command,
            input="#include <Python.h>\n",
            capture_output=True,
            errors="replace",
            timeout=SMI_SECONDS,
            check=False,
        )
        reason = done.stderr.strip() or f"exit {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = describe(error)
    if not reason:
        return Finding(name, "ok", found)
    return Finding(
        name,
        "problem" if on_gpu else "warning",  # training on a GPU would fail at its first step
        message(
            "{compiler} can't compile with Python's headers ({reason})",
            compiler=found,
            reason=" ".join(reason.split())[:200],
        ),
        message(
            "Install the headers (on Debian: sudo apt install python3-dev) or correct CC; until then train with "
            "--no-compile-blocks"
        ),
    )
