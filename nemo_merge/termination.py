"""Ends a command that gets a signal: unwinds it, whatever swallows the exception on the way, and says so."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

_AGAIN = 0.05  # seconds
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """A signal that ends the process, raised in its main thread; the exit code is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM, and a hang-up, unwind the block, so that temporary files are removed and children end too.

    Python swallows exceptions in places: destructors, callbacks of weak references, the locks of imports, C code that
    calls back, and libraries that catch all while they are imported. So the exception is raised again until the end of
    the block is reached, unless it is on its way; a block that is done all the same ends with it. Later, while
    the interpreter shuts down, a signal does what it does by default.

    Raises:
        Terminated: there was such a signal; stderr says so.
    """
    received: list[int] = []

    def terminate(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGALRM and not received:
            received.append(number)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        if not _unwinding() and not _importing(frame):
            raise Terminated(received[0])

    # A hang-up that is ignored stays so: nohup.
    caught = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in (*caught, signal.SIGALRM):
        signal.signal(number, terminate)
    try:
        yield
        if received:
            raise Terminated(received[0])
    except Terminated as error:
        _quiet(caught)
        name = signal.Signals(received[0]).name
        print(f"nemo-merge: ended by {name}; run the same command again to go on", file=sys.stderr)
        raise error from None
    finally:
        _quiet(caught)


def _quiet(caught: list[signal.Signals]) -> None:
    """No more of it; further signals end the process at once."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*caught, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)


def _unwinding() -> bool:
    """Whether the exception is on its way: a ``finally`` or ``with`` is cleaning up because of it."""
    error = sys.exception()
    while error is not None:
        if isinstance(error, Terminated):
            return True
        error = error.__context__
    return False


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is half imported, which what cleans up may need whole."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
