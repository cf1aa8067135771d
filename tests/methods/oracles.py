"""Every merging method straight from its formula, on float64 matrices: slow, obvious, and nothing of nemo_merge.

All oracles take ``(base, experts, weights, scale, **parameters)`` and give the merged tensor. Singular value
decompositions are LAPACK's, selections sort, iterations run on full vectors. Two conventions of the package come
back in all of them: singular values below 1e-6 of the largest count as zero, and a share of n entries is
``floor(share * n)`` of them, the lowest index first among equals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-6
POLAR_TOLERANCE = 1e-5

# Triples (a, b, c) of X <- a X + (b A + c A^2) X, A = X X'. Polar Express is published with a safety factor of 1.01.
NEWTON_SCHULZ = {
    "simple": [(3.4445, -4.7750, 2.0315)] * 5,
    "quintic": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
    "polar_express": [
        (8.28721201814563 / 1.01, -23.595886519098837 / 1.01**3, 17.300387312530933 / 1.01**5),
        (4.107059111542203 / 1.01, -2.9478499167379106 / 1.01**3, 0.5448431082926601 / 1.01**5),
        (3.9486908534822946 / 1.01, -2.908902115962949 / 1.01**3, 0.5518191394370137 / 1.01**5),
        (3.3184196573706015 / 1.01, -2.488488024314874 / 1.01**3, 0.51004894012372 / 1.01**5),
        (2.300652019954817 / 1.01, -1.6689039845747493 / 1.01**3, 0.4188073119525673 / 1.01**5),
        (1.891301407787398 / 1.01, -1.2679958271945868 / 1.01**3, 0.37680408948524835 / 1.01**5),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    ],
    "polish": [(1.875, -1.25, 0.375)] * 5,
}

Experts = Sequence[Tensor]
Weights = Sequence[float]


# Pieces that several methods share.


def task_vectors(base: Tensor, experts: Experts, weights: Weights) -> list[Tensor]:
    return [weight * (expert - base) for expert, weight in zip(experts, weights, strict=True)]


def default(scale: float | None, otherwise: float) -> float:
    return otherwise if scale is None else scale


def share_of(share: float, count: int) -> int:
    return math.floor(share * count + 1e-9)


def largest(values: Sequence[float], count: int) -> list[int]:
    """Places of so many of the largest values, the lowest first among equals."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


def keep_only(vector: Tensor, places: Sequence[int]) -> Tensor:
    kept = torch.zeros_like(vector)
    for place in places:
        kept[place] = vector[place]
    return kept


def trim(matrix: Tensor, count: int) -> Tensor:
    """The matrix with all but so many of its entries of largest magnitude set to 0."""
    vector = matrix.reshape(-1)
    return keep_only(vector, largest(vector.abs().tolist(), count)).view(matrix.shape)


def elect_and_average(matrices: Sequence[Tensor]) -> Tensor:
    """Per entry the mean of those that have the sign of the sum; 0 where the sum is 0."""
    vectors = [matrix.reshape(-1).tolist() for matrix in matrices]
    merged = []
    for values in zip(*vectors, strict=True):
        total = sum(values)
        agreeing = [value for value in values if (value > 0 and total > 0) or (value < 0 and total < 0)]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return torch.tensor(merged, dtype=torch.float64).view(matrices[0].shape)


def rows_of(tensor: Tensor, granularity: str) -> Tensor:
    """What is looked at by itself, one per row: the whole tensor or what belongs to each output unit."""
    return tensor.reshape(1, -1) if granularity == "tensor" else tensor.reshape(tensor.shape[0], -1)


def svd(matrix: Tensor, whole: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD whose negligible triplets are zero: beside the largest of the matrix, or of what it is the rest of."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    there = s > RANK_TOLERANCE * float(torch.linalg.matrix_norm(matrix if whole is None else whole, 2))
    return u * there, s * there, vt * there[:, None]


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, vt = svd(matrix)
    return u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank]


def orthogonalised(matrix: Tensor, orthogonalizer: str, schedule: str, steps: int) -> Tensor:
    if orthogonalizer in ("polar", "gram_polar"):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        there = s > POLAR_TOLERANCE * s[0]
        return u[:, there] @ vt[there]
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (torch.linalg.matrix_norm(x) + 1e-7)
    triples = NEWTON_SCHULZ[schedule] + NEWTON_SCHULZ["simple" if schedule == "simple" else "polish"] * steps
    for a, b, c in triples[:steps]:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def boosted(s: Tensor, beta: float, power: int, counted: int) -> Tensor:
    """Singular values, none but the zeros below the one at which the cumulative energy reaches beta."""
    energies = [float(value) ** power for value in s[:counted]]
    if beta >= 1 or sum(energies) == 0:
        return s
    level = 0
    while sum(energies[: level + 1]) < (beta - 1e-12) * sum(energies):
        level += 1
    return torch.where(s > 0, s.clamp(min=float(s[level])), s)


# Parameter space.


def oracle_soup(base: Tensor, experts: Experts, weights: Weights, scale: float | None = None) -> Tensor:
    mean = sum(weight * expert for expert, weight in zip(experts, weights, strict=True)) / sum(weights)
    return base + default(scale, 1.0) * (mean - base)


def oracle_model_stock(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    granularity: str = "tensor",
    clamp: bool = True,
) -> Tensor:
    rows = [rows_of(expert - base, granularity) for expert in experts]
    merged = torch.zeros_like(rows[0])
    for i in range(len(merged)):
        vectors = [(row[i], weight) for row, weight in zip(rows, weights, strict=True) if row[i].norm() > 0]
        count = len(vectors)
        if not count:
            continue
        cosines = [
            float(a @ b / (a.norm() * b.norm())) for j, (a, _) in enumerate(vectors) for b, _ in vectors[j + 1 :]
        ]
        cosine = sum(cosines) / len(cosines) if cosines else 1.0
        t = count * cosine / (1 + (count - 1) * cosine) if (count - 1) * cosine > -1 + 1e-12 else 0.0
        if clamp:
            t = min(max(t, 0.0), 1.0)
        merged[i] = t * sum(weight * vector for vector, weight in vectors) / sum(weights)
    return base + default(scale, 1.0) * merged.view(base.shape)


def _points(base: Tensor, experts: Experts, weights: Weights, space: str) -> tuple[list[Tensor], list[float]]:
    """The vectors whose directions are averaged, and shares that sum to 1."""
    points = [(expert if space == "weights" else expert - base).reshape(-1) for expert in experts]
    return points, [weight / sum(weights) for weight in weights]


def _change(base: Tensor, merged: Tensor, space: str) -> Tensor:
    merged = merged.view(base.shape)
    return merged - base if space == "weights" else merged


def oracle_multislerp(
    base: Tensor, experts: Experts, weights: Weights, scale: float | None = None, space: str = "weights"
) -> Tensor:
    points, shares = _points(base, experts, weights, space)
    norm = sum(share * point.norm() for point, share in zip(points, shares, strict=True))
    mean = sum(share * point / point.norm() for point, share in zip(points, shares, strict=True) if point.norm() > 0)
    return base + default(scale, 1.0) * _change(base, norm * mean / mean.norm(), space)


def oracle_karcher(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    space: str = "weights",
    tolerance: float = 1e-12,
    max_iterations: int = 50,
) -> Tensor:
    points, shares = _points(base, experts, weights, space)
    norm = sum(share * point.norm() for point, share in zip(points, shares, strict=True))
    counted = [(point / point.norm(), share) for point, share in zip(points, shares, strict=True) if point.norm() > 0]
    total = sum(share for _, share in counted)
    u = sum(share / total * unit for unit, share in counted)
    u = u / u.norm()
    for _ in range(max_iterations):
        tangent = torch.zeros_like(u)
        for unit, share in counted:
            across = unit - (u @ unit) * u
            angle = math.atan2(float(across.norm()), float(u @ unit))
            tangent = tangent + share / total * (angle / math.sin(angle) if angle > 1e-9 else 1.0) * across
        length = float(tangent.norm())
        if length > 0:
            u = math.cos(length) * u + math.sin(length) * tangent / length
            u = u / u.norm()
        if length < tolerance:
            break
    return base + default(scale, 1.0) * _change(base, norm * u, space)


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    if a.norm() == 0 or b.norm() == 0:
        return (1 - t) * a + t * b
    u, v = a / a.norm(), b / b.norm()
    angle = 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))
    if angle < 1e-8 or math.pi - angle < 1e-8:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def oracle_slerp(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    t: float | None = None,
    granularity: str = "tensor",
) -> Tensor:
    t = weights[1] / sum(weights) if t is None else t
    a, b = (rows_of(expert, granularity) for expert in experts)
    merged = torch.stack([_slerp(a[i], b[i], t) for i in range(len(a))]).view(base.shape)
    return base + default(scale, 1.0) * (merged - base)


def oracle_nuslerp(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    t: float | None = None,
    granularity: str = "tensor",
) -> Tensor:
    t = weights[1] / sum(weights) if t is None else t
    a, b = (rows_of(expert - base, granularity) for expert in experts)
    merged = torch.stack([_slerp(a[i], b[i], t) for i in range(len(a))]).view(base.shape)
    return base + default(scale, 1.0) * merged


# Task vectors, entry by entry.


def oracle_task_arithmetic(base: Tensor, experts: Experts, weights: Weights, scale: float | None = None) -> Tensor:
    return base + default(scale, 1 / len(experts)) * sum(task_vectors(base, experts, weights))


def oracle_precision_weighted(
    base: Tensor, experts: Experts, weights: Weights, scale: float | None = None, floor: float = 0.01
) -> Tensor:
    """With the variances of ``tests.fixtures.posteriors.variances_of``: ``d^2 + mean(d^2) / 10``."""
    deltas = [(expert - base).flatten().tolist() for expert in experts]
    squares = [[d * d for d in delta] for delta in deltas]
    variances = [[s + sum(square) / len(square) / 10 for s in square] for square in squares]
    merged = []
    for entry in range(base.numel()):
        above = below = 0.0
        for delta, variance, weight in zip(deltas, variances, weights, strict=True):
            v = max(variance[entry], floor * sum(variance) / len(variance))
            if v > 0:  # an expert that has not moved says nothing
                above, below = above + weight * delta[entry] / v, below + weight / v
        merged.append(above / below)
    return base + default(scale, 1.0) * torch.tensor(merged, dtype=base.dtype).view(base.shape)


def oracle_ties(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    density: float = 0.2,
    scope: str = "tensor",
) -> Tensor:
    """``scope`` makes no difference to one tensor."""
    count = share_of(density, base.numel())
    return base + default(scale, 1.0) * elect_and_average(
        [trim(d, count) for d in task_vectors(base, experts, weights)]
    )


def _combined(deltas: Sequence[Tensor], combine: str) -> Tensor:
    return elect_and_average(deltas) if combine == "ties" else sum(deltas)


def oracle_dare(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    *,
    uniform: Callable[[int], Tensor],
    density: float = 0.5,
    combine: str = "linear",
) -> Tensor:
    """``uniform`` gives the random numbers of an expert, one per entry."""
    sparse = [
        torch.where(uniform(t) < density, d / density, 0.0) for t, d in enumerate(task_vectors(base, experts, weights))
    ]
    return base + default(scale, 1.0 if combine == "ties" else 1 / len(experts)) * _combined(sparse, combine)


def oracle_della(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    *,
    uniform: Callable[[int], Tensor],
    density: float = 0.5,
    epsilon: float = 0.1,
    combine: str = "ties",
) -> Tensor:
    """``uniform`` gives the random numbers of an expert, one per entry."""
    sparse = []
    for t, d in enumerate(task_vectors(base, experts, weights)):
        rows, numbers = rows_of(d, "row"), rows_of(uniform(t), "row")
        kept = torch.zeros_like(rows)
        for i, row in enumerate(rows):
            n = len(row)
            for rank, j in enumerate(sorted(range(n), key=lambda j: abs(float(row[j])))):
                p = density - epsilon + 2 * epsilon * rank / (n - 1) if n > 1 else density
                if numbers[i, j] < p:
                    kept[i, j] = row[j] / p
        sparse.append(kept.view(d.shape))
    return base + default(scale, 1.0 if combine == "ties" else 1 / len(experts)) * _combined(sparse, combine)


def oracle_breadcrumbs(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    density: float = 0.9,
    outliers: float = 0.01,
    granularity: str = "tensor",
) -> Tensor:
    merged = torch.zeros_like(rows_of(base, granularity))
    for expert, weight in zip(experts, weights, strict=True):
        for i, row in enumerate(rows_of(expert - base, granularity)):
            order = largest(row.abs().tolist(), len(row))
            dropped = share_of(outliers, len(row))
            kept = order[dropped : dropped + share_of(density, len(row))]
            merged[i] += weight * keep_only(row, kept)
    return base + default(scale, 1 / len(experts)) * merged.view(base.shape)


def _minmax(values: Tensor) -> Tensor | None:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else None


def oracle_pcb(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    ratio: float = 0.1,
    variant: str = "code",
    scope: str = "tensor",
) -> Tensor:
    """``scope`` makes no difference to one tensor."""
    deltas = [d.reshape(-1) for d in task_vectors(base, experts, weights)]
    pairs = [_pcb_code(d, deltas, ratio) if variant == "code" else _pcb_paper(d, deltas, ratio) for d in deltas]
    above = sum(beta * value for beta, value in pairs)
    below = sum(beta for beta, _ in pairs)
    merged = torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)
    return base + default(scale, 1.0) * merged.view(base.shape)


def _pcb_code(d: Tensor, deltas: Sequence[Tensor], ratio: float) -> tuple[Tensor, Tensor]:
    n = len(d)
    ordered = d.abs().sort().values
    clipped = d.abs().clamp(ordered[share_of(1e-4, n)], ordered[n - 1 - share_of(1e-4, n)])
    strength = _minmax(clipped)
    intra = torch.exp(len(deltas) * strength**2) if strength is not None else torch.ones_like(d)
    score = intra * torch.tanh(d * sum(deltas))
    # The share of highest score is what lies above the quantile; if that is nothing, the highest score counts fully.
    quantile = score.sort().values[max(n - 1 - share_of(ratio, n), 0)]
    beta = _minmax(score.clamp(min=quantile))
    highest = ((score == score.max()) & (score > 0)).to(d.dtype)
    return (beta if beta is not None else highest), d.sign() * clipped


def _pcb_paper(d: Tensor, deltas: Sequence[Tensor], ratio: float) -> tuple[Tensor, Tensor]:
    def share(values: Tensor, factor: int) -> Tensor:
        normalised = _minmax(values)
        exponentials = torch.exp(factor * (normalised if normalised is not None else torch.zeros_like(values)))
        return exponentials / exponentials.sum()

    product = share(d * d, len(deltas)) * sum(share(d * other, 1) for other in deltas)
    return keep_only(product, largest(product.tolist(), max(1, share_of(ratio, len(d))))), d


def oracle_sce(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    select: float = 1.0,
    mask_scope: str = "weights",
) -> Tensor:
    deltas = [d.reshape(-1) for d in task_vectors(base, experts, weights)]
    stacked = torch.stack(deltas)
    variances = ((stacked - stacked.mean(0)) ** 2).mean(0).tolist()
    differing = sum(variance > 0 for variance in variances)
    count = len(variances) if select == 1 else share_of(select, differing)
    selected = largest(variances, count)
    energies = [float((keep_only(d, selected) ** 2).sum()) for d in deltas]
    shares = [energy / sum(energies) for energy in energies] if sum(energies) > 0 else [1.0] * len(deltas)
    if mask_scope == "all":
        deltas = [keep_only(d, selected) for d in deltas]
    merged = torch.zeros(len(variances), dtype=torch.float64)
    for i in range(len(variances)):
        values = [float(d[i]) for d in deltas]
        total = sum(values)
        left = [(share, value) for share, value in zip(shares, values, strict=True) if value * total > 0]
        weight = sum(share for share, _ in left)
        merged[i] = sum(share * value for share, value in left) / weight if weight > 0 else 0.0
    return base + default(scale, 1.0) * merged.view(base.shape)


def oracle_emr(base: Tensor, experts: Experts, weights: Weights, scale: float | None = None) -> Tensor:
    vectors = [d.reshape(-1).tolist() for d in task_vectors(base, experts, weights)]
    merged = []
    for values in zip(*vectors, strict=True):
        total = sum(values)
        sign = (total > 0) - (total < 0)
        merged.append(sign * max([abs(value) for value in values if value * sign > 0], default=0.0))
    return base + default(scale, 1.0) * torch.tensor(merged, dtype=torch.float64).view(base.shape)


# Task subspaces.


def oracle_iso_c(base: Tensor, experts: Experts, weights: Weights, scale: float | None = None) -> Tensor:
    u, s, vt = svd(sum(task_vectors(base, experts, weights)))
    rank = int((s > 0).sum())
    return base + default(scale, 1.0) * float(s.sum()) / max(rank, 1) * u @ vt


def oracle_iso_cts(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    common_fraction: float = 0.8,
    orthogonalizer: str = "gram_polar",
    schedule: str = "quintic",
    steps: int = 5,
) -> Tensor:
    deltas = task_vectors(base, experts, weights)
    short = min(base.shape)
    own = min(round((short - share_of(common_fraction, short)) / len(deltas)), short // len(deltas))
    common = short - own * len(deltas)
    u, s, vt = svd(sum(deltas))
    u, s, vt = u[:, :common], s[:common], vt[:common]
    left, values, right = [], [], []
    for d in deltas:
        own_u, own_s, own_vt = svd(d - u @ u.T @ d, whole=d)
        left.append(own_u[:, :own])
        values.append(own_s[:own])
        right.append(own_vt[:own])
    spectrum = torch.cat([*values, s])
    mean = float(spectrum.sum()) / max(int((spectrum > 0).sum()), 1)
    left = orthogonalised(torch.cat([*left, u], 1), orthogonalizer, schedule, steps)
    right = orthogonalised(torch.cat([*right, vt], 0), orthogonalizer, schedule, steps)
    return base + default(scale, 1.0) * mean * left @ right


def oracle_tsvm(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    rank_fraction: float | None = None,
    orthogonalizer: str = "newton_schulz",
    schedule: str = "quintic",
    steps: int = 5,
) -> Tensor:
    return oracle_boosted_tsvm(base, experts, weights, scale, rank_fraction, orthogonalizer, schedule, steps, beta=1.0)


def oracle_boosted_tsvm(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    rank_fraction: float | None = None,
    orthogonalizer: str = "newton_schulz",
    schedule: str = "quintic",
    steps: int = 5,
    beta: float = 0.3,
    energy_power: int = 1,
    energy_scope: str = "full",
) -> Tensor:
    short = min(base.shape)
    kept = max(1, share_of(1 / len(experts) if rank_fraction is None else rank_fraction, short))
    left, values, right = [], [], []
    for d in task_vectors(base, experts, weights):
        u, s, vt = svd(d)
        s = boosted(s, beta, energy_power, short if energy_scope == "full" else kept)
        left.append(u[:, :kept])
        values.append(s[:kept])
        right.append(vt[:kept])
    left = orthogonalised(torch.cat(left, 1), orthogonalizer, schedule, steps)
    right = orthogonalised(torch.cat(right, 0), orthogonalizer, schedule, steps)
    return base + default(scale, 1.0) * left @ torch.diag(torch.cat(values)) @ right


def oracle_lors(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    rank: int | None = None,
    rank_fraction: float = 0.01,
    density: float = 0.2,
) -> Tensor:
    rank = max(1, share_of(rank_fraction, min(base.shape))) if rank is None else rank
    merged = torch.zeros_like(base)
    for expert, weight in zip(experts, weights, strict=True):
        d = expert - base
        low = truncated(d, rank)
        merged = merged + weight * (low + trim(d - low, share_of(density, d.numel())))
    return base + default(scale, 1 / len(experts)) * merged


def oracle_cart(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    rank_fraction: float = 0.08,
) -> Tensor:
    mean = sum(weight * expert for expert, weight in zip(experts, weights, strict=True)) / sum(weights)
    rank = max(1, share_of(rank_fraction, min(base.shape)))
    beyond = sum(weight * truncated(expert - mean, rank) for expert, weight in zip(experts, weights, strict=True))
    return mean + default(scale, 1.0) * beyond


def oracle_star(
    base: Tensor, experts: Experts, weights: Weights, scale: float | None = None, energy: float = 0.4
) -> Tensor:
    merged = torch.zeros_like(base)
    for d in task_vectors(base, experts, weights):
        u, s, vt = svd(d)
        nuclear = float(s.sum())
        if nuclear == 0:
            continue
        kept = 1
        while float(s[:kept].sum()) < (energy - 1e-12) * nuclear:
            kept += 1
        rescaled = s[:kept] * nuclear / float(s[:kept].sum())
        merged = merged + u[:, :kept] @ torch.diag(rescaled) @ vt[:kept] / len(experts)
    return base + default(scale, 1.0) * merged


def oracle_knots(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    combine: str = "ties",
    density: float = 0.2,
) -> Tensor:
    deltas = task_vectors(base, experts, weights)
    u, s, _ = svd(torch.cat(deltas, 1))
    rank = int((s > 0).sum())
    coordinates = [u[:, :rank].T @ d for d in deltas]  # these are the S V_t', and exactly 0 where d_t is 0
    if combine == "ties":
        merged = elect_and_average([trim(c, share_of(density, c.numel())) for c in coordinates])
    else:
        merged = sum(coordinates)
    return base + default(scale, 1.0 if combine == "ties" else 1 / len(experts)) * u[:, :rank] @ merged


def oracle_wudi(
    base: Tensor,
    experts: Experts,
    weights: Weights,
    scale: float | None = None,
    solver: str = "filtered",
    learning_rate: float = 1e-5,
    steps: int = 300,
) -> Tensor:
    deltas = task_vectors(base, experts, weights)
    counted = [d for d in deltas if d.norm() > 0]
    if solver == "adam":
        solution = torch.nn.Parameter(sum(deltas))
        adam = torch.optim.Adam([solution], lr=learning_rate)
        for _ in range(steps):
            adam.zero_grad()
            sum((((solution - d) @ d.T) ** 2).sum() / (d**2).sum() for d in counted).backward()
            adam.step()
        return base + default(scale, 1.0) * solution.detach()
    covariance = sum(d.T @ d / (d**2).sum() for d in counted)
    target = sum(d @ d.T @ d / (d**2).sum() for d in counted)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if solver == "filtered":
        leading = math.ceil(float(values.sqrt().sum() ** 2 / values.sum()) - 1e-9)
    else:
        leading = int((values > RANK_TOLERANCE**2 * values[0]).sum())
    e = vectors[:, :leading]
    mean = sum(deltas) / len(deltas)
    solved = target @ e @ torch.diag(1 / values[:leading]) @ e.T
    return base + default(scale, 1.0) * (solved + mean - mean @ e @ e.T)


# Post-processors: they change merged task vectors.


def oracle_subspace_boost(delta: Tensor, beta: float = 0.01) -> Tensor:
    u, s, vt = svd(delta)
    return u @ torch.diag(boosted(s, beta, 1, len(s))) @ vt


def oracle_lines(
    changes: Mapping[str, Tensor],
    places: Mapping[str, tuple[str, int] | None],
    sums: Mapping[str, Tensor],
    experts: int,
    alpha: float | None = None,
    beta: float = 0.5,
    stacks: str = "separate",
) -> dict[str, Tensor]:
    """The ramp on the changes of a whole model.

    Args:
        changes: what the merge would add to the base.
        places: stack (``encoder`` or ``decoder``) and block of every tensor, None for those in no block.
        sums: the sums of the task vectors.
        experts: number of experts.
        alpha: factor of the first block.
        beta: what the last block takes more.
        stacks: ``concatenated`` counts decoder blocks after those of the encoder.
    """
    if alpha is None:
        norms = [sum(float(tensor.abs().sum()) for tensor in model.values()) for model in (sums, changes)]
        alpha = norms[0] / (experts * norms[1])
    blocks = {"encoder": 0, "decoder": 0}
    for place in places.values():
        if place:
            blocks[place[0]] = max(blocks[place[0]], place[1] + 1)
    ramped = {}
    for name, change in changes.items():
        factor = alpha
        if place := places[name]:
            stack, block = place
            last = blocks[stack] - 1
            if stacks == "concatenated":
                block += blocks["encoder"] if stack == "decoder" else 0
                last = sum(blocks.values()) - 1
            factor += beta * block / last if last else 0.0
        ramped[name] = factor * change
    return ramped


ORACLES: dict[str, Callable[..., Tensor]] = {
    name.removeprefix("oracle_"): function
    for name, function in list(globals().items())
    if name.startswith("oracle_") and name not in ("oracle_lines", "oracle_subspace_boost")
}
