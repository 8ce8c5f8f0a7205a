"""Arrangement of each style.

A style varies what it can without ceasing to be recognisable: instruments, rhythms, whether a part is there at all.
Tempo, metre and key are drawn independently of the style, so that a model can't guess one from the other. In every
style with a beat the first beat of a bar is accented: by kick and bass, while snare and chords play on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from musicgen_core.synthesis.instruments import SLIDES
from musicgen_core.synthesis.score import Score


@dataclass(frozen=True)
class Style:
    """Ranges and arrangement of a style.

    Attributes:
        arrange: adds all parts to a score.
        slowest: lowest tempo in bpm.
        fastest: highest tempo in bpm.
        meters: possible numbers of beats in a bar.
        beat: whether there is an audible beat.
    """

    arrange: Callable[[Score], None]
    slowest: int = 60
    fastest: int = 160
    meters: tuple[int, ...] = (3, 4)
    beat: bool = True


def ambient(score: Score) -> None:
    """Slow pads that change with the bar, without a beat."""
    score.reverb = 0.35
    score.chords("pad", 48, [(0, score.meter)], 0.65, voices=score.rng.choice((3, 4)), release=18)
    if score.rng.random() < 0.5:
        score.bass("sub bass", 31, [(0, score.meter, 0)], 0.5)
    if score.rng.random() < 0.4:
        score.arpeggio(score.rng.choice(("bell", "plucked string")), 60, 2.0, (0, 1, 2), 0.3, beats=2)


def lofi(score: Score) -> None:
    """Soft drums, sub bass and chords of four notes on an electric piano."""
    score.reverb = 0.12
    score.drums(_kicks(score, extra=2.5), _backbeat(score), score.steps(0.5), levels=(1.0, 0.7, 0.4))
    score.bass("sub bass", 31, [(beat, 1.5, 0) for beat in _strong_beats(score)], 0.9)
    rhythm = [(0, score.meter)] if score.rng.random() < 0.5 else [(0, 1), (1, score.meter - 1)]
    score.chords("electric piano", 52, rhythm, 0.4, voices=4)
    if score.rng.random() < 0.4:
        score.melody("flute", 67, (1.0, 1.0, 2.0), 0.4, rests=0.25)


def rock(score: Score) -> None:
    """Power chords in eighths or quarters over drums and bass."""
    score.drums(_kicks(score, extra=2.5), _backbeat(score), score.steps(0.5))
    step = score.rng.choice((0.5, 1.0))
    for bar, start, chord in score.bars():
        if bar % 4 == 0:
            score.hit("crash", start, 0.7)
        for beat in score.steps(step):
            level = 0.8 if beat == 0 else 0.55
            score.play("distorted guitar", score.pitch_near(chord, 38), start + beat, 0.9 * step, level, release=2)
    score.bass("synth bass", 28, [(beat, 0.5, 0) for beat in score.steps(0.5)], 0.7)
    if score.rng.random() < 0.4:
        score.melody(score.rng.choice(("synth lead", "organ")), 64, (0.5, 0.5, 1.0), 0.5)


def techno(score: Score) -> None:
    """A kick on every beat, bass and open hats between them, a synthesizer."""
    score.drums(
        kicks=score.steps(1),
        snares=(1.0, 3.0),
        hats=score.steps(1, 0.5),
        snare="clap",
        hat="open hat",
        levels=(1.0, 0.7, 1.0),
    )
    score.bass("synth bass", 31, [(beat, 0.5, 0) for beat in score.steps(1, 0.5)], 1.0)
    part = score.rng.choice(("arpeggio", "chords", "melody"))
    if part == "arpeggio":
        score.arpeggio("synth lead", 60, 0.5, score.rng.choice(((0, 1, 2, 3), (0, 2, 1, 2))), 0.5, beats=0.45)
    elif part == "chords":
        score.chords("synth lead", 57, [(beat, 0.5) for beat in score.steps(1)], 0.35, release=3)
    else:
        score.melody("synth lead", 62, (0.5, 0.5, 1.0), 0.5)
    if score.rng.random() < 0.3:
        score.chords("pad", 50, [(0, score.meter)], 0.4, release=12)


def folk(score: Score) -> None:
    """A plucked string, broken or strummed, over a double bass, perhaps with a flute."""
    score.reverb = 0.1
    _bass_on_strong_beats(score, "upright bass", 36, 0.9)
    if score.rng.random() < 0.5:
        order = score.rng.choice(((0, 1, 2, 3, 2, 1), (0, 2, 1, 2, 3, 2), (0, 1, 2, 1)))
        score.arpeggio("plucked string", 52, 0.5, order, 0.6, beats=0.9)
    else:
        score.chords("plucked string", 52, [(beat, 1) for beat in _backbeat(score)], 0.55, release=5)
    if score.rng.random() < 0.5:
        score.melody("flute", 67, (0.5, 1.0, 1.0), 0.55)


def jazz(score: Score) -> None:
    """A walking bass, chords on the backbeat, a swung ride cymbal."""
    score.reverb = 0.12
    walk = [(beat, 1, degree) for beat, degree in zip(score.steps(1), (0, 2, 4, 2), strict=False)]
    score.bass("upright bass", 33, walk, 1.0)
    instrument = score.rng.choice(("piano", "electric piano"))
    score.chords(instrument, 52, [(beat, 0.7) for beat in _backbeat(score)], 0.45, voices=4, release=4)
    if score.rng.random() < 0.7:
        for _, start, _ in score.bars():
            score.hit("kick", start, 0.7)
            for beat in score.steps(1):
                score.hit("ride", start + beat, 0.9)
                if beat % 2 == 1:
                    score.hit("closed hat", start + beat, 0.5)
                    score.hit("ride", start + beat + 2 / 3, 0.5)
    if score.rng.random() < 0.5:
        score.melody(instrument, 67, (0.5, 1.0, 1.0), 0.5)
    if score.rng.random() < 0.3:
        score.chords("pad", 50, [(0, score.meter)], 0.3, release=12)


def solo_piano(score: Score) -> None:
    """Melody, chords and bass on one piano."""
    score.reverb = 0.15
    _bass_on_strong_beats(score, "piano", 36, 0.8)
    if score.rng.random() < 0.5:
        score.arpeggio("piano", 52, 0.5, (1, 2, 3, 2), 0.45, beats=0.9)
    else:
        score.chords("piano", 52, [(beat, 1) for beat in _backbeat(score)], 0.45)
    score.melody("piano", 67, score.rng.choice(((1.0, 1.0, 2.0), (0.5, 1.0, 1.0))), 0.7)


def chip(score: Score) -> None:
    """Square and triangle waves without reverberation, perhaps with drums."""
    score.reverb = 0.0
    score.melody("square wave", 67, (0.5, 0.5, 1.0), 0.6)
    _bass_on_strong_beats(score, "triangle wave", 40, 1.0)
    score.chords("square wave", 57, [(beat, 0.5) for beat in _backbeat(score)], 0.22, release=2)
    if score.rng.random() < 0.5:
        score.drums(_strong_beats(score), _backbeat(score), score.steps(0.5), levels=(0.9, 0.5, 0.4))


def hymn(score: Score) -> None:
    """An organ that strikes a chord on each beat over a held bass."""
    score.reverb = 0.3
    score.bass("organ", 40, [(0, score.meter, 0)], 0.9)
    score.chords("organ", 55, [(beat, 0.9) for beat in score.steps(1)], 0.6, release=3)
    if score.rng.random() < 0.5:
        score.melody("organ", 67, (1.0, 1.0, 2.0), 0.5, rests=0.0)


def bells(score: Score) -> None:
    """A music box: melody, chords and bass on bells, perhaps over pads."""
    score.reverb = 0.2
    score.melody("bell", 72, (0.5, 1.0), 0.8)
    _bass_on_strong_beats(score, "bell", 55, 0.9)
    score.chords("bell", 60, [(beat, 1) for beat in _backbeat(score)], 0.35, voices=2)
    if score.rng.random() < 0.4:
        score.chords("pad", 48, [(0, score.meter)], 0.5, release=14)


def drums(score: Score) -> None:
    """Drums alone, with a fill of toms in every fourth bar."""
    rng, last = score.rng, score.meter - 1
    kicks = _kicks(score, extra=rng.choice((0.5, 2.5)))
    score.drums(kicks, _backbeat(score), score.steps(rng.choice((0.25, 0.5))), rng.choice(("snare", "clap")))
    for bar, start, _ in score.bars():
        if bar % 4 == 3:
            for index, tom in enumerate(("high tom", "high tom", "low tom", "low tom")):
                score.hit(tom, start + last + index / 4, 0.8)


def theremin_solo(score: Score) -> None:
    """A voice that slides from each note to the next, over a sub bass on each beat."""
    score.reverb = 0.2
    previous = None
    for _, start, chord in score.bars():
        for beat in score.steps(2):
            pitches = [score.pitch_near(chord + third, 64) for third in (0, 2, 4)]
            pitch = score.rng.choice([pitch for pitch in pitches if pitch != previous])
            slide = 5 if previous is None else max(min(pitch - previous, max(SLIDES)), min(SLIDES))
            score.play("theremin", pitch, start + beat, 1.95, 0.8, release=6, slide=slide)
            previous = pitch
    score.bass("sub bass", 31, [(beat, 1, 0) for beat in score.steps(1)], 0.6)


def carillon(score: Score) -> None:
    """A waltz of bells: low on 1, chords on 2 and 3, a melody above."""
    score.reverb = 0.25
    score.melody("bell", 72, (1.0, 1.0, 0.5), 0.8)
    score.bass("bell", 48, [(0, 1, 0)], 1.0)
    score.chords("bell", 60, [(1, 0.9), (2, 0.9)], 0.5)


def _strong_beats(score: Score) -> list[float]:
    """Return beat 1, and in 4/4 also 3."""
    return [0.0] if score.meter == 3 else [0.0, 2.0]


def _backbeat(score: Score) -> list[float]:
    """Return beats 2 and 3 of a waltz, else 2 and 4."""
    return [beat for beat in score.steps(1) if beat not in _strong_beats(score)]


def _kicks(score: Score, extra: float) -> list[float]:
    """Return the strong beats, in half of the 4/4 scores with one more kick."""
    return [*_strong_beats(score), *([extra] if score.meter == 4 and score.rng.random() < 0.5 else [])]


def _bass_on_strong_beats(score: Score, instrument: str, lowest: int, velocity: float) -> None:
    """Add the root on 1, and in 4/4 the fifth on 3."""
    line = [(beat, 1.5, degree) for beat, degree in zip(_strong_beats(score), (0, 4), strict=False)]
    score.bass(instrument, lowest, line, velocity)


STYLES: dict[str, Style] = {
    "ambient": Style(ambient, 60, 110, (4,), beat=False),
    "lofi": Style(lofi, 60, 140),
    "rock": Style(rock, 70, 160),
    "techno": Style(techno, 80, 160, (4,)),
    "folk": Style(folk),
    "jazz": Style(jazz),
    "piano": Style(solo_piano),
    "chip": Style(chip, 70, 160),
    "hymn": Style(hymn, 60, 140),
    "bells": Style(bells, 60, 140, (4,)),
    "drums": Style(drums),
}
"""Styles that the base model is trained on"""
HELD_OUT: dict[str, Style] = {
    "theremin": Style(theremin_solo, 60, 120, (4,)),
    "bellwaltz": Style(carillon, 80, 160, (3,)),
}
"""Held-out styles: sliding notes, and the combination of bells with 3/4, both known separately"""
ALL_STYLES: dict[str, Style] = {**STYLES, **HELD_OUT}
