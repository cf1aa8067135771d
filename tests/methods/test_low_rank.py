"""Low-rank changes of weights stored in float32: rounding gives them full rank, which no method may take for content."""

from __future__ import annotations

import pytest
import torch

from nemo_merge import merge_state_dicts
from nemo_merge.linalg import thin_svd
from tests.methods.test_properties import NAME, close

METHODS = {
    "boosted_tsvm": {},
    "iso_c": {},
    "iso_cts": {},
    "knots": {"density": 1.0},
    "star": {"energy": 1.0},
    "tsvm": {"orthogonalizer": "gram_polar"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-5])
@pytest.mark.parametrize("shape", [(96, 64), (256, 256)])
@pytest.mark.parametrize("loud_row", [False, True])
def test_rounding_of_stored_weights_is_not_taken_for_directions(method, size, shape, loud_row):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator) * 0.05
    if loud_row:
        base[3] *= 10  # and so does its rounding
    deltas = [
        size
        * torch.randn(shape[0], 4, generator=generator).double()
        @ torch.randn(4, shape[1], generator=generator).double()
        for _ in range(3)
    ]
    exact, stored = (
        merge_state_dicts(
            {NAME: base.to(dtype)}, [{NAME: (base + d).to(dtype)} for d in deltas], method, **METHODS[method]
        )
        for dtype in (torch.float64, torch.float32)
    )
    change, expected = stored[NAME].double() - base.double(), exact[NAME] - base.double()
    assert close(change, expected, (6e-8 if loud_row else 2e-8) / size)


def test_the_floor_never_takes_a_whole_matrix_for_noise():
    """Experts in bfloat16 are mostly rounding; what they hold is still all there is to merge."""
    base = torch.randn(64, 64) * 0.05
    experts = [{NAME: (base + 1e-4 * torch.randn(64, 64)).bfloat16()} for _ in range(2)]
    result = merge_state_dicts({NAME: base.bfloat16().float()}, experts, "iso_c")[NAME]
    assert int((thin_svd(result - base.bfloat16().float()).s > 0).sum()) > 50
