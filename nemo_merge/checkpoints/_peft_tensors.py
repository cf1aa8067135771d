"""The tensors of a PEFT adapter, sorted by what they do to which tensor of the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ._changes import Change, added_bias, dora, ia3, lora, replaced
from ._checkpoint import TensorSpec
from ._peft_config import CONFIG, PeftConfig
from ._torch_zip import StoredTensor, TorchZip

_PREFIX = "base_model.model."
_A, _B, _EMBEDDING_A, _EMBEDDING_B = "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"
_MAGNITUDE, _IA3 = "lora_magnitude_vector", "ia3_l"
_STRANGE = ("lora_", "ia3_", "prompt_", "token_adapter", "original_module")
_SPREADS = ("lora_rho_A", "lora_rho_B")  # of Bayesian LoRA; the factors beside them are its means
_PARTS = (_A, _B, _EMBEDDING_A, _EMBEDDING_B, _MAGNITUDE, _IA3)


@dataclass(frozen=True)
class Target:
    """A tensor of the base that the adapter changes.

    Attributes:
        name: its name as far as the adapter knows it; something may stand before it in the base.
        shape: its shape; -1 where the adapter does not say.
        change: what is done to it.
        optional: whether the base may lack it.
    """

    name: str
    shape: tuple[int, ...]
    change: Change
    optional: bool = False


@dataclass
class _Module:
    """The tensors of one adapted module by part (``lora_A`` ... and ``lora_B.bias``), as their names in the file."""

    name: str
    tensors: dict[str, str] = field(default_factory=dict)


class PeftTensors:
    """A file of an adapter's tensors.

    Args:
        path: the file.
        config: the adapter's configuration.

    Attributes:
        read: gives a tensor by its name in the file.
        specs: shape and type of every tensor.

    Raises:
        CheckpointError: damaged, not finite, or tensors that are no part of LoRA or IA3.
    """

    def __init__(self, path: Path, config: PeftConfig) -> None:
        self.path, self.config = path, config
        self.read, self.specs = _open(path)
        self._modules, self._full = self._sort()
        self._check_finite()

    def _sort(self) -> tuple[dict[str, _Module], dict[str, str]]:
        """Tensors by adapted module, and those that replace a tensor of the base, by that tensor's name."""
        modules: dict[str, _Module] = {}
        full: dict[str, str] = {}
        adapters: dict[str, str] = {}
        for name in self.specs:
            words = name.removeprefix(_PREFIX).split(".")
            if any(word in _SPREADS for word in words):
                continue
            place = next((index for index, word in enumerate(words) if word in _PARTS), None)
            if place is None:
                self._refuse_unknown(name, words)
                words = [word for word in words if word != "base_layer"]
                if "modules_to_save" in words:
                    index = words.index("modules_to_save")
                    words = words[:index] + words[min(index + 2, len(words) - 1) :]
                key = ".".join(words)
                if key in full:
                    raise CheckpointError(f"{self.path}: tensors {full[key]!r} and {name!r} stand for the same weights")
                full[key] = name
                continue
            rest = words[place + 1 :]
            leaf = rest.pop() if rest and rest[-1] in ("weight", "bias") else "weight"
            if rest:
                adapters.setdefault(".".join(rest), name)
            part = words[place] + (".bias" if leaf == "bias" else "")
            module = modules.setdefault(".".join(words[:place]), _Module(".".join(words[:place])))
            if part in module.tensors and len(adapters) < 2:
                raise CheckpointError(f"{self.path}: tensors {module.tensors[part]!r} and {name!r} are the same part")
            module.tensors[part] = name
        if len(adapters) > 1:
            raise CheckpointError(
                f"{self.path}: holds several adapters ({', '.join(sorted(adapters))}); save each into a folder of "
                "its own"
            )
        if not modules and not full:
            raise CheckpointError(f"{self.path}: holds no tensor")
        return modules, full

    def _refuse_unknown(self, name: str, words: list[str]) -> None:
        strange = next((word for word in words if word.startswith(_STRANGE)), None)
        if strange is not None:
            raise CheckpointError(
                f"{self.path}: tensor {name!r}: {strange!r} is no part of an adapter that can be merged; merge the "
                "adapter into its base with PEFT's merge_and_unload(), save the model and give that as the expert"
            )

    def _check_finite(self) -> None:
        for name, spec in self.specs.items():
            if not spec.dtype.is_floating_point:
                if any(name == held for module in self._modules.values() for held in module.tensors.values()):
                    raise CheckpointError(f"{self.path}: tensor {name!r} is {spec.dtype}, not a floating-point type")
            elif not bool(torch.isfinite(self.read(name)).all()):
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} holds values that are NaN or infinite; this adapter is broken"
                )

    def targets(self) -> Iterator[Target]:
        """What the adapter changes.

        Raises:
            CheckpointError: factors that do not fit each other or the configuration.
        """
        for module in self._modules.values():
            weight = _join(module.name, "weight")
            if _IA3 in module.tensors:
                yield from self._ia3_targets(module, weight)
                continue
            kind, a, b = self._lora_pair(module)
            shape = _product_shape(kind, self.specs[a].shape, self.specs[b].shape)
            scaling = self.config.scaling_of(module.name)
            plain = lora(kind, self.read(a), self.read(b), scaling)
            magnitude = module.tensors.get(_MAGNITUDE)
            if magnitude is None:
                if self.config.dora:
                    raise CheckpointError(
                        f"{self.path}: {module.name!r} has no {_MAGNITUDE}, but {CONFIG} says use_dora; save it again"
                    )
                yield Target(weight, shape, plain)
            else:
                outputs = shape[1] if kind in ("transposed", "embedding") else shape[0]
                if self.specs[magnitude].numel != outputs:
                    raise CheckpointError(
                        f"{self.path}: tensor {magnitude!r} has {self.specs[magnitude].numel} entries for {outputs} "
                        "outputs"
                    )
                vector = self.read(magnitude)
                yield Target(weight, shape, dora(plain, vector))
            if (bias := module.tensors.get(f"{_B}.bias")) is not None:
                change = added_bias(self.read(bias), scaling)
                yield Target(_join(module.name, "bias"), self.specs[bias].shape, change)
        for name, stored in self._full.items():
            yield Target(name, self.specs[stored].shape, replaced(self.read(stored)))

    def _lora_pair(self, module: _Module) -> tuple[str, str, str]:
        """Kind of layer and names of the two factors of a module, checked against each other and the configuration."""
        embedding = _EMBEDDING_A in module.tensors or _EMBEDDING_B in module.tensors
        parts = (_EMBEDDING_A, _EMBEDDING_B) if embedding else (_A, _B)
        missing = [part for part in parts if part not in module.tensors]
        if missing or (embedding and (_A in module.tensors or _B in module.tensors)):
            held = ", ".join(map(repr, module.tensors.values()))
            raise CheckpointError(
                f"{self.path}: {module.name!r} has {held} but no {' or '.join(missing) or 'single pair'}"
            )
        a, b = (module.tensors[part] for part in parts)
        (rank, *inputs), (_, inner, *kernel) = self._factor_shape(a), self._factor_shape(b)
        wanted = self.config.rank_of(module.name)
        if rank != wanted:
            raise CheckpointError(
                f"{self.path}: tensor {a!r} is {list(self.specs[a].shape)}, of rank {rank}, but {CONFIG} gives rank "
                f"{wanted}"
            )
        if inner != rank and len(inputs) > 1:
            raise CheckpointError(
                f"{self.path}: tensor {b!r} is {list(self.specs[b].shape)}: LoRA of a grouped convolution, which is no "
                "product of two matrices; leave grouped and depthwise convolutions out of target_modules"
            )
        if inner != rank or len(kernel) != len(inputs) - 1 or any(size != 1 for size in kernel):
            raise CheckpointError(
                f"{self.path}: tensors {a!r} {list(self.specs[a].shape)} and {b!r} {list(self.specs[b].shape)} do not "
                "multiply"
            )
        kind = "embedding" if embedding else "conv" if kernel else "transposed" if self.config.transposed else "linear"
        return kind, a, b

    def _factor_shape(self, name: str) -> tuple[int, ...]:
        shape = self.specs[name].shape
        if len(shape) < 2 or 0 in shape:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is {list(shape)}, which is no factor; it was saved from a sharded "
                "model, gather its weights and save it again"
            )
        return shape

    def _ia3_targets(self, module: _Module, weight: str) -> Iterator[Target]:
        stored = module.tensors[_IA3]
        vector, shape = self.read(stored).flatten(), self.specs[stored].shape
        # PEFT stores [1, in] or [out, 1] for linear layers, [1, channels, 1 ...] for convolutions.
        inputs = shape[0] == 1 and shape[1:2] != (1,) if len(shape) == 2 else self.config.scales_inputs(module.name)
        axis = int(inputs) if not (self.config.transposed and len(shape) == 2) else 1 - int(inputs)
        wanted = [-1] * len(shape)
        wanted[axis] = vector.numel()
        yield Target(weight, tuple(wanted), ia3(vector, axis))
        if not inputs:  # what scales the outputs scales the bias, if there is one
            yield Target(_join(module.name, "bias"), (vector.numel(),), ia3(vector, 0), optional=True)


def _join(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def _product_shape(kind: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return (a[1], b[0]) if kind in ("transposed", "embedding") else (b[0], *a[1:])


def _open(path: Path) -> tuple[Callable[[str], Tensor], dict[str, TensorSpec]]:
    """A function that reads a tensor of the file, and what all of them are."""
    if path.suffix == ".safetensors":
        try:
            handle = safe_open(path, framework="pt")
            specs = {}
            for name in handle.keys():  # noqa: SIM118  # a handle is no mapping
                tensor = handle.get_tensor(name)
                specs[name] = TensorSpec(tuple(tensor.shape), tensor.dtype)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged or cut short ({error}); fetch it again") from error
        return handle.get_tensor, specs
    zipped = TorchZip(path)
    content = zipped.content
    if not isinstance(content, Mapping) or not all(isinstance(value, StoredTensor) for value in content.values()):
        raise CheckpointError(f"{path}: not a state dict")
    zipped.check_all(content)
    return lambda name: zipped.read(content[name]), {name: stored.spec for name, stored in content.items()}
