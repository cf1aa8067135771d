"""Finds in the folder of an experiment what was decoded, and which systems are the base, experts and merges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, TranscriptError, did_you_mean
from ...scoring.transcripts import SUFFIXES, Problems, ReadingOptions, Row, read_rows, system_names

_FATAL = ("unreadable row", "wrong encoding", "duplicate id")


@dataclass(frozen=True)
class Roles:
    """Which system is what.

    Attributes:
        base: the model that the experts were fine-tuned from.
        experts: the system that is the expert of a test set, by set.
        baseline: what the others are compared with.
    """

    base: str | None
    experts: Mapping[str, str]
    baseline: str

    def of(self, system: str) -> str:
        """What a system is, in one word; without base and experts nothing is known to be a merge."""
        if system == self.base:
            return "base"
        if system in self.experts.values():
            return "expert"
        return "merge" if self.base or self.experts else "system"


@dataclass(frozen=True)
class Experiment:
    """What a folder holds.

    Attributes:
        folder: the folder.
        rows: every utterance, with what each system heard in it.
        problems: number of problems of the input by kind, such as missing hypotheses.
        recipe: whether a recipe of this project scored it.
        scored_baseline: what scoring compared with.
        audio: cut manifest of every test set, by set, as far as a recipe left its name.
    """

    folder: Path
    rows: Sequence[Row]
    problems: Mapping[str, int]
    recipe: bool
    scored_baseline: str | None
    audio: Mapping[str, Path]

    @property
    def systems(self) -> list[str]:
        """Names of what was compared."""
        return list(self.rows[0].heard)

    @property
    def sets(self) -> list[str]:
        """Names of the test sets."""
        return list(dict.fromkeys(row.set for row in self.rows))

    def roles(self, base: str | None, experts: Mapping[str, str], baseline: str | None) -> Roles:
        """Who is who: as given, else by name.

        Without names given, ``base`` is the base, a system with the name of a test set is its expert, and the baseline
        is that of ``scores.json``, else the base, else the first system.

        Raises:
            ConfigError: a name that no system or set has.
        """
        for name, known in [
            *((name, self.systems) for name in (base, baseline, *experts.values()) if name is not None),
            *((name, self.sets) for name in experts),
        ]:
            if name not in known:
                what = "system" if known == self.systems else "test set"
                raise ConfigError(f"{self.folder}: there is no {what} {name!r}{did_you_mean(name, known)}")
        base = base or ("base" if "base" in self.systems else None)
        found = experts or {name: name for name in self.sets if name in self.systems and name != base}
        scored = self.scored_baseline if self.scored_baseline in self.systems else None
        return Roles(base, found, baseline or scored or base or self.systems[0])


def read_experiment(folder: Path, reference: Path | None = None) -> Experiment:
    """Reads the transcripts of an experiment: ``decode/<system>/<set>`` or, without ``decode``, ``<system>/<set>``.

    A folder with transcripts and no folders is one system, or one system per file if ``reference`` is a file.

    Args:
        folder: the folder of a recipe, or one of hypotheses.
        reference: file or folder of what was said; by default the hypotheses say so themselves.

    Raises:
        TranscriptError: there is no such folder, nothing was decoded, or a file is damaged; with file and line.
    """
    if not folder.is_dir():
        raise TranscriptError(f"{folder}: {'is no folder' if folder.exists() else 'no such folder'}")
    scores = _read_json(folder / "scores.json")
    recipe = "sets" in scores and "against" in scores
    systems = _systems(folder, reference)
    if recipe:
        systems = _scored(folder, scores, systems)
    problems = Problems()
    rows = read_rows(reference or _most_sets(systems), systems, problems, ReadingOptions())
    problems.found = list(dict.fromkeys(problems.found))  # the references may be those of a system
    Problems([problem for problem in problems.found if problem.kind in _FATAL]).stop_if_any()
    if not rows:
        raise TranscriptError(f"{folder}: no utterance is left to report on")
    return Experiment(
        folder,
        rows,
        problems.counts(),
        recipe,
        _scored_baseline(folder / "scores.json", scores),
        _cuts(folder),
    )


def _systems(folder: Path, reference: Path | None) -> dict[str, Path]:
    """Paths by name of the system."""
    home = folder / "decode"
    if not home.is_dir():
        if (folder / "models").is_dir() or (folder / "merged").is_dir():
            raise TranscriptError(f"{folder}: nothing was decoded, there is no {home.name}/; run the recipe's stage 6")
        home = folder
    folders = {path.name: path for path in sorted(home.iterdir()) if path.is_dir() and _transcripts(path)}
    if folders:
        return folders
    files = _transcripts(home)
    if reference is not None and reference.is_file():
        files = [path for path in files if not path.samefile(reference)]
        if files:
            return dict(zip(system_names(files), files, strict=True))
    elif files:
        return {home.resolve().name: home}
    raise TranscriptError(
        f"{home}: nothing is scored here; expected folders of systems with one transcript ({', '.join(SUFFIXES)}) "
        "per test set, as recipes leave them in decode/"
    )


def _scored(folder: Path, scores: Mapping[str, Any], systems: Mapping[str, Path]) -> dict[str, Path]:
    """The systems that a recipe scored, in its order: ``decode/`` may also hold what earlier runs left."""
    try:
        names = list(scores["sets"])
        if missing := [name for name in names if name not in systems]:
            raise TranscriptError(
                f"{folder / 'scores.json'}: speaks of {', '.join(missing)}, which decode/ lacks; run the recipe again"
            )
    except TypeError as error:
        raise TranscriptError(f"{folder / 'scores.json'}: sets is no table; score again") from error
    return {name: systems[name] for name in names}


def _transcripts(folder: Path) -> list[Path]:
    """Files that may be transcripts, by their names, as scoring has it."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and path.name != "scores.json"
        and Path(path.name.removesuffix(".gz")).suffix.lower() in (*SUFFIXES, ".txt", "")
    ]


def _most_sets(systems: Mapping[str, Path]) -> Path:
    """The system whose files hold the references, the one with most sets: others that lack one are then named."""
    return max(
        systems.values(), key=lambda path: (len(_transcripts(path)) if path.is_dir() else 1, path.name == "base")
    )


def _read_json(path: Path) -> dict[str, Any]:
    """A file with a JSON object; nothing if there is none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TranscriptError(f"{path}:{error.lineno}: not JSON ({error.msg}); remove it or score again") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise TranscriptError(f"{path}: cannot be read ({error}); remove it or score again") from error
    if not isinstance(content, dict):
        raise TranscriptError(f"{path}:1: not a JSON object; remove it or score again")
    return content


def _scored_baseline(path: Path, scores: Mapping[str, Any]) -> str | None:
    """The baseline of what a recipe, or ``nemo-merge score``, compared."""
    try:
        if "against" in scores:
            sets = {name for by_set in scores["sets"].values() for name in by_set}
            left = [name for name in scores["sets"] if name not in {*scores["against"], *sets, "base"}]
            return left[0] if len(left) == 1 else None
        found = scores.get("significance", {}).get("baseline")
    except (AttributeError, TypeError, KeyError) as error:
        raise TranscriptError(f"{path}: not what scoring writes ({error!r}); remove it or score again") from error
    return found if isinstance(found, str) else None


def _cuts(folder: Path) -> dict[str, Path]:
    """Cut manifests by set, from the decoding jobs of a recipe."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("jobs/decode-*.json")):
        sets = _read_json(path).get("sets")
        if isinstance(sets, dict):
            found |= {name: Path(str(cuts)) for name, cuts in sets.items()}
    return found
