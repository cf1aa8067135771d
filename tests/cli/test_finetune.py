"""``nemo-merge finetune``: settings, everything that is found wrong before NeMo is imported, and a run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from nemo_merge import open_checkpoint
from nemo_merge.cli import main
from nemo_merge.cli.finetune import read_job
from nemo_merge.errors import ConfigError
from nemo_merge.training.checks import check_job
from nemo_merge.training.fine_tune import FineTuningJob
from nemo_merge.training.regulariser_settings import read_regulariser
from nemo_merge.training.whisper_fine_tune import WhisperFineTuningJob
from tests.fixtures.models import state_dict, write_nemo

FOLDER = Path(__file__).parents[2] / "configs" / "train"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A base and data, as files that are there."""
    monkeypatch.chdir(tmp_path)
    write_nemo(tmp_path / "base.nemo", state_dict())
    for name in ("telephone.jsonl.gz", "general.jsonl.gz", "train.json", "dev.json"):
        row = json.dumps({"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}) + "\n"
        if name.endswith(".gz"):
            import gzip

            (tmp_path / name).write_bytes(gzip.compress(row.encode()))
        else:
            (tmp_path / name).write_text(row)
    return tmp_path


def finetune(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nemo-merge", "finetune", *map(str, arguments)])
    try:
        main()
    except SystemExit as done:
        return done.code, capsys.readouterr()
    return 0, capsys.readouterr()


def needs(settings):
    if settings.get("trainable") in ("lora", "bayesian_lora"):
        pytest.importorskip("peft")


@pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_a_file_opens_with_the_command_that_runs_it(files, name):
    text = (FOLDER / f"{name}.yaml").read_text()
    lines = re.search(r"^#   (nemo-merge finetune (?:.*\\\n#  +)*.*)$", text, re.MULTILINE)
    _, verb, path, *arguments = shlex.split(re.sub(r"\\\n#", "", lines[1]))
    assert (verb, path) == ("finetune", f"configs/train/{name}.yaml")
    needs(yaml.safe_load(text))
    job = read_job([str(FOLDER / f"{name}.yaml"), *arguments])
    job.check()
    assert isinstance(job, WhisperFineTuningJob) == (name == "whisper")
    if name == "whisper":
        assert {item.name for item in dataclasses.fields(job)} == set(yaml.safe_load(text))  # all settings are there
        return
    assert (job.trainable in name) or (job.regulariser or {}).get("name") == name


def test_commands_and_code_of_the_guide_are_valid(monkeypatch):
    root = FOLDER.parents[1]
    monkeypatch.chdir(root)
    page = (root / "docs" / "how-to" / "fine-tune.md").read_text()
    found = 0
    for block in re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "finetune" in words:
                assert read_job(words[words.index("finetune") + 1 :]).output
                found += 1
    assert found >= 4
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names = {}
    exec(code.split("outcome =")[0], names)
    assert names["job"].steps == 500
    assert read_regulariser(names["job"].regulariser)
    for settings in re.findall(r"`regulariser=(\{.*?\})`", page):
        assert read_regulariser(yaml.safe_load(settings))


def test_the_full_file_lists_every_setting():
    content = yaml.safe_load((FOLDER / "full.yaml").read_text())
    assert set(content) == {item.name for item in dataclasses.fields(FineTuningJob)}
    chosen = ("optim", "steps", "batch_duration", "loader", "checkpoint_every")
    required = ("base", "output", "train")
    defaults = dataclasses.asdict(FineTuningJob(base="", output="", train=[]))
    for key in content.keys() - set(chosen) - set(required):
        assert content[key] == defaults[key], key


GOOD = {"base": "base.nemo", "output": "out.nemo", "train": ["train.json"], "steps": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "none.nemo"}, "none.nemo: no such file"),
        ({"base": "train.json"}, "train.json"),
        ({"output": "out"}, "out must end in .nemo; only adapters"),
        ({"output": "base.nemo"}, "base.nemo: exists already; pass overwrite=true"),
        ({"train": []}, "train: is not a list of sources"),
        ({"train": ["none.json"]}, r"train\[0\]: none.json does not exist"),
        ({"validation": {"dev": "none.json"}}, r"validation\.dev: none.json does not exist"),
        ({"trainable": "encodr"}, "'encodr' is no part of a model; did you mean 'encoder'"),
        ({"trainable": []}, "list of patterns is empty"),
        ({"adapter": {"r": 2}}, "adapter: is for trainable=lora"),
        ({"trainable": "lora", "adapter": {"rank": 2}}, "LoRA has no setting 'rank'"),
        ({"trainable": "bayesian_lora", "adapter": {"betta": 2}}, "no setting 'betta'; did you mean 'beta'"),
        ({"trainable": "bayesian_lora", "adapter": {"beta": -1}}, "beta=-1 is not a number of 0 or more"),
        ({"regulariser": {"name": "l2", "gamma": 1}}, "l2: is for trainable=lora, not 'full'; l2_sp"),
        ({"regulariser": {"name": "ewc", "gamma": 1, "fisher": "f.safetensors"}}, "no source to estimate it from"),
        ({"scale": 1.5}, r"scale=1.5 is not above 0 and at most 1"),
        ({"optim": {"lr": "1e-4"}}, "lr='1e-4' is not a positive number .YAML reads"),
        ({"optim": {"lr": 1e-4, "sched": {"warmup_steps": 3}}}, "sched says no name"),
        ({"steps": None}, "give either steps or epochs"),
        ({"steps": None, "epochs": 2, "train": ["train.json", "dev.json"]}, "there are no epochs; give steps"),
        ({"steps": None, "epochs": 2, "optim": {"lr": 1e-4, "sched": {"name": "x"}}}, "give sched.max_steps"),
        ({"steps": 2.5}, "steps=2.5 is not a whole number"),
        ({"devices": 0}, "devices=0 is not above 0"),
        ({"select": "val_wer"}, "select='val_wer' needs validation data"),
        ({"select": "wer"}, "did you mean 'val_wer'"),
        ({"patience": 3}, "patience=3 needs a value to go by"),
        ({"loader": {"shard_seed": 3}}, "loader: shard_seed is set by train and seed"),
        ({"loader": {"batch_size": 3}}, "batch_size is a setting of its own; write batch_size: 3"),
        ({"spec_augment": "yes"}, "neither true, false nor a mapping"),
    ],
)
def test_what_stands_against_a_job_is_said_before_it_starts(files, changes, message):
    needs({**GOOD, **changes})
    with pytest.raises(ConfigError, match=message):
        check_job(FineTuningJob(**{**GOOD, **changes}))
    assert not (files / "out.nemo").exists()


def test_everything_is_said_at_once(files, capsys, monkeypatch):
    arguments = ("base=none.nemo", "train=[none.json]", "output=out.nemo", "steps=2", "epochs=2", "patience=1")
    code, shown = finetune(capsys, monkeypatch, *arguments)
    assert code == 2
    assert "4 problems" in shown.err
    assert all(word in shown.err for word in ("none.nemo", "none.json", "either steps or epochs", "patience"))
    code, shown = finetune(capsys, monkeypatch, "bas=base.nemo", "train=train.json")
    assert code == 2
    assert "no setting 'bas'; did you mean 'base'?; base=... is missing; output=... is missing" in shown.err


@pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")
def test_a_check_trains_nothing_and_imports_no_nemo(files):
    script = (
        "import sys; from nemo_merge.cli import main; sys.argv = ['nemo-merge', 'finetune', '--check', "
        "'base=base.nemo', 'train=train.json', 'output=out.nemo', 'steps=3']\n"
        "try:\n    main()\nfinally:\n    assert not {'nemo', 'lightning', 'lhotse', 'peft'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing stands against it" in done.stdout
    assert not (files / "out.nemo").exists()


def test_several_machines_need_a_launcher(files, capsys, monkeypatch):
    pytest.importorskip("nemo")
    arguments = [f"{key}={value}" for key, value in {**GOOD, "train": "train.json"}.items()]
    code, shown = finetune(capsys, monkeypatch, *arguments, "num_nodes=2")
    assert code == 2
    assert "torchrun or srun" in shown.err


@pytest.mark.slow
@pytest.mark.nemo
def test_a_model_is_fine_tuned_by_a_process_of_its_own(tmp_path, capsys, monkeypatch):
    pytest.importorskip("nemo.collections.asr")
    from tests.fixtures import nemo_models
    from tests.fixtures.audio import write_audio, write_manifest

    monkeypatch.chdir(tmp_path)
    nemo_models.ctc().save_to("base.nemo")
    write_manifest(tmp_path / "train.json", write_audio(tmp_path / "audio"), text="o gato preto")
    common = ["base=base.nemo", "train=train.json", "steps=3", "batch_size=4", "trainable=decoder"]
    code, shown = finetune(capsys, monkeypatch, *common, "output=tuned.nemo", "validation=train.json", "select=val_wer")
    assert code == 0, (tmp_path / "tuned.nemo.log").read_text()[-2000:]
    assert "step 3 of 3" in shown.out
    assert "val_wer" in shown.out
    with open_checkpoint("tuned.nemo") as tuned:
        record = tuned.metadata.provenance
    assert record["made_by"] == "nemo-merge finetune"
    assert record["settings"]["trainable"] == "decoder"
    assert len(record["base"]["sha256"]["base.nemo"]) == 64
    assert len(record["train"][0]["sha256"]["train.json"]) == 64
    assert not list(tmp_path.glob("*.checkpoints"))

    code, shown = finetune(capsys, monkeypatch, *common, "output=other.nemo", "loader={max_durations: 3}")
    assert code == 2
    assert "did you mean 'max_duration'" in shown.err
    assert not (tmp_path / "other.nemo").exists()
