"""The configuration of fused upstreams that a saved model carries: it names no file that restoring would need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..hooks.fused_models import TARGET as TARGET
from .sources import describe, plain
from .upstream_fusion import common_frame_shift


def described(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A preprocessor's settings with the configuration of each encoder beside its source.

    Raises:
        ConfigError, CheckpointError: as by :func:`~nemo_merge.fusion.sources.describe`.
    """
    known = plain(settings)
    if not isinstance(known.get("upstreams"), list) or not known["upstreams"]:
        raise ConfigError("preprocessor: upstreams is no list with an entry per model")
    entries = [describe(entry) for entry in known["upstreams"]]
    stride = common_frame_shift(known.get("rate", "max"), frame_shifts(entries))
    return {**known, "_recursive_": False, "window_stride": known.get("window_stride", stride), "upstreams": entries}


def frame_shifts(entries: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds between frames of each described encoder."""
    shifts = []
    for entry in entries:
        if entry["kind"] == "nemo":
            from .nemo_upstream import NemoUpstream

            shifts.append(NemoUpstream.frame_shift_of(entry["config"]))
        else:
            from .huggingface_upstream import frame_shift_of

            shifts.append(frame_shift_of(entry["config"]))
    return shifts


def sample_rate(entry: Mapping[str, Any]) -> int:
    """Of the audio that a described encoder hears, in Hz."""
    config = entry["config"]
    if entry["kind"] == "nemo":
        return int(config["preprocessor"].get("sample_rate", 16000))
    return int(config["features"]["sampling_rate"])


def output_dim_of(settings: Mapping[str, Any]) -> int | None:
    """The width that is asked for, by our name or by NeMo's."""
    given = {settings[key] for key in ("output_dim", "features") if settings.get(key) is not None}
    if len(given) > 1:
        raise ConfigError(f"output_dim={settings['output_dim']} and features={settings['features']}: give one of them")
    return given.pop() if given else None
