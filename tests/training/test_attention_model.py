from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nemo_merge.errors import ConfigError
from nemo_merge.training.attention_model import AttentionModelJob, _take_encoder, _texts_by_language
from nemo_merge.training.jobs import read_job, write_job

from ..fixtures import models


def encoder(width: int = 3) -> SimpleNamespace:
    """What of a model is looked at."""
    return SimpleNamespace(encoder=torch.nn.Linear(width, 4))


def test_the_encoder_is_that_of_the_other_model(tmp_path):
    given = encoder().encoder
    weights = {f"encoder.{name}": tensor.detach() for name, tensor in given.named_parameters()}
    path = models.write_nemo(tmp_path / "ctc.nemo", {**weights, "decoder.weight": torch.ones(2)})
    model = encoder()
    _take_encoder(model, path)
    assert torch.equal(model.encoder.weight, given.weight)
    assert torch.equal(model.encoder.bias, given.bias)
    with pytest.raises(ConfigError, match=r"ctc\.nemo: its encoder is another one: size mismatch for weight"):
        _take_encoder(encoder(5), path)


def test_every_language_of_the_transcripts_gets_a_tokenizer(tmp_path):
    pytest.importorskip("lhotse")
    from lhotse import CutSet, SupervisionSegment
    from lhotse.testing.dummies import dummy_cut

    def write(name: str, *texts: tuple[str | None, str]) -> str:
        said = [SupervisionSegment(f"u{i}", "r", 0, 1, text=text, language=at) for i, (at, text) in enumerate(texts)]
        cuts = CutSet.from_cuts(dummy_cut(index, supervisions=[one]) for index, one in enumerate(said))
        cuts.to_file(tmp_path / name)
        return str(tmp_path / name)

    both = [write("pt.jsonl.gz", ("pt", "olá"), ("pt", "adeus")), write("st.jsonl.gz", ("en", "hello"), ("pt", "sim"))]
    assert _texts_by_language(both) == {"pt": ["olá", "adeus", "sim"], "en": ["hello"]}
    with pytest.raises(ConfigError, match=r"bad\.jsonl\.gz: u0 does not say the language of its text"):
        _texts_by_language([write("bad.jsonl.gz", (None, "hm"))])


def test_the_job_is_written_and_read(tmp_path):
    job = AttentionModelJob("out.nemo", {"sample_rate": 16000}, ["cuts.jsonl.gz"], 64, "ctc.nemo", seed=3)
    assert read_job(write_job(job, tmp_path / "job.json")) == job
