"""The code-switching recipe: its configurations, what it compares, and once from end to end in miniature."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_merge.corpora.mini import NOTICE
from nemo_merge.errors import ConfigError, NemoMergeError
from nemo_merge.reporting.switching import switching_section
from nemo_merge.stages.__main__ import _settings
from nemo_merge.stages.adaptation import train
from nemo_merge.stages.compared import Setting, fine_tuned, settings
from nemo_merge.stages.data import cuts_path
from nemo_merge.stages.engine import Context, StageError, run
from nemo_merge.stages.recipes import ADAPT
from nemo_merge.stages.retention import at_levels, chosen, switching
from nemo_merge.stages.switching import read_switching
from nemo_merge.training.fine_tune import FineTuningJob

from ..corpora import layouts

RECIPE = Path(__file__).parents[2] / "recipes" / "code_switching"
CORPORA = {  # configurations of other corpora: the target and, as its folder is missing, what is said of it
    "ascend": ("ascend", "ASCEND: can be downloaded by anybody"),
    "seame": ("seame", "SEAME: sold by the LDC"),
    "cs_fleurs": ("cs_fleurs", "CS-FLEURS: can be downloaded by anybody"),
    "fisher": ("fisher", "Fisher Spanish, with its English: sold by the LDC"),
}
SETS = ("general", "conversational", "interviews", "english", "code_switching")
TINY = [
    *(f"corpus.{name}.{split}={size}" for name in SETS for split, size in (("train", 8), ("dev", 2), ("test", 2))),
    "train.base.steps=2", "train.base.warmup_steps=1", "train.base.batch_size=4", "train.base.workers=1",
    "seeds=[0,1]", "fine_tune.common.steps=2", "fine_tune.common.batch_size=4", "model.encoder.n_layers=1",
    "fine_tune.common.optim.sched.max_steps=2", "fine_tune.common.optim.sched.warmup_steps=1",
    "fine_tune.methods.bayesian_lora.sweep={adapter.beta:[0.001,0.01]}",
    "merge.methods.bayesian_seeds.of=bayesian_lora-0.01",
    "merge.methods.lora_scaled.sweep.scale=[0.5]", "merge.methods.full_scaled.sweep.scale=[0.5]",
]  # fmt: skip


@pytest.fixture(scope="module")
def config():
    return named("code_switching")


@pytest.fixture(scope="module")
def with_old_data():
    return named("old_data", "seeds=[0,1]")


def named(name: str, *changes: str):
    return _settings(RECIPE / "conf" / f"{name}.yaml", changes)


def test_every_fine_tuning_is_a_job(config):
    found = {setting.name: setting for setting in fine_tuned(config)}
    jobs = {
        name: FineTuningJob("base.nemo", "out", ["cuts.jsonl"], **setting.options) for name, setting in found.items()
    }
    assert jobs["full"].trainable == "full"
    assert jobs["full"].optim["lr"] != jobs["lora"].optim["lr"]
    assert jobs["full"].optim["sched"] == jobs["lora"].optim["sched"]  # a method changes what it names, no more
    sweep = config["fine_tune"]["methods"]["bayesian_lora"]["sweep"]["adapter.beta"]
    assert [jobs[f"bayesian_lora-{beta:g}"].adapter["beta"] for beta in sweep] == sweep
    assert jobs["lora"].adapter.items() <= jobs[f"bayesian_lora-{sweep[0]:g}"].adapter.items()


def test_sets_to_train_on(with_old_data):
    config = with_old_data
    found = {setting.name: setting.data for setting in fine_tuned(config)}
    assert found["lora"] == {"code_switching": None}
    assert found["lora_old"] == dict.fromkeys(config["source"])
    assert found["lora_joint"] == {"code_switching": 1, **dict.fromkeys(config["source"], pytest.approx(1 / 3))}


@pytest.mark.parametrize("name", ["code_switching", "old_data", "sweep", "variations", *CORPORA])
def test_every_method_has_a_label_and_every_sweep_a_symbol(name):
    config = named(name)
    for section in (config["fine_tune"], config["merge"]):
        for method, given in section["methods"].items():
            assert given["label"], method
            assert ("symbol" in given) == ("sweep" in given), method
    found = settings(config)
    assert {source for setting in found for source in setting.data} <= set(config["corpus"])
    assert config["score"]["reference"] in {setting.name for setting in found}
    assert all(sum(map(bool, setting.data.values())) in (0, len(setting.data)) for setting in found)


def test_merges(with_old_data):
    config = with_old_data
    found = {setting.name: setting for setting in settings(config)}
    scaled, seeds, both = (found[name] for name in ("lora_scaled-0.75", "lora_seeds_tsvm-0.5", "lora_and_old-0.75"))
    assert [setting.name for setting in both.sources] == ["lora", "lora_old"]
    assert scaled.merging == {"method": "soup", "scale": 0.75}
    assert seeds.merging == {"method": "tsvm", "scale": 0.5}
    assert scaled.runs([3, 4]) == {"lora_scaled-0.75-seed3": [3], "lora_scaled-0.75-seed4": [4]}
    assert seeds.runs([3, 4]) == {"lora_seeds_tsvm-0.5": [3, 4]}
    assert [setting.origin("lora") for setting in (scaled, seeds, both)] == ["lora", None, None]
    assert found["bayesian_lora-0.0001"].origin("lora") == "lora"
    assert found["lora"].origin("lora") is None
    assert found["lora"].merging == {}
    assert {setting.method for setting in settings({**config, "seeds": [3]})}.isdisjoint({"full_seeds", "lora_seeds"})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"of": "lara"}, r"merge.methods.x.of: no fine-tuning 'lara'; did you mean 'lora'"),
        ({"of": "lora", "seeds": "all"}, r"merge.methods.x.seeds: 'all' is neither each nor together"),
        ({"of": "lora", "method": "tsvn"}, r"'tsvn'.* did you mean 'tsvm'"),
    ],
)
def test_merges_that_are_refused(config, entry, message):
    with pytest.raises(NemoMergeError, match=message):
        settings({**config, "merge": {"methods": {"x": entry}}})


def test_two_settings_of_one_name(config):
    with pytest.raises(ConfigError, match="two settings are called 'lora'"):
        settings({**config, "merge": {"methods": {"lora": {"of": "full"}}}})


def test_variations_begin_at_fine_tunings_of_their_own():
    config = named("variations")
    found = {setting.name: setting for setting in settings(config)}
    begins = {name: setting.origin(config["score"]["reference"]) for name, setting in found.items()}
    assert begins["bayesian_long-0.001"] == begins["long_scaled-0.75"] == "lora_long"
    assert begins["lora_scaled-0.75"] == "lora"
    assert set(begins.values()) - {None} <= set(found)
    assert "start" not in found["bayesian_long-0.001"].options


def test_the_chosen_setting_forgets_least_among_those_that_learn_enough():
    compared = [Setting("lora", None, {}), *(Setting("bayes", beta, {}) for beta in (1, 2, 3)), Setting("stiff", 9, {})]
    dev = {  # source, target
        "lora": (0.30, 0.10),
        "bayes-1": (0.25, 0.10),
        "bayes-2": (0.15, 0.11),
        "bayes-3": (0.05, 0.30),  # forgets least, but learns too little
        "stiff-9": (0.05, 0.70),
    }
    assert chosen(compared, dev, "lora", 0.1) == {"lora", "bayes-2", "stiff-9"}
    assert chosen(compared, dev, "lora", 2.5) == {"lora", "bayes-3", "stiff-9"}


def test_methods_are_compared_at_the_same_target_error_rate():
    lora = Setting("lora", None, {})
    compared = [lora, Setting("bayes", 1, {}), Setting("bayes", 2, {}), Setting("scaled", 0.5, {}, of=(lora,))]
    rates = {  # source, target of two seeds
        "lora": [(0.5, 0.05), (0.4, 0.05)],
        "bayes-1": [(0.3, 0.15), (0.3, 0.15)],
        "bayes-2": [(0.1, 0.35), (0.1, 0.35)],
        "scaled-0.5": [(0.2, 0.15), (0.2, 0.12)],
    }
    found = at_levels(compared, rates, {"reference": "lora", "levels": [0.10, 0.15, 0.25]})
    assert found["bayes"][0] == pytest.approx([0.375, 0.35, 0.4])
    assert found["bayes"][2] == pytest.approx([0.2, 0.2, 0.2])
    assert found["scaled"][1:] == [None, None]  # the second seed's curve ends before
    assert "lora" not in found


def said(key, text, *spans, language="zh-en"):
    return SimpleNamespace(
        id=key, text=text, language=language, custom={"language_spans": [list(span) for span in spans]}
    )


def test_words_by_language():
    found = read_switching(
        [
            said("a", "A Reunião, foi, by the way!", ("pt", 0, 15), ("en", 17, 27), language="pt-en"),
            said("b", "sim, sim", language="pt"),
            said("c", "okay 3", ("en", 0, 4), language="pt-en"),
        ],
        lambda text: re.sub("[,!]", "", text.lower()),
    )
    assert found.tokens["a"] == ["a", "reunião", "foi", "by", "the", "way"]
    assert found.languages["a"] == ["pt"] * 3 + ["en"] * 3
    assert found.languages["b"] == ["pt", "pt"]
    assert found.languages["c"] == ["en", None]
    assert found.matrix == "pt"
    assert found.masks["entry"]["a"] == [False, False, False, True, False, False]
    heard = {"a": "a reunião foi foi bye the way", "b": "sim", "c": "ok 3"}
    wrong = {kind: [item.errors for item in errors] for kind, errors in found.errors(heard).items()}
    assert wrong == {"embedded": [2, 0, 1], "matrix": [0, 1, 0], "entry": [2, 0, 0]}
    summary = found.summary()
    assert (summary["utterances"], summary["switched"]) == (3, 1)
    assert summary["code_mixing_index"] == pytest.approx((50 + 0 + 0) / 3)
    assert summary["switch_point_fraction"] == pytest.approx(1 / 10)


def test_words_by_script_where_a_corpus_has_no_spans():
    found = read_switching([said("a", "我们 go home"), said("b", "好的")])
    assert found.tokens["a"] == ["我", "们", "go", "home"]
    assert found.masks["embedded"] == {"a": [False, False, True, True], "b": [False, False]}


def test_one_language_has_no_points_of_interest():
    found = read_switching([said("a", "das ist ein test", language="de-en")])
    assert found.masks == {}
    assert found.errors({"a": "das"}) == {}
    assert switching_section({"switching": found.summary(), "base": {"words": {}}}, [], "x") == []


@pytest.mark.parametrize("name", CORPORA)
def test_another_corpus_that_is_not_there(tmp_path, name):
    target, message = CORPORA[name]
    (tmp_path / "base.nemo").touch()
    config = named(name, f"train.base.given={tmp_path / 'base.nemo'}")
    assert config["target"] == target
    context = Context(config, tmp_path / "data", tmp_path / "exp", _console=lambda line: None)
    with pytest.raises(StageError, match=rf"corpus\.{target}: says no folder; {message}.*corpus\.{target}\.folder="):
        run(ADAPT, context)
    assert not (tmp_path / "data").exists()


def test_another_corpus_needs_a_base(tmp_path):
    context = Context(named("ascend"), tmp_path / "data", tmp_path / "exp", _console=lambda line: None)
    with pytest.raises(ConfigError, match=r"train\.base: give a model, train\.base\.given=PATH"):
        run(ADAPT, context)


def test_another_corpus_from_its_files(tmp_path):
    layouts.cs_fleurs(tmp_path / "cs-fleurs")
    layouts.fleurs(tmp_path / "fleurs")
    folders = [f"corpus.{name}.folder={tmp_path / 'fleurs'}" for name in ("matrix", "english")]
    languages = [f"corpus.{name}.options.language=pt_br" for name in ("matrix", "english")]
    whole = [f"corpus.cs_fleurs.folder={tmp_path / 'cs-fleurs'}", "corpus.cs_fleurs.options.pair=null"]
    context = Context(
        named("cs_fleurs", *folders, *languages, *whole),
        tmp_path / "data",
        tmp_path / "exp",
        _console=lambda line: None,
    )
    run(ADAPT[:3], context)
    assert cuts_path(context, "cs_fleurs", "train").is_file()
    found = switching(context)
    assert sorted(found.tokens.values()) == [["das", "ist", "ein", "test"], ["это", "good"]]
    with pytest.raises(ConfigError, match=r"corpus.cs_fleurs: it has no split 'dev', only train, test; .*splits\.dev="):
        train(context)


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = ["--datadir", str(folder / "data"), "--expdir", str(folder / "exp")]
    environment = {**os.environ, "PYTHON": sys.executable}
    script = str(RECIPE / "run.sh")
    return subprocess.run([script, *folders, *TINY, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.nemo
def test_the_recipe(tmp_path):
    pytest.importorskip("nemo.collections.asr")
    pytest.importorskip("peft")
    done = run_script(tmp_path, "--nj", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("DONE ") == 8
    results = (tmp_path / "exp" / "RESULTS.md").read_text()
    for text in (
        NOTICE,
        "Bayesian LoRA, β=0.01",
        "PIER",
        "of seeds",
        "code-mixing index",
        "Speech-FT",
        "Backward gain",
        "![New-domain",
        "torch",
    ):
        assert text in results
    picture = (tmp_path / "exp" / "trade_off.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000
    scores = json.loads((tmp_path / "exp" / "scores.json").read_text())
    lora = next(row for row in scores["settings"] if row["name"] == "lora")
    assert lora["backward_gain"] == [0, 0, 0]
    assert lora["gain_kept"][0] == pytest.approx(1) or lora["target"][0] >= scores["base"]["target"][0]
    assert len(lora["seeds"]) == 2
    assert set(lora["words"]) == {"embedded", "matrix", "entry"}
    seeds = [row for row in scores["settings"] if row["method"] == "lora_seeds_tsvm"]
    assert [len(row["seeds"]) for row in seeds] == [1, 1]

    again = run_script(tmp_path, "--nj", "1", "merge.methods.lora_scaled.sweep.scale=[0.25]")
    assert again.returncode == 0, again.stdout + again.stderr
    assert re.findall(r"START stage \d \((\w+)\)", again.stdout) == ["merge", "decode", "score", "report"]
    assert "lora-seed0: decoded before" in again.stdout
