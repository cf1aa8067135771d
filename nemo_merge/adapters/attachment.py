"""What an injection changed beside PEFT's layers, so that it can be undone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, MergeError

if TYPE_CHECKING:
    from torch import nn

_ATTRIBUTE = "_nemo_merge_adapters"


@dataclass
class Attachment:
    """Kept on the model that adapters were injected into.

    Attributes:
        trainable: which parameters were trainable before.
        handles: what the first adapter attached for all of them.
        terms: what an adapter added to the loss, by its name.
    """

    trainable: dict[str, bool]
    handles: list[Any] = field(default_factory=list)
    terms: dict[str, Any] = field(default_factory=dict)


def attachment_of(model: nn.Module) -> Attachment | None:
    """What is attached to a model, if it has adapters."""
    return vars(model).get(_ATTRIBUTE)


def attach(model: nn.Module) -> Attachment:
    """Notes which parameters are trainable, before the first adapter."""
    attachment = Attachment({name: value.requires_grad for name, value in model.named_parameters()})
    setattr(model, _ATTRIBUTE, attachment)
    return attachment


def detach(model: nn.Module) -> None:
    """Undoes everything; PEFT's layers must be gone."""
    attachment = attachment_of(model)
    if attachment is None:
        return
    for handle in (*attachment.terms.values(), *attachment.handles):
        handle.remove()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(attachment.trainable.get(name, parameter.requires_grad))
    delattr(model, _ATTRIBUTE)


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's layers in a model, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters that were injected into a model."""
    return list(getattr(model, "peft_config", {}))


def merge_layers(layers: Mapping[str, Any]) -> None:
    """Adds the change of the active adapters to the weights of PEFT's layers, in place.

    Raises:
        MergeError: an adapter is not finite; no layer was changed.
    """
    for name, layer in layers.items():
        for key, value in layer.named_parameters():
            if "lora_" in key and not bool(value.isfinite().all()):
                raise MergeError(f"the adapter in {name!r} holds NaN or infinite values ({key}); training has diverged")
    for layer in layers.values():
        if not layer.merged:
            layer.merge(safe_merge=True)


def adapters_of(model: nn.Module) -> list[str]:
    """Names of a model's adapters.

    Raises:
        ConfigError: there is none.
    """
    if not (names := adapter_names(model)):
        raise ConfigError(
            f"{type(model).__name__} has no adapter; give the very module that inject_lora() was called with"
        )
    return names


def the_adapter(model: nn.Module, adapter_name: str | None = None) -> str:
    """The adapter that is meant: the one named, or the only active one.

    Raises:
        ConfigError: there is none, or several.
    """
    names = adapters_of(model)
    if adapter_name is None:
        active = list(dict.fromkeys(name for _, layer in adapter_layers(model) for name in layer.active_adapters))
        if len(active) != 1:
            raise ConfigError(f"adapters {', '.join(active or names)}: say which with adapter_name=")
        return active[0]
    if adapter_name not in names:
        raise ConfigError(f"no adapter {adapter_name!r}; there is {', '.join(map(repr, names))}")
    return adapter_name
