from __future__ import annotations

import dataclasses
import inspect

import pytest

from nemo_merge import methods
from nemo_merge.errors import ConfigError
from nemo_merge.methods import Method


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_documented(name):
    cls = methods.method_class(name)
    assert cls.name == name
    assert cls.source
    assert "arXiv" in inspect.getdoc(cls)
    for item in methods.parameters(cls):
        assert item.description.endswith(".")
    assert [item.name for item in methods.parameters(cls)][-2:] == ["scale", "weights"]


@pytest.mark.parametrize("name", methods.names())
def test_defaults_are_valid_and_frozen(name):
    method = methods.get(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.scale = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tie", {}, "no merging method 'tie'; did you mean 'ties'"),
        ("zzz", {}, "known: boosted_tsvm"),
        ("ties", {"densty": 0.1}, "no parameter 'densty'; did you mean 'density'"),
        ("ties", {"density": 7}, "density=7 is out of range: 0 < x <= 1"),
        ("ties", {"density": 0}, "out of range"),
        ("ties", {"density": "much"}, "density='much' is not float"),
        ("ties", {"density": None}, "may not be empty"),
        ("ties", {"density": float("nan")}, "out of range"),
        ("ties", {"scope": "modle"}, "not one of tensor, model; did you mean 'model'"),
        ("boosted_tsvm", {"beta": -0.1}, "out of range: 0 <= x <= 1"),
        ("boosted_tsvm", {"energy_power": 3}, "not one of 1, 2"),
        ("tsvm", {"steps": 2.5}, "steps=2.5 is not int"),
        ("tsvm", {"steps": True}, "steps=True is not int"),
        ("tsvm", {"rank_fraction": 1.5}, "out of range"),
        ("soup", {"weights": 2}, "not a list"),
        ("soup", {"weights": [1, float("inf")]}, "not finite"),
        ("soup", {"weights": ["a"]}, "not finite numbers"),
        ("soup", {"scale": float("inf")}, "scale=inf is not a finite number"),
        ("soup", {"scale": -1e39}, r"scale=-1e\+39 is not a finite number in float32"),
        ("task_arithmetic", {"lambda": 1}, "no parameter 'lambda'"),
    ],
)
def test_wrong_parameters_are_refused_with_the_remedy(name, values, message):
    with pytest.raises(ConfigError, match=message):
        methods.get(name, **values)


def test_wrong_number_of_weights():
    with pytest.raises(ConfigError, match="2 weights for 3 experts"):
        methods.get("soup", weights=[1, 2]).resolved_weights(3)


def test_two_methods_cannot_have_one_name():
    @dataclasses.dataclass(frozen=True)
    class Other(methods.method_class("soup")):  # type: ignore[misc]
        """Another soup."""

    with pytest.raises(ValueError, match="already a merging method called 'soup'"):
        methods.register(Other)
    assert methods.method_class("soup") is not Other
    assert issubclass(Other, Method)
