"""Where upstreams come from: NeMo files and models, Hugging Face folders and names, merges."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints import Checkpoint, open_checkpoint
from ..errors import CheckpointError, ConfigError, did_you_mean
from .upstream import Upstream, UpstreamOptions, load_strictly

SOURCES = ("nemo", "huggingface", "merge")
OPTIONS = ("layers", "train", "lora", "precision")
DESCRIPTION = ("kind", "config", "provenance")
_NO_TRANSFORMERS = "Hugging Face models need transformers; pip install 'nemo-merge[fusion]'"


def describe(entry: Any) -> dict[str, Any]:
    """An entry of ``upstreams`` with everything that building the encoder needs, so that its files may go away.

    Args:
        entry: a mapping with ``nemo`` (a file), ``huggingface`` (a folder, or a name on the Hub) or ``merge`` (the YAML
            file of a merge) and options; an entry that is described already; or a NeMo model.

    Returns:
        The entry with ``kind``, ``config`` and ``provenance`` as plain data. What it had of these is read anew.

    Raises:
        ConfigError: a key that does not exist, no source or several, or a model that cannot be fused.
        CheckpointError: a source cannot be read.
    """
    if isinstance(entry, nn.Module):
        if not hasattr(entry, "cfg"):
            raise ConfigError(f"upstreams: a {type(entry).__name__} is no NeMo model")
        return {"nemo": type(entry).__name__, "kind": "nemo", "config": _nemo_config(plain(entry.cfg), "model")}
    if not isinstance(entry, Mapping):
        raise ConfigError(f"upstreams: {entry!r} is no NeMo model and no mapping with one of {', '.join(SOURCES)}")
    for key in entry:
        if key not in (*SOURCES, *OPTIONS, *DESCRIPTION):
            raise ConfigError(f"upstreams: no setting {key!r}{did_you_mean(str(key), (*SOURCES, *OPTIONS))}")
    given = [key for key in SOURCES if entry.get(key) is not None]
    if len(given) != 1:
        raise ConfigError(f"upstreams: an entry needs one of {', '.join(SOURCES)}, this has {given or 'none'}")
    if not isinstance(entry[given[0]], str | os.PathLike):
        raise ConfigError(f"upstreams: {given[0]}={entry[given[0]]!r} is no path or name")
    source, place = given[0], os.fspath(entry[given[0]])
    own = {key: value for key, value in entry.items() if key in OPTIONS and value is not None}
    return {source: place, **own, **_READERS[source](place)}


def load_weights(entry: Mapping[str, Any], upstream: Upstream) -> None:
    """Gives an upstream that was built from a description the weights of its source.

    Raises:
        CheckpointError, PlanError, MergeError: the source cannot be read or merged, or does not fit its configuration.
    """
    if (place := entry.get("nemo")) is not None:
        with open_checkpoint(place) as checkpoint:
            upstream.load_weights(checkpoint)
    elif (place := entry.get("huggingface")) is not None:
        upstream.load_folder(place)  # type: ignore[operator]
    else:
        with _merge(entry["merge"]) as merge:
            upstream.load_weights(merge.state_dict())


def load(entry: Any) -> Upstream:
    """The encoder of an entry of ``upstreams`` with the weights of its source, frozen or with adapters as it says.

    Raises:
        NemoMergeError: as by :func:`describe`, :func:`build` and :func:`load_weights`.
    """
    entry = describe(entry)
    upstream = build(entry)
    load_weights(entry, upstream)
    return upstream.prepare()


def upstreams_at(place: str | Path) -> list[Upstream]:
    """Encoders with their weights, by what is there.

    Args:
        place: the YAML file of a merge; a NeMo model, of which, where it has fused encoders, these are taken; a folder
            of Hugging Face, or a name on the Hub.

    Raises:
        NemoMergeError: as by :func:`load`.
    """
    from ..hooks.request import YAML_SUFFIXES

    place = os.fspath(place)
    path = Path(place)
    if path.suffix.lower() in YAML_SUFFIXES:
        return [load({"merge": place})]
    if not path.exists() and path.suffix != ".nemo":
        return [load({"huggingface": place})]
    with open_checkpoint(place) as checkpoint:
        if checkpoint.format == "huggingface":
            return [load({"huggingface": place})]
        preprocessor = plain(checkpoint.metadata.config.get("preprocessor") or {})
        if fused := preprocessor.get("upstreams"):
            return [_from_fused(checkpoint, index, entry) for index, entry in enumerate(fused)]
    return [load({"nemo": place})]


def _from_fused(checkpoint: Checkpoint, index: int, entry: Mapping[str, Any]) -> Upstream:
    """An encoder as it was saved with a model, or from its own source where frozen ones were left out."""
    prefix = f"preprocessor.upstreams.{index}."
    if not any(name.startswith(prefix) for name in checkpoint):
        return load(entry)
    upstream = build(entry).prepare()
    load_strictly(upstream, checkpoint, prefix, f"{checkpoint.path}: {upstream.name}")
    return upstream


def build(entry: Mapping[str, Any]) -> Upstream:
    """The encoder of a described entry, with random weights.

    Raises:
        ConfigError: an option is wrong, or NeMo or transformers is missing.
    """
    options = UpstreamOptions(**{key: entry[key] for key in OPTIONS if entry.get(key) is not None})
    name = str(next(entry[key] for key in SOURCES if entry.get(key) is not None))
    if entry["kind"] == "nemo":
        _need("nemo", f"{name}: NeMo models need NeMo; pip install 'nemo-merge[fusion]'")
        from .nemo_upstream import NemoUpstream

        return NemoUpstream(entry["config"], options, name)
    if entry["kind"] == "huggingface":
        _need("transformers", f"{name}: {_NO_TRANSFORMERS}")
        from .huggingface_upstream import huggingface_upstream

        return huggingface_upstream(entry["config"], options, name)
    raise ConfigError(f"{name}: upstreams of kind {entry['kind']!r} are unknown; they may be from a newer version")


def _read_nemo(place: str) -> dict[str, Any]:
    with open_checkpoint(place) as checkpoint:
        if not checkpoint.metadata.config.get("encoder"):
            raise CheckpointError(f"{place}: no NeMo model with an encoder; give a .nemo file")
        config = _nemo_config(checkpoint.metadata.config, place)
        record = checkpoint.metadata.provenance
        provenance = {"sha256": checkpoint.sha256(), **({"merge": record} if record else {})}
    return {"kind": "nemo", "config": config, "provenance": plain(provenance)}


def _read_huggingface(place: str) -> dict[str, Any]:
    config = _huggingface_config(place)
    provenance: dict[str, Any] = {}
    if Path(place).is_dir():
        with open_checkpoint(place) as checkpoint:
            record = checkpoint.metadata.provenance
            provenance = {"sha256": checkpoint.sha256(), **({"merge": record} if record else {})}
    elif (commit := config["config"].pop("_commit_hash", None)) is not None:
        provenance = {"commit": commit}
    return {"kind": "huggingface", "config": config, "provenance": plain(provenance)}


def _read_merge(place: str) -> dict[str, Any]:
    with _merge(place) as merge:
        template = merge.plan.template
        if template.metadata.format == "huggingface":
            kind, config = "huggingface", _huggingface_config(str(template.path))
        else:
            kind, config = "nemo", _nemo_config(template.metadata.config, place)
        return {"kind": kind, "config": config, "provenance": plain({"merge": merge.record})}


_READERS = {"nemo": _read_nemo, "huggingface": _read_huggingface, "merge": _read_merge}


def _merge(place: str) -> Any:
    from ..hooks.request import MergeRequest

    if not Path(place).is_file():
        raise ConfigError(f"upstreams: merge={place!r} is no file; give the YAML file of a merge")
    return MergeRequest.read(Path(place), "merge").plan()


def _nemo_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    for part in ("preprocessor", "encoder"):
        if not config.get(part):
            raise ConfigError(f"{name}: its configuration has no {part}")
    return {part: plain(config[part]) for part in ("preprocessor", "encoder")}


def _huggingface_config(place: str) -> dict[str, Any]:
    _need("transformers", f"{place}: {_NO_TRANSFORMERS}")
    from transformers import AutoConfig, AutoFeatureExtractor

    from .huggingface_upstream import MODEL_TYPES

    try:
        config = AutoConfig.from_pretrained(place)
        features = AutoFeatureExtractor.from_pretrained(place)
    except Exception as error:  # OSError, ValueError, KeyError and others, by what is wrong
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{place}: transformers finds no model with config.json and preprocessor_config.json ({reason})"
        ) from error
    if config.model_type not in MODEL_TYPES:
        raise ConfigError(
            f"{place}: model_type {config.model_type!r} is none that can be fused ({', '.join(MODEL_TYPES)})"
        )
    names = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft", "padding_value", "do_normalize")
    given = features.to_dict()
    chosen = {name: given[name] for name in names if name in given}
    return {"config": {**plain(config.to_diff_dict()), "model_type": config.model_type}, "features": plain(chosen)}


def _need(package: str, message: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(message)


def plain(value: Any) -> Any:
    """A copy in dictionaries, lists and scalars, which every configuration can hold."""
    if hasattr(value, "items"):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ListConfig":
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
