"""Check whether the files of a model are cached or can be downloaded from the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deployments.checks.finding import Finding
from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model import hub

FILES = message("model files")
_PUBLISHED_T5 = "t5-base"


def check_model_files(name: str) -> list[Finding]:
    """Check language model, codec and text encoder.

    Raises:
        ModelError: no command can use the model.
    """
    from huggingface_hub import constants

    missing = list(_missing(name))
    if not missing:
        return [Finding(FILES, "ok", message("language model, codec and text encoder are on this machine"))]
    names = ", ".join(missing)
    if constants.is_offline_mode():
        return [
            Finding(
                FILES,
                "problem",
                message(
                    "{names}: not complete in {cache}, and HF_HUB_OFFLINE is set",
                    names=names,
                    cache=constants.HF_HUB_CACHE,
                ),
                message("Unset HF_HUB_OFFLINE, or copy the cache of a machine that has run with this model"),
            )
        ]
    try:
        for repo in missing:
            hub.check(repo)
    except ModelError as error:
        return [Finding(FILES, "problem", error.found, error.next_step)]
    found = message("{names}: not on this machine yet, the Hugging Face Hub has them", names=names)
    return [Finding(FILES, "ok", found)]


def _missing(name: str) -> Iterator[str]:
    """Return the ids of the repositories from which files have to be downloaded."""
    from musicgen_core.model.compression import ENCODEC, codec_repo
    from musicgen_core.model.local_files import DEBUG, TEXT_ENCODER
    from musicgen_core.model.transformers_format import has_tokenizer
    from musicgen_core.model.weights import BUILT_IN, BaseModel, find_model, refuse_unsupported, wanted_files

    if name == DEBUG:
        return  # it is made on first use
    if name in BUILT_IN or Path(name).expanduser().is_dir():
        found: Path | None = find_model(name).directory
    else:
        refuse_unsupported(name)
        found = hub.cached(name, *wanted_files(name))
    if found is None:
        yield name
        text_encoder = _PUBLISHED_T5
    else:
        model = BaseModel(name, found)
        codec = codec_repo(model)
        if codec is not None and hub.cached(codec, ENCODEC) is None:
            yield codec
        if (found / TEXT_ENCODER).is_dir():
            return
        if model.is_transformers:
            if not has_tokenizer(found) and hub.cached(model.config.t5, hub.T5_TOKENIZER) is None:
                yield model.config.t5
            return
        text_encoder = model.text_encoder
    if hub.cached(text_encoder, hub.T5) is None:
        yield text_encoder
