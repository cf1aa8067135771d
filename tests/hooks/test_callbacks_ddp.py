"""The callbacks in two processes that train together (data parallel, gloo)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytest.importorskip("lightning")
from nemo_merge import merge_state_dicts
from tests.fixtures.models import same

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, os, sys
from pathlib import Path
from safetensors.torch import save_file
from nemo_merge.errors import NemoMergeError
from nemo_merge.hooks import CheckpointMergeCallback, ContinualMergeCallback, MergeCallback
from tests.fixtures.lightning_models import Tiny, fit, weights_of

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
ddp = {"strategy": "ddp", "devices": 2}
base, expert = folder / "base.safetensors", folder / "expert.safetensors"

model = Tiny(sets=2)
fit(model, steps=4, **ddp)
save_file(weights_of(model), folder / f"alone_{rank}.safetensors")

model = Tiny(sets=2)
merging = MergeCallback(base, [expert], "tsvm", output=folder / "merged.safetensors", every_n_validations=1, keep="both")
averaging = CheckpointMergeCallback(folder / "average.safetensors", "ties", last=2)
trainer = fit(model, merging, averaging, steps=4, **ddp)
save_file(weights_of(model), folder / f"trained_{rank}.safetensors")
found = {"outcomes": [[o.step, dict(o.merged), dict(o.trained), o.kept] for o in merging.outcomes + averaging.outcomes]}

model = Tiny()
fit(model, ContinualMergeCallback(expert, every_n_steps=1, schedule="cosine", end=0.5), steps=4, **ddp)
save_file(weights_of(model), folder / f"drawn_{rank}.safetensors")

def message(*callbacks):
    try:
        fit(Tiny(), *callbacks, steps=2, **ddp)
    except NemoMergeError as error:
        return str(error)

found["settings"] = message(MergeCallback(base, [expert], "soup", scale=0.1 + rank, output=folder / "no.safetensors"))
found["missing"] = message(MergeCallback(base, [folder / "gone.safetensors"], "soup", output=folder / "no.safetensors"))
os.chdir(folder / f"node_{rank}")  # the same path, another file
found["files"] = message(ContinualMergeCallback("base.safetensors"))
(folder / f"found_{rank}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from safetensors.torch import save_file

    from tests.fixtures.lightning_models import Tiny, weights_of

    folder = tmp_path_factory.mktemp("ddp")
    for rank in range(2):
        (folder / f"node_{rank}").mkdir()
        save_file(weights_of(Tiny(rank)), folder / f"node_{rank}" / "base.safetensors")
    save_file(weights_of(Tiny()), folder / "base.safetensors")
    save_file(weights_of(Tiny(1)), folder / "expert.safetensors")
    (folder / "script.py").write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(folder / "script.py")]
    done = subprocess.run(
        [sys.executable, *command, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # the script uses the fixtures
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return [json.loads((folder / f"found_{rank}.json").read_text()) for rank in range(2)]


def weights(folder, name):
    return [load_file(folder / f"{name}_{rank}.safetensors") for rank in range(2)]


def test_training_does_not_notice_on_any_rank(folder):
    for alone, trained in zip(weights(folder, "alone"), weights(folder, "trained"), strict=True):
        assert same(alone, trained)


def test_the_file_is_the_merge_of_what_rank_0_has(folder):
    trained = load_file(folder / "merged.trained.safetensors")
    assert same(trained, weights(folder, "trained")[0])
    base, expert = (load_file(folder / f"{name}.safetensors") for name in ("base", "expert"))
    assert same(load_file(folder / "merged.safetensors"), merge_state_dicts(base, [trained, expert], "tsvm"))
    assert load_file(folder / "average.safetensors").keys() == trained.keys()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".") or path.name.startswith("no.")]


def test_the_ranks_agree(found):
    assert found[0]["outcomes"] == found[1]["outcomes"]
    assert [outcome[0] for outcome in found[0]["outcomes"]] == [2, 4, 4]


def test_interpolated_parameters_stay_the_same_on_all_ranks(folder):
    first, second = weights(folder, "drawn")
    for name in first:
        if "running" not in name:  # statistics are those of each rank's batches until the next step
            assert first[name].equal(second[name]), name


def test_what_is_wrong_is_said_on_all_ranks_or_by_one(found):
    for rank in range(2):
        assert "different settings" in found[rank]["settings"]
        assert "different weights or files" in found[rank]["files"]
    assert "gone.safetensors" in found[0]["missing"]
    assert found[1]["missing"] == "rank 0 of 2 failed"
