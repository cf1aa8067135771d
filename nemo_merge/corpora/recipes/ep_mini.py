"""EP-mini, the embedded corpus: synthetic European Portuguese in ten domains, made at run time by espeak-ng."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ...errors import ConfigError, CorpusError, did_you_mean
from ..registry import Corpus, register
from ..sessions import Audio, Layout, Session, Utterance, single
from ..source import Source

CORPUS = register(
    Corpus(
        name="ep_mini",
        title="EP-mini",
        domain="any",
        languages=("pt-PT", "pt-BR", "en", "es", "it", "de"),
        variety="synthetic",
        licence="our own texts, Apache 2.0; made by espeak-ng",
        licence_verified=True,
        access="open",
        source="this package, see the page on EP-mini",
        layout="a folder that nemo-merge download ep_mini made: <set>/utterances.jsonl and <set>/<split>/*.flac",
        splits=("train", "dev", "test"),
        citation="this package",
        status="tested_on_real",
        note="Synthetic and small: its error rates compare methods, they do not measure speech recognition. "
        "subset=telephone prepares one set, whose domain is its name.",
    )
)


@CORPUS.recipe
def prepare_ep_mini(source: Source, *, subset: str = "telephone") -> Layout:
    """One set of the embedded corpus; its domain is the name of the set.

    Args:
        source: the corpus.
        subset: name of the set.
    """
    folder = source.root / subset
    if not (folder / "utterances.jsonl").is_file():
        there = ", ".join(sorted(path.parent.name for path in source.root.glob("*/utterances.jsonl"))) or "none"
        raise CorpusError(
            f"{source.root}: no set {subset!r}, only {there}; nemo-merge download ep_mini DIR subsets={subset} makes it"
        )
    grammar = _mini().load(subset)
    try:
        made = json.loads(source.note(folder / "made.json").read_text(encoding="utf-8"))
        splits = [split for split in CORPUS.splits if made[split]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{folder / 'made.json'}: damaged; remove {folder} and make the set again") from error
    return Layout(
        {split: _sessions(source, folder, split, grammar.role) for split in splits},
        stem=f"ep-mini-{subset}",
        domain=subset,
        languages=(grammar.language,),
    )


def _sessions(source: Source, folder: Path, split: str, role: str) -> Iterator[Session]:
    reader = source if split == "train" else source.again()
    for place, row in reader.json_lines(folder / "utterances.jsonl"):
        if row.get("split") != split:
            continue
        try:
            utterance = Utterance(
                id=row["id"],
                place=place,
                text=row["text"],
                speaker=row["speaker"],
                spans=tuple((language, start, end) for language, start, end in row["language_spans"]),
                custom={"role": role},
            )
            audio = Audio(folder / row["audio"])
        except (KeyError, TypeError, ValueError) as error:
            reader.problems.add("row", place, f"no utterance of EP-mini ({error})")
            continue
        yield single(audio, utterance)


@CORPUS.downloader
def download_ep_mini(
    target_dir: str | Path, force_download: bool = False, subsets: tuple[str, ...] = ("telephone",), seed: int = 0
) -> Path:
    """Synthesises sets of 600 training, 60 development and 120 test utterances; some seconds each."""
    mini = _mini()
    for name in subsets:
        if name not in mini.NAMES:
            raise ConfigError(f"EP-mini has no set {name!r}{did_you_mean(name, mini.NAMES)}")
        if force_download:
            shutil.rmtree(Path(target_dir) / name, ignore_errors=True)
    for _ in mini.synthesise(target_dir, dict.fromkeys(subsets, mini.Sizes()), seed):
        pass
    return Path(target_dir)


def _mini() -> ModuleType:
    try:
        from .. import mini
    except ImportError as error:
        raise ConfigError(f"EP-mini needs {error.name}; pip install 'nemo-merge[demo]'") from error
    return mini
