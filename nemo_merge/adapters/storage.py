"""Adapters on disk, in PEFT's format; Bayesian ones hold their posteriors beside the means."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..checkpoints.adapter import MODEL, AdapterCheckpoint
from ..checkpoints.memory import StateDictCheckpoint
from ..errors import CheckpointError, ConfigError, OutputError
from .attachment import adapter_layers, the_adapter
from .bayesian_lora import BayesianLoraConfig, inject_posterior
from .lora import inject, remove_adapter
from .nemo_file import plain_state_dict

CONFIG = "adapter_config.json"
POSTERIOR = "bayesian_lora.json"
SPREADS = ("lora_rho_A", "lora_rho_B")
_PREFIX = "base_model.model."
# What PEFT's own configuration says already.
_IN_PEFT = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern",
    "init_lora_weights",
)  # fmt: skip


def save_adapter(
    model: nn.Module, directory: str | Path, adapter_name: str | None = None, *, overwrite: bool = False
) -> Path:
    """Saves an adapter as PEFT does, so that ``PeftModel.from_pretrained(base, directory)`` and a merge can read it.

    A Bayesian adapter's means are its ``lora_A`` and ``lora_B``; ``lora_rho_A`` and ``lora_rho_B`` lie beside them in
    the same file, with ``sigma = softplus(rho)``, and ``bayesian_lora.json`` has the prior and the other settings. PEFT
    ignores both. Under several processes, call it in the first one only.

    Args:
        model: the model that the adapter was injected into.
        directory: the folder; it appears whole.
        adapter_name: needed where several are active.
        overwrite: whether to replace a folder that is there.

    Returns:
        The folder.

    Raises:
        ConfigError: no such adapter.
        OutputError: the folder exists, or cannot be written.
    """
    name = the_adapter(model, adapter_name)
    posterior = posterior_of(model, name)
    document = None
    if posterior is not None:
        values = dataclasses.asdict(posterior)
        document = {key: value for key, value in values.items() if key not in _IN_PEFT}
    return _write(model, name, Path(directory), _tensors(model, name), document, overwrite)


def export_mean_adapter(
    model: nn.Module, directory: str | Path, adapter_name: str | None = None, *, overwrite: bool = False
) -> Path:
    """Saves the means of a Bayesian adapter as plain LoRA, for loaders that refuse tensors they do not know.

    Its outputs are those of the model in evaluation, to the bit.

    Args, returns and raises as :func:`save_adapter`.
    """
    name = the_adapter(model, adapter_name)
    tensors = {key: value for key, value in _tensors(model, name).items() if not key.endswith(SPREADS)}
    return _write(model, name, Path(directory), tensors, None, overwrite)


def load_adapter(
    model: nn.Module,
    directory: str | Path,
    trainable: bool = False,
    adapter_name: str = "default",
    *,
    posteriors: bool | None = None,
    nemo_file: str = "merge",
    still_batch_norm: bool = True,
) -> list[str]:
    """Injects a saved adapter into its base.

    Args:
        model: the base; it is changed in place.
        directory: what :func:`save_adapter` or PEFT's ``save_pretrained`` wrote.
        trainable: whether to train it further; a Bayesian adapter then goes on bit by bit from where it was.
        adapter_name: its name in the model.
        posteriors: True: it must be Bayesian; False: its means are enough; by default whatever the folder holds.
        nemo_file: what ``save_to`` writes, as for :func:`~nemo_merge.adapters.inject_lora`.
        still_batch_norm: likewise.

    Returns:
        Names of the adapted modules.

    Raises:
        CheckpointError: damaged, incomplete, without the posteriors that are asked for, or an adapter of another model.
            The model is as it was.
    """
    from peft import LoraConfig

    folder = Path(directory)
    adapter = AdapterCheckpoint(folder)
    if adapter.config.kind != "LORA":
        raise CheckpointError(f"{folder}: an adapter of type {adapter.config.kind}, not LoRA")
    tensors = {name.removeprefix(_PREFIX): adapter[name] for name in adapter.specs}
    settings = _read_posterior(folder, tensors, posteriors)
    if settings is None:
        tensors = {name: value for name, value in tensors.items() if not name.endswith(SPREADS)}
    prefix = _find_part(model, adapter, tensors)
    tensors = {f"{prefix}{name}": value for name, value in tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # keys that only another version of PEFT knows
        config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    if prefix:  # names are known, and patterns for a part may select more in the whole
        config.target_modules = sorted({name.split(".lora_")[0] for name in tensors})
        config.exclude_modules = None
    if settings is None:
        names = inject(model, config, adapter_name, nemo_file, still_batch_norm)
    else:
        common = {key: getattr(config, key) for key in _IN_PEFT}
        posterior = _posterior_config(folder, {**common, **settings})
        names = inject_posterior(model, config, posterior, adapter_name, nemo_file, still_batch_norm, trainable)
    try:
        _fill(model, folder, adapter_name, tensors)
    except BaseException:
        remove_adapter(model, adapter_name)
        raise
    for _, layer in adapter_layers(model):
        layer.set_adapter(adapter_name)
        if not trainable:
            layer.requires_grad_(False)
    return names


def posterior_of(model: nn.Module, adapter_name: str) -> BayesianLoraConfig | None:
    """Settings of an adapter, if it is Bayesian."""
    layers = (layer for _, layer in adapter_layers(model))
    return next((found for layer in layers if (found := getattr(layer, "posteriors", {}).get(adapter_name))), None)


def _tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {f"{_PREFIX}{key}": value.detach().cpu().contiguous().clone() for key, value in state.items()}


def _write(
    model: nn.Module, name: str, folder: Path, tensors: Mapping[str, Tensor], document: Any, overwrite: bool
) -> Path:
    from safetensors.torch import save_file

    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: exists; give overwrite=True or another folder")
    config: Any = copy.copy(model.peft_config[name])  # type: ignore[index]
    config.inference_mode = True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        config.save_pretrained(str(beside))
        save_file(dict(tensors), str(beside / MODEL), metadata={"format": "pt"})
        if document is not None:
            (beside / POSTERIOR).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        beside.chmod(0o755)
        _put(beside, folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _put(beside: Path, folder: Path) -> None:
    """Renames a finished folder; one that is there is swapped, so that no mixture of both is ever seen."""
    if not folder.exists():
        os.rename(beside, folder)
        return
    old = beside.with_name(f"{beside.name}.old")
    os.rename(folder, old)
    try:
        os.rename(beside, folder)
    except OSError:
        os.rename(old, folder)
        raise
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink()


def _read_posterior(folder: Path, tensors: Mapping[str, Tensor], wanted: bool | None) -> dict[str, Any] | None:
    if wanted is False:
        return None
    path = folder / POSTERIOR
    spreads = [name for name in tensors if name.endswith(SPREADS)]
    if not path.is_file() or not spreads:
        if wanted:
            missing = f"no {POSTERIOR}" if spreads else f"no tensor {SPREADS[0]} in {MODEL}"
            raise CheckpointError(
                f"{folder}: has no posteriors ({missing}); save a Bayesian adapter with save_adapter(), "
                "export_mean_adapter() keeps the means only"
            )
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    known = {field.name for field in dataclasses.fields(BayesianLoraConfig)} - set(_IN_PEFT)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    if strange := set(values) - known:
        raise CheckpointError(f"{path}: setting {min(strange)!r} is unknown; it may be from a newer version")
    return values


def _posterior_config(folder: Path, values: Mapping[str, Any]) -> BayesianLoraConfig:
    try:
        return BayesianLoraConfig(**values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{folder / POSTERIOR}: {error}") from error


def _find_part(model: nn.Module, adapter: AdapterCheckpoint, tensors: Mapping[str, Tensor]) -> str:
    """What stands before the adapter's names in the model, ``""`` or for example ``"encoder."``.

    Refuses an adapter of another model, before anything is changed.
    """
    label = f"<{type(model).__name__}>"
    bound = adapter.bind(StateDictCheckpoint(plain_state_dict(model, merge=False), label))
    for name, value in tensors.items():
        if name.endswith(SPREADS):
            factor = f"{name.replace('lora_rho_', 'lora_')}.weight"
            if factor not in tensors or tensors[factor].shape != value.shape:
                raise CheckpointError(f"{adapter.path}: tensor {name!r} does not have the shape of {factor!r}")
    modules = {name.split(".lora_")[0] for name in tensors}
    changed = next(iter(bound.changes)).rpartition(".")[0]
    return changed.removesuffix(max((name for name in modules if changed.endswith(name)), key=len))


def _fill(model: nn.Module, folder: Path, adapter_name: str, tensors: Mapping[str, Tensor]) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wanted = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    for problem, names in (("lacks", wanted.keys() - tensors.keys()), ("also holds", tensors.keys() - wanted.keys())):
        if names:
            raise CheckpointError(
                f"{folder}: {problem} tensor {min(names)!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                + f"; {CONFIG} and {MODEL} do not belong together, or the adapter is of another base"
            )  # fmt: skip
    for name, value in wanted.items():
        if value.shape != tensors[name].shape:
            raise CheckpointError(
                f"{folder}: tensor {name!r} is {list(tensors[name].shape)}, but {CONFIG} makes it {list(value.shape)}"
            )
    set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter_name)
