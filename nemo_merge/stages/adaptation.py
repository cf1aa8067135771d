"""Stages 3, 4 and 6 of an adaptation recipe: fine-tune the base by every method, scale what was learnt, decode all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ..errors import ConfigError, did_you_mean
from ..training.fine_tune import ADAPTERS, FineTuningJob
from .data import cuts_path
from .engine import Context, identity
from .models import model_path, train_base
from .results import transcribe_all
from .workers import run_jobs

if TYPE_CHECKING:
    from .. import MergeReport

EVALUATED = ("dev", "test")
NOT_TRAINING = ("label", "symbol", "start")  # keys of a method that are no settings of its jobs


@dataclass(frozen=True)
class Setting:
    """One way to adapt the base, which is run with every seed.

    Attributes:
        method: entry of ``fine_tune.methods`` or ``merge.methods``.
        value: of the parameter that the entry sweeps; None if it sweeps none.
        options: of the fine-tuning or the scaling.
        of: the fine-tuning that is scaled back towards the base, if it is one that is; ``value`` is then the share of
            the change that stays.
        start: fine-tuning that nothing holds back, which a sweep begins at; the reference by default.
    """

    method: str
    value: float | None
    options: Mapping[str, Any]
    of: Setting | None = None
    start: str | None = None

    @property
    def name(self) -> str:
        """The method, and the value of what it sweeps."""
        return self.method if self.value is None else f"{self.method}-{self.value:g}"

    @property
    def source(self) -> Setting:
        """The fine-tuning that this takes."""
        return self.of or self

    @property
    def share(self) -> float:
        """How much of the fine-tuning's change stays."""
        return 1.0 if self.of is None or self.value is None else self.value

    def model(self, seed: int) -> str:
        """Name of the model with this seed."""
        return f"{self.name}-seed{seed}"


def fine_tuned(config: Mapping[str, Any]) -> Iterator[Setting]:
    """Every fine-tuning that the configuration asks for: an entry of ``sweep`` gives one per value."""
    for method, given in config["fine_tune"]["methods"].items():
        options = _merged(config["fine_tune"]["common"], given)
        sweep = options.pop("sweep", {})
        if not sweep:
            yield Setting(method, None, options)
        for key, values in sweep.items():
            start = given.get("start")
            yield from (Setting(method, value, _with(options, key, value), start=start) for value in values)


def scalings(config: Mapping[str, Any]) -> Iterator[Setting]:
    """Every scaling of a fine-tuned model that the configuration asks for."""
    known = {setting.name: setting for setting in fine_tuned(config)}
    for method, given in config["merge"]["methods"].items():
        if given["of"] not in known:
            hint = did_you_mean(given["of"], known)
            raise ConfigError(f"merge.methods.{method}.of: no fine-tuning {given['of']!r}{hint}")
        yield from (Setting(method, share, {}, of=known[given["of"]]) for share in given["scale"])


def models(context: Context) -> dict[str, Path]:
    """All models of the experiment by name."""
    names = [s.model(seed) for s in settings(context.config) for seed in context.config["seeds"]]
    return {"base": model_path(context, "base"), **{name: adapted_path(context, name) for name in names}}


def settings(config: Mapping[str, Any]) -> list[Setting]:
    """Everything that is compared."""
    return [*fine_tuned(config), *scalings(config)]


def train(context: Context) -> None:
    """Stage 3: the base on the source domains, then every fine-tuning of it on the target, with every seed."""
    config = context.config
    base = train_base(context)
    known, new = (
        [cuts_path(context, name, "train") for name in names]
        for names in (config["train"]["base"].get("data", config["source"]), [config["target"]])
    )
    depends_on = {"files": [identity(path) for path in (base, *known, *new)]}
    jobs = {}
    for setting in fine_tuned(config):
        for seed in config["seeds"]:
            name = setting.model(seed)
            output = tuned_path(context, setting, name)
            options = _with_fisher(setting.options, context.expdir / "fisher.safetensors", known)
            job = FineTuningJob(base, output, new, seed=seed, overwrite=True, **options)
            if context.is_fresh(name, [output], job=job, **depends_on):
                context.say(f"{name}: trained before")
            else:
                jobs[name] = job
    for name in run_jobs(jobs, context.expdir / "jobs", context.jobs, context.say, together=True):
        context.mark_fresh(name, job=jobs[name], **depends_on)


def scale(context: Context) -> None:
    """Stage 4: adapters become models, and models between the base and fine-tuned ones are made.

    The latter are ``base + c (fine-tuned - base)`` as in Speech-FT (arXiv 2502.12672); for an adapter that is its
    ``lora_alpha`` times c.
    """
    context.expdir.joinpath("adapted").mkdir(parents=True, exist_ok=True)
    for setting in settings(context.config):
        for seed in context.config["seeds"]:
            tuned = tuned_path(context, setting.source, setting.source.model(seed))
            output = adapted_path(context, setting.model(seed))
            context.say(str(_scaled(model_path(context, "base"), tuned, setting.share, output)))


def _scaled(base: Path, tuned: Path, share: float, output: Path) -> MergeReport:
    from .. import merge

    if tuned.suffix == ".nemo":  # a weighted mean, so that running statistics are weighted like the weights
        return merge(None, [base, tuned], "soup", weights=[1 - share, share], output=output, overwrite=True)
    return merge(base, [tuned], "task_arithmetic", scale=share, output=output, overwrite=True)


def decode(context: Context) -> None:
    """Stage 6: every model transcribes the development and test sets of the source and target domains."""
    transcribe_all(context, models(context), evaluation_sets(context))


def evaluation_sets(context: Context) -> dict[str, Path]:
    """Cuts to transcribe, by name."""
    names = (*context.config["source"], context.config["target"])
    return {evaluated(name, split): cuts_path(context, name, split) for name in names for split in EVALUATED}


def evaluated(name: str, split: str) -> str:
    """Name of one split of a set among the hypotheses."""
    return f"{name}-{split}"


def tuned_path(context: Context, setting: Setting, name: str) -> Path:
    """What a fine-tuning leaves: a model, or an adapter."""
    adapts = setting.options["trainable"] in ADAPTERS
    return context.expdir / "adapters" / name if adapts else model_path(context, name)


def adapted_path(context: Context, name: str) -> Path:
    """The model that a fine-tuning, or the scaling of one, ends in."""
    return context.expdir / "adapted" / f"{name}.nemo"


def tuned_files(context: Context) -> list[Path]:
    """What stage 3 leaves."""
    from ..checkpoints.adapter import MODEL

    runs = [(setting, seed) for setting in fine_tuned(context.config) for seed in context.config["seeds"]]
    outputs = [tuned_path(context, setting, setting.model(seed)) for setting, seed in runs]
    files = [path if path.suffix == ".nemo" else path / MODEL for path in outputs]
    return [model_path(context, "base"), *files]


def adapted_files(context: Context) -> list[Path]:
    """What stage 4 leaves."""
    return [path for name, path in models(context).items() if name != "base"]


def hypothesis_files(context: Context) -> list[Path]:
    """What stage 6 leaves."""
    return [context.expdir / "decode" / m / f"{s}.jsonl" for m in models(context) for s in evaluation_sets(context)]


def _merged(common: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Common options with those of a method in their place; those of adapters only where one is trained."""
    options: Any = OmegaConf.to_container(OmegaConf.merge(common, given))
    for key in (*NOT_TRAINING, *(() if options["trainable"] in ADAPTERS else ("adapter",))):
        options.pop(key, None)
    return options


def _with(options: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Options with one of them, whose name may have dots, set to a value."""
    first, _, rest = key.partition(".")
    return {**options, first: _with(options.get(first, {}), rest, value) if rest else value}


def _with_fisher(options: Mapping[str, Any], file: Path, known: Sequence[Path]) -> Mapping[str, Any]:
    """Options of EWC with the place of its Fisher information, and the data that the base was trained on."""
    regulariser = options.get("regulariser", {})
    if regulariser.get("name") != "ewc":
        return options
    # Weights, so that the first utterances are of all sets alike.
    source = {
        "type": "group",
        "input_cfg": [{"type": "lhotse", "cuts_path": str(path), "weight": 1 / len(known)} for path in known],
    }
    return {**options, "regulariser": {**regulariser, "fisher": file, "source": source}}
