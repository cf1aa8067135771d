"""SEAME: Mandarin and English as spoken in Singapore and Malaysia (Lyu et al., Interspeech 2010; LDC2015S04).

The usual splits are lists in a repository of their own, ``SEAME-dev-set``: ``train/wav_file.txt`` (recordings),
``dev_man/text`` and ``dev_sge/text`` (segments, whose ids end in start and end in units of 10 ms). Times of the lists
and of the release differ a little.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError
from ..importers.seame import seame_sessions
from ..registry import Corpus, register
from ..sessions import Layout, Session
from ..source import Source

TOLERANCE = 0.1  # seconds between the times of the lists and of the transcripts
_SEGMENT = re.compile(r"(?:.*-)?(\w+?)[-_](\d{5,})[-_](\d{5,})$")
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
        layout="{conversation,interview}/{audio/*.flac,transcript/{phaseI,phaseII}/*.txt}",
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
        phase: transcripts: ``II`` (with the language of each segment) or ``I``.
        lists: folder with ``train/wav_file.txt``, ``dev_man/text`` and ``dev_sge/text``. Of the segments of the
            training list one in twenty is ``dev``.
    """
    if phase not in ("I", "II"):
        raise ConfigError(f"seame: phase={phase!r} is neither I nor II")
    root = source.root / "data" if (source.root / "data").is_dir() else source.root
    files = [path for path in source.find("*.txt", under=root) if path.parent.name.lower() == f"phase{phase.lower()}"]
    folders = [root / kind / "audio" for kind in ("conversation", "interview")]
    if not files:
        return Layout({})
    if lists is None:
        return Layout({"all": seame_sessions(source, files, folders)})
    official = _Lists(source, Path(lists))
    return Layout(
        {
            split: official.chosen(split, seame_sessions(source, files, folders))
            for split in ("train", "dev", "dev-man", "dev-sge")
        }
    )


class _Lists:
    """The lists of SEAME-dev-set."""

    def __init__(self, source: Source, folder: Path) -> None:
        names = (line.strip() for _, line in source.lines(folder / "train" / "wav_file.txt"))
        self._train = {Path(name).stem.lower() for name in names if name}
        self._tests: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for split, name in (("dev-man", "dev_man"), ("dev-sge", "dev_sge")):
            segments: dict[str, list[tuple[float, float]]] = {}
            for place, line in source.lines(folder / name / "text"):
                if not line.strip():
                    continue
                match = _SEGMENT.match(line.split()[0])
                if match is None:
                    source.problems.add("row", place, f"{line.split()[0]!r} does not end in start and end")
                    continue
                segments.setdefault(match[1].lower(), []).append((int(match[2]) / 100, int(match[3]) / 100))
            self._tests[split] = segments

    def chosen(self, split: str, sessions: Iterator[Session]) -> Iterator[Session]:
        """The part of the sessions that is in a split."""
        for session in sessions:
            name = session.id.lower()
            if split in ("train", "dev"):
                held_out = split == "dev"
                kept = [u for u in session.utterances if name in self._train and _one_in_twenty(u.id) == held_out]
            else:
                listed = self._tests[split].get(name, ())
                kept = [
                    u
                    for u in session.utterances
                    if any(abs(u.start - a) <= TOLERANCE and abs((u.end or 0) - b) <= TOLERANCE for a, b in listed)
                ]
            if kept:
                session.utterances = kept
                yield session


def _one_in_twenty(identifier: str) -> bool:
    return int(hashlib.sha256(identifier.encode()).hexdigest(), 16) % 20 == 0
