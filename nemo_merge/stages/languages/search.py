"""Stages 4 to 6 of a language recipe: merge experts, add a new language by its expert, transcribe.

Stage 5 and the later ones read the merged model, the new language's expert, the base (for comparison, all experts), and
development and test sets. They read no training data, which may be gone by then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ...scoring.error_rates import sum_counts
from ...training.decode import Hypothesis
from ..data import cuts_path
from ..engine import Context
from ..models import model_path
from ..results import heard_in, transcribe_all
from .choice import Choice, choose, errors
from .training import trained_names

Rates = Mapping[str, Mapping[str, float]]
"""Error rates by model and language."""


@dataclass(frozen=True)
class Candidate:
    """A merged model that a search on development sets may choose.

    Attributes:
        method: entry of ``merge.methods``.
        values: what the search tries, by name.
        name: of the model.
    """

    method: str
    values: Mapping[str, float]
    name: str


def merge(context: Context) -> None:
    """Stage 4: the known languages' experts merged by every method, as does best on their development sets."""
    (rates,) = _try(context, ["merged"], context.config["old"])
    _choose(context, "merged", rates, lambda own, _: choose(own))


def extend(context: Context) -> None:
    """Stage 5: the new language's expert is merged into what stage 4 chose; beside it, all experts merged anew."""
    config = context.config
    before = chosen(context, "merged")

    def best(own: Rates, method: str) -> Choice:
        return choose(own, config["new"], before[method]["dev"], config["extend"]["tolerance"])

    extended, again = _try(context, ["extended", "again"], [*config["old"], config["new"]])
    _choose(context, "extended", extended, best, training_data=training_data(context))
    _choose(context, "again", again, lambda own, _: choose(own))


def candidates(context: Context, kind: str) -> Iterator[Candidate]:
    """The models that a search tries: ``merged``, ``extended`` or ``again``, merged anew from all experts."""
    for method, given in context.config["merge"]["methods"].items():
        swept = (
            {**context.config["extend"]["search"], **given.get("extend", {})} if kind == "extended" else given["search"]
        )
        for values in product(*swept.values()):
            named = dict(zip(swept, values, strict=True))
            shown = "-".join(f"{key}{value:g}" for key, value in named.items())
            yield Candidate(method, named, f"{kind}-{method}-{shown}")


def training_data(context: Context) -> list[str]:
    """The training sets whose manifests are there now."""
    sets = [*context.config["old"], context.config["new"]]
    return [name for name in sets if cuts_path(context, name, "train").exists()]


def chosen(context: Context, kind: str) -> dict[str, Any]:
    """What a search chose, by method."""
    return json.loads(_choice_path(context, kind).read_text(encoding="utf-8"))["methods"]


def training_data_seen(context: Context) -> list[str]:
    """The training sets that were there when stage 5 ran."""
    return json.loads(_choice_path(context, "extended").read_text(encoding="utf-8"))["training_data"]


def _try(context: Context, kinds: Sequence[str], languages: Sequence[str]) -> list[Rates]:
    """Makes all candidates of some kinds and transcribes development sets: character error rates, for every kind."""
    paths: dict[str, dict[str, Path]] = {kind: {} for kind in kinds}
    for kind, made in paths.items():
        (context.expdir / kind).mkdir(parents=True, exist_ok=True)
        for candidate in candidates(context, kind):
            made[candidate.name] = context.expdir / kind / f"{candidate.name}.nemo"
            _make(context, kind, candidate, made[candidate.name])
        context.say(f"{kind}: {len(made)} merges")
    everything = {name: path for made in paths.values() for name, path in made.items()}
    transcribe_all(context, everything, {dev(name): cuts_path(context, name, "dev") for name in languages})
    return [
        {
            name: {item: sum_counts(errors(hypotheses(context, name, item, dev), "cer")).rate for item in languages}
            for name in made
        }
        for made in paths.values()
    ]


def _choose(context: Context, kind: str, rates: Rates, pick: Callable[[Rates, str], Choice], **more: Any) -> None:
    """Takes the best candidate of every method and writes down what was tried."""
    found = {}
    for method in context.config["merge"]["methods"]:
        own = {item.name: dict(item.values) for item in candidates(context, kind) if item.method == method}
        best = pick({name: rates[name] for name in own}, method)
        shown = ", ".join(f"{key}={value:g}" for key, value in own[best.name].items())
        context.say(f"{kind}: {method} with {shown} {best.reason}")
        found[method] = {
            "name": best.name,
            "reason": best.reason,
            "values": own[best.name],
            "dev": rates[best.name],
            "tried": [{"values": values, "dev": rates[name]} for name, values in own.items()],
        }
    content = json.dumps({"methods": found, **more}, indent=1)
    _choice_path(context, kind).write_text(content + "\n", encoding="utf-8")


def _make(context: Context, kind: str, candidate: Candidate, output: Path) -> None:
    """Writes one merged model."""
    from ... import extend as extend_checkpoint
    from ... import merge as merge_checkpoints

    config = context.config
    base, new = model_path(context, "base"), model_path(context, config["new"])
    if kind == "extended":
        service = chosen(context, "merged")[candidate.method]
        extend_checkpoint(
            context.expdir / "merged" / f"{service['name']}.nemo",
            new,
            output,
            base=base,
            how="update",  # without the earlier experts, by any method
            weight=candidate.values["weight"],
            scale=candidate.values["kept"] * service["values"]["scale"],
            overwrite=True,
            workers=context.jobs,
        )
        return
    parameters = {**config["merge"]["methods"][candidate.method], **candidate.values}
    method = parameters.pop("method", candidate.method)
    for key in ("search", "extend"):
        parameters.pop(key, None)
    merge_checkpoints(
        base,
        [model_path(context, name) for name in (*config["old"], *([config["new"]] if kind == "again" else []))],
        method,
        output=output,
        vocabulary="union",
        overwrite=True,
        workers=context.jobs,
        **parameters,
    )


def decode(context: Context) -> None:
    """Stage 6: every model transcribes the test sets of all languages."""
    sets = {test(name): cuts_path(context, name, "test") for name in tested(context)}
    transcribe_all(context, models(context), sets)


def tested(context: Context) -> list[str]:
    """All languages: those merged first, the new one, and those that no expert was trained for."""
    return [*context.config["old"], context.config["new"], *context.config["untouched"]]


def models(context: Context) -> dict[str, Path]:
    """All models that are tested, by name."""
    found = {name: model_path(context, name) for name in trained_names(context)}
    for kind in ("merged", "extended", "again"):
        by_method = chosen(context, kind)
        for method in context.config["merge"]["methods"]:
            found[f"{kind}-{method}"] = context.expdir / kind / f"{by_method[method]['name']}.nemo"
    return found


def dev(name: str) -> str:
    """Name of a language's development set among the hypotheses."""
    return f"{name}-dev"


def test(name: str) -> str:
    """Name of a language's test set among the hypotheses."""
    return f"{name}-test"


def hypotheses(context: Context, model: str, name: str, of: Callable[[str], str]) -> list[Hypothesis]:
    """What a model heard in a language's set, :func:`dev` or :func:`test`."""
    return heard_in(context, name, context.expdir / "decode" / model / f"{of(name)}.jsonl")


def merged_files(context: Context) -> list[Path]:
    """What stage 4 leaves."""
    return [_choice_path(context, "merged"), *_made(context, "merged")]


def extended_files(context: Context) -> list[Path]:
    """What stage 5 leaves."""
    kinds = ("extended", "again")
    return [path for kind in kinds for path in (_choice_path(context, kind), *_made(context, kind))]


def hypothesis_files(context: Context) -> list[Path]:
    """What stage 6 leaves."""
    return [context.expdir / "decode" / m / f"{test(s)}.jsonl" for m in models(context) for s in tested(context)]


def _made(context: Context, kind: str) -> list[Path]:
    return [context.expdir / kind / f"{item.name}.nemo" for item in candidates(context, kind)]


def _choice_path(context: Context, kind: str) -> Path:
    return context.expdir / kind / "chosen.json"
