"""Configurations of NeMo find ours by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import nemo_merge
from nemo_merge import methods
from nemo_merge.cli.settings import settings_of

CONFIGS = Path(__file__).parents[2] / "configs"


def composed(folder: Path, text: str, *overrides: str):
    (folder / "run.yaml").write_text(text)
    with initialize_config_dir(str(folder), version_base=None):
        return compose("run", overrides=list(overrides))


def test_the_package_has_the_files_of_the_repository():
    folder = Path(nemo_merge.__file__).parent / "configs" / "nemo_merge"
    assert {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")} == {
        path.relative_to(folder) for path in folder.rglob("*.yaml")
    }


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("init_from_merge: ${nemo_merge.merge}\nnemo_merge: {merge: {base: base.nemo, experts: [a.nemo]}}\n", []),
        (
            "",
            [
                "+init_from_merge=${nemo_merge.merge}",
                "nemo_merge.merge.base=base.nemo",
                "nemo_merge.merge.experts=[a.nemo]",
            ],
        ),
    ],
)
def test_defaults_of_a_merge(tmp_path, text, overrides):
    config = composed(tmp_path, f"defaults: [nemo_merge/merge, _self_]\nname: run\n{text}", *overrides)
    settings, method = settings_of(OmegaConf.to_container(config.init_from_merge, resolve=True))
    assert (settings.base, settings.experts, method) == ("base.nemo", ["a.nemo"], methods.get("boosted_tsvm"))


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_a_choice(tmp_path, name):
    text = "defaults: [nemo_merge/merge, _self_]\nname: run\n"
    chosen = composed(tmp_path, text, f"nemo_merge/merge={name}", "nemo_merge.merge.base=b.nemo")
    settings, method = settings_of(OmegaConf.to_container(chosen.nemo_merge.merge))
    assert (settings.base, method) == ("b.nemo", methods.get(name))


def test_a_method_can_be_put_elsewhere(tmp_path):
    config = composed(
        tmp_path, "defaults: [nemo_merge/merge@init_from_merge: ties, _self_]\n", "init_from_merge.base=b"
    )
    assert (config.init_from_merge.method.name, config.init_from_merge.base) == ("ties", "b")
    assert "nemo_merge" not in config
