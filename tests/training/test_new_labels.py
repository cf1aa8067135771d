"""Characters that a base lacks: their outputs are added, learnt and merged, and the base's own stay."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

pytest.importorskip("soundfile")
from nemo_merge import merge, open_checkpoint
from nemo_merge.errors import ConfigError
from nemo_merge.training.checks import check_job
from nemo_merge.training.fine_tune import FineTuningJob, fine_tune
from tests.fixtures import nemo_models
from tests.fixtures.audio import write_audio, write_manifest

pytestmark = [pytest.mark.nemo, pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")]

ROWS = "decoder.decoder_layers.0.weight"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new_labels")
    write_manifest(folder / "train.json", write_audio(folder / "audio"), text="ω gato ß")
    nemo_models.ctc().save_to(str(folder / "ctc.nemo"))
    (folder / "pieces").mkdir()
    nemo_models.ctc_pieces(folder / "pieces").save_to(str(folder / "pieces.nemo"))
    return folder


@pytest.fixture
def job(home, tmp_path):
    def make(**fields):
        return FineTuningJob(**{
            "base": str(home / "ctc.nemo"), "output": str(tmp_path / "tuned.nemo"), "train": [str(home / "train.json")],
            "steps": 2, "batch_size": 4, "optim": {"name": "adamw", "lr": 1e-4}, "labels": ["a", "ß", "ω"], **fields,
        })  # fmt: skip

    return make


def test_new_characters_get_rows_and_the_base_keeps_its_own(job, tmp_path):
    lines = []
    one = job(trainable=[r"norm_out\.bias"])  # the output layer itself is not trained
    fine_tune(one, lines.append)
    assert "2 new characters: 'ß' 'ω'" in lines
    with open_checkpoint(one.base) as base, open_checkpoint(one.output) as tuned:
        known = [token.text for token in base.vocabulary().tokens]
        assert [token.text for token in tuned.vocabulary().tokens] == [*known, "ß", "ω"]
        assert tuned[ROWS].shape[0] == len(known) + 3  # and the blank
        assert torch.equal(tuned[ROWS][: len(known)], base[ROWS][: len(known)])
        assert torch.equal(tuned[ROWS][-1], base[ROWS][-1])
        assert torch.equal(tuned["encoder.pre_encode.out.weight"], base["encoder.pre_encode.out.weight"])


def test_they_are_trained_and_a_union_takes_them(job, tmp_path):
    one = job(trainable="decoder", optim={"name": "adamw", "lr": 1e-2})
    fine_tune(one)
    with open_checkpoint(job(labels=()).base) as base:
        known = len(base.vocabulary())
    merged = tmp_path / "merged.nemo"
    report = merge(one.base, [one.output], "lors", scale=0.5, vocabulary="union", output=merged)
    assert report.provenance["vocabulary"]["added"] == 2
    with open_checkpoint(one.output) as tuned, open_checkpoint(merged) as found:
        assert torch.equal(found[ROWS][known:-1], tuned[ROWS][known:-1])  # no scale: there is no base to go back to


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": "ßω"}, "is not a list of characters"),
        ({"labels": ["ß", "ß"]}, "a character appears twice"),
        ({"trainable": "encoder"}, "would leave the outputs of new characters as they were drawn"),
        ({"trainable": "lora", "adapter": {"r": 2}}, "would leave the outputs"),
        ({"scale": 0.5}, "no weights in the base that scale could go back to"),
        ({"regulariser": {"name": "ewc", "fisher": "x", "gamma": 1.0}}, "ewc knows nothing of new characters"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(job, fields, message):
    with pytest.raises(ConfigError, match=message):
        check_job(job(**fields))


def test_word_pieces_do_not_grow(home, job):
    with pytest.raises(ConfigError, match="writes pieces of words"):
        fine_tune(job(base=str(home / "pieces.nemo")))
