"""Makes runs repeatable, and resumed ones end as if they had not been interrupted.

Lightning's checkpoints hold weights, optimiser, schedule and counters. What they lack is added here: noise is drawn
from a seed of each step, so that there is no state of generators to restore; batches of the epoch that were seen before
are left out when a run goes on; and a checkpoint belongs to one job. They hold plain tensors only, and of the weights
those that are trained and the buffers: the rest is in the base.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import lightning.pytorch as lightning
import numpy
import torch

from .repeatable import STATE

if TYPE_CHECKING:
    from .repeatable import Resumable


class Skipping:
    """A sampler of batches that leaves out the first of its next pass."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.skip = 0

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        return islice(iter(self.sampler), skip, None)

    def set_epoch(self, epoch: int) -> None:
        """Lhotse shuffles every epoch differently."""
        self.sampler.set_epoch(epoch)


def own_generators(model: Any) -> list[random.Random]:
    """Generators that modules such as SpecAugment keep for themselves; nothing has seeded them."""
    return [module._rng for module in model.modules() if isinstance(getattr(module, "_rng", None), random.Random)]


class Continuation(lightning.Callback):
    """Makes the run of a job repeatable and resumable.

    Args:
        job: what is done.
    """

    state_key = STATE

    def __init__(self, job: Resumable) -> None:
        self.job, self.mark = job, job.fingerprint()
        self.samplers: list[Skipping] = []
        self.generators: list[random.Random] = []
        self.epoch = self.batches = 0

    def follow(self, model: Any) -> None:
        """Takes over a model's training data, and the generators that its modules keep for themselves."""
        loader = model._train_dl
        if not isinstance(loader.dataset, torch.utils.data.IterableDataset):
            sampler = Skipping(loader.sampler)
            self.samplers = [sampler]
            # As NeMo makes it; the sampler gives whole batches.
            model._train_dl = torch.utils.data.DataLoader(
                loader.dataset,
                sampler=sampler,
                batch_size=None,
                num_workers=loader.num_workers,
                pin_memory=loader.pin_memory,
            )
        model.strict_loading = False  # checkpoints lack what does not change
        self.generators = own_generators(model)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        place = [self.job.seed, trainer.global_rank, trainer.current_epoch, batch_idx]
        seed = int(numpy.random.SeedSequence(place).generate_state(1)[0])
        torch.manual_seed(seed)
        numpy.random.seed(seed)
        random.seed(seed)
        for generator in self.generators:
            generator.seed(seed)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.epoch, self.batches = trainer.current_epoch, batch_idx + 1

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.mark, "epoch": self.epoch, "batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.batches = state_dict["epoch"], state_dict["batches"]
        for sampler in self.samplers:
            sampler.set_epoch(self.epoch)
            sampler.skip = self.batches

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        named = module.named_parameters(remove_duplicate=False)
        frozen = {name for name, value in named if not value.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name not in frozen}
        for key in ("hyper_parameters", "hparams_name", "hparams_type"):  # the model's configuration, as objects
            checkpoint.pop(key, None)
        # A checkpoint is made after the step and before Lightning counts the batch: it would do the batch again.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["current"], progress["total"]):
            counts["processed"] = counts["completed"] = counts["ready"]
