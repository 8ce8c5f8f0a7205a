"""Read the sound files that a request names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from musicgen_core import storage
from musicgen_core.data.audio import DecodedClip, decode
from musicgen_core.errors import ClipRejected, ConfigError

Refusal = Callable[[str, Exception], ConfigError]
"""Returns the error that names a file, and what is wrong with it"""


def read_sound(file: str, refusal: Refusal, stereo: bool = False) -> DecodedClip:
    """Decode a sound file, local or remote, as the clips of archives are.

    Args:
        stereo: keep both channels, see `decode`.

    Raises:
        ConfigError: it can't be read.
    """
    path = storage.as_path(file)
    with refused(file, refusal):
        storage.require_file(path)
        with storage.staged(path) as local, open(local, "rb") as opened:
            return decode(opened, stereo=stereo)


@contextmanager
def refused(file: str, refusal: Refusal) -> Iterator[None]:
    """Turn errors of storage, and the rejection of a clip, into those of a request."""
    try:
        yield
    except (OSError, ClipRejected) as error:
        raise refusal(file, error) from error
