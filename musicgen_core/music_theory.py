"""Pitch classes and scales, shared by synthesis and analysis."""

from __future__ import annotations

from typing import Literal

Mode = Literal["major", "minor"]

PITCH_CLASSES = 12
A4_HZ, A4_MIDI = 440.0, 69
SCALES: dict[Mode, tuple[int, ...]] = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
"""Semitones above the root; minor is the natural minor"""
