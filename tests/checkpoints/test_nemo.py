from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml

from nemo_merge import merge, open_checkpoint
from nemo_merge.checkpoints import TensorSpec
from nemo_merge.checkpoints._torch_layout import checksum_places, lay_out
from nemo_merge.errors import CheckpointError
from tests.fixtures.models import CONFIG, family, same, state_dict, write_nemo


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "gzip"])
def test_reads_what_was_written(tmp_path, packed):
    tensors = state_dict()
    with open_checkpoint(write_nemo(tmp_path / "m.nemo", tensors, packed=packed)) as checkpoint:
        assert same(dict(checkpoint), tensors)
        assert {name: spec.shape for name, spec in checkpoint.specs.items()} == {
            n: tuple(t.shape) for n, t in tensors.items()
        }
        assert checkpoint.metadata.model_class == CONFIG["target"]
        assert list(checkpoint.metadata.tokenizers) == ["labels"]


ODD_TENSORS = {
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "a view with an offset": torch.arange(10)[3:7],
    "a scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "bfloat16": torch.randn(5).bfloat16(),
    "boolean": torch.tensor([True, False]),
    "complex": torch.randn(3, dtype=torch.complex64),
    "a parameter": torch.nn.Parameter(torch.randn(2)),
    "expanded": torch.randn(1, 3).expand(4, 3),
}


def test_reads_tensors_of_any_layout(tmp_path):
    checkpoint = open_checkpoint(write_nemo(tmp_path / "m.nemo", ODD_TENSORS))
    assert same(dict(checkpoint), ODD_TENSORS)


def test_tensors_are_mapped_not_copied(tmp_path):
    path = write_nemo(tmp_path / "m.nemo", {"w": torch.zeros(1 << 20)})
    before = _anonymous_memory()
    tensor = open_checkpoint(path)["w"]
    float(tensor.sum())
    assert _anonymous_memory() - before < tensor.nbytes / 2


def test_writing_to_a_tensor_does_not_change_the_file(tmp_path):
    path = write_nemo(tmp_path / "m.nemo", state_dict())
    content = path.read_bytes()
    for tensor in open_checkpoint(path).values():
        tensor.zero_()
    assert path.read_bytes() == content


def test_tied_tensors_are_found_and_written_once(tmp_path):
    base, (expert, *_) = family()
    tied = {**base, "tied": base["decoder.decoder_layers.0.bias"]}
    tied_expert = {**expert, "tied": expert["decoder.decoder_layers.0.bias"]}
    base_path, expert_path = write_nemo(tmp_path / "b.nemo", tied), write_nemo(tmp_path / "e.nemo", tied_expert)
    assert open_checkpoint(base_path).ties == {"tied": "decoder.decoder_layers.0.bias"}
    merge(base_path, [expert_path], "soup", output=tmp_path / "m.nemo")
    with tarfile.open(tmp_path / "m.nemo") as tar:
        weights = torch.load(tar.extractfile("./model_weights.ckpt"), weights_only=True)
    assert weights["tied"].data_ptr() == weights["decoder.decoder_layers.0.bias"].data_ptr()
    assert torch.equal(weights["tied"], expert["decoder.decoder_layers.0.bias"])


def test_everything_but_the_weights_is_carried_over(tmp_path):
    base, (expert, *_) = family()
    model = OrderedDict(base)
    model._metadata = OrderedDict({"": {"version": 1}})  # as torch.nn.Module.state_dict() leaves it
    config = {**CONFIG, "tokenizer": {"model_path": "nemo:0123_tokenizer.model", "dir": "/somewhere"}, "empty": None}
    config.pop("labels")
    artefacts = {"0123_tokenizer.model": os.urandom(700), "timestamps_asr_model_weights.ckpt": os.urandom(1500)}
    base_path = write_nemo(tmp_path / "b.nemo", model, config, artefacts, save=lambda _, file: torch.save(model, file))
    # NeMo renames artefacts with every save: the same tokenizer has another name in the expert.
    other = {**config, "tokenizer": {**config["tokenizer"], "model_path": "nemo:4567_tokenizer.model"}}
    renamed = {"4567_tokenizer.model": artefacts["0123_tokenizer.model"]}
    expert_path = write_nemo(tmp_path / "e.nemo", expert, other, renamed)
    merge(base_path, [expert_path], "task_arithmetic", output=tmp_path / "m.nemo")
    with tarfile.open(tmp_path / "m.nemo") as tar:
        for name, content in artefacts.items():
            assert tar.extractfile(f"./{name}").read() == content
        written = yaml.safe_load(tar.extractfile("./model_config.yaml"))
        weights = torch.load(tar.extractfile("./model_weights.ckpt"), weights_only=True)
    provenance = written.pop("nemo_merge")
    assert written == config
    assert provenance["method"]["name"] == "task_arithmetic"
    assert weights._metadata == model._metadata


def test_the_configuration_is_kept_to_the_letter(tmp_path):
    """Numbers such as 1e-05 and interpolations mean something else after a round trip through another YAML library."""
    base, (expert, *_) = family()
    write_nemo(tmp_path / "e.nemo", expert)
    path = write_nemo(tmp_path / "b.nemo", base)
    text = (
        "target: " + CONFIG["target"] + "\nlr: 1e-05\nref: ${optim.lr}\nlabels: [' ', a, b, c]\noptim:\n- x\n- 'on'\n"
    )
    _replace_member(path, "./model_config.yaml", text.encode())
    merge(path, [tmp_path / "e.nemo"], "soup", output=tmp_path / "m.nemo")
    merged = open_checkpoint(tmp_path / "m.nemo").config_text
    assert merged.startswith(text)
    # A second merge replaces the record of the first and keeps its history.
    merge(tmp_path / "m.nemo", [tmp_path / "e.nemo"], "ties", output=tmp_path / "n.nemo")
    again = open_checkpoint(tmp_path / "n.nemo")
    assert again.config_text.startswith(text)
    assert again.config_text.count("\nnemo_merge:\n") == 1
    assert again.metadata.provenance["base"]["merged_from"]["method"]["name"] == "soup"


def test_the_archive_inside_is_sound(tmp_path):
    """``unzip -t`` and Python check the sums that torch itself ignores."""
    base, (expert, *_) = family()
    merge(
        write_nemo(tmp_path / "b.nemo", base),
        [write_nemo(tmp_path / "e.nemo", expert)],
        "ties",
        output=tmp_path / "m.nemo",
    )
    with tarfile.open(tmp_path / "m.nemo") as tar, zipfile.ZipFile(tar.extractfile("./model_weights.ckpt")) as archive:
        assert archive.testzip() is None


def test_checksums_of_archives_beyond_four_gigabytes():
    specs = {
        "a": TensorSpec((1100, 1 << 20), torch.float32),
        "b": TensorSpec((3,), torch.float32),
        "c": TensorSpec((2,), torch.int64),
    }
    layout = lay_out(specs, {}, {})
    assert layout.slots["b"].offset > 1 << 32
    places = checksum_places(layout)
    tail_offset = max(layout.constants)
    for name, (descriptor, central) in places.items():
        slot = layout.slots[name]
        before = next(data for offset, data in layout.constants.items() if offset == slot.offset + slot.nbytes)
        assert before[:4] == b"PK\x07\x08"
        assert descriptor == slot.offset + slot.nbytes + 4
        assert layout.constants[tail_offset][central - 16 - tail_offset :][:4] == b"PK\x01\x02"


class _Calls:
    def __reduce__(self):
        return os.system, ("touch /tmp/nemo_merge_was_here",)


class _Subtle:
    def __reduce__(self):
        return eval, ("print('ran')",)


@pytest.mark.parametrize("intruder", [_Calls(), _Subtle(), {1, 2}, Path("x")], ids=lambda item: type(item).__name__)
def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path, intruder):
    path = write_nemo(tmp_path / "evil.nemo", {"w": torch.ones(2), "x": intruder})
    with pytest.raises(CheckpointError, match=r"evil.nemo \(model_weights.ckpt\): refused, .* calls"):
        open_checkpoint(path)
    assert not Path("/tmp/nemo_merge_was_here").exists()


def test_every_truncation_gives_one_clear_error(tmp_path):
    whole = write_nemo(tmp_path / "m.nemo", state_dict()).read_bytes()
    cut = tmp_path / "cut.nemo"
    with tarfile.open(tmp_path / "m.nemo") as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + last.size  # what follows is padding, which readers do without
    for length in [0, 1, 100, 511, 512, 1000, *range(1500, end, 1777), end - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.nemo"):
            open_checkpoint(cut)


def test_a_truncated_gzip(tmp_path):
    whole = write_nemo(tmp_path / "m.nemo", state_dict(), packed=True).read_bytes()
    (tmp_path / "cut.nemo").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.nemo: damaged or cut short"):
        open_checkpoint(tmp_path / "cut.nemo")


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("/etc/passwd", tarfile.REGTYPE, ""),
        ("../up", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "/etc/passwd"),
        ("hard", tarfile.LNKTYPE, "x"),
    ],
)
def test_unsafe_members_are_refused(tmp_path, name, kind, target):
    path = write_nemo(tmp_path / "m.nemo", state_dict())
    with tarfile.open(path, "a:") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        tar.addfile(info)
    with pytest.raises(CheckpointError, match="not a plain file inside the archive"):
        open_checkpoint(path)


def test_missing_and_double_members(tmp_path):
    path = tmp_path / "m.nemo"
    with tarfile.open(path, "w:") as tar:
        tar.addfile(tarfile.TarInfo("./model_config.yaml"))
    with pytest.raises(CheckpointError, match=r"no model_weights\.ckpt inside"):
        open_checkpoint(path)
    write_nemo(path, state_dict(), artefacts={"sub/model_weights.ckpt": b"x"})
    with pytest.raises(CheckpointError, match="more than one"):
        open_checkpoint(path)


def test_an_artefact_that_is_named_but_missing(tmp_path):
    path = write_nemo(tmp_path / "m.nemo", state_dict(), {**CONFIG, "tokenizer": {"model_path": "nemo:gone.model"}})
    with pytest.raises(CheckpointError, match=r"nemo:gone\.model"):
        open_checkpoint(path)


def test_a_state_dict_that_is_none(tmp_path):
    path = write_nemo(tmp_path / "m.nemo", {"w": torch.ones(1), "note": "text"})
    with pytest.raises(CheckpointError, match="not a state dict"):
        open_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", pickle.dumps({"w": 1}), b"not a checkpoint" * 100])
def test_files_of_another_kind(tmp_path, content):
    path = tmp_path / "m.nemo"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.nemo"):
        open_checkpoint(path)


def test_a_tensor_that_claims_more_than_its_storage(tmp_path):
    """A damaged or hostile size must not read beyond the storage."""
    weights = io.BytesIO()
    torch.save({"w": torch.ones(4)}, weights)
    with zipfile.ZipFile(weights) as archive:
        members = {item.filename: archive.read(item) for item in archive.infolist()}
    name = next(item for item in members if item.endswith("data.pkl"))
    assert members[name].count(b"K\x04\x85") == 1  # the shape (4,)
    members[name] = members[name].replace(b"K\x04\x85", b"K\xff\x85")
    forged = io.BytesIO()
    with zipfile.ZipFile(forged, "w") as archive:
        for item, content in members.items():
            archive.writestr(item, content)
    path = write_nemo(tmp_path / "m.nemo", {"w": torch.ones(4)})
    _replace_member(path, "./model_weights.ckpt", forged.getvalue())
    with pytest.raises(CheckpointError, match="tensor 'w' is damaged"):
        open_checkpoint(path)


def _replace_member(path: Path, name: str, content: bytes) -> None:
    with tarfile.open(path) as tar:
        members = [(item, tar.extractfile(item).read()) for item in tar.getmembers()]
    with tarfile.open(path, "w:") as tar:
        for item, data in members:
            data = content if item.name == name else data
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))


def _anonymous_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "millions of values"),
        ("a: &a [*a]\n", "contains itself"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("[" * 20000, "not valid YAML"),
        ("just text", "not a mapping"),
        ("a: [\n", "not valid YAML"),
    ],
    ids=["bomb", "cycle", "python object", "depth", "text", "broken"],
)
def test_hostile_configurations(tmp_path, text, message):
    path = write_nemo(tmp_path / "m.nemo", state_dict())
    _replace_member(path, "./model_config.yaml", text.encode())
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_aliases_in_a_configuration_are_fine(tmp_path):
    base, (expert, *_) = family()
    path, other = write_nemo(tmp_path / "b.nemo", base), write_nemo(tmp_path / "e.nemo", expert)
    text = f"target: {CONFIG['target']}\nlabels: &l [' ', a]\ndecoder: {{vocabulary: *l}}\n"
    for file in (path, other):
        _replace_member(file, "./model_config.yaml", text.encode())
    merge(path, [other], "soup", output=tmp_path / "m.nemo")
    assert open_checkpoint(tmp_path / "m.nemo").config_text.startswith(text)


def test_a_configuration_in_flow_style_gets_its_record_too(tmp_path):
    base, (expert, *_) = family()
    path, other = write_nemo(tmp_path / "b.nemo", base), write_nemo(tmp_path / "e.nemo", expert)
    for file in (path, other):
        _replace_member(file, "./model_config.yaml", b"{target: x, labels: [a, b]}\n")
    merge(path, [other], "soup", output=tmp_path / "m.nemo")
    merged = open_checkpoint(tmp_path / "m.nemo").metadata
    assert merged.config["labels"] == ["a", "b"]
    assert merged.provenance["method"]["name"] == "soup"


def test_an_archive_that_unfolds_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_merge.checkpoints.nemo._ALWAYS_ALLOWED", 1 << 20)
    path = tmp_path / "bomb.nemo"
    path.write_bytes(gzip.compress(bytes(16 << 20)))
    with pytest.raises(CheckpointError, match=r"bomb\.nemo: refused, it unpacks to more than 100 times its size"):
        open_checkpoint(path)


def test_archives_with_too_many_or_too_large_members(tmp_path, monkeypatch):
    path = write_nemo(tmp_path / "m.nemo", state_dict(), artefacts={f"{i}.txt": b"" for i in range(20)})
    monkeypatch.setattr("nemo_merge.checkpoints.nemo._MAX_MEMBERS", 10)
    with pytest.raises(CheckpointError, match="more than 10 members"):
        open_checkpoint(path)
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(CheckpointError, match=r"m\.nemo: .*a header asks for too much"):
        open_checkpoint(path)
