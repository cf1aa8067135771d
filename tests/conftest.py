from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .fixtures import models


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def family() -> tuple[models.StateDict, list[models.StateDict]]:
    """A base and three experts, as state dicts."""
    return models.family()


@pytest.fixture
def nemo_family(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base and three experts, as ``.nemo`` files."""
    base, experts = models.family()
    folder = tmp_path / "inputs"
    folder.mkdir()
    paths = [models.write_nemo(folder / f"expert_{index}.nemo", expert) for index, expert in enumerate(experts)]
    return models.write_nemo(folder / "base.nemo", base), paths
