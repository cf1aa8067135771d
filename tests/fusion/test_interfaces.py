"""Interfaces by themselves: geometry, parameter counts, and what each of them must not mix up."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from nemo_merge.errors import ConfigError
from nemo_merge.fusion import (
    CHConv,
    ClsPooling,
    ConcatProjection,
    GroupedWeightedSum,
    GumbelSelection,
    HConv,
    WeightedSum,
)

INTERFACES = (WeightedSum, GroupedWeightedSum, ConcatProjection, GumbelSelection, ClsPooling, HConv, CHConv)
GEOMETRY = [
    # layers, width, positions after each convolution, output, parameters
    (13, 768, [13, 5, 2], 768, 4_424_832),
    (25, 1024, [25, 9, 3], 1023, 6_990_165),
    (24, 1024, [24, 8, 3], 1023, 6_990_165),
    (18, 512, [18, 6, 2], 512, 1_966_848),
    (19, 512, [19, 7, 3], 510, 1_746_602),
    (33, 1280, [33, 11, 4, 2], 1280, 20_483_200),
]


def layers(count: int, dim: int = 12, time: int = 7, lengths: tuple[int, ...] = (7, 4)):
    features = [torch.randn(len(lengths), dim, time) for _ in range(count)]
    return features, [torch.tensor(lengths)] * count


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("count", "dim", "chain", "output", "size"), GEOMETRY)
def test_hconv_has_the_geometry_and_size_of_the_paper(count, dim, chain, output, size):
    with torch.device("meta"):
        interface = HConv(num_layers=count, dim=dim)
    assert (interface.chain, interface.output_dim, parameters(interface)) == (chain, output, size)


def test_chconv_has_the_size_of_the_paper():
    with torch.device("meta"):
        wide, narrow = (CHConv(13, 768, 2, placement) for placement in ("wide", "project_first"))
    assert parameters(wide) == 17_697_024 + 1536 * 768 + 768
    assert parameters(narrow) == 4_424_832 + 1536 * 768 + 768
    assert wide.output_dim == narrow.output_dim == 768


def test_the_number_of_convolutions_is_counted():
    assert math.floor(math.log(243) / math.log(3)) == 4  # which is why
    assert HConv(243, 8).chain == [243, 81, 27, 9, 3, 1]


@pytest.mark.parametrize("kind", INTERFACES)
def test_every_interface_is_an_aggregator(kind):
    features, lengths = layers(13)
    interface = kind(num_layers=13, dim=12)
    output, valid = interface(features, lengths)
    assert output.shape == (2, interface.output_dim, 7)
    assert valid.tolist() == [7, 4]
    assert not output[1, :, 4:].any()
    assert output[1, :, :4].any()


@pytest.mark.parametrize("count", range(3, 41))
def test_every_layer_reaches_every_interface(count):
    features, lengths = layers(count, lengths=(7, 7))
    for layer in features:
        layer.requires_grad_(True)
    for kind in INTERFACES:
        if kind is GumbelSelection:
            continue  # chooses
        # Not a rectifier, which is flat at random places.
        options = {"activation": "gelu"} if kind in (HConv, CHConv) else {}
        output, _ = kind(count, 12, **options)(features, lengths)
        assert output.shape[2] == 7
        gradients = torch.autograd.grad(output.square().sum(), features)
        assert all(gradient.any() for gradient in gradients), kind


@pytest.mark.parametrize("kind", INTERFACES)
def test_frames_are_by_themselves(kind):
    features, lengths = layers(9, lengths=(7, 7))
    for layer in features:
        layer.requires_grad_(True)
    output, _ = kind(9, 12).eval()(features, lengths)
    gradients = torch.stack(torch.autograd.grad(output[0, :, 3] @ torch.randn(output.shape[1]), features))
    elsewhere = torch.ones_like(gradients, dtype=torch.bool)
    elsewhere[:, 0, :, 3] = False
    assert gradients.any()
    assert not gradients[elsewhere].any()


@pytest.mark.parametrize("kind", INTERFACES)
@pytest.mark.parametrize("recompute", [False, True])
def test_chunks_bound_memory_and_change_nothing(kind, recompute):
    features, lengths = layers(9)
    whole = kind(9, 12).eval()
    parts = kind(9, 12, chunk_frames=4, recompute=recompute)
    parts.load_state_dict(whole.state_dict())
    parts.train(kind is not GumbelSelection)
    output, again = whole(features, lengths)[0], parts(features, lengths)[0]
    assert torch.allclose(output, again, atol=1e-6)
    if kind is not GumbelSelection:
        output.square().sum().backward()
        again.square().sum().backward()
        for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, atol=1e-4)


@pytest.mark.parametrize("kind", INTERFACES)
def test_what_lies_behind_the_end_does_not_matter(kind):
    features, lengths = layers(9)
    interface = kind(9, 12).eval()
    output, _ = interface(features, lengths)
    for layer in features:
        layer[1, :, 4:] = 99.0
    assert torch.equal(interface(features, lengths)[0], output)
    alone, _ = interface([layer[1:, :, :4] for layer in features], [torch.tensor([4])] * 9)
    assert torch.allclose(alone, output[1:, :, :4], atol=1e-5)


@pytest.mark.parametrize("kind", INTERFACES)
def test_a_saved_interface_is_the_same(kind, tmp_path):
    features, lengths = layers(9)
    interface = kind(9, 12).eval()
    torch.save(interface.state_dict(), tmp_path / "interface.pt")
    again = kind(9, 12).eval()
    again.load_state_dict(torch.load(tmp_path / "interface.pt", weights_only=True))
    assert torch.equal(again(features, lengths)[0], interface(features, lengths)[0])


@pytest.mark.parametrize("kind", INTERFACES)
def test_traced_shapes_stay_open(kind):
    features, lengths = layers(9)
    longer = layers(9, time=23, lengths=(23, 5, 11))
    interface = kind(9, 12).eval()
    traced = torch.jit.trace(interface, (features, lengths), check_trace=False)
    assert torch.allclose(traced(*longer)[0], interface(*longer)[0], atol=1e-6)


@pytest.mark.slow
def test_exported_shapes_stay_open():
    features, lengths = layers(9)
    longer = layers(9, time=23, lengths=(23, 5, 11))
    interface = HConv(9, 12).eval()
    batch, time = torch.export.Dim("batch", min=2), torch.export.Dim("time", min=2)
    shapes = ([{0: batch, 2: time}] * 9, [{0: batch}] * 9)
    exported = torch.export.export(interface, (features, lengths), dynamic_shapes=shapes)
    assert torch.allclose(exported.module()(*longer)[0], interface(*longer)[0], atol=1e-6)


def hconv_by_formula(interface: HConv, features: list[torch.Tensor]) -> torch.Tensor:
    """Sums over taps and positions, written out, for one frame."""
    stack = torch.stack(features)  # layers, dim
    for module in interface.convolutions:
        if not isinstance(module, torch.nn.Conv1d):
            continue
        count = (len(stack) + 4 - 5) // 3 + 1
        rows = []
        for position in range(count):
            row = module.bias.clone()
            for tap in range(5):
                layer = 3 * position + tap - 2
                if 0 <= layer < len(stack):
                    row = row + module.weight[:, :, tap] @ stack[layer]
            rows.append(row.clamp(min=0))
        stack = torch.stack(rows)
    return torch.tensor([stack[p, c] for c in range(stack.shape[1]) for p in range(stack.shape[0])])


@pytest.mark.parametrize("count", [3, 7, 12, 13, 25, 33])
def test_hconv_is_what_the_formula_says(count):
    features, lengths = layers(count)
    interface = HConv(count, 12)
    with torch.no_grad():
        output, _ = interface(features, lengths)
        expected = hconv_by_formula(interface, [layer[1, :, 2] for layer in features])
    assert torch.allclose(output[1, :, 2], expected, atol=1e-5)


def test_taps_of_hconv_tile_the_layers():
    features, _ = layers(13, dim=8)
    features = [layer.abs() for layer in features]
    interface = HConv(13, 8)
    with torch.no_grad():
        for convolution in interface.convolutions[::2]:
            convolution.bias.zero_()
            convolution.weight.zero_()
            convolution.weight[:, :, 1:4] = torch.eye(8)[: convolution.out_channels, :, None]
    output, _ = interface(features, [torch.tensor([7, 7])] * 13)
    pairs = output[0, :, 2].reshape(4, 2)
    stack = torch.stack([layer[0, :4, 2] for layer in features])
    assert torch.allclose(pairs[:, 0], stack[:5].sum(0))
    assert torch.allclose(pairs[:, 1], stack[5:].sum(0))


@pytest.mark.parametrize("kind", [HConv, CHConv])
def test_without_biases_scaling_the_layers_scales_the_result(kind):
    features, lengths = layers(13)
    interface = kind(13, 12)
    for name, parameter in interface.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    output, _ = interface(features, lengths)
    assert torch.allclose(interface([3.0 * layer for layer in features], lengths)[0], 3.0 * output, atol=1e-5)


def test_another_width_is_a_linear_layer_away():
    features, lengths = layers(25, dim=10)
    assert HConv(25, 10).output_dim == 9
    interface = HConv(25, 10, output_dim=16)
    assert interface(features, lengths)[0].shape == (2, 16, 7)
    assert parameters(interface) == parameters(HConv(25, 10)) + 9 * 16 + 16


def test_chconv_with_tied_blocks_convolves_the_sum():
    features, lengths = layers(13, dim=8)
    others, _ = layers(13, dim=8)
    sum_merged, wide = HConv(13, 8), CHConv(13, 8, 2)
    first, last = sum_merged.convolutions[0], sum_merged.convolutions[2]
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.zero_()
        wide.convolutions[0].weight[:8] = torch.cat([first.weight, first.weight], dim=1)
        wide.convolutions[0].bias[:8] = first.bias
        wide.convolutions[2].weight[:4, :8] = last.weight
        wide.convolutions[2].bias[:4] = last.bias
        wide.projection.weight[:, :8] = torch.eye(8)
        narrow = CHConv(13, 8, 2, "project_first")
        narrow.convolutions.load_state_dict(sum_merged.convolutions.state_dict())
        narrow.input_projection.weight.copy_(torch.cat([torch.eye(8), torch.eye(8)], dim=1))
        narrow.input_projection.bias.zero_()
    expected, _ = sum_merged([a + b for a, b in zip(features, others, strict=True)], lengths)
    beside = [torch.cat(pair, dim=1) for pair in zip(features, others, strict=True)]
    assert torch.allclose(wide(beside, lengths)[0], expected, atol=1e-5)
    assert torch.allclose(narrow(beside, lengths)[0], expected, atol=1e-5)


def test_weighted_sum_starts_as_the_mean_and_can_choose():
    features, lengths = layers(6, lengths=(7, 7))
    interface = WeightedSum(6, 12)
    assert torch.allclose(interface(features, lengths)[0], torch.stack(features).mean(0), atol=1e-6)
    assert interface.shared()[0].sum().item() == pytest.approx(1.0)
    with torch.no_grad():
        interface.logits.copy_(torch.randn(6))
        weights = interface.logits.softmax(0)
        expected = sum(weight * layer for weight, layer in zip(weights, features, strict=True))
        assert torch.allclose(interface(features, lengths)[0], expected, atol=1e-6)
        interface.logits.copy_(torch.tensor([0.0, 0.0, 1e4, 0.0, 0.0, 0.0]))
        assert torch.equal(interface(features, lengths)[0], features[2])


def test_weighted_sums_are_concat_projections():
    features, lengths = layers(6)
    weighted, general = WeightedSum(6, 12), ConcatProjection(6, 12)
    with torch.no_grad():
        weighted.logits.copy_(torch.randn(6))
        blocks = [weight * torch.eye(12) for weight in weighted.logits.softmax(0)]
        general.projection.weight.copy_(torch.cat(blocks, dim=1))
        general.projection.bias.zero_()
    assert torch.allclose(general(features, lengths)[0], weighted(features, lengths)[0], atol=1e-5)


def test_groups_are_weighted_sums_of_consecutive_layers():
    features, lengths = layers(7, lengths=(7, 7))
    interface = GroupedWeightedSum(7, 12, groups=3)
    assert interface.inside.tolist() == [[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1]]
    means = [torch.stack(part).mean(0) for part in (features[:3], features[3:5], features[5:])]
    expected = functional.linear(
        torch.cat(means, 1).transpose(1, 2), interface.projection.weight, interface.projection.bias
    )
    assert torch.allclose(interface(features, lengths)[0], expected.transpose(1, 2), atol=1e-5)


def test_gumbel_selection_takes_each_dimension_from_one_layer():
    features, lengths = layers(6, lengths=(7, 7))
    interface = GumbelSelection(6, 12)
    with torch.no_grad():
        interface.logits.copy_(torch.randn(12, 6))
    chosen = interface.logits.argmax(1)
    output = interface.eval()(features, lengths)[0]
    assert all(torch.equal(output[:, d], features[chosen[d]][:, d]) for d in range(12))
    output = interface.train()(features, lengths)[0]
    for d in range(12):  # one draw for the whole batch
        sources = [layer for layer in range(6) if torch.allclose(output[:, d], features[layer][:, d], atol=1e-6)]
        assert len(sources) == 1
    output.square().sum().backward()
    assert interface.logits.grad.any()
    with torch.no_grad():
        interface.logits.zero_()
        interface.logits[:, 4] = 1e4
    assert torch.equal(interface.eval()(features, lengths)[0], features[4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HConv(1, 8), "num_layers=1: a hierarchical convolution of stride 3 needs 3 layers"),
        (lambda: HConv(2, 8), "take more layers of the model, or WeightedSum"),
        (lambda: CHConv(2, 8, 2), "needs 3 layers"),
        (lambda: HConv(13, 1), "dim=1 is less than the 2 positions"),
        (lambda: HConv(13, 8, kernel=4), "kernel=4 is even"),
        (lambda: HConv(13, 8, stride=7), "stride=7 is above kernel=5"),
        (lambda: HConv(13, 8, activation="rely"), "activation='rely'; did you mean 'relu'"),
        (lambda: HConv(13, 8, output_dim=0), "output_dim=0 is not a whole number"),
        (lambda: WeightedSum(0, 8), "num_layers=0 is not a whole number"),
        (lambda: WeightedSum(True, 8), "num_layers=True is not a whole number"),
        (lambda: WeightedSum(3, 8, chunk_frames=0), "chunk_frames=0"),
        (lambda: GroupedWeightedSum(3, 8, groups=4), "groups=4 is more than the 3 layers"),
        (lambda: GumbelSelection(3, 8, temperature=0), "temperature=0 is not above 0"),
        (lambda: ClsPooling(3, 10, heads=4), "heads=4 does not divide dim=10"),
        (lambda: CHConv(13, 8, 2, "project_frist"), "did you mean 'project_first'"),
    ],
)
def test_bad_settings_are_refused_at_construction(make, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([torch.randn(2, 8, 5)] * 4, "4 layers given, but num_layers=3"),
        ([torch.randn(2, 9, 5)] * 3, r"layer 0 is \[2, 9, 5\], not \[batch, 8, time\]"),
        ([torch.randn(2, 8, 5)] * 2 + [torch.randn(2, 8, 3)], r"layer 2 is \[2, 8, 3\], but layer 0"),
    ],
)
def test_other_features_than_the_interface_was_made_for(features, message):
    with pytest.raises(ConfigError, match=message):
        HConv(3, 8)(features, [torch.tensor([5, 5])] * 3)
