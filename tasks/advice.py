"""Rewrite advice for the Prefect UI: the core names command-line options, a run form has fields."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from prefect.context import FlowRunContext

_QUOTED = r"""(?<!\w)(?:'[^']*'(?!\w)|"[^"]*"|`[^`]*`|“[^”]*”)"""
_COMMAND = r"(?<![\w-])(?:musicgen-flows|uv|prefect|ssh|gcloud|hf|wandb) (?:(?![.;,:](?:\s|$)|\)).)*"
"""Pattern of a command line in a sentence, up to the next punctuation mark"""
_OPTION = r"(?<![\w/.-])--(?P<name>[a-z][a-z0-9-]*)(?![\w/]|[.-]\w)"
_PARTS = re.compile(f"{_QUOTED}|{_COMMAND}|{_OPTION}", re.DOTALL)


def in_form(text: str) -> str:
    """Return a text in which options are replaced by the fields of the current flow's form, such as `init_adapter`.

    Options of other programs, quotations, command lines and paths stay as they are, as does every text outside of
    flows. `--no-evaluate` becomes the field with its value: `evaluate false`.
    """
    context = FlowRunContext.get()
    if context is None or context.flow is None:
        return text
    form = context.flow.parameters
    return with_fields(text, {"properties": form.properties, "definitions": form.definitions})


def with_fields(text: str, schema: Mapping[str, Any]) -> str:
    """Return a text in which options are replaced by the fields of a form, whose schema of parameters is given."""
    groups = schema.get("definitions", {}).values()
    fields = {*schema.get("properties", ()), *(name for group in groups for name in group.get("properties", ()))}

    def shown(part: re.Match[str]) -> str:
        return _field(part["name"], fields) or part[0] if part["name"] else part[0]

    return _PARTS.sub(shown, text)


def _field(option: str, fields: Collection[str]) -> str | None:
    name = option.replace("-", "_")
    # The command line has short names: --epochs for num_epochs, --prompt for prompts.
    found = next((one for one in (name, f"num_{name}", f"{name}s") if one in fields), None)
    if found is None and name.startswith("no_") and name.removeprefix("no_") in fields:
        return f"{name.removeprefix('no_')} false"
    return found
