from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from musicgen_core.errors import ArchiveError
from tasks.archive_tasks import may_help


@pytest.mark.parametrize(
    ("error", "is_tried_again"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (OSError(errno.EIO, "I/O error"), True),
        (MemoryError(), True),
        (OSError(errno.ENOSPC, "no space"), False),
        (OSError(errno.EROFS, "read-only"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (ArchiveError("damaged"), False),
    ],
    ids=repr,
)
def test_only_transient_errors_are_retried(error: Exception, is_tried_again: bool) -> None:
    state = SimpleNamespace(result=lambda raise_on_failure: error)
    assert may_help(None, SimpleNamespace(name="tokenize-a", run_count=1), state) == is_tried_again
