"""The least that any merge of files does: start Python and torch, read every input once, write one output.

    python benchmarks/bare_pass.py [--sha256] OUTPUT INPUT...

Inputs are mapped and added up block by block in one buffer, which is written to a new file and synced. With
``--sha256`` every input is hashed too, as a merge that records what went into it must.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys

import torch

BLOCK = 1 << 18


def main() -> None:
    """Adds the files up as if they were one array of float32 numbers each."""
    torch.set_num_threads(1)
    hashed = "--sha256" in sys.argv
    output, *inputs = [argument for argument in sys.argv[1:] if argument != "--sha256"]
    maps = []
    for path in inputs:
        with open(path, "rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    total = torch.empty(BLOCK)
    views = [torch.frombuffer(item, dtype=torch.float32, count=len(item) // 4) for item in maps]
    with open(output, "wb", buffering=0) as file:
        for start in range(0, len(views[0]), BLOCK):
            parts = [view[start : start + BLOCK] for view in views]
            block = total[: len(parts[0])].copy_(parts[0])
            for part in parts[1:]:
                block += part
            file.write(block.numpy())
        os.fsync(file.fileno())
    for item in maps if hashed else ():
        hashlib.sha256(item).hexdigest()


if __name__ == "__main__":
    main()
