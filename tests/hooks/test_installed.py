"""The installed package in a process of its own: a script of NeMo that knows nothing of it has its hooks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

soundfile = pytest.importorskip("soundfile")
from nemo_merge import open_checkpoint  # noqa: E402
from tests.fixtures import nemo_models  # noqa: E402
from tests.fixtures.audio import write_audio, write_manifest  # noqa: E402

ROOT = Path(__file__).parents[2]
SOURCES = ("nemo_merge", "configs", "hydra_plugins", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(find_spec, ("pip", "setuptools"))), reason="pip or setuptools is not installed"),
]

# As NeMo's examples/asr/asr_ctc/speech_to_text_ctc.py.
SCRIPT = """
import lightning.pytorch as pl
from nemo.collections.asr.models import EncDecCTCModel
from nemo.core.config import hydra_runner
from nemo.utils.exp_manager import exp_manager
from nemo.utils.trainer_utils import resolve_trainer_cfg

@hydra_runner(config_path="conf", config_name="run")
def main(cfg):
    trainer = pl.Trainer(**resolve_trainer_cfg(cfg.trainer))
    exp_manager(trainer, cfg.get("exp_manager", None))
    model = EncDecCTCModel(cfg=cfg.model, trainer=trainer)
    model.maybe_init_from_pretrained_checkpoint(cfg)
    trainer.fit(model)

main()
"""
LOOK = """
import json, sys
from importlib.metadata import entry_points
import nemo_merge
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra import compose, initialize
(factory,) = [item for item in entry_points(group="lightning.pytorch.callbacks_factory") if item.name == "nemo_merge"]
assert factory.load()() == []
assert "torch" not in sys.modules
assert any(item.__name__ == "NemoMergeSearchPath" for item in Plugins.instance().discover(SearchPathPlugin))
with initialize(None, version_base=None):
    config = compose(overrides=["+nemo_merge/merge=ties"])
print(json.dumps([nemo_merge.__file__, config.nemo_merge.merge.method.name]))
"""


CALLBACKS = """\
callbacks:
  - provenance
  - {name: checkpoint_merge, output: averaged.nemo, last: 2, every_n_steps: 1, monitor: null}
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy, so that building leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(sources))
    (file,) = folder.glob("*.whl")
    return file


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def environment(folder: Path, *install: str) -> Path:
    """The interpreter of a fresh environment, which sees the packages of this one behind its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", str(python), "install", "--no-deps", "--no-build-isolation", "--no-index", *install)
    return python


def run(python: Path, *arguments: str, cwd: Path, **variables: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "NEMO_MERGE_CALLBACKS")}
    done = subprocess.run(
        [str(python), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, "OMP_NUM_THREADS": "1", **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("way", ["wheel", "editable"])
def test_an_installation_has_entry_point_and_configurations(way, sources, wheel, tmp_path):
    python = environment(tmp_path / "venv", *([str(wheel)] if way == "wheel" else ["--editable", str(sources)]))
    where, name = yaml.safe_load(run(python, "-c", LOOK, cwd=tmp_path).splitlines()[-1])
    assert Path(where).is_relative_to(tmp_path / "venv" if way == "wheel" else sources)
    assert name == "ties"


@pytest.mark.nemo
@pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")
def test_a_script_of_nemo_starts_from_a_merge(wheel, characters, tmp_path):
    """Hydra's defaults, data by domain, starting weights and provenance, with nothing of ours in the script."""
    for split, count in (("train", 4), ("dev", 2)):
        files = write_audio(tmp_path / "data" / split, count=count, seconds=0.6)
        (tmp_path / "data" / "telephone").mkdir(exist_ok=True)
        write_manifest(tmp_path / "data" / "telephone" / f"{split}.json", files, text="ola", lang="pt")

    def data(split: str) -> dict:
        entry = {"type": "nemo_merge_domain", "corpus": "mine", "domain": "telephone", "split": split, "root": "data"}
        loader = {"use_lhotse": True, "sample_rate": 16000, "labels": list(nemo_models.LABELS), "batch_size": 2}
        return {
            **loader,
            "input_cfg": [entry],
            "shuffle": False,
            "num_workers": 0,
            "force_finite": True,
            "shard_seed": 0,
        }

    model = {
        "sample_rate": 16000,
        "labels": list(nemo_models.LABELS),
        "preprocessor": nemo_models.PREPROCESSOR,
        "encoder": nemo_models.ENCODER,
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": None,
            "num_classes": len(nemo_models.LABELS),
            "vocabulary": list(nemo_models.LABELS),
        },
        "optim": {"name": "sgd", "lr": 0.0},
        "train_ds": data("train"),
        "validation_ds": data("dev"),
    }
    config = {
        "defaults": ["nemo_merge/merge", "_self_"],
        "name": "tiny",
        "init_from_merge": "${nemo_merge.merge}",
        "nemo_merge": {"merge": {"base": str(characters.base), "experts": characters.words}},
        "model": model,
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": 2, "logger": False, "enable_checkpointing": False,
            "use_distributed_sampler": False, "enable_progress_bar": False, "num_sanity_val_steps": 0,
        },
        "exp_manager": {
            "exp_dir": "exp", "name": "tiny", "create_tensorboard_logger": False, "seconds_to_sleep": 0,
            "use_datetime_version": False, "create_checkpoint_callback": True,
            "checkpoint_callback_params": {"monitor": "val_loss", "always_save_nemo": True},
        },
    }  # fmt: skip
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (tmp_path / "callbacks.yaml").write_text(CALLBACKS)
    (tmp_path / "speech_to_text_ctc.py").write_text(SCRIPT)
    python = environment(tmp_path / "venv", str(wheel))
    run(
        python,
        "speech_to_text_ctc.py",
        "nemo_merge/merge=soup",
        "nemo_merge.merge.method.weights=[3,1]",
        cwd=tmp_path,
        NEMO_MERGE_CALLBACKS="callbacks.yaml",
    )
    from nemo_merge import merge

    merge(characters.base, characters.experts, "soup", weights=[3, 1], output=tmp_path / "wanted.nemo")
    (saved,) = tmp_path.glob("exp/**/tiny.nemo")
    with open_checkpoint(saved) as trained, open_checkpoint(tmp_path / "wanted.nemo") as wanted:
        record = trained.metadata.provenance
        for name, value in wanted.items():  # the learning rate is 0, and statistics are no weights
            if "batch_norm.running" not in name and "num_batches" not in name:
                assert (trained[name] == value).all(), name
    (start,), (training,) = record["started_from"], record["training"]
    assert (start["how"], start["merged_from"]["method"]["weights"]) == ("init_from_merge", [3.0, 1.0])
    assert (training["from_step"], training["to_step"]) == (0, 2)
    with open_checkpoint(tmp_path / "averaged.nemo") as averaged:
        assert averaged.metadata.provenance["method"]["name"] == "soup"
