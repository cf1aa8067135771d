"""Adapters of low rank in NeMo, Hugging Face and plain torch models: LoRA through PEFT, Bayesian LoRA, merging.

Nothing heavy is imported here; the names below are loaded when they are used first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .batch_norm import still_batch_norm as still_batch_norm
    from .batch_norm_callback import StillBatchNorm as StillBatchNorm
    from .bayesian_lora import BayesianLoraConfig as BayesianLoraConfig
    from .bayesian_lora import inject_bayesian_lora as inject_bayesian_lora
    from .bayesian_lora import sampling as sampling
    from .diagnostics import diagnose as diagnose
    from .kl import beta_at as beta_at
    from .kl import kl_divergence as kl_divergence
    from .lora import inject_lora as inject_lora
    from .lora import merge_adapter as merge_adapter
    from .lora import remove_adapter as remove_adapter
    from .loss_terms import add_loss_term as add_loss_term
    from .merge import merge_adapters as merge_adapters
    from .nemo_file import plain_state_dict as plain_state_dict
    from .optimisers import parameter_groups as parameter_groups
    from .optimisers import use_parameter_groups as use_parameter_groups
    from .storage import export_mean_adapter as export_mean_adapter
    from .storage import load_adapter as load_adapter
    from .storage import save_adapter as save_adapter
    from .targets import default_targets as default_targets

_HOMES = {
    "BayesianLoraConfig": "bayesian_lora",
    "StillBatchNorm": "batch_norm_callback",
    "add_loss_term": "loss_terms",
    "beta_at": "kl",
    "default_targets": "targets",
    "diagnose": "diagnostics",
    "export_mean_adapter": "storage",
    "inject_bayesian_lora": "bayesian_lora",
    "inject_lora": "lora",
    "kl_divergence": "kl",
    "load_adapter": "storage",
    "merge_adapter": "lora",
    "merge_adapters": "merge",
    "parameter_groups": "optimisers",
    "plain_state_dict": "nemo_file",
    "remove_adapter": "lora",
    "sampling": "bayesian_lora",
    "save_adapter": "storage",
    "still_batch_norm": "batch_norm",
    "use_parameter_groups": "optimisers",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = attach(__name__, _HOMES)
