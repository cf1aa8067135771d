"""The speech translation recipe: its tasks and merges, what it computes, and once from end to end in miniature."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_merge.checkpoints import open_checkpoint
from nemo_merge.corpora.mini import NOTICE
from nemo_merge.errors import ConfigError
from nemo_merge.scoring import normalised_performance
from nemo_merge.stages.__main__ import _settings
from nemo_merge.stages.engine import Context
from nemo_merge.stages.speech_tasks import task_cuts
from nemo_merge.stages.translation import Merge, ctc_model, groups, merges, tasks, trained
from nemo_merge.stages.translation_results import Score, _models, chosen, recovered_gain, score, write_report
from nemo_merge.training.decode import Hypothesis
from nemo_merge.training.fine_tune import FineTuningJob

RECIPE = Path(__file__).parents[2] / "recipes" / "speech_translation"


@pytest.fixture(scope="module")
def config():
    return _settings(RECIPE / "conf" / "speech_translation.yaml", ())


def test_every_task_has_an_expert_and_groups_merge_them(config):
    assert {name: task.translates for name, task in tasks(config).items()} == {
        "pt": False,
        "es": False,
        "pt-en": True,
        "es-en": True,
    }
    assert trained(config)["pt-en"] == ["pt-en"]
    assert trained(config)["all-joint"] == groups(config)["all"] == list(tasks(config))
    found = list(merges(config))
    assert len({item.name for item in found}) == len(found)
    for group in groups(config):
        mine = {item.method for item in found if item.group == group}
        assert mine == {"soup", "task_arithmetic", "ties", "tsvm", "boosted_tsvm", "lors"}
    sweep = config["merge"]["methods"]["lors"]["sweep"]["scale"]
    assert [item.parameters["scale"] for item in found if item.group == "all" and item.method == "lors"] == sweep


def test_a_canary_and_a_corpus_can_be_given():
    config = _settings(RECIPE / "conf" / "covost2.yaml", ("train.base.given=canary.nemo",))
    assert {task.data for task in tasks(config).values()} == set(config["corpus"]) == {"covost_pt", "covost_es"}
    assert all(task.pnc for task in tasks(config).values())
    for section in ("experts", "joint"):
        options = {key: value for key, value in config["train"][section].items() if key != "groups"}
        job = FineTuningJob("canary.nemo", "out.nemo", ["cuts.jsonl"], **options)
        assert job.optim["sched"]["max_steps"] == job.steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"pt": {"data": "translated_portuguese", "task": "transcript"}}}, "tasks.pt.task: 'transcript' is n"),
        ({"tasks": {"pt": {"data": "portuguese", "task": "translate"}}}, "tasks.pt.data: corpus has no set 'portuguese'"),
        ({"groups": {"all": {"experts": ["pt", "pt-eng"]}}}, "groups.all: there is no task 'pt-eng'; did you mean 'pt-en'"),
        ({"groups": {"pt": {"experts": ["pt"]}}}, "groups.pt: is the name of a task"),
        ({"groups": {"languages": {"experts": ["pt", "es"]}}}, "train.joint.groups: there is no group 'all'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(config, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        trained({**config, **changes})


def test_the_chosen_merges_err_least_on_the_development_sets():
    soup = Merge("all", "soup", {})
    lors = [Merge("all", "lors", {}, scale) for scale in (0.3, 0.6, 0.9)]
    other = [replace(item, group="languages") for item in lors]
    errors = {"all-lors-0.3": 0.3, "all-lors-0.6": 0.2, "all-lors-0.9": 0.2}
    errors |= {f"languages-lors-{item.value:g}": 1 - item.value for item in other}
    assert chosen([soup, *lors, *other], errors) == [soup, lors[1], other[2]]


def test_recovered_gain_is_normalised_performance_with_an_interval():
    rng = np.random.default_rng(0)

    def score(value: float) -> Score:
        return Score(value, value + 0.01 * rng.standard_normal(400))

    base, experts = {"pt": 0.5, "pt-en": 0.6, "es": 0.1}, {"pt": 0.1, "pt-en": 0.2, "es": 0.2}
    merged = {"pt": 0.2, "pt-en": 0.3, "es": 0.15}
    found = recovered_gain(*({key: score(value) for key, value in item.items()} for item in (base, experts, merged)))
    expected = normalised_performance(base, experts, merged)
    value, low, high = found["mean"]
    assert value == pytest.approx(expected.value)
    assert found["tasks"] == pytest.approx(expected.by_set)
    assert found["undefined"] == ["es"]
    assert value - 0.1 < low < value < high < value + 0.1
    itself = {key: score(value) for key, value in base.items()}
    assert recovered_gain(itself, itself, itself)["undefined"] == list(base)


def cut(language: str | None = "pt-PT", **custom: str):
    from lhotse import SupervisionSegment
    from lhotse.testing.dummies import dummy_cut

    said = SupervisionSegment("u", "r", 0, 1, text="olá a todos", language=language, custom=custom)
    return dummy_cut(0, supervisions=[said])


def test_cuts_of_a_task_say_what_nemo_asks():
    pytest.importorskip("lhotse")
    speech = cut(translation="hello everyone", translation_language="en")
    (heard,) = task_cuts([speech], "transcribe", "cuts")
    assert heard.custom.items() >= {"source_lang": "pt", "target_lang": "pt", "task": "asr", "pnc": "no"}.items()
    assert (heard.supervisions[0].text, heard.supervisions[0].language) == ("olá a todos", "pt")
    (translated,) = task_cuts([speech], "translate", "cuts", pnc=True)
    assert translated.custom.items() >= {"source_lang": "pt", "target_lang": "en", "task": "ast", "pnc": "yes"}.items()
    assert (translated.supervisions[0].text, translated.supervisions[0].language) == ("hello everyone", "en")
    assert speech.supervisions[0].text == "olá a todos"  # as before
    with pytest.raises(ConfigError, match=r"cuts\.jsonl: u has no translation"):
        task_cuts([cut()], "translate", "cuts.jsonl")
    with pytest.raises(ConfigError, match="u does not say the language of the speech"):
        task_cuts([cut(None)], "transcribe", "cuts.jsonl")


def test_the_encoder_learns_all_characters(tmp_path, config):
    pytest.importorskip("lhotse")
    from lhotse import CutSet

    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts([cut()]).to_file(path)
    model = ctc_model(config["model"], [path])
    assert model["labels"] == model["decoder"]["vocabulary"] == [" ", "a", "d", "l", "o", "s", "t", "á"]
    assert model["decoder"]["num_classes"] == 8
    assert model["encoder"] == config["model"]["encoder"]


def miniature(folder: Path) -> Path:
    """A configuration with everything once, as small as can be."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(RECIPE / "conf" / "speech_translation.yaml")
    model = OmegaConf.load(RECIPE / "conf" / config.model)
    config.corpus = {f"translated_{name}": {"train": 24, "dev": 2, "test": 2} for name in ("portuguese", "spanish")}
    del config.groups.transcription, config.groups.portuguese
    config.merge.methods = {"soup": {}, "lors": {"sweep": {"scale": [0.5, 1.0]}}}
    config.train.base.encoder = {"steps": 1, "learning_rate": 1e-3, "warmup_steps": 0, "batch_size": 4}
    config.train.base.vocabulary = 40
    for section in (config.train.base.fine_tune, config.train.experts, config.train.joint):
        section.update({"steps": 1, "batch_size": 4})
        section.optim.sched.warmup_steps = 0
    model.encoder.n_layers = model.transf_decoder.config_dict.num_layers = 1
    model.decoding.beam.max_generation_delta = 2  # an untrained decoder does not stop
    (folder / "conf").mkdir()
    OmegaConf.save(model, folder / "conf" / "model.yaml")
    config.model = "model.yaml"
    OmegaConf.save(config, folder / "conf" / "miniature.yaml")
    return folder / "conf" / "miniature.yaml"


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(RECIPE / "run.sh"), "--config", str(config), "--nj", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_scores_and_report_of_what_was_decoded(tmp_path):
    """The expert of a task makes no error there, a merge of it errs in a quarter of the utterances, the rest in all."""
    pytest.importorskip("sacrebleu")
    pytest.importorskip("matplotlib")
    said = {"pt": "o livro está em casa", "es": "el libro está en casa"}
    context = Context(_settings(miniature(tmp_path), ()), tmp_path / "data", tmp_path / "exp")
    members = groups(context.config)
    context.expdir.mkdir()
    (context.expdir / "chosen.json").write_text(
        json.dumps([name for group in members for name in (f"{group}-soup", f"{group}-lors-0.5")])
    )
    for model in _models(context):
        for task in tasks(context.config):
            text = said.get(task, "the book is at home")
            right = 20 if model == task else 15 if task in members.get(model.split("-soup")[0], ()) else 0
            hypotheses = [Hypothesis(f"u{i}", text, text if i < right else text[:-4] + "x") for i in range(20)]
            path = context.expdir / "decode" / model / f"{task}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(item.line() for item in hypotheses), encoding="utf-8")
    score(context)
    scores = json.loads((context.expdir / "scores.json").read_text())
    assert scores["sets"]["pt"]["pt"]["wer"] == [0, 0, 0]
    assert scores["sets"]["base"]["pt"]["wer"] == pytest.approx([0.2, 0.2, 0.2])
    assert scores["sets"]["es-en"]["es-en"]["bleu"] == pytest.approx([100, 100, 100])
    value, low, high = scores["sets"]["translation-soup"]["es-en"]["bleu"]
    assert low < value < high < 100
    gains = scores["gains"]["all"]
    assert gains["soup"]["tasks"]["pt"] == pytest.approx(0.75)
    assert gains["soup"]["mean"][1] < gains["soup"]["mean"][0] < gains["soup"]["mean"][2]
    assert gains["lors"]["mean"] == gains["joint"]["mean"] == pytest.approx([0, 0, 0])

    write_report(context)
    results = (context.expdir / "RESULTS.md").read_text()
    for text in (NOTICE, "### Across languages and tasks", "| lors (scale 0.5) |", "| joint training |", "nrefs:1"):
        assert text in results
    assert "| base | 20.0 [20.0, 20.0] |" in results
    assert "**" in results.split("| soup |")[1].splitlines()[0]
    assert (context.expdir / "gains.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.nemo
def test_the_recipe(tmp_path):
    pytest.importorskip("nemo.collections.asr")
    pytest.importorskip("sacrebleu")
    config = miniature(tmp_path)
    done = run(config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("DONE ") == 8
    exp = tmp_path / "exp"
    results = (exp / "RESULTS.md").read_text()
    for text in (NOTICE, "Portuguese to English, BLEU", "joint training", "lors (scale", "nrefs:1", "torch"):
        assert text in results
    assert (exp / "gains.png").read_bytes().startswith(b"\x89PNG")
    with (
        open_checkpoint(exp / "models" / "encoder.nemo") as ctc,
        open_checkpoint(exp / "models" / "untrained.nemo") as new,
    ):
        weights = [name for name in ctc if name.startswith("encoder.")]
        assert weights
        assert all(torch.equal(ctc[name], new[name]) for name in weights)
    scores = json.loads((exp / "scores.json").read_text())
    assert scores["sets"].keys() >= {"base", "pt", "es-en", "all-joint", "translation-soup"}
    assert "lors" in scores["chosen"]["all"]

    command = [sys.executable, "-m", "nemo_merge", "merge", "method=lors", f"base={exp}/models/base.nemo"]
    experts = ",".join(str(exp / "models" / f"{name}.nemo") for name in ("pt", "es-en"))
    again = [*command, f"experts=[{experts}]", f"output={tmp_path}/merged.nemo"]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name.rsplit("_", 1)[-1] for name in _members(tmp_path / "merged.nemo")} == {
        name.rsplit("_", 1)[-1] for name in _members(exp / "models" / "base.nemo")
    }

    again = run(config, f"train.base.given={exp}/models/base.nemo", "--stop_stage", "4")
    assert again.returncode == 0, again.stdout + again.stderr
    assert re.findall(r"START stage \d \((\w+)\)", again.stdout) == ["train", "merge"]


def _members(path: Path) -> list[str]:
    import tarfile

    with tarfile.open(path) as archive:
        return [name for name in archive.getnames() if name != "."]
