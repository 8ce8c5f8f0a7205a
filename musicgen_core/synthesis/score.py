"""Notes on a grid of beats: the parts from which styles are made.

A bar is a whole number of codec frames and every note starts on a frame. So a bar that is played again has the same
codes, which makes rhythm and repetition far easier to learn for a small model; the tempo is off by at most 0.7 %.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from musicgen_core.codes import FRAME_RATE
from musicgen_core.music_theory import PITCH_CLASSES, SCALES, Mode
from musicgen_core.synthesis.instruments import INDEX, INSTRUMENTS

Events = NDArray[np.float32]
"""[notes, 5]: index into `NOTES`, onset in frames, sustain in frames, release in frames, velocity (0 to 1)"""
Rhythm = Sequence[tuple[float, float]]
"""Beat of a bar at which each note starts, and its length in beats"""

PROGRESSIONS: dict[Mode, tuple[tuple[int, int, int, int], ...]] = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (0, 3, 0, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 6), (0, 3, 6, 2)),
}
"""Four bars of chords, as degrees of the scale: I V vi IV and so on"""


class Score:
    """A score under construction: tempo, key and chords are fixed, parts are added one by one.

    All notes lie in the key. Melody and chords repeat every four bars.

    Attributes:
        reverb: level of the reverberation.
        instruments: instruments in the order of entry, without drums.
        has_drums: whether any drum plays.
    """

    def __init__(self, rng: random.Random, bpm: int, meter: int, root: int, mode: Mode, frames: int) -> None:
        self.rng, self.bpm, self.meter, self.root, self.mode, self.frames = rng, bpm, meter, root, mode, frames
        self.reverb = 0.06
        self.instruments: list[str] = []
        self.has_drums = False
        self._events: list[tuple[float, ...]] = []
        self._progression = rng.choice(PROGRESSIONS[mode])
        self._bar_frames = round(meter * 60 / bpm * FRAME_RATE)

    @property
    def events(self) -> Events:
        return np.array(self._events, np.float32).reshape(-1, 5)

    def bars(self) -> Iterator[tuple[int, int, int]]:
        """Yield each bar: its number, its first beat, its chord as a degree of the scale."""
        for bar in range(-(-self.frames // self._bar_frames)):
            yield bar, bar * self.meter, self._progression[bar % len(self._progression)]

    def steps(self, length: float, offset: float = 0.0) -> list[float]:
        """Return the beats of a bar that lie `length` apart."""
        return [offset + index * length for index in range(round((self.meter - offset) / length))]

    # Notes

    def pitch(self, degree: int, lowest: int) -> int:
        """Return a degree of the scale in semitones; degree 0 is the first root from `lowest` on, 7 its octave."""
        octave, step = divmod(degree, 7)
        return lowest + (self.root - lowest) % PITCH_CLASSES + PITCH_CLASSES * octave + SCALES[self.mode][step]

    def pitch_near(self, degree: int, lowest: int) -> int:
        """Return a degree of the scale within the octave from `lowest` on."""
        return lowest + (self.pitch(degree, lowest) - lowest) % PITCH_CLASSES

    def play(
        self,
        instrument: str,
        pitch: int,
        beat: float,
        beats: float,
        velocity: float,
        *,
        release: int = 4,
        slide: int = 0,
    ) -> None:
        """Add a note; a pitch outside the instrument's range is transposed by octaves."""
        of = INSTRUMENTS[instrument]
        while pitch < of.lowest:
            pitch += PITCH_CLASSES
        while pitch > of.highest:
            pitch -= PITCH_CLASSES
        if instrument not in self.instruments:
            self.instruments.append(instrument)
        self._add(INDEX[instrument, pitch, slide], beat, beats=beats, release=release, velocity=velocity)

    def hit(self, drum: str, beat: float, velocity: float) -> None:
        """Add a drum hit, which rings out."""
        self.has_drums = True
        self._add(INDEX[drum, 0, 0], beat, beats=8, release=4, velocity=velocity)

    def _add(self, note: int, beat: float, beats: float, release: int, velocity: float) -> None:
        onset, end = self._frame_at(beat), self._frame_at(beat + beats)
        if onset < self.frames:
            self._events.append((note, onset, max(1, end - onset), release, velocity))

    def _frame_at(self, beat: float) -> int:
        bar, within = divmod(beat, self.meter)
        return int(bar) * self._bar_frames + round(within * self._bar_frames / self.meter)

    # Parts

    def chords(
        self, instrument: str, lowest: int, rhythm: Rhythm, velocity: float, voices: int = 3, release: int = 6
    ) -> None:
        """Add the chords of the progression in thirds, the first of each bar louder than the others."""
        for _, start, chord in self.bars():
            for beat, beats in rhythm:
                level = velocity if beat == 0 else 0.8 * velocity
                for voice in range(voices):
                    pitch = self.pitch_near(chord + 2 * voice, lowest)
                    self.play(instrument, pitch, start + beat, 0.95 * beats, level, release=release)

    def arpeggio(
        self, instrument: str, lowest: int, step: float, order: Sequence[int], velocity: float, beats: float = 1.0
    ) -> None:
        """Add broken chords: `order` numbers the notes of the chord upwards, and starts again with each bar."""
        for _, start, chord in self.bars():
            for index, beat in enumerate(self.steps(step)):
                octave, third = divmod(order[index % len(order)], 3)
                pitch = self.pitch_near(chord + 2 * third, lowest) + PITCH_CLASSES * octave
                level = velocity if beat == 0 else 0.8 * velocity
                self.play(instrument, pitch, start + beat, beats, level, release=5)

    def bass(self, instrument: str, lowest: int, line: Sequence[tuple[float, float, int]], velocity: float) -> None:
        """Add a bass line: beat, length in beats, degree above the chord's root; accented on the first beat."""
        for _, start, chord in self.bars():
            for beat, beats, degree in line:
                level = velocity if beat == 0 else 0.7 * velocity
                pitch = self.pitch_near(chord + degree, lowest)
                self.play(instrument, pitch, start + beat, 0.95 * beats, level, release=3)

    def melody(
        self, instrument: str, lowest: int, lengths: Sequence[float], velocity: float, rests: float = 0.1, span: int = 9
    ) -> None:
        """Add two bars of melody that are repeated over the chords; each bar begins with a note of its chord.

        Args:
            lengths: in beats, each as likely as the others.
            rests: share of notes that are left out.
            span: range in degrees of the scale.
        """
        motif = [self._motif(lengths, rests, span) for _ in range(2)]
        for bar, start, chord in self.bars():
            for beat, beats, degree in motif[bar % 2]:
                if beat == 0:
                    degree = min(
                        range(span + 1), key=lambda note: ((note - chord) % 7 not in (0, 2, 4), abs(note - degree))
                    )
                level = velocity if beat == 0 else 0.85 * velocity
                self.play(instrument, self.pitch(degree, lowest), start + beat, 0.9 * beats, level)

    def _motif(self, lengths: Sequence[float], rests: float, span: int) -> list[tuple[float, float, int]]:
        degree, beat, notes = self.rng.randrange(2, span - 1), 0.0, []
        while beat < self.meter:
            beats = min(self.rng.choice(lengths), self.meter - beat)
            degree = min(max(degree + self.rng.choice((-2, -1, -1, 1, 1, 2)), 0), span)
            if beat == 0 or self.rng.random() >= rests:
                notes.append((beat, beats, degree))
            beat += beats
        return notes

    def drums(
        self,
        kicks: Sequence[float],
        snares: Sequence[float],
        hats: Sequence[float],
        snare: str = "snare",
        hat: str = "closed hat",
        levels: tuple[float, float, float] = (1.0, 0.85, 0.6),
    ) -> None:
        """Add a bar of drums, repeated; hats off the beat are softer."""
        for _, start, _ in self.bars():
            for beat in kicks:
                self.hit("kick", start + beat, levels[0] if beat == 0 else 0.8 * levels[0])
            for beat in snares:
                self.hit(snare, start + beat, levels[1])
            for beat in hats:
                self.hit(hat, start + beat, levels[2] if beat % 1 == 0 else 0.6 * levels[2])
