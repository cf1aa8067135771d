"""The peers' side of ``peers.py``: runs with the interpreter of a peer's environment, where nemo_merge is not.

    python -I benchmarks/peer_sides.py mergekit|fusion_bench FOLDER

The folder has the inputs and ``requests.json``, and gets the results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

StateDict = dict[str, torch.Tensor]

ROUNDING = 1e-5
"""Singular values up to this are rounding; those of the changes and of their bases are larger (``Row.zeroed``)."""

Merge = Callable[[str, StateDict, list[StateDict], bool, dict[str, Any]], Mapping[str, torch.Tensor]]


def peer_side(peer: str, folder: Path) -> None:
    """Does the merges that ``requests.json`` asks for and saves the results beside it."""
    torch.set_num_threads(1)
    merge = _mergekit() if peer == "mergekit" else _fusion_bench()
    for request in json.loads((folder / "requests.json").read_text()):
        dtype, magnify = getattr(torch, request["dtype"]), request["magnify"]

        def load(name: str, case: str = request["case"], dtype: torch.dtype = dtype, by: float = magnify) -> StateDict:
            return {key: value.to(dtype) * by for key, value in load_file(folder / case / name).items()}

        base = load("base.safetensors")
        experts = [load(f"expert_{index}.safetensors") for index in range(request["experts"])]
        if request["draws"]:
            torch.manual_seed(0)
        result = {}
        for draw in range(request["draws"] or 1):
            with torch.no_grad(), null_vectors_zeroed() if request["zeroed"] else nullcontext():
                merged = merge(request["call"], base, experts, request["base"], request["parameters"])
            result.update({f"{draw}/{name}": value.detach() / magnify for name, value in merged.items()})
        save_file({name: value.contiguous() for name, value in result.items()}, folder / request["file"])


@contextmanager
def null_vectors_zeroed() -> Iterator[None]:
    """Makes the SVD return zeros for the vectors of singular values that are rounding, instead of arbitrary ones."""
    svd = torch.linalg.svd

    def zeroed(matrix: torch.Tensor, full_matrices: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        u, s, vh = svd(matrix, full_matrices=full_matrices)
        there = s > ROUNDING
        return u * there, s * there, vh * there[:, None]

    torch.linalg.svd = zeroed
    try:
        yield
    finally:
        torch.linalg.svd = svd


def _mergekit() -> Merge:
    from mergekit.merge_methods import merge_state_dicts

    def merge(
        call: str, base: StateDict, experts: list[StateDict], with_base: bool, parameters: dict[str, Any]
    ) -> Mapping[str, torch.Tensor]:
        names = [f"expert {index}" for index in range(len(experts))]
        models = dict(zip(names, experts, strict=True))
        if call == "slerp":  # its base is the first of the two models
            return merge_state_dicts(models, call, parameters=parameters, base=names[0])
        if isinstance(parameters.get("weight"), list):
            parameters = {**parameters, "weight": dict(zip(names, parameters["weight"], strict=True))}
        if with_base:
            return merge_state_dicts({"base": base, **models}, call, parameters=parameters, base="base")
        return merge_state_dicts(models, call, parameters=parameters)

    return merge


def _fusion_bench() -> Merge:
    from fusion_bench.method.dare.utils import module_random_drop_
    from fusion_bench.method.emr_merging.utils import emr_merge
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
    from fusion_bench.method.model_stock.model_stock import ModelStock
    from fusion_bench.method.simple_average import simple_average
    from fusion_bench.method.slerp.slerp_utils import slerp
    from fusion_bench.method.task_arithmetic.task_arithmetic import TaskArithmeticAlgorithm
    from fusion_bench.method.task_singular_vector.utils import TSVM_utils
    from fusion_bench.method.ties_merging.ties_merging_utils import (
        state_dict_to_vector,
        ties_merging,
        vector_to_state_dict,
    )
    from fusion_bench.method.weighted_average import WeightedAverageAlgorithm
    from fusion_bench.method.wudi.wudi import wudi_merging
    from fusion_bench.modelpool import BaseModelPool
    from fusion_bench.models.parameter_dict import ParameterDictModel
    from fusion_bench.utils.state_dict_arithmetic import state_dict_sub, state_dict_sum

    algorithms = {
        "model_stock": ModelStock,
        "task_arithmetic": TaskArithmeticAlgorithm,
        "weighted_average": WeightedAverageAlgorithm,
    }

    def module(state_dict: StateDict) -> torch.nn.Module:
        return ParameterDictModel({name: torch.nn.Parameter(value) for name, value in state_dict.items()})

    def by_weights(
        call: str, base: StateDict, experts: list[StateDict], parameters: dict[str, Any]
    ) -> Mapping[str, torch.Tensor] | None:
        """Functions that give merged weights."""
        if call == "simple_average":
            return simple_average(experts)
        if call == "slerp":
            return {name: slerp(parameters["t"], *(expert[name] for expert in experts)) for name in base}
        if call in algorithms:  # given as classes, for pools of modules
            pool = {"_pretrained_": module(base), **{str(place): module(item) for place, item in enumerate(experts)}}
            return algorithms[call](**parameters).run(BaseModelPool(pool)).state_dict()
        if call == "ties":
            start = state_dict_to_vector(base)
            vectors = torch.stack([state_dict_to_vector(expert) for expert in experts]) - start
            change = ties_merging(vectors, parameters["threshold"], parameters["merge_func"])
            return vector_to_state_dict(start + parameters["scaling_factor"] * change, base)
        return None

    def by_change(call: str, vectors: list[StateDict], parameters: dict[str, Any]) -> StateDict:
        """Functions that give the merged task vector."""
        if call == "dare":
            for vector in vectors:
                module_random_drop_(vector, parameters["sparsity_ratio"], rescale=True)
            return {name: parameters["scaling_factor"] * value for name, value in state_dict_sum(vectors).items()}
        if call == "tsvm":
            return TSVM_utils.compute_and_sum_svd_mem_reduction(vectors, accelerator="cpu", **parameters)
        if call == "tsvm_lossless":
            return TSVM_utils.compute_and_sum_svd_mem_reduction_lossless(vectors, accelerator="cpu")
        if call == "wudi":
            with torch.enable_grad():
                return wudi_merging(vectors, accelerator="cpu", **parameters)
        if call == "emr":
            return emr_merge(vectors)[0]
        return {"iso_c": iso_c, "iso_cts": iso_cts}[call](vectors, accelerator="cpu", **parameters)

    def merge(
        call: str, base: StateDict, experts: list[StateDict], with_base: bool, parameters: dict[str, Any]
    ) -> Mapping[str, torch.Tensor]:
        merged = by_weights(call, base, experts, parameters)
        if merged is None:
            change = by_change(call, [dict(state_dict_sub(expert, base)) for expert in experts], parameters)
            merged = {name: value + change[name] for name, value in base.items()}
        return merged

    return merge


if __name__ == "__main__":
    peer_side(sys.argv[1], Path(sys.argv[2]))
