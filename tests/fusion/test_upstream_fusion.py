"""Several models behind one interface."""

from __future__ import annotations

import pytest
import torch

from nemo_merge.errors import ConfigError
from nemo_merge.fusion import HConv, UpstreamFusion, WeightedSum
from nemo_merge.fusion.upstream_fusion import MODES

FAST = {"num_layers": 6, "dim": 16, "frame_shift": 0.04}
SLOW = {"num_layers": 4, "dim": 24, "frame_shift": 0.08}
LENGTHS = [torch.tensor([51, 38]), torch.tensor([26, 19])]


def batch(*shapes: dict, times: tuple[int, ...] = (51, 26), size: int = 2):
    return [
        [torch.randn(size, shape["dim"], time) for _ in range(shape["num_layers"])]
        for shape, time in zip(shapes, times, strict=True)
    ]


def quiet(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("rate", "time", "valid", "shift"),
    [("max", 51, [51, 38], 0.04), ("min", 26, [26, 19], 0.08), (20.0, 41, [41, 31], 0.05), (50, 102, [102, 76], 0.02)],
)
def test_models_of_other_rates_widths_and_depths(mode, rate, time, valid, shift):
    fusion = UpstreamFusion([FAST, SLOW], mode=mode, output_dim=20, rate=rate).eval()
    features = batch(FAST, SLOW)
    output, length = fusion(features, LENGTHS)
    assert output.shape == (2, fusion.output_dim, time)
    assert (fusion.output_dim, length.tolist(), fusion.frame_shift) == (20, valid, pytest.approx(shift))
    assert not output[1, :, valid[1] :].any()
    # Garbage behind the end, and nobody beside it.
    for layers, ends in zip(features, LENGTHS, strict=True):
        for layer in layers:
            layer[1, :, ends[1] :] = 99.0
    assert torch.allclose(fusion(features, LENGTHS)[0], output, atol=1e-5)
    own = [[layer[1:, :, : ends[1]] for layer in layers] for layers, ends in zip(features, LENGTHS, strict=True)]
    alone, _ = fusion(own, [ends[1:] for ends in LENGTHS])
    assert torch.allclose(alone[0], output[1, :, : valid[1]], atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_chunks_change_nothing(mode):
    features = batch(FAST, SLOW)
    whole = UpstreamFusion([FAST, SLOW], mode)
    parts = UpstreamFusion([FAST, SLOW], mode, chunk_frames=7, recompute=True)
    parts.load_state_dict(whole.state_dict())
    torch.manual_seed(1)
    expected, _ = whole(features, LENGTHS)
    torch.manual_seed(1)
    output, _ = parts(features, LENGTHS)
    assert torch.allclose(output, expected, atol=1e-5)
    expected.square().mean().backward()
    output.square().mean().backward()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-5)


@pytest.mark.parametrize("merge", ["sum", "concat", "stack"])
def test_models_can_be_put_together_otherwise(merge):
    fusion = UpstreamFusion([FAST, SLOW], merge=merge, in_proj="linear", dim=20, merge_scale="learned")
    assert [type(module) for module in fusion.projections] == [torch.nn.Linear] * 2
    assert fusion.interface.num_layers == (10 if merge == "stack" else 6)
    assert fusion.interface.dim == (40 if merge == "concat" else 20)
    output, _ = fusion(batch(FAST, SLOW), LENGTHS)
    output.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in fusion.parameters())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("merge", ["sum", "concat", "stack"])
def test_every_interface_takes_models_that_are_put_together_otherwise(mode, merge):
    fusion = UpstreamFusion([FAST, SLOW], mode, merge=merge)
    assert fusion(batch(FAST, SLOW), LENGTHS)[0].shape == (2, fusion.output_dim, 51)


def test_one_model_is_its_interface():
    features = batch(FAST, times=(51,))
    fusion = UpstreamFusion([FAST], normalize=False)
    expected = fusion.interface(features[0], [LENGTHS[0]] * 6)
    output, length = fusion(features, [[LENGTHS[0]] * 6])
    assert torch.equal(output, expected[0])
    assert torch.equal(length, expected[1])
    assert isinstance(fusion.interface, HConv)


@pytest.mark.parametrize("copies", [2, 3])
def test_the_same_model_several_times(copies):
    features = batch(FAST, times=(51,))
    single = UpstreamFusion([FAST])
    summed, mean, learned = (UpstreamFusion([FAST] * copies, merge_scale=scale) for scale in ("sum", "mean", "learned"))
    for fusion in (summed, mean, learned):
        fusion.interface.load_state_dict(single.interface.state_dict())
    given = features * copies, LENGTHS[:1] * copies
    expected, _ = single(features, LENGTHS[:1])
    assert torch.allclose(mean(*given)[0], expected, atol=1e-5)
    assert torch.allclose(learned(*given)[0], expected, atol=1e-5)
    assert list(dict(learned.named_parameters())["scale"].shape) == [copies]
    quiet(single)
    quiet(summed)
    assert torch.allclose(summed(*given)[0], copies * single(features, LENGTHS[:1])[0], atol=1e-4)


def test_a_sum_does_not_depend_on_the_order():
    other = {**FAST, "num_layers": 9}
    features, lengths = batch(FAST, other, times=(51, 51)), LENGTHS[:1] * 2
    one, two = UpstreamFusion([FAST, other]), UpstreamFusion([other, FAST])
    two.interface.load_state_dict(one.interface.state_dict())
    assert torch.allclose(one(features, lengths)[0], two(features[::-1], lengths)[0], atol=1e-5)


def test_a_concatenation_follows_the_order():
    features, lengths = batch(FAST, FAST, times=(51, 51)), LENGTHS[:1] * 2
    one, two = (UpstreamFusion([FAST, FAST], mode="chconv", interface={"placement": "project_first"}) for _ in range(2))
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        weight = one.interface.input_projection.weight
        two.interface.input_projection.weight.copy_(torch.cat([weight[:, 16:], weight[:, :16]], dim=1))
    assert torch.allclose(one(features, lengths)[0], two(features[::-1], lengths)[0], atol=1e-5)


def test_a_weighted_sum_has_one_softmax_over_all_layers():
    same = {**SLOW, "dim": 16}
    fusion = UpstreamFusion([FAST, same], mode="ws", rate="min", normalize=False)
    assert isinstance(fusion.interface, WeightedSum)
    assert fusion.interface.logits.shape == (10,)
    features = batch(FAST, same)
    with torch.no_grad():
        fusion.interface.logits[7] = 1e4
    assert torch.equal(fusion(features, LENGTHS)[0][0], features[1][1][0])
    assert UpstreamFusion([FAST, same], mode="ws", layers=5).interface.logits.shape == (10,)
    assert UpstreamFusion([FAST, same], mode="ws", layers="min").interface.logits.shape == (8,)


def test_normalisation_keeps_a_loud_model_from_drowning_the_other():
    features = batch(FAST, FAST, times=(51, 51))
    loud = [features[0], [1e3 * layer + 5.0 for layer in features[1]]]
    fusion = UpstreamFusion([FAST, FAST])
    lengths = LENGTHS[:1] * 2
    assert torch.allclose(fusion(features, lengths)[0], fusion(loud, lengths)[0], atol=1e-4)


def test_frames_are_by_themselves_where_rates_match():
    features, lengths = batch(FAST, FAST, times=(12, 12)), [torch.tensor([12, 12])] * 2
    flat = [layer.requires_grad_(True) for layers in features for layer in layers]
    output, _ = UpstreamFusion([FAST, FAST], mode="chconv")(features, lengths)
    gradients = torch.stack(torch.autograd.grad(output[0, :, 3].sum(), flat))
    elsewhere = torch.ones_like(gradients, dtype=torch.bool)
    elsewhere[:, 0, :, 3] = False
    assert not gradients[elsewhere].any()
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("mode", MODES)
def test_it_can_be_saved_and_traced(mode, tmp_path):
    features = batch(FAST, SLOW)
    fusion = UpstreamFusion([FAST, SLOW], mode, merge_scale="learned").eval()
    torch.save(fusion.state_dict(), tmp_path / "fusion.pt")
    again = UpstreamFusion([FAST, SLOW], mode, merge_scale="learned").eval()
    again.load_state_dict(torch.load(tmp_path / "fusion.pt", weights_only=True))
    longer = batch(FAST, SLOW, times=(80, 40), size=3), [torch.tensor([80, 3, 51]), torch.tensor([40, 2, 26])]
    expected = fusion(*longer)[0]
    assert torch.equal(again(*longer)[0], expected)
    traced = torch.jit.trace(fusion, (features, LENGTHS), check_trace=False)
    assert torch.allclose(traced(*longer)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"upstreams": []}, "no list with an entry per model"),
        ({"upstreams": [{"dim": 8}]}, "says nothing about num_layers"),
        ({"upstreams": [{**FAST, "widht": 8}]}, "no setting 'widht'"),
        ({"upstreams": [{**FAST, "frame_shift": 0}]}, "frame_shift=0 is not a time in seconds"),
        ({"upstreams": [{**FAST, "num_layers": 1}]}, "needs 3 layers or more"),
        ({"mode": "hcon"}, "did you mean 'hconv'"),
        ({"rate": "fast"}, "rate='fast' is neither"),
        ({"rate": -1.0}, "rate=-1.0 is neither"),
        ({"in_proj": "none"}, r"models of widths \[16, 24\] cannot be put together by sum"),
        ({"in_proj": "none", "mode": "chconv"}, "CHConv needs models of one width"),
        ({"merge": "summ"}, "did you mean 'sum'"),
        ({"merge_scale": "max"}, "merge_scale='max'"),
        ({"layers": 2}, "needs 3 layers or more"),
        ({"layers": "most"}, "layers='most' is not a whole number"),
        ({"interface": {"groups": 2}}, "HConv does not take these settings"),
        ({"interface": "groups"}, "interface='groups' should be settings"),
        ({"interface": {"dim": 2}}, "dim is an argument of UpstreamFusion itself"),
        ({"normalize": "per_feature"}, "normalize='per_feature' is neither true nor false"),
        ({"output_dim": 0}, "output_dim=0 is not a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_at_construction(arguments, message):
    with pytest.raises(ConfigError, match=message):
        UpstreamFusion(**{"upstreams": [FAST, SLOW], **arguments})


def test_other_models_than_it_was_made_for():
    fusion, features = UpstreamFusion([FAST, SLOW]), batch(FAST, SLOW)
    with pytest.raises(ConfigError, match="features of 1 and lengths of 1 models given, made for 2"):
        fusion(features[:1], LENGTHS[:1])
    with pytest.raises(ConfigError, match="upstream 1: 3 layers given"):
        fusion([features[0], features[1][:3]], LENGTHS)


def colliding(count: int, generator: torch.Generator):
    """One bit in an early layer of the first model, another in a late layer of the second, in the same dimension."""
    bits = torch.randint(0, 2, (2, count), generator=generator)
    shape = {"num_layers": 7, "dim": 4}
    features = [[0.1 * torch.randn(count, 4, 1, generator=generator) for _ in range(7)] for _ in range(2)]
    for model, layer in ((0, 1), (1, 5)):
        features[model][layer][:, 0, 0] += 2.0 * bits[model] - 1.0
    return shape, features, 2 * bits[0] + bits[1]


@pytest.mark.parametrize(("mode", "solved"), [("hconv", True), ("chconv", True), ("ws", False)])
def test_layers_that_share_a_dimension_are_told_apart(mode, solved):
    """The claim of "information collision": sums mix what stands in the same dimension, convolutions do not."""
    generator = torch.Generator().manual_seed(0)
    shape, features, target = colliding(512, generator)
    lengths = [torch.ones(512, dtype=torch.long)] * 2
    torch.manual_seed(0)
    fusion = UpstreamFusion([shape] * 2, mode, normalize=False)
    head = torch.nn.Linear(fusion.output_dim, 4)
    optimiser = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=0.02)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(head(fusion(features, lengths)[0][:, :, 0]), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    _, held_out, target = colliding(512, generator)
    accuracy = (head(fusion(held_out, lengths)[0][:, :, 0]).argmax(1) == target).float().mean().item()
    assert accuracy > 0.98 if solved else accuracy < 0.85
