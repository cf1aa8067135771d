"""What a tensor is: its role in a speech model, told from its name, shape and type."""

from __future__ import annotations

import re
from enum import StrEnum

import torch


class Role(StrEnum):
    """The part a tensor plays; it decides how a merge treats it (see ``docs/explanation/tensor-roles.md``)."""

    MATRIX = "matrix"
    """Weight of a linear layer, [out, in]."""
    POINTWISE_CONV = "pointwise conv"
    """Convolution of kernel 1, [out, in, 1] or [out, in, 1, 1]: a matrix in disguise."""
    CONV = "conv"
    """Convolution of a larger kernel, [out, in, k] or [out, in, k, k]."""
    DEPTHWISE_CONV = "depthwise conv"
    """One filter per channel, [channels, 1, k]: a set of vectors, never a matrix."""
    EMBEDDING = "embedding"
    """Token or position embedding: one row per token, most of them rarely trained."""
    HEAD = "head"
    """Output layer over the vocabulary: one row per token."""
    VECTOR = "vector"
    """Biases, norms and whatever has one dimension that counts."""
    BATCH_NORM_MEAN = "batch-norm mean"
    BATCH_NORM_VARIANCE = "batch-norm variance"
    """Running statistics: estimates from data, not trained weights. A variance must never turn negative."""
    PREPROCESSOR = "preprocessor buffer"
    """Window and filter bank of the feature extractor: constants that must be the same in all models."""
    BUFFER = "integer buffer"
    """Counters such as ``num_batches_tracked``."""


MATRIX_LIKE = frozenset({Role.MATRIX, Role.POINTWISE_CONV})
"""Roles that spectral methods treat as matrices."""

NEVER_MERGED = frozenset({Role.BATCH_NORM_MEAN, Role.BATCH_NORM_VARIANCE, Role.PREPROCESSOR, Role.BUFFER})
"""Roles that no method's arithmetic touches."""

_PREPROCESSOR = re.compile(r"(^|\.)(preprocessor|featurizer)\.")
_EMBEDDING = re.compile(r"(^|\.)(\w*embed\w*|\w*embedding\w*|wte|wpe)(\.|$)")
# NeMo: CTC decoder_layers, RNN-T joint_net's last layer, multi-task log_softmax; Hugging Face: lm_head, proj_out.
_HEAD = re.compile(
    r"(^|\.)(decoder_layers\.0|joint_net\.\d+|log_softmax\.mlp\.layer\d+|lm_head|proj_out|ctc_lo)\.weight$"
)
_BIAS = re.compile(r"(^|[._])bias(_[a-z]+)?$|(^|\.)pos_bias_[uv]$")


def role_of(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Role:
    """The role of a tensor. No list of architectures is needed: NeMo's and Hugging Face's names share their endings.

    Args:
        name: name in the state dict, for example ``encoder.layers.0.conv.batch_norm.running_var``.
        shape: sizes of its dimensions.
        dtype: element type.
    """
    if not (dtype.is_floating_point or dtype.is_complex):
        return Role.BUFFER
    if _PREPROCESSOR.search(name):
        return Role.PREPROCESSOR
    if name.endswith("running_mean"):
        return Role.BATCH_NORM_MEAN
    if name.endswith("running_var"):
        return Role.BATCH_NORM_VARIANCE
    if len(shape) < 2 or _BIAS.search(name):
        return Role.VECTOR
    kernel = shape[2:]
    if any(size > 1 for size in kernel):
        return Role.DEPTHWISE_CONV if shape[1] == 1 else Role.CONV
    if _HEAD.search(name):
        return Role.HEAD
    if not kernel and _EMBEDDING.search(name):
        return Role.EMBEDDING
    if min(shape[0], shape[1]) == 1:
        return Role.VECTOR
    return Role.POINTWISE_CONV if kernel else Role.MATRIX
