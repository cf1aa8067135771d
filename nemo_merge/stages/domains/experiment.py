"""What a study of domains consists of: systems, seeds, test sets, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...corpora.mini import SPLITS
from ...errors import ConfigError, did_you_mean
from ..data import require_splits
from ..engine import Context
from ..models import merged_path, model_path, on_whisper
from ..sets import SpeechSets
from ..whisper import check_base

Config = Mapping[str, Any]
BASE, EXPERTS, JOINT = "base", "experts", "joint"


def expert_path(context: Context, domain: str, seed: int) -> Path:
    """The expert of a domain: one that is given, or the one that is trained with this seed."""
    given = (context.config["train"]["experts"].get("given") or {}).get(domain)
    return Path(given) if given else model_path(context, f"{domain}-seed{seed}")


def joint_path(context: Context, seed: int) -> Path:
    """The model that is fine-tuned on the data of all domains: given, or trained with this seed."""
    given = context.config["train"]["joint"].get("given")
    return Path(given) if given else model_path(context, f"{JOINT}-seed{seed}")


def merge_path(context: Context, merge: str, seed: int) -> Path:
    """What an entry of ``merge.methods`` makes of the experts of one seed."""
    return merged_path(context, f"{merge}-seed{seed}")


def systems(config: Config) -> list[str]:
    """Everything that transcribes all test sets: base, joint fine-tuning, merges."""
    return [BASE, *([JOINT] if config["train"].get("joint") is not None else []), *config["merge"]["methods"]]


def runs(context: Context, system: str) -> dict[str, Path]:
    """The models of a system by name: one per seed, except for the base."""
    if system == BASE:
        return {BASE: model_path(context, "base")}
    seeds = context.config["seeds"]
    if system == JOINT:
        return {f"{JOINT}-seed{seed}": joint_path(context, seed) for seed in seeds}
    return {f"{system}-seed{seed}": merge_path(context, system, seed) for seed in seeds}


def expert_runs(context: Context, domain: str) -> dict[str, Path]:
    """The experts of a domain by name, one per seed."""
    return {f"{domain}-seed{seed}": expert_path(context, domain, seed) for seed in context.config["seeds"]}


def groups(config: Config) -> dict[str, list[str]]:
    """Test sets by what they are: ``in domain``, ``out of domain``, and what the base knew."""
    evaluate = config["evaluate"]
    found = {
        "in domain": list(config["domains"]),
        "out of domain": list(evaluate.get("out_of_domain") or []),
        **retained(config),
    }
    return {name: sets for name, sets in found.items() if sets}


def retained(config: Config) -> dict[str, list[str]]:
    """The groups of sets that tell what the base knew and a system kept."""
    return {name: list(sets) for name, sets in (config["evaluate"].get("retention") or {}).items() if sets}


def test_sets(config: Config) -> list[str]:
    """All test sets, in the order of their groups."""
    return [name for sets in groups(config).values() for name in sets]


def area_of(config: Config) -> dict[str, str]:
    """The area of every set in and out of domain; a set that ``evaluate.areas`` does not name is an area by itself."""
    areas = config["evaluate"].get("areas") or {}
    named = {name: area for area, sets in areas.items() for name in sets}
    found = groups(config)
    return {name: named.get(name, name) for name in [*found["in domain"], *found.get("out of domain", [])]}


def check(config: Config) -> None:
    """Finds what does not fit together before anything is trained.

    Raises:
        ConfigError: a set that is used has no entry in ``corpus``, a given model does not exist, a baseline that is no
            system, or a name that two systems or means have.
    """
    train, sets = config["train"], SpeechSets.read(config)
    if on_whisper(config):
        check_base(config)
    areas = config["evaluate"].get("areas") or {}
    for name in [*test_sets(config), *(name for names in areas.values() for name in names)]:
        sets[name]  # raises where there is no such set
    if reserved := {"in domain", "out of domain", "full", "retention"} & set(retained(config)):
        raise ConfigError(f"evaluate.retention: {min(reserved)!r} is the name of another mean; call it differently")
    given = dict(train["experts"].get("given") or {})
    for domain in given:
        if domain not in config["domains"]:
            hint = did_you_mean(domain, config["domains"])
            raise ConfigError(f"train.experts.given: {domain!r} is not among the domains{hint}")
    models = {f"train.experts.given.{domain}": path for domain, path in given.items()}
    for part in (BASE, JOINT):
        if path := (train.get(part) or {}).get("given"):
            models[f"train.{part}.given"] = path
    for key, path in models.items():
        if not Path(path).exists():
            raise ConfigError(f"{key}: {path} does not exist")
    taken = {BASE, JOINT, EXPERTS, *config["domains"]} & set(config["merge"]["methods"])
    if taken:
        raise ConfigError(f"merge.methods: {min(taken)!r} is the name of another system; call it differently")
    baseline = config["score"]["baseline"]
    if baseline not in systems(config):
        raise ConfigError(f"score.baseline: there is no system {baseline!r}{did_you_mean(baseline, systems(config))}")


def check_splits(context: Context) -> None:
    """Sees that every set has the splits that it is used for; stage 2 is done.

    Raises:
        ConfigError: some have not.
    """
    config = context.config
    joint = config["train"].get("joint")
    given = () if joint is not None and not joint.get("given") else config["train"]["experts"].get("given") or ()
    needed: dict[str, tuple[str, ...]] = {name: ("test",) for name in test_sets(config)}
    needed |= {name: ("dev", "test") for names in retained(config).values() for name in names}
    needed |= {name: ("dev", "test") if name in given else SPLITS for name in config["domains"]}
    require_splits(context, needed)
