"""One worker of a search: merges what the sampler proposes, transcribes the development sets, tells the error rates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import CheckpointError, ConfigError, MergeError, PlanError, did_you_mean
from ..training.jobs import Job, Report
from .space import Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, TrialState

SAMPLERS = ("tpe", "cmaes", "nsga2", "random", "exhaustive")
OBJECTIVES = ("in_domain", "front")
METRICS = ("wer", "cer", "mer")
STUDY = "study.db"
NAME = "nemo_merge"
_CANNOT = (PlanError, MergeError, ConfigError, CheckpointError)  # what is wrong with one proposal, not with the search


@dataclass(frozen=True)
class SearchJob(Job):
    """A search, or one worker of it; all workers share the study in ``output``.

    Attributes:
        output: folder of the study.
        base: the model that the experts were fine-tuned from.
        experts: what to merge.
        space: what to vary, see :meth:`~nemo_merge.searching.Space.read`.
        in_domain: development sets that count, by name; their mean error rate is minimised.
        retention: sets on which the merge must not become worse than the base, by name.
        tolerance: by how much it may, as a share of the base's mean error rate on them.
        objective: ``in_domain`` minimises the error rate in domain within the tolerance; ``front`` looks for the best
            trade-offs between error rates in domain and on the retention sets.
        sampler: ``tpe`` (Bayesian), ``cmaes`` (evolution strategy; numbers only), ``nsga2`` (genetic), ``random``, or
            ``exhaustive`` (every combination of a space without continuous ranges).
        metric: ``wer``, ``cer`` or ``mer`` (mixed error rate).
        text: text profile that references and hypotheses are put through; none by default.
        language: BCP-47 tag of the texts, for that.
        trials: number of merges to try in all, those of earlier runs included.
        seed: of the sampler; with one worker the same seed proposes the same.
        merge: further settings of all merges, in the words of ``nemo_merge.merge``.
        decode: settings of :class:`~nemo_merge.training.decode.DecodingJob` (``batch_size``, ``device``, ``beam`` ...).
        worker: number of this worker.
    """

    kind: ClassVar[str] = "search"

    output: str | Path
    base: str
    experts: Sequence[Any]
    space: Mapping[str, Any]
    in_domain: Mapping[str, str | Path]
    retention: Mapping[str, str | Path] = field(default_factory=dict)
    tolerance: float = 0.05
    objective: str = "in_domain"
    sampler: str = "tpe"
    metric: str = "wer"
    text: str | None = None
    language: str | None = None
    trials: int = 50
    seed: int = 0
    merge: Mapping[str, Any] = field(default_factory=dict)
    decode: Mapping[str, Any] = field(default_factory=dict)
    worker: int = 0

    @property
    def sets(self) -> dict[str, str | Path]:
        """All sets that are transcribed, by name."""
        return {**self.in_domain, **self.retention}

    def check(self) -> Space:
        """Finds what is wrong before anything is merged.

        Raises:
            NemoMergeError: a setting, a model or a set that cannot be used.
        """
        from ..merging.inputs import open_inputs
        from ..scoring.text.profiles import normaliser
        from ..training.checks import numbers, refuse

        for key, known in (("sampler", SAMPLERS), ("objective", OBJECTIVES), ("metric", METRICS)):
            if getattr(self, key) not in known:
                raise ConfigError(f"search.{key}={getattr(self, key)!r}{did_you_mean(str(getattr(self, key)), known)}")
        if not self.experts or not self.base:
            raise ConfigError("a search needs base=PATH and experts=[PATH,PATH]")
        if not self.in_domain:
            raise ConfigError("search.in_domain: name at least one development set, for example {news: dev.jsonl.gz}")
        if both := self.in_domain.keys() & self.retention.keys():
            raise ConfigError(f"search: {min(both)!r} is the name of a set in domain and of one for retention")
        if self.objective == "front" and (not self.retention or self.sampler == "cmaes"):
            raise ConfigError("search.objective=front needs search.retention, and a sampler other than cmaes")
        refuse(list(numbers(self, ("trials",), ("trials", "seed"), ("tolerance",))), "search")
        normaliser(self.text or "none", self.language)
        space = Space.read(self.space, len(self.experts))
        if self.sampler == "exhaustive" and space.endless:
            raise ConfigError(f"search.sampler=exhaustive: {space.endless[0]} needs a list of values, or a step")
        from ..training.decode import DecodingJob

        try:
            DecodingJob({"base": self.base}, self.sets, self.output, **self.decode).check()
        except TypeError as error:
            raise ConfigError(f"search.decode: {str(error).partition('() ')[2] or error}") from error
        with ExitStack() as stack:
            open_inputs(self.base, self.experts, stack)
        return space

    def run(self, report: Report) -> None:
        space = self.check()
        study = open_study(self)
        self._measure_base(study, report)
        while (trial := self._next(study, space)) is not None:
            self._try(study, trial, space, report)

    def _measure_base(self, study: Study, report: Report) -> None:
        """Error rates of the base, which the first worker measures while the others wait."""
        with _locked(Path(self.output)):
            if "base" not in study.user_attrs:
                rates = self._rates("base", self.base)
                study.set_user_attr("base", rates)
                report(f"base: {self._said(rates)}")

    def _next(self, study: Study, space: Space) -> tuple[Trial, dict[str, Any]] | None:
        """A trial and what it tries; None when enough were begun."""
        from optuna.trial import TrialState

        with _locked(Path(self.output)):  # so that workers do not begin more than were asked for
            waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if "exhausted" in study.user_attrs and not waiting:
                return None
            counted = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL)
            if len(study.get_trials(deepcopy=False, states=counted)) >= self.trials:
                return None
            trial = study.ask()
            return trial, space.suggest(trial)

    def _try(self, study: Study, proposed: tuple[Trial, dict[str, Any]], space: Space, report: Report) -> None:
        from optuna.trial import TrialState

        trial, settings = proposed
        trial.set_user_attr("settings", settings)
        shown = describe(settings)
        known = next((item for item in finished(study) if item.user_attrs["settings"] == settings), None)
        try:
            rates = known.user_attrs["rates"] if known else self._merged_rates(trial.number, settings)
        except _CANNOT as error:
            trial.set_user_attr("error", str(error))
            tell(study, trial, state=TrialState.FAIL)
            report(f"trial {trial.number}: {shown}: cannot be merged ({str(error).splitlines()[0]})")
            return
        trial.set_user_attr("rates", rates)
        trial.set_user_attr("excess", self.excess(rates, study.user_attrs["base"]))
        if self.retention and self.objective == "in_domain" and self.sampler != "cmaes":
            trial.set_constraint("retention", trial.user_attrs["excess"])
        tell(study, trial, self._values(rates, trial.user_attrs["excess"]))
        report(f"trial {trial.number}: {shown}: {self._said(rates)}")

    def _merged_rates(self, number: int, settings: Mapping[str, Any]) -> dict[str, float]:
        from ..merging import merge

        folder = Path(self.output) / ".trials"
        folder.mkdir(exist_ok=True)
        output = folder / f"{number}{model_suffix(self.base)}"
        try:
            merge(
                self.base,
                self.experts,
                **merge_arguments(self.merge, settings),
                output=output,
                overwrite=True,
                progress=False,
            )
            return self._rates(str(number), output)
        finally:
            shutil.rmtree(output, ignore_errors=True) if output.is_dir() else output.unlink(missing_ok=True)

    def _rates(self, name: str, model: str | Path) -> dict[str, float]:
        """Error rate of a model by set."""
        from ..scoring import error_rates
        from ..scoring.text.profiles import normaliser
        from ..training.decode import DecodingJob, read_hypotheses

        folder = Path(self.output) / ".trials" / "hypotheses"
        DecodingJob({name: model}, self.sets, folder, overwrite=True, **self.decode).run(lambda _: None)
        rewrite = normaliser(self.text or "none", self.language)
        count = {
            "wer": error_rates.word_error_rate,
            "cer": error_rates.character_error_rate,
            "mer": error_rates.mixed_error_rate,
        }[self.metric]
        rates = {}
        for item in self.sets:
            heard = read_hypotheses(folder / name / f"{item}.jsonl")
            pairs = [(rewrite(said.text), rewrite(said.pred_text)) for said in heard if said.text]
            if not pairs:
                raise ConfigError(f"search: {item} ({self.sets[item]}) has no transcripts to compare with")
            references, hypotheses = map(list, zip(*pairs, strict=True))
            rates[item] = count(references, hypotheses).rate
        shutil.rmtree(folder / name, ignore_errors=True)
        return rates

    def in_domain_rate(self, rates: Mapping[str, float]) -> float:
        """Mean error rate over the sets in domain."""
        return sum(rates[name] for name in self.in_domain) / len(self.in_domain)

    def retention_rate(self, rates: Mapping[str, float]) -> float | None:
        """Mean error rate over the sets for retention, if there are any."""
        return sum(rates[name] for name in self.retention) / len(self.retention) if self.retention else None

    def excess(self, rates: Mapping[str, float], base: Mapping[str, float]) -> float:
        """How far the error rate for retention is above what is allowed; negative when it is below."""
        mine, theirs = self.retention_rate(rates), self.retention_rate(base)
        return 0.0 if mine is None or theirs is None else mine - theirs * (1 + self.tolerance)

    def _values(self, rates: Mapping[str, float], excess: float) -> float | list[float]:
        value, retained = self.in_domain_rate(rates), self.retention_rate(rates)
        if self.objective == "front":
            assert retained is not None  # check() saw to it
            return [value, retained]
        # CMA-ES knows no constraints: what is above the limit is added to what it minimises.
        return value + max(0.0, excess) if self.sampler == "cmaes" else value

    def _said(self, rates: Mapping[str, float]) -> str:
        retained = self.retention_rate(rates)
        rest = "" if retained is None else f", retention {100 * retained:.1f} %"
        return f"in domain {100 * self.in_domain_rate(rates):.1f} %{rest}"


def open_study(job: SearchJob) -> Study:
    """The study of a search, made when it is missing.

    Raises:
        ConfigError: Optuna is not installed.
        OptunaError: the study is damaged.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = Path(job.output).resolve() / STUDY
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 120}})
    directions = ["minimize"] * (2 if job.objective == "front" else 1)
    return optuna.create_study(
        study_name=NAME, storage=storage, sampler=_sampler(job), directions=directions, load_if_exists=True
    )


def tell(
    study: Study, trial: Trial | int, values: float | Sequence[float] | None = None, state: TrialState | None = None
) -> None:
    """Tells a study how a trial ended, and notes when an exhaustive sampler has nothing left to propose."""
    from optuna.samplers import BruteForceSampler

    try:
        study.tell(trial, values, state)
    except RuntimeError:  # how that sampler stops a search that asks and tells
        if not isinstance(study.sampler, BruteForceSampler):
            raise
        study.set_user_attr("exhausted", True)


def finished(study: Study) -> list[FrozenTrial]:
    """Trials whose merge was measured."""
    return [trial for trial in study.get_trials(deepcopy=False) if "rates" in trial.user_attrs]


def merge_arguments(common: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``nemo_merge.merge`` for the settings of a trial."""
    method = dict(settings["method"])
    return {**common, **{k: v for k, v in settings.items() if k != "method"}, "method": method.pop("name"), **method}


def model_suffix(base: str) -> str:
    """The suffix of outputs in the format of the base; none for folders."""
    suffix = Path(base).suffix
    return suffix if suffix in (".nemo", ".ckpt", ".safetensors", ".pt", ".pth") else ""


def describe(settings: Mapping[str, Any]) -> str:
    """The settings of a trial as a short text, for example ``ties density=0.2 scale=1.1``."""
    method = dict(settings["method"])
    words = [method.pop("name"), *(f"{key}={_shown(value)}" for key, value in method.items())]
    rest = [f"{key}={_shown(value)}" for key, value in settings.items() if key != "method" and value]
    return " ".join([*words, *rest])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return "[" + ",".join(f"{item:.3g}" for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _sampler(job: SearchJob) -> BaseSampler:
    samplers, seed = _optuna().samplers, job.seed + 1000 * job.worker
    if job.sampler == "tpe":
        # With constant_liar, workers do not try what another one is trying.
        return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    if job.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, job.trials // 4)))
    if job.sampler == "cmaes":
        try:
            import cmaes  # noqa: F401
        except ModuleNotFoundError as error:
            raise ConfigError("search.sampler=cmaes needs cmaes: pip install 'nemo-merge[search]'") from error
        return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if job.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    return samplers.BruteForceSampler(seed=job.seed)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ConfigError("a search needs Optuna, which is not installed: pip install 'nemo-merge[search]'") from error
    import warnings

    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps the other workers waiting."""
    import fcntl

    with open(folder / ".lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def plain(job: SearchJob) -> dict[str, Any]:
    """What makes two searches the same one: inputs, space, sets, and how error rates are counted."""
    names = ("base", "experts", "space", "in_domain", "retention", "metric", "text", "language", "merge", "decode",
             "objective")  # fmt: skip
    return json.loads(json.dumps({name: asdict(job)[name] for name in names}, default=str))
