"""`musicgen-flows doctor`: check that this machine can do the work, and list what to fix. Needs no server or GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from rich.cells import cell_len
from rich.text import Text

from deployments.activity import working
from deployments.checks import capacity, keys, machine, models, places, server, services
from deployments.checks.finding import Attempt, Check, Finding, redact
from deployments.console import print_outcome, print_text
from deployments.parameters import DoctorParameters
from deployments.registering import PLACES
from musicgen_core.config import DEFAULT_MODEL, Trained
from musicgen_core.language import message, say, translated
from musicgen_core.model.model_size import measure_model
from musicgen_core.stages import mention
from tasks.next_steps import Outcome, Step

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
SECONDS = 90.0
"""For each check. Importing torch takes half of it from a cold disk; what asks a network has its own, shorter limit."""

_STEPS = (Step(message("Try everything, in about three minutes"), "demo"), Step(message("Work in a browser"), "up"))
"""Capability of a machine without problems."""
_LEVELS = {"ok": message("ok"), "warning": message("warning"), "problem": message("problem")}
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_INDENT = 4
"""Indent of the continuation lines of a long line."""


def doctor(parameters: dict[str, Any]) -> int:
    options = DoctorParameters(**parameters)
    given = {name: value for name in PLACES if (value := getattr(options, name))}
    with _silence(), working(message("looking at this machine")):
        findings = examine(options.model, options.device, given, options.places, options.clips, options.train)
    show(findings)
    has_problems = any(finding.level == "problem" for finding in findings)
    again = Step(message("Once it is fixed, check again"), "doctor", parameters)
    print_outcome(Outcome(steps=(again,) if has_problems else _STEPS))
    return 1 if has_problems else 0


@contextmanager
def _silence() -> Iterator[None]:
    """Silence the logs of libraries, whose problems are listed in the table."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def examine(
    model: str | None,
    device: str,
    given: Mapping[str, str],
    others: Sequence[str],
    clips: int | None,
    trained: Trained = "lora",
) -> list[Finding]:
    """Run every check.

    Args:
        model, device: model and device, as commands take them. By default, those of the deployments.
        given: locations by purpose. If neither these nor others are given, the server's variables name them.
        others: further locations to check.
        clips: number of training clips that need disk space; None: unknown.
        trained: what there should be room to train, an adapter or all weights.
    """
    looked = _run("Prefect API", server.look_at_server)
    configured = server.Server([looked]) if isinstance(looked, Finding) else looked
    answers, variables = configured.answers, configured.variables
    finish_services: Callable[[], list[Finding] | Finding] = list
    if answers:  # the other checks run meanwhile
        finish_services = _start(message("services"), services.check_services)
    known = {name: variables[f"musicgen_{name}"] for name in PLACES if variables.get(f"musicgen_{name}")}
    tried = given if given or others else known
    used = str(variables.get("musicgen_model") or DEFAULT_MODEL)
    of_deployments = [_used_model(used, "musicgen_model" in variables)] if answers else []
    model = model or used
    device = (variables.get("musicgen_device") if device == "auto" else "") or device
    return [
        *_findings(message("packages"), machine.check_packages),
        *_findings("GPU", machine.check_machine, device),
        *_findings(message("model files"), models.check_model_files, model),
        *_capacity(model, device, {**known, **given}, clips, trained),
        *_findings(message("keys"), keys.check_keys, configured.keys),
        *configured.findings,
        *of_deployments,
        *_listed(finish_services()),
        *_findings(message("storage"), places.check_places, tried, others),
    ]


def _used_model(model: str, is_set: bool) -> Finding:
    reason = (
        message("the variable musicgen_model")
        if is_set
        else message("the default; to set another: uv run musicgen-flows up --model NAME")
    )
    found = message("{model}, where their form names none ({reason})", model=model, reason=reason)
    return Finding(message("model of jobs"), "ok", found)


def _capacity(model: str, device: str, given: Mapping[str, str], clips: int | None, trained: Trained) -> list[Finding]:
    size = _run(message("model"), measure_model, model)
    if isinstance(size, Finding):
        return [size]
    return [
        *_findings(message("memory"), capacity.check_memory, size, device, trained),
        *_findings(message("disk"), capacity.check_disk, size, given, clips, trained),
    ]


def _findings(name: str, check: Callable[[*Arguments], list[Finding]], *arguments: *Arguments) -> list[Finding]:
    return _listed(_run(name, check, *arguments))


def _listed(found: Finding | list[Finding]) -> list[Finding]:
    return [found] if isinstance(found, Finding) else found


def _run(name: str, check: Callable[[*Arguments], T], *arguments: *Arguments) -> T | Finding:
    """Run a check and return its result, or a problem if the check hangs or fails."""
    return _start(name, check, *arguments)()


def _start(name: str, check: Callable[[*Arguments], T], *arguments: *Arguments) -> Callable[[], T | Finding]:
    """Start a check and return a function that waits for its result."""
    mention(message("looking at {name}", name=name))
    return Attempt(SECONDS, Check(name, partial(check, *arguments))).finish


def show(findings: Sequence[Finding]) -> None:
    """Print all findings, one line each, then the fixes for those that aren't ok."""
    print_text(say("Doctor"), "bold")
    checks, levels = _column(finding.check for finding in findings), _column(_LEVELS.values())
    for finding, check in zip(findings, checks, strict=True):
        level = (levels[list(_LEVELS).index(finding.level)], _STYLES[finding.level])
        print_text(Text.assemble(f"  {check}  ", level, f"  {_shown(finding.found)}"), indent=_INDENT)
    problems = [finding for finding in findings if finding.level == "problem"]
    _show_fixes(say("To fix:") if problems else say("There is nothing to fix."), problems)
    hints = [finding for finding in findings if finding.level == "warning" and finding.fix]
    if hints:
        _show_fixes(say("If you want what the warnings are about:"), hints)


def _column(texts: Iterable[str]) -> list[str]:
    """Return texts in the user's language, padded to the width of the widest."""
    shown = list(map(translated, texts))
    width = max(map(cell_len, shown))
    return [text + " " * (width - cell_len(text)) for text in shown]


def _shown(text: str) -> str:
    return redact(translated(text))


def _show_fixes(title: str, findings: Sequence[Finding]) -> None:
    print_text(title, "bold")
    checks_by_fix: dict[str, list[str]] = {}
    for finding in findings:
        checks_by_fix.setdefault(_shown(finding.fix or finding.found), []).append(translated(finding.check))
    for number, (fix, checks) in enumerate(checks_by_fix.items(), 1):
        print_text(f"{number}. {', '.join(dict.fromkeys(checks))}: {fix}", indent=_INDENT)
