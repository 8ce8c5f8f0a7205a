"""What is played in each style.

A style varies what it can without ceasing to be recognisable: instruments, rhythms, whether a part is there at all.
Tempo, metre and key are drawn independently of the style, so that a model can't guess one from the other. In every
style with a beat the first beat of a bar is accented: by kick and bass, while snare and chords play on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from musicgen_core.synthesis.instruments import SLIDES
from musicgen_core.synthesis.piece import Piece


@dataclass(frozen=True)
class Style:
    """How pieces of a style are composed.

    Attributes:
        arrange: adds all parts to a piece.
        slowest, fastest: in bpm.
        meters: beats in a bar.
        beat: whether there is one to be heard.
    """

    arrange: Callable[[Piece], None]
    slowest: int = 60
    fastest: int = 160
    meters: tuple[int, ...] = (3, 4)
    beat: bool = True


def ambient(piece: Piece) -> None:
    """Slow pads that change with the bar, without a beat."""
    piece.reverb = 0.35
    piece.chords("pad", 48, [(0, piece.meter)], 0.65, voices=piece.rng.choice((3, 4)), release=18)
    if piece.rng.random() < 0.5:
        piece.bass("sub bass", 31, [(0, piece.meter, 0)], 0.5)
    if piece.rng.random() < 0.4:
        piece.arpeggio(piece.rng.choice(("bell", "plucked string")), 60, 2.0, (0, 1, 2), 0.3, beats=2)


def lofi(piece: Piece) -> None:
    """Soft drums, sub bass and chords of four notes on an electric piano."""
    piece.reverb = 0.12
    piece.drums(_kicks(piece, extra=2.5), _backbeat(piece), piece.steps(0.5), levels=(1.0, 0.7, 0.4))
    piece.bass("sub bass", 31, [(beat, 1.5, 0) for beat in _strong_beats(piece)], 0.9)
    rhythm = [(0, piece.meter)] if piece.rng.random() < 0.5 else [(0, 1), (1, piece.meter - 1)]
    piece.chords("electric piano", 52, rhythm, 0.4, voices=4)
    if piece.rng.random() < 0.4:
        piece.melody("flute", 67, (1.0, 1.0, 2.0), 0.4, rests=0.25)


def rock(piece: Piece) -> None:
    """Power chords in eighths or quarters over drums and bass."""
    piece.drums(_kicks(piece, extra=2.5), _backbeat(piece), piece.steps(0.5))
    step = piece.rng.choice((0.5, 1.0))
    for bar, start, chord in piece.bars():
        if bar % 4 == 0:
            piece.hit("crash", start, 0.7)
        for beat in piece.steps(step):
            level = 0.8 if beat == 0 else 0.55
            piece.play("distorted guitar", piece.pitch_near(chord, 38), start + beat, 0.9 * step, level, release=2)
    piece.bass("synth bass", 28, [(beat, 0.5, 0) for beat in piece.steps(0.5)], 0.7)
    if piece.rng.random() < 0.4:
        piece.melody(piece.rng.choice(("synth lead", "organ")), 64, (0.5, 0.5, 1.0), 0.5)


def techno(piece: Piece) -> None:
    """A kick on every beat, bass and open hats between them, a synthesizer."""
    piece.drums(piece.steps(1), (1.0, 3.0), piece.steps(1, 0.5), "clap", "open hat", (1.0, 0.7, 1.0))
    piece.bass("synth bass", 31, [(beat, 0.5, 0) for beat in piece.steps(1, 0.5)], 1.0)
    part = piece.rng.choice(("arpeggio", "chords", "melody"))
    if part == "arpeggio":
        piece.arpeggio("synth lead", 60, 0.5, piece.rng.choice(((0, 1, 2, 3), (0, 2, 1, 2))), 0.5, beats=0.45)
    elif part == "chords":
        piece.chords("synth lead", 57, [(beat, 0.5) for beat in piece.steps(1)], 0.35, release=3)
    else:
        piece.melody("synth lead", 62, (0.5, 0.5, 1.0), 0.5)
    if piece.rng.random() < 0.3:
        piece.chords("pad", 50, [(0, piece.meter)], 0.4, release=12)


def folk(piece: Piece) -> None:
    """A plucked string, broken or strummed, over a double bass, perhaps with a flute."""
    piece.reverb = 0.1
    _bass_on_strong_beats(piece, "upright bass", 36, 0.9)
    if piece.rng.random() < 0.5:
        order = piece.rng.choice(((0, 1, 2, 3, 2, 1), (0, 2, 1, 2, 3, 2), (0, 1, 2, 1)))
        piece.arpeggio("plucked string", 52, 0.5, order, 0.6, beats=0.9)
    else:
        piece.chords("plucked string", 52, [(beat, 1) for beat in _backbeat(piece)], 0.55, release=5)
    if piece.rng.random() < 0.5:
        piece.melody("flute", 67, (0.5, 1.0, 1.0), 0.55)


def jazz(piece: Piece) -> None:
    """A walking bass, chords on the backbeat, a swung ride cymbal."""
    piece.reverb = 0.12
    walk = [(beat, 1, degree) for beat, degree in zip(piece.steps(1), (0, 2, 4, 2), strict=False)]
    piece.bass("upright bass", 33, walk, 1.0)
    instrument = piece.rng.choice(("piano", "electric piano"))
    piece.chords(instrument, 52, [(beat, 0.7) for beat in _backbeat(piece)], 0.45, voices=4, release=4)
    if piece.rng.random() < 0.7:
        for _, start, _ in piece.bars():
            piece.hit("kick", start, 0.7)
            for beat in piece.steps(1):
                piece.hit("ride", start + beat, 0.9)
                if beat % 2 == 1:
                    piece.hit("closed hat", start + beat, 0.5)
                    piece.hit("ride", start + beat + 2 / 3, 0.5)
    if piece.rng.random() < 0.5:
        piece.melody(instrument, 67, (0.5, 1.0, 1.0), 0.5)
    if piece.rng.random() < 0.3:
        piece.chords("pad", 50, [(0, piece.meter)], 0.3, release=12)


def piano(piece: Piece) -> None:
    """Melody, chords and bass on one piano."""
    piece.reverb = 0.15
    _bass_on_strong_beats(piece, "piano", 36, 0.8)
    if piece.rng.random() < 0.5:
        piece.arpeggio("piano", 52, 0.5, (1, 2, 3, 2), 0.45, beats=0.9)
    else:
        piece.chords("piano", 52, [(beat, 1) for beat in _backbeat(piece)], 0.45)
    piece.melody("piano", 67, piece.rng.choice(((1.0, 1.0, 2.0), (0.5, 1.0, 1.0))), 0.7)


def chip(piece: Piece) -> None:
    """Square and triangle waves without reverberation, perhaps with drums."""
    piece.reverb = 0.0
    piece.melody("square wave", 67, (0.5, 0.5, 1.0), 0.6)
    _bass_on_strong_beats(piece, "triangle wave", 40, 1.0)
    piece.chords("square wave", 57, [(beat, 0.5) for beat in _backbeat(piece)], 0.22, release=2)
    if piece.rng.random() < 0.5:
        piece.drums(_strong_beats(piece), _backbeat(piece), piece.steps(0.5), levels=(0.9, 0.5, 0.4))


def hymn(piece: Piece) -> None:
    """An organ that strikes a chord on each beat over a held bass."""
    piece.reverb = 0.3
    piece.bass("organ", 40, [(0, piece.meter, 0)], 0.9)
    piece.chords("organ", 55, [(beat, 0.9) for beat in piece.steps(1)], 0.6, release=3)
    if piece.rng.random() < 0.5:
        piece.melody("organ", 67, (1.0, 1.0, 2.0), 0.5, rests=0.0)


def bells(piece: Piece) -> None:
    """A music box: melody, chords and bass on bells, perhaps over pads."""
    piece.reverb = 0.2
    piece.melody("bell", 72, (0.5, 1.0), 0.8)
    _bass_on_strong_beats(piece, "bell", 55, 0.9)
    piece.chords("bell", 60, [(beat, 1) for beat in _backbeat(piece)], 0.35, voices=2)
    if piece.rng.random() < 0.4:
        piece.chords("pad", 48, [(0, piece.meter)], 0.5, release=14)


def drums(piece: Piece) -> None:
    """Drums alone, with a fill of toms in every fourth bar."""
    rng, last = piece.rng, piece.meter - 1
    kicks = _kicks(piece, extra=rng.choice((0.5, 2.5)))
    piece.drums(kicks, _backbeat(piece), piece.steps(rng.choice((0.25, 0.5))), rng.choice(("snare", "clap")))
    for bar, start, _ in piece.bars():
        if bar % 4 == 3:
            for index, tom in enumerate(("high tom", "high tom", "low tom", "low tom")):
                piece.hit(tom, start + last + index / 4, 0.8)


def theremin(piece: Piece) -> None:
    """A voice that slides from each note to the next, over a sub bass on each beat."""
    piece.reverb = 0.2
    previous = None
    for _, start, chord in piece.bars():
        for beat in piece.steps(2):
            pitches = [piece.pitch_near(chord + third, 64) for third in (0, 2, 4)]
            pitch = piece.rng.choice([pitch for pitch in pitches if pitch != previous])
            slide = 5 if previous is None else max(min(pitch - previous, max(SLIDES)), min(SLIDES))
            piece.play("theremin", pitch, start + beat, 1.95, 0.8, release=6, slide=slide)
            previous = pitch
    piece.bass("sub bass", 31, [(beat, 1, 0) for beat in piece.steps(1)], 0.6)


def carillon(piece: Piece) -> None:
    """A waltz of bells: low on 1, chords on 2 and 3, a melody above."""
    piece.reverb = 0.25
    piece.melody("bell", 72, (1.0, 1.0, 0.5), 0.8)
    piece.bass("bell", 48, [(0, 1, 0)], 1.0)
    piece.chords("bell", 60, [(1, 0.9), (2, 0.9)], 0.5)


def _strong_beats(piece: Piece) -> list[float]:
    """1, and in 4/4 also 3."""
    return [0.0] if piece.meter == 3 else [0.0, 2.0]


def _backbeat(piece: Piece) -> list[float]:
    """2 and 3 of a waltz, else 2 and 4."""
    return [beat for beat in piece.steps(1) if beat not in _strong_beats(piece)]


def _kicks(piece: Piece, extra: float) -> list[float]:
    """The strong beats, in half of the pieces in 4/4 with one more kick."""
    return [*_strong_beats(piece), *([extra] if piece.meter == 4 and piece.rng.random() < 0.5 else [])]


def _bass_on_strong_beats(piece: Piece, instrument: str, lowest: int, velocity: float) -> None:
    """The root on 1; in 4/4 the fifth on 3."""
    line = [(beat, 1.5, degree) for beat, degree in zip(_strong_beats(piece), (0, 4), strict=False)]
    piece.bass(instrument, lowest, line, velocity)


STYLES: dict[str, Style] = {
    "ambient": Style(ambient, 60, 110, (4,), beat=False),
    "lofi": Style(lofi, 60, 140),
    "rock": Style(rock, 70, 160),
    "techno": Style(techno, 80, 160, (4,)),
    "folk": Style(folk),
    "jazz": Style(jazz),
    "piano": Style(piano),
    "chip": Style(chip, 70, 160),
    "hymn": Style(hymn, 60, 140),
    "bells": Style(bells, 60, 140, (4,)),
    "drums": Style(drums),
}
"""What the base model learns."""
HELD_OUT: dict[str, Style] = {
    "theremin": Style(theremin, 60, 120, (4,)),
    "bellwaltz": Style(carillon, 80, 160, (3,)),
}
"""What it never hears: sliding notes, and bells in 3/4, of which it knows each alone."""
ALL_STYLES: dict[str, Style] = {**STYLES, **HELD_OUT}
