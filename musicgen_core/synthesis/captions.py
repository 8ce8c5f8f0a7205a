"""Describe a clip from its true parameters, as a person might.

Words, order and omissions vary, as they do in prompts. All statements are true. A 3/4 metre is always stated, so a
caption without one implies 4/4.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from musicgen_core.music_theory import Mode
from musicgen_core.synthesis.styles import STYLES

SLOW_BELOW, FAST_FROM = 88, 116  # bpm
LOWEST_BPM, HIGHEST_BPM = 60, 160


@dataclass(frozen=True)
class Truth:
    """Parameters that a clip was composed from, as ground truth for audio analysis.

    Attributes:
        meter: beats in a bar.
        root: pitch class of the tonic, 0 for C.
        instruments: pitched instruments, by their names in `INSTRUMENTS`.
        drums: whether there are drums.
        beat: whether there is an audible beat.
    """

    style: str
    bpm: int
    meter: int
    root: int
    mode: Mode
    instruments: tuple[str, ...]
    drums: bool
    beat: bool

    @property
    def pitched(self) -> bool:
        """Return whether any instrument has a pitch, so that there is an audible key."""
        return bool(self.instruments)


GENRES: dict[str, tuple[str, ...]] = {
    "ambient": ("ambient", "ambient music", "ambient soundscape", "ambient synthesizer chords"),
    "lofi": ("lo-fi hip hop", "lofi hip hop", "lofi beats", "hip hop"),
    "rock": ("rock", "hard rock", "heavy metal", "metal", "rock song"),
    "techno": ("techno", "electronic dance music", "edm", "house", "dance music"),
    "folk": ("folk", "acoustic folk", "folk song", "acoustic music", "country"),
    "jazz": ("jazz", "swing jazz", "jazz trio", "jazz club music"),
    "piano": ("piano", "piano music", "solo piano", "classical piano"),
    "chip": ("chiptune", "chiptune melody", "8-bit video game music", "retro game music"),
    "hymn": ("hymn", "church organ music", "organ music", "chorale"),
    "bells": ("music box", "music box melody", "lullaby", "bell melody"),
    "drums": ("drum loop", "drum beat", "drum solo", "percussion"),
    "theremin": ("theremin", "theremin music", "gliding theremin"),
    "bellwaltz": ("carillon", "carillon music", "carillon melody"),
}
MOODS: dict[str, tuple[str, ...]] = {
    "ambient": ("calm", "warm", "dreamy", "soft", "atmospheric"),
    "lofi": ("chill", "mellow", "relaxing", "laid-back"),
    "rock": ("energetic", "aggressive", "powerful", "loud"),
    "techno": ("driving", "energetic", "pulsing", "club"),
    "folk": ("gentle", "peaceful", "rustic", "calm"),
    "jazz": ("smooth", "relaxing", "swinging", "cool"),
    "piano": ("calm", "romantic", "soft", "elegant"),
    "chip": ("playful", "retro", "bouncy", "pixelated"),
    "hymn": ("solemn", "majestic", "sacred", "peaceful"),
    "bells": ("gentle", "dreamy", "delicate", "sleepy"),
    "drums": ("driving", "energetic", "tight", "groovy"),
    "theremin": ("eerie", "ghostly"),
    "bellwaltz": ("gentle", "dreamy"),
}
MODE_MOODS: dict[Mode, tuple[str, ...]] = {
    "major": ("happy", "bright", "cheerful"),
    "minor": ("sad", "dark", "melancholic"),
}
TEMPO_WORDS = {"slow": ("slow",), "medium": ("medium tempo", "mid-tempo"), "fast": ("fast", "upbeat")}
SOUNDS: dict[str, tuple[str, ...]] = {
    "piano": ("piano", "grand piano"),
    "electric piano": ("electric piano", "rhodes"),
    "organ": ("organ",),
    "pad": ("pads", "synth pads", "soft background ambience"),
    "plucked string": ("acoustic guitar", "plucked strings"),
    "upright bass": ("upright bass", "double bass"),
    "sub bass": ("sub bass", "deep bass"),
    "synth bass": ("synth bass", "strong bass"),
    "synth lead": ("synth lead", "synthesizer"),
    "square wave": ("square waves", "square lead"),
    "triangle wave": ("triangle bass",),
    "distorted guitar": ("distorted guitar", "electric guitar", "heavy guitars"),
    "bell": ("bells", "chimes"),
    "flute": ("flute",),
    "theremin": ("theremin",),
    "drums": ("drums", "drum kit"),
}
TONICS: tuple[tuple[str, ...], ...] = (
    ("c",),
    ("c sharp", "c#", "d flat", "db"),
    ("d",),
    ("e flat", "eb", "d sharp"),
    ("e",),
    ("f",),
    ("f sharp", "f#", "g flat"),
    ("g",),
    ("a flat", "ab", "g sharp"),
    ("a",),
    ("b flat", "bb", "a sharp"),
    ("b",),
)
"""Names of the pitch classes, the usual one first."""
_TEMPOS = ("{} bpm", "{} bpm", "at {} bpm")
_KEYS = ("in {}", "in {}", "{}", "in the key of {}")
_METERS = {3: ("in 3/4", "3/4 time", "waltz", "a waltz"), 4: ("in 4/4", "4/4 time")}
_COMMON = (
    "a an and at background beat beats fast guitar in key loud music of playing quiet song sound soft the time with"
)


def caption_of(truth: Truth, rng: random.Random, full: bool = False) -> str:
    """Describe a clip, in lower case.

    Args:
        full: state all parameters; otherwise the tempo is given as a number in 75 % of descriptions, the key in 70 %,
            the metre in about half of them, instruments and moods in 60 %.
    """

    def said(share: float) -> bool:
        return full or rng.random() < share

    genre = rng.choice(GENRES[truth.style])
    qualities = [rng.choice(TEMPO_WORDS[speed(truth.bpm)])] if said(0.35) else []
    if said(0.6):
        qualities.append(rng.choice(_moods(truth)))
    sounds = _sounds(truth, rng, full) if said(0.6) else []
    sounds = [sound for sound in sounds if sound not in genre]
    facts = [rng.choice(_TEMPOS).format(truth.bpm)] if said(0.75) else []
    if truth.pitched and said(0.7):
        facts.append(rng.choice(_KEYS).format(key_name(truth, rng)))
    if truth.meter == 3 or said(0.35):
        facts.append(rng.choice(_METERS[truth.meter]))
    rng.shuffle(facts)
    if not full and rng.random() < 0.25:
        tags = [genre, *qualities, *sounds, *facts]
        rng.shuffle(tags)
        return ", ".join(tags)
    return _sentence(rng, qualities, genre, sounds, facts)


def speed(bpm: int) -> str:
    """Return the key of `TEMPO_WORDS` for a tempo."""
    return "slow" if bpm < SLOW_BELOW else "medium" if bpm < FAST_FROM else "fast"


def key_name(truth: Truth, rng: random.Random) -> str:
    """Return the key in words, such as `f sharp minor`, with its usual name being the most frequent."""
    usual, *others = TONICS[truth.root]
    tonic = rng.choice(others) if others and rng.random() < 0.3 else usual
    return f"{tonic} {truth.mode}"


def vocabulary() -> list[str]:
    """Return the words for the tokenizer's vocabulary: those of the base styles' captions, and all tempos.

    The words that name the held-out styles are not among them.
    """
    phrases = [_COMMON, *(phrase.format("") for phrase in (*_TEMPOS, *_KEYS))]
    phrases += [phrase for style in STYLES for phrase in (*GENRES[style], *MOODS[style])]
    for table in (MODE_MOODS, TEMPO_WORDS, _METERS):
        phrases += [phrase for of in table.values() for phrase in of]
    phrases += [phrase for sound, of in SOUNDS.items() if sound != "theremin" for phrase in of]
    phrases += [*(name for names in TONICS for name in names), "major minor"]
    phrases += map(str, range(LOWEST_BPM, HIGHEST_BPM + 1))
    return sorted({word for phrase in phrases for word in phrase.split()})


def _moods(truth: Truth) -> tuple[str, ...]:
    return MOODS[truth.style] + (MODE_MOODS[truth.mode] if truth.pitched else ())


def _sounds(truth: Truth, rng: random.Random, full: bool) -> list[str]:
    """Return all instruments in random order, or some of them."""
    names = [*truth.instruments, *(["drums"] if truth.drums else [])]
    rng.shuffle(names)
    heard = names if full else names[: rng.randint(1, len(names))]
    phrases = [rng.choice(SOUNDS[name]) for name in heard]
    return [
        "fast drums" if phrase == "drums" and truth.bpm >= FAST_FROM and rng.random() < 0.3 else phrase
        for phrase in phrases
    ]


def _sentence(rng: random.Random, qualities: list[str], genre: str, sounds: list[str], facts: list[str]) -> str:
    sentence = " ".join([*qualities, genre])
    if sounds:
        listed = " and ".join([*([", ".join(sounds[:-1])] if sounds[1:] else []), sounds[-1]])
        sentence = f"{listed} playing {sentence}" if rng.random() < 0.15 else f"{sentence} with {listed}"
    if not facts:
        return sentence
    return f"{sentence}, {rng.choice((', ', ' ')).join(facts)}"  # 120 bpm in a minor, or 120 bpm, in a minor
