"""The differences from other programs that are known, with their explanations (docs/explanation/peers.md)."""

from __future__ import annotations

from dataclasses import dataclass

from peer_cases import LARGE, LOW_RANK, LOW_RANK_SMALL, SMALL

TOLERANCE = 1e-5


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
    "followed down to an angle of 1e-7."
)
NO_CLAMP = (
    "The experts are at an obtuse angle and its t is negative, which leads away from both; here t is kept in [0, 1], "
    "and with clamp=False the two agree."
)
NULL_SPACE = (
    "Two of the three experts are equal, so that the bases side by side are dependent, and its second SVD brings in "
    "arbitrary directions at full strength (others in float32 than in float64); here such directions stay zero, and "
    "with null vectors zeroed in its SVDs the two agree."
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
        (("iso_c", LOW_RANK), ("iso_c", LOW_RANK_SMALL), ("iso_cts", LOW_RANK), ("iso_cts", LOW_RANK_SMALL)),
        1.05,
        "The sum of the experts has rank 12; it raises all other directions, arbitrary or rounding, to the mean "
        "singular value, and takes the mean over all 64. Here they stay zero; with null vectors zeroed in its SVDs its "
        "result is 12/64 of ours.",
    ),
    Expected(
        "fusion_bench",
        (("tsvm", LOW_RANK), ("tsvm", LOW_RANK_SMALL)),
        0.8,
        "Of each expert of rank 4 it takes 21 triplets. The 17 vectors that are rounding have no strength of their own "
        "but turn the others when the bases are made orthogonal; with null vectors zeroed in its SVDs the two agree.",
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
