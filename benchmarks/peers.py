"""Compares merges with those of two independent programs, mergekit and fusion_bench (docs/explanation/peers.md).

    python benchmarks/peers.py [--cache FOLDER] [--only mergekit|fusion_bench] [--json FILE]

Each program is installed into an environment of its own, in the cache folder, when it is not there yet (2 GB each).
Both sides merge the same small float32 models, and float64 copies of them: what differs in float64 is another formula,
what differs in float32 alone is rounding. Differences are of the merged change, relative to it (Frobenius norm), the
largest over the tensors. A difference above 1e-5 that :data:`EXPECTED` does not explain makes the exit status 1; an
environment that cannot be installed makes it 3.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

StateDict = dict[str, torch.Tensor]

TORCH = "torch==2.13.0"
PEERS = {"mergekit": "mergekit==0.1.5", "fusion_bench": "fusion_bench==0.2.33"}
DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemo_merge" / "peers"

TOLERANCE = 1e-5
STATISTICS_TOLERANCE = 0.01
DRAWS = 40

SHAPES = {
    "encoder.layers.0.linear1.weight": (96, 64),
    "encoder.layers.0.linear2.weight": (64, 96),
    "encoder.layers.0.self_attn.linear_q.weight": (64, 64),
    "encoder.layers.0.norm.weight": (64,),
}
EMBEDDING = "decoder.embed_tokens.weight"
POINTWISE = "encoder.layers.0.conv.pointwise_conv1.weight"


# Inputs


def family(case: str) -> tuple[StateDict, list[StateDict]]:
    """Base and three experts that agree in part, the second one and a half times as far from the base as the first."""
    generator = torch.Generator().manual_seed(0)

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    size = float(case) if case[0].isdigit() else 1e-3
    base: StateDict = {}
    experts: list[StateDict] = [{}, {}, {}]
    shapes = {**SHAPES, EMBEDDING: (50, 64), POINTWISE: (64, 64, 1)} if case == "roles" else SHAPES
    for name, shape in shapes.items():
        base[name] = (0.05 * normal(shape)).float()
        common = normal(shape)
        for place, factor in enumerate((1.0, 1.5, 0.5)):
            delta = 0.6 * common + 0.8 * normal(shape)
            if case == "low rank" and len(shape) == 2:
                delta = normal((shape[0], 4)) @ normal((4, shape[1]))
            if case == "opposed" and place == 1:
                delta -= 1.5 * common
            experts[place][name] = (base[name] + size * factor * delta).float()
    if case == "alike":
        experts[1] = {name: tensor.clone() for name, tensor in experts[0].items()}
    return base, experts


# What is compared


@dataclass(frozen=True)
class Row:
    """One merge, by our method and by the peer's.

    Attributes:
        label: what the table calls it.
        method: name of our method.
        ours: our parameters.
        call: the peer's method or function.
        theirs: its parameters.
        cases: inputs, see :func:`family`; a number is the size of the changes.
        experts: how many of the experts are merged.
        base: whether the peer is given the base.
        magnify: factor on the peer's inputs, of which the result is divided.
    """

    label: str
    method: str
    ours: Mapping[str, Any]
    call: str
    theirs: Mapping[str, Any]
    cases: tuple[str, ...] = ("1e-3", "1e-5")
    experts: int = 3
    base: bool = True
    magnify: float = 1.0


WEIGHTS = [0.5, 0.3, 0.4]
SMALL, LARGE = "1e-5", "0.5"
MAGNIFIED = 2.0**13  # exact in any type

ROWS = {
    "mergekit": [
        Row("linear", "soup", {}, "linear", {"weight": 1}, base=False),
        Row("linear, weighted", "soup", {"weights": WEIGHTS}, "linear", {"weight": WEIGHTS}, base=False),
        Row("slerp", "slerp", {"t": 0.3}, "slerp", {"t": 0.3}, ("1e-3", SMALL, LARGE), experts=2),
        Row("nuslerp", "nuslerp", {"weights": [1, 2]}, "nuslerp", {"weight": [1, 2]}, experts=2),
        Row(
            "nuslerp, rows",
            "nuslerp",
            {"granularity": "row", "weights": [1, 2]},
            "nuslerp",
            {"weight": [1, 2], "nuslerp_flatten": False},
            experts=2,
        ),
        Row(
            "nuslerp, row_wise",
            "nuslerp",
            {"granularity": "row", "weights": [1, 2]},
            "nuslerp",
            {"weight": [1, 2], "nuslerp_flatten": False, "nuslerp_row_wise": True},
            ("1e-3",),
            experts=2,
        ),
        Row(
            "multislerp",
            "multislerp",
            {"weights": WEIGHTS},
            "multislerp",
            {"weight": WEIGHTS},
            ("1e-3", SMALL, LARGE),
            base=False,
        ),
        Row(
            "multislerp, task vectors",
            "multislerp",
            {"space": "task_vectors", "weights": WEIGHTS},
            "multislerp",
            {"weight": WEIGHTS},
        ),
        Row(
            "multislerp, magnified",
            "multislerp",
            {"space": "task_vectors", "weights": WEIGHTS},
            "multislerp",
            {"weight": WEIGHTS},
            (SMALL,),
            magnify=MAGNIFIED,
        ),
        Row("karcher", "karcher", {}, "karcher", {}, ("1e-3", SMALL, LARGE), base=False),
        Row("karcher, exact", "karcher", {}, "karcher", {"max_iter": 100, "tol": 1e-12}, ("1e-3", LARGE), base=False),
        Row(
            "task_arithmetic",
            "task_arithmetic",
            {"weights": WEIGHTS, "scale": 0.7},
            "task_arithmetic",
            {"weight": WEIGHTS, "lambda": 0.7},
        ),
        Row("ties", "ties", {"density": 0.2}, "ties", {"weight": 1, "density": 0.2}),
        Row(
            "ties, weighted",
            "ties",
            {"density": 0.3, "weights": WEIGHTS},
            "ties",
            {"weight": WEIGHTS, "density": 0.3},
            ("1e-3",),
        ),
        Row(
            "ties, dense", "ties", {"density": 1.0, "scale": 0.8}, "ties", {"weight": 1, "density": 1.0, "lambda": 0.8}
        ),
        Row(
            "breadcrumbs",
            "breadcrumbs",
            {"density": 0.6, "outliers": 0.05, "scale": 1.0, "weights": WEIGHTS},
            "breadcrumbs",
            {"weight": WEIGHTS, "density": 0.6, "gamma": 0.05},
        ),
        Row("sce", "sce", {}, "sce", {}),
        Row("sce, selecting", "sce", {"select": 0.4, "mask_scope": "all"}, "sce", {"select_topk": 0.4}),
        Row("sce, default mask", "sce", {"select": 0.4}, "sce", {"select_topk": 0.4}, ("1e-3",)),
        Row(
            "sce, magnified",
            "sce",
            {"select": 0.4, "mask_scope": "all"},
            "sce",
            {"select_topk": 0.4},
            (SMALL,),
            magnify=MAGNIFIED,
        ),
        Row("model_stock", "model_stock", {}, "model_stock", {}),
        Row("model_stock, rows", "model_stock", {"granularity": "row"}, "model_stock", {"filter_wise": True}),
        Row(
            "model_stock, magnified",
            "model_stock",
            {"granularity": "row"},
            "model_stock",
            {"filter_wise": True},
            (SMALL,),
            magnify=MAGNIFIED,
        ),
        Row("model_stock", "model_stock", {}, "model_stock", {}, ("opposed",), experts=2),
        Row("model_stock, no clamp", "model_stock", {"clamp": False}, "model_stock", {}, ("opposed",), experts=2),
    ],
    "fusion_bench": [
        Row("simple_average", "soup", {}, "simple_average", {}),
        Row(
            "weighted_average",
            "soup",
            {"weights": WEIGHTS},
            "weighted_average",
            {"weights": WEIGHTS, "normalize": True},
        ),
        Row("slerp", "slerp", {"t": 0.3}, "slerp", {"t": 0.3}, ("1e-3", SMALL, LARGE), experts=2),
        Row("task_arithmetic", "task_arithmetic", {"scale": 0.3}, "task_arithmetic", {"scaling_factor": 0.3}),
        Row(
            "ties",
            "ties",
            {"density": 0.2, "scope": "model", "scale": 0.3},
            "ties",
            {"threshold": 0.2, "merge_func": "mean", "scaling_factor": 0.3},
        ),
        Row(
            "ties, one entry more",
            "ties",
            {"density": (int(0.2 * 16448) + 1) / 16448, "scope": "model", "scale": 0.3},
            "ties",
            {"threshold": 0.2, "merge_func": "mean", "scaling_factor": 0.3},
        ),
        Row(
            "ties, sum",
            "ties",
            {"density": 0.2, "scope": "model", "scale": 0.3},
            "ties",
            {"threshold": 0.2, "merge_func": "sum", "scaling_factor": 0.3},
            ("1e-3",),
        ),
        Row("model_stock", "model_stock", {}, "model_stock", {}, experts=2),
        Row("model_stock, magnified", "model_stock", {}, "model_stock", {}, (SMALL,), experts=2, magnify=MAGNIFIED),
        Row("model_stock, 3 experts", "model_stock", {}, "model_stock", {}, ("1e-3",)),
        Row("model_stock", "model_stock", {}, "model_stock", {}, ("opposed",), experts=2),
        Row("model_stock, no clamp", "model_stock", {"clamp": False}, "model_stock", {}, ("opposed",), experts=2),
        Row("tsvm", "tsvm", {"orthogonalizer": "gram_polar"}, "tsvm", {}),
        Row("tsvm, Newton-Schulz", "tsvm", {}, "tsvm", {}, ("1e-3",)),
        Row("tsvm, all triplets", "tsvm", {"orthogonalizer": "gram_polar", "rank_fraction": 1.0}, "tsvm_lossless", {}),
        Row("tsvm", "tsvm", {"orthogonalizer": "gram_polar"}, "tsvm", {}, ("alike", "roles")),
        Row("iso_c", "iso_c", {}, "iso_c", {}),
        Row("iso_c", "iso_c", {}, "iso_c", {}, ("low rank", "roles")),
        Row(
            "iso_c, same roles",
            "iso_c",
            {"rules": [{"match": "pointwise", "method": "soup"}]},
            "iso_c",
            {"exclude_keys": [EMBEDDING]},
            ("roles",),
        ),
        Row("iso_cts", "iso_cts", {}, "iso_cts", {"common_space_fraction": 0.8}),
        Row("iso_cts", "iso_cts", {}, "iso_cts", {"common_space_fraction": 0.8}, ("alike",)),
        Row("wudi", "wudi", {"solver": "adam"}, "wudi", {"iter_num": 300}),
        Row("wudi, filtered", "wudi", {}, "wudi", {"iter_num": 300}, ("1e-3",)),
        Row("emr", "emr", {}, "emr", {}),
    ],
}

STATISTICS = {
    "mergekit": [
        Row("dare_linear", "dare", {"density": 0.4}, "dare_linear", {"weight": 1, "density": 0.4, "lambda": 1 / 3}),
        Row(
            "dare_ties",
            "dare",
            {"density": 0.4, "combine": "ties"},
            "dare_ties",
            {"weight": 1, "density": 0.4, "normalize": True},
        ),
        Row(
            "della_linear",
            "della",
            {"density": 0.4, "epsilon": 0.2, "combine": "linear"},
            "della_linear",
            {"weight": 1, "density": 0.4, "epsilon": 0.2, "lambda": 1 / 3},
        ),
        Row("della", "della", {"density": 0.4, "epsilon": 0.2}, "della", {"weight": 1, "density": 0.4, "epsilon": 0.2}),
    ],
    "fusion_bench": [Row("dare", "dare", {"density": 0.4}, "dare", {"sparsity_ratio": 0.6, "scaling_factor": 1 / 3})],
}


# The peers' side: runs in their environments, where nemo_merge is not.


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
            with torch.no_grad():
                merged = merge(request["call"], base, experts, request["base"], request["parameters"])
            result.update({f"{draw}/{name}": value.detach() / magnify for name, value in merged.items()})
        save_file({name: value.contiguous() for name, value in result.items()}, folder / request["file"])


Merge = Callable[[str, StateDict, list[StateDict], bool, dict[str, Any]], Mapping[str, torch.Tensor]]


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


# Differences that are known


@dataclass(frozen=True)
class Expected:
    """A difference with its explanation.

    Attributes:
        peer: the other program.
        rows: labels and inputs of the merges that differ.
        at_most: largest difference that this explains.
        reason: the explanation.
        in_float64: whether it is there in float64 too.
    """

    peer: str
    rows: tuple[tuple[str, str], ...]
    at_most: float
    reason: str
    in_float64: bool = True

    def covers(self, float32: float, float64: float) -> bool:
        """Whether differences of this size are those that are meant."""
        return max(float32, float64) <= self.at_most and (self.in_float64 or float64 <= TOLERANCE)


ROUNDING = "Both results are rounded to float32 entry by entry, which at this size of change already costs as much."
ROUNDING_FACTOR = 6.0
"""How many times the error of one rounding of the exact result to float32 counts as rounding."""

LINEAR_SLERP = (
    "It interpolates linearly when the cosine is above 0.9995, as it is for fine-tunes of one base; here the arc is "
    "followed down to an angle of 1e-8."
)
NO_CLAMP = (
    "The experts are at an obtuse angle and its t is negative, which leads away from both; here t is kept in [0, 1], "
    "and with clamp=False the two agree."
)
NULL_SPACE = (
    "Two of the three experts are equal, so that the bases side by side are dependent, and its second SVD brings in "
    "arbitrary directions at full strength (others in float32 than in float64); here such directions stay zero."
)
EXPECTED: tuple[Expected, ...] = (
    Expected("mergekit", (("slerp", "1e-3"),), 1e-2, LINEAR_SLERP),
    Expected("mergekit", (("slerp", SMALL),), 1e-3, LINEAR_SLERP),
    Expected(
        "mergekit",
        (("nuslerp, row_wise", "1e-3"),),
        0.1,
        "With nuslerp_row_wise its vectors run along the first dimension, which are the columns of a weight [out, in]; "
        "its rows are what nuslerp_flatten=False gives alone.",
    ),
    Expected(
        "mergekit",
        (("multislerp, task vectors", SMALL),),
        2e-4,
        "It adds 1e-8 to every norm, which counts for the vector, whose changes have norms of 1e-4; with all its "
        "inputs times 8192 the difference is gone.",
    ),
    Expected(
        "mergekit",
        (("karcher", "1e-3"), ("karcher", LARGE)),
        5e-5,
        "Its iteration stops at a step of 1e-5 rad; with a smaller tolerance the two agree.",
    ),
    Expected(
        "mergekit",
        (("karcher", SMALL),),
        1.0,
        "In float32 the arccos of a rounded cosine is off by up to 3e-4 rad, more than the angles themselves; in "
        "float64 the two agree.",
        in_float64=False,
    ),
    Expected(
        "mergekit",
        (("ties", SMALL), ("breadcrumbs", SMALL)),
        5e-2,
        "Changes of 1e-5 on float32 weights lie on a grid, and some magnitudes are equal; of those at the cut it keeps "
        "any, here the lowest index is kept.",
    ),
    Expected(
        "mergekit",
        (("ties, dense", SMALL), ("sce, magnified", SMALL)),
        5e-2,
        "Where the task vectors sum to exactly 0 (two entries of 16448) it elects the positive sign; here such an "
        "entry does not change.",
    ),
    Expected(
        "mergekit",
        (("ties, weighted", "1e-3"),),
        0.8,
        "It divides the sum of the weighted entries that agree by the sum of their weights; here by their number, so "
        "that weights multiply task vectors as in every other method.",
    ),
    Expected(
        "mergekit",
        (("sce", SMALL), ("sce, selecting", SMALL)),
        0.5,
        "It weighs all experts alike when the mean squares of the task vectors sum to less than 1e-6; with all its "
        "inputs times 8192 that is gone.",
    ),
    Expected(
        "mergekit",
        (("sce, default mask", "1e-3"),),
        0.8,
        "It merges only the selected entries; here, as in the authors' code, the selection serves the weights alone "
        "unless mask_scope=all.",
    ),
    Expected(
        "mergekit",
        (("model_stock", SMALL), ("model_stock, rows", SMALL)),
        1.05,
        "It clamps the product of two norms at 1e-6, so that the cosines of small tensors and rows shrink towards 0 "
        "and the result towards the base; with all its inputs times 8192 the difference is gone.",
    ),
    Expected("mergekit", (("model_stock", "opposed"),), 1.05, NO_CLAMP),
    Expected(
        "mergekit",
        (("della_linear", "draws"), ("della", "draws")),
        0.12,
        "It rescales to the L1 norm of the tensor rather than by 1/p, which makes the large entries, kept more often, "
        "too large: the expected change is not that of the task vectors.",
    ),
    Expected("fusion_bench", (("slerp", "1e-3"),), 1e-2, LINEAR_SLERP),
    Expected("fusion_bench", (("slerp", SMALL),), 1e-3, LINEAR_SLERP),
    Expected(
        "fusion_bench",
        (("ties", "1e-3"), ("ties", SMALL)),
        5e-2,
        "It keeps one entry more of each expert than the density says; with that density the results are equal.",
    ),
    Expected(
        "fusion_bench",
        (("ties, sum", "1e-3"),),
        0.8,
        "Its default adds the entries that agree; here, and in the paper, they are averaged.",
    ),
    Expected(
        "fusion_bench",
        (("model_stock", "1e-3"), ("model_stock", SMALL), ("model_stock, no clamp", "opposed")),
        0.6,
        "It adds 1e-8 to the product of the norms, which lowers the cosines of small tensors; with all its inputs "
        "times 8192 the difference is gone.",
    ),
    Expected(
        "fusion_bench",
        (("model_stock, 3 experts", "1e-3"),),
        2e-3,
        "Of more than two experts it averages the angles between pairs; here their cosines are averaged.",
    ),
    Expected("fusion_bench", (("model_stock", "opposed"),), 1.05, NO_CLAMP),
    Expected(
        "fusion_bench",
        (("tsvm, Newton-Schulz", "1e-3"),),
        0.2,
        "Our default makes the bases orthogonal by five Newton-Schulz steps, which damp nearly dependent directions; "
        "with gram_polar the two agree.",
    ),
    Expected("fusion_bench", (("tsvm", "alike"), ("iso_cts", "alike")), 1.5, NULL_SPACE),
    Expected(
        "fusion_bench",
        (("iso_c", "low rank"),),
        1.05,
        "The experts have rank 4, and it raises the rounding noise of all other directions to the mean singular value; "
        "here these directions stay zero.",
    ),
    Expected(
        "fusion_bench",
        (("tsvm", "roles"), ("iso_c", "roles")),
        1.5,
        "It treats every tensor of two dimensions as a matrix, embeddings included, and a pointwise convolution as "
        "none; here it is the other way round.",
    ),
    Expected(
        "fusion_bench",
        (("wudi", SMALL),),
        5e-3,
        "It runs Adam in float32, here it runs in float64; in float64 the two agree.",
        in_float64=False,
    ),
    Expected(
        "fusion_bench",
        (("wudi, filtered", "1e-3"),),
        0.8,
        "Our default solves the problem in the leading eigendirections; solver=adam is its method.",
    ),
    Expected(
        "fusion_bench",
        (("emr", SMALL),),
        2e-2,
        "Where the task vectors sum to exactly 0 (two entries of 16448) it elects the negative sign; here such an "
        "entry does not change.",
    ),
)


def explanation(peer: str, label: str, case: str) -> Expected | None:
    """The explanation of a difference, if there is one."""
    return next((item for item in EXPECTED if item.peer == peer and (label, case) in item.rows), None)


# Our side


@dataclass
class Difference:
    """What one merge gave; see the module for the unit of the numbers.

    Attributes:
        float32: our result against the peer's, from float32 models.
        float64: the same from float64 models.
        our_rounding: our float32 result against our float64 one.
        peer_rounding: the peer's float32 result against its float64 one.
        floor: our float64 result rounded to float32 against itself.
        case: the inputs, see :func:`family`.
        tensor: where ``float32`` is largest.
        verdict: ``equal``, ``rounding``, ``explained`` or ``unexplained``.
    """

    peer: str
    row: Row
    case: str
    float32: float
    float64: float
    our_rounding: float
    peer_rounding: float
    floor: float
    tensor: str
    verdict: str = ""
    reason: str = ""


@dataclass
class Statistic:
    """Means over draws of a random method, ours first, then the peer's.

    Attributes:
        changed: share of entries that differ from the base.
        norm: norm of the change, relative to that of the mean task vector.
        projection: of the change on the mean task vector, relative to that.
    """

    peer: str
    row: Row
    changed: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    projection: list[float] = field(default_factory=list)
    verdict: str = ""
    reason: str = ""

    @property
    def difference(self) -> float:
        pairs = (self.changed, self.norm, self.projection)
        return max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)


def change(merged: Mapping[str, torch.Tensor], base: StateDict) -> StateDict:
    """Merged weights minus base, in float64."""
    return {name: merged[name].double() - base[name].double() for name in base}


def apart(a: StateDict, b: StateDict, references: list[StateDict]) -> tuple[float, str]:
    """The largest relative difference over the tensors, and where it is."""
    largest = []
    for name in a:
        size = max(float(reference[name].norm()) for reference in references)
        largest.append((float((a[name] - b[name]).norm()) / size if size else 0.0, name))
    return max(largest)


def compare(row: Row, peer: str, case: str, theirs: list[StateDict], floats: list[StateDict]) -> Difference:
    """Merges with our method, from float32 and from float64, and compares with the peer's two results."""
    from nemo_merge import merge_state_dicts

    base, *experts = floats
    mine = []
    for dtype in (torch.float32, torch.float64):
        inputs = [{name: value.to(dtype) for name, value in item.items()} for item in (base, *experts[: row.experts])]
        mine.append(change(merge_state_dicts(inputs[0], inputs[1:], row.method, workers=1, **row.ours), base))
    theirs = [change(item, base) for item in theirs]
    references = [mine[1], theirs[1]]
    rounded = {name: (value + base[name]).float().double() - base[name] for name, value in mine[1].items()}
    single, tensor = apart(mine[0], theirs[0], references)
    result = Difference(
        peer,
        row,
        case,
        float32=single,
        float64=apart(mine[1], theirs[1], references)[0],
        our_rounding=apart(mine[0], mine[1], references)[0],
        peer_rounding=apart(theirs[0], theirs[1], references)[0],
        floor=apart(rounded, mine[1], references)[0],
        tensor=tensor,
    )
    known = explanation(peer, row.label, case)
    largest = max(result.float32, result.float64)
    if largest <= TOLERANCE:
        result.verdict = "equal"
    elif known is not None:
        result.verdict = "explained" if known.covers(result.float32, result.float64) else "unexplained"
        result.reason = known.reason
    elif result.float64 <= TOLERANCE and result.float32 <= ROUNDING_FACTOR * result.floor:
        result.verdict, result.reason = "rounding", ROUNDING
    else:
        result.verdict = "unexplained"
    return result


def compare_statistics(row: Row, peer: str, theirs: list[StateDict], floats: list[StateDict]) -> Statistic:
    """Draws with our method as often as the peer did, and compares means."""
    from nemo_merge import merge_state_dicts

    base, *experts = floats
    mine = [
        merge_state_dicts(base, experts, row.method, workers=1, seed=seed, **row.ours) for seed in range(len(theirs))
    ]
    mean = torch.cat([sum(expert[name] - base[name] for expert in experts).flatten().double() / 3 for name in base])
    result = Statistic(peer, row)
    for draws in (mine, theirs):
        flat = [torch.cat([value.flatten() for value in change(draw, base).values()]) for draw in draws]
        total = len(flat)
        result.changed.append(sum(float((item != 0).double().mean()) for item in flat) / total)
        result.norm.append(sum(float(item.norm() / mean.norm()) for item in flat) / total)
        result.projection.append(sum(float(item @ mean / mean.square().sum()) for item in flat) / total)
    known = explanation(peer, row.label, "draws")
    if result.difference <= STATISTICS_TOLERANCE:
        result.verdict = "equal"
    else:
        explained = known is not None and result.difference <= known.at_most
        result.verdict, result.reason = "explained" if explained else "unexplained", known.reason if known else ""
    return result


class InstallError(Exception):
    """A peer's environment cannot be made."""


def environment(peer: str, cache: Path) -> Path:
    """The interpreter of a peer's environment, which is made when it is missing.

    Raises:
        InstallError: pip failed, for instance because there is no package registry.
    """
    folder = cache / PEERS[peer].replace("==", "-")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / "complete").exists():
        return python
    print(f"installing {PEERS[peer]} ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    commands = [[sys.executable, "-m", "venv", str(folder)]]
    # torch comes first: the peer's own requirement, which has no version, would bring another build of it.
    for package in (TORCH, PEERS[peer]):
        commands.append([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no message"]
            raise InstallError(f"{PEERS[peer]} cannot be installed: {errors[-1]}")
    (folder / "complete").touch()
    return python


def run_peer(python: Path, peer: str, folder: Path, requests: list[dict[str, Any]]) -> list[list[StateDict]]:
    """The peer's results: for every request one state dict per draw."""
    (folder / "requests.json").write_text(json.dumps(requests))
    # -I keeps this script's folder and the user's packages out of the peer's environment.
    command = [str(python), "-I", str(Path(__file__).resolve()), "--peer-side", peer, str(folder)]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    if done.returncode:
        sys.exit(f"{peer} failed:\n{done.stderr[-4000:]}")
    results = []
    for request in requests:
        tensors = load_file(folder / request["file"])
        draws: list[StateDict] = [{} for _ in range(request["draws"] or 1)]
        for name, value in tensors.items():
            draw, _, key = name.partition("/")
            draws[int(draw)][key] = value
        results.append(draws)
    return results


def measure(peer: str, python: Path) -> tuple[list[Difference], list[Statistic]]:
    """All merges of one peer."""
    pairs = [(row, case) for row in ROWS[peer] for case in row.cases]
    cases = {case: family(case) for case in {"1e-3", *(case for _, case in pairs)}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, (base, experts) in cases.items():
            (folder / case).mkdir()
            save_file(base, folder / case / "base.safetensors")
            for index, expert in enumerate(experts):
                save_file(expert, folder / case / f"expert_{index}.safetensors")

        def requests() -> Iterator[dict[str, Any]]:
            for row, case in pairs:
                for dtype in ("float32", "float64"):
                    yield {**asdict(row), "parameters": row.theirs, "case": case, "dtype": dtype, "draws": 0}
            for row in STATISTICS[peer]:
                yield {**asdict(row), "parameters": row.theirs, "case": "1e-3", "dtype": "float32", "draws": DRAWS}

        asked = [{**request, "file": f"{index}.safetensors"} for index, request in enumerate(requests())]
        results = iter(run_peer(python, peer, folder, asked))
    differences = []
    for row, case in pairs:
        base, experts = cases[case]
        differences.append(compare(row, peer, case, [next(results)[0], next(results)[0]], [base, *experts]))
    base, experts = cases["1e-3"]
    statistics = [compare_statistics(row, peer, next(results), [base, *experts]) for row in STATISTICS[peer]]
    return differences, statistics


# Tables


def call(name: str, parameters: Mapping[str, Any]) -> str:
    """A method with its parameters, for a table."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.6g}"
        return f"[{', '.join(map(text, value))}]" if isinstance(value, list) else str(value)

    return f"`{name}({', '.join(f'{key}={text(value)}' for key, value in parameters.items())})`"


def short(number: float) -> str:
    """One digit: ``4e-6``."""
    return f"{number:.0e}".replace("e-0", "e-") if number else "0"


def tables(peer: str, differences: list[Difference], statistics: list[Statistic]) -> str:
    """Both tables of a peer and the explanations that they refer to, as markdown."""
    reasons = list(dict.fromkeys(item.reason for item in (*differences, *statistics) if item.reason))

    def note(item: Difference | Statistic) -> str:
        number = str(reasons.index(item.reason) + 1) if item.reason else ""
        return f"**unexplained** {number}".strip() if item.verdict == "unexplained" else number

    lines = [
        f"| nemo_merge | {peer} | changes | difference | in float64 | our rounding | its rounding | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in differences:
        numbers = (item.float32, item.float64, item.our_rounding, item.peer_rounding)
        inputs = item.case
        if item.row.experts != 3:
            inputs += f", {item.row.experts} experts"
        if item.row.magnify != 1:
            inputs += f", its inputs {item.row.magnify:.0f}-fold"
        lines.append(
            f"| {call(item.row.method, item.row.ours)} | {call(item.row.call, item.row.theirs)} | {inputs} | "
            f"{' | '.join(map(short, numbers))} | {note(item)} |"
        )
    lines += ["", f"| nemo_merge | {peer} | entries changed | norm | projection | note |", "|---|---|---|---|---|---|"]
    for item in statistics:
        pairs = (item.changed, item.norm, item.projection)
        lines.append(
            f"| {call(item.row.method, item.row.ours)} | {call(item.row.call, item.row.theirs)} | "
            f"{' | '.join(f'{ours:.3f}, {theirs:.3f}' for ours, theirs in pairs)} | {note(item)} |"
        )
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of the peers' environments")
    parser.add_argument("--only", choices=PEERS, help="compare with one of them")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    parser.add_argument("--peer-side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer_side:
        peer_side(arguments.peer_side[0], Path(arguments.peer_side[1]))
        return

    torch.set_num_threads(1)
    report: dict[str, Any] = {"torch": torch.__version__}
    unexplained = []
    for peer in [arguments.only] if arguments.only else PEERS:
        try:
            python = environment(peer, arguments.cache)
        except InstallError as error:
            print(error, file=sys.stderr)
            sys.exit(3)
        differences, statistics = measure(peer, python)
        print(f"## {PEERS[peer]}\n\n{tables(peer, differences, statistics)}\n")
        report[peer] = [asdict(item) for item in (*differences, *statistics)]
        unexplained += [item for item in (*differences, *statistics) if item.verdict == "unexplained"]
        for item in differences:
            if item.verdict == "equal" and explanation(peer, item.row.label, item.case):
                print(f"{peer}: {item.row.label} ({item.case}) does not differ any more", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    for item in unexplained:
        print(f"unexplained difference from {item.peer}: {item.row.label}", file=sys.stderr)
    sys.exit(1 if unexplained else 0)


if __name__ == "__main__":
    main()
