"""The tagger that settings choose, with what identifies it: found before anything is measured, without PyTorch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from musicgen_core.captioning.labels import DEFAULT_LABELS, Labels, read_labels
from musicgen_core.captioning.tagger_settings import DEFAULT_CLAP, TaggerSettings
from musicgen_core.model.local_files import directory_digest, find_clap

OPTION = "--tagger-model"
_DIGITS = 12  # of hashes in names


@dataclass(frozen=True)
class ChosenTagger:
    """A tagger, which tasks load.

    Attributes:
        name: program and version, for `captioned_by` and keys of persisted results; with the labels' hash.
        clap: the CLAP model, a directory or a Hugging Face id; None: musicnn.
        labels: labels of the CLAP model.
    """

    name: str
    clap: str | None = None
    labels: Labels = ()


def musicnn() -> ChosenTagger:
    """Return the default tagger."""
    return ChosenTagger(f"musicnn {version('musicnn')}")


def find_tagger(settings: TaggerSettings) -> ChosenTagger:
    """Return the tagger of the settings. The weights of a CLAP model are downloaded if they are missing.

    Raises:
        ConfigError: the file of labels can't be used.
        ModelError: the weights are missing and can't be downloaded.
    """
    if settings.tagger == "musicnn":
        return musicnn()
    labels = read_labels(settings.tagger_labels) if settings.tagger_labels else DEFAULT_LABELS
    source = settings.tagger_model or DEFAULT_CLAP
    directory = find_clap(source, OPTION)
    if Path(source).expanduser().is_dir():
        source = str(directory.absolute())
        model = f"{directory.absolute().name} sha256:{directory_digest(directory)[:_DIGITS]}"
    else:
        model = f"{source} {directory.name[:_DIGITS]}"  # the snapshot's directory is named after its commit
    digest = hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:_DIGITS]
    return ChosenTagger(f"CLAP {model}, labels {digest}, transformers {version('transformers')}", source, labels)
