"""A model that was trained after a merge says both."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

soundfile = pytest.importorskip("soundfile")
from nemo_merge import merge, open_checkpoint  # noqa: E402
from nemo_merge.errors import CheckpointError  # noqa: E402
from nemo_merge.merging.reproduce import reproduce  # noqa: E402
from tests.fixtures import nemo_models  # noqa: E402
from tests.fixtures.audio import write_audio, write_manifest  # noqa: E402

pytestmark = [pytest.mark.nemo, pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    return write_manifest(folder / "train.json", write_audio(folder, count=4, seconds=0.5), text="ola")


def train(model, manifest, steps: int, **options: Any):
    import lightning.pytorch as pl
    from omegaconf import OmegaConf

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        max_steps=steps, use_distributed_sampler=False, **{"enable_checkpointing": False, **quiet, **options}
    )
    model.set_trainer(trainer)
    model.setup_training_data(
        OmegaConf.create(
            {
                "manifest_filepath": str(manifest),
                "sample_rate": 16000,
                "labels": list(nemo_models.LABELS),
                "batch_size": 2,
            }
        )
    )
    model.setup_optimization(OmegaConf.create({"name": "sgd", "lr": 1e-4}))
    trainer.fit(model)
    return trainer


@pytest.fixture(scope="module")
def merged(characters, tmp_path_factory):
    output = tmp_path_factory.mktemp("merged") / "merged.nemo"
    merge(characters.base, characters.experts, "soup", output=output)
    return output


def test_training_after_a_merge_is_noted(merged, manifest, registered, tmp_path):
    from nemo.collections.asr.models import ASRModel

    from nemo_merge.hooks import ProvenanceCallback

    model = ASRModel.restore_from(str(merged), map_location="cpu")
    model.save_to(str(tmp_path / "untrained.nemo"))
    with open_checkpoint(tmp_path / "untrained.nemo") as untrained, open_checkpoint(merged) as first:
        assert untrained.metadata.provenance == first.metadata.provenance

    # Beside the one that NeMo's group adds, as a file of callbacks may: they do not count steps twice.
    trainer = train(model, manifest, 3, callbacks=[ProvenanceCallback()])
    assert sum(isinstance(item, ProvenanceCallback) for item in trainer.callbacks) == 1
    model.save_to(str(tmp_path / "trained.nemo"))
    with open_checkpoint(tmp_path / "trained.nemo") as trained:
        record = trained.metadata.provenance
    (start,), (training,) = record["started_from"], record["training"]
    assert (start["how"], start["merged_from"]["method"]["name"]) == ("restore_from", "soup")
    assert (training["from_step"], training["to_step"]) == (0, 3)
    with pytest.raises(CheckpointError, match="not that of a merge that can be repeated"):
        reproduce(tmp_path / "trained.nemo")

    # Training again goes on with the same history, and a merge of the result knows of it.
    again = ASRModel.restore_from(str(tmp_path / "trained.nemo"), map_location="cpu")
    train(again, manifest, 1)
    assert [entry.to_step for entry in again.cfg.nemo_merge.training] == [3, 1]
    assert len(again.cfg.nemo_merge.started_from) == 1
    again.save_to(str(tmp_path / "again.nemo"))
    report = merge(merged, [tmp_path / "again.nemo"], "task_arithmetic", output=tmp_path / "second.nemo")
    (expert,) = report.provenance["experts"]
    assert expert["fine_tuned"]["started_from"][0]["merged_from"]["method"]["name"] == "soup"


def test_checkpoints_of_lightning_say_it_too(merged, manifest, registered, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint
    from nemo.collections.asr.models import ASRModel

    model = ASRModel.restore_from(str(merged), map_location="cpu")
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    train(model, manifest, 2, enable_checkpointing=True, callbacks=[saver])
    with open_checkpoint(tmp_path / "step=1.ckpt") as checkpoint:
        record = checkpoint.metadata.config["cfg"]["nemo_merge"] if "cfg" in checkpoint.metadata.config else None
        record = record or checkpoint.metadata.provenance or checkpoint.metadata.config["nemo_merge"]
    assert record["training"][0]["to_step"] == 1


def test_other_models_are_left_alone(characters, manifest, registered):
    from nemo.collections.asr.models import ASRModel

    model = ASRModel.restore_from(str(characters.base), map_location="cpu")
    train(model, manifest, 1)
    assert "nemo_merge" not in model.cfg
