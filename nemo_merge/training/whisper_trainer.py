"""Transformers' trainer for Whisper: exact means over tokens, development sets, and the divergence of posteriors."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from ..errors import ConfigError, did_you_mean
from ..scoring import word_error_rate
from ..scoring.text import normaliser
from .jobs import Report
from .repeatable import fingerprint
from .whisper_data import IGNORED, Collator, Examples, Shuffled

if TYPE_CHECKING:
    from .whisper_fine_tune import WhisperFineTuningJob
    from .whisper_model import WhisperParts

_MARK = "job.json"
_REPORTS = 8
# Settings of the job in transformers' words; its `trainer` has the others.
_OWN = ("output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs",
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "weight_decay",
        "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16", "gradient_checkpointing",
        "activation_checkpointing", "seed",
        "data_seed", "dataloader_num_workers", "use_cpu", "eval_strategy", "eval_steps", "save_strategy", "save_steps",
        "save_total_limit", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
        "remove_unused_columns", "resume_from_checkpoint")  # fmt: skip


class WhisperTrainer(Trainer):
    """Trains what :meth:`~nemo_merge.training.whisper_model.WhisperParts.prepare` marked.

    Args:
        job: what is done.
        parts: the model and what belongs to it.
        made: from :func:`arguments`.
        data: to train on.
        sets: development sets by name.
        collator: makes batches.
        report: called with a line at a time.
    """

    def __init__(
        self,
        job: WhisperFineTuningJob,
        parts: WhisperParts,
        made: TrainingArguments,
        data: Examples,
        sets: Mapping[str, Examples],
        collator: Collator,
        report: Report,
    ) -> None:
        callbacks: list[TrainerCallback] = [Reporter(report)]
        if job.patience is not None:
            callbacks.append(EarlyStoppingCallback(job.patience))
        super().__init__(
            model=parts.model,
            args=made,
            data_collator=collator,
            train_dataset=data,
            eval_dataset=dict(sets) or None,
            callbacks=callbacks,
            compute_loss_func=partial(token_loss, smoothing=made.label_smoothing_factor),
        )
        self.job, self.parts, self.sets, self.report = job, parts, sets, report

    def _get_train_sampler(self, train_dataset: Any = None) -> Shuffled:
        assert isinstance(self.train_dataset, Examples)
        return Shuffled(self.train_dataset.examples, self.job.seed)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """As transformers chooses them, without the spreads of posteriors, which decay would make larger."""
        return [name for name in super().get_decay_parameter_names(model) if "lora_rho" not in name]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over tokens, and for posteriors ``beta KL``, which one step sees once."""
        loss: Any = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if self.job.trainable == "bayesian_lora":
            from .. import adapters
            from ..adapters.kl import beta_at

            beta = beta_at(adapters.BayesianLoraConfig(**self.job.adapter), self.state.global_step)
            loss = loss + beta * adapters.kl_divergence(self.parts.model) / self.current_gradient_accumulation_steps
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss of every development set and, if the job goes by it, the word error rate; then their means."""
        found = {name: self._validate(data) for name, data in self.sets.items()}
        names = next(iter(found.values())).keys()
        means = {key: sum(values[key] for values in found.values()) / len(found) for key in names}
        metrics = {f"eval_{name}_{key}": value for name, values in found.items() for key, value in values.items()}
        metrics |= {f"eval_mean_{key}": value for key, value in means.items()}
        self.log(dict(metrics))
        self.report(
            f"step {self.state.global_step}: " + ", ".join(f"{key} {value:.4f}" for key, value in means.items())
        )
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _validate(self, data: Examples) -> dict[str, float]:
        """Means over one set; every process takes a part of it, and none takes an utterance twice."""
        model: Any = self.model
        training = model.training
        model.eval()
        mine = range(self.args.process_index, len(data), self.args.world_size)
        loader = DataLoader(
            Subset(data, mine),
            self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        sums = torch.zeros(4, dtype=torch.float64)  # loss, tokens, wrong words, words
        examples = iter([data.examples[index] for index in mine])
        for batch in loader:
            here = [next(examples) for _ in range(len(batch["labels"]))]
            batch = {key: value.to(self.args.device) for key, value in batch.items()}
            labels = batch.pop("labels")
            with torch.no_grad(), self.compute_loss_context_manager():
                logits = model(**batch).logits
                sums[0] += float(token_loss({"logits": logits}, labels, 1))
                sums[1] += int((labels != IGNORED).sum())
                if self.job.select == "val_wer":
                    heard = self._transcribe(batch, here)
                    sums[2:] += torch.tensor(
                        _words([item.utterance.text or "" for item in here], heard, self.job, here)
                    )
        model.train(training)
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device), "sum")
        loss, tokens, wrong, words = sums.tolist()
        measured = {"val_loss": loss / max(1.0, tokens)}
        return measured | ({"val_wer": wrong / max(1.0, words)} if self.job.select == "val_wer" else {})

    def _transcribe(self, batch: Mapping[str, torch.Tensor], examples: Sequence[Any]) -> list[str]:
        asked: dict[str, Any] = {}
        if self.parts.languages:
            asked = {"language": [item.language for item in examples], "task": examples[0].task}
        tokens = self.parts.model.generate(
            batch["input_features"], attention_mask=batch["attention_mask"], num_beams=1, **asked
        )
        return list(self.parts.tokenizer.batch_decode(tokens, skip_special_tokens=True))


class Reporter(TrainerCallback):
    """Tells how far training is, and ends it when its loss is no number."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.started, self.first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss, step = float(logs["loss"]), state.global_step
        if not math.isfinite(loss):
            raise ConfigError(
                f"the loss is {loss} at step {step}; take a smaller optim.lr, or precision bf16-mixed "
                "instead of 16-mixed"
            )
        left = (time.monotonic() - self.started) / max(1, step - self.first) * (state.max_steps - step)
        self.report(f"step {step} of {state.max_steps}, loss {loss:.3f}, {left:.0f} s left")


def token_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None, smoothing: float = 0.0) -> Any:
    """Cross-entropy, summed over the tokens of a batch and divided by the tokens of the whole step.

    So the batches that make a step, here and in other processes, count by their tokens, as if they were one.

    Args:
        outputs: with ``logits`` [batch, tokens, vocabulary].
        labels: [batch, tokens]; those of padding do not count.
        num_items_in_batch: tokens of the step; those of this batch by default.
        smoothing: of the labels.
    """
    logits = outputs["logits"].flatten(0, 1).float()
    total = torch.nn.functional.cross_entropy(
        logits, labels.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )
    return total / (num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum())


def arguments(job: WhisperFineTuningJob, utterances: int) -> TrainingArguments:
    """A job in transformers' words.

    Args:
        job: what to do.
        utterances: to train on.

    Raises:
        ConfigError: a setting that transformers does not have or refuses.
    """
    known = [item.name for item in dataclasses.fields(TrainingArguments)]
    for key in job.trainer:
        if key in _OWN:
            raise ConfigError(f"trainer: {key} is set by the job's own settings")
        if key not in known:
            raise ConfigError(f"trainer: transformers has no setting {key!r}{did_you_mean(str(key), known)}")
    try:
        made = TrainingArguments(**{**dict(_fixed(job)), **dict(_schedule(job, utterances)), **job.trainer})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"transformers refuses the settings: {str(error).splitlines()[0]}") from error
    if made.n_gpu > 1:
        made._n_gpu = 1  # one process is one GPU: DataParallel, which transformers would choose, is slow and not exact
    return made


def begin(job: WhisperFineTuningJob, first: bool) -> str | None:
    """The checkpoint from which an interrupted run of this job goes on; without one, checkpoints of others go.

    Args:
        job: what is done.
        first: whether this is the process that writes.

    Raises:
        ConfigError: there are checkpoints of another job.
    """
    mark = job.checkpoints / _MARK
    whole = [path for path in job.checkpoints.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    if job.resume and whole:
        try:
            known = json.loads(mark.read_text(encoding="utf-8"))["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            known = None
        if known != fingerprint(job):
            raise ConfigError(
                f"{job.checkpoints}: is of a run with other settings; remove it, choose another output, or pass "
                "resume=false to start anew"
            )
        return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2])))
    if first:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
        job.checkpoints.mkdir(parents=True)
        mark.write_text(json.dumps({"fingerprint": fingerprint(job)}) + "\n", encoding="utf-8")
    return None


def _fixed(job: WhisperFineTuningJob) -> Iterator[tuple[str, Any]]:
    yield from {
        "output_dir": str(job.checkpoints),
        "per_device_train_batch_size": job.batch_size,
        "per_device_eval_batch_size": job.batch_size,
        "gradient_accumulation_steps": job.accumulate,
        "max_grad_norm": job.gradient_clip,
        "bf16": job.precision == "bf16-mixed",
        "fp16": job.precision == "16-mixed",
        "use_cpu": job.accelerator == "cpu",
        "dataloader_num_workers": job.workers,
        "seed": job.seed,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "report_to": "none",
    }.items()
    if job.gradient_checkpointing:
        known = [item.name for item in dataclasses.fields(TrainingArguments)]
        name = next(item for item in ("activation_checkpointing", "gradient_checkpointing") if item in known)
        yield name, True
        yield f"{name}_kwargs", {"use_reentrant": False}  # works where embeddings are frozen


def _schedule(job: WhisperFineTuningJob, utterances: int) -> Iterator[tuple[str, Any]]:
    sched = dict(job.optim.get("sched") or {"name": "linear"})
    betas = job.optim.get("betas", (0.9, 0.999))
    batches = math.ceil(utterances / (job.batch_size * int(os.environ.get("WORLD_SIZE", "1"))))
    total = job.steps or math.ceil(batches / job.accumulate) * (job.epochs or 1)
    every = job.validate_every or max(1, total // 10)
    yield from {
        "max_steps": job.steps or -1,
        "num_train_epochs": job.epochs or 1,
        "optim": job.optim.get("name", "adamw_torch"),
        "learning_rate": job.optim["lr"],
        "adam_beta1": betas[0],
        "adam_beta2": betas[1],
        "adam_epsilon": job.optim.get("eps", 1e-8),
        "weight_decay": job.optim.get("weight_decay", 0.0),
        "lr_scheduler_type": sched.pop("name"),
        "warmup_steps": sched.pop("warmup_steps", 0),
        "lr_scheduler_kwargs": sched,
        "logging_steps": max(1, total // _REPORTS),
        "eval_strategy": "steps" if job.validation else "no",
        "eval_steps": every if job.validation else None,
        "save_strategy": "steps" if job.select or job.checkpoint_every else "no",
        "save_steps": every if job.select else job.checkpoint_every or 500,
        "save_total_limit": 2,
        "load_best_model_at_end": job.select is not None,
        "metric_for_best_model": f"mean_{job.select}" if job.select else None,
        "greater_is_better": False if job.select else None,
    }.items()


def _words(
    texts: Sequence[str], heard: Sequence[str], job: WhisperFineTuningJob, examples: Sequence[Any]
) -> list[float]:
    """Wrong words and words of a batch."""
    steps = [normaliser(job.text, item.language) for item in examples]
    counts = word_error_rate(
        [step(text) for step, text in zip(steps, texts, strict=True)],
        [step(text) for step, text in zip(steps, heard, strict=True)],
    )
    return [float(counts.errors), float(counts.reference_length)]
