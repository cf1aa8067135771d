"""Every format holds the same tensors, and any mix of formats merges to the same result."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemo_merge import merge, merge_state_dicts, open_checkpoint
from nemo_merge.checkpoints import TensorSpec
from nemo_merge.errors import CheckpointError, OutputError
from tests.fixtures.files import FORMATS, write_as, write_lightning, write_safetensors, write_torch
from tests.fixtures.models import CONFIG, family, same, state_dict, write_nemo

READ_ONLY = ("dcp",)
TIED = [kind for kind in FORMATS if kind not in ("huggingface", "huggingface shards", "bin shards", "dcp")]


@pytest.mark.parametrize("kind", FORMATS)
def test_reads_what_was_written(tmp_path, kind):
    tensors = state_dict()
    path = write_as(kind, tmp_path, "m", tensors)
    with open_checkpoint(path) as checkpoint:
        assert same(dict(checkpoint), tensors)
        assert checkpoint.specs == {n: TensorSpec(tuple(t.shape), t.dtype) for n, t in tensors.items()}
        assert checkpoint.ties == {}
        assert checkpoint.path.exists()
        assert set(checkpoint.sha256()) == {file.name for file in checkpoint.files}
        if kind in ("nemo", "nemo folder", "lightning", "dcp"):
            assert checkpoint.metadata.model_class == CONFIG["target"]
            assert checkpoint.metadata.config == CONFIG
            assert list(checkpoint.metadata.tokenizers) == ["labels"]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_decides_not_the_name(tmp_path, kind):
    path = write_as(kind, tmp_path, "m", state_dict())
    moved = path.rename(tmp_path / "model.of.another.name.bin")
    with open_checkpoint(moved) as checkpoint:
        assert same(dict(checkpoint), state_dict())


@pytest.mark.parametrize("kind", FORMATS)
def test_any_mix_of_formats_merges_to_the_same(tmp_path, kind):
    """Base in one format, experts in all others, each mix by turns."""
    base, experts = family()
    kinds = list(FORMATS)
    start = kinds.index(kind)
    base_path = write_as(kind, tmp_path, "base", base)
    expert_paths = [
        write_as(kinds[(start + 1 + 3 * i) % len(kinds)], tmp_path, f"e{i}", e) for i, e in enumerate(experts)
    ]
    suffix = FORMATS[kind][0] if kind not in READ_ONLY else ".safetensors"
    output = tmp_path / f"merged{suffix}"
    merge(base_path, expert_paths, "ties", output=output)
    with open_checkpoint(output) as merged:
        assert same(dict(merged), merge_state_dicts(base, experts, "ties"))
        assert kind in READ_ONLY or merged.format == open_checkpoint(base_path).format
        if kind != "torch":  # a bare state dict has no room for it
            assert merged.metadata.provenance["method"]["name"] == "ties"


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in READ_ONLY])
def test_a_merge_of_merged_models_keeps_one_record_and_the_history(tmp_path, kind):
    base, experts = family()
    base_path, expert = write_as(kind, tmp_path, "base", base), write_as(kind, tmp_path, "e", experts[0])
    suffix = FORMATS[kind][0]
    merge(base_path, [expert], "soup", output=tmp_path / f"one{suffix}")
    merge(tmp_path / f"one{suffix}", [expert], "ties", output=tmp_path / f"two{suffix}")
    record = open_checkpoint(tmp_path / f"two{suffix}").metadata.provenance
    if kind == "torch":
        assert record is None
        return
    assert record["method"]["name"] == "ties"
    assert record["base"]["merged_from"]["method"]["name"] == "soup"


@pytest.mark.parametrize("kind", TIED)
def test_tied_tensors_are_read_once_and_written_once(tmp_path, kind):
    base, experts = family()
    owner = "decoder.decoder_layers.0.weight"
    tied = {**base, "tied": base[owner]}
    other = {**experts[0], "tied": experts[0][owner]}
    base_path, expert_path = write_as(kind, tmp_path, "b", tied), write_as(kind, tmp_path, "e", other)
    with open_checkpoint(base_path) as checkpoint:
        assert set(checkpoint.ties) | set(checkpoint.ties.values()) == {owner, "tied"}
        assert same(dict(checkpoint), tied)
    output = tmp_path / f"m{FORMATS[kind][0]}"
    merge(base_path, [expert_path], "soup", output=output)
    merged = open_checkpoint(output)
    assert merged.ties == (open_checkpoint(base_path).ties if kind != "bin" else {})
    assert torch.equal(merged[owner], experts[0][owner])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_tensors_alone_can_be_written_from_any_format(tmp_path, kind, suffix):
    base, experts = family()
    base_path = write_as(kind, tmp_path, "base", base)
    expert = write_as("torch", tmp_path, "e", experts[0])
    output = tmp_path / f"out{suffix}"
    merge(base_path, [expert], "soup", output=output)
    stock = (
        load_file(output)
        if suffix == ".safetensors"
        else torch.load(output, weights_only=kind not in ("icefall", "espnet"))
    )
    stock = stock["model"] if kind in ("icefall", "espnet") and suffix != ".safetensors" else stock
    assert same(dict(stock), merge_state_dicts(base, experts[:1], "soup"))


@pytest.mark.parametrize(("suffix", "kind"), [(".nemo", "nemo"), (".ckpt", "lightning")])
def test_another_input_lends_configuration_and_tokenizer(tmp_path, suffix, kind):
    base, experts = family()
    base_path = write_as("safetensors", tmp_path, "base", base)
    first, second = write_as("torch", tmp_path, "e0", experts[0]), write_as(kind, tmp_path, "e1", experts[1])
    output = tmp_path / f"out{suffix}"
    merge(base_path, [first, second], "tsvm", output=output)
    with open_checkpoint(output) as merged:
        assert merged.format == kind
        assert merged.metadata.model_class == CONFIG["target"]
        assert same(dict(merged), merge_state_dicts(base, experts[:2], "tsvm"))
    with pytest.raises(OutputError, match=rf"out2\{suffix}: cannot be written .* \.safetensors or \.pt"):
        merge(base_path, [first], "tsvm", output=tmp_path / f"out2{suffix}")
    assert not list(tmp_path.glob("*out2*"))


def test_a_distributed_checkpoint_is_not_written(tmp_path):
    base, experts = family()
    base_path, expert = write_as("dcp", tmp_path, "base", base), write_as("torch", tmp_path, "e", experts[0])
    with pytest.raises(
        OutputError, match=r"can be read but not written; choose an output that ends in \.safetensors or"
    ):
        merge(base_path, [expert], "soup", output=tmp_path / "merged")


ODD_TENSORS = {
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "a view with an offset": torch.arange(10)[3:7],
    "a scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "bfloat16": torch.randn(5).bfloat16(),
    "boolean": torch.tensor([True, False]),
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "unsigned": torch.arange(5).to(torch.uint16),
    "a parameter": torch.nn.Parameter(torch.randn(2)),
    "expanded": torch.randn(1, 3).expand(4, 3),
}


@pytest.mark.parametrize("kind", ["nemo folder", "torch", "icefall", "lightning", "bin"])
def test_reads_tensors_of_any_layout(tmp_path, kind):
    tensors = {name: value for name, value in ODD_TENSORS.items() if kind != "icefall" or value.dtype.itemsize > 1}
    checkpoint = open_checkpoint(
        FORMATS[kind][1](tmp_path / "m", tensors)
        if kind != "icefall"
        else write_torch(tmp_path / "m", {"model": tensors})
    )
    assert same({n: t.detach() for n, t in checkpoint.items()}, {n: t.detach() for n, t in tensors.items()})


@pytest.mark.parametrize(
    "kind", [kind for kind in FORMATS if kind != "dcp"]
)  # there each piece is copied once, see there
def test_tensors_are_mapped_not_copied(tmp_path, kind):
    path = write_as(kind, tmp_path, "m", {"w": torch.zeros(1 << 20), "b": torch.zeros(3)})
    open_checkpoint(path).close()  # what is imported on the way
    before = _anonymous_memory()
    tensor = open_checkpoint(path)["w"]
    float(tensor.sum())
    assert _anonymous_memory() - before < tensor.nbytes / 2


@pytest.mark.parametrize("kind", FORMATS)
def test_writing_to_a_tensor_does_not_change_the_file(tmp_path, kind):
    path = write_as(kind, tmp_path, "m", state_dict())
    files = [file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    content = [file.read_bytes() for file in files]
    for tensor in open_checkpoint(path).values():
        tensor.zero_()
    assert [file.read_bytes() for file in files] == content


@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation_gives_one_clear_error(tmp_path, kind):
    path = write_as(kind, tmp_path, "m", state_dict())
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file() and f.stat().st_size > 2000]
    assert files
    for file in files:
        whole = file.read_bytes()
        # What follows the last member of a tar, or the last tensor of the model, is not read.
        end = {".nemo": _end_of_tar, ".distcp": _end_of_model}.get(file.suffix, _end)(file)
        for length in [0, 1, 7, 8, 100, 512, *range(1000, end, max(1, end // 13)), end - 1]:
            file.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=f"{file.name}|{path.name}") as caught:
                dict(open_checkpoint(path))
            assert len(str(caught.value).splitlines()) == 1
        file.write_bytes(whole)


def _end(path: Path) -> int:
    return path.stat().st_size


def _end_of_tar(path: Path) -> int:
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + last.size


def _end_of_model(path: Path) -> int:
    pieces = [piece for pieces in open_checkpoint(path.parent)._pieces.values() for piece in pieces]
    return max(piece.start + piece.length for piece in pieces if piece.file == path.name)


def _anonymous_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def test_a_folder_with_one_archive_is_that_archive(tmp_path):
    folder = tmp_path / "downloaded"
    folder.mkdir()
    write_nemo(folder / "model.nemo", state_dict())
    (folder / "README.md").write_text("a model")
    assert same(dict(open_checkpoint(folder)), state_dict())
    shutil.copy(folder / "model.nemo", folder / "other.nemo")
    with pytest.raises(
        CheckpointError, match=r"downloaded: not a model folder: .* holds README\.md, model\.nemo, other\.nemo"
    ):
        open_checkpoint(folder)


LEGACY = io.BytesIO()
torch.save({"w": torch.ones(2)}, LEGACY, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (LEGACY.getvalue(), "saved by PyTorch before 1.6; convert it once"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n<!doctype html><html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"GGUF\x03", "GGUF"),
        (b"\x80\x04}.", "is a Python pickle"),
        (b"just text", "not a checkpoint of a known format.*beginning with b'just tex'"),
        (b"PK\x03\x04nothing", "cut short"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_another_kind(tmp_path, content, message):
    path = tmp_path / "model.any"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.any.*{message}"):
        open_checkpoint(path)


def test_missing_paths_and_averages_that_no_format_has(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "nothing")
    for kind in ("nemo", "huggingface", "safetensors", "dcp"):
        with pytest.raises(CheckpointError, match="no averaged weights"):
            open_checkpoint(write_as(kind, tmp_path, kind, state_dict()), ema=True)


def test_an_adapter_alone_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter"):
        open_checkpoint(tmp_path)


def test_the_names_of_the_output_are_those_of_the_template(tmp_path):
    """Documents stand beside a file, and the safetensors header carries the template's own notes."""
    base, experts = family()
    base_path = write_safetensors(tmp_path / "b.safetensors", base)
    merge(base_path, [write_lightning(tmp_path / "e.ckpt", experts[0])], "soup", output=tmp_path / "m.safetensors")
    assert {p.name for p in tmp_path.glob("m*")} == {
        "m.safetensors",
        "m.safetensors.merge.yaml",
        "m.safetensors.README.md",
    }
    assert open_checkpoint(tmp_path / "m.safetensors").file_metadata["note"] == "x"
