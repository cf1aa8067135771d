"""Merges the model in training with other experts, at its end or on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..merging.inputs import Source
from ..merging.plan import BatchNorm, PlanOptions, Rules, Then
from ..merging.recalibration import Audio
from ..methods import Method
from ._choice import Choice, Keep, Metrics, Mode, Rule
from ._merging import Inputs, MergingCallback
from ._settings import method_of, natural
from ._weights import trained

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class MergeCallback(MergingCallback):
    """Merges the model in training with other experts, validates both, and keeps the better one.

    The training itself is left alone: merged weights are in the model only while they are validated, and weights,
    statistics, optimiser, random numbers and logged metrics are afterwards what they were, to the bit.

    Example:
        >>> callback = MergeCallback("base.nemo", ["news.nemo"], "ties", density=0.3, output="merged.nemo")

    Args:
        base: the model that all experts, the one in training included, were fine-tuned from; None for methods that need
            none.
        experts: the other experts: paths of checkpoints or adapters, or mappings with ``path`` and how to read it. The
            model in training comes before them, also in ``weights``; without others it is merged with the base alone.
        method: name of a merging method, a mapping with ``name`` and parameters, or a method.
        output: the ``.nemo`` to write; it appears whole, and stock NeMo restores it.
        overwrite: replace an output that exists.
        every_n_validations: merge after every so many validations too; by default only at the end.
        at_end: merge when training ends.
        keep: ``better`` keeps the better model of all that were validated, merged or trained; ``merged`` the newest
            merged one; ``both`` also saves the trained model beside it (``OUTPUT.trained.nemo``). Or a function that is
            given the metrics of the merged and of the trained model and says whether the merged one is kept.
        monitor: metric of validation that decides, a mapping from metrics to weights for their weighted sum, or None to
            validate nothing.
        mode: ``min`` or ``max``.
        min_delta: by how much the merged model must be better; negative where it may be a little worse.
        limits: by how much it may be worse in other metrics.
        rules: as of :func:`nemo_merge.merge`.
        then: as of :func:`nemo_merge.merge`.
        batch_norm: as of :func:`nemo_merge.merge`.
        audio: as of :func:`nemo_merge.merge`.
        dtype: as of :func:`nemo_merge.merge`.
        vocabulary: as of :func:`nemo_merge.merge`; ``union`` is refused.
        device: as of :func:`nemo_merge.merge`.
        workers: as of :func:`nemo_merge.merge`.
        **parameters: parameters of the method, ``scale`` and ``weights`` among them.

    Raises:
        ConfigError: a setting, method or parameter that does not exist, or a value out of range.
    """

    trained_as = "expert"

    def __init__(
        self,
        base: Source | None,
        experts: Sequence[Source] = (),
        method: str | Method | Mapping[str, Any] = "boosted_tsvm",
        *,
        output: str | Path,
        overwrite: bool = False,
        every_n_validations: int | None = None,
        at_end: bool = True,
        keep: Keep | Rule = "better",
        monitor: str | Mapping[str, float] | None = "val_wer",
        mode: Mode = "min",
        min_delta: float = 0.0,
        limits: Metrics | None = None,
        rules: Rules = (),
        then: Then = (),
        batch_norm: BatchNorm = "average",
        audio: Audio | None = None,
        dtype: str | None = None,
        vocabulary: Any = "strict",
        device: str = "cpu",
        workers: int | None = None,
        **parameters: Any,
    ) -> None:
        settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        if isinstance(experts, (str, Path, Mapping)):
            raise ConfigError("experts must be a list, even if there is only one")
        self.base, self.experts = base, list(experts)
        self.every, self.at_end = natural(every_n_validations, "every_n_validations"), at_end
        if self.every is None and not at_end:
            raise ConfigError("at_end=false and no every_n_validations: nothing would ever be merged")
        chosen = method_of(method, parameters, [key for key in settings if key != "parameters"])
        chosen.resolved_weights(1 + len(self.experts))
        super().__init__(
            chosen,
            output,
            overwrite,
            Choice(keep, monitor, mode, min_delta, limits or {}),
            PlanOptions(rules, then, batch_norm, audio, dtype, device, workers, vocabulary),
            settings,
        )
        self._validations = 0
        self._merged_at: int | None = None

    def after_validation(self, trainer: Trainer, module: LightningModule, metrics: Metrics) -> None:
        self._validations += 1
        if self.every is not None and self._validations % self.every == 0:
            self._merged_at = trainer.global_step
            self.merge_now(trainer, module)

    def needed_now(self, trainer: Trainer) -> bool:
        return self.at_end and self._merged_at != trainer.global_step

    def inputs(self, module: LightningModule, label: str) -> Inputs:
        both = self.choice.keep == "both"
        return self.base, [self.trained_output if both else trained(module, self.folder, label), *self.experts]

    def sample_inputs(self, module: LightningModule) -> Inputs:
        return self.base, [trained(module, self.folder, "model in training"), *self.experts]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._validations = state_dict["validations"]
