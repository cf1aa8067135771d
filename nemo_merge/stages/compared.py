"""What an adaptation recipe compares: fine-tunings of the base, and merges of what they leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from .. import methods
from ..errors import ConfigError, did_you_mean
from ..training.fine_tune import ADAPTERS

SEEDS = ("each", "together")
_NOT_OF_JOBS = ("label", "symbol", "start", "data", "sweep")  # keys of a fine-tuning that are no settings of its jobs
_NOT_OF_MERGES = ("label", "symbol", "of", "seeds", "sweep")  # likewise of a merge


@dataclass(frozen=True)
class Setting:
    """One way to adapt the base, which is run with every seed.

    Attributes:
        method: entry of ``fine_tune.methods`` or ``merge.methods``.
        value: of the parameter that the entry sweeps; None if it sweeps none.
        options: of the fine-tuning, or of :func:`nemo_merge.merge`.
        of: the fine-tunings that are merged, if it is a merge.
        together: merge those of all seeds into one model, instead of those of each seed.
        start: fine-tuning that nothing holds back, which a sweep begins at; the reference by default.
        data: sets that it is trained on, and their shares of the batches if they say; the target by default.
    """

    method: str
    value: float | None
    options: Mapping[str, Any]
    of: tuple[Setting, ...] = ()
    together: bool = False
    start: str | None = None
    data: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The method, and the value of what it sweeps."""
        return self.method if self.value is None else f"{self.method}-{self.value:g}"

    @property
    def sources(self) -> tuple[Setting, ...]:
        """The fine-tunings that this takes."""
        return self.of or (self,)

    @property
    def merging(self) -> Mapping[str, Any]:
        """Options of the merge that gives its model; what a fine-tuning leaves is added to the base as it is."""
        return self.options if self.of else {}

    def runs(self, seeds: Sequence[int]) -> dict[str, list[int]]:
        """Names of its models, and the seeds of what each is made from."""
        return {self.name: list(seeds)} if self.together else {self.run(seed): [seed] for seed in seeds}

    def run(self, seed: int) -> str:
        """Name of its model with one seed."""
        return f"{self.name}-seed{seed}"

    def origin(self, reference: str) -> str | None:
        """The setting that its curve starts from: what alone is scaled, or the reference that is held back."""
        if self.value is None or self.together or len(self.of) > 1:
            return None
        return self.of[0].name if self.of else self.start or reference


def settings(config: Mapping[str, Any]) -> list[Setting]:
    """Everything that is compared.

    Raises:
        ConfigError: a merge is of nothing that is fine-tuned, or by no known method; or two entries have one name.
    """
    tuned = list(fine_tuned(config))
    found = [*tuned, *_merges(config, {setting.name: setting for setting in tuned})]
    names = [setting.name for setting in found]
    if again := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"fine_tune.methods and merge.methods: two settings are called {min(again)!r}")
    return found


def fine_tuned(config: Mapping[str, Any]) -> Iterator[Setting]:
    """Every fine-tuning that the configuration asks for: an entry of ``sweep`` gives one per value."""
    for method, given in config["fine_tune"]["methods"].items():
        options: Any = OmegaConf.to_container(OmegaConf.merge(config["fine_tune"]["common"], given))
        for key in (*_NOT_OF_JOBS, *(() if options["trainable"] in ADAPTERS else ("adapter",))):
            options.pop(key, None)
        data = _data(config, given.get("data") or ["target"])
        for value, swept in _swept(options, given.get("sweep")):
            yield Setting(method, value, swept, start=given.get("start"), data=data)


def _data(config: Mapping[str, Any], given: Sequence[str] | Mapping[str, float]) -> dict[str, float | None]:
    """Sets and their shares; ``source`` stands for all source sets together, ``target`` for that."""
    groups = {"source": config["source"], "target": [config["target"]]}
    found: dict[str, float | None] = {}
    for name in given:
        sets = groups.get(name, [name])
        found |= dict.fromkeys(sets, given[name] / len(sets) if isinstance(given, Mapping) else None)
    return found


def _merges(config: Mapping[str, Any], known: Mapping[str, Setting]) -> Iterator[Setting]:
    for method, given in config["merge"]["methods"].items():
        place = f"merge.methods.{method}"
        names = [given["of"]] if isinstance(given["of"], str) else list(given["of"])
        for name in names:
            if name not in known:
                raise ConfigError(f"{place}.of: no fine-tuning {name!r}{did_you_mean(name, known)}")
        if (seeds := given.get("seeds", "each")) not in SEEDS:
            raise ConfigError(f"{place}.seeds: {seeds!r} is neither {' nor '.join(SEEDS)}")
        options = {key: value for key, value in given.items() if key not in _NOT_OF_MERGES}
        methods.method_class(options.setdefault("method", "soup"))  # which refuses other names
        if seeds == "together" and len(config["seeds"]) < 2:
            continue  # there is nothing to merge
        for value, swept in _swept(options, given.get("sweep")):
            yield Setting(method, value, swept, tuple(known[name] for name in names), seeds == "together")


def _swept(
    options: Mapping[str, Any], sweep: Mapping[str, Sequence[float]] | None
) -> Iterator[tuple[float | None, Mapping[str, Any]]]:
    """Options for every value of what is swept."""
    if not sweep:
        yield None, options
    for key, values in (sweep or {}).items():
        yield from ((value, _with(options, key, value)) for value in values)


def _with(options: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Options with one of them, whose name may have dots, set to a value."""
    first, _, rest = key.partition(".")
    return {**options, first: _with(options.get(first, {}), rest, value) if rest else value}
