"""The package is light, and every name that it lists is there."""

from __future__ import annotations

import pytest

import nemo_merge.adapters
from tests.test_package import loaded_after


def test_importing_it_loads_nothing_heavy():
    assert not loaded_after("import nemo_merge.adapters") & {"torch", "peft", "lightning", "nemo", "transformers"}


def test_public_names_are_there():
    for name in nemo_merge.adapters.__all__:
        assert getattr(nemo_merge.adapters, name).__module__.startswith("nemo_merge.adapters.")
    with pytest.raises(AttributeError, match="no attribute 'inject'"):
        nemo_merge.adapters.inject  # noqa: B018
