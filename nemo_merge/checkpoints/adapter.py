"""PEFT adapters: ``adapter_config.json`` beside ``adapter_model.safetensors`` (or ``.bin``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, PlanError
from ._adapted import AdaptedCheckpoint
from ._bayesian import SIDECAR, read_prior_scale
from ._changes import Change
from ._checkpoint import RECORD, Checkpoint, Metadata, TensorSpec, Writer
from ._peft_config import CONFIG, PeftConfig, read_peft_config
from ._peft_tensors import PeftTensors, Target
from ._yaml import load

MODEL, OLD_MODEL = "adapter_model.safetensors", "adapter_model.bin"


def is_adapter(path: Path) -> bool:
    """Whether a folder, or a file of tensors, is an adapter of PEFT."""
    if path.is_dir():
        return (path / CONFIG).is_file() and not list(path.glob("model*.safetensors"))
    return path.suffix in (".safetensors", ".bin") and (path.parent / CONFIG).is_file()


class AdapterCheckpoint(Checkpoint):
    """A LoRA or IA3 adapter as PEFT saves it; alone it has no weights of a model, see :meth:`bind`.

    Bayesian LoRA is LoRA whose factors are posterior means, with ``lora_rho_A`` and ``lora_rho_B`` beside them
    (standard deviations are their softplus; a factor without has none) and the prior in ``bayesian_lora.json``.

    Names may have PEFT's prefix ``base_model.model.`` or not, and the adapter's name (``lora_A.default.weight``) too.

    Args:
        path: the folder, or the file of tensors in it.
        prefix: what stands before the adapter's names in the base, for example ``encoder.``; found by itself where only
            one fits.

    Raises:
        CheckpointError: damaged, incomplete, not finite, or of a type that is no change of the base's weights.
    """

    format = "adapter"

    def __init__(self, path: str | Path, prefix: str | None = None) -> None:
        self.path, self.prefix = Path(path), prefix
        folder = self.path if self.path.is_dir() else self.path.parent
        self.config: PeftConfig = read_peft_config(folder / CONFIG)
        self.file = self._find(folder)
        self._sidecar = folder / SIDECAR
        self._tensors = PeftTensors(self.file, self.config, read_prior_scale(self._sidecar))
        self.specs = self._tensors.specs
        self.ties = {}
        record = folder / RECORD
        provenance = load(record.read_text(encoding="utf-8"), record) if record.is_file() else None
        kind = f"{'Bayesian ' if self._tensors.bayesian else ''}{self.config.kind} adapter"
        self.metadata = Metadata("adapter", kind, self._summary, provenance=provenance)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors.read(name)

    @property
    def rank(self) -> int:
        """The largest rank of an adapted module; 0 for IA3."""
        return max([self.config.rank, *self.config.rank_pattern.values()])

    @property
    def files(self) -> list[Path]:
        return [self.file, self.config.path, *([self._sidecar] if self._sidecar.is_file() else [])]

    @property
    def details(self) -> Mapping[str, Any]:
        said = {"trained_on": self.config.base_model, "prefix": self.prefix}
        return {"adapter": {**self._summary, **{key: value for key, value in said.items() if value is not None}}}

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        raise PlanError([f"{self.path}: an adapter cannot be what a merge starts from; pass its base model as base="])

    def bind(self, base: Checkpoint) -> AdaptedCheckpoint:
        """The expert that base and adapter make.

        Args:
            base: the model that the adapter was trained on.

        Raises:
            CheckpointError: a tensor of the adapter has no place in the base, or several, or another shape.
        """
        targets = list(self._tensors.targets())
        prefix = self._find_prefix([target for target in targets if not target.optional], base)
        changes: dict[str, Change] = {}
        for target in targets:
            name = prefix + target.name
            if target.optional and name not in base.specs:
                continue
            owner = base.ties.get(name, name)
            if owner in changes:
                raise CheckpointError(
                    f"{self.path}: changes {name!r} twice, once as {owner!r}, whose data it shares in {base.path}; "
                    "train the adapter on one of them"
                )
            changes[owner] = target.change
        return AdaptedCheckpoint(base, self, changes)

    @property
    def _summary(self) -> dict[str, Any]:
        if not self._tensors.bayesian:
            return self.config.summary
        return {**self.config.summary, "posterior": {"prior_scale": self._tensors.prior_scale}}

    def _find(self, folder: Path) -> Path:
        if not self.path.is_dir():
            return self.path
        for name in (MODEL, OLD_MODEL):
            if (folder / name).is_file():
                return folder / name
        raise CheckpointError(f"{folder}: neither {MODEL} nor {OLD_MODEL} beside {CONFIG}; the adapter is incomplete")

    def _find_prefix(self, targets: list[Target], base: Checkpoint) -> str:
        """What stands before the adapter's names in the base: the one prefix under which all of them fit."""
        common: set[str] | None = None
        before: Target | None = None
        for target in targets:
            fits = self._prefixes(target, base)
            if common is not None and not common & fits:
                assert before is not None
                raise CheckpointError(
                    f"{self.path}: tensor {target.name!r} and {before.name!r} fit {base.path} under different "
                    "prefixes; is the adapter of this base?"
                )
            common, before = fits if common is None else common & fits, target
        assert common is not None
        if "" in common:
            return ""
        if len(common) > 1:
            one, other = sorted(common)[:2]
            name = targets[0].name
            raise CheckpointError(
                f"{self.path}: {name!r} may stand for {one + name!r} or for {other + name!r} of {base.path}; give the "
                f"expert as {{path: {self.path}, prefix: {one}}}, or save the adapter from the whole model"
            )
        return common.pop()

    def _prefixes(self, target: Target, base: Checkpoint) -> set[str]:
        named = {
            name.removesuffix(target.name): base.specs[name].shape
            for name in base.specs
            if name == target.name or name.endswith(f".{target.name}")
        }
        if self.prefix is not None:
            named = {prefix: shape for prefix, shape in named.items() if prefix == self.prefix}
        if not named:
            raise CheckpointError(
                f"{self.path}: changes {(self.prefix or '') + target.name!r}, which {base.path} does not have; is the "
                "adapter of this base?"
            )
        fits = {prefix for prefix, shape in named.items() if _fits(shape, target.shape)}
        if not fits:
            shape = list(next(iter(named.values())))
            raise CheckpointError(
                f"{self.path}: changes {target.name!r} as {list(target.shape)}, but it is {shape} in {base.path}; is "
                "the adapter of this base?"
            )
        return fits


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape is the one wanted, in which -1 stands for any size."""
    return len(shape) == len(wanted) and all(b in (-1, a) for a, b in zip(shape, wanted, strict=True))
