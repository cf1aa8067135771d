"""Stages 3, 4 and 6 of an adaptation recipe: fine-tune the base by every method, merge what was learnt, decode all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..training.fine_tune import ADAPTERS, FineTuningJob
from ..training.jobs import job_from
from .compared import Setting, fine_tuned, settings
from .data import cuts_path, speech_sets
from .engine import Context, identity
from .models import model_path, train_base
from .results import transcribe_all
from .workers import run_jobs

if TYPE_CHECKING:
    from .. import MergeReport

EVALUATED = ("dev", "test")


def models(context: Context) -> dict[str, Path]:
    """All models of the experiment by name."""
    names = [name for setting in settings(context.config) for name in setting.runs(context.config["seeds"])]
    return {"base": model_path(context, "base"), **{name: adapted_path(context, name) for name in names}}


def train(context: Context) -> None:
    """Stage 3: the base on the source domains, then every fine-tuning of it, with every seed."""
    config = context.config
    settings(config)  # which refuses merges that stage 4 could not do
    _check_splits(context)
    base = train_base(context)
    known = [cuts_path(context, name, "train") for name in config["train"]["base"].get("data", config["source"])]
    jobs: dict[str, FineTuningJob] = {}
    depends_on = {}
    for setting in fine_tuned(config):
        data = {cuts_path(context, name, "train"): share for name, share in setting.data.items()}
        sources = [path if share is None else {"path": path, "weight": share} for path, share in data.items()]
        files = [identity(path) for path in dict.fromkeys((base, *known, *data))]
        options = _with_fisher(setting.options, context.expdir / "fisher.safetensors", known)
        for seed in config["seeds"]:
            name, output = setting.run(seed), tuned_path(context, setting, seed)
            filled = {"base": base, "output": output, "train": sources, "seed": seed, "overwrite": True}
            job = job_from(FineTuningJob, options, f"fine_tune.{setting.method}", **filled)
            depends_on[name] = {"job": job, "files": files}
            if context.is_fresh(name, [output], **depends_on[name]):
                context.say(f"{name}: trained before")
            else:
                jobs[name] = job
    for name in run_jobs(jobs, context.expdir / "jobs", context.jobs, context.say, together=True):
        context.mark_fresh(name, **depends_on[name])


def _check_splits(context: Context) -> None:
    """Refuses sets that lack what later stages need, before anything is trained."""
    for name in (*context.config["source"], context.config["target"]):
        found = speech_sets(context)[name].splits(context)
        for split in ("train", *EVALUATED):
            if split not in found:
                raise ConfigError(
                    f"corpus.{name}: it has no split {split!r}, only {', '.join(found) or 'none'}; "
                    f"corpus.{name}.splits.{split}=NAME says which of the corpus' own that is"
                )


def merge(context: Context) -> None:
    """Stage 4: adapters become models, and fine-tunings are merged with each other and with the base.

    With one fine-tuning, ``scale`` c gives ``base + c (fine-tuned - base)`` as in Speech-FT (arXiv 2502.12672); for an
    adapter that is its ``lora_alpha`` times c.
    """
    context.expdir.joinpath("adapted").mkdir(parents=True, exist_ok=True)
    for setting in settings(context.config):
        for name, seeds in setting.runs(context.config["seeds"]).items():
            tuned = [tuned_path(context, source, seed) for source in setting.sources for seed in seeds]
            output = adapted_path(context, name)
            context.say(str(_merged(model_path(context, "base"), tuned, output, **setting.merging)))


def _merged(base: Path, tuned: Sequence[Path], output: Path, method: str = "soup", **options: Any) -> MergeReport:
    from .. import merge as merge_checkpoints

    if method == "soup" and "weights" not in options and all(path.suffix == ".nemo" for path in tuned):
        # A weighted mean with the base among the models, so that running statistics are scaled like the weights.
        share = options.pop("scale", 1.0)
        options["weights"] = [1 - share, *[share / len(tuned)] * len(tuned)]
        return merge_checkpoints(None, [base, *tuned], method, output=output, overwrite=True, **options)
    return merge_checkpoints(base, tuned, method, output=output, overwrite=True, **options)


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


def tuned_path(context: Context, setting: Setting, seed: int) -> Path:
    """What a fine-tuning leaves: a model, or an adapter."""
    name = setting.run(seed)
    return context.expdir / "adapters" / name if adapts(setting) else model_path(context, name)


def adapts(setting: Setting) -> bool:
    """Whether a setting is a fine-tuning that leaves an adapter."""
    return not setting.of and setting.options["trainable"] in ADAPTERS


def adapted_path(context: Context, name: str) -> Path:
    """The model that a fine-tuning, or a merge, ends in."""
    return context.expdir / "adapted" / f"{name}.nemo"


def tuned_files(context: Context) -> list[Path]:
    """What stage 3 leaves."""
    from ..checkpoints.adapter import MODEL

    runs = [(setting, seed) for setting in fine_tuned(context.config) for seed in context.config["seeds"]]
    outputs = [tuned_path(context, setting, seed) for setting, seed in runs]
    files = [path if path.suffix == ".nemo" else path / MODEL for path in outputs]
    return [model_path(context, "base"), *files]


def adapted_files(context: Context) -> list[Path]:
    """What stage 4 leaves."""
    return [path for name, path in models(context).items() if name != "base"]


def hypothesis_files(context: Context) -> list[Path]:
    """What stage 6 leaves."""
    return [context.expdir / "decode" / m / f"{s}.jsonl" for m in models(context) for s in evaluation_sets(context)]


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
