"""Folders that look local and are not: Google Drive's in Colab, and others that a program provides through FUSE.

A rename over an existing file may leave two files of one name there, or fail. A rename to a free name works.
"""

from __future__ import annotations

import os
from pathlib import Path

WHOLE = ".whole"
"""The ending of a file that is complete and is about to take the place of the one without."""


def is_mounted(folder: Path) -> bool:
    """Whether a folder that exists is on a file system provided by a program (of Linux)."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    kinds = [line.partition(" - ")[2].split()[0] for line in mounts if line.split()[2] == number]
    # A container's own disk is through FUSE where its user may not mount others; fuseblk is a disk, too.
    return any(kind == "fuse" or (kind.startswith("fuse.") and not kind.endswith("overlayfs")) for kind in kinds)


def replace(new: Path, target: Path) -> None:
    """Move a complete file to `target` in the same folder, without ever renaming over a file.

    For a moment there is no `target`. If the process ends then, the complete file stays as `target.whole`, and
    `finish` or the next file for this place puts it there.
    """
    whole = target.with_name(target.name + WHOLE)
    finish(whole)
    if target.exists():
        new.rename(whole)
        finish(whole)
    else:
        new.rename(target)


def finish(whole: Path) -> None:
    """Put `NAME.whole`, if it is there, in the place of `NAME`."""
    if whole.exists():
        target = whole.with_name(whole.name.removesuffix(WHOLE))
        if target.exists() and not target.is_symlink():
            os.truncate(target, 0)  # Drive keeps what is deleted in its bin, where it takes room for a month
        target.unlink(missing_ok=True)
        whole.rename(target)
