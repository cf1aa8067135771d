from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base, an expert, a broken one and one of another size, as files; and the weights of a training without callbacks."""
    pytest.importorskip("lightning")
    from safetensors.torch import save_file

    from tests.fixtures.lightning_models import Tiny, fit, weights_of

    folder = tmp_path_factory.mktemp("home")
    save_file(weights_of(Tiny()), folder / "base.safetensors")
    expert = Tiny()
    fit(expert, steps=3)
    save_file(weights_of(expert), folder / "expert.safetensors")
    broken = weights_of(expert)
    broken["linear2.weight"][0, 0] = float("nan")
    save_file(broken, folder / "broken.safetensors")
    save_file(
        {**weights_of(expert), "linear2.bias": expert.linear2.bias.detach().repeat(2)}, folder / "other.safetensors"
    )
    alone = Tiny()
    fit(alone)
    save_file(weights_of(alone), folder / "alone.safetensors")
    return folder
