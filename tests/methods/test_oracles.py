"""Every method against its formula: see ``oracles.py``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import pytest
import torch

from nemo_merge import methods
from nemo_merge.errors import MergeError
from nemo_merge.methods import Block, SpectralMethod
from nemo_merge.methods._random import first_bits, key_of, more_bits
from tests.fixtures.posteriors import merge_state_dicts
from tests.methods.oracles import ORACLES, oracle_lines, oracle_soup, oracle_subspace_boost

NAME = "encoder.layers.0.feed_forward1.linear1.weight"
SHAPES = [(12, 8), (8, 12), (9, 9), (1, 7), (7, 1)]
UNEQUAL = (0.5, 2.0, 1.5, 1.0, 0.25)

# Largest difference relative to the largest entry of the merged change. Deltas of 1e-5 on weights of size 1 have lost
# 1e-11 of themselves to rounding before anything is computed. PCB takes its quantiles and ranges in float32.
TOLERANCES = {"parameter space": 1e-9, "task vectors": 1e-9, "task subspace": 1e-7, "pcb": 1e-6}
FLOAT32_TOLERANCE = 1e-4  # the change by Model Stock can be a hundredth of the weights, whose last digit is 2e-7

ROW = {"granularity": "row"}
NEWTON_SCHULZ = {"orthogonalizer": "newton_schulz"}
PARAMETERS: dict[str, list[dict]] = {
    "boosted_tsvm": [
        {},
        {"beta": 0.0},
        {"beta": 0.1, "orthogonalizer": "gram_polar"},
        {"beta": 0.6, "rank_fraction": 0.5, "energy_power": 2},
        {"beta": 0.6, "rank_fraction": 0.5, "energy_scope": "kept", "orthogonalizer": "polar"},
        {"beta": 1.0, "schedule": "polish", "steps": 7},
    ],
    "breadcrumbs": [
        {},
        {"density": 0.3, "outliers": 0.0},
        {"density": 0.5, "outliers": 0.1},
        {"density": 0.5, "outliers": 0.2, **ROW},
    ],
    "cart": [{}, {"rank_fraction": 0.4}, {"rank_fraction": 1.0}],
    "dare": [{}, {"density": 0.3, "seed": 7}, {"combine": "ties"}, {"density": 1.0}],
    "della": [{}, {"combine": "linear"}, {"density": 0.4, "epsilon": 0.3, "seed": 3}, {"epsilon": 0.0}],
    "emr": [{}],
    "iso_c": [{}],
    "iso_cts": [
        {},
        {"common_fraction": 0.0, "orthogonalizer": "polar"},
        {"common_fraction": 0.5},
        {"common_fraction": 1.0},
        {**NEWTON_SCHULZ},
        {**NEWTON_SCHULZ, "schedule": "polar_express", "steps": 8},
    ],
    "karcher": [
        {},
        {"space": "task_vectors"},
        {"space": "task_vectors", "max_iterations": 2},
        {"space": "task_vectors", "tolerance": 0.05},
    ],
    "knots": [{}, {"density": 0.6}, {"density": 1.0}, {"combine": "linear"}],
    "lors": [
        {},
        {"rank": 0},
        {"rank": 2, "density": 0.0},
        {"rank_fraction": 0.4, "density": 0.5},
        {"density": 1.0},
    ],
    "model_stock": [{}, {"clamp": False}, {**ROW}, {**ROW, "clamp": False}],
    "multislerp": [{}, {"space": "task_vectors"}],
    "nuslerp": [{}, {"t": 0.3}, {**ROW}, {**ROW, "t": 0.8}],
    "pcb": [
        {},
        {"ratio": 0.3},
        {"ratio": 1.0},
        {"variant": "paper"},
        {"variant": "paper", "ratio": 0.4},
        {"variant": "paper", "ratio": 1.0},
    ],
    "precision_weighted": [{}, {"floor": 0.0}, {"floor": 1.0}],
    "sce": [{}, {"select": 0.3}, {"select": 0.3, "mask_scope": "all"}, {"mask_scope": "all"}],
    "slerp": [{}, {"t": 0.3}, {**ROW}, {**ROW, "t": 0.8}],
    "soup": [{}],
    "star": [{}, {"energy": 0.05}, {"energy": 0.8}, {"energy": 1.0}],
    "task_arithmetic": [{}],
    "ties": [{}, {"density": 0.03}, {"density": 0.5}, {"density": 1.0}],
    "tsvm": [
        {},
        {"rank_fraction": 0.01},
        {"rank_fraction": 0.5, "orthogonalizer": "gram_polar"},
        {"rank_fraction": 0.5, "orthogonalizer": "polar"},
        {"rank_fraction": 1.0, "steps": 3},
        {"schedule": "polar_express", "steps": 10},
        {"schedule": "simple", "steps": 7},
    ],
    "wudi": [{}, {"solver": "closed"}, {"solver": "adam", "steps": 20, "learning_rate": 1e-3}],
}
CASES = [
    pytest.param(method, parameters, id=" ".join([method, *(f"{key}={value}" for key, value in parameters.items())]))
    for method, cases in PARAMETERS.items()
    for parameters in cases
]

Inputs = tuple[torch.Tensor, list[torch.Tensor]]


def inputs(shape, experts=3, size=1.0, kind="random", seed=0) -> Inputs:
    """A base of size 1, and experts that differ from it by ``size``."""
    generator = torch.Generator().manual_seed(1000 * shape[0] + shape[-1] + 7919 * seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base, deltas = normal(*shape), [normal(*shape) for _ in range(experts)]
    if kind == "low rank":
        deltas = [normal(shape[0], 2) @ normal(2, shape[1]) for _ in deltas]
    elif kind == "decaying":  # each singular value about half the one before
        decay = torch.logspace(0, 1 - min(shape), min(shape), 2, dtype=torch.float64)
        deltas = [normal(shape[0], len(decay)) * decay @ normal(len(decay), shape[1]) for _ in deltas]
    elif kind == "duplicates":
        deltas[1] = deltas[0].clone()
    elif kind == "idle":  # an expert that has not moved
        deltas[-1] = torch.zeros_like(base)
    elif kind == "equal entries":
        base, deltas = (64 * base).round() / 64, [(2 * delta).round() for delta in deltas]
    return base, [base + size * delta for delta in deltas]


def experts_of(method: str, wanted: int = 3) -> int:
    return min(wanted, methods.method_class(method).maximum_experts or wanted)


def expected(method, base, experts, weights, scale, parameters, name=NAME) -> torch.Tensor:
    """What the oracle gives; spectral methods take the mean or the sum of what is no matrix."""
    weights = [1.0] * len(experts) if weights is None else list(weights)
    own = dict(parameters)
    as_matrix = own.pop("conv_as_matrix", False)
    if issubclass(methods.method_class(method), SpectralMethod):
        kernel = base.shape[2:].numel()  # 1 for a matrix
        if min(base.shape[:2]) == 1 or (kernel > 1 and not as_matrix):
            return rest(method, base, experts, weights, scale, parameters)
        flat = [expert.flatten(1) for expert in experts]
        return ORACLES[method](base.flatten(1), flat, weights, scale, **own).view(base.shape)
    if method in ("dare", "della"):
        block, seed = Block(base, torch.stack(experts), 0, name), own.pop("seed", 0)
        own["uniform"] = lambda expert: uniform(block, key_of(block, seed, expert))
    return ORACLES[method](base, experts, weights, scale, **own)


def uniform(block: Block, key: int) -> torch.Tensor:
    """The numbers of 40 bits that decide what is kept, with all bits of every entry drawn."""
    first, more = first_bits(block, key), more_bits(np.arange(block.base.numel()) + block.start, key)
    return torch.from_numpy(first / 2.0**8 + more / 2.0**40).view(block.base.shape)


def rest(method, base, experts, weights, scale, parameters) -> torch.Tensor:
    """What spectral methods do with tensors that are no matrices."""
    if method == "cart":
        return oracle_soup(base, experts, weights)
    total = sum(weight * (expert - base) for expert, weight in zip(experts, weights, strict=True))
    if method == "lors" or (method == "knots" and parameters.get("combine") == "linear"):
        return base + (1 / len(experts) if scale is None else scale) * total
    return base + (1.0 if scale is None else scale) * total / len(experts)


def differences(
    method, tensors: Mapping[Hashable, Inputs], weights=None, scale=None, parameters=None
) -> dict[Hashable, float]:
    """Per tensor the largest difference between method and oracle, relative to the largest entry of its change.

    The tensors are merged as those of one model. What stands for a tensor is its name, or becomes a matrix of it.
    """
    parameters = parameters or {}
    names = {label: label if isinstance(label, str) else NAME.replace("0", str(i)) for i, label in enumerate(tensors)}
    base = {names[label]: start for label, (start, _) in tensors.items()}
    count = len(next(iter(tensors.values()))[1])
    experts = [{names[label]: experts[t] for label, (_, experts) in tensors.items()} for t in range(count)]
    result = merge_state_dicts(base, experts, method, weights=weights, scale=scale, **parameters)
    found = {}
    for label, name in names.items():
        start, own = base[name].double(), [expert[name].double() for expert in experts]
        wanted = expected(method, start, own, weights, scale, parameters, name)
        change = float((wanted - start).abs().max()) or 1.0
        found[label] = float((result[name].double() - wanted).abs().max()) / change
    return found


def beyond(limit: float, found: dict[Hashable, float]) -> dict[Hashable, float]:
    return {label: value for label, value in found.items() if not value < limit}


def tolerance(method: str) -> float:
    return TOLERANCES.get(method, TOLERANCES[methods.method_class(method).family])


def test_every_method_has_an_oracle():
    assert set(methods.names()) == set(ORACLES) == set(PARAMETERS)


@pytest.mark.parametrize("method", methods.names())
def test_every_parameter_is_compared(method):
    declared = {parameter.name for parameter in methods.parameters(methods.method_class(method))}
    compared = {key for parameters in PARAMETERS[method] for key in parameters}
    elsewhere = {"weights", "scale", "conv_as_matrix", "scope", "prior_correction"}  # which have tests of their own
    assert declared - compared <= elsewhere


@pytest.mark.parametrize(("weights", "scale"), [(None, None), (UNEQUAL, 0.7)], ids=["equal", "unequal"])
@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_agrees_with_its_oracle(method, parameters, weights, scale):
    count = experts_of(method)
    tensors = {(shape, size): inputs(shape, count, size) for shape in SHAPES for size in (1.0, 1e-5)}
    found = differences(method, tensors, weights and weights[:count], scale, parameters)
    assert beyond(tolerance(method), found) == {}


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_agrees_in_float32(method, parameters):
    count = experts_of(method)
    tensors = {}
    for shape in [(12, 8), (8, 12), (9, 9)]:
        base, experts = inputs(shape, count, 0.5)
        tensors[shape] = base.float(), [expert.float() for expert in experts]
    found = differences(method, tensors, UNEQUAL[:count], None, parameters)
    assert beyond(FLOAT32_TOLERANCE, found) == {}


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_agrees_for_other_numbers_of_experts_and_weights(method, parameters):
    kind, found = methods.method_class(method), {}
    for weights in ([2.0], [0.3, 0.7], UNEQUAL, [0.0, 1.0, 2.0], [1.0, -0.5, 1.0]):
        if not kind.minimum_experts <= len(weights) <= (kind.maximum_experts or len(weights)):
            continue
        if method == "pcb" and 0 in weights:  # as in SPECIAL
            continue
        if method == "precision_weighted" and min(weights) < 0:  # which it refuses
            continue
        tensors = {shape: inputs(shape, len(weights)) for shape in [(12, 8), (9, 9)]}
        for shape, value in differences(method, tensors, weights, None, parameters).items():
            found[shape, tuple(weights)] = value
    assert beyond(tolerance(method), found) == {}


def special_kinds(method, parameters) -> list[str]:
    """The kinds of input for which the formula says what is to come out."""
    kinds = ["low rank", "duplicates"]
    if method == "pcb":  # nothing says which of equal scores win, and those of an expert that is idle are all equal
        return kinds
    if not {"max_iterations", "tolerance"} & parameters.keys():  # where the iteration ends does not depend on it
        kinds.append("idle")
    if method != "della":  # sums of quotients that cancel but for rounding have any sign
        kinds.append("equal entries")
    return kinds


@pytest.mark.parametrize(("weights", "scale"), [(None, None), (UNEQUAL, 0.7)], ids=["equal", "unequal"])
@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_agrees_on_special_inputs(method, parameters, weights, scale):
    count = experts_of(method)
    kinds = special_kinds(method, parameters)
    tensors = {(kind, shape): inputs(shape, count, kind=kind) for kind in kinds for shape in [(12, 8), (9, 9)]}
    found = differences(method, tensors, weights and weights[:count], scale, parameters)
    assert beyond(tolerance(method), found) == {}


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_agrees_on_convolutions(method, parameters):
    count = experts_of(method)
    shapes = {
        "encoder.layers.0.conv.pointwise_conv1.weight": (8, 6, 1),
        "encoder.layers.0.conv.depthwise_conv.weight": (8, 1, 5),
        "encoder.pre_encode.conv.2.weight": (8, 6, 3),
        "encoder.pre_encode.conv.4.weight": (5, 4, 3, 3),
    }
    tensors = {name: inputs(shape, count) for name, shape in shapes.items()}
    spectral = issubclass(methods.method_class(method), SpectralMethod)
    for further in [{}, {"conv_as_matrix": True}] if spectral else [{}]:
        found = differences(method, tensors, UNEQUAL[:count], 0.7, {**parameters, **further})
        assert beyond(tolerance(method), found) == {}, further


def test_wudi_takes_300_steps_of_adam():
    tensors = {shape: inputs(shape, size=size) for shape, size in (((12, 8), 1.0), ((8, 12), 1e-3), ((9, 9), 1e-5))}
    found = differences("wudi", tensors, parameters={"solver": "adam"})
    assert beyond(tolerance("wudi"), found) == {}


@pytest.mark.parametrize(
    ("method", "parameters", "dtype"),
    [
        ("ties", {"density": 0.3}, torch.float64),
        ("pcb", {"ratio": 0.3}, torch.float32),
        ("pcb", {"ratio": 0.3, "variant": "paper"}, torch.float32),
    ],
    ids=str,
)
def test_the_scope_of_the_model_is_one_long_tensor(method, parameters, dtype):
    names = [f"encoder.layers.{index}.feed_forward1.linear1.weight" for index in range(3)]
    parts = [inputs(shape, 3, size) for shape, size in (((12, 8), 1.0), ((5, 9), 0.1), ((1, 7), 3.0))]
    base = {name: part.to(dtype) for name, (part, _) in zip(names, parts, strict=True)}
    experts = [{name: part[t].to(dtype) for name, (_, part) in zip(names, parts, strict=True)} for t in range(3)]
    result = merge_state_dicts(base, experts, method, scope="model", **parameters)
    long = [torch.cat([model[name].flatten() for name in names])[None] for model in (base, *experts, result)]
    start, *others, merged = (tensor.double() for tensor in long)
    wanted = expected(method, start, others, None, None, parameters)
    assert float((merged - wanted).abs().max() / (wanted - start).abs().max()) < FLOAT32_TOLERANCE


@pytest.mark.parametrize(("method", "parameters"), [("lors", {"rank": 2}), ("cart", {"rank_fraction": 0.02})])
def test_agrees_where_the_svd_is_randomised(method, parameters):
    tensors = {shape: inputs(shape, kind="decaying") for shape in [(150, 110), (110, 150)]}
    found = differences(method, tensors, UNEQUAL[:3], 0.7, parameters)
    assert beyond(tolerance(method), found) == {}


def test_pcb_clips_the_ends_of_large_tensors():
    base, experts = inputs((150, 140), 3, 0.5)  # two entries of 21000 at either end
    base, experts = base.float(), [expert.float() for expert in experts]
    found = differences("pcb", {NAME: (base, experts)}, UNEQUAL[:3], None, {"ratio": 0.3})
    assert found[NAME] < FLOAT32_TOLERANCE


@pytest.mark.parametrize("length", [1.0, 1.7])
@pytest.mark.parametrize("method", ["multislerp", "karcher", "nuslerp"])
def test_opposite_task_vectors_have_no_direction_between_them(method, length):
    """Slerp then goes straight; the mean directions are refused."""
    wrong = []
    for seed in range(12):
        base, (expert,) = inputs((9, 9), 1, seed=seed)
        experts = [expert, base - length * (expert - base)]
        if method == "nuslerp":
            right = differences(method, {NAME: (base, experts)}, (1.0, 2.0))[NAME] < tolerance(method)
        else:
            try:
                merge_state_dicts({NAME: base}, [{NAME: expert} for expert in experts], method, space="task_vectors")
                right = False
            except MergeError:
                right = True
        if not right:
            wrong.append(seed)
    assert wrong == []


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("beta", [0.0, 0.01, 0.4, 1.0])
@pytest.mark.parametrize("kind", ["random", "low rank"])
def test_subspace_boost_agrees_with_its_oracle(shape, beta, kind):
    base, experts = inputs(shape, kind=kind)
    post = {"name": "subspace_boost", "beta": beta}
    result = merge_state_dicts({NAME: base}, [{NAME: e} for e in experts], "task_arithmetic", scale=0.7, then=[post])
    merged = expected("task_arithmetic", base, experts, None, 1.0, {}) - base
    wanted = base + 0.7 * (oracle_subspace_boost(merged, beta) if min(shape) > 1 else merged)
    assert float((result[NAME] - wanted).norm() / (wanted - base).norm()) < TOLERANCES["task subspace"]


@pytest.mark.parametrize("parameters", [{}, {"alpha": 0.3}, {"alpha": 0.0, "beta": 1.5}, {"beta": 0.0}], ids=str)
@pytest.mark.parametrize("stacks", ["separate", "concatenated"])
@pytest.mark.parametrize(("method", "weights", "scale"), [("task_arithmetic", None, None), ("ties", UNEQUAL[:3], 0.7)])
def test_lines_agrees_with_its_oracle(method, weights, scale, stacks, parameters):
    places = {"encoder.pre_encode.out.weight": None}
    for stack, blocks in (("encoder", 4), ("decoder", 2)):
        for block in range(blocks):
            places[f"{stack}.layers.{block}.feed_forward1.linear1.weight"] = (stack, block)
            places[f"{stack}.layers.{block}.feed_forward1.linear1.bias"] = (stack, block)
    parts = {
        name: inputs((7,) if name.endswith("bias") else (7, 5), seed=seed) for seed, name in enumerate(sorted(places))
    }
    base = {name: part for name, (part, _) in parts.items()}
    experts = [{name: part[t] for name, (_, part) in parts.items()} for t in range(3)]
    post = {"name": "lines", "stacks": stacks, **parameters}
    result = merge_state_dicts(base, experts, method, weights, scale, then=[post])
    changes, sums = {}, {}
    for name, start in base.items():
        own = [expert[name] for expert in experts]
        changes[name] = expected(method, start, own, weights, scale, {}) - start
        sums[name] = sum(weight * (e - start) for weight, e in zip(weights or (1.0,) * 3, own, strict=True))
    wanted = oracle_lines(changes, places, sums, 3, stacks=stacks, **parameters)
    for name, change in wanted.items():
        torch.testing.assert_close(result[name] - base[name], change, rtol=1e-9, atol=1e-12)


SMALL_CHANGES = {
    # Where other programs compare with a constant: mean squares of 1e-6, products of norms of 1e-6, float32 arc cosines.
    "sce": ((32, 24), 1e-4, [1.0, 1.0, 3.0]),
    "model_stock": ((64,), 4e-4 / 64**0.5, [1.0, 1.0, 1.0]),
    "karcher": ((48, 32), 1e-3, [1.0, 1.0, 1.0]),
    "multislerp": ((48, 32), 1e-3, [1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("method", SMALL_CHANGES)
def test_changes_of_the_size_of_fine_tuning_follow_the_formula(method):
    shape, size, loudness = SMALL_CHANGES[method]
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(shape, generator=generator)
    experts = [base + factor * size * torch.randn(shape, generator=generator) for factor in loudness]
    merged = merge_state_dicts({NAME: base}, [{NAME: expert} for expert in experts], method)[NAME]
    exact = ORACLES[method](base.double(), [expert.double() for expert in experts], [1.0, 1.0, 1.0])
    change = (exact - base.double()).norm()
    rounding = torch.finfo(torch.float32).eps * base.norm()  # of the result itself, which is stored in float32
    assert (merged.double() - exact).norm() <= 1e-5 * change + rounding
