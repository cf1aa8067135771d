"""The callbacks with a real NeMo model, its data loaders and its error rate."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest.importorskip("soundfile")
from nemo_merge import merge, open_checkpoint
from nemo_merge.hooks import CheckpointMergeCallback, MergeCallback
from tests.fixtures import nemo_models
from tests.fixtures.audio import write_audio, write_manifest
from tests.fixtures.models import same

pytestmark = [
    pytest.mark.nemo,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Audio with transcripts, a base and an expert."""
    folder = tmp_path_factory.mktemp("callbacks")
    files = write_audio(folder / "audio", count=6, seconds=0.6)
    for name, some in (("train", files[:4]), ("general", files[4:5]), ("domain", files[5:])):
        write_manifest(folder / f"{name}.json", some, text="ola mundo")
    base = nemo_models.ctc()
    base.save_to(str(folder / "base.nemo"))
    nemo_models.perturbed(base, folder / "expert.nemo", 1)
    return folder


def model_of(home):
    model = nemo_models.ctc()
    loader = {"sample_rate": 16000, "labels": list(nemo_models.LABELS), "batch_size": 2, "num_workers": 0}
    model.setup_training_data({**loader, "manifest_filepath": str(home / "train.json"), "shuffle": True})
    sets = [str(home / f"{name}.json") for name in ("general", "domain")]
    model.setup_multiple_validation_data({**loader, "manifest_filepath": sets, "shuffle": False})
    return model


def train(home, *callbacks, **options):
    from tests.fixtures.lightning_models import fit, weights_of

    model = model_of(home)
    trainer = fit(model, *callbacks, **{"steps": 4, "use_distributed_sampler": False, **options})
    return trainer, weights_of(model)


@pytest.fixture(scope="module")
def alone(home):
    return train(home)[1]


def test_training_is_the_same_and_the_output_is_the_merge(home, alone, tmp_path):
    merging = MergeCallback(
        str(home / "base.nemo"),
        [str(home / "expert.nemo")],
        "tsvm",
        output=tmp_path / "merged.nemo",
        every_n_validations=1,
        keep="both",
        limits={"domain_val_wer": 1.0},
    )
    averaging = CheckpointMergeCallback(tmp_path / "average.nemo", last=2)
    trainer, weights = train(home, merging, averaging)
    assert same(weights, alone)
    assert [outcome.step for outcome in merging.outcomes] == [2, 4]
    metrics = trainer.callback_metrics
    assert {"merge/val_wer", "expert/val_wer", "last/val_wer"} <= metrics.keys()
    assert (
        sum("merge/val_wer" in name or name.startswith("merge/") for name in metrics) >= 4
    )  # two sets, loss and error

    from nemo.collections.asr.models import ASRModel

    with open_checkpoint(tmp_path / "merged.trained.nemo") as file:
        assert same({name: file[name] for name in file}, alone)
    merge(
        home / "base.nemo",
        [tmp_path / "merged.trained.nemo", home / "expert.nemo"],
        "tsvm",
        output=tmp_path / "by_hand.nemo",
    )
    restored = ASRModel.restore_from(str(tmp_path / "merged.nemo"), map_location="cpu")
    with open_checkpoint(tmp_path / "by_hand.nemo") as file:
        assert same(dict(restored.state_dict()), {name: file[name] for name in file})
    record = restored.cfg.nemo_merge
    assert record.method.name == "tsvm"
    assert record.experts[0].path == str(tmp_path / "merged.trained.nemo")
    ASRModel.restore_from(str(tmp_path / "average.nemo"), map_location="cpu")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
