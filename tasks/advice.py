"""Advice as the Prefect UI needs it: the core names options of the command line, a form has fields."""

from __future__ import annotations

import re

from prefect.context import FlowRunContext

_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")


def in_form(text: str) -> str:
    """Return a text with the options in it named as the fields of the current flow's form: `init_adapter`.

    What is no parameter of the flow, such as an option of another program, stays; so does everything outside of flows.
    """
    context = FlowRunContext.get()
    if context is None or context.flow is None:
        return text
    fields = context.flow.parameters.properties

    def field(option: re.Match[str]) -> str:
        name = option[1].replace("-", "_")
        # The command line has short names: --epochs for num_epochs, --prompt for prompts.
        return next((one for one in (name, f"num_{name}", f"{name}s") if one in fields), option[0])

    return _OPTION.sub(field, text)
