"""The record of a merge that every merged checkpoint carries."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from typing import Any

import torch

from .. import __version__
from ..checkpoints import Checkpoint
from ..methods import Method
from .plan import MergePlan
from .rules import BASE, Rule


def record(plan: MergePlan, digests: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """What was merged and how, as plain data. It holds no date, so that the same merge gives the same bytes.

    Args:
        plan: the merge.
        digests: SHA-256 of the files of every input, by the input's path.
    """

    def describe(checkpoint: Checkpoint) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "path": str(checkpoint.path),
            "format": checkpoint.format,
            "sha256": dict(digests[str(checkpoint.path)]),
        }
        if checkpoint.metadata.provenance:
            entry["merged_from"] = dict(checkpoint.metadata.provenance)
        return entry

    count = len(plan.experts)
    chosen: dict[str, Any] = {"nemo_merge": __version__, "method": _settings(plan.method, count)}
    if plan.rules:
        chosen["rules"] = [_rule(rule, count) for rule in plan.rules]
    if plan.then:
        chosen["then"] = [{"name": post.name, **dataclasses.asdict(post)} for post in plan.then]
    return {
        **chosen,
        "base": describe(plan.base) if plan.base is not None else None,
        "experts": [describe(expert) for expert in plan.experts],
        "batch_norm": plan.batch_norm,
        "dtype": str(plan.dtype).removeprefix("torch.") if plan.dtype else None,
        **({"vocabulary": plan.alignment.record()} if plan.alignment is not None else {}),
        "tensors": plan.decisions(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }


def _settings(method: Method, experts: int) -> dict[str, Any]:
    return {
        "name": method.name,
        **dataclasses.asdict(method),
        "scale": method.resolved_scale(experts),
        "weights": method.resolved_weights(experts).tolist(),
    }


def _rule(rule: Rule, experts: int) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if rule.match is not None:
        entry["match"] = rule.match.pattern
    if rule.group is not None:
        entry["group"] = rule.group
    entry["method"] = _settings(rule.method, experts) if rule.method is not None else BASE
    if rule.weights is not None:
        entry["weights"] = [list(weight) if isinstance(weight, tuple) else weight for weight in rule.weights]
    return entry


def start_digests(plan: MergePlan, pool: Executor) -> dict[str, Future[dict[str, str]]]:
    """Starts hashing the inputs beside the merge."""
    inputs = {str(item.path): item for item in (plan.template, *plan.experts)}
    return {path: pool.submit(item.sha256) for path, item in inputs.items()}


def digest_of_bytes(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
