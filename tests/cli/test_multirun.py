"""Sweeps through Hydra's multirun, with every launcher."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nemo_merge import merge, open_checkpoint
from tests.fixtures.models import same


def run(folder, *arguments):
    command = [sys.executable, "-m", "nemo_merge", "multirun", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize(
    "launcher",
    [
        "basic",
        pytest.param("joblib", marks=pytest.mark.slow),
        pytest.param("submitit_local", marks=pytest.mark.slow),
    ],
)
def test_every_combination_is_merged(launcher, nemo_family, tmp_path):
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    base, experts = nemo_family
    (tmp_path / "config.yaml").write_text(
        f"base: {base}\nexperts: [{experts[0]}, {experts[1]}]\nmethod: {{name: ties}}\n"
    )
    more = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    done = run(
        tmp_path,
        "config.yaml",
        "method.density=0.2,0.5",
        "method.scale=0.5,1.0",
        "hydra.sweep.dir=out",
        f"hydra/launcher={launcher}",
        *more,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for number in range(4):
        with open_checkpoint(tmp_path / "out" / str(number) / "merged.nemo") as checkpoint:
            method = checkpoint.metadata.provenance["method"]
            found[method["density"], method["scale"]] = {name: tensor.clone() for name, tensor in checkpoint.items()}
    assert sorted(found) == [(0.2, 0.5), (0.2, 1.0), (0.5, 0.5), (0.5, 1.0)]
    merge(base, experts[:2], "ties", density=0.2, scale=0.5, output=tmp_path / "alone.nemo")
    with open_checkpoint(tmp_path / "alone.nemo") as alone:
        assert same(dict(alone), found[0.2, 0.5])


def test_methods_and_experts_may_vary_and_a_bad_job_does_not_stop_the_others(nemo_family, tmp_path):
    base, experts = nemo_family
    done = run(
        tmp_path,
        "method=soup,slerp",
        f"base={base}",
        f"experts=[{experts[0]},{experts[1]}],[{experts[0]},{experts[1]},{experts[2]}]",
        "output='${hydra:sweep.dir}/m${hydra:job.num}.nemo'",
        "hydra.sweep.dir=out",
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "slerp takes 2 experts at most, but 3 are given" in done.stderr
    assert done.stderr.splitlines()[-1] == "nemo-merge: error: 1 jobs failed; out/3/error.txt says why"
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nemo")) == ["m0.nemo", "m1.nemo", "m2.nemo"]


def test_a_misspelt_setting(nemo_family, tmp_path):
    base, experts = nemo_family
    done = run(tmp_path, f"base={base}", f"experts=[{experts[0]}]", "method=soup", "batchnorm=pooled,base")
    assert done.returncode == 2
    assert "there is no setting 'batchnorm'; did you mean 'batch_norm'" in done.stderr
