"""How alike hidden layers are: linear centred kernel alignment, from sums over frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class LayerSimilarity:
    """Linear CKA between all pairs of layers (Kornblith et al., ICML 2019, arXiv 1905.00414), frame by frame.

    The published estimate is ``|X'Y|^2 / (|X'X| |Y'Y|)`` of centred features. It is too high where frames are few
    beside dimensions: D / (n + D) for independent noise. The default therefore estimates each of the three terms, which
    are Hilbert-Schmidt independence criteria, without bias (Song et al., JMLR 2012; as Nguyen et al., ICLR 2021, arXiv
    2010.15327); the result is around 0 for independent layers, and may be a little below.

    Only sums over frames are kept, in float64: the cross-covariances of all pairs of layers, 8 bytes times half the
    square of all dimensions together.

    Args:
        dims: width of each layer.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        self.dims, self.frames = list(dims), 0
        self._ends = torch.tensor(self.dims).cumsum(0).tolist()
        self._shift: Tensor | None = None

    @staticmethod
    def bytes_needed(dims: Sequence[int]) -> int:
        """Memory of the sums for layers of these widths."""
        return 4 * (sum(dims) ** 2 + sum(dim**2 for dim in dims))

    def add(self, layers: Sequence[Float[Tensor, "frames dim"]]) -> None:
        """Takes in some frames of all layers."""
        joint = torch.cat([layer.double() for layer in layers], dim=1)
        if not len(joint):
            return
        if self._shift is None:  # the result does not depend on it; sums of squares around the mean keep their digits
            self._shift, (total, count) = joint.mean(0), (joint.shape[1], len(layers))
            self._products = [joint.new_zeros(dim, total - end + dim) for dim, end in self._spans()]
            self._sum, self._weighted = joint.new_zeros(total), joint.new_zeros(count, total)
            self._norms, self._norm_products = joint.new_zeros(count), joint.new_zeros(count, count)
        joint -= self._shift
        for (dim, end), product in zip(self._spans(), self._products, strict=True):
            product.addmm_(joint[:, end - dim : end].T, joint[:, end - dim :])
        norms = torch.stack([part.square().sum(1) for part in joint.split(self.dims, dim=1)], dim=1)
        self._sum += joint.sum(0)
        self._weighted += norms.T @ joint
        self._norms += norms.sum(0)
        self._norm_products += norms.T @ norms
        self.frames += len(joint)

    def matrix(self, unbiased: bool = True) -> Float[Tensor, "layers layers"]:
        """CKA of all pairs of layers; 0 where a layer is constant.

        Args:
            unbiased: whether to estimate without bias; the published formula otherwise.
        """
        count, least = len(self.dims), 4 if unbiased else 1
        if self._shift is None or self.frames < least:
            raise ValueError(f"{self.frames} frames; {least} or more are needed")
        criteria = torch.zeros(count, count, dtype=torch.float64)
        for first in range(count):
            for second in range(first, count):
                value = self._unbiased(first, second) if unbiased else self._published(first, second)
                criteria[first, second] = criteria[second, first] = value
        own = criteria.diagonal()
        scale = torch.outer(own, own).clamp(min=0.0).sqrt()
        # A layer that is constant but for rounding has no direction to compare.
        offsets = torch.stack([part.square().sum() for part in self._shift.split(self.dims)])
        signal = (own > 0) & (self._norms > 1e-14 * self.frames * offsets).cpu()
        return torch.where(torch.outer(signal, signal), criteria / scale, 0.0)

    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.dims, self._ends, strict=True))

    def _part(self, layer: int) -> slice:
        return slice(self._ends[layer] - self.dims[layer], self._ends[layer])

    def _product(self, first: int, second: int) -> Tensor:
        start = self._part(first).start
        columns = self._part(second)
        return self._products[first][:, columns.start - start : columns.stop - start]

    def _published(self, first: int, second: int) -> Tensor:
        means = torch.outer(self._sum[self._part(first)], self._sum[self._part(second)]) / self.frames
        return (self._product(first, second) - means).square().sum()

    def _unbiased(self, first: int, second: int) -> Tensor:
        """HSIC of kernel matrices K and L of the two layers without their diagonals, with nothing of the size of K."""
        n, one, two = self.frames, self._part(first), self._part(second)
        product, a, b = self._product(first, second), self._sum[one], self._sum[two]
        diagonals = self._norm_products[first, second]
        traces = product.square().sum() - diagonals
        sums = (a @ a - self._norms[first]) * (b @ b - self._norms[second])
        rows = a @ product @ b - a @ self._weighted[second, one] - b @ self._weighted[first, two] + diagonals
        return (traces + sums / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))
