"""Whether the findings of a study of many merging methods hold for the figures at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..scoring import Interval
from .markdown import p_value, signed

PARAMETERS, VECTORS, SUBSPACE = FAMILIES = ("parameter space", "task vectors", "task subspace")
_ALPHA = 0.05
_NOTHING = 0.95  # error rate from which on nothing is recognised


def findings(scores: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What Carvalho et al. (2026, arXiv 2603.05354) found, whether it holds here, and the figures that say so.

    Args:
        scores: ``systems`` with ``family`` and ``means``, ``significance`` of the merges against ``baseline``.

    Returns:
        Rows of finding, verdict, figures; a finding for which there are no systems or sets is left out, and all are
        where no system recognises anything.
    """
    rates = [row["means"]["in domain"]["interval"][0] for row in scores["systems"].values() if row["means"]]
    if min(rates, default=0.0) >= _NOTHING:
        return []
    rows = [
        _best_family(scores, "in domain", SUBSPACE, "subspace methods are best in domain"),
        _best_family(scores, "retention", PARAMETERS, "parameter-space methods keep best what the base knew"),
    ]
    baseline = scores["baseline"]
    if baseline == "joint":
        for name in dict.fromkeys(["boosted_tsvm", scores["best"]]):
            if name in scores["significance"]["full"]:
                rows += [_against(scores, name, "full", "all sets"), _against(scores, name, "in domain", "in domain")]
    return [row for row in rows if row]


def _best_family(scores: Mapping[str, Any], mean: str, family: str, finding: str) -> tuple[str, str, str] | None:
    """Whether the best merge is of a family: with every seed, in the mean over them, or not."""
    merges = {name: row for name, row in scores["systems"].items() if row["family"] and mean in row["means"]}
    if len({row["family"] for row in merges.values()}) < 2 or family not in {r["family"] for r in merges.values()}:
        return None
    best = min(merges, key=lambda name: merges[name]["means"][mean]["interval"][0])
    by_seed = zip(*(merges[name]["means"][mean]["seeds"] for name in merges), strict=True)
    winners = [min(zip(rates, merges, strict=True))[1] for rates in by_seed]
    of_family = sum(merges[name]["family"] == family for name in winners)
    if merges[best]["family"] != family:
        verdict = "does not hold"
    elif of_family == len(winners):
        verdict = "holds"
    else:
        verdict = f"holds in the mean, and with {of_family} of {len(winners)} seeds"
    return finding, verdict, "; ".join(_family(merges, name, mean) for name in FAMILIES if _of(merges, name))


def _family(merges: Mapping[str, Any], family: str, mean: str) -> str:
    """The best merge of a family and the mean of all."""
    rates = {name: 100 * merges[name]["means"][mean]["interval"][0] for name in _of(merges, family)}
    best = min(rates, key=lambda name: rates[name])
    return f"{family}: best {best} {rates[best]:.1f}, mean of {len(rates)} {sum(rates.values()) / len(rates):.1f}"


def _of(merges: Mapping[str, Any], family: str) -> Sequence[str]:
    return [name for name, row in merges.items() if row["family"] == family]


def _against(scores: Mapping[str, Any], name: str, mean: str, where: str) -> tuple[str, str, str]:
    """Whether a merge is at or below joint fine-tuning: not significantly above it."""
    difference = Interval(*scores["systems"][name]["against"][mean])
    p = scores["significance"][mean][name]["p_holm"]
    if p >= _ALPHA:
        verdict = "holds: no significant difference"
    elif difference.value < 0:
        verdict = "holds: significantly below"
    else:
        verdict = "does not hold: significantly above"
    figures = f"{signed(difference)} points, p {p_value(p)}"
    return f"{name} is at or below joint fine-tuning, {where}", verdict, figures
