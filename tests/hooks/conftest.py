"""Tiny NeMo models for all tests of the hooks, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from nemo_merge.hooks import unregister
from tests.fixtures import nemo_models


@dataclass(frozen=True)
class Family:
    """A base and its experts, as files."""

    base: Path
    experts: list[Path]

    @property
    def words(self) -> list[str]:
        return [str(path) for path in self.experts]


def family(folder: Path, model) -> Family:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_to(str(folder / "base.nemo"))
    experts = [nemo_models.perturbed(model, folder / f"expert_{seed}.nemo", seed) for seed in (1, 2)]
    return Family(folder / "base.nemo", experts)


@pytest.fixture(scope="package")
def characters(tmp_path_factory) -> Family:
    """CTC over characters."""
    return family(tmp_path_factory.mktemp("characters"), nemo_models.ctc())


@pytest.fixture(scope="package")
def pieces(tmp_path_factory) -> Family:
    """CTC over word pieces, which has tokenizer files packed with it."""
    folder = tmp_path_factory.mktemp("pieces")
    return family(folder, nemo_models.ctc_pieces(folder))


@pytest.fixture
def registered():
    """The hooks, and no trace of them afterwards."""
    from nemo_merge import register

    register()
    yield
    unregister()
