"""``nemo-merge finetune``: trains an expert, whole, in part or as an adapter, by NeMo's trainer or transformers'."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError, did_you_mean
from ._background import run_logged

if TYPE_CHECKING:
    from ..training.fine_tune import FineTuningJob
    from ..training.whisper_fine_tune import WhisperFineTuningJob


@click.command("finetune", context_settings={"ignore_unknown_options": True}, no_args_is_help=True)
@click.argument("arguments", nargs=-1, metavar="[CONFIG.yaml] [KEY=VALUE]...")
@click.option("--check", is_flag=True, help="Check settings, files and data, and train nothing.")
def command(arguments: tuple[str, ...], check: bool) -> None:
    """Fine-tune a NeMo model, or a Whisper, on speech with transcripts.

    Settings come from a YAML file, from KEY=VALUE overrides in Hydra's grammar, or both:

    \b
      nemo-merge finetune configs/train/full.yaml base=base.nemo 'train=[telephone.jsonl.gz]' output=telephone.nemo
      nemo-merge finetune configs/train/lora.yaml adapter.r=16 steps=500 base=... 'train=[...]' output=telephone-lora
      torchrun --nnodes 2 --nproc-per-node 8 -m nemo_merge finetune ...    # on several machines

    \b
    base=PATH         .nemo to start from, or a Whisper: a folder, or OWNER/NAME of the Hugging Face hub
    output=PATH       .nemo to write, or a folder for an adapter; it appears whole or not at all
    train=[A,B]       Lhotse cuts, NeMo manifests or Lhotse shards, or {path: A, weight: 2, tags: {...}}
    validation={...}  development sets by name
    trainable=PART    full, encoder, decoder, lora, bayesian_lora, or a list of name patterns   [full]
    adapter.KEY=...   settings of the adapter: r, lora_alpha, target_modules, beta ...
    regulariser={...} {name: l2, gamma: 0.1}, {name: l2_sp, ...} or {name: ewc, ...}
    scale=C           save base + C (trained - base)   [1]
    optim.KEY=...     optimiser and schedule in NeMo's words: name, lr, sched.name, sched.warmup_steps ...
    steps=N           optimiser steps, or epochs=N
    batch_size=N      utterances in a batch of a process, or batch_duration=SECONDS   [16]
    select=val_wer    keep the weights that are best on the development sets (or val_loss); patience=N stops early
    devices=N         processes on this machine; precision=bf16-mixed, accumulate=N, loader.KEY=..., seed=N, ...

    A Whisper has settings of its own in configs/train/whisper.yaml.

    An interrupted training goes on when the same command is given again, from its last checkpoint (checkpoint_every=N).
    All settings: the how-to "Train experts", and the files under configs/train.
    """
    from ..training.jobs import is_first_process, started_together

    job = read_job(arguments)
    shown = arguments[0] if arguments and "=" not in arguments[0] else "finetune"
    job.check(shown)
    if check:
        click.echo(f"{shown}: nothing stands against it")
        return
    if started_together():
        job.run(lambda line: click.echo(line) if is_first_process() else None)
        return
    if job.num_nodes > 1:
        raise ConfigError(
            f"num_nodes={job.num_nodes}: start this command on every machine by torchrun or srun; "
            "see the how-to 'Train experts'"
        )
    run_logged(job, "the training", click.echo)


def _kind(base: object) -> type[FineTuningJob | WhisperFineTuningJob]:
    """The kind of job for a base; what is not there and does not end in ``.nemo`` may be meant as a folder."""
    from ..training.fine_tune import FineTuningJob
    from ..training.whisper_base import is_whisper
    from ..training.whisper_fine_tune import WhisperFineTuningJob

    path = Path(str(base))
    folder = is_whisper(path) or not (path.exists() or path.suffix == ".nemo")
    return WhisperFineTuningJob if base and folder else FineTuningJob


def read_job(arguments: Sequence[str]) -> FineTuningJob | WhisperFineTuningJob:
    """A job from ``[CONFIG.yaml] [KEY=VALUE]...``; its base decides of which kind.

    Raises:
        ConfigError: a setting that does not exist or is missing, or a bad file.
    """
    from .settings import given_settings

    plain = given_settings(arguments)
    kind = _kind(plain.get("base"))
    known = [item.name for item in dataclasses.fields(kind)]
    problems = [f"there is no setting {key!r}{did_you_mean(key, known)}" for key in plain if key not in known]
    problems += [f"{key}=... is missing" for key in ("base", "output", "train") if not plain.get(key)]
    if problems:
        raise ConfigError("; ".join(problems))
    if isinstance(plain["train"], (str, dict)):
        plain["train"] = [plain["train"]]
    if isinstance(plain.get("validation"), str):
        plain["validation"] = {"dev": plain["validation"]}
    optional = {key: value for key, value in plain.items() if value is not None}
    return kind(**optional)
