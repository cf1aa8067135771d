"""What can go wrong, as one class per kind; every message names the file, the tensor and the way out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_LONGEST = 2000


class NemoMergeError(Exception):
    """A problem that the user can solve; the command line prints it as one message and exits with 2."""

    exit_code = 2
    silent = False
    """Whether another process says what is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class ConfigError(NemoMergeError, ValueError):
    """An option, method or parameter that does not exist or is out of its range."""


class CheckpointError(NemoMergeError):
    """A checkpoint that cannot be read: missing, damaged, unsafe or of an unknown format.

    The message is cut where it is long: names in a damaged file may have millions of letters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= _LONGEST else f"{message[: _LONGEST - 200]} ... {message[-200:]}")


class AudioError(NemoMergeError):
    """Audio that cannot be used: missing, damaged, too short or of an unknown format."""


class TranscriptError(NemoMergeError, ValueError):
    """Transcripts that cannot be scored: damaged, of an unknown format, or not of the same utterances."""


class CorpusError(NemoMergeError):
    """A corpus that is not there, not laid out as documented, or damaged."""


class OutputError(NemoMergeError):
    """An output that cannot be written: it exists, the disk is full, the folder is read-only."""


class MergeError(NemoMergeError):
    """A merge that went wrong on the way, for example a result that is not finite."""


class PlanError(NemoMergeError):
    """Checkpoints that do not fit together.

    Attributes:
        problems: every problem found, one sentence each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"cannot merge, {count}:\n" + "\n".join(f"  - {problem}" for problem in self.problems))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'ties'?"`` when something known is close, else the list of what is known."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def printable(text: str) -> str:
    r"""A text whose control characters are escaped: what a file says must not steer the terminal.

    Example:
        >>> print(printable("tensor \x1b[2J\n"), end="")
        tensor \x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
