"""A merge of files by fusion_bench, run with the interpreter of its environment.

    python -I benchmarks/fusion_bench_side.py tsvm|iso_c|iso_cts OUTPUT BASE EXPERT...

Embeddings take the mean, as they do in nemo_merge: both sides decompose the same matrices.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    """Loads, merges and saves whole models, as fusion_bench's model pools hold them."""
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
    from fusion_bench.method.task_singular_vector.utils import TSVM_utils

    torch.set_num_threads(1)
    method, output, *inputs = sys.argv[1:]
    base, *experts = (load_file(path) for path in inputs)
    vectors = [{name: value - base[name] for name, value in expert.items()} for expert in experts]
    del experts
    settings = {"accelerator": "cpu", "exclude_keys": [name for name in base if "embed_" in name]}
    if method == "tsvm":
        change = TSVM_utils.compute_and_sum_svd_mem_reduction(vectors, **settings)
    elif method == "iso_c":
        change = iso_c(vectors, **settings)
    else:
        change = iso_cts(vectors, common_space_fraction=0.8, **settings)
    save_file({name: (value + change[name]).contiguous() for name, value in base.items()}, output)


if __name__ == "__main__":
    main()
