"""Small files that would take very long, much memory or a crash to read; each was made by hand."""

from __future__ import annotations

import gzip
import json
import os
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from itertools import product
from pathlib import Path

import pytest
import torch

from nemo_merge import open_checkpoint
from nemo_merge.checkpoints import _yaml
from nemo_merge.checkpoints._plain import unfolds
from nemo_merge.errors import CheckpointError, printable
from tests.fixtures.adapters import lora_folder
from tests.fixtures.models import write_huggingface, write_nemo

GIGABYTE = 1 << 30
STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


@pytest.fixture(autouse=True)
def _limits():
    """Whatever asks for more than a gigabyte, or takes a minute of processor time, fails."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - started < 60


def torch_file(path: Path, instructions: bytes, storage: bytes = bytes(16)) -> Path:
    """A file of ``torch.save`` with that pickle, which ends in the state dict."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + instructions + b".")
        archive.writestr("archive/data/0", storage)
        archive.writestr("archive/byteorder", b"little")
    return path


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """Instructions that make a tensor of four numbers in storage 0."""

    def sizes(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE[1:]
        + b"I%d\n" % offset
        + sizes(shape)
        + sizes(stride)
        + b"\x89Nt"
        + b"R"
    )


def state(value: bytes) -> bytes:
    return b"}X\x01\x00\x00\x00w" + value + b"s"


def laughs(depth: int, width: int = 10, kind: bytes = b"l") -> bytes:
    """A list of lists of lists, each many times the same one."""
    parts = b"(K\x01K\x02" + kind + b"q\x00"
    for level in range(depth):
        parts += b"(" + b"h" + bytes([level])
        parts = parts + (b"h" + bytes([level])) * (width - 1) + kind + b"q" + bytes([level + 1])
    return parts


def refused(path: Path, message: str = ".") -> None:
    with pytest.raises(CheckpointError, match=message) as caught, open_checkpoint(path) as checkpoint:
        dict(checkpoint)
    assert len(str(caught.value)) < 2500
    assert str(path) in str(caught.value)


def test_the_file_that_the_others_are_made_from_is_read(tmp_path):
    path = torch_file(tmp_path / "m.pt", state(tensor((2, 2), (2, 1))))
    assert open_checkpoint(path)["w"].shape == (2, 2)


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((1 << 40,), (0,), 0),  # four terabytes from one number
        ((1 << 20, 1 << 20), (0, 1), 0),
        ((1 << 32, 1 << 32), (0, 0), 0),  # the product is 0 in 64 bits
        ((1 << 31, 1 << 31, 4), (0, 0, 0), 0),
        ((4,), (-1,), 3),
        ((4,), (1,), -1),
        ((4,), (1,), 1),
        ((2, 2), (1 << 61, 1), 0),
        ((4,) * 65, (1,) * 65, 0),
        ((4,), (1, 1), 0),
    ],
)
def test_tensors_of_impossible_strides(tmp_path, shape, stride, offset):
    refused(torch_file(tmp_path / "m.pt", state(tensor(shape, stride, offset))), "refused|damaged")


def test_a_tensor_that_was_expanded_a_little_is_read(tmp_path):
    path = torch_file(tmp_path / "m.pt", state(tensor((1000, 4), (0, 1))))
    assert open_checkpoint(path)["w"].shape == (1000, 4)


def test_many_views_of_one_storage(tmp_path):
    views = b"".join(b"X\x03\x00\x00\x00%03d" % index + tensor(((1 << 20) + index, 4), (0, 1)) for index in range(9))
    refused(torch_file(tmp_path / "m.pt", b"}(" + views + b"u"), "refused, its tensors would be")


@pytest.mark.parametrize("kind", [b"l", b"t"])
@pytest.mark.parametrize(
    "use",
    [
        state(b"%b"),
        b"}%bNs",  # a key
        b"%b(NtR",  # something that is called
        state(b"cargparse\nNamespace\n%b\x85R"),
        state(b"cpathlib\nPosixPath\n%bR"),
        state(b"ctorch\nSize\n%b\x85R"),
        state(b"(%bNNNNtQ"),
    ],
)
def test_a_billion_laughs(tmp_path, kind, use):
    refused(torch_file(tmp_path / "m.pt", use.replace(b"%b", laughs(60, kind=kind))))


def test_dictionaries_that_share_dictionaries(tmp_path):
    parts = b"}X\x01\x00\x00\x00a" + tensor((4,), (1,)) + b"sq\x00"
    for level in range(8):
        parts += b"}(" + b"".join(b"X\x02\x00\x00\x00%02dh" % key + bytes([level]) for key in range(99)) + b"u"
        parts += b"q" + bytes([level + 1])
    refused(torch_file(tmp_path / "m.pt", parts), "unfolds into millions")


@pytest.mark.parametrize(
    "instructions",
    [
        b"\x96" + struct.pack("<Q", 1 << 40) + b"x",  # an array of bytes
        b"\x8e" + struct.pack("<Q", 1 << 40) + b"x",
        b"\x8d" + struct.pack("<Q", 1 << 62) + b"x",
        b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x",
        b"\x95" + struct.pack("<Q", 1 << 62) + b"x",
        b"N" + b"r\xff\xff\xff\xff",
        b"I" + b"9" * 1_000_000 + b"\n",
        b"L" + b"9" * 1_000_000 + b"L\n",
        b"N" + b"\x85" * 1_000_000,
        b"(" * 1_000_000,
        b"N" + b"2" * 5_000_000,
        b"\x80\xff",
        b"}q\x00" + b"h\x00h\x00s" * 3,
        b"ccollections\nOrderedDict\n(tRq\x00}(" + b"NN" * 5000 + b"u" + b"h\x00" + b"}" + b"b" * 9,
    ],
)
def test_instructions_that_ask_for_much(tmp_path, instructions):
    refused(torch_file(tmp_path / "m.pt", instructions))


def test_copies_of_copies(tmp_path):
    entries = b"".join(b"I%d\nN" % index for index in range(5000))
    attributes = b"ccollections\nOrderedDict\n)R}(" + entries + b"uq\x010" + b"h\x01b" * 3
    refused(torch_file(tmp_path / "m.pt", attributes))
    pairs = b"(" + b"(K\x01K\x02t" * 5000 + b"l"
    refused(torch_file(tmp_path / "m.pt", b"ccollections\nOrderedDict\n" + pairs + b"\x85R"), "copies large lists")


def test_unfolding_is_counted_once_for_each_place():
    shared = [[], []]
    assert not unfolds([shared, shared], limit=7)
    assert unfolds([shared, shared], limit=6)
    shared.append(shared)
    assert not unfolds(shared, limit=10)


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "gzip"])
def test_archives_that_unpack_into_much(tmp_path, packed):
    path = write_nemo(tmp_path / "m.nemo", {"w": torch.zeros(2)})
    member = tarfile.TarInfo("zeros")
    member.size = 1 << 40
    data = member.tobuf(tarfile.GNU_FORMAT) + path.read_bytes()
    path.write_bytes(gzip.compress(data) if packed else data)
    refused(path)


def test_a_gzip_bomb(tmp_path):
    path = tmp_path / "m.nemo"
    path.write_bytes(gzip.compress(gzip.compress(bytes(1 << 20)) + b"x") + gzip.compress(bytes(100 << 20)))
    refused(path, "unpacks to more than 100 times its size")
    assert not list(tmp_path.glob("*.tar"))


@pytest.mark.parametrize(
    ("kind", "size"),
    [(b"0", -1), (b"L", -1), *product((b"0", b"L", b"K", b"x", b"g", b"S"), (1 << 62, (1 << 63) - 1, 1 << 64))],
)
def test_tar_members_of_impossible_sizes(tmp_path, kind, size):
    path = write_nemo(tmp_path / "m.nemo", {"w": torch.zeros(2)})
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = kind
    header[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size % (1 << 88)).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    path.write_bytes(bytes(header) + path.read_bytes())
    refused(path)


def test_a_zip_bomb(tmp_path):
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"0" * (200 << 20))
    refused(path, "refused, its member archive/data.pkl is 209715202 bytes large")


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/byteorder"])
def test_members_that_claim_gigabytes(tmp_path, member):
    path = torch_file(tmp_path / "m.pt", state(tensor((4,), (1,))))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", 0)
    while data[entry + 46 : entry + 46 + len(member)] != member.encode():
        entry = data.index(b"PK\x01\x02", entry + 1)
    data[entry + 20 : entry + 28] = b"\xf0\xff\xff\xef" * 2
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 30_000,  # crashes the C library when it is built
        "- " * 30_000 + "a",
        "a: [" + "[]," * 700_000 + "]",
        "a: 1" + ":1" * 100_000,
        "a: 1" + ":1" * 100_000 + ".5",
        "a: 0x" + "f" * 1_000_000,
        "a0: &a0 {x: 1, y: 2}\n"
        + "".join(f"a{i + 1}: &a{i + 1} {{<<: [{','.join([f'*a{i}'] * 10)}]}}\n" for i in range(12)),
        "a: &a {<<: *a}",
        "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 10)}]\n" for i in range(12)),
        "a: !!timestamp x",
        "a: 2024-13-45",
    ],
    ids=lambda text: text[:12].strip(),
)
def test_yaml_that_unfolds(text):
    with pytest.raises(CheckpointError, match="not valid YAML"):
        _yaml.load(text, "config")


def test_yaml_merges_of_usual_size_are_read():
    assert _yaml.load("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: {<<: [*a, {z: 3}]}", "config")["c"] == {"x": 1, "z": 3}


@pytest.mark.parametrize("text", ["[" * 1_000_000, '{"a":' * 1_000_000, '{"a": ' + "9" * 1_000_000 + "}", "nul"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_without_end(tmp_path, text, name):
    folder = write_huggingface(tmp_path / "m", {"w": torch.zeros(2)}, shards=2)
    (folder / name).write_text(text)
    refused(folder, "not valid JSON")


def test_an_index_that_names_one_shard_a_million_times(tmp_path):
    folder = write_huggingface(tmp_path / "m", {"a": torch.zeros(2), "b": torch.zeros(2)}, shards=2)
    homes = {f"x{number}": "model-00001-of-00002.safetensors" for number in range(300_000)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    refused(folder, "the index promises tensor 'x0'")


@pytest.mark.parametrize(
    ("offsets", "shape"),
    [
        ([[0, 16], [0, 16]], [4]),
        ([[0, 16], [8, 24]], [4]),
        ([[0, 16], [16, 8]], [4]),
        ([[0, 1 << 62], [1 << 62, 1 << 63]], [1 << 60]),
    ],
)
def test_safetensors_whose_tensors_overlap(tmp_path, offsets, shape):
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": place} for name, place in zip("ab", offsets, strict=True)
    }
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
    refused(path, "damaged or cut short")


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 1 << 40, (1 << 64) - 1])
def test_safetensors_headers_of_impossible_length(tmp_path, length):
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(100))
    refused(path)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_devices_are_not_read(device):
    refused(Path(device), "is no file")


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.nemo")
    refused(tmp_path / "m.nemo", "is no file")
    refused(tmp_path, "is no file")
    folder = write_huggingface(tmp_path / "m", {"w": torch.zeros(2)})
    for name in ("config.json", "vocab.json", "merge.yaml", "README.md"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    assert open_checkpoint(folder).metadata.config == {}


def test_links_in_a_folder_are_the_users(tmp_path):
    """The cache of huggingface_hub is a folder of links to ``../../blobs``."""
    folder = write_huggingface(tmp_path / "blobs", {"w": torch.zeros(2)})
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(Path("..", "blobs", path.name))
    assert open_checkpoint(linked)["w"].shape == (2,)
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to("/etc/passwd")
    refused(linked, "damaged or cut short")
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to("model.safetensors")
    refused(linked)


def test_messages_do_not_steer_the_terminal(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"\x1b[2J\x07" + "x" * 100_000: 1, "w": torch.zeros(2)}, path)
    refused(path, r"\\x1b\[2J")
    assert printable("a\x1bb\udcffc\n") == "a\\x1bb\\udcffc\n"


def test_nothing_is_imported_or_printed(tmp_path):
    """A last look from outside: a process that opens hostile files writes nothing but its own words."""
    paths = [
        torch_file(tmp_path / "a.pt", state(laughs(60))),
        torch_file(tmp_path / "b.pt", b"cos\nsystem\nX\x02\x00\x00\x00id\x85R"),
    ]
    code = (
        "import sys, nemo_merge\n"
        "for path in sys.argv[1:]:\n"
        "    try: nemo_merge.open_checkpoint(path)\n"
        "    except nemo_merge.errors.CheckpointError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n" * 2, "")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a?){50}a{50}", ".*" * 9 + "x", "a{99999999999}", "[["])
def test_patterns_that_take_very_long(tmp_path, pattern):
    factors = {"encoder.q": (torch.ones(3, 1), torch.ones(1, 4))}
    folder = lora_folder(tmp_path / "m", factors)
    assert open_checkpoint(folder).specs
    lora_folder(folder, factors, alpha=1, alpha_pattern={pattern: 1})
    refused(folder, "is not a regular expression")


@pytest.mark.parametrize(
    "pattern", [r"^model.layers.\d+.q_proj", r".*\.(q|v)(_proj)?", "q_proj|v_proj", r"layers\.(1|2)\..*"]
)
def test_patterns_of_usual_kinds_are_read(tmp_path, pattern):
    factors = {"encoder.q": (torch.ones(3, 1), torch.ones(1, 4))}
    assert open_checkpoint(lora_folder(tmp_path / "m", factors, alpha=1, alpha_pattern={pattern: 1})).specs
