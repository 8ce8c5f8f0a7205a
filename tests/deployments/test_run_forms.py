"""Run forms, links to them, and the parameters that they accept, on a real, temporary server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import PrefectHTTPStatusError
from prefect.variables import Variable

from deployments.inputs import arranged
from deployments.registering import DEPLOYMENTS
from flows.train_lora import train_lora
from tasks.forms import beside_each_other, form_link
from tests.deployments.registered import deployed


def test_train_loras_form_has_essentials_then_groups_and_choices(
    client: SyncPrefectClient,
) -> None:
    schema = deployed(client, "train-lora").parameter_openapi_schema
    form, groups = schema["properties"], schema["definitions"]
    assert list(form)[:6] == ["tokens", "run_dir", "model", "device", "num_epochs", "train"]
    is_group = ["$ref" in entry for entry in form.values()]
    assert is_group == sorted(is_group)
    assert form["learning_rate"]["description"].startswith("How fast it learns")
    assert form["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert groups["Saving"]["properties"]["full_models"]["enum"] == ["each_epoch", "best_and_final", "none"]
    assert groups["HardwareSettings"]["properties"]["compile_blocks"]["enum"] == ["auto", "on", "off"]
    assert "Args:" not in (train_lora.description or "")


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_form_field_has_one_type_a_name_and_a_description(client: SyncPrefectClient, name: str) -> None:
    schema = deployed(client, name).parameter_openapi_schema
    groups = schema.get("definitions", {})
    assert all(group["description"] for group in groups.values())
    for form in (schema, *groups.values()):
        for field, entry in form["properties"].items():
            assert entry["title"] == field
            assert "$ref" in entry or entry["description"]
            assert "$ref" in entry or entry["type"] in ("string", "integer", "number", "boolean", "array")
            assert "const" not in entry and entry.get("default", "") is not None


def test_parameters_are_taken_by_their_own_names_and_in_groups(client: SyncPrefectClient) -> None:
    deployment = deployed(client, "train-lora").id
    command = [sys.executable, "-m", "prefect", "deployment", "run", "train-lora/train-lora"]
    command += ["-p", "lora_r=16", "-p", "tokens=/t", "-p", 'lora={"lora_alpha": 64}']
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = [UUID(word) for word in re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", done.stdout)][:1]
    assert client.read_flow_run(run).parameters == {"lora_r": 16, "tokens": "/t", "lora": {"lora_alpha": 64}}
    # As scripts and forms of earlier versions have them; the flow puts them into their groups.
    before = {"lora_r": 16, "lora_alpha": 64, "batch_size": "auto", "compile_blocks": True, "max_steps": None}
    old = client.create_flow_run_from_deployment(deployment, parameters=before)
    assert old.parameters == before
    for each in (run, old.id):
        client.delete_flow_run(each)


def test_a_group_rejects_names_and_values_that_its_form_lacks(client: SyncPrefectClient) -> None:
    deployment = deployed(client, "train-lora").id
    for wrong in ({"lora": {"lora_alfa": 64}}, {"lora": {"lora_alpha": 0}}, {"hardware": {"base_precision": "fp4"}}):
        with pytest.raises(PrefectHTTPStatusError):
            client.create_flow_run_from_deployment(deployment, parameters=wrong)


def test_a_link_to_a_form_has_the_places_that_up_has_set(client: SyncPrefectClient) -> None:
    def filled_in(deployment: str, **given: str) -> Any:
        [query] = parse_qs(urlsplit(str(form_link(deployment, given))).query)["parameters"]
        return beside_each_other(json.loads(query), deployed(client, deployment).parameter_openapi_schema)

    stored = {name: Variable.get(f"musicgen_{name}") for name in ("archives", "tokens")}
    try:
        Variable.set("musicgen_archives", "/my music/archives", overwrite=True)
        Variable.unset("musicgen_tokens")
        assert filled_in("tokenize-archives") == {"archives": "/my music/archives"}
        Variable.set("musicgen_tokens", "gs://bucket/tokens", overwrite=True)
        assert filled_in("tokenize-archives") == {"archives": "/my music/archives", "tokens": "gs://bucket/tokens"}
        assert filled_in("train-lora", tokens="/t")["tokens"] == "/t"
        assert "tokens" not in filled_in("generate-music")
    finally:
        for name, value in stored.items():
            if value is None:
                Variable.unset(f"musicgen_{name}")
            else:
                Variable.set(f"musicgen_{name}", value, overwrite=True)


def test_form_links_have_default_and_given_parameters(client: SyncPrefectClient) -> None:
    deployment, given = deployed(client, "generate-music"), {"adapter": "/r", "compare": True, "seed": 1, "top_k": 9}
    link = form_link("generate-music", given)
    assert link is not None and link.startswith(f"/deployments/deployment/{deployment.id}/run?")
    [query] = parse_qs(urlsplit(link).query)["parameters"]
    found = json.loads(query)
    assert found == arranged(found, deployment) != given  # each of them is in its group
    assert beside_each_other(found, deployment.parameter_openapi_schema) == {**deployment.parameters, **given}
    assert form_link("no-such-deployment", {}) is None
