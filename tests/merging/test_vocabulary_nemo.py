"""Real NeMo models with grown vocabularies restore and transcribe in plain NeMo, and score old tokens as before."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_merge import merge, open_checkpoint
from nemo_merge.vocabulary import rows_of
from tests.fixtures import nemo_models
from tests.fixtures.nemo_models import LABELS, SPANISH, TEXT

soundfile = pytest.importorskip("soundfile")
pytestmark = [
    pytest.mark.nemo,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed"),
]

BOTH = {"es": SPANISH, "pt": TEXT + "ção\n" * 9}
# What the base and the expert with other tokens are made of.
KINDS = {
    "characters": (lambda _: nemo_models.ctc(), lambda _: nemo_models.ctc(labels=["ç", *reversed(LABELS), "ã"])),
    "pieces": (nemo_models.ctc_pieces, lambda folder: nemo_models.ctc_pieces(folder, text=SPANISH)),
    "hybrid": (nemo_models.hybrid, lambda folder: nemo_models.hybrid(folder, text=SPANISH)),
    "tdt": (
        lambda folder: nemo_models.hybrid(folder, durations=(0, 1, 2)),
        lambda folder: nemo_models.hybrid(folder, text=SPANISH, durations=(0, 1, 2)),
    ),
    "aggregate": (
        lambda folder: nemo_models.hybrid(folder, text={"pt": TEXT}),
        lambda folder: nemo_models.hybrid(folder, text=BOTH),
    ),
    "attention": (nemo_models.attention, lambda folder: nemo_models.attention(folder, texts=BOTH)),
}
SENTENCE = "la niña vio el barco"

# Run in a process of its own, in which importing nemo_merge fails.
PLAIN_NEMO = """
import json, os, sys
sys.modules["nemo_merge"] = None
import torch
from nemo.collections.asr.models import ASRModel
manifest, folder, *paths = sys.argv[1:]
results = {}
for path in paths:
    model = ASRModel.restore_from(path, map_location="cpu").eval()
    model.save_to(os.path.join(folder, "again.nemo"))
    model = ASRModel.restore_from(os.path.join(folder, "again.nemo"), map_location="cpu").eval()
    languages = {}
    if "MultiTask" in type(model).__name__:
        languages = {"source_lang": "es", "target_lang": "es", "pnc": "no"}
    with torch.inference_mode():
        (heard,) = model.transcribe(manifest, batch_size=1, verbose=False, **languages)
    ids = None
    if (tokenizer := getattr(model, "tokenizer", None)) is not None:
        ids = tokenizer.text_to_ids(SENTENCE, "es") if hasattr(tokenizer, "langs") else tokenizer.text_to_ids(SENTENCE)
        assert tokenizer.ids_to_text(ids).strip() == SENTENCE
    results[path] = {
        "text": heard.text,
        "ids": ids,
        "shapes": {name: list(value.shape) for name, value in model.state_dict().items()},
    }
print("RESULT" + json.dumps(results))
""".replace("SENTENCE", repr(SENTENCE))


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> dict[str, Path]:
    """A folder for every kind with base, two experts, and their merges by all policies that are possible."""
    folders = {}
    for kind, (make_base, make_other) in KINDS.items():
        folders[kind] = folder = tmp_path_factory.mktemp(kind)
        for name in ("mine", "theirs"):
            (folder / name).mkdir()
        base = make_base(folder / "mine")
        base.save_to(str(folder / "base.nemo"))
        nemo_models.perturbed(base, folder / "same.nemo", 1)
        nemo_models.perturbed(make_other(folder / "theirs"), folder / "other.nemo", 2)
        for policy in ("base", "union"):
            experts = [folder / "same.nemo", folder / "other.nemo"]
            merge(
                folder / "base.nemo",
                experts,
                "task_arithmetic",
                output=folder / f"{policy}-policy.nemo",
                vocabulary=policy,
            )
    return folders


@pytest.fixture(scope="module")
def in_plain_nemo(merged, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("audio")
    time = np.arange(16000) / 16000
    soundfile.write(folder / "tone.wav", 0.3 * np.sin(2 * np.pi * 300 * time * (1 + time)), 16000)
    line = {"audio_filepath": str(folder / "tone.wav"), "duration": 1.0, "text": "", "lang": "es"}
    line |= {"source_lang": "es", "target_lang": "es", "pnc": "no"}
    (folder / "manifest.json").write_text(json.dumps(line) + "\n")
    paths = [folder / "union-policy.nemo" for folder in merged.values()]
    command = [sys.executable, "-c", PLAIN_NEMO, str(folder / "manifest.json"), str(folder), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    results = json.loads(found.removeprefix("RESULT"))
    return {kind: results[str(path)] for kind, path in zip(merged, paths, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_grown_models_restore_transcribe_and_know_the_new_language(kind, merged, in_plain_nemo):
    result = in_plain_nemo[kind]
    assert isinstance(result["text"], str)
    with open_checkpoint(merged[kind] / "union-policy.nemo") as written:
        assert result["shapes"] == {name: list(spec.shape) for name, spec in written.specs.items()}
        if kind == "characters":
            return
        texts = [written.vocabulary().tokens[row].text for row in result["ids"]]
        assert "<unk>" not in texts
        if kind in ("aggregate", "attention"):
            assert {written.vocabulary().tokens[row].language for row in result["ids"]} == {"es"}
        assert "".join(texts).replace("▁", " ").strip() == SENTENCE


@pytest.mark.parametrize("kind", KINDS)
def test_old_tokens_score_as_in_a_merge_without_the_new_ones(kind, merged):
    """Scores are compared after subtracting that of the first token, because the new ones change their sum only."""
    from nemo.collections.asr.models import ASRModel

    folder = merged[kind]
    with open_checkpoint(folder / "base-policy.nemo") as small, open_checkpoint(folder / "union-policy.nemo") as large:
        places = torch.tensor(rows_of(small.vocabulary().tokens, large.vocabulary().tokens))
        assert len(large.vocabulary()) > len(small.vocabulary())
    outputs = []
    for policy in ("base", "union"):
        model = ASRModel.restore_from(str(folder / f"{policy}-policy.nemo"), map_location="cpu").eval()
        rows = places if policy == "union" else torch.arange(len(places))
        outputs.append([scores[..., rows] - scores[..., rows[:1]] for scores in _scores(model, rows)])
    for small_scores, large_scores in zip(*outputs, strict=True):
        torch.testing.assert_close(small_scores, large_scores, rtol=1e-4, atol=1e-5)


def _scores(model, rows: torch.Tensor) -> list[torch.Tensor]:
    """Log-probabilities of every output layer for fixed audio and, where text goes in, the first five tokens."""
    torch.manual_seed(0)
    audio, length = torch.randn(1, 16000), torch.tensor([16000])
    text = rows[None, :5]
    with torch.inference_mode():
        if hasattr(model, "transf_decoder"):
            scores, *_ = model(
                input_signal=audio, input_signal_length=length, transcript=text, transcript_length=torch.tensor([5])
            )
            return [scores]
        if not hasattr(model, "joint"):
            return [model(input_signal=audio, input_signal_length=length)[0]]
        encoded, _ = model(input_signal=audio, input_signal_length=length)
        predicted, *_ = model.decoder(targets=text, target_length=torch.tensor([5]))
        joint = model.joint.joint(encoded.transpose(1, 2), predicted.transpose(1, 2))
        return [joint, model.ctc_decoder(encoder_output=encoded)]
