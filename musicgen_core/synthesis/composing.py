"""Compose a clip from a seed: notes, caption, and the parameters of both."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from musicgen_core.synthesis.captions import Truth, caption_of
from musicgen_core.synthesis.score import Events, Score
from musicgen_core.synthesis.styles import ALL_STYLES, STYLES

DEFAULT_FRAMES = 500  # 10 s


@dataclass(frozen=True)
class Clip:
    """Music as notes, with its description.

    Attributes:
        events: notes for `SoundBank.render`, [notes, 5].
        reverb: level of the reverberation.
        truth: parameters behind notes and caption.
    """

    events: Events
    reverb: float
    caption: str
    truth: Truth


def compose(seed: int, style: str | None = None, frames: int = DEFAULT_FRAMES, full_caption: bool = False) -> Clip:
    """Compose a clip; equal arguments give equal clips, and the notes don't depend on `full_caption`.

    Args:
        style: a key of `ALL_STYLES`; by default one of the base styles is drawn.
        frames: length in codec frames of 20 ms. A longer clip of the same seed starts with the same music.
        full_caption: state every parameter, as in prompts whose music is measured.
    """
    rng = random.Random(seed)
    name = rng.choice(list(STYLES)) if style is None else style
    drawn_from = ALL_STYLES[name]
    bpm = rng.randint(drawn_from.slowest, drawn_from.fastest)
    meter = rng.choice(drawn_from.meters)
    score = Score(rng, bpm, meter, root=rng.randrange(12), mode=rng.choice(("major", "minor")), frames=frames)
    drawn_from.arrange(score)
    truth = Truth(
        style=name,
        bpm=bpm,
        meter=meter,
        root=score.root,
        mode=score.mode,
        instruments=tuple(score.instruments),
        drums=score.has_drums,
        beat=drawn_from.beat,
    )
    caption = caption_of(truth, random.Random(f"caption {seed}"), full=full_caption)
    return Clip(score.events, score.reverb, caption, truth)


def compose_many(
    count: int,
    first_seed: int,
    style: str | None = None,
    frames: int = DEFAULT_FRAMES,
    full_caption: bool = False,
    workers: int = 1,
) -> list[Clip]:
    """Compose clips of consecutive seeds, in several processes where `workers` is more than 1."""
    seeds = range(first_seed, first_seed + count)
    composed = partial(compose, style=style, frames=frames, full_caption=full_caption)
    if workers == 1:
        return [composed(seed) for seed in seeds]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(composed, seeds, chunksize=256))
