"""A stage's log."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import Context


@contextlib.contextmanager
def captured(log: Path, context: Context) -> Iterator[None]:
    """Sends all output of this process and its children to a log file; ``context.say`` still reaches the user."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    console_before = context._console
    terminal = os.fdopen(os.dup(saved[0]), "w", buffering=1)
    context._console = lambda line: print(line, file=terminal, flush=True)
    with open(log, "w", buffering=1, encoding="utf-8") as file:
        # Both levels: what libraries and child processes write, and what Python prints where sys.stdout was replaced.
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                try:
                    yield
                except BaseException:
                    traceback.print_exc()
                    raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for fd in saved:
                os.close(fd)
            terminal.close()
            context._console = console_before
