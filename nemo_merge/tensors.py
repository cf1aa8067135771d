"""What a tensor is: its role in a speech model, told from its name, shape and type."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

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


_BLOCK = re.compile(r"^(?P<stack>.*?)(?:^|\.)(?:layers|layer|blocks|h)\.(?P<index>\d+)\.")
_GROUPS = (
    ("predictor", re.compile(r"(^|\.)(decoder\.prediction|prediction|predictor|pred_rnn)(\.|$)")),
    ("joint", re.compile(r"(^|\.)joint(_net)?(\.|$)")),
    ("decoder", re.compile(r"(^|\.)(\w*decoder)(\.|$)")),
    ("encoder", re.compile(r"(^|\.)(\w*encoder|feature_extractor|feature_projection|pre_encode|perception)(\.|$)")),
)
_HEAD_MODULE = re.compile(
    r"(^|\.)(decoder_layers\.0|joint_net\.\d+|log_softmax\.mlp\.layer\d+|lm_head|proj_out|ctc_lo)\.bias$"
)
GROUPS = ("encoder", "decoder", "joint", "predictor", "head", "preprocessor", "other")
"""The parts of a speech model that rules can name."""


class Depth(NamedTuple):
    """Place of a tensor in a stack of equal blocks.

    Attributes:
        stack: what the blocks belong to, for example ``encoder``.
        block: number of the block, from 0.
        blocks: number of blocks of the stack.
    """

    stack: str
    block: int
    blocks: int

    @property
    def position(self) -> float:
        """0 for the first block, 1 for the last; 0 when there is only one."""
        return self.block / (self.blocks - 1) if self.blocks > 1 else 0.0


def groups_of(name: str, role: Role) -> frozenset[str]:
    """The parts of a model that a tensor belongs to: one of :data:`GROUPS`, and ``head`` beside it.

    ``decoder.decoder_layers.0`` of a CTC model is its head and nothing else; the last layer of an RNN-T's joint network
    is both joint and head.
    """
    if role is Role.PREPROCESSOR:
        return frozenset({"preprocessor"})
    head = role is Role.HEAD or bool(_HEAD_MODULE.search(name))
    if head and re.search(r"(^|\.)(ctc_)?decoder\.decoder_layers\.0\.", name):
        return frozenset({"head"})
    part = next((group for group, pattern in _GROUPS if pattern.search(name)), None)
    found = {part} if part else set()
    return frozenset(found | {"head"} if head else found or {"other"})


def depths_of(names: Iterable[str]) -> dict[str, Depth]:
    """The place of every tensor that belongs to a numbered block; the outermost number counts."""
    found = {name: match for name in names if (match := _BLOCK.match(name))}
    counts: dict[str, int] = {}
    for match in found.values():
        counts[match["stack"]] = max(counts.get(match["stack"], 0), int(match["index"]) + 1)
    return {name: Depth(match["stack"], int(match["index"]), counts[match["stack"]]) for name, match in found.items()}
