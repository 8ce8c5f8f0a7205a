from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from musicgen_core.errors import ArchiveError
from tasks.archive_tasks import may_help
from tasks.tokenizing import exclude_near_duplicates


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


def test_near_duplicates_are_looked_for_again_in_each_attempt() -> None:
    assert exclude_near_duplicates.persist_result is False
