"""Transformers' trainer for Whisper: exact means over tokens, development sets, and the divergence of posteriors."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from ..errors import ConfigError
from ..scoring import word_error_rate
from ..scoring.text import normaliser
from .jobs import Report
from .repeatable import fingerprint
from .whisper_data import IGNORED, Collator, Examples, Shuffled

if TYPE_CHECKING:
    from .whisper_fine_tune import WhisperFineTuningJob
    from .whisper_model import WhisperParts

_MARK = "job.json"


class WhisperTrainer(Trainer):
    """Trains what :meth:`~nemo_merge.training.whisper_model.WhisperParts.prepare` marked.

    Args:
        job: what is done.
        parts: the model and what belongs to it.
        made: from :func:`~nemo_merge.training.whisper_arguments.arguments`.
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
