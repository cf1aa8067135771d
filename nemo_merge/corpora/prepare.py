"""What all recipes share: sessions in, Lhotse manifests out; resumable, idempotent, with flat memory."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, CorpusError
from .examine import Identity, Row, examine, in_order
from .journal import Journal
from .manifests import replaced, write_split
from .prepared import TYPES, manifest_path, read_summary, summary_head
from .problems import Problem, Problems
from .sessions import Layout, Session
from .source import Source

if TYPE_CHECKING:
    from .registry import Corpus

VERSION = 1  # raise when the same corpus gives other manifests: prepared ones are then made anew
Progress = Callable[[str, int], None]


def prepare_manifests(
    corpus: Corpus,
    layout: Callable[..., Layout],
    corpus_dir: str | Path,
    output_dir: str | Path | None,
    num_jobs: int = 1,
    *,
    strict: bool = False,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
) -> Manifests:
    """Prepares a corpus.

    Args:
        corpus: what it is.
        layout: finds the sessions of every split.
        corpus_dir: folder of the corpus.
        output_dir: where to write the manifests; nowhere and all in memory when None.
        num_jobs: threads that open audio files.
        strict: whether the first problem is an error; otherwise what has a problem is left out and counted.
        progress: called with the split and the number of recordings that are done.
        options: of the recipe.

    Returns:
        ``{split: {"recordings": RecordingSet, "supervisions": SupervisionSet}}``; lazy when they were written.

    Raises:
        CorpusError: the corpus is not there or not as documented, nothing is usable, strict and a problem, or a file
            cannot be read or written.
        ConfigError: an option that is needed is not given, or Lhotse is not installed.
    """
    if find_spec("lhotse") is None:
        raise ConfigError("preparing corpora needs Lhotse; pip install 'nemo-merge[lhotse]'")
    options = dict(options or {})
    needed = [key for key, value in corpus.options.items() if value is inspect.Parameter.empty and key not in options]
    if needed:
        raise ConfigError(f"{corpus.name} needs {', '.join(f'{key}=...' for key in needed)}")
    if num_jobs < 1:
        raise ConfigError(f"num_jobs={num_jobs} is not a number from 1 on")
    root = Path(corpus_dir)
    if not root.exists():
        raise CorpusError(f"{root}: no such folder; {corpus.title} is {corpus.layout}")
    source = Source(root, Problems(strict))
    try:
        found = layout(source, **options)
        if not found.splits:
            raise CorpusError(f"{root}: nothing of {corpus.title} is here; expected {corpus.layout}")
        splits = {_part(split): sessions for split, sessions in found.splits.items()}
        if len(splits) < len(found.splits):
            raise CorpusError(f"{root}: splits differ only in characters that file names lack: {list(found.splits)}")
        found.splits = splits
        return _prepare(source, found, _identity(corpus, found), output_dir, num_jobs, progress, options)
    except OSError as error:
        raise CorpusError(f"{error.filename or root}: {error.strerror or error}") from error


def _part(name: str) -> str:
    """A name as part of the names of files, whose parts are separated by underscores."""
    return re.sub(r"[^\w.-]+|_+", "-", name).strip("-.") or "all"


def _identity(corpus: Corpus, found: Layout) -> Identity:
    return Identity(
        _part(found.stem or corpus.name),
        corpus.name,
        found.domain or corpus.domain,
        found.languages or corpus.languages,
        corpus.variety if found.variety is None else found.variety,
        found.licence or corpus.licence,
    )


def _prepare(
    source: Source,
    found: Layout,
    identity: Identity,
    output_dir: str | Path | None,
    num_jobs: int,
    progress: Progress | None,
    options: Mapping[str, Any],
) -> Manifests:
    if output_dir is None:
        return _in_memory(source, found, identity, num_jobs, progress)
    return _Preparation(source, identity, Path(output_dir), num_jobs, progress, options).run(found)


class Manifests(dict[str, dict[str, Any]]):
    """``{split: {"recordings": ..., "supervisions": ...}}``, as Lhotse's recipes return it.

    Attributes:
        summary: the file that describes the corpus in the output folder; None when nothing was written.
    """

    summary: Path | None = None


class _Preparation:
    """One run that writes files."""

    def __init__(
        self,
        source: Source,
        identity: Identity,
        folder: Path,
        num_jobs: int,
        progress: Progress | None,
        options: Mapping[str, Any],
    ) -> None:
        self.source, self.identity, self.folder = source, identity, folder
        self.num_jobs, self.progress = num_jobs, progress
        key = [VERSION, str(source.root.resolve()), sorted((k, repr(v)) for k, v in options.items()), asdict(identity)]
        self.key = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.summary_path = folder / f"{identity.stem}.json"

    def run(self, found: Layout) -> Manifests:
        self.folder.mkdir(parents=True, exist_ok=True)
        summary = read_summary(self.summary_path) or {}
        old = summary.get("splits", {}) if summary.get("corpus") == self.identity.corpus else {}
        everywhere = dict(self.source.seen)
        done = {split: old[split] for split in found.splits if split in old and self._is_done(split, old[split])}
        ids = _Ids()
        if len(done) < len(found.splits):
            for split in done:
                ids.add_all(manifest_path(self.folder, self.identity.stem, "supervisions", split))
        for split, sessions in found.splits.items():
            if split in done:
                continue
            self.source.seen.clear()
            self.source.seen.update(everywhere)
            counts = self._split(split, sessions, ids)
            old.pop(split, None)
            if not counts["utterances"]:
                continue
            done[split] = counts
            self._summarise({**old, **done})
            with replaced(self._state_path(split)) as stream:
                stream.write(json.dumps({"key": self.key, "seen": self.source.seen}).encode())
        if not done:
            self.summary_path.unlink(missing_ok=True)
            raise CorpusError(f"{self.source.root}: no utterance is usable; see {self.folder}/*_problems_*.jsonl")
        done = {split: done[split] for split in found.splits if split in done}
        self._summarise(done)
        manifests = _load(self.folder, self.identity.stem, done)
        manifests.summary = self.summary_path
        return manifests

    def _state_path(self, split: str) -> Path:
        return self.folder / f".{self.identity.stem}_{split}.state.gz"

    def _is_done(self, split: str, counts: dict[str, Any]) -> bool:
        """Whether the split was prepared with the same options from files that did not change since.

        Audio is looked at once. Where some could not be read it is tried again.
        """
        try:
            before = json.loads(gzip.decompress(self._state_path(split).read_bytes()))
        except (OSError, EOFError, ValueError):
            return False
        skipped = counts["skipped"]
        return (
            before["key"] == self.key
            and not (self.source.problems.strict and skipped)
            and not ({"missing_audio", "unreadable_audio"} & skipped.keys())
            and all(manifest_path(self.folder, self.identity.stem, kind, split).is_file() for kind in TYPES)
            and all(_unchanged(path, state) for path, state in before["seen"].items())
        )

    def _split(self, split: str, sessions: Iterable[Session], ids: _Ids) -> dict[str, Any]:
        stem, problems = self.identity.stem, self.source.problems
        path = self.folder / f"{stem}_problems_{split}.jsonl"
        work = partial(examine, identity=self.identity, audio_folder=self.folder / "audio" / stem / split)
        with replaced(path) as listed, Journal(self.folder / f".{stem}_{split}.journal", self.key) as journal:
            problems.start(lambda problem: _list(listed, problem))
            fresh = ids.without_duplicates(sessions, problems)
            for number, (session, row) in enumerate(in_order(fresh, journal.known, work, self.num_jobs), 1):
                problems.extend(row.problems)
                journal.append(session, row)
                if self.progress:
                    self.progress(split, number)
            skipped = problems.stop()
            counts = {**write_split(self.folder, stem, split, journal.rows()), "skipped": dict(sorted(skipped.items()))}
        journal.path.unlink()
        if not skipped:
            path.unlink()
        if not counts["utterances"]:
            for kind in TYPES:
                manifest_path(self.folder, stem, kind, split).unlink()
        return counts

    def _summarise(self, splits: Mapping[str, Any]) -> None:
        content = {**summary_head(), **asdict(self.identity), "source": str(self.source.root.resolve())}
        with replaced(self.summary_path) as stream:
            stream.write((json.dumps({**content, "splits": splits}, ensure_ascii=False, indent=1) + "\n").encode())


class _Ids:
    """Ids that were used, as hashes of 64 bits to keep the memory small."""

    def __init__(self) -> None:
        self._utterances: set[int] = set()

    def add_all(self, supervisions: Path) -> None:
        """Those of a split that was prepared before."""
        with gzip.open(supervisions, "rt", encoding="utf-8") as lines:
            self._utterances.update(hash(json.loads(line)["id"]) for line in lines)

    def without_duplicates(self, sessions: Iterable[Session], problems: Problems) -> Iterator[Session]:
        """Leaves out utterances whose id was used in any split, and recordings whose id was used for other audio."""
        files: dict[int, int] = {}
        for session in sessions:
            kept = []
            alone = len(session.utterances) == 1 and session.id == session.utterances[0].id
            other = not alone and files.setdefault(hash(session.id), hash(session.audio.path)) != hash(
                session.audio.path
            )
            for utterance in session.utterances:
                key = hash(utterance.id)
                if other:
                    problems.add("duplicate_id", utterance.place, f"{session.id!r} was used for another recording")
                elif key in self._utterances:
                    problems.add("duplicate_id", utterance.place, f"the id {utterance.id!r} was used before")
                else:
                    self._utterances.add(key)
                    kept.append(utterance)
            if kept:
                session.utterances = kept
                yield session


def _in_memory(
    source: Source, found: Layout, identity: Identity, num_jobs: int, progress: Progress | None
) -> Manifests:
    from lhotse import RecordingSet, SupervisionSet

    manifests = Manifests()
    ids = _Ids()
    work = partial(examine, identity=identity, audio_folder=None)
    source.problems.start(lambda problem: None)
    for split, sessions in found.splits.items():
        recordings: dict[str, dict[str, Any]] = {}
        supervisions: list[dict[str, Any]] = []
        fresh = ids.without_duplicates(sessions, source.problems)
        for number, (_, row) in enumerate(in_order(fresh, _nothing_known, work, num_jobs), 1):
            source.problems.extend(row.problems)
            if row.recording:
                recordings.setdefault(row.recording["id"], row.recording)
                supervisions += row.supervisions
            if progress:
                progress(split, number)
        if supervisions:
            manifests[split] = {
                "recordings": RecordingSet.from_dicts(recordings.values()),
                "supervisions": SupervisionSet.from_dicts(supervisions),
            }
    if not manifests:
        raise CorpusError(f"{source.root}: no utterance is usable ({dict(source.problems.counts)})")
    return manifests


def _nothing_known(_: Session) -> Row | None:
    return None


def _load(folder: Path, stem: str, splits: Iterable[str]) -> Manifests:
    from lhotse import RecordingSet, SupervisionSet

    return Manifests(
        {
            split: {
                "recordings": RecordingSet.from_jsonl_lazy(manifest_path(folder, stem, "recordings", split)),
                "supervisions": SupervisionSet.from_jsonl_lazy(manifest_path(folder, stem, "supervisions", split)),
            }
            for split in splits
        }
    )


def _unchanged(path: str, state: list[int]) -> bool:
    try:
        status = Path(path).stat()
    except OSError:
        return False
    return [0 if Path(path).is_dir() else status.st_size, status.st_mtime_ns] == state


def _list(stream: Any, problem: Problem) -> None:
    stream.write((json.dumps(asdict(problem), ensure_ascii=False) + "\n").encode("utf-8"))
