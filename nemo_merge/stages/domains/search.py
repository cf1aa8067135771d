"""Stage 4: settings of every method are chosen on development sets, then the experts of every seed are merged."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import methods
from ...errors import ConfigError
from ...methods import Method, PostProcessor
from ...scoring import normaliser
from ...scoring.error_rates import word_error_rate
from ..data import cuts_path
from ..engine import Context, identity
from ..models import model_path, suffix
from ..results import heard_in, transcribe_all
from .experiment import check, expert_path, merge_path, retained

_PREFIX = "search-"


@dataclass(frozen=True)
class Candidate:
    """A method with one combination of the values that are searched.

    Attributes:
        entry: of ``merge.methods``.
        number: place among the combinations.
        method: with all its parameters.
        then: post-processors.
        settings: what was searched, with the value of each.
    """

    entry: str
    number: int
    method: Method
    then: tuple[PostProcessor, ...]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of its model."""
        return f"{_PREFIX}{self.entry}-{self.number:02d}"


def candidates(config: Mapping[str, Any]) -> list[Candidate]:
    """Every combination of values that the configuration asks for; one for an entry without ``search``.

    Raises:
        ConfigError: a method or parameter does not exist, a value is out of range, or a search has no values.
    """
    found = []
    for entry, given in config["merge"]["methods"].items():
        parameters = dict(given)
        name = parameters.pop("method", entry)
        grid = dict(parameters.pop("search", None) or {})
        then = parameters.pop("then", None) or ()
        for key, values in grid.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise ConfigError(f"merge.methods.{entry}.search.{key}: give a list of values")
        for number, values in enumerate(itertools.product(*grid.values())):
            settings = dict(zip(grid, values, strict=True))
            chosen = {key: value for key, value in settings.items() if key != "then"}
            method = methods.get(name, **parameters, **chosen)
            chain = tuple(_post(step, entry) for step in settings.get("then") or then)
            found.append(Candidate(entry, number, method, chain, settings))
    return found


def _post(step: Any, entry: str) -> PostProcessor:
    values = {"name": step} if isinstance(step, str) else dict(step)
    if "name" not in values:
        raise ConfigError(f"merge.methods.{entry}: the post-processor {step!r} has no name")
    return methods.get_post(values.pop("name"), **values)


def merge(context: Context) -> None:
    """Stage 4: a search with the experts of the first seed, then one merged model per entry and seed."""
    check(context.config)
    best = search(context)
    for seed in context.config["seeds"]:
        _merge(context, {merge_path(context, item.entry, seed): item for item in best}, seed)


def search(context: Context) -> list[Candidate]:
    """The candidate of every entry with the lowest mean error rate over the domains' development sets.

    What all of them scored is written to ``search.json``. Only some utterances of each set are decoded
    (``search.utterances``), the same for all candidates, and no more than ``search.at_once`` candidates are on disk.
    """
    config = context.config
    every = candidates(config)
    options = config["search"]
    seed = config["seeds"][0]
    inputs = [model_path(context, "base"), *(expert_path(context, domain, seed) for domain in config["domains"])]
    kept = [name for names in retained(config).values() for name in names]
    sets = {name: _sample(context, name, options["utterances"]) for name in (*config["domains"], *kept)}
    file = context.expdir / "search.json"
    depends_on = {
        "files": [identity(path) for path in (*inputs, *sets.values())],
        "candidates": [repr((item.method, item.then)) for item in every],
        "text": config["evaluate"].get("text"),
    }
    if context.is_fresh("search", [file], **depends_on):
        context.say("search: done before")
        rates = {row["name"]: row["dev"] for row in json.loads(file.read_text(encoding="utf-8"))}
    else:
        rows = []
        folder = context.expdir / "search"
        for start in range(0, len(every), options["at_once"]):
            batch = every[start : start + options["at_once"]]
            models = {item.name: folder / f"{item.name}{suffix(config)}" for item in batch}
            _merge(context, {models[item.name]: item for item in batch}, seed)
            transcribe_all(context, models, sets)
            rows += [_row(context, item, kept) for item in batch]
            for path in models.values():
                _remove(path)
        file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        context.mark_fresh("search", **depends_on)
        rates = {row["name"]: row["dev"] for row in rows}
    best = chosen(every, rates)
    for item in best:
        settings = f" ({described(item.settings)})" if item.settings else ""
        context.say(f"{item.entry}{settings}: {100 * rates[item.name]:.1f} % on development sets")
    return best


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def chosen(found: Sequence[Candidate], rates: Mapping[str, float]) -> list[Candidate]:
    """The candidate of every entry with the lowest error rate, the first of those that have the same.

    Args:
        found: all candidates.
        rates: their error rates, by name.
    """
    by_entry: dict[str, list[Candidate]] = {}
    for item in found:
        by_entry.setdefault(item.entry, []).append(item)
    return [min(items, key=lambda item: rates[item.name]) for items in by_entry.values()]


def described(settings: Mapping[str, Any]) -> str:
    """Settings as ``scale 0.5, density 0.2``."""
    return ", ".join(f"{key} {_shown(value)}" for key, value in settings.items())


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} {_shown(item)}" for key, item in value.items() if key != "name")
        return f"{value.get('name', '')}({inner})" if inner else str(value.get("name", ""))
    if isinstance(value, (list, tuple)):
        return " + ".join(map(_shown, value))
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _merge(context: Context, wanted: Mapping[Path, Candidate], seed: int) -> None:
    """Merges the experts of a seed by several methods; those with the same post-processors share their work."""
    from ...merging.api import Options, merge_variants

    experts = [expert_path(context, domain, seed) for domain in context.config["domains"]]
    for then, outputs in _by_then(wanted):
        for path in outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
        options = Options(then=then, overwrite=True, workers=context.jobs, progress=False)
        for done in merge_variants(model_path(context, "base"), experts, outputs, options):
            for warning in done.warnings:
                context.say(f"{done.output.name}: {warning}")
    context.say(f"seed {seed}: {len(wanted)} merges of {len(experts)} experts")


def _by_then(wanted: Mapping[Path, Candidate]) -> Iterator[tuple[tuple[PostProcessor, ...], dict[Path, Method]]]:
    for then in dict.fromkeys(item.then for item in wanted.values()):
        yield then, {path: item.method for path, item in wanted.items() if item.then == then}


def _sample(context: Context, name: str, count: int) -> Path:
    """Some utterances of a development set, drawn by the seed of the corpus."""
    import random

    from lhotse import CutSet

    path = context.expdir / "search" / f"{name}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    cuts = list(CutSet.from_file(cuts_path(context, name, "dev")))
    drawn = random.Random(context.config["seed"]).sample(cuts, min(count, len(cuts)))
    CutSet.from_cuts(drawn).to_file(path)
    return path


def _row(context: Context, item: Candidate, kept: Iterable[str]) -> dict[str, Any]:
    """What is known of a candidate: mean error rates over the domains, and over what the base knew."""

    def mean(names: Iterable[str]) -> float | None:
        pairs = [heard(context, item.name, name) for name in names]
        rates = [word_error_rate(*map(list, zip(*found, strict=True))).rate for found in pairs]
        return sum(rates) / len(rates) if rates else None

    return {
        "name": item.name,
        "entry": item.entry,
        "settings": dict(item.settings),
        "dev": mean(context.config["domains"]),
        "retention": mean(kept),
    }


def heard(context: Context, model: str, name: str) -> list[tuple[str, str]]:
    """What was said and what a model recognised, in the text profiles of the set and ``evaluate.text``."""
    found = heard_in(context, name, context.expdir / "decode" / model / f"{name}.jsonl")
    profile = context.config["evaluate"].get("text")
    rewrite = normaliser(profile) if profile else str
    return [(rewrite(item.text or ""), rewrite(item.pred_text)) for item in found]


def merged_files(context: Context) -> list[Path]:
    """What stage 4 leaves."""
    entries = context.config["merge"]["methods"]
    merged = [merge_path(context, entry, seed) for entry in entries for seed in context.config["seeds"]]
    return [*merged, context.expdir / "search.json"]
