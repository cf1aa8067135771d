"""What both callbacks do that write a merged model: check, merge, validate, choose, publish, log."""

from __future__ import annotations

import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from ..checkpoints import CARD, RECORD, beside, check_output, container_for
from ..errors import ConfigError, NemoMergeError
from ..merging import plan_merge
from ..merging.api import Options, merge_variants, written_files
from ..merging.inputs import Source, open_inputs
from ..merging.plan import PlanOptions
from ..merging.ranks import Ranks
from ..methods import Method
from ._choice import Choice, Metrics
from ._settings import check_same_on_all_ranks, check_whole_model, path_of
from ._validation import REMEDY, averaged_weights, check_validation_data, logged_since, ranks_of, validate
from ._weights import save_model, swapped, trained

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

logger = logging.getLogger("nemo_merge")

Inputs = tuple[Source | None, Sequence[Source]]


@dataclass(frozen=True)
class Outcome:
    """One merge during a training.

    Attributes:
        step: optimiser steps that were done.
        merged: metrics of the merged model; empty where nothing is validated.
        trained: metrics of the trained model.
        kept: ``merged``, ``trained`` or ``both``; None when the output of an earlier merge is better.
        output: the file.
    """

    step: int
    merged: Metrics
    trained: Metrics
    kept: str | None
    output: Path


class MergingCallback(Callback, ABC):
    """Base of the callbacks that write a merged model.

    Attributes:
        outcomes: the merges that were done, in order.
    """

    trained_as = "trained"
    """What the trained model is called in logs, before its metrics."""

    def __init__(
        self,
        method: Method,
        output: str | Path,
        overwrite: bool,
        choice: Choice,
        options: PlanOptions,
        settings: Mapping[str, Any],
    ) -> None:
        """Notes what is to be done; ``settings`` are those that must be the same on all ranks."""
        if options.vocabulary == "union":
            raise ConfigError(
                "vocabulary=union gives the merged model more tokens than the model in training has, which could not "
                "be validated; merge afterwards with nemo-merge merge"
            )
        self.method, self.options, self.choice = method, options, choice
        self.output, self.overwrite, self.settings = path_of(output, "output"), overwrite, settings
        self.outcomes: list[Outcome] = []
        self.folder = self.output.with_name(f".{self.output.name}.training")
        """Where outputs are made, beside the place that they will have."""
        self._best: float | None = None
        self._published = False
        self._logged_before: Mapping[str, Any] = {}
        self._validated: tuple[tuple[int, ...], Metrics] | None = None
        self._failures: list[NemoMergeError] = []

    @property
    def state_key(self) -> str:
        """Tells several such callbacks of one trainer apart in its checkpoints."""
        return self._generate_state_key(output=self.output.name)

    # What the subclasses say.

    @abstractmethod
    def sample_inputs(self, module: LightningModule) -> Inputs:
        """Base and experts to check at the start, the model in training standing for what is not there yet."""

    @abstractmethod
    def needed_now(self, trainer: Trainer) -> bool:
        """Whether the last merge is still to be done at the end of training."""

    # When Lightning calls.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        check_same_on_all_ranks(type(self).__name__, self.settings, ranks_of(trainer))
        check_whole_model(trainer, type(self).__name__)
        if self.choice.terms and not trainer.enable_validation:
            raise ConfigError(f"{type(self).__name__}: the trainer validates nothing; {REMEDY}")
        with ranks_of(trainer).together():
            check_output(self.output, overwrite=True)  # its folder must be there

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ranks = ranks_of(trainer)
        with ranks.together():
            if not ranks.first:
                return
            for file in self._outputs() if not self._published else ():
                check_output(file, self.overwrite)
            self._prepare_folder()
            try:
                self._check(pl_module)
            except BaseException:
                self._clean_up()
                raise

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.choice.terms:
            check_validation_data(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged_before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        logged = logged_since(trainer, self._logged_before)
        self.choice.check(logged)
        if not trainer.sanity_checking:
            self._validated = (_state(trainer, pl_module), logged)
            self.after_validation(trainer, pl_module, logged)

    def after_validation(self, trainer: Trainer, module: LightningModule, metrics: Metrics) -> None:
        """Called after every validation of the training, the sanity check apart."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.needed_now(trainer):
            self.merge_now(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self._failures:
            raise self._failures[0]  # Lightning calls on_exception then
        if trainer.is_global_zero:
            self._clean_up()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero:
            self._clean_up()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "published": self._published}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self._published = state_dict["best"], state_dict["published"]

    # What is done.

    def merge_now(self, trainer: Trainer, module: LightningModule) -> None:
        """Merges, validates and keeps what the rule says; all ranks call this."""
        with isolate_rng(), self.tolerated(trainer), averaged_weights(trainer, self):
            self._merge(trainer, module, ranks_of(trainer))

    @contextmanager
    def tolerated(self, trainer: Trainer) -> Iterator[None]:
        """Keeps what goes wrong from ending the training, whose result is worth more than the merge.

        It is logged at once, and raised when the training is over and its checkpoints are written.
        """
        try:
            yield
        except NemoMergeError as error:
            self._failures.append(error)
            if not error.silent:
                logger.error("%s at step %d: %s", type(self).__name__, trainer.global_step, error)

    @abstractmethod
    def inputs(self, module: LightningModule, label: str) -> Inputs:
        """Base and experts of the merge that is done now."""

    def method_now(self) -> Method:
        """The method of the merge that is done now."""
        return self.method

    def _merge(self, trainer: Trainer, module: LightningModule, ranks: Ranks) -> None:
        both = self.choice.keep == "both"
        merged: Metrics = {}
        own: Metrics = {}
        candidate = self.folder / "merged" / self.output.name
        with ranks.together():
            if ranks.first:
                shutil.rmtree(candidate.parent, ignore_errors=True)
                candidate.parent.mkdir(parents=True)
                if both:
                    save_model(module, self.trained_output)
                base, experts = self.inputs(module, f"model in training at step {trainer.global_step}")
                options = Options(**{**vars(self.options), "progress": False, "overwrite": True})
                merge_variants(base, experts, {candidate: self.method_now()}, options)
        if self.choice.terms:
            own = self._trained_metrics(trainer, module, ranks)
            with swapped(module, candidate, ranks):
                merged = validate(trainer, ranks)
        takes = self.choice.takes_merged(merged, own)
        kept: str | None = "both" if both else "merged" if takes else "trained"
        if self.choice.terms and (self.choice.keep == "better" or callable(self.choice.keep)):
            score = self.choice.score(merged if takes else own)
            if self.choice.improves(score, self._best):
                self._best = score
            else:
                kept = None
        with ranks.together():
            if ranks.first and kept == "trained":
                self._withdraw()
                save_model(module, self.output)
            elif ranks.first and kept is not None:
                _publish(candidate.parent, self.output.parent)
        self._published = self._published or kept is not None
        self._report(trainer, Outcome(trainer.global_step, merged, own, kept, self.output))

    @property
    def trained_output(self) -> Path:
        """Where ``keep="both"`` saves the model as it was trained."""
        return self.output.with_name(f"{self.output.stem}.trained{self.output.suffix}")

    def _trained_metrics(self, trainer: Trainer, module: LightningModule, ranks: Ranks) -> Metrics:
        """Those of the last validation, if the model has not changed since."""
        if self._validated is None or self._validated[0] != _state(trainer, module):
            return validate(trainer, ranks)
        metrics = self._validated[1]
        everybody = ranks.all(metrics)
        return {name: sum(other[name] for other in everybody) / len(everybody) for name in metrics}

    def _outputs(self) -> list[Path]:
        files = written_files(self.output, self.method)
        both = [self.trained_output] if self.choice.keep == "both" else []
        return [*files, *both, beside(self.output, RECORD), beside(self.output, CARD)]

    def _prepare_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def _clean_up(self) -> None:
        """Removes the folder, whether the training ended well or not."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self, module: LightningModule) -> None:
        """Plans a merge with the model as it is now: whatever stands against the real one is found here."""
        with ExitStack() as stack:
            base, experts = open_inputs(*self.sample_inputs(module), stack)
            plan = plan_merge(base, experts, self.method, **vars(self.options))
            container_for(plan.template, experts, self.output)
            template = base if base is not None else experts[0]
            if plan.alignment is not None:
                own = trained(module, self.folder, "the model in training").vocabulary()
                theirs = template.vocabulary()
                if own is None or theirs is None or plan.alignment.added or own.tokens != theirs.tokens:
                    raise ConfigError(
                        f"the merged model would have the tokens of {template.path}, but the model in training has "
                        "others, or has them in another order, and could not be validated with merged weights; "
                        "pass vocabulary=base with a base that has the tokenizer of the model in training"
                    )

    def _withdraw(self) -> None:
        """Removes what an earlier merge wrote about the output that the trained model replaces."""
        for file in self._outputs():
            if file not in (self.output, self.trained_output):
                file.unlink(missing_ok=True)

    def _report(self, trainer: Trainer, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        metrics = {f"merge/{name}": value for name, value in outcome.merged.items()}
        metrics.update({f"{self.trained_as}/{name}": value for name, value in outcome.trained.items()})
        for own in trainer.loggers:
            own.log_metrics(metrics, step=trainer.global_step)
        # For checkpoints and early stopping that monitor the merged model.
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        if not trainer.is_global_zero:
            return
        shown = {name: metrics[name] for name in metrics if name.partition("/")[2] in self.choice.terms}
        text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        what = f"kept {outcome.kept}: {self.output}" if outcome.kept else f"{self.output} of an earlier step is better"
        logger.info("step %d: %s%s", outcome.step, f"{text}; " if text else "", what)


def _state(trainer: Trainer, module: LightningModule) -> tuple[int, ...]:
    """Differs when a step was made or a callback changed the weights."""
    return trainer.global_step, *(parameter._version for parameter in module.parameters())


def _publish(source: Path, target: Path) -> None:
    """Gives finished files their place; each appears whole, the record after the weights that it is about."""
    for file in sorted(source.iterdir(), key=lambda file: len(file.name)):
        os.replace(file, target / file.name)
