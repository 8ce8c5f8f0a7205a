"""Measure clips: tags, tempo, key, loudness, silence, clipping and speech, as fields of `metadata.jsonl`."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torchaudio.functional import resample as resample_tensor

from musicgen_core.captioning import musicnn, taggers
from musicgen_core.captioning.key import measure_key
from musicgen_core.captioning.levels import clipped_share, integrated_loudness, silent_share
from musicgen_core.captioning.speech import load_vad, measure_speech
from musicgen_core.captioning.tempo import measure_tempo
from musicgen_core.codec import resampler_of
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.data.audio import DecodedClip, resample
from musicgen_core.data.caption_fields import CONFIDENCE, TAGS
from musicgen_core.data.mix_down import AudioArray
from musicgen_core.errors import ClipRejected, DeviceError
from musicgen_core.language import message
from musicgen_core.music_tags import CATEGORIES, VOCABULARY, Tag, choose_tags
from musicgen_core.music_theory import key_name

K = TypeVar("K")
SPEECH_RATE = 16_000

BATCH_SECONDS = {"cpu": 240, "cuda": 1920}
"""Maximum audio in a batch"""
WINDOW_SECONDS = {"cpu": 480, "cuda": 7680}
"""Audio that is decoded before it is measured, so that clips of equal length come together in batches"""
CLIPS_IN_WINDOW = 1024
LENGTH_SECONDS = 0.5
"""Clips are measured up to a multiple of this length, so that lengths which hardly differ are equal"""
MOST_SECONDS = 600.0
"""Of longer clips the beginning is measured: a spectrogram of hours wouldn't fit the memory"""

KEY_CONFIDENCE = 0.5
"""Below this confidence a clip has no key: half of those keys are wrong, mostly the relative one (bench/RESULTS.md)"""

Fields = dict[str, Any]


class Tagger(Protocol):
    """Recognises instruments, genres, moods and vocals."""

    name: str
    """Program and version, for `captioned_by`"""
    rate: int
    """Samples a second of the audio that it takes"""

    def tag(self, audio: Tensor) -> list[list[Tag]]:
        """Return the tags of each clip of mono audio at `rate`, [B, samples]."""
        ...


class MusicnnTagger:
    """The default tagger, whose weights are installed with the project."""

    rate = musicnn.SAMPLE_RATE

    def __init__(self, device: torch.device) -> None:
        self._networks = musicnn.Musicnn(device)
        self.name = taggers.musicnn().name

    def tag(self, audio: Tensor) -> list[list[Tag]]:
        return choose_tags(self._networks.predict(audio))


class Measurer:
    """Measures clips of any lengths and rates in batches.

    Args:
        device: where to compute.
        tagger: by default musicnn.
    """

    def __init__(self, device: torch.device, tagger: Tagger | None = None) -> None:
        self.device = device
        self._lock = threading.Lock()  # archives are measured in several threads: their batches share the memory
        self.tagger = tagger or MusicnnTagger(device)
        self._vad = load_vad(device)

    def measure(
        self, clips: Iterable[tuple[K, DecodedClip | ClipRejected]]
    ) -> Generator[tuple[K, Fields | ClipRejected]]:
        """Yield the fields of each clip in input order; rejections pass through in place."""
        window: list[tuple[K, DecodedClip | ClipRejected]] = []
        seconds = 0.0
        for key, clip in clips:
            window.append((key, clip))
            seconds += clip.seconds if isinstance(clip, DecodedClip) else 0.0
            if seconds >= WINDOW_SECONDS[self.device.type] or len(window) == CLIPS_IN_WINDOW:
                yield from self._measure_window(window)
                window, seconds = [], 0.0
        yield from self._measure_window(window)

    def _measure_window(
        self, window: Sequence[tuple[K, DecodedClip | ClipRejected]]
    ) -> Generator[tuple[K, Fields | ClipRejected]]:
        alike: dict[tuple[int, int], dict[int, AudioArray]] = {}
        for index, (_, clip) in enumerate(window):
            if isinstance(clip, DecodedClip):
                samples = _used_samples(clip)
                alike.setdefault((clip.rate, samples), {})[index] = clip.samples[:samples]
        found: dict[int, Fields] = {}
        for (rate, samples), clips in alike.items():
            indices, at_once = list(clips), max(1, int(BATCH_SECONDS[self.device.type] * rate / samples))
            for start in range(0, len(indices), at_once):
                batch = indices[start : start + at_once]
                found |= zip(batch, self._measure_fitting([clips[index] for index in batch], rate), strict=True)
        for index, (key, clip) in enumerate(window):
            yield key, clip if isinstance(clip, ClipRejected) else found[index]

    def _measure_fitting(self, clips: Sequence[AudioArray], rate: int) -> list[Fields]:
        """Measure a batch in halves if the GPU's memory doesn't suffice.

        Raises:
            DeviceError: not even one clip fits.
        """
        if self.device.type != "cuda":
            return self._measure_batch(clips, rate)
        with self._lock, suppress(torch.OutOfMemoryError):
            return self._measure_batch(clips, rate)
        torch.cuda.empty_cache()
        if len(clips) == 1:
            raise DeviceError(
                message(
                    "{seconds:.0f} s of audio don't fit the memory that is free on the GPU",
                    seconds=len(clips[0]) / rate,
                ),
                message("Stop other programs on the GPU, or caption with --device cpu"),
            )
        half = len(clips) // 2
        return self._measure_fitting(clips[:half], rate) + self._measure_fitting(clips[half:], rate)

    @torch.inference_mode()
    def _measure_batch(self, clips: Sequence[AudioArray], rate: int) -> list[Fields]:
        """Measure clips of equal length, [samples] each."""
        own = torch.stack([torch.from_numpy(clip) for clip in clips]).to(self.device)  # [B, samples]
        resampler = resampler_of(rate, self.device)
        if resampler:
            audio = resampler(own)
        else:
            audio = torch.stack([torch.from_numpy(resample(clip, rate)) for clip in clips]).to(self.device)
        low = resample_tensor(audio, SAMPLE_RATE, SPEECH_RATE)
        heard = low if self.tagger.rate == SPEECH_RATE else resample_tensor(audio, SAMPLE_RATE, self.tagger.rate)
        tempo, key, speech = measure_tempo(audio), measure_key(audio), measure_speech(self._vad, low)
        values = {
            "tempo": tempo.bpm,
            "tempo_confidence": tempo.confidence,
            "steady": tempo.steady,
            "root": key.root,
            "minor": key.minor,
            "key_confidence": key.confidence,
            "loudness": integrated_loudness(audio),
            "silence": silent_share(audio),
            "clipping": clipped_share(own),
            "speech": speech.share,
            "speech_confidence": speech.confidence,
        }
        table = torch.stack([value.double() for value in values.values()], dim=1).tolist()
        return [
            _fields(dict(zip(values, row, strict=True)), tags)
            for row, tags in zip(table, self.tagger.tag(heard), strict=True)
        ]


def _own_categories(tags: Sequence[Tag]) -> dict[str, list[str]]:
    """Return the tags by category, of those categories that have a tag which the vocabulary hasn't in them."""
    own = {tag.category for tag in tags if CATEGORIES.get(tag.name.lower()) != tag.category}
    return {
        category: [tag.name for tag in tags if tag.category == category] for category in VOCABULARY if category in own
    }


def _used_samples(clip: DecodedClip) -> int:
    step, samples = round(LENGTH_SECONDS * clip.rate), min(len(clip.samples), round(MOST_SECONDS * clip.rate))
    return samples // step * step or samples


def _fields(measured: dict[str, float], tags: Sequence[Tag]) -> Fields:
    """Return the fields of a clip as they are written to `metadata.jsonl`."""
    has_tempo = not math.isnan(measured["tempo"])
    root, is_minor = int(measured["root"]), bool(measured["minor"])
    has_key = root >= 0 and measured["key_confidence"] >= KEY_CONFIDENCE
    ordered = sorted(tags, key=lambda tag: -tag.probability)
    return {
        TAGS: [tag.name for tag in ordered],
        **_own_categories(ordered),
        "tempo": round(measured["tempo"], 1) if has_tempo else None,
        "tempo_steady": bool(measured["steady"]) if has_tempo else None,
        "key": key_name(root, "minor" if is_minor else "major") if has_key else None,
        "loudness": round(measured["loudness"], 1) if math.isfinite(measured["loudness"]) else None,
        **{name: round(measured[name], 4) for name in ("silence", "clipping", "speech")},
        CONFIDENCE: {
            TAGS: {tag.name: round(tag.probability, 2) for tag in ordered},
            **{name: round(measured[f"{name}_confidence"], 2) for name in ("tempo", "key", "speech")},
        },
    }
