"""What can be told to be wrong from headers and configurations alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ..checkpoints import Checkpoint

_SHOWN = 8  # tensors named per kind of problem and checkpoint; the rest is counted

# Settings that change what the same weights compute; two models that differ in them share shapes but not a function.
_ARCHITECTURE = (
    "sample_rate", "preprocessor.features", "preprocessor.normalize", "preprocessor.window_size",
    "preprocessor.window_stride", "preprocessor.n_fft", "preprocessor.window", "preprocessor.log",
    "encoder.n_heads", "encoder.self_attention_model", "encoder.subsampling", "encoder.subsampling_factor",
    "encoder.xscaling", "encoder.causal_downsampling", "encoder.conv_norm_type", "encoder.att_context_size",
    "prompt_format", "encoder_attention_heads", "decoder_attention_heads", "num_attention_heads", "activation_function",
    "hidden_act", "scale_embedding", "tie_word_embeddings", "num_mel_bins",
)  # fmt: skip
_ABSENT = object()


def compare_headers(
    template: Checkpoint,
    others: Sequence[Checkpoint],
    problems: list[str],
    warnings: list[str],
    unaligned: Collection[str] = (),
) -> None:
    """Compares every checkpoint with the template and adds what it finds to ``problems`` and ``warnings``.

    Shapes of the tensors in ``unaligned`` are not compared: a problem with their tokens was reported.
    """
    for name, spec in template.specs.items():
        if spec.dtype.is_complex:
            problems.append(f"{template.path}: tensor {name!r} is complex; only real weights can be merged")
    for other in others:
        _compare_models(template, other, problems)
        _compare_names(template, other, problems, warnings)
        _compare_specs(template, other, problems, unaligned)


def _compare_models(template: Checkpoint, other: Checkpoint, problems: list[str]) -> None:
    mine, theirs = template.metadata, other.metadata
    if mine.model_class and theirs.model_class and mine.model_class != theirs.model_class:
        problems.append(
            f"{other.path}: is a {theirs.model_class}, but {template.path} is a {mine.model_class}; "
            "only models of one class merge"
        )
    for place in _ARCHITECTURE:
        a, b = _lookup(mine.config, place), _lookup(theirs.config, place)
        if a is not _ABSENT and b is not _ABSENT and a != b:
            problems.append(
                f"{other.path}: its configuration has {place}={b!r}, but {template.path} has {a!r}; "
                "the same weights would compute something else"
            )


def _compare_names(template: Checkpoint, other: Checkpoint, problems: list[str], warnings: list[str]) -> None:
    missing = [name for name in template.specs if name not in other.specs]
    if missing:
        problems.append(f"{other.path}: {_tensors(missing)} missing, but in {template.path}")
    extra = []
    for name in other.specs:
        if name not in template.specs:
            twin = other.ties.get(name) or _twin(name, template, other)
            if twin is None:
                extra.append(name)
            else:
                warnings.append(f"{other.path}: tensor {name!r} is a second copy of {twin!r} and is left out")
    if extra:
        problems.append(
            f"{other.path}: {_tensors(extra)} not in {template.path}; leaving them out would lose what they hold"
        )
    for alias, owner in template.ties.items():
        both = alias in other.specs and owner in other.specs
        if both and other.ties.get(alias) != owner and not _equal(other, alias, owner):
            problems.append(f"{other.path}: tensors {alias!r} and {owner!r} differ, but {template.path} ties them")


def _compare_specs(template: Checkpoint, other: Checkpoint, problems: list[str], unaligned: Collection[str]) -> None:
    shapes, kinds = [], []
    for name, spec in template.specs.items():
        theirs = other.specs.get(name)
        if theirs is None or name in unaligned:
            continue
        if theirs.shape != spec.shape:
            shapes.append(f"{name!r} is {list(theirs.shape)} instead of {list(spec.shape)}")
        elif theirs.dtype.is_floating_point != spec.dtype.is_floating_point:
            kinds.append(f"{name!r} is {theirs.dtype} instead of {spec.dtype}")
    for found, what in ((shapes, "another shape"), (kinds, "another kind of type")):
        if found:
            rest = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            problems.append(
                f"{other.path}: tensors of {what} than in {template.path}: {'; '.join(found[:_SHOWN])}{rest}"
            )


def _twin(name: str, template: Checkpoint, other: Checkpoint) -> str | None:
    """A tensor of the template that ``name`` repeats bit for bit, as an untied copy of a tied weight does."""
    if len(other.specs[name].shape) < 2:
        return None
    return next(
        (candidate for candidate in other.specs if candidate in template.specs and _equal(other, candidate, name)), None
    )


def _equal(checkpoint: Checkpoint, a: str, b: str) -> bool:
    return checkpoint.specs[a] == checkpoint.specs[b] and torch.equal(checkpoint[a], checkpoint[b])


def _tensors(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {shown}{rest} {'is' if len(names) == 1 else 'are'}"


def _lookup(config: Mapping[str, Any], place: str) -> Any:
    node: Any = config
    for key in place.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return _ABSENT
        node = node[key]
    return node
