"""Coverage-guided fuzzing of the readers of archives and wavs: only documented exceptions may be raised.

    pip install atheris
    python -m bench.fuzz_readers archive|wav|walkers [CORPUS_FOLDER] [libFuzzer's options, such as -max_total_time=600]

A run that exits normally found nothing; a finding is printed with its traceback and kept as `crash-*`. A missing corpus
folder is created with seeds: archives of each kind, and sounds of each subtype. `wav` decodes, using libsndfile's
process where needed. `walkers` only parses chunks, frames and pages, which is many times faster.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["musicgen_core", "zipfile", "tarfile"]):
    from musicgen_core.data.archive import open_archive
    from musicgen_core.data.audio import decode
    from musicgen_core.data.members import Limits, recognise
    from musicgen_core.data.mix_down import mix_down
    from musicgen_core.data.sndfile import check_single
    from musicgen_core.data.wav import open_pcm, read_wav_header
    from musicgen_core.errors import ArchiveError, ClipRejected

LIMITS = Limits(max_clip_bytes=1 << 24)


def fuzz_archive(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            with open_archive(Path(file.name), LIMITS) as archive:
                for member in archive.clips():
                    try:
                        member.open().close()
                    except ClipRejected:
                        continue
                archive.sidecars()
        except ArchiveError:
            return


def fuzz_wav(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        try:
            clip = decode(file, LIMITS.max_clip_bytes)
        except ClipRejected:
            return
        assert clip.samples.ndim == 1 and len(clip.samples) and clip.rate > 0


def fuzz_walkers(data: bytes) -> None:
    recognise(data[:512])
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        for container in ("MP3", "OGG") if data else ():
            with suppress(ClipRejected):
                check_single(file.fileno(), container, 0.0)
        with suppress(ClipRejected):
            header = read_wav_header(file.fileno())
            if header is None:
                return
            assert header.start + header.audio_bytes <= len(data)
            header.check()
            sound = open_pcm(file.fileno(), header)
            assert sound is None or len(mix_down(sound).samples) == sound.frames


def wavs() -> dict[str, bytes]:
    import numpy as np
    import soundfile

    sound = 0.3 * np.sin(np.arange(1000) / 10)
    found = {}
    for container in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC", "OGG", "MP3", "CAF"):
        for subtype in soundfile.available_subtypes(container):
            try:
                buffer = io.BytesIO()
                soundfile.write(buffer, sound, 16_000, format=container, subtype=subtype)
            except soundfile.LibsndfileError:
                continue
            found[f"{container}-{subtype}"] = buffer.getvalue()
    return found


def archives() -> dict[str, bytes]:
    members = {"a.wav": wavs()["WAV-PCM_16"][:400], "日本.wav": b"broken", "a.txt": b"text", "b/c.wav": b""}
    found = {}
    for name, method in {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        found[f"zip-{name}"] = buffer.getvalue()
    for kind in ("", "gz", "bz2", "xz"):
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode=f"w:{kind}", format=form) as tar:  # type: ignore[call-overload]
                for member, data in members.items():
                    entry = tarfile.TarInfo(member)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
            found[f"tar-{kind}-{form}"] = buffer.getvalue()
    return found


def main() -> None:
    kind, *options = sys.argv[1:]
    target, seeds = {"archive": (fuzz_archive, archives), "wav": (fuzz_wav, wavs), "walkers": (fuzz_walkers, wavs)}[
        kind
    ]
    for folder in (Path(option) for option in options if not option.startswith("-")):
        if not folder.exists():
            folder.mkdir(parents=True)
            for name, data in seeds().items():
                (folder / name).write_bytes(data)
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
