"""Random numbers that depend on seed, expert and place in a tensor alone, never on the order of work."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ._blocks import Block


def uniform(block: Block, seed: int, expert: int) -> Float[Tensor, "*shape"]:
    """Uniform numbers in [0, 1), one per entry of the block, in float64.

    The generator counts (Philox; Salmon et al., 2011): its key is a hash of seed, expert and tensor name, its counter
    the place of the entry in the tensor. Blocks, shards, threads and the order of tensors make no difference.
    """
    label = f"{seed}/{expert}/{block.name}".encode()
    key = int.from_bytes(hashlib.blake2b(label, digest_size=16).digest(), "little")
    generator = np.random.Philox(key=key)
    four, skipped = divmod(block.start, 4)  # one step of the counter gives four numbers
    generator.advance(four)
    numbers = np.random.Generator(generator).random(skipped + block.base.numel())[skipped:]
    return torch.from_numpy(numbers).view(block.base.shape).to(block.base.device)
