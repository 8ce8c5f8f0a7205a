"""Adapters in model repositories of the Hugging Face Hub: a PEFT directory or a `*_lora.pt`."""

from __future__ import annotations

import re
from pathlib import Path

from upath import UPath

from musicgen_core import storage
from musicgen_core.model import hub, peft_directory

_LOCATION = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<inside>\w[\w./-]*))?")
_CACHED = re.compile(r"models--(?P<user>.+?)--(?P<name>.+?)/snapshots/(?P<commit>[0-9a-f]{40})/(?P<file>.+)")
_BY_PREFERENCE = tuple(
    f"{folder}{name}_lora.pt" for name in ("best", "final", "latest") for folder in ("", "lora_weights/")
)


def may_be_on_hub(location: str) -> bool:
    """Return whether `location` has the form of `USER/NAME`, or of a file or a directory in it."""
    return _LOCATION.fullmatch(location) is not None


def is_on_hub(location: storage.Location) -> bool:
    """Return whether an adapter has to be downloaded: `location` may be on the Hub, and no such path exists."""
    return may_be_on_hub(str(location)) and not storage.as_path(location).exists()


def fetch_adapter(location: str) -> Path:
    """Return the directory or file of an adapter, after downloading its newest revision from the Hub.

    Args:
        location: `USER/NAME`, `USER/NAME/DIRECTORY` with a PEFT adapter, or `USER/NAME/PATH_lora.pt`.

    Raises:
        ModelError: it can't be downloaded, or the repository has none.
    """
    match = _LOCATION.fullmatch(location)
    assert match is not None, "asked before"
    repo, inside = match["repo"], (match["inside"] or "").rstrip("/")
    if inside.endswith(".pt"):
        return hub.fetch(repo, hub.Wanted((inside,)), newest=True) / inside
    config, weights, pickled = (f"{inside}/{name}".lstrip("/") for name in peft_directory.FILES)
    wanted = [hub.Wanted((config, (weights, pickled)))]
    if not inside:
        wanted += [hub.Wanted((_BY_PREFERENCE,)), hub.Wanted(("*_lora.pt",))]
    folder = hub.fetch(repo, *wanted, newest=True)
    if (folder / config).is_file():
        return folder / inside
    found = [folder / name for name in _BY_PREFERENCE if (folder / name).is_file()]
    return found[0] if found else next(folder.glob("*_lora.pt"))


def hub_name(path: UPath) -> str | None:
    """Return what a file in the cache is called on the Hub, `USER/NAME@COMMIT/FILE`; None for other files."""
    match = _CACHED.search(str(path))
    return match and "{user}/{name}@{commit}/{file}".format(**match.groupdict())


def displayed_path(path: UPath) -> str:
    """Return a path as shown to users: for a file in the Hub's cache, its name on the Hub."""
    return hub_name(path) or str(path)
