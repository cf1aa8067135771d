"""Transcripts of one model and test set: a journal while they are made, one file when they are complete."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import OutputError

_OPTIONAL = ("lang", "speaker", "domain", "duration", "audio_filepath", "offset", "channel", "segments")


@dataclass(frozen=True)
class Segment:
    """A stretch of speech; start and end in seconds from the beginning of the utterance."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Hypothesis:
    """What a model heard, beside what was said.

    Attributes:
        id: of the utterance.
        text: what was said, or None if that is not known.
        pred_text: what was heard.
        lang, speaker, domain: if known.
        duration: seconds.
        audio_filepath, offset, channel: where the audio is; the offset in seconds.
        segments: where the speech is, if the recording was cut into segments.
    """

    id: str
    text: str | None
    pred_text: str
    lang: str | None = None
    speaker: str | None = None
    domain: str | None = None
    duration: float | None = None
    audio_filepath: str | None = None
    offset: float | None = None
    channel: int | None = None
    segments: Sequence[Segment] | None = None

    def line(self) -> str:
        """As JSON, without what is not known."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None}, ensure_ascii=False) + "\n"


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Hypotheses of one set, in the order of the set."""
    with open(path, encoding="utf-8") as lines:
        return [_hypothesis(json.loads(line)) for line in lines]


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes out of it.

    Raises:
        OutputError: another process is at work in it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used ({error.strerror or error})") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{folder}: another process is decoding into it") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(lock)


class TranscriptsFile:
    """``<folder>/<set>.jsonl`` in the making or complete.

    Hypotheses are appended to ``.<set>.partial.jsonl``, whose first line says what they were made with. When all are
    there, ``<set>.jsonl`` and ``<set>.yaml``, which says the same, appear at once.

    Args:
        folder: of the model; it exists.
        name: of the test set.
        made_with: digests of model and data, and settings; what another model left is never continued.
        replace: remove what was made with something else, instead of refusing it.

    Attributes:
        path: of the transcripts.
        note: of the file that says what they were made with.
        known: hypotheses that are there already, by id.

    Raises:
        OutputError: something else is there, or the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str, made_with: Mapping[str, Any], *, replace: bool) -> None:
        self.path = folder / f"{name}.jsonl"
        self.note = folder / f"{name}.yaml"
        self._journal = folder / f".{name}.partial.jsonl"
        self._made_with = json.loads(json.dumps(made_with))
        self.known: dict[str, Hypothesis] = {}
        try:
            for path, read in ((self.path, self._finished), (self._journal, self._begun)):
                if not path.exists():
                    continue
                theirs, found = read()
                if theirs == self._made_with:
                    self.known |= {item.id: item for item in found}
                elif replace:
                    path.unlink()
                else:
                    raise OutputError(
                        f"{path}: was made with {_differences(theirs, self._made_with)}; "
                        "pass --overwrite, or another output"
                    )
        except OSError as error:
            raise OutputError(f"{folder}: cannot be used ({error.strerror or error})") from error

    def add(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Appends hypotheses; they are on the disk when this returns."""
        lines = "".join(item.line() for item in hypotheses)
        try:
            if not self._journal.exists():
                lines = json.dumps({"made_with": self._made_with}) + "\n" + lines
            with open(self._journal, "ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self._journal}: cannot be written ({error.strerror or error})") from error
        self.known |= {item.id: item for item in hypotheses}

    def finish(self, order: Sequence[str], skipped: Mapping[str, str], record: Mapping[str, Any]) -> list[Hypothesis]:
        """Writes the file.

        Args:
            order: ids, of which those without a hypothesis are left out.
            skipped: why utterances have none, by id.
            record: what else to note beside the file.

        Returns:
            What the file holds.
        """
        from ..checkpoints._work import write_whole  # imports torch

        found = [self.known[name] for name in order if name in self.known]
        said = {**record, "made_with": self._made_with, "utterances": len(found), "skipped": dict(skipped)}
        write_whole(self.note, yaml.safe_dump(said, sort_keys=False, allow_unicode=True).encode())
        write_whole(self.path, "".join(item.line() for item in found).encode())
        with contextlib.suppress(FileNotFoundError):
            self._journal.unlink()
        return found

    def _finished(self) -> tuple[Any, list[Hypothesis]]:
        try:
            theirs = yaml.safe_load(self.note.read_text(encoding="utf-8"))["made_with"]
            return theirs, read_hypotheses(self.path)
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            return None, []

    def _begun(self) -> tuple[Any, list[Hypothesis]]:
        content = self._journal.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]  # a line that was cut short counts for nothing
        if len(complete) < len(content):
            os.truncate(self._journal, len(complete))
        if not complete:
            self._journal.unlink()
            return self._made_with, []
        try:
            head, *lines = (json.loads(line) for line in complete.decode().splitlines())
            return head["made_with"], [_hypothesis(line) for line in lines]
        except (ValueError, TypeError, KeyError):
            return None, []


def _hypothesis(row: Mapping[str, Any]) -> Hypothesis:
    optional = {key: row[key] for key in _OPTIONAL if row.get(key) is not None}
    if "segments" in optional:
        optional["segments"] = [Segment(**segment) for segment in optional["segments"]]
    return Hypothesis(row["id"], row.get("text"), row["pred_text"], **optional)


def _differences(theirs: Any, mine: Mapping[str, Any]) -> str:
    """What another output was made with, where that differs."""
    if not isinstance(theirs, Mapping):
        return "something that is not noted beside it"
    digests = [
        f"another {key} (SHA-256 {str(theirs.get(key))[:12]})"
        for key in ("model", "data")
        if theirs.get(key) != mine[key]
    ]
    said, now = theirs.get("settings") or {}, mine["settings"]
    settings = [
        f"{key}={said.get(key)!r} instead of {now.get(key)!r}"
        for key in {**now, **said}
        if said.get(key) != now.get(key)
    ]
    return ", ".join([*digests, *settings])
