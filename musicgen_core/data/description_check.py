"""Check for missing descriptions before hours of encoding."""

from __future__ import annotations

from collections.abc import Sequence

from upath import UPath

from musicgen_core.data.archive import limits_of, open_archive
from musicgen_core.data.captions import Captioner
from musicgen_core.data.members import sidecar_key
from musicgen_core.errors import ArchiveError
from musicgen_core.language import message
from musicgen_core.wording import counted


def undescribed_clips(archives: Sequence[UPath], captioner: Captioner) -> str | None:
    """Return `none of the 8 clips in a.zip` if the first readable zip with clips has no descriptions, else None.

    Tars are skipped, as their sidecars are known only after a full read.
    """
    encoding, limits = captioner.settings.name_encoding, limits_of(captioner.settings)
    for archive in archives:
        try:
            with open_archive(archive, limits, encoding) as opened:
                names = list(opened.clip_names()) if opened.clip_count else []
                sidecars = opened.read_sidecars() if names and captioner.uses_sidecars else {}
        except (ArchiveError, OSError):
            continue  # its task reports the problem
        if names:
            described = any(captioner.describe(name, *sidecars.get(sidecar_key(name), ())) for name in names)
            if described:
                return None
            return message("none of the {clips} in {archive}", clips=counted(len(names), "clip"), archive=archive.name)
    return None
