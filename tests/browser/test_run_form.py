"""The run forms explain themselves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

import pytest
from playwright.sync_api import expect

from deployments.registering import DEPLOYMENTS
from musicgen_core.config import SamplingSettings, TokenizeSettings, TrainSettings
from musicgen_core.evaluation.request import EvaluateSettings

if TYPE_CHECKING:
    from tests.browser.conftest import Site, Ui

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]
SETTINGS: dict[str, tuple[Any, ...]] = {
    "tokenize-archives": (TokenizeSettings,),
    "train-lora": (TrainSettings,),
    "evaluate-adapter": (EvaluateSettings,),
    "generate-music": (SamplingSettings,),
    "finetune": (TokenizeSettings, TrainSettings),
}


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_every_parameter_has_its_description_in_the_run_form(site: Site, ui: Ui, deployment: str) -> None:
    ui.open_run_form(deployment)
    form = site.client.read_deployment_by_name(f"{deployment}/{deployment}").parameter_openapi_schema["properties"]
    settings = {name: field.description for kind in SETTINGS[deployment] for name, field in kind.model_fields.items()}
    assert settings.keys() <= form.keys()
    for name in form:
        explanation = ui.parameter(name).get_by_role("article").first  # empty until the page has rendered its Markdown
        expect(explanation).to_have_text(settings.get(name) or re.compile(r".{10}"))
    ui.screenshot(f"run-form-{deployment}")


def test_the_choices_of_a_parameter_are_offered(ui: Ui) -> None:
    ui.open_run_form("train-lora")
    for name in ("schedule", "base_precision", "full_models"):
        offered = ui.open_choices(name)
        choices = get_args(TrainSettings.model_fields[name].annotation)
        expect(offered).to_have_text(list(choices))
        ui.screenshot(f"run-form-choices-{name}")
        offered.get_by_text(choices[-1], exact=True).click()
        expect(ui.parameter(name).get_by_role("group")).to_have_text(choices[-1])
