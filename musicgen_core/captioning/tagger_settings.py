"""Settings of the tagger, which run forms, the command line and the flow share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from musicgen_core.settings import Settings

DEFAULT_CLAP = "laion/larger_clap_music"


def _check_is_for_clap(text: str | None, info: ValidationInfo) -> str | None:
    if text and info.data.get("tagger") == "musicnn":
        raise PydanticCustomError("only_with_clap", "should only be given with tagger clap")
    return text


class TaggerSettings(Settings):
    """How genres, instruments, moods and vocals are recognised."""

    model_config = ConfigDict(title="Tagger")

    tagger: Literal["musicnn", "clap"] = Field(
        "musicnn",
        description="What recognises genres, instruments, moods and vocals. musicnn: comes with the project; clap: a "
        "larger model from the Hugging Face Hub, with more instruments or labels of your own",
    )
    tagger_model: Annotated[str | None, AfterValidator(_check_is_for_clap)] = Field(
        None,
        description="CLAP model of the tagger clap: a directory in Hugging Face's format or a Hugging Face id; by "
        f"default {DEFAULT_CLAP}",
    )
    tagger_labels: Annotated[str | None, AfterValidator(_check_is_for_clap)] = Field(
        None,
        description="YAML file of labels for the tagger clap: lists named genre, instruments, mood and vocals; by "
        "default built-in ones",
    )
