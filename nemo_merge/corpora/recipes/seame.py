"""SEAME: Mandarin and English as spoken in Singapore and Malaysia (Lyu et al., Interspeech 2010; LDC2015S04).

The usual splits are lists in a repository of their own, ``SEAME-dev-set``: ``train/wav_file.txt`` (recordings),
``dev_man/text`` and ``dev_sge/text`` (segments such as ``ui07f-ui07faz_0103-18743-18959``, whose ids end in start and
end in units of 10 ms). Times of the lists and of the release differ by up to two units.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError
from ..importers.seame import seame_sessions
from ..registry import Corpus, register
from ..sessions import Layout, Session, Utterance
from ..source import Source

_UNIT = 0.01  # seconds
_TOLERANCE = 3  # units by which the times of the lists and of the transcripts differ less
_SEGMENT = re.compile(r"(?:\w+-)?(\w+)-(\d+)-(\d+)$")
CORPUS = register(
    Corpus(
        name="seame",
        title="SEAME",
        domain="conversational",
        languages=("zh", "en"),
        variety="Singapore and Malaysia, code-switched",
        licence="LDC user agreement",
        access="ldc",
        source="LDC2015S04",
        layout="**/{conversation,interview}/{audio/*.flac,transcript/[{phaseI,phaseII}/]*.txt}",
        splits=("train", "dev", "dev-man", "dev-sge"),
        citation="Lyu et al., Interspeech 2010",
        note="lists=<folder of SEAME-dev-set> makes the usual splits; without it there is one, all.",
    )
)


@CORPUS.recipe
def prepare_seame(source: Source, *, phase: str = "II", lists: str | None = None) -> Layout:
    """Conversations and interviews with spans by script.

    Args:
        source: the corpus.
        phase: transcripts: ``II`` (with the language of each segment) or ``I``; releases without phases have one.
        lists: folder with ``train/wav_file.txt``, ``dev_man/text`` and ``dev_sge/text``. Of the segments of the
            training list one in twenty is ``dev``.
    """
    if phase not in ("I", "II"):
        raise ConfigError(f"seame: phase={phase!r} is neither I nor II")
    transcripts = [path for path in source.find("*.txt") if "transcript" in path.parts]
    files = [path for path in transcripts if path.parent.name.lower() == f"phase{phase.lower()}"]
    files = files or [path for path in transcripts if path.parent.name == "transcript"]
    kinds = {parent.parent for path in files for parent in path.parents if parent.name == "transcript"}
    folders = [kind / "audio" for kind in sorted(kinds)]
    if not files:
        return Layout({})
    if lists is None:
        return Layout({"all": seame_sessions(source, files, folders)})
    official = _Lists(source, Path(lists))
    return Layout(
        {
            split: official.chosen(
                split, seame_sessions(source if split == "train" else source.again(), files, folders)
            )
            for split in ("train", "dev", "dev-man", "dev-sge")
        }
    )


class _Lists:
    """The lists of SEAME-dev-set."""

    def __init__(self, source: Source, folder: Path) -> None:
        names = (line.strip() for _, line in source.lines(folder / "train" / "wav_file.txt"))
        self._train = {Path(name).stem.lower() for name in names if name}
        self._tests: dict[str, dict[str, list[tuple[int, int]]]] = {}
        for split, name in (("dev-man", "dev_man"), ("dev-sge", "dev_sge")):
            segments: dict[str, list[tuple[int, int]]] = {}
            for place, line in source.lines(folder / name / "text"):
                if not line.strip():
                    continue
                match = _SEGMENT.match(line.split()[0])
                if match is None:
                    source.problems.add("row", place, f"{line.split()[0]!r} does not end in start and end")
                    continue
                segments.setdefault(match[1].lower(), []).append((int(match[2]), int(match[3])))
            self._tests[split] = segments

    def chosen(self, split: str, sessions: Iterator[Session]) -> Iterator[Session]:
        """The part of the sessions that is in a split."""
        for session in sessions:
            name = session.id.lower()
            if split in self._tests:
                kept = [item for item in session.utterances if self._is_listed(split, name, item)]
            elif name in self._train:
                tests = [
                    item for test in self._tests for item in session.utterances if self._is_listed(test, name, item)
                ]
                rest = [item for item in session.utterances if item not in tests]
                kept = [item for item in rest if _one_in_twenty(item.id) == (split == "dev")]
            else:
                kept = []
            if kept:
                session.utterances = kept
                yield session

    def _is_listed(self, split: str, recording: str, item: Utterance) -> bool:
        return any(
            abs(item.start / _UNIT - start) < _TOLERANCE and abs((item.end or 0.0) / _UNIT - end) < _TOLERANCE
            for start, end in self._tests[split].get(recording, ())
        )


def _one_in_twenty(identifier: str) -> bool:
    return int(hashlib.sha256(identifier.encode()).hexdigest(), 16) % 20 == 0
