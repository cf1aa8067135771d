"""Real NeMo models: what is merged restores and transcribes in plain NeMo, without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_merge import merge, merge_state_dicts, methods, open_checkpoint
from nemo_merge.merging.plan import Treatment, plan_merge
from tests.fixtures import nemo_models
from tests.fixtures.models import same

soundfile = pytest.importorskip("soundfile")
# NeMo takes ten seconds to import, so it is only looked for here.
pytestmark = [pytest.mark.nemo, pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")]

KINDS = ("ctc", "hybrid", "attention")

# Run in a process of its own, in which importing nemo_merge fails.
PLAIN_NEMO = """
import json, sys
sys.modules["nemo_merge"] = None
import torch
from nemo.collections.asr.models import ASRModel
results = {}
for path in sys.argv[2:]:
    model = ASRModel.restore_from(path, map_location="cpu").eval()
    languages = {"source_lang": "pt", "target_lang": "pt", "pnc": "no"} if "MultiTask" in type(model).__name__ else {}
    with torch.inference_mode():
        (heard,) = model.transcribe([sys.argv[1]], batch_size=1, verbose=False, **languages)
    results[path] = {
        "class": type(model).__name__,
        "text": heard.text,
        "record": model.cfg.nemo_merge.method.name,
        "sums": {name: float(value.double().sum()) for name, value in model.state_dict().items()},
    }
print("RESULT" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, tuple[Path, list[Path]]]:
    """A base and two experts of every kind, saved by NeMo."""
    folder = tmp_path_factory.mktemp("nemo")
    made = {}
    for kind in KINDS:
        home = folder / kind
        home.mkdir()
        model = nemo_models.ctc() if kind == "ctc" else getattr(nemo_models, kind)(home)
        model.save_to(str(home / "base.nemo"))
        experts = [nemo_models.perturbed(model, home / f"expert_{seed}.nemo", seed) for seed in (1, 2)]
        made[kind] = (home / "base.nemo", experts)
    return made


@pytest.fixture(scope="module")
def merged(models) -> dict[str, Path]:
    outputs = {}
    for kind, (base, experts) in models.items():
        outputs[kind] = base.with_name("merged.nemo")
        merge(base, experts, "boosted_tsvm", output=outputs[kind])
    return outputs


@pytest.fixture(scope="module")
def in_plain_nemo(merged, tmp_path_factory) -> dict[str, dict]:
    """What a process that knows nothing of this package makes of the merged models."""
    audio = tmp_path_factory.mktemp("audio") / "tone.wav"
    time = np.arange(16000) / 16000
    soundfile.write(audio, 0.3 * np.sin(2 * np.pi * 300 * time * (1 + time)), 16000)
    command = [sys.executable, "-c", PLAIN_NEMO, str(audio), *map(str, merged.values())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    results = json.loads(line.removeprefix("RESULT"))
    return {kind: results[str(path)] for kind, path in merged.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_models_restore_and_transcribe_in_plain_nemo(kind, in_plain_nemo, merged):
    result = in_plain_nemo[kind]
    assert result["class"] in ("EncDecCTCModel", "EncDecHybridRNNTCTCBPEModel", "EncDecMultiTaskModel")
    assert isinstance(result["text"], str)
    assert result["record"] == "boosted_tsvm"
    written = open_checkpoint(merged[kind])
    assert result["sums"] == {name: float(tensor.double().sum()) for name, tensor in written.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_restored_weights_equal_the_arithmetic_to_the_bit(kind, models, merged):
    from nemo.collections.asr.models import ASRModel

    base, experts = models[kind]
    states = [ASRModel.restore_from(str(path), map_location="cpu").state_dict() for path in (base, *experts)]
    expected = merge_state_dicts(states[0], states[1:], "boosted_tsvm")
    restored = ASRModel.restore_from(str(merged[kind]), map_location="cpu").state_dict()
    assert same(dict(restored), dict(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_has_a_sensible_treatment(kind, models):
    base, experts = models[kind]
    plan = plan_merge(open_checkpoint(base), [open_checkpoint(path) for path in experts], methods.get("tsvm"))
    treatments = {row.name: row.treatment for row in plan.rows}
    for name, treatment in treatments.items():
        if name.endswith(
            ("linear_q.weight", "linear1.weight", "pointwise_conv1.weight", "query_net.weight", "joint.enc.weight")
        ):
            assert treatment is Treatment.METHOD, name
        if "running_" in name:
            assert treatment is Treatment.AVERAGE, name
        if "featurizer" in name or "num_batches" in name or name.endswith("pos_enc"):
            assert treatment is Treatment.COPY, name
        if "embed" in name and name.endswith(("embed.weight", "token_embedding.weight")):
            assert treatment is Treatment.MEAN, name
    expected = (
        {"log_softmax.mlp.layer0.weight": "transf_decoder._embedding.token_embedding.weight"}
        if kind == "attention"
        else {}
    )
    assert plan.ties == expected


def test_tokenizers_that_nemo_saved_twice_are_the_same(models):
    base, (expert, _) = models["hybrid"]
    a, b = open_checkpoint(base), open_checkpoint(expert)
    assert a.metadata.tokenizers == b.metadata.tokenizers != {}


def test_statistics_by_arithmetic_would_give_nan(models):
    """The trap this package is built around: naive task arithmetic turns variances negative, and all output to NaN."""
    from nemo.collections.asr.models import ASRModel

    base, _ = models["ctc"]
    model = ASRModel.restore_from(str(base), map_location="cpu").eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = next(name for name in state if name.endswith("running_var"))
    expert = {**state, name: state[name] * 0.2}
    audio, length = torch.randn(1, 16000), torch.tensor([16000])

    def output(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        model.load_state_dict(weights)
        with torch.inference_mode():
            return model(input_signal=audio, input_signal_length=length)[0]

    naive = {**state, name: state[name] + 2 * (expert[name] - state[name])}
    assert bool((naive[name] < 0).any())
    assert torch.isnan(output(naive)).any()
    merged = merge_state_dicts(state, [expert, expert], "task_arithmetic", scale=1.0)
    assert torch.isfinite(output(merged)).all()
