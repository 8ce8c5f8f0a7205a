"""Checks of a command's input files and of a deployment's parameters, before a server or a run is started."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.options import UsageError, similar
from musicgen_core import storage
from musicgen_core.config import DEFAULT_MODEL
from musicgen_core.language import message
from musicgen_core.layer_ranges import check_layers
from musicgen_core.learning_settings import check_full_training, check_optimizer
from musicgen_core.model.weighted_adapters import parse_adapters, shown_adapters
from musicgen_core.settings import names_in
from musicgen_core.stages import announce, announce_torch
from tasks.forms import groups_of_schema, in_groups

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse


def check_adapters(given: Iterable[str]) -> None:
    """Check local adapters, given with strengths or not, as `check_adapter` does."""
    for adapter in parse_adapters(given):
        check_adapter(adapter.source)


def check_adapter(location: str | None) -> None:
    """Check a local adapter. Those on the Hugging Face Hub are checked by the run, since Prefect may hold the token.

    Raises:
        AdapterError: the adapter does not exist or can't be read.
    """
    if location is None:
        return
    announce_torch()
    from musicgen_core.model.adapters import find_adapter, is_on_hub
    from musicgen_core.model.trained_model import load_learned

    if is_on_hub(location) and not _begins_here(location):
        return
    announce(message("reading the adapter"))
    load_learned(find_adapter(location))


def check_evaluation(given: Mapping[str, Any]) -> None:
    """Check the tokens and the adapter among the parameters of `evaluate-adapter`.

    Raises:
        TokensError: the tokens are of another codec than the adapter's base model.
        AdapterError: see `check_adapter`.
    """
    from musicgen_core.training.codec_check import check_codec_of_adapter

    check_codec_of_adapter(given["tokens"], shown_adapters(parse_adapters(given["adapter"])), given.get("model"))
    check_adapters(given["adapter"])


def check_tokenizing(given: Mapping[str, Any]) -> None:
    """Check that Demucs is installed if `tokenize-archives` or `finetune` is to separate clips.

    Raises:
        ConfigError: it is not installed.
    """
    from musicgen_core.separation.settings import separating_option
    from musicgen_core.separation.weights import check_installed

    if option := separating_option(given.get("remove_vocals", False), given.get("separate_melody", False)):
        check_installed(option)


def check_training(given: Mapping[str, Any]) -> None:
    """Check a run of `train-lora` or `finetune`: the settings, the adapter to start from, the file of general prompts.

    Raises:
        AdapterError: see `check_adapter`.
        ConfigError: the file can't be used, the model lacks some of the layers, the optimizer's package is not
            installed, or settings don't fit `train`.
    """
    from musicgen_core.generation.prompts import read_prompts
    from musicgen_core.model.local_files import layers_here
    from musicgen_core.training.files.run_directory import begins_new

    check_optimizer(given.get("optimizer_name", "adamw"))
    check_full_training(given, given.get("gpus", 1))
    model = given.get("model")  # if it isn't given, a variable of the server may name it
    if model is not None and (count := layers_here(model)) is not None:
        check_layers(given.get("layers"), given.get("ranks"), count)
    if "init_adapter" in given and begins_new(storage.as_path(given["run_dir"]), given.get("resume", "auto")):
        check_adapter(given["init_adapter"])
    prior_prompts = given.get("prior_prompts")
    if prior_prompts is not None and not _is_pipe(prior_prompts):
        read_prompts(prior_prompts)


def check_rendering(given: Mapping[str, Any]) -> None:
    """Check the adapter, the file of prompts and the sound files of `generate-music`.

    Raises:
        AdapterError: see `check_adapter`.
        ConfigError: one of the files can't be used, or the model takes no melody.
    """
    from musicgen_core.generation.melody import check_melodies
    from musicgen_core.generation.plan import check_continued
    from musicgen_core.generation.prompts import read_prompts
    from musicgen_core.separation.weights import check_installed

    check_adapters(given.get("adapter", ()))
    prompts_file = given.get("prompts_file")
    prompts = read_prompts(prompts_file) if prompts_file is not None and not _is_pipe(prompts_file) else []
    for adapters in dict.fromkeys(prompt.adapter for prompt in prompts):
        check_adapters(adapters)
    check_continued(prompts, given.get("continue_from"))
    has_adapter = given.get("adapter") or any(prompt.adapter for prompt in prompts)  # which may name another model
    model = given.get("model") or (None if has_adapter else DEFAULT_MODEL)
    check_melodies([*(prompt.melody for prompt in prompts), given.get("melody")], model)
    if given.get("separate_melody"):
        check_installed("--separate-melody")


def _begins_here(location: str) -> bool:
    """Return whether the name begins with an existing directory, as a mistyped `runs/first` does."""
    return Path(Path(location).parts[0]).is_dir()


def _is_pipe(location: str) -> bool:
    """Return whether the file can be read only once, such as a shell's `<(…)`."""
    path = storage.as_path(location)
    return storage.is_local(path) and Path(str(path)).is_fifo()


def parsed(entries: Sequence[str]) -> dict[str, Any]:
    """Parse `name=value` entries. A value is JSON or text, as for `prefect deployment run`."""
    return dict(map(_parsed, entries))


def _parsed(entry: str) -> tuple[str, Any]:
    name, _, value = entry.partition("=")
    try:
        return name, json.loads(value, parse_constant=_refuse)
    except ValueError:
        return name, value


def _refuse(constant: str) -> None:
    """Reject NaN and Infinity, which pass every bound of a schema and are not valid JSON for a server."""
    raise ValueError(constant)


def arranged(given: Mapping[str, Any], deployment: DeploymentResponse) -> dict[str, Any]:
    """Return parameters in the groups of the deployment's run form.

    A text for a list is a list of one; for a list of fixed names or of numbers, of those that commas separate.

    Raises:
        UsageError: the deployment does not take some parameters. All of them are listed.
    """
    schema = deployment.parameter_openapi_schema or {}
    fields = _fields(schema)
    found = in_groups({name: _listed(value, fields.get(name, {})) for name, value in given.items()}, schema)
    if problems := list(_problems(found, schema, deployment.name)):
        raise UsageError(problems)
    return found


def _fields(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schemas of all parameters by name, those in groups and those outside."""
    groups = groups_of_schema(schema)
    known = {name: entry for name, entry in schema.get("properties", {}).items() if name not in groups}
    for fields in groups.values():
        known |= fields
    return known


def _listed(value: Any, field: Mapping[str, Any]) -> Any:
    items = field.get("items", {})
    if field.get("type") != "array" or not isinstance(value, str | int | float):
        return value
    if items.get("type") == "number":
        return [_parsed(f"={number}")[1] for number in names_in(str(value))]
    return names_in(value) if "enum" in items else [value] if isinstance(value, str) else value


def _problems(given: Mapping[str, Any], schema: dict[str, Any], deployment: str) -> Iterator[str]:
    from prefect.utilities.schema_tools import validate

    properties, known = schema.get("properties", {}), _fields(schema)
    if unknown := [name for name in given if name not in properties]:
        near = dict.fromkeys(match for name in unknown for match in similar(name, known))
        meant = f" (perhaps {', '.join(near)})" if near else ""
        yield f"{deployment} has no parameter {', '.join(map(repr, unknown))}{meant}; it has {', '.join(known)}"
    for error in validate({name: given[name] for name in given if name in properties}, schema, ignore_required=True):
        name = error.json_path.rpartition(".")[2]
        takes_list = known.get(name, {}).get("type") == "array"
        hint = f""" (a list: -p '{name}=["one", "another"]')""" if takes_list else ""
        yield f"{name}: {error.message}{hint}"
