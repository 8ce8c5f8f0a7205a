"""The sound file whose melody music follows, and its chroma for each window that is generated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.data.audio import DecodedClip, resample
from musicgen_core.errors import ConfigError
from musicgen_core.generation.sound_file import read_sound
from musicgen_core.language import message
from musicgen_core.melody import extract_chroma, match_length
from musicgen_core.model.weights import takes_melody
from musicgen_core.separation.clips import Separation, separated_clips
from musicgen_core.separation.separator import RHYTHM, Separator


@dataclass(frozen=True)
class Melody:
    """A sound file whose melody music follows.

    Attributes:
        wav: [samples], 32 kHz mono fp32.
        path: the sound file.
        sha256: hash of its content.
        separator: identity of the model that separated it from drums and bass; None if none did.
    """

    wav: Tensor = field(compare=False)
    path: str
    sha256: str
    separator: str | None = None


def read_melody(file: str, separator: Separator | None = None) -> Melody:
    """Read a sound file of any length, rate and number of channels.

    Args:
        separator: leaves out drums and bass, as in the melodies that Meta's models were trained with.

    Raises:
        ConfigError: it can't be read, or is silent.
    """
    clip, path = read_sound(file, _not_a_melody, stereo=separator is not None), storage.as_path(file)
    if separator is not None:
        [(_, separated)] = separated_clips(Separation(separator, RHYTHM), [(None, clip)])
        assert isinstance(separated, DecodedClip)
        clip = separated
    wav = torch.from_numpy(resample(clip.samples, clip.rate))
    return Melody(wav, str(path), storage.content_sha256(path), None if separator is None else separator.identity)


def check_melodies(files: Iterable[str | None], model: str | None) -> None:
    """Check the sound files of melodies and that a model takes them, before anything large is loaded.

    Args:
        files: None and empty names are ignored.
        model: as for `find_model`; None if it isn't known yet.

    Raises:
        ConfigError: a file can't be read, or the model takes no melody, as far as that is known here.
    """
    wanted = [file for file in dict.fromkeys(files) if file]
    if wanted and model is not None:
        check_takes_melody(model, takes_melody(model))
    for file in wanted:
        read_sound(file, _not_a_melody)


def check_takes_melody(model: str, takes: bool | None) -> None:
    """Check that a model takes a melody; None, for what isn't known yet, passes.

    Raises:
        ConfigError: it doesn't.
    """
    if takes is False:
        raise ConfigError(
            message("{model} takes no melody", model=model),
            message(
                "Give a model that takes one, such as facebook/musicgen-melody, or an adapter of one; or leave out the "
                "melody"
            ),
        )


def _not_a_melody(file: str, error: Exception) -> ConfigError:
    return ConfigError(
        message("{file} can't be used as a melody: {error}", file=file, error=error),
        message("Give the path of a sound file"),
    )


def window_chroma(wav: Tensor, chroma_frames: int, window: tuple[int, int] | None) -> Tensor:
    """Return the chroma [chroma_frames], int64, that a window of a sample is generated with.

    A sample of one window follows the recording as it is. In longer samples each window follows the part at its own
    position in the recording, which is repeated as often as needed. Source: audiocraft 1.3.0,
    `MusicGen._generate_tokens`.

    Args:
        wav: the recording [samples], 32 kHz mono fp32.
        chroma_frames: frames that the model reads.
        window: the frame of codes at which the window begins, and the most frames of a window; None if the sample has
            no other windows.
    """
    if window is not None:
        begin, length = (int(frames / FRAME_RATE * SAMPLE_RATE) for frames in window)  # rounded as in audiocraft
        wav = wav[torch.arange(begin, begin + length, device=wav.device) % len(wav)]
    return match_length(extract_chroma(wav[None])[0], chroma_frames).long()
