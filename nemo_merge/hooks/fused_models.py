"""Makes NeMo accept ``nemo_merge.fusion.FusedUpstreamPreprocessor`` in the configuration of a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

TARGET = "nemo_merge.fusion.FusedUpstreamPreprocessor"


def install() -> Callable[[], None]:
    """Adds that one class to those which configurations may name; the result takes it back.

    A model that is built from a configuration with it notes the configuration of each encoder in its own before
    anything else, so that what it saves restores without the encoders' files.
    """
    from nemo.core.classes import ModelPT, common

    original = ModelPT.__init__
    active = True

    @wraps(original)
    def initialise(self: Any, cfg: Any, trainer: Any = None) -> None:
        original(self, cfg=_described(cfg) if active and not self._is_model_being_restored() else cfg, trainer=trainer)

    common.ALLOWED_TARGET_PREFIXES.append(TARGET)
    ModelPT.__init__ = initialise

    def undo() -> None:
        nonlocal active
        active = False  # also where another program has wrapped this method since
        common.ALLOWED_TARGET_PREFIXES.remove(TARGET)
        if ModelPT.__init__ is initialise:
            ModelPT.__init__ = original

    return undo


def _described(cfg: Any) -> Any:
    """The configuration itself if it has nothing to do with fusion, else a copy with all that restoring needs."""
    preprocessor: Any = cfg.get("preprocessor") if hasattr(cfg, "get") else None
    if not hasattr(preprocessor, "get") or preprocessor.get("_target_") != TARGET:
        return cfg
    from omegaconf import OmegaConf

    from ..fusion.description import described

    plain = OmegaConf.to_container(OmegaConf.create(cfg), resolve=True)
    assert isinstance(plain, dict)
    return OmegaConf.create({**plain, "preprocessor": described(plain["preprocessor"])})
