"""LoRA in a model of NeMo, Hugging Face or plain torch, through PEFT; the model stays an object of its own class."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import ConfigError, did_you_mean
from .attachment import (
    adapter_layers,
    adapter_names,
    adapters_of,
    attach,
    attachment_of,
    detach,
    merge_layers,
    the_adapter,
)
from .batch_norm import still_batch_norm as keep_still
from .nemo_file import PlainSaving
from .optimisers import use_parameter_groups
from .targets import default_targets, find_targets

DEFAULTS = {"r": 32, "lora_alpha": 64, "lora_dropout": 0.05}
NEMO_FILES = ("merge", "strip")
# Starting points that leave the base's weights as they are. The others (PiSSA, OLoRA, CorDA, LoftQ ...) change them,
# and then neither removing the adapter nor saving it alone gives what one expects.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_UNSUPPORTED = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication")


def inject_lora(
    model: nn.Module,
    config: Any = None,
    adapter_name: str = "default",
    *,
    nemo_file: str = "merge",
    still_batch_norm: bool = True,
    **options: Any,
) -> list[str]:
    """Injects LoRA (Hu et al., 2022, arXiv 2106.09685) into a model and freezes everything else.

    A NeMo model then trains with a stock ``trainer.fit(model)``: its optimiser gets only what is trained, the
    statistics of batch normalisation stay still, and ``save_to`` keeps writing files that stock NeMo restores.

    Args:
        model: the whole model, so that names in a saved adapter are those of its checkpoints. It is changed in place.
        config: ``peft.LoraConfig`` or a mapping of its arguments; by default rank 32, alpha 64, dropout 0.05.
        adapter_name: a model can have several; the new one becomes the active one.
        nemo_file: what ``save_to`` writes while the adapter is inside: ``"merge"``, the adapted weights, or
            ``"strip"``, the base's.
        still_batch_norm: whether to keep the statistics of batch normalisation still.
        options: arguments of ``peft.LoraConfig``, for example ``r=8, target_modules=...``; they go before ``config``.

    Returns:
        Names of the adapted modules.

    Raises:
        ConfigError: a bad option, targets that select nothing, or a name that is taken. The model is as it was.
    """
    return inject(model, _lora_config(model, config, options), adapter_name, nemo_file, still_batch_norm)


def inject(
    model: nn.Module, config: Any, adapter_name: str, nemo_file: str = "merge", still_batch_norm: bool = True
) -> list[str]:
    """As :func:`inject_lora`, from a complete ``peft.LoraConfig``."""
    from peft import inject_adapter_in_model

    _check(model, config, adapter_name, nemo_file)
    targets = find_targets(model, config)
    attachment = attachment_of(model)
    first = attachment is None
    if attachment is None:
        attachment = attach(model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            inject_adapter_in_model(config, model, adapter_name)
    except BaseException:
        remove_adapter(model, None if first else adapter_name)
        raise
    for _, layer in adapter_layers(model):
        layer.set_adapter(adapter_name)
        layer.train(layer.get_base_layer().training)  # PEFT's layers start in training mode, whatever the model's is
    if first:
        if still_batch_norm:
            attachment.handles.append(keep_still(model))
        if callable(getattr(model, "save_to", None)):
            attachment.handles.append(PlainSaving(model, nemo_file == "merge"))
        if callable(getattr(model, "setup_optimizer_param_groups", None)):
            attachment.handles.append(use_parameter_groups(model))
    return targets


def merge_adapter(model: nn.Module) -> None:
    """Folds the active adapters into the base's weights and removes all adapters; names are as before the injection.

    Raises:
        ConfigError: the model has no adapter.
        MergeError: an adapter is not finite; the model is as it was.
    """
    adapters_of(model)
    merge_layers(dict(adapter_layers(model)))
    _unload(model)


def remove_adapter(model: nn.Module, adapter_name: str | None = None) -> None:
    """Removes one adapter, or all; with the last one the model is as it was before, to the bit.

    Raises:
        ConfigError: no such adapter.
    """
    if adapter_name is not None:
        the_adapter(model, adapter_name)
    if adapter_name is None or adapter_names(model) == [adapter_name]:
        for _, layer in adapter_layers(model):
            if layer.merged:
                layer.unmerge()
        _unload(model)
        return
    attachment = attachment_of(model)
    if attachment is not None and (term := attachment.terms.pop(adapter_name, None)) is not None:
        term.remove()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
        for _, layer in adapter_layers(model):
            layer.delete_adapter(adapter_name)
    del model.peft_config[adapter_name]  # type: ignore[union-attr, operator]


def _unload(model: nn.Module) -> None:
    for name, layer in list(adapter_layers(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    detach(model)


def _lora_config(model: nn.Module, config: Any, options: Mapping[str, Any]) -> Any:
    from peft import LoraConfig

    known = [field.name for field in dataclasses.fields(LoraConfig)]
    for key in (*options, *(config if isinstance(config, Mapping) else ())):
        if key not in known:
            raise ConfigError(f"LoRA has no option {key!r}{did_you_mean(key, known)}")
    if config is None or isinstance(config, Mapping):
        config = LoraConfig(**{**DEFAULTS, **(config or {}), **options})
    elif isinstance(config, LoraConfig):
        config = dataclasses.replace(config, **options)
    else:
        raise ConfigError(f"config is a {type(config).__name__}, not a peft.LoraConfig or a mapping of its arguments")
    if config.target_modules is None:
        config.target_modules = default_targets(model)
    return config


def _check(model: nn.Module, config: Any, adapter_name: str, nemo_file: str) -> None:
    if nemo_file not in NEMO_FILES:
        raise ConfigError(f"nemo_file={nemo_file!r}{did_you_mean(nemo_file, NEMO_FILES)}")
    if not adapter_name or "." in adapter_name:
        raise ConfigError(f"adapter_name={adapter_name!r}: give a name without dots")
    if adapter_name in adapter_names(model):
        raise ConfigError(
            f"{type(model).__name__} has an adapter {adapter_name!r} already; remove_adapter() it first or give "
            "another adapter_name="
        )
    if not adapter_names(model) and any(adapter_layers(model)):
        raise ConfigError(f"a part of {type(model).__name__} has adapters already; inject into that part")
    for key, rank in [("r", config.r), *(config.rank_pattern or {}).items()]:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ConfigError(f"rank {key}={rank!r} is not a whole number of 1 or more")
    start = config.init_lora_weights
    if start not in _PLAIN_STARTS:
        raise ConfigError(
            f"init_lora_weights={start!r} changes the base's weights, so that the adapter alone would not hold what "
            f"was trained; use one of {', '.join(map(repr, _PLAIN_STARTS))}"
        )
    if config.bias != "none":
        raise ConfigError(f"bias={config.bias!r} trains biases of the base, which an adapter does not hold; use 'none'")
    for key in _UNSUPPORTED:
        if getattr(config, key, None):
            raise ConfigError(
                f"{key} is not supported; adapt those layers too (target_modules=), or train them in full by "
                "requires_grad_(True) and save the whole model"
            )
