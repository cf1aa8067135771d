"""The callbacks with a real NeMo model, its data loaders, its error rate, its EMA and its exp_manager."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("soundfile")
from nemo_merge import merge, open_checkpoint
from nemo_merge.cli import cli
from nemo_merge.errors import ConfigError, PlanError
from nemo_merge.hooks import CheckpointMergeCallback, ContinualMergeCallback, MergeCallback
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
    """Audio with transcripts, a base, an expert, and models with other tokens."""
    folder = tmp_path_factory.mktemp("callbacks")
    files = write_audio(folder / "audio", count=6, seconds=0.6)
    for name, some in (("train", files[:4]), ("general", files[4:5]), ("domain", files[5:])):
        write_manifest(folder / f"{name}.json", some, text="ola mundo")
    base = nemo_models.ctc()
    base.save_to(str(folder / "base.nemo"))
    nemo_models.perturbed(base, folder / "expert.nemo", 1)
    labels = nemo_models.LABELS
    nemo_models.ctc(labels=labels[::-1]).save_to(str(folder / "reversed.nemo"))
    nemo_models.ctc(labels=(*labels, "ç")).save_to(str(folder / "more.nemo"))
    return folder


def train(home, *callbacks, **options):
    from tests.fixtures.lightning_models import fit, weights_of

    model = nemo_models.ctc()
    loader = {
        "use_lhotse": True,
        "sample_rate": 16000,
        "labels": list(nemo_models.LABELS),
        "batch_size": 2,
        "num_workers": 0,
        "use_bucketing": False,
        "shard_seed": 0,
        "seed": 0,
    }
    model.setup_training_data({**loader, "manifest_filepath": str(home / "train.json"), "shuffle": True})
    sets = [str(home / f"{name}.json") for name in ("general", "domain")]
    model.setup_multiple_validation_data({**loader, "manifest_filepath": sets, "shuffle": False})
    trainer = fit(model, *callbacks, **{"steps": 4, "use_distributed_sampler": False, **options})
    return trainer, model, weights_of(model)


@pytest.fixture(scope="module")
def alone(home):
    return train(home)[2]


def content(path):
    with open_checkpoint(path) as file:
        return {name: file[name].clone() for name in file}


def restored(path):
    from nemo.collections.asr.models import ASRModel

    return ASRModel.restore_from(str(path), map_location="cpu")


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
    trainer, _, weights = train(home, merging, averaging)
    assert same(weights, alone)
    assert [outcome.step for outcome in merging.outcomes] == [2, 4]
    for kind in ("merge", "expert", "last"):
        names = {f"{kind}/{name}" for name in ("val_wer", "general_val_wer", "domain_val_wer", "val_loss")}
        assert names <= trainer.callback_metrics.keys()
    assert same(content(tmp_path / "merged.trained.nemo"), alone)
    inputs = [tmp_path / "merged.trained.nemo", home / "expert.nemo"]
    merge(home / "base.nemo", inputs, "tsvm", output=tmp_path / "by_hand.nemo")
    model = restored(tmp_path / "merged.nemo")
    assert same(dict(model.state_dict()), content(tmp_path / "by_hand.nemo"))
    record = model.cfg.nemo_merge
    assert record.method.name == "tsvm"
    assert record.experts[0].path == str(inputs[0])
    restored(tmp_path / "average.nemo")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_moving_average_is_what_is_merged_where_it_is_validated(home, tmp_path):
    from nemo.collections.common.callbacks import EMA

    from tests.fixtures.lightning_models import weights_of

    plain = EMA(0.5)
    trainer, model, weights = train(home, plain)
    for before in (True, False):
        output = tmp_path / f"merged_{before}.nemo"
        merging = MergeCallback(home / "base.nemo", output=output, method="soup", every_n_validations=2, keep="both")
        ema = EMA(0.5)
        trainer, model, again = train(home, *([merging, ema] if before else [ema, merging]))
        assert same(weights, again)
        ema.swap_model_weights(trainer)
        average = weights_of(model)
        assert not same(average, weights)
        assert same(content(output.with_suffix(".trained.nemo")), average)
        metrics = merging.outcomes[0]
        assert metrics.trained == pytest.approx(metrics.merged, abs=1e-5)  # a soup of one is that one


def test_checkpoints_of_exp_manager_are_merged_by_the_callback_and_by_the_command(home, tmp_path):
    """What NeMo's scripts for averaging did."""
    from nemo.utils.exp_manager import exp_manager
    from omegaconf import OmegaConf

    config = {
        "exp_dir": str(tmp_path / "exp"),
        "name": "run",
        "use_datetime_version": False,
        "create_tensorboard_logger": False,
        "seconds_to_sleep": 0,
        "checkpoint_callback_params": {"monitor": "val_wer", "save_top_k": 3, "always_save_nemo": False},
    }
    averaging = CheckpointMergeCallback(tmp_path / "average.nemo", last=2, from_checkpoints=True)
    train(home, averaging, steps=6, prepare=lambda trainer: exp_manager(trainer, OmegaConf.create(config)))
    saved = content(tmp_path / "average.nemo")
    restored(tmp_path / "average.nemo")
    paths = [entry["path"] for entry in open_checkpoint(tmp_path / "average.nemo").metadata.provenance["experts"]]
    assert len(paths) == 2
    assert all("-last" not in path for path in paths)
    experts = "[" + ",".join(f"'{path}'" for path in paths) + "]"
    settings = ["method=soup", f"base={home / 'base.nemo'}", f"experts={experts}", f"output={tmp_path / 'o.nemo'}"]
    done = CliRunner().invoke(cli, ["merge", *settings])
    assert done.exit_code == 0, done.output
    by_hand = content(tmp_path / "o.nemo")
    for name, value in saved.items():
        if value.is_floating_point():
            torch.testing.assert_close(by_hand[name], value, rtol=1e-6, atol=1e-7)


def test_other_tokens_are_found_at_the_start(home, tmp_path):
    output = tmp_path / "merged.nemo"
    with pytest.raises(PlanError, match="tokenizer differs"):
        train(home, MergeCallback(home / "base.nemo", [home / "more.nemo"], "soup", output=output))
    with pytest.raises(ConfigError, match="in another order"):
        train(home, MergeCallback(home / "reversed.nemo", [home / "expert.nemo"], "soup", output=output))
    with pytest.raises(PlanError, match="its tokens differ"):
        train(home, ContinualMergeCallback(home / "reversed.nemo"))
    assert list(tmp_path.iterdir()) == []


def test_an_expert_with_more_tokens_merges_into_those_of_the_base(home, tmp_path):
    merging = MergeCallback(
        home / "base.nemo",
        [home / "more.nemo"],
        "soup",
        output=tmp_path / "merged.nemo",
        vocabulary="base",
        keep="merged",
    )
    train(home, merging, steps=2)
    assert merging.outcomes[0].kept == "merged"
    restored(tmp_path / "merged.nemo")


def test_interpolation_toward_a_nemo_file(home, alone):
    _, _, weights = train(home, ContinualMergeCallback(home / "expert.nemo", alpha=0.25, exclude=r"^decoder\."))
    expert = content(home / "expert.nemo")
    for name, value in weights.items():
        if not value.is_floating_point() or name.startswith(("decoder.", "preprocessor.")):
            assert torch.equal(value, alone[name])
        else:
            torch.testing.assert_close(value, expert[name] + 0.25 * (alone[name] - expert[name]), rtol=1e-5, atol=1e-6)
