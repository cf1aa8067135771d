"""The record of a merge that every merged checkpoint carries."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import re
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import torch

from .. import __version__
from ..checkpoints import RECORD, Checkpoint
from ..checkpoints._yaml import load
from ..errors import CheckpointError
from ..methods import Method
from .plan import MergePlan, Treatment
from .ranks import ALONE, Ranks
from .recalibration import asked
from .rules import BASE, Rule

Digests = Mapping[str, Mapping[str, str]]
"""SHA-256 of the files of every input, by the input's path."""


_UNQUOTED = re.compile(r"[A-Za-z_./][\w./-]*")


def record(plan: MergePlan, digests: Digests, as_adapter: bool | int | None = None) -> dict[str, Any]:
    """What was merged and how, as plain data. It holds no date, so that the same merge gives the same bytes.

    Tensors that the method treated as it treats all others are counted only; ``decisions`` names the rest.

    Args:
        plan: the merge.
        digests: SHA-256 of the inputs.
        as_adapter: the option of that name, for a merge whose output is an adapter.
    """

    def describe(checkpoint: Checkpoint) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "path": str(checkpoint.path),
            "format": checkpoint.format,
            "sha256": dict(digests[str(checkpoint.path)]),
        }
        entry.update(checkpoint.details)
        if checkpoint.metadata.provenance:
            earlier = dict(checkpoint.metadata.provenance)
            earlier.pop("decisions", None)
            entry["merged_from" if "experts" in earlier else "fine_tuned"] = earlier
        return entry

    count = len(plan.experts)
    chosen: dict[str, Any] = {"method": _settings(plan.method, count)}
    if plan.rules:
        chosen["rules"] = [_rule(rule, count) for rule in plan.rules]
    if plan.then:
        chosen["then"] = [{"name": post.name, **dataclasses.asdict(post)} for post in plan.then]
    entries = {
        **chosen,
        "base": describe(plan.base) if plan.base is not None else None,
        "experts": [describe(expert) for expert in plan.experts],
        "batch_norm": plan.batch_norm,
        **({"audio": plan.audio.record()} if plan.audio is not None else {}),
        "dtype": str(plan.dtype).removeprefix("torch.") if plan.dtype else None,
        **({"vocabulary": plan.alignment.record()} if plan.alignment is not None else {}),
        "device": plan.device.type,
    }
    if as_adapter:
        entries["as_adapter"] = as_adapter
    entries = plain(entries)
    return {
        "nemo_merge": __version__,
        "command": command(entries, plan.method),
        **entries,
        "tensors": plan.decisions(),
        "decisions": _decisions(plan),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **({"nemo": version("nemo_toolkit")} if plan.audio is not None else {}),
        },
    }


def record_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The record that a merged checkpoint carries, or that stands beside it.

    Raises:
        CheckpointError: there is none, or it is not that of a merge.
    """
    record = checkpoint.metadata.provenance
    sidecar = checkpoint.path.with_name(f"{checkpoint.path.name}.{RECORD}")
    if record is None and sidecar.is_file():
        record = load(sidecar.read_text(encoding="utf-8"), sidecar)
    if record is None:
        raise CheckpointError(f"{checkpoint.path}: carries no record of a merge, and there is no {sidecar.name}")
    if not isinstance(record.get("method"), dict) or not isinstance(record.get("experts"), list):
        raise CheckpointError(f"{checkpoint.path}: its record is not that of a merge that can be repeated")
    return record


def command(entries: Mapping[str, Any], method: Method) -> str:
    """The command that repeats a merge, whatever way it was asked for; the output is left to the reader."""
    words = [f"method={method.name}"]
    for item in dataclasses.fields(method):
        if (value := getattr(method, item.name)) != item.default:
            words.append(f"method.{item.name}={_hydra(plain(value))}")
    if entries["base"] is not None:
        words.append(f"base={_hydra(source_of(entries['base']))}")
    words.append(f"experts={_hydra([source_of(expert) for expert in entries['experts']])}")
    words += [f"{key}={_hydra(entries[key])}" for key in ("rules", "then") if entries.get(key)]
    if entries["batch_norm"] != "average":
        words.append(f"batch_norm={entries['batch_norm']}")
    if "audio" in entries:
        words.append(f"audio={_hydra(asked(entries))}")
    if entries["dtype"] is not None:
        words.append(f"dtype={entries['dtype']}")
    if (policy := entries.get("vocabulary", {}).get("policy", "strict")) != "strict":
        words.append(f"vocabulary={policy}")
    if entries["device"] != "cpu":
        words.append(f"device={entries['device']}")
    if "as_adapter" in entries:
        words.append(f"as_adapter={_hydra(entries['as_adapter'])}")
    return shlex.join(["nemo-merge", "merge", *words, "output=OUTPUT"])


def source_of(entry: Mapping[str, Any], path: str | None = None) -> Any:
    """An input of a record as it is given to a merge, perhaps at another place: its path, and how to read it."""
    options = {"prefix": entry.get("adapter", {}).get("prefix"), "ema": entry.get("ema")}
    said = {key: value for key, value in options.items() if value is not None}
    return {"path": path or entry["path"], **said} if said else path or entry["path"]


def plain(value: Any) -> Any:
    """The same as data that JSON and YAML know: no tuples."""
    return json.loads(json.dumps(value))


@contextlib.contextmanager
def hashing(
    inputs: Sequence[Checkpoint], ranks: Ranks = ALONE, *, anew: bool = False
) -> Iterator[Callable[[], dict[str, dict[str, str]]]]:
    """Hashes the inputs in another thread, beside whatever the caller does; the value waits for the digests.

    Several ranks share the files; ``anew`` is that of :meth:`Checkpoint.sha256`. Leaving it early, because of an
    error, gives up.
    """
    stop = threading.Event()
    unique = {str(item.path): item for item in inputs}
    mine = list(unique)[ranks.rank :: ranks.count]
    with ThreadPoolExecutor(1, thread_name_prefix="nemo_merge-sha256") as pool:
        futures = {path: pool.submit(unique[path].sha256, stop, anew=anew) for path in mine}

        def digests() -> dict[str, dict[str, str]]:
            with ranks.together():
                own = {path: future.result() for path, future in futures.items()}
            return {path: digest for part in ranks.all(own) for path, digest in part.items()}

        try:
            yield digests
        finally:
            stop.set()


def _decisions(plan: MergePlan) -> dict[str, list[str]]:
    """Tensors that were not simply left to the method, by what was done with them and why."""
    found: dict[str, list[str]] = {}
    for row in plan.rows:
        if row.treatment is not Treatment.METHOD or row.reason:
            found.setdefault(": ".join(filter(None, [row.treatment.value, row.reason])), []).append(row.name)
    return found


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


def _hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, str):
        if _UNQUOTED.fullmatch(value) and value.lower() not in ("true", "false", "null", "nan", "inf"):
            return value
        return '"' + re.sub(r'(\\*)"', r"\1\1\"", re.sub(r"(\\+)$", r"\1\1", value)) + '"'
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    return json.dumps(value)
