"""The programs that measure clips and compose captions, with their versions."""

from __future__ import annotations

from importlib.metadata import version

MEASURING = 1
"""Version of the measurements: increase it when the same clip would be measured differently"""


def measured_by(tagger: str) -> str:
    """Return what measures the clips, for keys of persisted results and `captioned_by`.

    Args:
        tagger: its `ChosenTagger.name`.
    """
    programs = f"{tagger}, silero-vad {version('silero-vad')}"
    return f"musicgen-flows {version('musicgen-flows')} (measurements {MEASURING}, {programs})"
