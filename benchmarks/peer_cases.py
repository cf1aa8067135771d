"""What ``peers.py`` merges and by which methods: inputs, and a row for every merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

StateDict = dict[str, torch.Tensor]

SHAPES = {
    "encoder.layers.0.linear1.weight": (96, 64),
    "encoder.layers.0.linear2.weight": (64, 96),
    "encoder.layers.0.self_attn.linear_q.weight": (64, 64),
    "encoder.layers.0.norm.weight": (64,),
}
EMBEDDING = "decoder.embed_tokens.weight"
POINTWISE = "encoder.layers.0.conv.pointwise_conv1.weight"


def family(case: str) -> tuple[StateDict, list[StateDict]]:
    """Base and three experts that agree in part, the second one and a half times as far from the base as the first.

    They are in float32; experts of low rank are in float64, because rounded to float32 they have full rank.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    size = float(case.split(", ")[-1]) if case[-1].isdigit() else 1e-3
    low_rank = case.startswith(LOW_RANK)
    base: StateDict = {}
    experts: list[StateDict] = [{}, {}, {}]
    shapes = {**SHAPES, EMBEDDING: (50, 64), POINTWISE: (64, 64, 1)} if case == "roles" else SHAPES
    for name, shape in shapes.items():
        base[name] = (0.05 * normal(shape)).float()
        common = normal(shape)
        for place, factor in enumerate((1.0, 1.5, 0.5)):
            delta = 0.6 * common + 0.8 * normal(shape)
            if low_rank and len(shape) == 2:
                delta = normal((shape[0], 4)) @ normal((4, shape[1]))
            if case == "opposed" and place == 1:
                delta -= 1.5 * common
            expert = base[name] + size * factor * delta
            experts[place][name] = expert if low_rank else expert.float()
    if case == "alike":
        experts[1] = {name: tensor.clone() for name, tensor in experts[0].items()}
    return base, experts


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
        zeroed: whether the peer's SVD is made to return zeros for the vectors of singular values that are rounding.
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
    zeroed: bool = False


WEIGHTS = [0.5, 0.3, 0.4]
SMALL, LARGE = "1e-5", "0.5"
LOW_RANK = "low rank"
LOW_RANK_SMALL = f"{LOW_RANK}, {SMALL}"
LOW_RANKS = (LOW_RANK, LOW_RANK_SMALL)
SHARE = 12 / 64  # of the directions in which three experts of rank 4 change
MEAN_OF_VECTORS = [{"match": "norm", "method": "soup"}]
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
        Row("tsvm", "tsvm", {"orthogonalizer": "gram_polar"}, "tsvm", {}, ("alike", *LOW_RANKS)),
        Row("tsvm, zeroed", "tsvm", {"orthogonalizer": "gram_polar"}, "tsvm", {}, ("alike", *LOW_RANKS), zeroed=True),
        Row("tsvm", "tsvm", {"orthogonalizer": "gram_polar"}, "tsvm", {}, ("roles",)),
        Row("iso_c", "iso_c", {}, "iso_c", {}),
        Row("iso_c", "iso_c", {}, "iso_c", {}, LOW_RANKS),
        Row(
            "iso_c, zeroed",
            "iso_c",
            {"scale": SHARE, "rules": MEAN_OF_VECTORS},
            "iso_c",
            {},
            LOW_RANKS,
            zeroed=True,
        ),
        Row("iso_c", "iso_c", {}, "iso_c", {}, ("roles",)),
        Row(
            "iso_c, same roles",
            "iso_c",
            {"rules": [{"match": "pointwise", "method": "soup"}]},
            "iso_c",
            {"exclude_keys": [EMBEDDING]},
            ("roles",),
        ),
        Row("iso_cts", "iso_cts", {}, "iso_cts", {"common_space_fraction": 0.8}),
        Row("iso_cts", "iso_cts", {}, "iso_cts", {"common_space_fraction": 0.8}, ("alike", *LOW_RANKS)),
        Row("iso_cts, zeroed", "iso_cts", {}, "iso_cts", {"common_space_fraction": 0.8}, ("alike",), zeroed=True),
        Row(
            "iso_cts, zeroed",
            "iso_cts",
            {"scale": SHARE, "rules": MEAN_OF_VECTORS},
            "iso_cts",
            {"common_space_fraction": 0.8},
            LOW_RANKS,
            zeroed=True,
        ),
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
