"""Models that are merged while NeMo restores them are the models that a merge into a file gives."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
import yaml

from nemo_merge import merge, open_checkpoint
from nemo_merge.errors import CheckpointError, ConfigError, PlanError
from tests.fixtures import nemo_models
from tests.fixtures.nemo_models import LABELS

pytestmark = [pytest.mark.nemo, pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")]


def restore(path, connector, **options):
    from nemo.collections.asr.models import ASRModel

    return ASRModel.restore_from(
        str(path), save_restore_connector=connector, **{"map_location": "cpu", "strict": True, **options}
    )


def write_yaml(path, **settings):
    path.write_text(yaml.safe_dump(settings))
    return path


def assert_same(model, file):
    state = model.state_dict()
    with open_checkpoint(file) as checkpoint:
        assert set(state) == set(checkpoint)
        for name, value in checkpoint.items():
            assert torch.equal(state[name], value), name


def test_a_configuration_is_restored_as_its_merge(characters, tmp_path):
    from nemo_merge.hooks import MergeConnector

    merge(characters.base, characters.experts, "ties", density=0.3, output=tmp_path / "merged.nemo")
    folder = characters.base.parent  # relative paths count from the file
    path = write_yaml(
        folder / "merge.yaml",
        base="base.nemo",
        experts=["expert_1.nemo", {"path": "expert_2.nemo"}],
        method={"name": "ties", "density": 0.3},
    )
    model = restore(path, MergeConnector())
    assert_same(model, tmp_path / "merged.nemo")
    assert model.cfg.nemo_merge.method.name == "ties"


@pytest.mark.parametrize("method", ["soup", "boosted_tsvm"])
def test_settings_of_the_connector(characters, tmp_path, method):
    from nemo_merge import methods
    from nemo_merge.hooks import MergeConnector

    merge(
        characters.base, characters.experts, method, weights=[0.7, 0.3], batch_norm="pooled", output=tmp_path / "m.nemo"
    )
    named = MergeConnector(characters.experts, method, base=characters.base, weights=[0.7, 0.3], batch_norm="pooled")
    finished = MergeConnector(characters.words, methods.get(method, weights=[0.7, 0.3]), batch_norm="pooled")
    for connector in (named, finished):
        model = restore(characters.base, connector)
        assert_same(model, tmp_path / "m.nemo")
    with open_checkpoint(tmp_path / "m.nemo") as checkpoint:
        written = checkpoint.metadata.provenance
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(model.cfg.nemo_merge)
    assert [entry["sha256"] for entry in found["experts"]] == [entry["sha256"] for entry in written["experts"]]
    assert {key: found[key] for key in ("method", "batch_norm", "tensors", "decisions")} == {
        key: written[key] for key in ("method", "batch_norm", "tensors", "decisions")
    }


def test_saving_keeps_tokenizer_and_provenance(pieces, tmp_path):
    """Also when no file of the merge is there any more."""
    from nemo.collections.asr.models import ASRModel

    from nemo_merge.hooks import MergeConnector

    model = restore(pieces.base, MergeConnector(pieces.experts, "task_arithmetic"))
    saved = tmp_path / "saved.nemo"
    model.save_to(str(saved))
    again = ASRModel.restore_from(str(saved), map_location="cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.cfg.nemo_merge == model.cfg.nemo_merge
    assert again.tokenizer.text_to_ids("o gato preto") == model.tokenizer.text_to_ids("o gato preto")
    with open_checkpoint(saved) as checkpoint:
        assert checkpoint.metadata.provenance["method"]["name"] == "task_arithmetic"


def test_a_vocabulary_grows(tmp_path):
    from nemo_merge.hooks import MergeConnector

    nemo_models.ctc().save_to(str(tmp_path / "base.nemo"))
    nemo_models.perturbed(nemo_models.ctc(labels=["ç", *LABELS]), tmp_path / "other.nemo", 1)
    merge(tmp_path / "base.nemo", [tmp_path / "other.nemo"], "soup", vocabulary="union", output=tmp_path / "m.nemo")
    model = restore(tmp_path / "base.nemo", MergeConnector([tmp_path / "other.nemo"], "soup", vocabulary="union"))
    assert_same(model, tmp_path / "m.nemo")
    assert list(model.decoder.vocabulary) == [*LABELS, "ç"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pieces", "attention"])
def test_vocabularies_of_pieces_grow(tmp_path, kind):
    """Tokenizers that are in no input, and tied embeddings."""
    from nemo.collections.asr.models import ASRModel

    from nemo_merge.hooks import MergeConnector

    both = {"es": nemo_models.SPANISH, "pt": nemo_models.TEXT + "ção\n" * 9}
    for name in ("base", "other"):
        (tmp_path / name).mkdir()
    if kind == "pieces":
        base = nemo_models.ctc_pieces(tmp_path / "base")
        other = nemo_models.ctc_pieces(tmp_path / "other", text=nemo_models.SPANISH)
    else:
        base = nemo_models.attention(tmp_path / "base")
        other = nemo_models.attention(tmp_path / "other", texts=both)
    base.save_to(str(tmp_path / "base.nemo"))
    other.save_to(str(tmp_path / "other.nemo"))
    merge(tmp_path / "base.nemo", [tmp_path / "other.nemo"], "soup", vocabulary="union", output=tmp_path / "m.nemo")
    model = restore(tmp_path / "base.nemo", MergeConnector([tmp_path / "other.nemo"], "soup", vocabulary="union"))
    assert_same(model, tmp_path / "m.nemo")
    for file in ("base.nemo", "other.nemo", "m.nemo"):
        (tmp_path / file).unlink()
    model.save_to(str(tmp_path / "saved.nemo"))
    again = ASRModel.restore_from(str(tmp_path / "saved.nemo"), map_location="cpu")
    assert again.tokenizer.vocab_size == model.tokenizer.vocab_size


def test_options_of_restore_from_are_those_of_nemo(characters):
    """Configuration alone, another configuration, strictness."""
    from nemo.collections.asr.models import ASRModel
    from nemo.utils import AppState
    from omegaconf import OmegaConf, open_dict

    from nemo_merge.hooks import MergeConnector

    before = AppState().model_restore_path
    config = restore(characters.base, MergeConnector(characters.experts), return_config=True)
    stock = ASRModel.restore_from(str(characters.base), return_config=True)
    assert config.nemo_merge.method.name == "boosted_tsvm"
    assert {key: value for key, value in config.items() if key != "nemo_merge"} == dict(stock.items())
    assert AppState().model_restore_path == str(characters.base) != before

    with open_dict(stock):
        stock.encoder.n_layers = 1
        stock.note = "mine"
        stock.nemo_merge = {"of": "another merge"}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        restore(characters.base, MergeConnector(characters.experts), override_config_path=stock)
    model = restore(characters.base, MergeConnector(characters.experts), override_config_path=stock, strict=False)
    assert len(model.encoder.layers) == 1
    assert model.cfg.note == "mine"
    assert OmegaConf.to_container(model.cfg.nemo_merge) == OmegaConf.to_container(config.nemo_merge)


def test_a_model_outlives_its_connector(characters, tmp_path):
    """The connector stays on the instance; stock restoring afterwards is stock."""
    from nemo.collections.asr.models import ASRModel

    from nemo_merge.hooks import MergeConnector

    model = restore(characters.base, MergeConnector(characters.experts))
    assert_same(ASRModel.restore_from(str(characters.base), map_location="cpu"), characters.base)
    model.save_to(str(tmp_path / "m.nemo"))
    assert_same(model, tmp_path / "m.nemo")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"experts": []}, "experts are missing"),
        ({"experts": ["expert_1.nemo"], "metod": "ties"}, "no setting 'metod'; did you mean 'method'"),
        ({"experts": ["expert_1.nemo"], "method": "tis"}, "did you mean 'ties'"),
        ({"experts": ["expert_1.nemo"], "as_adapter": True}, "as_adapter"),
        ({"experts": ["expert_1.nemo"], "include": ["encoder"]}, "no setting 'include'"),
    ],
)
def test_mistakes_in_a_file_name_it(characters, settings, problem):
    from nemo_merge.hooks import MergeConnector

    path = write_yaml(characters.base.parent / "wrong.yaml", base="base.nemo", **settings)
    with pytest.raises(ConfigError, match=problem) as caught:
        restore(path, MergeConnector())
    assert "wrong.yaml" in str(caught.value)


def test_settings_are_in_one_place(characters, tmp_path):
    from nemo_merge.hooks import MergeConnector

    path = write_yaml(tmp_path / "merge.yaml", base=str(characters.base), experts=characters.words)
    with pytest.raises(ConfigError, match="leave one out"):
        restore(path, MergeConnector(characters.experts))
    with pytest.raises(ConfigError, match="nothing says what to merge"):
        restore(characters.base, MergeConnector())
    with pytest.raises(ConfigError, match="they must be one"):
        restore(characters.base, MergeConnector(characters.experts, base=characters.experts[0]))
    with pytest.raises(ConfigError, match="experts are missing"):
        MergeConnector(method="ties")
    with pytest.raises(ConfigError, match="did you mean 'density'"):
        MergeConnector(characters.experts, "ties", densty=0.3)
    with pytest.raises(ConfigError, match="emr leaves a package"):
        restore(characters.base, MergeConnector(characters.experts, "emr"))


def test_what_does_not_fit_is_found_before_anything_is_built(characters, tmp_path):
    from safetensors.torch import save_file

    from nemo_merge.hooks import MergeConnector

    with open_checkpoint(characters.base) as checkpoint:
        tensors = {name: value.clone() for name, value in checkpoint.items()}
    save_file(tensors, tmp_path / "base.safetensors")
    path = write_yaml(tmp_path / "merge.yaml", base="base.safetensors", experts=["base.safetensors"], method="soup")
    with pytest.raises(CheckpointError, match=r"NeMo restores \.nemo files"):
        restore(path, MergeConnector())
    del tensors["encoder.layers.0.conv.batch_norm.running_var"]
    save_file(tensors, tmp_path / "short.safetensors")
    with pytest.raises(PlanError, match="running_var"):
        restore(characters.base, MergeConnector([tmp_path / "short.safetensors"]))
    path = write_yaml(tmp_path / "mixed.yaml", base="base.safetensors", experts=characters.words, method="soup")
    assert restore(path, MergeConnector(), return_config=True).nemo_merge.method.name == "soup"


@pytest.mark.slow
def test_statistics_are_estimated(characters, tmp_path):
    """The one option that goes through a file."""
    pytest.importorskip("soundfile")
    from nemo_merge.hooks import MergeConnector
    from tests.fixtures.audio import write_audio

    write_audio(tmp_path / "audio", count=9)
    options = {"batch_norm": "recalibrate", "audio": str(tmp_path / "audio")}
    merge(characters.base, characters.experts, "soup", output=tmp_path / "m.nemo", **options)
    assert_same(restore(characters.base, MergeConnector(characters.experts, "soup", **options)), tmp_path / "m.nemo")
