"""What a linear classifier reads out of features: ridge regression in closed form, scored on utterances held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-5, 3))
FOLDS = 5


def kernel(features: Float[Tensor, "utterances dim"]) -> Float[Tensor, "utterances utterances"]:
    """Inner products of features that each have mean 0 and variance 1, over the dimensions.

    The sum of two kernels is that of both features beside each other, each of the same weight whatever its width.
    """
    centred = features.double() - features.double().mean(0)
    spread = centred.std(0, correction=0)
    # A dimension that is constant but for rounding says nothing.
    scaled = torch.where(spread > 1e-6 * features.double().abs().amax(0), centred / spread, 0.0)
    return scaled @ scaled.T / features.shape[1]


def deal_folds(labels: Sequence[Hashable], groups: Sequence[Hashable], seed: int) -> Int[np.ndarray, " utterances"]:
    """Deals utterances to folds, those of a group to the same, so that labels are spread evenly.

    There are 5 folds, or as many as the rarest label has groups.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    by_label: dict[Hashable, list[list[int]]] = {}
    for indices in members.values():
        by_label.setdefault(Counter(labels[index] for index in indices).most_common(1)[0][0], []).append(indices)
    rng, folds = np.random.default_rng(seed), np.zeros(len(labels), dtype=np.int64)
    count, turn = min(FOLDS, min(len(each) for each in by_label.values())), 0
    for each in by_label.values():
        for place in rng.permutation(len(each)):
            folds[each[place]] = turn % count
            turn += 1
    return folds


def held_out(
    products: Float[Tensor, "utterances utterances"],
    classes: Int[np.ndarray, " utterances"],
    folds: Int[np.ndarray, " utterances"],
) -> Bool[np.ndarray, " utterances"]:
    """Whether each utterance's class is found by a ridge classifier that was fitted to the other folds.

    One regression per class onto 0 and 1; the class with the largest value wins. The penalty is chosen within the
    folds that are fitted to, by leaving out one utterance at a time, which has a closed form.

    Args:
        products: of :func:`kernel`.
        classes: numbers of the classes, from 0.
        folds: of :func:`deal_folds`.
    """
    targets = torch.nn.functional.one_hot(torch.from_numpy(classes)).double()
    right = np.zeros(len(classes), dtype=bool)
    for fold in np.unique(folds):
        train, test = (torch.from_numpy(np.flatnonzero(chosen)) for chosen in (folds != fold, folds == fold))
        inner, outer = products[train][:, train], products[test][:, train]
        rows, mean = inner.mean(0), inner.mean()
        outer = outer - rows - outer.mean(1, keepdim=True) + mean  # centred on what is fitted to
        values, vectors = torch.linalg.eigh(inner - rows - rows[:, None] + mean)
        offset = targets[train].mean(0)
        turned = vectors.T @ (targets[train] - offset)
        best, weights = np.inf, torch.empty(0)
        for penalty in PENALTIES:
            inverse = 1.0 / (values.clamp(min=0.0) + penalty * len(train))
            # Without the utterance itself, its mean is another one too: 1/n of the leverage is the constant's.
            leverage = 1.0 - penalty * len(train) * (vectors.square() @ inverse) + 1.0 / len(train)
            fitted = vectors @ (inverse[:, None] * turned)
            error = (penalty * len(train) * fitted / (1.0 - leverage).clamp(min=1e-9)[:, None]).square().sum().item()
            if error < best:
                best, weights = error, fitted
        right[test.numpy()] = (outer @ weights + offset).argmax(1).numpy() == classes[test.numpy()]
    return right
