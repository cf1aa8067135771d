"""Resampling that knows where each utterance ends."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nemo_merge.fusion.alignment import Resampling, layer_weights, resample


def resampled(frames: torch.Tensor, lengths: list[int], ratio: float, time: int) -> torch.Tensor:
    given = torch.tensor(lengths)
    return resample([frames], *Resampling(ratio).weights(given, torch.arange(time)))[..., 0].transpose(1, 2)


RATIOS = (1.0, 0.5, 1 / 3, 0.4, 2.0, 3.0, 2.5, 4.0)


def test_the_same_rate_changes_no_bit():
    frames = torch.randn(2, 5, 9)
    assert torch.equal(resampled(frames, [9, 9], 1.0, 9), frames)


@pytest.mark.parametrize("ratio", RATIOS)
def test_constants_stay_constant(ratio):
    frames = torch.full((2, 3, 12), 7.0)
    frames[1, :, 8:] = float("nan")
    length = Resampling(ratio).length(torch.tensor([12, 8]))
    output = resampled(frames, [12, 8], ratio, int(length.max()))
    assert torch.allclose(output, torch.tensor(7.0), atol=1e-5)


@pytest.mark.parametrize("ratio", RATIOS)
def test_ramps_stay_linear(ratio):
    frames = torch.arange(24.0).expand(1, 1, -1)
    time = int(Resampling(ratio).length(torch.tensor([24])))
    output = resampled(frames, [24], ratio, time)[0, 0]
    expected = (torch.arange(time) + 0.5) * ratio - 0.5
    inside = (expected >= max(1.0, ratio)) & (expected <= 22 - ratio)
    assert inside.sum() >= 2
    if ratio in (2.5, 0.4):  # whole frames are weighed by how much of them is inside, so the middle is off by a little
        assert (output - expected)[inside].abs().max() <= 0.1001
    else:
        assert torch.allclose(output[inside], expected[inside], atol=1e-4)


@pytest.mark.parametrize("factor", [2, 3])
def test_without_padding_it_is_torchs_interpolation(factor):
    frames = torch.randn(2, 5, 9)
    expected = functional.interpolate(frames, scale_factor=factor, mode="linear", align_corners=False)
    assert torch.allclose(resampled(frames, [9, 9], 1 / factor, 9 * factor), expected, atol=1e-6)


def test_averaging_is_a_mean_of_whole_frames():
    frames = torch.randn(1, 5, 9)
    output = resampled(frames, [9], 4.0, 3)
    expected = torch.stack([frames[..., :4].mean(2), frames[..., 4:8].mean(2), frames[..., 8]], dim=2)
    assert torch.allclose(output, expected, atol=1e-6)


@pytest.mark.parametrize("ratio", RATIOS)
def test_an_utterance_does_not_know_who_is_beside_it(ratio):
    lengths = [40, 26, 7]
    frames = torch.randn(3, 4, 40)
    frames = frames.masked_fill((torch.arange(40) >= torch.tensor(lengths)[:, None])[:, None], 99.0)
    valid = Resampling(ratio).length(torch.tensor(lengths))
    together = resampled(frames, lengths, ratio, int(valid.max()))
    for index, length in enumerate(lengths):
        alone = resampled(frames[index : index + 1, :, :length], [length], ratio, int(valid[index]))
        assert torch.allclose(together[index, :, : valid[index]], alone[0], atol=1e-6)


def test_stretching_the_padded_batch_would_know():
    """What the name of the module is about: the usual interpolation moves valid frames of the shorter utterance."""
    frames = torch.sin(torch.arange(40.0)).expand(1, 1, -1)
    alone = functional.interpolate(frames[..., :25], size=50, mode="linear", align_corners=False)
    padded = functional.interpolate(frames, size=77, mode="linear", align_corners=False)  # 38.5 * 2
    assert (padded[..., :50] - alone).abs().max() > 0.3
    assert torch.allclose(resampled(frames, [25], 0.5, 50), alone, atol=1e-6)


def test_a_model_that_ends_early_is_held():
    frames = torch.arange(3.0).expand(1, 1, -1)
    assert resampled(frames, [3], 1.0, 5)[0, 0].tolist() == [0, 1, 2, 2, 2]
    assert resampled(frames, [3], 2.0, 3)[0, 0].tolist() == [0.5, 2, 2]


def test_layers_keep_their_ends():
    weights = layer_weights(12, 24)
    ramp = torch.arange(12.0) @ weights
    assert (ramp[0], ramp[-1]) == (0, 11)
    assert torch.allclose(ramp, torch.linspace(0, 11, 24), atol=1e-5)
    assert torch.equal(layer_weights(7, 7), torch.eye(7))
    assert torch.equal(torch.arange(13.0) @ layer_weights(13, 5), torch.tensor([0.0, 3.0, 6.0, 9.0, 12.0]))
    assert layer_weights(3, 1).T.tolist() == [[1, 0, 0]]
