"""Which modules of a model get adapters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

_LAYER = r"(.*\.)?layers\.\d+\."
_FAMILIES = {
    "NeMo's Conformer and FastConformer encoders": (
        rf"{_LAYER}self_attn\.linear_(q|k|v|out)",
        rf"{_LAYER}feed_forward[12]\.linear[12]",
    ),
    "Hugging Face's Whisper": (
        rf"{_LAYER}(self_attn|encoder_attn)\.(q|k|v|out)_proj",
        rf"{_LAYER}fc[12]",
    ),
}


def default_targets(model: nn.Module, feed_forward: bool = False) -> str:
    """The modules that usually get adapters: the projections of attention (queries, keys, values and output).

    Args:
        model: a NeMo model with a Conformer or FastConformer encoder, such an encoder, or a Hugging Face Whisper.
        feed_forward: also the linear layers of the feed-forward blocks.

    Returns:
        A regular expression for PEFT's ``target_modules``.

    Raises:
        ConfigError: a model of another kind.
    """
    names = [name for name, _ in model.named_modules()]
    for attention, forward in _FAMILIES.values():
        pattern = f"{attention}|{forward}" if feed_forward else attention
        if any(re.fullmatch(attention, name) for name in names):
            return pattern
    raise ConfigError(
        f"{type(model).__name__} is none of the models with default targets ({', '.join(_FAMILIES)}); give "
        "target_modules=, a regular expression for whole module names or a list of their ends"
    )


def find_targets(model: nn.Module, config: Any) -> list[str]:
    """Names of the modules that a PEFT configuration selects in a model.

    Raises:
        ConfigError: there is none.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    inside = re.compile(r"(^|\.)(base_layer|lora_[A-Za-z_]+)(\.|$)")
    names = [name for name, _ in model.named_modules() if name and not inside.search(name)]
    found = [name for name in names if check_target_module_exists(config, name)]
    if not found:
        linear = [name for name, module in model.named_modules() if _is_plain_linear(module)]
        raise ConfigError(
            f"target_modules={config.target_modules!r} selects no module of {type(model).__name__}; a regular "
            "expression must match a whole name, a list holds ends of names; its linear layers are for example "
            f"{', '.join(_spread(linear)) or 'none'}"
        )
    return found


def split_plain(model: nn.Module, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of ordinary linear layers with a weight of their own, and the others.

    Others are subclasses (quantised layers, the output projection of ``nn.MultiheadAttention``, which is never called
    as a module), convolutions, embeddings, and layers whose weight is also used elsewhere.
    """
    uses = Counter(id(value) for module in model.modules() for value in module._parameters.values())
    plain: list[str] = []
    others: list[str] = []
    for name in names:
        module: Any = model.get_submodule(name)
        base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        (plain if _is_plain_linear(base) and uses[id(base.weight)] == 1 else others).append(name)
    return plain, others


def _is_plain_linear(module: Any) -> bool:
    from torch import nn

    return type(module) is nn.Linear


def _spread(names: list[str], count: int = 4) -> list[str]:
    return names[:: max(1, len(names) // count)][:count]
