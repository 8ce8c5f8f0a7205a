"""Parameters of the commands that run no flow. Like `flows/parameters.py`, this module imports quickly."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from flows.fields import AdaptersModel, Device, LoadedAdapters
from musicgen_core.config import DEFAULT_MODEL, Trained
from musicgen_core.settings import LARGEST_COUNT, MOST_WORKERS, Settings

DEFAULT_HOST = "127.0.0.1"
STUDIO_PASSWORD = "MUSICGEN_STUDIO_PASSWORD"
_MOST_PORT = 65535
ASSUMED_CLIPS = 139_000
"""Clips that `doctor` looks for room for if their number is unknown: those of 139 archives"""
_TO_FILES_PORT = 100
"""From the server's port to the file server's: another `up` on the next port has both its own."""
Deployment = Literal[
    "caption-archives",
    "tokenize-archives",
    "train-lora",
    "evaluate-adapter",
    "generate-music",
    "finetune",
    "estimate",
    "export",
]


class DemoParameters(Settings):
    """Parameters of `demo`."""

    workdir: str = Field("demo", description="Folder for everything that the demo makes")


class UpParameters(Settings):
    """Parameters of `up`."""

    archives: str | None = Field(
        None, description="Where your music is: sets the variable musicgen_archives (at first ./archives)"
    )
    tokens: str | None = Field(
        None, description="Where tokens go: sets the variable musicgen_tokens (at first ./tokens)"
    )
    runs: str | None = Field(
        None, description="Where training runs go: sets the variable musicgen_runs (at first ./runs)"
    )
    output: str | None = Field(
        None, description="Where the music goes: sets the variable musicgen_output (at first ./music)"
    )
    model: str | None = Field(
        None, description="Sets the variable musicgen_model, from which jobs take their model where none is given"
    )
    device: Literal["auto", "cpu", "cuda"] | None = Field(
        None, description="Sets the variable musicgen_device, which stands for auto in jobs"
    )
    host: str = Field(DEFAULT_HOST, description="Address that the server listens at; 127.0.0.1 is this machine alone")
    port: int = Field(4200, ge=1, le=_MOST_PORT, description="Port of the server")
    files_port: int | None = Field(
        None,
        ge=1,
        le=_MOST_PORT,
        description="Port of the file server: tokens, runs and music, read-only; by default --port + 100",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=MOST_WORKERS,
        description="Training and generating jobs that run at the same time; by default one for each GPU",
    )

    @property
    def chosen_files_port(self) -> int:
        """The file server's port: `files_port`, or one derived from the server's."""
        above = self.port + _TO_FILES_PORT
        return self.files_port or (above if above <= _MOST_PORT else self.port - _TO_FILES_PORT)


def _check_parameter(entry: str) -> str:
    if "=" not in entry:
        raise PydanticCustomError("parameter", "should be name=value")
    return entry


class StudioParameters(Settings):
    """Parameters of `studio`."""

    adapter: LoadedAdapters = ()
    output: str = Field("music", description="Folder for the music, whose history the page shows")
    runs: str = Field("runs", description="Folder of training runs, whose best adapters are offered")
    model: AdaptersModel = ""
    device: Device = "auto"
    host: str = Field(
        DEFAULT_HOST, description="Address to listen at; 127.0.0.1 is this machine alone, others need a password"
    )
    port: int = Field(7860, ge=1, le=_MOST_PORT, description="Port of the page")
    password: str | None = Field(
        None,
        description=f"Password that the page asks for; better given in the environment as {STUDIO_PASSWORD}, since "
        "other users of the machine can see command lines",
    )

    @property
    def chosen_password(self) -> str | None:
        """The password given, or that of the environment; None for none."""
        return self.password or os.environ.get(STUDIO_PASSWORD) or None


class RunParameters(Settings):
    """Parameters of `run`."""

    deployment: Deployment | None = Field(None, description="The deployment to run")
    param: list[Annotated[str, AfterValidator(_check_parameter)]] = Field(
        [], description="A field of its form, name=value; the value is JSON or text"
    )
    watch: bool = Field(False, description="Follow the run until it ends; exit 1 if it fails")
    weekly: Literal["on", "off"] | None = Field(
        None,
        description="Of train-lora alone: switch its weekly schedule on or off, run nothing; with on, -p sets its "
        "parameters",
    )


class DoctorParameters(Settings):
    """Parameters of `doctor`."""

    places: list[str] = Field(
        [], description="Folders and URLs to try; by default the Prefect variables musicgen_archives and so on"
    )
    archives: str | None = Field(None, description="Folder of archives to try")
    tokens: str | None = Field(None, description="Folder of tokens to try")
    runs: str | None = Field(None, description="Folder of training runs to try")
    output: str | None = Field(None, description="Folder of music to try")
    model: str | None = Field(
        None,
        description=f"Model to have room for. Default: that of deployments, the variable musicgen_model; else "
        f"{DEFAULT_MODEL}",
    )
    device: Device = "auto"
    clips: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description=f"Clips that there should be room for; {ASSUMED_CLIPS:,} are assumed where none are given",
    )
    train: Trained = "lora"


class VotesParameters(Settings):
    """Parameters of `votes`."""

    places: list[str] = Field(
        [], description="Folders with a votes.jsonl, and files of votes saved from pages; by default the folder music"
    )
