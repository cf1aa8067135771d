"""Folders of prepared corpora: how their files are called, and finding corpora by domain or language.

A prepared corpus is, for every split, ``<corpus>_recordings_<split>.jsonl.gz``,
``<corpus>_supervisions_<split>.jsonl.gz`` and ``<corpus>_cuts_<split>.jsonl.gz`` (one cut per utterance, what NeMo
trains on), and once ``<corpus>.json``, which says what the corpus is and how many utterances and hours each split
has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CorpusError

TYPES = ("recordings", "supervisions", "cuts")
_MARK = "nemo_merge_corpus"
FORMAT = 1


@dataclass(frozen=True)
class Prepared:
    """One prepared corpus.

    Attributes:
        folder: where its files are.
        stem: first part of their names.
        corpus: name in the registry.
        domain: as in the registry, or as the user named it.
        languages: BCP-47 tags, the main one first.
        splits: counts by split: ``recordings, utterances, hours, channels, skipped``.
    """

    folder: Path
    stem: str
    corpus: str
    domain: str
    languages: tuple[str, ...]
    splits: dict[str, dict[str, Any]]

    def path(self, kind: str, split: str) -> Path:
        """A manifest.

        Args:
            kind: ``recordings``, ``supervisions`` or ``cuts``.
            split: name of a split.

        Raises:
            CorpusError: the corpus has no such split.
        """
        if split not in self.splits:
            raise CorpusError(f"{self.folder}: {self.stem} has no split {split!r}, only {', '.join(self.splits)}")
        return manifest_path(self.folder, self.stem, kind, split)


def manifest_path(folder: Path, stem: str, kind: str, split: str) -> Path:
    """``<stem>_<kind>_<split>.jsonl.gz``."""
    return folder / f"{stem}_{kind}_{split}.jsonl.gz"


def read_summary(path: Path) -> dict[str, Any] | None:
    """What ``<corpus>.json`` says; None when the file is missing or is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get(_MARK) == FORMAT else None


def summary_head() -> dict[str, int]:
    """The entry by which such a file is known."""
    return {_MARK: FORMAT}


def find_prepared(
    folder: str | Path,
    *,
    domain: str | None = None,
    corpus: str | None = None,
    language: str | None = None,
    split: str | None = None,
) -> list[Prepared]:
    """Prepared corpora in a folder and its subfolders that fit all that is asked for, by name.

    Args:
        folder: where :func:`prepare` wrote.
        domain: exact domain.
        corpus: name of the recipe or first part of the file names; hyphens and underscores are the same.
        language: BCP-47 tag; ``pt`` fits ``pt-PT``, not the other way round.
        split: name of a split that must be there.

    Raises:
        CorpusError: the folder does not exist.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder; nemo-merge prepare CORPUS SRC {root} makes it")
    wanted = corpus.replace("_", "-") if corpus else None
    return [
        item
        for item in _prepared(root)
        if (domain is None or item.domain == domain)
        and (wanted is None or wanted in (item.stem, item.corpus.replace("_", "-")))
        and (language is None or any(f"{tag}-".startswith(f"{language}-") for tag in item.languages))
        and (split is None or split in item.splits)
    ]


def open_prepared(summary: Path) -> Prepared | None:
    """The corpus that ``<corpus>.json`` describes; None when the file is something else."""
    content = read_summary(summary)
    if content is None:
        return None
    return Prepared(
        summary.parent,
        summary.stem,
        content["corpus"],
        content["domain"],
        tuple(content["languages"]),
        content["splits"],
    )


def _prepared(root: Path) -> Iterator[Prepared]:
    for path in sorted({*root.glob("*.json"), *root.glob("*/*.json")}):
        if item := open_prepared(path):
            yield item
