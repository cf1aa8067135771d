"""The picture of a search: every merge that was tried, and those that no other one beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .job import SearchJob
    from .study import Trial


def draw_front(path: Path, trials: Sequence[Trial], job: SearchJob, base: Mapping[str, float]) -> Path:
    """Error rates in domain against those on the retention sets; without the latter, against the number of the trial.

    Args:
        path: of the picture.
        trials: all that were measured.
        job: the search.
        base: error rates of the base by set.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    methods = list(dict.fromkeys(trial.settings["method"]["name"] for trial in trials))
    colours = pyplot.colormaps["tab10" if len(methods) <= 10 else "tab20"]
    limit = job.retention_rate(base)
    metric = {"wer": "word", "cer": "character", "mer": "mixed"}[job.metric] + " error rate, %"
    for index, method in enumerate(methods):
        own = [trial for trial in trials if trial.settings["method"]["name"] == method]
        points = [_place(trial) for trial in own]
        axes.plot(*zip(*points, strict=True), "o", ms=5, color=colours(index % colours.N), label=method, alpha=0.8)
    if limit is None:
        lowest, line = float("inf"), []
        for trial in trials:
            lowest = min(lowest, 100 * trial.in_domain)
            line.append((trial.number, lowest))
        axes.plot(*zip(*line, strict=True), color="#444", lw=1, drawstyle="steps-post", label="best so far")
        axes.axhline(100 * job.in_domain_rate(base), color="#9aa0a6", lw=1, ls="--", label="base")
        axes.set_xlabel("trial")
        axes.set_ylabel(f"in domain: mean {metric}")
    else:
        front = sorted(_place(trial) for trial in trials if trial.best)
        axes.plot(*zip(*front, strict=True), color="#444", lw=1, zorder=0, drawstyle="steps-post", label="Pareto front")
        axes.plot(100 * job.in_domain_rate(base), 100 * limit, "*", ms=11, color="black", label="base")
        allowed = 100 * limit * (1 + job.tolerance)
        axes.axhline(allowed, color="#9aa0a6", lw=1, ls="--", label=f"limit: base + {100 * job.tolerance:g} %")
        axes.set_xlabel(f"in domain: mean {metric}")
        axes.set_ylabel(f"retention: mean {metric}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path


def _place(trial: Trial) -> tuple[float, float]:
    if trial.retention is None:
        return trial.number, 100 * trial.in_domain
    return 100 * trial.in_domain, 100 * trial.retention
