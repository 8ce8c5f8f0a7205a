"""Folders on FUSE file systems, such as Google Drive in Colab, which look local but lack atomic replacement.

A rename over an existing file may leave two files of the same name there, or fail. A rename to a free name works.
"""

from __future__ import annotations

import os
from pathlib import Path

WHOLE = ".whole"
"""Suffix of a complete file that is about to replace the one without it"""


def is_mounted(folder: Path) -> bool:
    """Return whether an existing folder is on a FUSE file system (Linux only)."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    kinds = [line.partition(" - ")[2].split()[0] for line in mounts if line.split()[2] == number]
    # The root disk of a rootless container may be FUSE; fuseblk is a disk, too.
    return any(kind == "fuse" or (kind.startswith("fuse.") and not kind.endswith("overlayfs")) for kind in kinds)


def replace(new: Path, target: Path) -> None:
    """Move a complete file to `target` in the same folder without renaming over a file.

    For a moment `target` doesn't exist. If the process ends then, the complete file remains as `target.whole`, and
    `finish` or the next `replace` of this target renames it.
    """
    whole = target.with_name(target.name + WHOLE)
    finish(whole)
    if target.exists():
        new.rename(whole)
        finish(whole)
    else:
        new.rename(target)


def finish(whole: Path) -> None:
    """Replace `NAME` by `NAME.whole` if the latter exists."""
    if whole.exists():
        target = whole.with_name(whole.name.removesuffix(WHOLE))
        if target.exists() and not target.is_symlink():
            os.truncate(target, 0)  # Drive keeps deleted files in its bin, where they take up space for a month
        target.unlink(missing_ok=True)
        whole.rename(target)
