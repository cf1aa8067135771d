"""Runs a search with several workers, and tells what it found."""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, NemoMergeError, OutputError
from ..training.jobs import ERROR_PREFIX, write_job
from ..training.processes import run_job
from .job import STUDY, SearchJob, describe, finished, merge_arguments, model_suffix, open_study, plain, tell

if TYPE_CHECKING:
    from optuna import Study

_TAIL = 25
CHOSEN = "best"


class SearchError(NemoMergeError):
    """A worker of a search ended with an error that is none of the user's settings; its log says why."""

    exit_code = 1


@dataclass(frozen=True)
class Trial:
    """A merge that was measured.

    Attributes:
        number: of the trial.
        settings: of the merge, as in a configuration.
        rates: error rate by set.
        in_domain: mean error rate over the sets in domain.
        retention: mean error rate over the sets for retention, if there are any.
        allowed: whether that is within the tolerance.
        best: whether no other one is better in both.
    """

    number: int
    settings: Mapping[str, Any]
    rates: Mapping[str, float]
    in_domain: float
    retention: float | None
    allowed: bool
    best: bool


@dataclass(frozen=True)
class SearchReport:
    """What a search found.

    Attributes:
        base: error rates of the base by set.
        trials: all merges that were measured, in their order.
        failed: number of proposals that cannot be merged.
        chosen: the lowest error rate in domain among those that are allowed; None if none is.
        files: what was written.
    """

    base: Mapping[str, float]
    trials: Sequence[Trial]
    failed: int
    chosen: Trial | None
    files: Sequence[Path]


def search(job: SearchJob, workers: int = 1, say: Callable[[str], None] = lambda line: None) -> SearchReport:
    """Searches, or goes on with a search, and merges what it found best.

    Merges are tried on development sets: measure the chosen one on test sets of its own.

    Args:
        job: what to search; its ``output`` gets ``study.db``, which Optuna and its dashboard read, ``trials.csv``,
            ``front.png``, ``best.yaml`` for ``nemo-merge merge``, and the merged model.
        workers: processes side by side; each holds a model.
        say: called with a line for every trial.

    Raises:
        NemoMergeError: a setting, model or set cannot be used; or the folder holds another search.
        SearchError: a worker failed.
    """
    job.check()
    folder = Path(job.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from error
    with _alone(folder):
        study = open_study(job)
        _resume(job, study, say)
        _work(job, workers, say)
        return _report(job, study, say)


@contextlib.contextmanager
def _alone(folder: Path) -> Any:
    """Keeps a second search out of the folder, which would take running trials for interrupted ones."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{folder}: another process is searching here") from error
        yield
    finally:
        os.close(descriptor)


def _resume(job: SearchJob, study: Study, say: Callable[[str], None]) -> None:
    """Sees that it is the same search, and proposes again what was interrupted.

    Raises:
        ConfigError: the study is of other inputs, sets or objectives.
    """
    from optuna.trial import TrialState

    from ..training.recogniser import model_digest
    from ..training.utterances import read_test_set

    asked: dict[str, Any] = plain(job)
    models = [item["path"] if isinstance(item, Mapping) else item for item in (job.base, *job.experts)]
    asked["models"] = {str(path): model_digest(Path(path)) for path in models}
    asked["sets"] = {name: read_test_set(Path(path)).sha256 for name, path in job.sets.items()}
    known = study.user_attrs.get("search")
    if known is None:
        study.set_user_attr("search", asked)
    elif known != asked:
        changed = sorted(key for key in asked if known.get(key) != asked[key])
        raise ConfigError(
            f"{Path(job.output) / STUDY} is a search with other {', '.join(changed)}; choose another output"
        )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        tell(study, trial.number, state=TrialState.PRUNED)
    if count := len(finished(study)):
        say(f"goes on after {count} trials")


def _work(job: SearchJob, workers: int, say: Callable[[str], None]) -> None:
    """Runs the workers, each in a process of its own."""
    folder = Path(job.output)
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(workers) as pool:
        running = {
            pool.submit(
                _one, write_job(replace(job, worker=number), Path(place, f"{number}.json")), folder, number, say
            )
            for number in range(workers)
        }
        for done in as_completed(running):
            done.result()


def _one(file: Path, folder: Path, number: int, say: Callable[[str], None]) -> None:
    path = folder / f"worker{number}.log"
    with open(path, "w", encoding="utf-8", errors="replace") as log:
        code = run_job(file, 1, say, log.write, log)
    if not code:
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    _, known, message = text.rpartition(ERROR_PREFIX)
    if known:
        raise ConfigError(message.strip())
    tail = "\n".join(f"  | {line}" for line in text.splitlines()[-_TAIL:])
    raise SearchError(f"a worker ended with exit code {code}; the end of {path}:\n{tail}")


def _report(job: SearchJob, study: Study, say: Callable[[str], None]) -> SearchReport:
    """Writes what was found."""
    from optuna.trial import TrialState

    base = study.user_attrs["base"]
    trials = _trials(job, study, base)
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    if not trials:
        reason = failed[0].user_attrs.get("error", "") if failed else ""
        raise ConfigError(f"none of the {len(failed)} proposals can be merged; the first: {reason}")
    folder = Path(job.output)
    files = [folder / STUDY, _write_table(folder / "trials.csv", trials, job)]
    with contextlib.suppress(ModuleNotFoundError):  # matplotlib; the table says the same
        from .front import draw_front

        files.append(draw_front(folder / "front.png", trials, job, base))
    chosen = min((trial for trial in trials if trial.allowed), key=lambda trial: trial.in_domain, default=None)
    if chosen is not None:
        files += _merge_chosen(job, chosen)
    return SearchReport(base, trials, len(failed), chosen, files)


def _trials(job: SearchJob, study: Study, base: Mapping[str, float]) -> list[Trial]:
    found = []
    measured = {item.number: item.user_attrs for item in finished(study)}
    points = {
        number: (job.in_domain_rate(attrs["rates"]), job.retention_rate(attrs["rates"]))
        for number, attrs in measured.items()
    }
    for number, attrs in measured.items():
        value, retained = points[number]
        dominated = any(_dominates(other, points[number]) for other in points.values())
        allowed = job.excess(attrs["rates"], base) <= 0
        found.append(Trial(number, attrs["settings"], attrs["rates"], value, retained, allowed, not dominated))
    return found


def _dominates(other: tuple[float, float | None], mine: tuple[float, float | None]) -> bool:
    """Whether another one is at least as good in both and better in one."""
    theirs, own = (other[0], other[1] or 0.0), (mine[0], mine[1] or 0.0)
    return theirs != own and theirs[0] <= own[0] and theirs[1] <= own[1]


def _merge_chosen(job: SearchJob, chosen: Trial) -> list[Path]:
    """Merges the best once more, with its settings beside it."""
    import yaml

    from ..merging import merge

    folder = Path(job.output)
    output = folder / f"{CHOSEN}{model_suffix(job.base)}"
    settings = {
        "base": str(job.base),
        "experts": [path if isinstance(path, dict) else str(path) for path in job.experts],
        "output": str(output),
        **job.merge,
        **chosen.settings,
    }
    path = folder / f"{CHOSEN}.yaml"
    partial = folder / f".{CHOSEN}.yaml.partial"
    partial.write_text(
        f"# Trial {chosen.number} of a search. Again: nemo-merge merge {path} overwrite=true\n"
        + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        encoding="utf-8",
    )
    os.replace(partial, path)
    merge(
        job.base,
        job.experts,
        **merge_arguments(job.merge, chosen.settings),
        output=output,
        overwrite=True,
        progress=False,
    )
    return [path, output]


def _write_table(path: Path, trials: Sequence[Trial], job: SearchJob) -> Path:
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["trial", "settings", "in_domain", "retention", "allowed", "front", *job.sets])
        for trial in sorted(trials, key=lambda trial: trial.in_domain):
            rates = [f"{trial.rates[name]:.5f}" for name in job.sets]
            retained = "" if trial.retention is None else f"{trial.retention:.5f}"
            kept = [int(trial.allowed), int(trial.best)]
            rows.writerow([trial.number, describe(trial.settings), f"{trial.in_domain:.5f}", retained, *kept, *rates])
    os.replace(partial, path)
    return path
