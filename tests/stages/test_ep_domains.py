"""The study of ten domains: its configuration, its search, its findings, and once from end to end in miniature."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nemo_merge import methods, open_checkpoint
from nemo_merge.corpora.mini import IN_DOMAIN, NOTICE, OUT_OF_DOMAIN
from nemo_merge.errors import ConfigError
from nemo_merge.reporting.domains import _together
from nemo_merge.reporting.findings import findings
from nemo_merge.scoring.error_rates import word_errors
from nemo_merge.stages.__main__ import _settings
from nemo_merge.stages.domains import experiment, scores, search
from nemo_merge.stages.domains.search import candidates, chosen, described
from nemo_merge.stages.domains.training import check_settings, fine_tunings
from nemo_merge.stages.engine import Context
from nemo_merge.stages.models import model_path
from nemo_merge.stages.sets import SpeechSets

RECIPE = Path(__file__).parents[2] / "recipes" / "ep_domains"
TWO_EXPERTS = {"slerp", "nuslerp"}
NEEDS_POSTERIORS = {"precision_weighted"}


@pytest.fixture(scope="module")
def settings():
    return _settings(RECIPE / "conf" / "ep_domains.yaml", ())


@pytest.fixture
def config(settings):
    return copy.deepcopy(settings)


def test_the_configuration_has_fifteen_sets_and_every_method(config):
    check_settings(config)
    assert tuple(config["domains"]) == IN_DOMAIN
    assert tuple(config["evaluate"]["out_of_domain"]) == OUT_OF_DOMAIN
    assert set(experiment.area_of(config)) == {*IN_DOMAIN, *OUT_OF_DOMAIN}
    assert set(experiment.area_of(config).values()) == set(config["evaluate"]["areas"])
    used = {item.method.name for item in candidates(config)}
    assert used == set(methods.names()) - TWO_EXPERTS - NEEDS_POSTERIORS
    assert {step.name for item in candidates(config) for step in item.then} == set(methods.post_names())


def test_the_model_is_the_miniature_with_more_letters(config):
    labels, mini = (
        config["model"]["labels"],
        _settings(RECIPE.parent / "ep_mini" / "conf" / "ep_mini.yaml", ())["model"],
    )
    assert labels[: len(mini["labels"])] == mini["labels"]
    assert config["model"]["decoder"]["num_classes"] == len(labels)
    assert config["model"]["decoder"]["vocabulary"] == labels
    assert config["model"]["encoder"] == mini["encoder"]


def test_the_example_for_own_corpora_names_no_set_of_ep_mini(tmp_path):
    own = _settings(RECIPE / "conf" / "own_corpora.yaml", ())
    assert not SpeechSets.read(own).mini
    base = tmp_path / "base.nemo"
    base.touch()
    own["train"]["base"]["given"] = str(base)
    check_settings(own)
    context = Context(own, tmp_path, tmp_path)
    assert set(fine_tunings(context, base)) == {"joint-seed0", *(f"{name}-seed0" for name in own["domains"])}


def test_three_domains_take_the_models_of_the_ten(config, tmp_path):
    three = _settings(RECIPE / "conf" / "variations.yaml", ("domains=[broadcast_news,telephone,children]",))
    check_settings(three)
    assert "karcher" not in three["merge"]["methods"]
    assert three["merge"]["methods"]["tsvm"] == config["merge"]["methods"]["tsvm"]
    few, many = (fine_tunings(Context(item, tmp_path, tmp_path), tmp_path) for item in (three, config))
    assert few.items() <= many.items()
    assert len(few) == 3


def test_a_study_may_have_no_sets_beside_the_domains(config):
    config["evaluate"] = {}
    check_settings(config)
    assert experiment.groups(config) == {"in domain": list(IN_DOMAIN)}
    assert experiment.area_of(config) == {name: name for name in IN_DOMAIN}


def test_every_combination_is_a_candidate(config):
    config["merge"]["methods"] = {
        "plain": {"method": "soup"},
        "ties": {"scope": "model", "search": {"density": [0.1, 0.2], "scale": [0.5]}},
        "chained": {
            "method": "task_arithmetic",
            "search": {"then": [["lines"], [{"name": "subspace_boost", "beta": 0.1}]], "scale": [0.1, 0.2]},
        },
    }
    found = candidates(config)
    assert [item.name for item in found if item.entry == "ties"] == ["search-ties-00", "search-ties-01"]
    assert [item.method.density for item in found if item.entry == "ties"] == [0.1, 0.2]
    chains = [[step.name for step in item.then] for item in found if item.entry == "chained"]
    assert chains == [["lines"], ["lines"], ["subspace_boost"], ["subspace_boost"]]
    assert described(found[-1].settings) == "then subspace_boost(beta 0.1), scale 0.2"
    assert [scores.family(item) for item in found[-3:]] == ["task vectors", "task subspace", "task subspace"]
    best = chosen(
        found,
        {"search-plain-00": 0.4, "search-ties-00": 0.3, "search-ties-01": 0.2}
        | {f"search-chained-{n:02d}": 0.1 for n in range(4)},
    )
    assert [item.name for item in best] == ["search-plain-00", "search-ties-01", "search-chained-00"]


def test_the_search_keeps_few_models_and_is_not_repeated(config, tmp_path, monkeypatch):
    context = Context(config, tmp_path, tmp_path)
    models = [model_path(context, "base"), *(experiment.expert_path(context, name, 0) for name in config["domains"])]
    for path in models:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    batches = []

    def merge(context, wanted, seed):
        for path in wanted:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        batches.append(list(wanted.values()))
        assert len(list((tmp_path / "search").glob("*.nemo"))) == len(wanted)

    monkeypatch.setattr(search, "_merge", merge)
    monkeypatch.setattr(search, "transcribe_all", lambda context, models, sets: None)
    monkeypatch.setattr(search, "_sample", lambda context, name, count: models[0])
    monkeypatch.setattr(
        search, "heard", lambda context, name, domain: [("um dois", "um"[int(name[-1]) % 2 :] + " dois")]
    )
    config["search"]["at_once"] = 3
    config["merge"]["methods"] = {"soup": {}, "ties": {"search": {"density": [0.1, 0.2, 0.3, 0.4]}}}
    best = search.search(context)
    assert [len(batch) for batch in batches] == [3, 2]
    assert [item.name for item in best] == ["search-soup-00", "search-ties-00"]
    rows = json.loads((tmp_path / "search.json").read_text())
    assert [row["dev"] for row in rows] == [0.0, 0.0, 0.5, 0.0, 0.5]
    assert [item.name for item in search.search(context)] == [item.name for item in best]
    assert len(batches) == 2
    config["merge"]["methods"]["ties"]["search"]["density"][0] = 0.15
    search.search(context)
    assert len(batches) == 4


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("merge", "methods", "ties"), {"search": {"density": 0.2}}, "search.density: give a list"),
        (("merge", "methods", "ties"), {"search": {"density": []}}, "search.density: give a list"),
        (("merge", "methods", "ties"), {"search": {"densty": [0.2]}}, "density"),
        (("merge", "methods", "ties"), {"then": [{"beta": 1}]}, "has no name"),
        (("merge", "methods", "joint"), {"method": "soup"}, "name of another system"),
        (("score", "baseline"), "tsvmm", "did you mean"),
        (("evaluate", "out_of_domain"), ["ood_kichen"], "ood_kichen"),
        (("evaluate", "areas", "read"), ["read_newz"], "read_newz"),
        (("evaluate", "retention", "full"), ["english"], "name of another mean"),
        (("train", "base", "given"), "no.nemo", "train.base.given: no.nemo does not exist"),
        (("train", "experts", "given"), {"lecture": "no.nemo"}, "not among the domains"),
        (("train", "experts", "given"), {"lectures": "no.nemo"}, "given.lectures: no.nemo does not exist"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(config, place, value, message):
    *path, last = place
    part = config
    for key in path:
        part = part[key]
    part[last] = value
    with pytest.raises(ConfigError, match=message):
        check_settings(config)


def test_what_is_given_is_not_trained(config, tmp_path):
    given = tmp_path / "lectures.nemo"
    given.touch()
    context = Context(config, tmp_path, tmp_path / "exp")
    jobs = fine_tunings(context, tmp_path / "base.nemo")
    assert len(jobs) == 33
    assert jobs["joint-seed1"].optim["sched"]["max_steps"] == jobs["joint-seed1"].steps
    assert jobs["joint-seed1"].optim["betas"] == jobs["lectures-seed1"].optim["betas"]  # joint says what differs
    assert len(jobs["joint-seed1"].train) == 10
    assert jobs["lectures-seed1"].seed == 1
    config["train"]["experts"]["given"] = {"lectures": str(given)}
    config["train"]["joint"] = None
    assert set(fine_tunings(context, tmp_path / "base.nemo")) == set(jobs) - {
        name for name in jobs if name.startswith(("joint", "lectures"))
    }
    assert experiment.expert_path(context, "lectures", 2) == given
    assert "joint" not in experiment.systems(config)


def test_sets_that_lack_a_split_are_named_before_training(config, tmp_path):
    context = Context(config, tmp_path, tmp_path)
    experiment.check_splits(context)
    config["corpus"]["lectures"]["train"] = config["corpus"]["english"]["dev"] = 0
    with pytest.raises(ConfigError, match="lectures has no train; english has no dev"):
        experiment.check_splits(context)
    config["corpus"]["english"]["dev"] = 1
    config["train"]["experts"]["given"], config["train"]["joint"] = {"lectures": "given.nemo"}, None
    experiment.check_splits(context)


def test_both_transcripts_are_put_through_the_profile(config, tmp_path):
    context = Context(config, tmp_path, tmp_path)
    (tmp_path / "decode" / "base").mkdir(parents=True)
    line = {"id": "a", "text": "O gato, preto.", "pred_text": "o Gato preto!"}
    (tmp_path / "decode" / "base" / "telephone.jsonl").write_text(json.dumps(line) + "\n")
    assert search.heard(context, "base", "telephone") == [("O gato, preto.", "o Gato preto!")]
    config["corpus"]["telephone"] = {
        "cuts": {"test": "telephone.json"},
        "text": "words",
    }  # stage 2 rewrites what was said
    assert search.heard(context, "base", "telephone") == [("O gato, preto.", "o gato preto")]
    config["evaluate"]["text"] = "whisper_basic"
    assert search.heard(context, "base", "telephone") == [("o gato preto", "o gato preto")]


def test_means_weigh_sets_alike_and_seeds_together():
    right, wrong = word_errors(["um dois", "um dois"], ["um dois", "um"])
    errors = {"a": [[right], [wrong]], "b": [[wrong], [wrong]]}
    found = scores._rates(errors, {"both": ["a", "b"]})
    assert found["means"]["both"]["interval"].value == pytest.approx((0.25 + 0.5) / 2)
    assert found["means"]["both"]["seeds"] == pytest.approx([0.25, 0.5])
    assert found["sets"]["a"]["reference_length"] == 4
    base = {"a": [[right]], "b": [[right]]}  # one model is compared with two seeds
    assert scores._difference(errors, base, ["a", "b"]).value == pytest.approx(0.375)


def test_significance_takes_the_least_sure_seed():
    said = [f"um dois tres {n}" for n in range(60)]
    good = scores._slots({"a": [(text, text) for text in said]}, ["a"])
    wrong = ("um dois", "sete dois", "sete sete")
    heard = [(text, text.replace("um dois", wrong[n % 3])) for n, text in enumerate(said)]
    bad = scores._slots({"a": heard}, ["a"])
    found = scores._significance({"clear": [good, good], "mixed": [good, bad]}, [bad, bad], ["a"])
    assert found["clear"]["p_holm"] < 0.001
    assert found["mixed"]["p_holm"] == 1.0
    assert [test["errors_b"] for test in found["mixed"]["seeds"]] == [60, 60]
    assert scores._by_set([good, good], [bad, bad], ["a"])["a"] < 0.001


def _row(family: str, rates: tuple[float, float], against: float = 0.0) -> dict:
    means = {name: {"interval": (sum(rates) / 2, 0, 1), "seeds": list(rates)} for name in ("in domain", "retention")}
    return {"family": family, "means": means, "against": {"full": (against, 0, 0), "in domain": (against, 0, 0)}}


def test_findings_follow_from_the_figures():
    systems = {
        "base": {"family": None, "means": {}},
        "soup": _row("parameter space", (0.3, 0.3)),
        "ties": _row("task vectors", (0.25, 0.25)),
        "boosted_tsvm": _row("task subspace", (0.1, 0.26), -0.02),
    }
    tests = {name: {"p_holm": 0.01} for name in ("soup", "ties", "boosted_tsvm")}
    table = {
        "systems": systems,
        "seeds": [0, 1],
        "baseline": "joint",
        "best": "boosted_tsvm",
        "significance": {"full": tests, "in domain": tests},
    }
    verdicts = {finding: verdict for finding, verdict, _ in findings(table)}
    assert verdicts["subspace methods are best in domain"] == "holds in the mean, and with 1 of 2 seeds"
    assert verdicts["parameter-space methods keep best what the base knew"] == "does not hold"
    assert verdicts["boosted_tsvm is at or below joint fine-tuning, all sets"] == "holds: significantly below"
    systems["boosted_tsvm"]["against"]["full"] = (0.02, 0, 0)
    assert "does not hold: significantly above" in [verdict for _, verdict, _ in findings(table)]
    tests["boosted_tsvm"]["p_holm"] = 0.5
    assert "holds: no significant difference" in [verdict for _, verdict, _ in findings(table)]
    del systems["ties"], systems["boosted_tsvm"]
    assert findings({**table, "baseline": "soup"}) == []


def test_labels_of_systems_in_one_place_are_put_together():
    places = {"soup": (27.0, 13.0), "dare": (27.1, 13.1), "wudi": (24.0, 13.0), "joint": (27.0, 40.0)}
    assert _together(places) == [(["soup", "dare"], (27.0, 13.0)), (["wudi"], (24.0, 13.0)), (["joint"], (27.0, 40.0))]


def _tiny(config: dict) -> dict:
    """Two domains, two methods, two seeds, models that learn nothing."""
    tiny = copy.deepcopy(config)
    tiny.pop("command")
    tiny["domains"] = ["lectures", "children"]
    names = ("general", "lectures", "children", "ood_kitchen", "english")
    tiny["corpus"] = {name: {"train": 8, "dev": 2, "test": 2} for name in names}
    tiny["evaluate"] = {"out_of_domain": ["ood_kitchen"], "retention": {"English": ["english"]}}
    tiny["train"]["base"] |= {"data": ["general"], "steps": 2, "warmup_steps": 1, "batch_size": 4, "workers": 1}
    for part in ("experts", "joint"):
        tiny["train"][part]["steps"] = 2
        tiny["train"][part]["optim"]["sched"]["max_steps"] = 2
    tiny["train"]["experts"]["optim"]["sched"]["warmup_steps"] = 1
    tiny["seeds"] = [0, 1]
    tiny["merge"]["methods"] = {
        "soup": {},
        "boosted_tsvm": {"search": {"beta": [0.3, 1.0], "scale": [1.0]}},
        "boost": {"method": "task_arithmetic", "search": {"then": [["subspace_boost"], ["lines"]]}},
    }
    return tiny


def _run(folder: Path, config: dict, experiment: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    conf = folder / "conf"
    conf.mkdir(exist_ok=True)
    model = config.pop("model")
    model["encoder"]["n_layers"] = 1
    (conf / "model.yaml").write_text(yaml.safe_dump(model))
    (conf / "recipe.yaml").write_text(
        yaml.safe_dump({**config, "model": "model.yaml"}, allow_unicode=True, sort_keys=False)
    )
    folders = ["--datadir", str(folder / "data"), "--expdir", str(folder / experiment), "--nj", "1"]
    command = [str(RECIPE / "run.sh"), "--config", str(conf / "recipe.yaml"), *folders, *arguments]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.nemo
def test_the_study(tmp_path, settings):
    pytest.importorskip("nemo.collections.asr")
    done = _run(tmp_path, _tiny(settings), "exp")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("DONE ") == 8
    folder = tmp_path / "exp"
    results = (folder / "RESULTS.md").read_text()
    for text in (NOTICE, "experts at home", "against joint fine-tuning", "## Findings", "![In domain", "boosted_tsvm"):
        assert text in results
    for name in ("wer.png", "trade_off.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    table = json.loads((folder / "scores.json").read_text())
    assert set(table["systems"]) == {"base", "experts", "joint", "soup", "boosted_tsvm", "boost"}
    assert set(table["significance"]["full"]) == {"soup", "boosted_tsvm", "boost"}
    searched = json.loads((folder / "search.json").read_text())
    assert [row["name"] for row in searched[1:]] == [
        f"search-{entry}-0{n}" for entry in ("boosted_tsvm", "boost") for n in (0, 1)
    ]
    assert not list((folder / "search").glob("*.nemo"))
    best = min((row for row in searched if row["entry"] == "boosted_tsvm"), key=lambda row: row["dev"])
    record = open_checkpoint(folder / "merged" / "boosted_tsvm-seed1.nemo").metadata.provenance
    assert record["method"]["beta"] == best["settings"]["beta"]

    given = _tiny(settings)
    cuts = tmp_path / "data" / "cuts"
    given["corpus"] = {
        name: {"cuts": {split: str(cuts / f"ep-mini-{name}_cuts_{split}.jsonl.gz") for split in splits}}
        for name, splits in {
            "lectures": ("dev", "test"), "children": ("dev", "test"), "ood_kitchen": ("dev", "test"),
            "english": ("dev", "test"),
        }.items()
    }  # fmt: skip
    models = folder / "models"
    given["train"] = {
        "base": {"given": str(models / "base.nemo")},
        "experts": {"given": {name: str(models / f"{name}-seed0.nemo") for name in given["domains"]}},
        "joint": None,
    }
    given["seeds"], given["score"] = [0], {"baseline": "soup"}
    own = _run(tmp_path, given, "own", "--stop_stage", "3")
    assert own.returncode == 0, own.stdout + own.stderr
    assert "DONE  stage 3" in own.stdout
    assert all(path.is_symlink() for path in (tmp_path / "own" / "models").iterdir())  # nothing was trained
