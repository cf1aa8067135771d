"""Pickles: nothing in them runs, whatever the file around them; what is not known is written back as it was."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pickle
import resource
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from nemo_merge import open_checkpoint
from nemo_merge.checkpoints import _pickle
from nemo_merge.checkpoints._pickle import Global, Inert, SafeUnpickler, TorchDict
from nemo_merge.checkpoints._plain import plain, walk
from nemo_merge.checkpoints._torch_layout import lay_out_objects
from nemo_merge.checkpoints._torch_zip import KNOWN, StoredTensor, TorchZip
from nemo_merge.errors import CheckpointError
from tests.fixtures.files import FORMATS, lightning_content, write_dcp
from tests.fixtures.models import state_dict

MARKER = Path("/tmp/nemo_merge_was_here")
TOUCH = f"touch {MARKER}"


class Runs:
    """Pickles to an instruction that runs a command."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self):
        import builtins
        import os
        import subprocess

        return {
            "os.system": (os.system, (TOUCH,)),
            "subprocess": (subprocess.check_output, (["touch", str(MARKER)],)),
            "eval": (builtins.eval, (f"__import__('os').system('{TOUCH}')",)),
            "exec": (builtins.exec, (f"import os; os.system('{TOUCH}')",)),
            "setattr": (setattr, (torch.nn.Module, "hacked", 1)),
            "getattr": (getattr, ("text", "upper")),
        }[self.how]


HOW = ["os.system", "subprocess", "eval", "exec", "setattr", "getattr"]


@pytest.fixture(autouse=True)
def _marker():
    MARKER.unlink(missing_ok=True)
    yield
    assert not MARKER.exists()
    assert not hasattr(torch.nn.Module, "hacked")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "kind", [kind for kind in FORMATS if "safetensors" not in kind and not kind.startswith("huggingface")]
)
def test_a_pickle_that_calls_code_runs_nothing(tmp_path, kind, how):
    """In the place of a tensor it is refused; elsewhere it is not even looked at."""
    tensors = {**state_dict(), "evil": Runs(how)}
    path = tmp_path / "evil"
    if kind == "dcp":
        write_dcp(path, state_dict())
        (path / ".metadata").write_bytes(pickle.dumps(Runs(how)))
    elif kind == "lightning":
        torch.save({**lightning_content(state_dict()), "state_dict": tensors}, path)
    elif kind in ("icefall", "espnet"):
        torch.save({"model": tensors, "optimizer": Runs(how)}, path)
    else:
        FORMATS[kind][1](path, tensors)
    with pytest.raises(CheckpointError, match="evil"):
        open_checkpoint(path)


@pytest.mark.parametrize("how", HOW)
def test_what_stands_beside_the_tensors_is_read_and_written_without_running(tmp_path, how):
    """A hostile object among the hyper-parameters is carried over as data; only who loads the file unsafely runs it."""
    content = lightning_content(state_dict())
    content["hyper_parameters"] = {"cfg": content["hyper_parameters"]["cfg"], "extra": Runs(how)}
    content["callbacks"]["evil"] = Runs(how)
    torch.save(content, tmp_path / "m.ckpt")
    from nemo_merge import merge

    merge(tmp_path / "m.ckpt", [tmp_path / "m.ckpt"], "soup", output=tmp_path / "o.ckpt")
    assert open_checkpoint(tmp_path / "o.ckpt").metadata.config["labels"] == [" ", "a", "b", "c"]


def archive(data: bytes, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A file of ``torch.save`` with a pickle made by hand."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr("archive/data.pkl", data)
        for name, content in (storages or {}).items():
            made.writestr(f"archive/data/{name}", content)
    return file.getvalue()


def load(data: bytes) -> object:
    return SafeUnpickler(data, KNOWN, None, placeholders=True).load()


ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOSTILE = {
    "sets an attribute of a function": REBUILD + b"}X\x08\x00\x00\x00__code__NsNb.",
    "sets defaults of a function": REBUILD + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b.",
    "changes a class": ORDERED + b"}X\x05\x00\x00\x00itemsNsb.",
    "shadows a method": ORDERED + b")RN}X\x05\x00\x00\x00itemsNs\x86b.",
    "changes a number": b"K\x01}X\x01\x00\x00\x00aNsb.",
    "appends to a dictionary": b"}K\x01a.",
    "adds to a list": b"\x80\x04](K\x01\x90.",
    "calls a number": b"K\x01)R.",
    "calls a string": b"X\x01\x00\x00\x00a)R.",
    "makes an object of a number": b"\x80\x02K\x01)\x81.",
    "calls with no tuple": ORDERED + b"]R.",
    "uses the extension registry": b"\x80\x02\x82\x01.",
    "uses a buffer from outside": b"\x80\x05\x97.",
    "refers to something outside": b"K\x01Q.",
    "names a class with a line break": b"\x80\x04X\x0b\x00\x00\x00os\nsystem\n)RX\x01\x00\x00\x00a\x93.",
    "names a class with a number": b"\x80\x04K\x01K\x02\x93.",
    "has a list as key": b"}]Ns.",
    "has a key nested deep enough to crash": b"}" + b"N" + b"\x85" * 200_000 + b"Ns.",
    "has a set of such": b"\x80\x04\x8f(" + b"N" + b"\x85" * 200_000 + b"\x90.",
    "has a frozen set of such": b"\x80\x04(" + b"N" + b"\x85" * 200_000 + b"\x91.",
    "has pairs of such": ORDERED + b"]" + b"N" + b"\x85" * 200_000 + b"N\x86a\x85R.",
    "is cut short": b"\x80\x02}",
    "is empty": b"",
    "pops from nothing": b"0.",
    "takes an unknown number from the memo": b"h\x05.",
    "has bytes beyond its end": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.",
    "has a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "has an unknown instruction": b"\xfe.",
    "has an odd number of entries": b"}(NNNu.",
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_pickles_are_refused_with_the_name_of_the_file(tmp_path, data):
    before = vars(OrderedDict), list(KNOWN.items())
    path = tmp_path / "evil.pt"
    path.write_bytes(archive(data))
    with pytest.raises(CheckpointError, match=r"evil\.pt: (refused|its pickle is damaged)") as caught:
        open_checkpoint(path)
    assert len(str(caught.value)) < 1000
    assert before == (vars(OrderedDict), list(KNOWN.items()))
    assert OrderedDict(a=1).items()


def test_a_pickle_of_nine_bytes_reserves_no_gigabytes():
    """The memo of the unpickler in C is as large as the largest number in the pickle."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load(b"\x80\x02]r\xff\xff\xff\x1f.") == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_instructions_and_sizes_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(_pickle, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(pickle.UnpicklingError, match="millions of instructions"):
        load(b"]" * 2000)
    monkeypatch.setattr("nemo_merge.checkpoints._torch_zip.MAX_PICKLE", 1 << 20)
    path = tmp_path / "large.pt"
    path.write_bytes(archive(b"}" + b"X\x00\x00\x20\x00" + bytes(2 << 20) + b"Ns.", method=zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 10_000  # it would unpack into more than is allowed
    with pytest.raises(CheckpointError, match=r"large\.pt: refused, its member archive/data\.pkl is 2097161 bytes"):
        open_checkpoint(path)


def test_deep_nesting_is_refused_without_a_crash(tmp_path):
    for deep in (b"]" * 100_000 + b"a" * 99_999 + b".", b"N" + b"\x85" * 100_000 + b"."):
        path = tmp_path / "deep.pt"
        path.write_bytes(archive(deep))
        with pytest.raises(CheckpointError, match=r"deep\.pt: refused, its objects are nested"):
            open_checkpoint(path)


def test_shared_parts_do_not_unfold(tmp_path):
    """Ten levels of ten references each would be ten thousand million values."""
    part: object = "x"
    for _ in range(10):
        part = [part] * 10
    torch.save({**lightning_content(state_dict()), "hyper_parameters": {"cfg": part}}, tmp_path / "m.ckpt")
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"m\.ckpt: refused, it unfolds into millions"):
        open_checkpoint(tmp_path / "m.ckpt")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_archives_with_too_many_members_are_refused_before_they_are_listed(tmp_path):
    path = tmp_path / "many.pt"
    content = archive(b"}.")
    end = content.rfind(b"PK\x05\x06")
    forged = bytearray(content)
    struct.pack_into("<I", forged, end + 12, 1 << 30)
    path.write_bytes(forged)
    with pytest.raises(CheckpointError, match="its table of contents is 1024 MiB large"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"archive/data.pkl": b"}.", "other/data.pkl": b"}."}, "not a file of torch.save"),
        ({"notes.txt": b"x"}, "not a file of torch.save"),
        ({"archive/data.pkl": b"}.", "archive/constants.pkl": b")."}, "a TorchScript program"),
        ({"archive/data.pkl": b"}.", "archive/byteorder": b"big"}, "big-endian"),
        ({"archive/data.pkl": b"}."}, "is empty"),
        ({"archive/data.pkl": b"K\x07."}, "holds 7 instead of a state dict"),
    ],
)
def test_archives_that_are_no_checkpoints(tmp_path, members, message):
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    with pytest.raises(CheckpointError, match=rf"m\.pt: .*{message}"):
        open_checkpoint(path)


def test_a_tensor_that_claims_more_than_its_storage(tmp_path):
    file = io.BytesIO()
    torch.save({"model": {"w": torch.ones(4)}}, file)
    with zipfile.ZipFile(file) as made:
        data = made.read("archive/data.pkl").replace(b"K\x04\x85", b"K\xff\x85")
    (tmp_path / "m.pt").write_bytes(archive(data, {"0": bytes(16)}))
    with pytest.raises(CheckpointError, match="tensor 'w' is damaged"):
        open_checkpoint(tmp_path / "m.pt")


class Colour(__import__("enum").Enum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


def foreign_objects() -> dict[str, object]:
    config = OmegaConf.create({"a": [1, {"b": None}], "lr": 1e-5, "ref": "${lr}", "needed": "???"})
    return {
        "cfg": config,
        "node": config.a,
        "namespace": argparse.Namespace(path=Path("/x/y"), colour=Colour.RED),
        "numpy": (np.float32(1.5), np.arange(6).reshape(2, 3), np.dtype("int16")),
        "time": (datetime.datetime(2024, 1, 2, 3), datetime.timedelta(3)),
        "containers": ({1, 2}, frozenset({3}), collections.deque([1, 2]), collections.Counter("aab"), bytearray(b"xy")),
        "default": collections.defaultdict(list, a=[1]),
        "point": Point(1, 2),
        "classes": (OrderedDict, dict, argparse.Namespace, torch.float16, torch.Size([2, 3])),
        "complex": 1 + 2j,
        "tensor": torch.arange(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "device": torch.device("cpu"),
        "module": torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_of_foreign_classes_come_back_as_they_were(tmp_path, protocol):
    """Only the test itself, which trusts the file, makes the objects."""
    objects = foreign_objects()
    torch.save({"objects": objects, "again": objects["cfg"]}, tmp_path / "m.pt", pickle_protocol=protocol)
    read = TorchZip(tmp_path / "m.pt", placeholders=True)
    assert read.protocol == protocol
    kept = {n: read.read(n).clone() for n, _ in walk(read.content) if isinstance(n, StoredTensor)}
    layout = lay_out_objects({}, lambda _: read.content, kept, read.protocol)
    content = bytearray(layout.size)
    for offset, part in layout.constants.items():
        content[offset : offset + len(part)] = part
    with zipfile.ZipFile(io.BytesIO(content)) as written:
        assert written.testzip() is None
    back = torch.load(io.BytesIO(content), weights_only=False)
    found = back["objects"]
    assert back["again"] is found["cfg"]
    assert found["cfg"] == objects["cfg"]
    assert found["cfg"].ref == 1e-5
    assert found["node"]._get_parent() is not None
    for name in ("namespace", "time", "containers", "default", "point", "classes", "complex", "device"):
        assert found[name] == objects[name], name
        assert type(found[name]) is type(objects[name])
    assert found["default"].default_factory is list
    assert (found["numpy"][1] == objects["numpy"][1]).all()
    assert found["numpy"][0] == objects["numpy"][0]
    assert torch.equal(found["tensor"], objects["tensor"])
    assert torch.equal(found["parameter"], objects["parameter"])
    assert torch.equal(found["module"].weight, objects["module"].weight)


def test_configurations_as_plain_data():
    data = pickle.dumps({key: foreign_objects()[key] for key in ("cfg", "namespace", "default", "time", "classes")})
    assert plain(load(data)) == {
        "cfg": {"a": [1, {"b": None}], "lr": 1e-5, "ref": "${lr}", "needed": "???"},
        "namespace": {"path": "/x/y", "colour": f"<{Colour.__module__}.Colour>"},
        "default": {"a": [1]},
        "time": ["<datetime.datetime>", "<datetime.timedelta>"],
        "classes": ["<collections.OrderedDict>", "<builtins.dict>", "<argparse.Namespace>", "torch.float16", [2, 3]],
    }


def test_placeholders_are_what_they_say():
    found = load(pickle.dumps(argparse.Namespace(a=1)))
    assert isinstance(found, Inert)
    assert isinstance(found.maker, Global)
    assert found.path == "argparse.Namespace"
    assert found.state == {"a": 1}
    assert repr(found) == "<object of argparse.Namespace, not made>"
    made = load(pickle.dumps(OrderedDict(a=1)))
    assert type(made) is TorchDict
    cyclic: list[object] = []
    cyclic.append(cyclic)
    assert plain(load(pickle.dumps(cyclic))) == ["<itself>"]
