from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nemo_merge import merge, merge_state_dicts, open_checkpoint
from nemo_merge.checkpoints._safetensors import DTYPES
from nemo_merge.errors import CheckpointError, PlanError
from tests.fixtures.files import write_bin_folder
from tests.fixtures.models import family, same, write_huggingface


@pytest.fixture
def folders(tmp_path):
    base, experts = family()
    return write_huggingface(tmp_path / "base", base), [
        write_huggingface(tmp_path / f"e{i}", e) for i, e in enumerate(experts)
    ]


@pytest.mark.parametrize("shards", [1, 3])
def test_merges_equal_the_merge_in_memory(tmp_path, shards):
    base, experts = family()
    base_path = write_huggingface(tmp_path / "base", base, shards=shards)
    expert_paths = [write_huggingface(tmp_path / f"e{i}", e, shards=4 - shards) for i, e in enumerate(experts)]
    merge(base_path, expert_paths, "tsvm", output=tmp_path / "merged")
    merged = {}
    for file in (tmp_path / "merged").glob("*.safetensors"):
        merged.update(load_file(file))
    assert same(merged, merge_state_dicts(base, experts, "tsvm"))
    assert same(dict(open_checkpoint(tmp_path / "merged")), merged)
    if shards > 1:
        index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
        assert index == json.loads((base_path / "model.safetensors.index.json").read_text())


def test_configuration_and_tokenizer_are_carried_over_and_the_record_is_added(folders, tmp_path):
    base, experts = folders
    (base / "generation_config.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(b"old weights")
    merge(base, experts, "soup", output=tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "model.safetensors",
        "merge.yaml",
        "README.md",
    }
    record = yaml.safe_load((tmp_path / "merged" / "merge.yaml").read_text())
    assert record["method"]["name"] == "soup"
    assert len(record["experts"]) == 3
    with open_checkpoint(tmp_path / "merged") as checkpoint:
        assert checkpoint.metadata.provenance == record
        assert checkpoint.file_metadata["model.safetensors"] == {"format": "pt"}


def test_every_type_survives(tmp_path):
    """All types of the format that PyTorch can write, float8 and 16-bit integers included."""
    tensors = {str(dtype): torch.zeros(3).to(dtype) for dtype in DTYPES.values()}
    folder = write_huggingface(tmp_path / "base", tensors)
    assert same(dict(open_checkpoint(folder)), tensors)


def test_an_untied_copy_in_an_expert_is_left_out_with_a_warning(folders, tmp_path):
    base, experts = folders
    tensors = load_file(experts[0] / "model.safetensors")
    extra = {**tensors, "proj_out.weight": tensors["decoder.decoder_layers.0.weight"].clone()}
    shutil.rmtree(experts[0])
    write_huggingface(experts[0], extra)
    report = merge(base, experts, "soup", output=tmp_path / "merged")
    assert any("second copy" in warning for warning in report.warnings)
    extra["proj_out.weight"] = extra["proj_out.weight"] + 1
    shutil.rmtree(experts[0])
    write_huggingface(experts[0], extra)
    with pytest.raises(PlanError, match=r"'proj_out\.weight' is not in"):
        merge(base, experts, "soup", output=tmp_path / "other")


def test_other_tokenizers_and_classes(folders, tmp_path):
    base, experts = folders
    (experts[0] / "tokenizer.json").write_text("{}")
    (experts[1] / "config.json").write_text('{"architectures": ["Wav2Vec2ForCTC"]}')
    with pytest.raises(PlanError) as caught:
        merge(base, experts, "soup", output=tmp_path / "merged")
    assert len(caught.value.problems) == 2
    assert "tokenizer differs" in caught.value.problems[0]
    assert "is a Wav2Vec2ForCTC" in caught.value.problems[1]


def test_truncated_and_missing_files(folders, tmp_path):
    base, _ = folders
    whole = (base / "model.safetensors").read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (base / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or cut short"):
            open_checkpoint(base)
    (base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        open_checkpoint(base)
    (base / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(base)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"w": "../../elsewhere.safetensors"}}', "outside the folder"),
        ('{"weight_map": {"w": "gone.safetensors"}}', "missing"),
        ('{"weight_map": {"nothing": "model.safetensors"}}', "promises tensor 'nothing'"),
        ('{"weight_map": {}}', "no weight_map"),
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 100000, "not valid JSON"),
    ],
)
def test_bad_indexes(folders, index, message):
    base, _ = folders
    (base / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(base)


def test_an_output_folder_is_replaced_as_a_whole(folders, tmp_path):
    base, experts = folders
    output = tmp_path / "merged"
    merge(base, experts, "soup", output=output)
    (output / "notes.txt").write_text("of the old model")
    merge(base, experts, "ties", output=output, overwrite=True)
    assert "notes.txt" not in [path.name for path in output.iterdir()]
    assert open_checkpoint(output).metadata.provenance["method"]["name"] == "ties"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "e0", "e1", "e2", "merged"]


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_transformers_loads_what_is_merged_from_older_folders(tmp_path, shards):
    """Whisper ties its output layer to the embedding; ``pytorch_model.bin`` names both."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    small = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 60, "num_mel_bins": 8}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    states, paths = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(WhisperConfig(**small, **sizes, **tokens))
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        paths.append(write_bin_folder(tmp_path / f"{seed}", model.state_dict(), shards))
        model.config.save_pretrained(paths[-1])
    merge(paths[0], paths[1:], "task_arithmetic", output=tmp_path / "merged")
    restored = WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged").state_dict()
    assert same(dict(restored), merge_state_dicts(states[0], states[1:], "task_arithmetic"))
