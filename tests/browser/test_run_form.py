"""The run forms explain themselves, show the essential parameters first, and have one kind of field for each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

import pytest
from playwright.sync_api import expect

from deployments.registering import DEPLOYMENTS
from musicgen_core.config import HardwareSettings
from musicgen_core.learning_settings import OptimizerSettings

if TYPE_CHECKING:
    from tests.browser.site import Site
    from tests.browser.ui import Ui

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]


def form_of(site: Site, deployment: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the essential parameters of a deployment, and those in groups."""
    schema = site.client.read_deployment_by_name(f"{deployment}/{deployment}").parameter_openapi_schema
    essential = {name: entry for name, entry in schema["properties"].items() if "$ref" not in entry}
    grouped: dict[str, Any] = {}
    for group in schema.get("definitions", {}).values():
        grouped |= group["properties"]
    return essential, grouped


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_every_parameter_has_its_description_in_the_run_form(site: Site, ui: Ui, deployment: str) -> None:
    ui.open_run_form(deployment)
    essential, grouped = form_of(site, deployment)
    for name, entry in (essential | grouped).items():
        explanation = ui.parameter(name).get_by_role("article").first  # empty until the page has rendered its Markdown
        expect(explanation).to_have_text(entry["description"].replace("\n", " "))
    ui.screenshot(f"run-form-{deployment}")


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_no_form_asks_for_a_type_and_essentials_come_first(site: Site, ui: Ui, deployment: str) -> None:
    essential, grouped = form_of(site, deployment)
    for path in ("", "v2/"):
        found = site.client.read_deployment_by_name(f"{deployment}/{deployment}")
        ui.open(f"{path}deployments/deployment/{found.id}/run")
        for name in (*essential, *grouped):
            expect(ui.page.get_by_text(re.compile(rf"^{name}( \(Optional\))?$")).first).to_be_visible()
        shown = ui.page.locator("body").inner_text()
        assert "Property is type" not in shown and "is a const" not in shown
        places = [re.search(rf"^{name} \(Optional\)$", shown, re.MULTILINE) for name in (*essential, *grouped)]
        starts = [place.start() for place in places if place]
        assert len(starts) == len(places)
        assert max(starts[: len(essential)]) < min(starts[len(essential) :], default=len(shown))


def test_the_choices_of_a_parameter_are_offered(ui: Ui) -> None:
    ui.open_run_form("train-lora")
    kinds = {"schedule": OptimizerSettings, "base_precision": HardwareSettings}
    offers = {name: get_args(kind.model_fields[name].annotation) for name, kind in kinds.items()}
    for name, choices in (offers | {"compile_blocks": ("auto", "on", "off")}).items():
        offered = ui.open_choices(name)
        expect(offered).to_have_text(list(choices))
        ui.screenshot(f"run-form-choices-{name}")
        offered.get_by_text(choices[-1], exact=True).click()
        expect(ui.parameter(name).get_by_role("group")).to_have_text(choices[-1])
    ui.open_run_form("generate-music")
    for name in ("weight_bits", "cache_bits"):
        expect(ui.open_choices(name)).to_have_text(["8", "16"])
        ui.page.keyboard.press("Escape")


def test_a_copied_run_has_the_values_of_the_first_to_change_one(site: Site, ui: Ui) -> None:
    ui.open_run_form("train-lora")
    ui.fill("tokens", "/nowhere")
    ui.fill("lora_alpha", "64")
    ui.choose("full_models", "none")
    first = ui.submit()
    given = site.run(first).parameters
    assert given["tokens"] == "/nowhere" and given["lora"]["lora_alpha"] == 64
    assert given["saving"]["full_models"] == "none" and "batch_size" not in given["optimizer"]

    ui.page.locator(".flow-run-menu").first.click()
    ui.page.get_by_text("Copy to new run").click()
    expect(ui.parameter("lora_alpha").locator("input")).to_have_value("64")
    ui.fill("batch_size", "4")
    ui.screenshot("copy-to-new-run")
    second = ui.submit()
    given["optimizer"]["batch_size"] = 4
    assert site.run(second).parameters == given
    for run in (first, second):
        site.client.delete_flow_run(run)
