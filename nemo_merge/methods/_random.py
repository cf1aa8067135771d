"""Random numbers that depend on seed, expert and place in a tensor alone, never on the order of work."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ._blocks import Block


def uniform(block: Block, seed: int, expert: int) -> Float[Tensor, "*shape"]:
    """Uniform numbers in [0, 1), one per entry of the block: multiples of 2^-24 in float32.

    The generator counts (Philox; Salmon et al., 2011): its key is a hash of seed, expert and tensor name, its counter
    the place of the entry in the tensor. Blocks, shards, threads and the order of tensors make no difference.
    """
    label = f"{seed}/{expert}/{block.name}".encode()
    key = int.from_bytes(hashlib.blake2b(label, digest_size=16).digest(), "little")
    generator = np.random.Philox(key=key)
    steps, skipped = divmod(block.start, 8)  # one step of the counter gives eight numbers
    generator.advance(steps)
    wanted = skipped + block.base.numel()
    bits = generator.random_raw(-(-wanted // 2)).view(np.uint32)[skipped:wanted] >> 8
    return torch.from_numpy(bits.astype(np.float32)).mul_(2.0**-24).view(block.base.shape).to(block.base.device)
