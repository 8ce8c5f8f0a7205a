"""One vocabulary of genres, instruments, moods and vocals, from the tags of two networks.

The tags are those of listeners: the two sets overlap, have several names for one thing, and contain opinions. Each is
mapped to a name that captions use, or dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from musicgen_core.captioning.musicnn import Tagging

Category = Literal["genre", "instruments", "mood", "vocals"]

MTT_TAGS = (
    *("guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano"),
    *("ambient", "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing"),
    *("vocals", "no vocals", "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop"),
    *("soft", "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance", "male voice"),
    *("female vocal", "beats", "harp", "cello", "no voice", "weird", "country", "metal", "female voice", "choral"),
)
MSD_TAGS = (
    *("rock", "pop", "alternative", "indie", "electronic", "female vocalists", "dance", "00s", "alternative rock"),
    *("jazz", "beautiful", "metal", "chillout", "male vocalists", "classic rock", "soul", "indie rock", "Mellow"),
    *("electronica", "80s", "folk", "90s", "chill", "instrumental", "punk", "oldies", "blues", "hard rock"),
    *("ambient", "acoustic", "experimental", "female vocalist", "guitar", "Hip-Hop", "70s", "party", "country"),
    *("easy listening", "sexy", "catchy", "funk", "electro", "heavy metal", "Progressive rock", "60s", "rnb"),
    *("indie pop", "sad", "House", "happy"),
)
"""Names of the networks' outputs, in their order. Source: `configuration.py` of the package musicnn"""

THRESHOLDS = {"mtt": 0.2, "msd": 0.15}
"""A tag counts if one of its names reaches the threshold of its set.

The threshold with the highest F1 of calibrated probabilities is half that F1 (Lipton, Elkan & Narayanaswamy 2014,
arXiv:1402.1892). The networks' F1 on their own test sets is not published; by their precision and recall (PR-AUC 0.38
for MTT, 0.29 for MSD, in the package's `experiment.result`) it is about 0.4 and 0.3.
"""

GENRE_SHARE = 0.6
"""A genre is left out below this share of the clip's most probable one. MSD gives classical music some jazz, for want
of a better tag; the share was chosen on the five recordings of bench/RESULTS.md."""

NO_VOCALS = "no vocals"
VOCABULARY: dict[Category, dict[str, tuple[str, ...]]] = {
    "genre": {
        "acoustic": ("acoustic",),
        "alternative rock": ("alternative", "alternative rock"),
        "ambient": ("ambient",),
        "blues": ("blues",),
        "classic rock": ("classic rock",),
        "classical": ("classical", "classic"),  # in MTT, `classic` is said of classical music
        "country": ("country",),
        "dance": ("dance",),
        "easy listening": ("easy listening",),
        "electro": ("electro",),
        "electronic": ("electronic", "electronica"),
        "experimental": ("experimental",),
        "folk": ("folk",),
        "funk": ("funk",),
        "hard rock": ("hard rock",),
        "heavy metal": ("heavy metal",),
        "hip hop": ("Hip-Hop",),
        "house": ("House",),
        "indian": ("indian",),
        "indie": ("indie",),
        "indie pop": ("indie pop",),
        "indie rock": ("indie rock",),
        "jazz": ("jazz",),
        "metal": ("metal",),
        "new age": ("new age",),
        "opera": ("opera",),
        "pop": ("pop",),
        "progressive rock": ("Progressive rock",),
        "punk": ("punk",),
        "r&b": ("rnb",),
        "rock": ("rock",),
        "soul": ("soul",),
        "techno": ("techno",),
        "60s": ("60s",),  # sounds of their own, unlike 90s and 00s
        "70s": ("70s",),
        "80s": ("80s",),
    },
    "instruments": {
        "cello": ("cello",),
        "drums": ("drums", "beat", "beats"),
        "flute": ("flute",),
        "guitar": ("guitar",),
        "harp": ("harp",),
        "harpsichord": ("harpsichord",),
        "piano": ("piano",),
        "sitar": ("sitar",),
        "strings": ("strings",),
        "synthesizer": ("synth",),
        "violin": ("violin",),
    },
    "mood": {
        "happy": ("happy",),
        "mellow": ("Mellow",),
        "party": ("party",),
        "relaxed": ("chill", "chillout"),
        "sad": ("sad",),
        "soft": ("soft",),
    },
    "vocals": {
        "choir": ("choir", "choral"),
        "female vocals": ("female", "female vocal", "female vocalist", "female vocalists", "female voice", "woman"),
        "male vocals": ("male", "male vocal", "male vocalists", "male voice", "man"),
        NO_VOCALS: ("no vocals", "no vocal", "no voice", "instrumental"),
        "vocals": ("vocals", "vocal", "voice", "singing"),
    },
}
"""By category, each canonical tag with the networks' names for it"""

DROPPED = {
    "measured": ("slow", "fast", "loud", "quiet"),
    "opinions": ("beautiful", "catchy", "sexy", "weird"),
    "dates of release, not sounds": ("90s", "00s", "oldies"),
    "of no clear meaning": ("solo",),
}


@dataclass(frozen=True)
class Tag:
    """A tag of a clip.

    Attributes:
        name: the canonical name.
        probability: the highest that either network of musicnn gives for one of its names, or that of a CLAP model
            among the category's labels.
    """

    category: Category
    name: str
    probability: float


def choose_tags(tagging: Tagging) -> list[list[Tag]]:
    """Return the tags of each clip, the most probable first within each category.

    The highest probability counts, not the mean: each set lacks music that the other knows (MSD has hardly any
    classical music, MTT no jazz or hip hop), and listeners split their votes between synonyms. If the vocals
    contradict each other, `no vocals` stays if it is the most probable of them, and is left out otherwise.
    """
    return [
        [tag for category in VOCABULARY for tag in _chosen(category, mtt, msd)]
        for mtt, msd in zip(tagging.mtt.tolist(), tagging.msd.tolist(), strict=True)
    ]


def _chosen(category: Category, mtt: list[float], msd: list[float]) -> list[Tag]:
    found = [
        Tag(category, name, max(probability for probability, _ in values))
        for name, values in ((name, _values(raw, mtt, msd)) for name, raw in VOCABULARY[category].items())
        if any(probability >= threshold for probability, threshold in values)
    ]
    return without_contradictions(category, found)


def without_contradictions(category: Category, tags: Iterable[Tag]) -> list[Tag]:
    """Return the tags of a category, the most probable first, without those that contradict others.

    These are genres far below the first (`GENRE_SHARE`), vocals below `no vocals`, and `no vocals` below vocals.
    """
    found = sorted(tags, key=lambda tag: -tag.probability)
    if category == "genre":
        return [tag for tag in found if tag.probability >= GENRE_SHARE * found[0].probability]
    if found and found[0].name == NO_VOCALS:
        return found[:1]
    return [tag for tag in found if tag.name != NO_VOCALS]


def _values(names: tuple[str, ...], mtt: list[float], msd: list[float]) -> list[tuple[float, float]]:
    """Return the probabilities of names in both sets, each with its set's threshold."""
    sets = ((_MTT, mtt, THRESHOLDS["mtt"]), (_MSD, msd, THRESHOLDS["msd"]))
    return [
        (probabilities[columns[name]], threshold)
        for columns, probabilities, threshold in sets
        for name in names
        if name in columns
    ]


_MTT, _MSD = ({name: column for column, name in enumerate(names)} for names in (MTT_TAGS, MSD_TAGS))
CATEGORIES: dict[str, Category] = {name: category for category, names in VOCABULARY.items() for name in names}
"""Category of each canonical tag"""
