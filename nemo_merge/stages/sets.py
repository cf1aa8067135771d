"""The sets of speech that a recipe trains and tests on: synthesised, prepared from a corpus, or given as manifests.

An entry of ``corpus`` in a recipe's configuration is one of::

    telephone: {train: 600, dev: 60, test: 120}                        # a set of EP-mini: utterances to synthesise
    lectures: {corpus: lectra, folder: /data/LECTRA}                   # what nemo-merge prepare knows
    news: {cuts: {train: news/train.jsonl.gz, test: news/test.json}}   # Lhotse cuts, or manifests of NeMo
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..corpora.mini import NAMES, SPLITS, Grammar, Sizes, load
from ..corpora.prepared import Prepared, open_prepared
from ..errors import ConfigError, CorpusError, NemoMergeError, did_you_mean

if TYPE_CHECKING:
    from lhotse import CutSet

    from .engine import Context

_GROUPS = {"out_of_domain": "out of domain", "variety": "variety", "language": "other languages"}
_COMMON = ("title", "group", "text", "language")
_KEYS = {
    "corpus": ("corpus", "folder", "options", "download", "splits", *_COMMON),
    "cuts": ("cuts", *_COMMON),
}


@dataclass(frozen=True)
class SpeechSet(ABC):
    """A set of speech with up to three splits.

    Attributes:
        name: key in the configuration.
        title: for tables.
        group: what it is where no expert was trained on it, such as ``out of domain``.
    """

    name: str
    title: str
    group: str

    @property
    @abstractmethod
    def stem(self) -> str:
        """First part of the names of its manifests."""

    @abstractmethod
    def splits(self, context: Context) -> Sequence[str]:
        """Which of ``train``, ``dev``, ``test`` it has; none where that is known only after preparation."""

    @property
    def rewrite(self) -> Callable[[str], str]:
        """What its transcripts are put through in stage 2, and later what was heard, so that both are written alike."""
        return str

    def cuts_path(self, context: Context, split: str) -> Path:
        """Where stage 2 writes the cuts of a split."""
        return context.datadir / "cuts" / f"{self.stem}_cuts_{split}.jsonl.gz"


@dataclass(frozen=True)
class MiniSet(SpeechSet):
    """A set of EP-mini, which is synthesised."""

    sizes: Sizes

    @property
    def stem(self) -> str:
        return f"ep-mini-{self.name}"

    @property
    def grammar(self) -> Grammar:
        """What its sentences are made from."""
        return load(self.name)

    def splits(self, context: Context) -> Sequence[str]:
        return [split for split in SPLITS if getattr(self.sizes, split)]


@dataclass(frozen=True)
class OwnSet(SpeechSet):
    """A set that the user has.

    Attributes:
        text: text profile that transcripts are put through, so that they are written as the model writes; or None.
        language: BCP-47 tag of the transcripts, for that.
    """

    text: str | None = None
    language: str | None = None

    @property
    def stem(self) -> str:
        return self.name.replace("_", "-")

    @property
    def rewrite(self) -> Callable[[str], str]:
        from ..scoring.text.profiles import normaliser

        return normaliser(self.text, self.language) if self.text else str

    @abstractmethod
    def prepare(self, context: Context) -> list[Path]:
        """Makes Lhotse manifests where there are none; returns what it leaves."""

    @abstractmethod
    def source(self, context: Context, split: str) -> Path:
        """Lhotse cuts of a split that is prepared."""

    def prepared(self, context: Context) -> list[Path]:
        """What :meth:`prepare` left."""
        return []

    def cuts(self, context: Context, split: str) -> CutSet:
        """Cuts with transcripts as the model is to write them; those that say nothing are left out."""
        from lhotse import CutSet

        path = self.source(context, split)
        try:
            kept = [said for cut in CutSet.from_file(path) for said in _utterances(cut) if _text(said)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise CorpusError(f"{path}: cannot be read as Lhotse cuts ({type(error).__name__}: {error})") from error
        if self.text:
            rewrite = self.rewrite
            rewritten = (cut.map_supervisions(lambda said: said.transform_text(rewrite)) for cut in kept)
            kept = [cut for cut in rewritten if _text(cut)]
        if not kept:
            raise CorpusError(f"{path}: there is no cut with a transcript")
        return CutSet.from_cuts(kept)


@dataclass(frozen=True)
class CorpusSet(OwnSet):
    """A corpus or a format that the registry knows.

    Attributes:
        corpus: its name there.
        folder: of the corpus; where ``download`` puts it otherwise.
        options: of its recipe.
        download: whether to fetch it.
        names: its names for splits, by ours.
    """

    corpus: str = ""
    folder: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    download: bool = False
    names: Mapping[str, str] = field(default_factory=dict)

    def place(self, context: Context) -> Path:
        """The folder of the corpus."""
        return self.folder or context.datadir / "download" / self.corpus

    def fetch(self, context: Context) -> str:
        """Downloads the corpus, or sees that it is there.

        Raises:
            ConfigError: it has no folder, or cannot be fetched.
        """
        from ..corpora import find
        from ..corpora.registry import ACCESS

        known = find(self.corpus)
        if not self.download:
            if self.folder is None or not self.folder.exists():
                where = "says no folder" if self.folder is None else f"{self.folder} does not exist"
                raise ConfigError(
                    f"corpus.{self.name}: {where}; {known.title}: {ACCESS[known.access]} ({known.source}); "
                    f"set corpus.{self.name}.folder=PATH"
                )
            return f"{known.title} in {self.folder}"
        if known.download is None:
            raise ConfigError(
                f"corpus.{self.name}: {known.name} cannot be downloaded ({known.source}); give its folder"
            )
        accepted = inspect.signature(known.download).parameters
        known.download(self.place(context), **{key: self.options[key] for key in self.options if key in accepted})
        return f"{known.title}: licence {known.licence}"

    def prepare(self, context: Context) -> list[Path]:
        from ..corpora import find

        prepare = find(self.corpus).prepare
        assert prepare is not None  # all that are registered have one
        folder = self._manifests(context)
        for path in folder.glob("*.json"):
            path.unlink()  # what another version of this entry left
        prepare(self.place(context), folder, context.jobs, **self.options)
        return self.prepared(context)

    def prepared(self, context: Context) -> list[Path]:
        item = self._found(context)
        return [] if item is None else [item.path("cuts", self._own(split)) for split in self.splits(context)]

    def splits(self, context: Context) -> Sequence[str]:
        item = self._found(context)
        return [] if item is None else [split for split in SPLITS if self._own(split) in item.splits]

    def source(self, context: Context, split: str) -> Path:
        item = self._found(context)
        assert item is not None  # stage 1 is done
        return item.path("cuts", self._own(split))

    def _own(self, split: str) -> str:
        return self.names.get(split, split)

    def _manifests(self, context: Context) -> Path:
        return context.datadir / "manifests" / self.name

    def _found(self, context: Context) -> Prepared | None:
        return next(filter(None, map(open_prepared, sorted(self._manifests(context).glob("*.json")))), None)


@dataclass(frozen=True)
class GivenSet(OwnSet):
    """Manifests by split."""

    manifests: Mapping[str, Path] = field(default_factory=dict)

    def splits(self, context: Context) -> Sequence[str]:
        return [split for split in SPLITS if split in self.manifests]

    def check(self) -> None:
        """Sees that all manifests are there.

        Raises:
            ConfigError: one is not.
        """
        for split, path in self.manifests.items():
            if not path.is_file():
                raise ConfigError(f"corpus.{self.name}.cuts.{split}: {path} does not exist")

    def prepare(self, context: Context) -> list[Path]:
        from ..corpora import find

        made = []
        for split, path in self.manifests.items():
            if not _is_cuts(path):
                prepare = find("nemo_jsonl").prepare
                assert prepare is not None
                folder, language = self._converted(context, split).parent, self.language or "und"
                prepare(path, folder, context.jobs, name=self.stem, language=language)
                made.append(self._converted(context, split))
        return made

    def prepared(self, context: Context) -> list[Path]:
        return [self.source(context, split) for split in self.manifests]

    def source(self, context: Context, split: str) -> Path:
        path = self.manifests[split]
        return path if _is_cuts(path) else self._converted(context, split)

    def _converted(self, context: Context, split: str) -> Path:
        return context.datadir / "manifests" / f"{self.name}-{split}" / f"{self.stem}_cuts_all.jsonl.gz"


@dataclass(frozen=True)
class SpeechSets:
    """All sets of a configuration.

    Attributes:
        by_name: in the order of the configuration.
    """

    by_name: Mapping[str, SpeechSet]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> SpeechSets:
        """The sets of a recipe's configuration.

        Raises:
            ConfigError: an entry is of no known form; the message says what is wrong.
        """
        return cls({name: _read(str(name), entry) for name, entry in config["corpus"].items()})

    def __getitem__(self, name: str) -> SpeechSet:
        if name not in self.by_name:
            raise ConfigError(f"corpus has no set {name!r}{did_you_mean(name, self.by_name)}")
        return self.by_name[name]

    @cached_property
    def mini(self) -> list[MiniSet]:
        """Those that are synthesised."""
        return [item for item in self.by_name.values() if isinstance(item, MiniSet)]

    @cached_property
    def own(self) -> list[OwnSet]:
        """Those that are not."""
        return [item for item in self.by_name.values() if isinstance(item, OwnSet)]

    def splits(self, context: Context) -> list[tuple[SpeechSet, str]]:
        """Every split of every set."""
        return [(item, split) for item in self.by_name.values() for split in item.splits(context)]


def _read(name: str, entry: Any) -> SpeechSet:
    place = f"corpus.{name}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{place}: {entry!r} is not a mapping such as {{train: 600, dev: 60, test: 120}}")
    if "/" in name:
        raise ConfigError(f"{place}: the name of a set becomes that of files and has no /")
    kind = next((kind for kind in _KEYS if kind in entry), None)
    allowed = SPLITS if kind is None else _KEYS[kind]
    for key in entry:
        if key not in allowed:
            hint = did_you_mean(str(key), allowed)
            raise ConfigError(f"{place}: there is no key {key!r}{hint}; see the forms of an entry in the documentation")
    if kind is None:
        return _mini(name, place, entry)
    common: dict[str, Any] = {
        "title": str(entry.get("title") or name.replace("_", " ")),
        "group": str(entry.get("group") or "other domains"),
        "text": entry.get("text"),
        "language": entry.get("language"),
    }
    if common["text"]:
        from ..scoring.text.profiles import normaliser

        try:
            normaliser(common["text"], common["language"])
        except NemoMergeError as error:
            raise ConfigError(f"{place}.text: {error}") from error
    if kind == "cuts":
        return GivenSet(name, **common, manifests=_paths(entry["cuts"], f"{place}.cuts"))
    return _registered(name, place, entry, common)


def _mini(name: str, place: str, entry: Mapping[str, Any]) -> MiniSet:
    for split, number in entry.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ConfigError(f"{place}.{split}: {number!r} is not a number of utterances to synthesise")
    if name not in NAMES:
        raise ConfigError(
            f"{place}: EP-mini has no set {name!r}{did_you_mean(name, NAMES)}; other sets say corpus or cuts"
        )
    grammar = load(name)
    return MiniSet(name, grammar.title, _GROUPS.get(grammar.role, "other domains"), Sizes(**entry))


def _registered(name: str, place: str, entry: Mapping[str, Any], common: dict[str, Any]) -> CorpusSet:
    from ..corpora import find

    known = find(str(entry["corpus"]))
    options = dict(entry.get("options") or {})
    for key in options:
        if key not in known.options:
            raise ConfigError(f"{place}.options: {known.name} has no option {key!r}{did_you_mean(key, known.options)}")
    folder = Path(str(entry["folder"])).expanduser() if entry.get("folder") else None
    names = {str(key): str(value) for key, value in (entry.get("splits") or {}).items()}
    for split in names:
        if split not in SPLITS:
            raise ConfigError(f"{place}.splits: {split!r} is none of {', '.join(SPLITS)}")
    common["language"] = common["language"] or (known.languages[0] if known.languages != ("und",) else None)
    return CorpusSet(
        name,
        **common,
        corpus=known.name,
        folder=folder,
        options=options,
        download=bool(entry.get("download")),
        names=names,
    )


def _paths(given: Any, place: str) -> dict[str, Path]:
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{place}: {given!r} is not a mapping from train, dev and test to manifests")
    for split in given:
        if split not in SPLITS:
            raise ConfigError(f"{place}: {split!r} is none of {', '.join(SPLITS)}")
    return {str(split): Path(str(path)).expanduser() for split, path in given.items()}


def _is_cuts(path: Path) -> bool:
    """Whether a manifest holds Lhotse cuts rather than lines of NeMo."""
    from ..training.sources import read_source

    return read_source(path, str(path)).kind == "lhotse"


def _utterances(cut: Any) -> Iterable[Any]:
    """The cut, or one cut for each of its supervisions where they are several."""
    return [cut] if len(cut.supervisions) == 1 else cut.trim_to_supervisions(keep_overlapping=False)


def _text(cut: Any) -> str:
    return " ".join((said.text or "") for said in cut.supervisions).strip()
