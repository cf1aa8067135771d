"""Stages 2 to 4 of a speech translation recipe: one task, one expert; merged across languages and across tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean
from ..training.attention_model import AttentionModelJob
from ..training.ctc import TrainingJob
from ..training.fine_tune import FineTuningJob
from ..training.jobs import Job, job_from
from . import data
from .data import cuts_path
from .engine import Context, identity
from .models import merged_path, model_path
from .speech_tasks import TASKS, task_cuts
from .workers import run_jobs


@dataclass(frozen=True)
class Task:
    """Something to do with a set of speech; each has an expert, and is tested.

    Attributes:
        name: key in ``tasks``.
        title: for tables.
        data: name of the set of speech.
        kind: ``transcribe`` or ``translate``.
        pnc: whether its text has punctuation and capital letters.
    """

    name: str
    title: str
    data: str
    kind: str
    pnc: bool = False

    @property
    def translates(self) -> bool:
        """Whether it is scored as a translation."""
        return self.kind == "translate"


@dataclass(frozen=True)
class Merge:
    """One way to merge the experts of a group.

    Attributes:
        group: entry of ``groups``: names of the tasks whose experts are merged.
        method: entry of ``merge.methods``.
        parameters: of :func:`nemo_merge.merge`, with ``method``.
        value: of the parameter that the entry sweeps; None if it sweeps none.
    """

    group: str
    method: str
    parameters: Mapping[str, Any]
    value: float | None = None

    @property
    def name(self) -> str:
        """Name of the merged model."""
        return f"{self.group}-{self.method}" + ("" if self.value is None else f"-{self.value:g}")


def tasks(config: Mapping[str, Any]) -> dict[str, Task]:
    """The tasks by name.

    Raises:
        ConfigError: a task is of no known kind, or of a set that is not there.
    """
    found = {}
    for name, given in config["tasks"].items():
        if given.get("task") not in TASKS:
            raise ConfigError(f"tasks.{name}.task: {given.get('task')!r} is none of {', '.join(TASKS)}")
        if given.get("data") not in config["corpus"]:
            hint = did_you_mean(str(given.get("data")), config["corpus"])
            raise ConfigError(f"tasks.{name}.data: corpus has no set {given.get('data')!r}{hint}")
        found[name] = Task(name, given.get("title") or name, given["data"], given["task"], bool(given.get("pnc")))
    return found


def groups(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The tasks whose experts are merged, by the group's name.

    Raises:
        ConfigError: a group names a task that is not there.
    """
    known = tasks(config)
    found = {name: list(given["experts"]) for name, given in config["groups"].items()}
    for group, names in found.items():
        for name in names:
            if name not in known:
                raise ConfigError(f"groups.{group}: there is no task {name!r}{did_you_mean(str(name), known)}")
        if group in known:
            raise ConfigError(f"groups.{group}: is the name of a task")
    return found


def merges(config: Mapping[str, Any]) -> Iterator[Merge]:
    """Every merge that the configuration asks for: an entry of ``sweep`` gives one per value."""
    for group in groups(config):
        for method, given in config["merge"]["methods"].items():
            parameters = {"method": method, **given}
            sweep = parameters.pop("sweep", {})
            if not sweep:
                yield Merge(group, method, parameters)
            for key, values in sweep.items():
                yield from (Merge(group, method, {**parameters, key: value}, value) for value in values)


def trained(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The tasks that every fine-tuning of the base learns: experts learn one, joint training those of a group."""
    experts = {name: [name] for name in tasks(config)}
    return {**experts, **{joint_name(group): groups(config)[group] for group in _jointly(config)}}


def cuts(context: Context) -> None:
    """Stage 2: cuts of every set, and of every task."""
    from lhotse import CutSet

    found = tasks(context.config)
    data.cuts(context)
    task_folder(context).mkdir(exist_ok=True)
    for task in found.values():
        speech = data.speech_sets(context)[task.data]
        for split in speech.splits(context):
            source = speech.cuts_path(context, split)
            made = task_cuts(CutSet.from_file(source), task.kind, str(source), pnc=task.pnc)
            made.to_file(task_path(context, task.name, split))


def train(context: Context) -> None:
    """Stage 3: the base, unless one is given, then an expert for every task and joint training beside them."""
    config = context.config
    base = _base(context)
    jobs: dict[str, Job] = {}
    for name, learnt in trained(config).items():
        part = "experts" if name in config["tasks"] else "joint"
        options = {key: value for key, value in config["train"][part].items() if key != "groups"}
        jobs[name] = _fine_tuning(context, name, base, learnt, options, f"train.{part}")
    _run(
        context,
        jobs,
        [base, *(task_path(context, name, "train") for name in config["tasks"])],
        side_by_side=context.jobs,
    )


def _base(context: Context) -> Path:
    """The base; trained from nothing, its encoder by CTC, its decoder then with all tasks."""
    config = context.config["train"]["base"]
    path = base_path(context)
    if config.get("given"):
        if not path.is_file():
            raise ConfigError(f"train.base.given: {path} does not exist")
        return path
    learnt = list(tasks(context.config))
    speech = dict.fromkeys(task.data for task in tasks(context.config).values())
    heard = [cuts_path(context, name, "train") for name in speech]
    seed, encoder, untrained = context.config["seed"], model_path(context, "encoder"), model_path(context, "untrained")
    read = [task_path(context, name, "train") for name in learnt]
    model = context.config["model"]
    jobs: dict[str, Job] = {
        "encoder": job_from(
            TrainingJob,
            config["encoder"],
            "train.base.encoder",
            output=encoder,
            cuts=heard,
            model=ctc_model(model, heard),
            seed=seed,
        ),
        "untrained": AttentionModelJob(untrained, model, read, config["vocabulary"], encoder, seed),
        "base": _fine_tuning(context, "base", untrained, learnt, config["fine_tune"], "train.base.fine_tune"),
    }
    # The last of them is the base; one process makes all, because each would import NeMo anew.
    _run(context, jobs, [*heard, *read], side_by_side=1, in_order=True)
    return path


def _fine_tuning(
    context: Context, name: str, base: Path, learnt: Sequence[str], options: Mapping[str, Any], place: str
) -> FineTuningJob:
    return job_from(
        FineTuningJob,
        options,
        place,
        base=base,
        output=model_path(context, name),
        train=[task_path(context, task, "train") for task in learnt],
        seed=context.config["seed"],
        overwrite=True,
    )


def _run(
    context: Context, jobs: Mapping[str, Job], files: Sequence[Path], *, side_by_side: int, in_order: bool = False
) -> None:
    """Runs the jobs that were not done before with the same settings and files; ``in_order``, also those after them."""
    depends_on = {"files": [identity(path) for path in files]}
    wanted: dict[str, Job] = {}
    for name, job in jobs.items():
        fresh = context.is_fresh(name, [model_path(context, name)], job=job, **depends_on)
        if fresh and not (in_order and wanted):
            context.say(f"{name}: trained before")
        else:
            wanted[name] = job
    alone = all(job.processes == 1 for job in wanted.values())  # torchrun has each of the others to itself
    for name in run_jobs(wanted, context.expdir / "jobs", side_by_side, context.say, together=alone):
        context.mark_fresh(name, job=jobs[name], **depends_on)


def ctc_model(model: Mapping[str, Any], cuts: Sequence[Path]) -> dict[str, Any]:
    """Configuration of a CTC model over characters with the encoder of an attention model.

    Args:
        model: configuration of the attention model.
        cuts: whose transcripts have the characters.
    """
    from lhotse import CutSet

    texts = (item.text or "" for path in cuts for cut in CutSet.from_file(path) for item in cut.supervisions)
    labels = sorted({letter for text in texts for letter in text} | {" "})
    return {
        **{key: model[key] for key in ("sample_rate", "preprocessor", "encoder")},
        "labels": labels,
        "log_prediction": False,
        "ctc_reduction": "mean_volume",
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": None,
            "num_classes": len(labels),
            "vocabulary": labels,
        },
    }


def merge(context: Context) -> None:
    """Stage 4: one merged model per group, method and value of what it sweeps."""
    from .. import merge as merge_checkpoints

    (context.expdir / "merged").mkdir(parents=True, exist_ok=True)
    members, base = groups(context.config), base_path(context)
    for item in merges(context.config):
        experts = [model_path(context, name) for name in members[item.group]]
        output, part = merged_path(context, item.name), f"merge-{item.name}"
        depends_on = {"parameters": item.parameters, "files": [identity(path) for path in (base, *experts)]}
        if context.is_fresh(part, [output], **depends_on):
            context.say(f"{item.name}: merged before")
            continue
        done = merge_checkpoints(base, experts, output=output, overwrite=True, workers=context.jobs, **item.parameters)
        context.mark_fresh(part, **depends_on)
        context.say(str(done))


def base_path(context: Context) -> Path:
    """The model that all others start from."""
    given = context.config["train"]["base"].get("given")
    return Path(given).expanduser() if given else model_path(context, "base")


def given_files(context: Context) -> list[Path]:
    """What stage 3 takes from elsewhere."""
    return [base_path(context)] if context.config["train"]["base"].get("given") else []


def joint_name(group: str) -> str:
    """Name of the model that is trained on all tasks of a group at once."""
    return f"{group}-joint"


def _jointly(config: Mapping[str, Any]) -> list[str]:
    """Groups for which there is joint training.

    Raises:
        ConfigError: there is no such group.
    """
    wanted = list(config["train"]["joint"]["groups"])
    for name in wanted:
        if name not in groups(config):
            raise ConfigError(f"train.joint.groups: there is no group {name!r}{did_you_mean(name, groups(config))}")
    return wanted


def task_folder(context: Context) -> Path:
    """Where the cuts of tasks are."""
    return context.datadir / "cuts" / "tasks"


def task_path(context: Context, name: str, split: str) -> Path:
    """Cut manifest of one split of a task."""
    return task_folder(context) / f"{name}_cuts_{split}.jsonl.gz"


def cut_files(context: Context) -> list[Path]:
    """What stage 2 leaves."""
    sets, found = data.speech_sets(context), tasks(context.config).values()
    made = [task_path(context, task.name, split) for task in found for split in sets[task.data].splits(context)]
    return [*data.cut_files(context), *made]


def model_files(context: Context) -> list[Path]:
    """What stage 3 leaves."""
    return [base_path(context), *(model_path(context, name) for name in trained(context.config))]


def merged_files(context: Context) -> list[Path]:
    """What stage 4 leaves."""
    return [merged_path(context, item.name) for item in merges(context.config)]
