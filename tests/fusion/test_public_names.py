"""Public names are there, and importing the package loads none of what they need."""

from __future__ import annotations

import pytest

from nemo_merge import fusion
from tests.test_package import loaded_after


def test_importing_loads_nothing_heavy():
    assert not loaded_after("import nemo_merge.fusion") & {"torch", "nemo", "lightning", "lhotse", "transformers"}
    loaded = loaded_after("from nemo_merge.fusion import HConv, UpstreamFusion, cache_features")
    assert "torch" in loaded
    assert not loaded & {"nemo", "lightning", "lhotse", "transformers", "peft"}


def test_public_names_are_there():
    for name in fusion.__all__:
        if name != "FusedUpstreamPreprocessor":  # which needs NeMo
            assert getattr(fusion, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'HConf'"):
        fusion.HConf  # noqa: B018
