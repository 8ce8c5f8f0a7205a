"""Names of repositories on the Hugging Face Hub, to suggest the one that was probably meant."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

MUSICGENS = (
    *(f"facebook/musicgen-{kind}{size}" for kind in ("", "stereo-") for size in ("small", "medium", "large")),
    *(f"facebook/musicgen-{kind}{size}" for kind in ("melody", "stereo-melody") for size in ("", "-large")),
)
KNOWN = (
    *MUSICGENS,
    *(f"t5-{size}" for size in ("small", "base", "large")),
    "laion/larger_clap_music",
)
"""Repositories that users name"""
_PREFIX = "models--"
_SIMILARITY = 0.75
"""Minimum similarity (difflib's ratio, 1 if equal) of a name and the one that it is taken for a typo of"""


def nearest(name: str) -> str | None:
    """Return the most similar name among the known repositories and those in the cache; None: none is similar.

    A name without a user is also compared with theirs without it: `musicgen-large` is `facebook/musicgen-large`.
    """
    candidates = {known: known for known in (*_in_cache(), *KNOWN)}
    if "/" not in name:
        candidates = {known.rpartition("/")[2]: known for known in candidates} | candidates
    lowered = {candidate.lower(): known for candidate, known in candidates.items() if known != name}
    found = get_close_matches(name.lower(), lowered, n=1, cutoff=_SIMILARITY)
    return lowered[found[0]] if found else None


def _in_cache() -> list[str]:
    """Return the names of complete or begun downloads in the cache."""
    from huggingface_hub import constants

    try:
        folders = [folder.name for folder in Path(constants.HF_HUB_CACHE).expanduser().iterdir()]
    except OSError:
        return []
    names = [folder.removeprefix(_PREFIX) for folder in folders if folder.startswith(_PREFIX)]
    return sorted(name.replace("--", "/", 1) for name in names)
