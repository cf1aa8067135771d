"""The registry of corpora: what is known of each, and how much of it was tested."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..errors import ConfigError, did_you_mean
from .sessions import Layout
from .source import Source

logger = logging.getLogger("nemo_merge")
P = ParamSpec("P")
D = TypeVar("D", bound=Callable[..., Path])

DOMAINS = (
    "broadcast_news",
    "lectures",
    "talks",
    "read_news",
    "read_crowd",
    "read",
    "audiobooks",
    "interviews",
    "conversational",
    "parliament",
    "telephone",
    "children",
    "mixed",
    "any",
)
ACCESS = {
    "open": "can be downloaded by anybody",
    "gated": "free after a registration or a request",
    "elra": "sold by ELRA",
    "ldc": "sold by the LDC",
    "in_house": "held by its makers",
    "own": "your own files",
}
STATUS = {
    "tested_on_real": "prepared from the corpus itself",
    "tested_on_fixture": "tested on small files of the documented layout, not on the corpus",
    "layout_unknown": "its files were not seen: bind a folder in a common layout",
}


@dataclass
class Corpus:
    """What is known of a corpus or of a format.

    Attributes:
        name: of the recipe.
        title: full name.
        domain: one of :data:`DOMAINS`, or another word.
        languages: BCP-47 tags, the main one first.
        variety: of the language, in words.
        licence: as far as known.
        licence_verified: whether the licence text itself was read, rather than what others say of it.
        access: one of :data:`ACCESS`.
        source: where it is found: a name in a catalogue, a dataset id or a site.
        layout: what the folder must hold.
        splits: names of the splits.
        citation: the paper or page to cite.
        status: one of :data:`STATUS`.
        note: what else a user must know.
        kind: ``corpus`` or ``format``.
        prepare: Lhotse's form, ``(corpus_dir, output_dir=None, num_jobs=1, ...) -> {split: manifests}``.
        download: ``(target_dir, force_download=False, ...) -> folder``, or None.
        options: of the recipe, and their defaults; ``inspect.Parameter.empty`` where one must be given.
    """

    name: str
    title: str
    domain: str
    languages: tuple[str, ...]
    licence: str
    access: str
    source: str
    layout: str
    splits: tuple[str, ...]
    citation: str
    status: str = "tested_on_fixture"
    variety: str = ""
    licence_verified: bool = False
    note: str = ""
    kind: str = "corpus"
    prepare: Callable[..., Any] | None = field(default=None, repr=False)
    download: Callable[..., Path] | None = field(default=None, repr=False)
    options: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def recipe(self, layout: Callable[Concatenate[Source, P], Layout]) -> Callable[..., Any]:
        """Decorator that makes ``prepare_x`` of Lhotse's form from a function that reads the layout.

        The function takes the :class:`~.source.Source` and keyword options. What it becomes takes ``corpus_dir``,
        ``output_dir``, ``num_jobs``, ``strict``, ``progress`` and the same options.
        """

        def prepare(
            corpus_dir: str | Path,
            output_dir: str | Path | None = None,
            num_jobs: int = 1,
            *,
            strict: bool = False,
            progress: Callable[[str, int], None] | None = None,
            **options: Any,
        ) -> dict[str, dict[str, Any]]:
            from .prepare import prepare_manifests

            known = self.options
            for key in options:
                if key not in known:
                    raise ConfigError(f"{self.name} has no option {key!r}{did_you_mean(key, known or ['none'])}")
            return prepare_manifests(
                self, layout, corpus_dir, output_dir, num_jobs, strict=strict, progress=progress, options=options
            )

        common = [p for p in inspect.signature(prepare).parameters.values() if p.kind is not p.VAR_KEYWORD]
        own = [item for item in inspect.signature(layout).parameters.values() if item.kind is item.KEYWORD_ONLY]
        functools.update_wrapper(prepare, layout)
        prepare.__doc__ = _documented(layout.__doc__ or "")
        prepare.__signature__ = inspect.Signature([*common, *own])  # type: ignore[attr-defined]
        self.options = {item.name: item.default for item in own}
        self.prepare = prepare
        return prepare

    def downloader(self, function: D) -> D:
        """Decorator that makes a function ``download_x`` of this corpus."""
        self.download = function
        return function


def _documented(text: str) -> str:
    """The docstring of a layout as that of its recipe: the folder in place of ``source``, and what all recipes take."""
    text = inspect.cleandoc(text)
    folder = re.search(r"^    source: (.*)\n?", text, re.MULTILINE)
    common = f"    corpus_dir: {folder[1] if folder else 'the corpus.'}\n{_COMMON}"
    return text.replace(folder[0], common) if folder else f"{text}\n\nArgs:\n{common}"


_COMMON = """\
    output_dir: where manifests and cuts are written; nowhere, and all in memory, when None.
    num_jobs: threads that open audio.
    strict: whether the first row that cannot be used is an error; otherwise it is left out and counted.
    progress: called with the split and the number of recordings that are done.
"""
_CORPORA: dict[str, Corpus] = {}


def register(corpus: Corpus) -> Corpus:
    """Makes a corpus known by its name.

    Raises:
        ValueError: another one has that name.
    """
    if _CORPORA.setdefault(corpus.name, corpus) is not corpus:
        raise ValueError(f"there is already a corpus called {corpus.name!r}")
    return corpus


@functools.cache
def _load() -> None:
    """Imports the recipes of this package and those that others announce under ``nemo_merge.corpora``.

    A plug-in that cannot be loaded is named in a warning and left out.
    """
    recipes = importlib.import_module(".recipes", __package__)
    for module in pkgutil.iter_modules(recipes.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f".recipes.{module.name}", __package__)  # registers what it defines
    for point in entry_points(group="nemo_merge.corpora"):
        try:
            point.load()
        except Exception as error:  # whatever a stranger's module raises
            logger.warning("the corpora of %s (%s) cannot be loaded: %s", point.name, point.value, error)


def corpora() -> list[Corpus]:
    """All corpora and formats, those of plug-ins included, in alphabetical order."""
    _load()
    return [_CORPORA[name] for name in sorted(_CORPORA)]


def find(name: str) -> Corpus:
    """The corpus of that name; hyphens and underscores are the same.

    Raises:
        ConfigError: there is none; the message suggests one that is spelt alike.
    """
    _load()
    key = name.replace("-", "_").lower()
    if key not in _CORPORA:
        raise ConfigError(f"there is no corpus {name!r}{did_you_mean(key, _CORPORA)}")
    return _CORPORA[key]
