"""Random choices that depend on seed, expert and place in a tensor alone, never on the order of work."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ._blocks import Block

_STEP = 32  # bytes that one step of the generator's counter gives


def bernoulli(
    block: Block, seed: int, expert: int, probability: float | Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Ones with a probability and zeros otherwise, one per entry of the block, in float32.

    An entry is 1 where a uniform number of 40 bits is below its probability. The first 8 bits come from a generator
    that counts (Philox; Salmon et al., 2011): its key is a hash of seed, expert and tensor name, its counter the place
    of the entry in the tensor, so that blocks, shards, threads and the order of tensors make no difference. They
    decide for all but one entry in 256; only those get the other 32 bits, from a hash of their place (SplitMix64;
    Steele, Lea and Flood, 2014).

    Args:
        block: gives shape, place and name.
        seed: of the user.
        expert: place of the expert in the list.
        probability: one for all entries, or one per entry.
    """
    key = key_of(block, seed, expert)
    bits = first_bits(block, key)
    first: int | np.ndarray
    if isinstance(probability, Tensor):
        scaled = probability.reshape(-1).cpu().numpy() * 256
        first = scaled.astype(np.uint16)
    else:
        scaled = np.broadcast_to(np.float64(probability * 256), bits.shape)
        first = int(probability * 256)
    kept = bits < first
    undecided = np.flatnonzero(bits == first)
    below = (scaled[undecided] % 1) * 2.0**32
    kept[undecided] = more_bits(undecided + block.start, key) < below
    return torch.from_numpy(kept.astype(np.float32)).view(block.base.shape).to(block.base.device)


def key_of(block: Block, seed: int, expert: int) -> int:
    """128 bits for one tensor of one expert."""
    label = f"{seed}/{expert}/{block.name}".encode()
    return int.from_bytes(hashlib.blake2b(label, digest_size=16).digest(), "little")


def first_bits(block: Block, key: int) -> np.ndarray:
    """8 bits per entry of the block, flat, uint8."""
    generator = np.random.Philox(key=key)
    steps, skipped = divmod(block.start, _STEP)
    generator.advance(steps)
    wanted = skipped + block.base.numel()
    return generator.random_raw(-(-wanted // 8)).view(np.uint8)[skipped:wanted]


def more_bits(places: np.ndarray, key: int) -> np.ndarray:
    """32 bits per place in the tensor, uint64."""
    mixed = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)
