"""What a study of fusion consists of: encoders, interfaces on sets of them, tasks, and where all this is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ...errors import ConfigError, did_you_mean
from ...fusion.sources import OPTIONS, SOURCES
from ...fusion.upstream import UpstreamOptions
from ...fusion.upstream_fusion import MODES
from ...training.classifier import ClassifierJob
from ...training.ctc import TrainingJob
from ...training.jobs import check_settings
from ..data import cuts_path
from ..engine import Context
from ..models import merged_path, model_path
from ..sets import SpeechSets

CONTROL = "ws"
"""The interface of controls: with a larger downstream model it has as many parameters as another one."""
_PLACES = ("singles", "pairs", "all")
_SIZES = {"singles": 1, "pairs": 2}
_FUSE = (*_PLACES, "controls", "settings")
_TASK = ("title", "sets", "label", "downstream")
_FILLED = ("output", "cuts", "model", "init_from", "seed", "label")  # fields of jobs that are no settings of theirs
_TRAINED = ("data", "encoder", "decoder", "label", *OPTIONS)


@dataclass(frozen=True)
class System:
    """Encoders behind an interface.

    Attributes:
        upstreams: their names.
        mode: the interface.
        like: another interface on the same encoders; the downstream model is so large that there are as many trained
            parameters as with that one.
    """

    upstreams: tuple[str, ...]
    mode: str
    like: str | None = None

    @property
    def encoders(self) -> str:
        """For names of files and for tables."""
        return "+".join(self.upstreams)

    @property
    def interface(self) -> str:
        """Likewise."""
        return self.mode if self.like is None else f"{self.mode}-as-{self.like}"

    @property
    def name(self) -> str:
        """Of the system, and of its models."""
        return f"{self.encoders}-{self.interface}"


@dataclass(frozen=True)
class Task:
    """Something that downstream models learn on what the encoders hear.

    Attributes:
        name: key in ``tasks``.
        title: for tables.
        sets: of speech, to train and to test on.
        label: what a classifier names, as in :class:`~nemo_merge.training.classifier.ClassifierJob`; None for a
            recogniser.
        downstream: configuration of its encoder and its decoder.
        training: settings of its training.
    """

    name: str
    title: str
    sets: Sequence[str]
    label: str | None
    downstream: Mapping[str, Any]
    training: Mapping[str, Any]

    @property
    def error(self) -> str:
        """What is measured."""
        return "word error rate" if self.label is None else "classification error"

    def cuts(self, context: Context, split: str) -> dict[str, Path]:
        """Cut manifests by the name of the set; those of classifiers are one set, whose text is the label."""
        if self.label is None:
            return {name: cuts_path(context, name, split) for name in self.sets}
        return {self.name: context.datadir / "cuts" / f"task-{self.name}_cuts_{split}.jsonl.gz"}


def systems(config: Mapping[str, Any]) -> list[System]:
    """Every interface on every set of encoders that ``fuse`` asks for.

    Raises:
        ConfigError: a setting or an interface that does not exist, or none at all.
    """
    settings = config["fuse"]
    for key in settings:
        if key not in _FUSE:
            raise ConfigError(f"fuse: there is no setting {key!r}{did_you_mean(str(key), _FUSE)}")
    names = list(config["upstreams"])
    found: list[System] = []
    for key in (*_PLACES, "controls"):
        if not isinstance(settings.get(key) or [], list):
            raise ConfigError(f"fuse.{key}: {settings[key]!r} is no list of interfaces, such as [ws, hconv]")
        for mode in settings.get(key) or []:
            if mode not in MODES:
                raise ConfigError(f"fuse.{key}: there is no interface {mode!r}{did_you_mean(str(mode), MODES)}")
    for key in _PLACES:
        size, modes = _SIZES.get(key, len(names)), list(dict.fromkeys(settings.get(key) or []))
        if key == "all" and size in _SIZES.values():
            continue  # they are a pair, or a single one
        controls = [mode for mode in settings.get("controls") or [] if mode in modes]
        for chosen in combinations(names, size):
            found += [System(chosen, mode) for mode in modes]
            found += [System(chosen, CONTROL, mode) for mode in controls]
    if not found:
        raise ConfigError("fuse: says no interface in singles, pairs or all")
    return found


def tasks(config: Mapping[str, Any]) -> list[Task]:
    """The tasks.

    Raises:
        ConfigError: one lacks a setting or has one that does not exist, or names a set that does not exist.
    """
    sets, found = SpeechSets.read(config), []
    for name, given in config["tasks"].items():
        settings = dict(_mapping(given, f"tasks.{name}"))
        for key, kind in (("sets", list), ("downstream", Mapping)):
            if not settings.get(key):
                raise ConfigError(f"tasks.{name}: says nothing about {key}")
            if not isinstance(settings[key], kind):
                raise ConfigError(f"tasks.{name}.{key}: {settings[key]!r} is no {kind.__name__.lower()}")
        for item in settings["sets"]:
            sets[item]  # raises where there is no such set
        parts = settings["downstream"]
        for part in ("encoder", "decoder"):
            if part not in parts:
                raise ConfigError(f"tasks.{name}.downstream: has no {part}")
            _mapping(parts[part], f"tasks.{name}.downstream.{part}")
        for part in parts:
            if part not in ("encoder", "decoder"):
                raise ConfigError(f"tasks.{name}.downstream: {part!r} is neither encoder nor decoder")
        job = ClassifierJob if settings.get("label") else TrainingJob
        check_settings(job, settings, f"tasks.{name}", _FILLED, _TASK)
        own = {key: settings.pop(key, None) for key in _TASK}
        found.append(Task(name, **{**own, "title": own["title"] or name}, training=settings))
    return found


def runs(context: Context, task: Task, system: System) -> dict[str, Path]:
    """The models of a system by name, one per seed."""
    names = [f"{task.name}-{system.name}-seed{seed}" for seed in context.config["seeds"]]
    return {name: merged_path(context, name) for name in names}


def all_runs(context: Context, task: Task) -> dict[str, Path]:
    """The models of all systems by name."""
    return {name: path for system in systems(context.config) for name, path in runs(context, task, system).items()}


def is_trained_here(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of ``upstreams`` says what to train an encoder on, rather than where to take it from."""
    return "data" in entry


def upstream_entry(context: Context, name: str) -> dict[str, Any]:
    """An encoder as :class:`~nemo_merge.fusion.FusedUpstreamPreprocessor` takes it.

    Raises:
        ConfigError: its entry has neither data to train on nor a source, or a setting that does not exist or is wrong.
    """
    entry = _mapping(context.config["upstreams"][name], f"upstreams.{name}")
    own = {key: entry[key] for key in OPTIONS if entry.get(key) is not None}
    try:
        options = UpstreamOptions(**own)
    except ConfigError as error:
        raise ConfigError(f"upstreams.{name}: {error}") from error
    if options.train != "frozen":
        raise ConfigError(f"upstreams.{name}: train={options.train}, but encoders stay frozen in this recipe")
    if is_trained_here(entry):
        if entry.get("decoder") and not entry.get("label"):
            raise ConfigError(f"upstreams.{name}.decoder: is for classifiers; say what it names, label: speaker")
        job = ClassifierJob if entry.get("label") else TrainingJob
        check_settings(job, entry, f"upstreams.{name}", _FILLED, _TRAINED)
        for part in ("encoder", "decoder"):
            _mapping(entry.get(part) or {}, f"upstreams.{name}.{part}")
        return {"nemo": str(model_path(context, name).absolute()), **own}
    for key in entry:
        if key not in (*SOURCES, *OPTIONS):
            raise ConfigError(
                f"upstreams.{name}: there is no setting {key!r}{did_you_mean(str(key), (*SOURCES, *OPTIONS))}"
            )
    given = [key for key in SOURCES if entry.get(key)]
    if len(given) != 1:
        raise ConfigError(f"upstreams.{name}: needs data to be trained on, or one of {', '.join(SOURCES)}")
    place = str(entry[given[0]])
    if given[0] != "huggingface" or Path(place).exists():
        place = str(Path(place).expanduser().absolute())
    return {given[0]: place, **own}


def training_settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the job that trains an encoder."""
    return {key: value for key, value in entry.items() if key not in _TRAINED}


def source_files(entry: Mapping[str, Any]) -> list[Path]:
    """What is read of an encoder that is not trained here: a file or a folder, or nothing here if it is on the hub."""
    return [
        Path(entry[key]).expanduser()
        for key in SOURCES
        if entry.get(key) and (key != "huggingface" or Path(entry[key]).expanduser().exists())
    ]


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place}: {value!r} should be settings, {{NAME: VALUE}}")
    return value
