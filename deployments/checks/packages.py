"""Check Python and the packages that the project requires."""

from __future__ import annotations

import platform
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deployments.checks.finding import INSTALL, Finding
from musicgen_core.language import message
from musicgen_core.wording import joined

PROJECT = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"
PACKAGES = message("packages")
SHOWN = ("torch", "audiocraft", "peft", "transformers", "prefect", "wandb", "gcsfs")


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
    requirements = [one for text in dependencies if _applies(one := Requirement(text))]
    wrong = [found for requirement in requirements if (found := _mismatch(requirement))]
    if wrong:
        return Finding(PACKAGES, "problem", joined(wrong), INSTALL)
    shown = ", ".join(f"{one.name} {version(one.name)}" for one in requirements if one.name in SHOWN)
    found = message("all {number} as asked for: {shown}", number=len(requirements), shown=shown)
    return Finding(PACKAGES, "ok", found)


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def _mismatch(requirement: Requirement) -> str:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return message("{package} is not installed", package=requirement)
    fits = requirement.specifier.contains(found, prereleases=True)
    if fits:
        return ""
    return message(
        "{name} is {found}, not {wanted}",
        name=requirement.name,
        found=found,
        wanted=requirement.specifier,
    )
