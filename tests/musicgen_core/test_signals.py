"""Signals that arrive during a deferred block are handled after it, as they would have been before."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from musicgen_core.process import ENDING, deferred_signals


class Ended(BaseException):
    """Like Prefect's TerminationSignal, raised by a handler."""


def end(number: int, frame: object) -> None:
    raise Ended(number)


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    before = {number: signal.signal(number, end) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_handled_after_the_block(number: signal.Signals) -> None:
    done = []

    def interrupted() -> None:
        with deferred_signals():
            signal.raise_signal(number)
            done.append("the rest of the block")

    with pytest.raises(Ended, match=str(int(number))):
        interrupted()
    assert done
    assert all(signal.getsignal(each) is end for each in ENDING)


def test_an_error_of_the_block_is_kept_as_the_context_of_a_signal() -> None:
    def interrupted_and_failing() -> None:
        with deferred_signals():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("of the block")

    with pytest.raises(Ended) as raised:
        interrupted_and_failing()
    assert isinstance(raised.value.__context__, ValueError)


def test_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with deferred_signals():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_without_a_handler_the_process_ends_after_the_block() -> None:
    program = (
        "import signal\n"
        "from musicgen_core.process import deferred_signals\n"
        "with deferred_signals():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('whole', flush=True)\n"
        "print('not reached', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "whole\n")


def test_in_another_thread_nothing_changes() -> None:
    seen = []

    def block() -> None:
        with deferred_signals():
            seen.append([signal.getsignal(number) for number in ENDING])

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [[end] * len(ENDING)]
