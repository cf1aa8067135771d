"""Callbacks that Lightning finds by itself: nothing when off, all mistakes at once when on."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from nemo_merge.errors import ConfigError
from nemo_merge.hooks import callbacks_file, entry, unregister
from nemo_merge.hooks.callbacks_file import callbacks_from_config, callbacks_from_file

nemo = pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")


class Named:
    """Stands for a callback; what is tested is how configurations reach it."""

    def __init__(self, base, every: int = 1, method: str = "ties") -> None:
        if every < 1:
            raise ConfigError(f"every={every} is not positive")
        self.base, self.every, self.method = base, every, method


class Open:
    """Passes on what it does not know, as callbacks do to merging methods."""

    def __init__(self, base=None, **parameters) -> None:
        if parameters.keys() - {"density"}:
            raise ConfigError(f"there is no parameter {min(parameters)!r}")
        self.parameters = parameters


@pytest.fixture
def known(monkeypatch):
    """Two callbacks under the names ``named`` and ``open``."""
    module = sys.modules[__name__].__name__
    monkeypatch.setattr(callbacks_file, "__package__", module.rpartition(".")[0])
    name = module.rpartition(".")[2]
    monkeypatch.setattr(callbacks_file, "CALLBACKS", {"named": (name, "Named"), "open": (name, "Open")})


def test_cheap_when_off():
    code = (
        "import sys\nfrom nemo_merge.hooks.entry import callbacks_factory\nassert callbacks_factory() == []\n"
        "import nemo_merge.hooks\nassert 'register' in dir(nemo_merge.hooks)\n"
        "heavy = {'torch', 'nemo', 'lightning', 'lhotse', 'omegaconf', 'hydra', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_entries_are_names_or_mappings(known):
    first, second = callbacks_from_config([{"name": "named", "base": "b.nemo", "every": 3}, "open"])
    assert (first.base, first.every, first.method) == ("b.nemo", 3, "ties")
    assert isinstance(second, Open)
    (third,) = callbacks_from_config([{"name": "open", "density": 0.3}])
    assert third.parameters == {"density": 0.3}


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (None, "is not a list"),
        ("named", "is not a list"),
        ([3], "callback 1: 3 is neither a name nor a mapping"),
        ([{"base": "b"}], "callback 1: .* is neither a name"),
        (["open", "nmed"], "callback 2: there is no callback 'nmed'; did you mean 'named'"),
        (
            [{"name": "named", "base": "b", "evry": 2}],
            r"callback 1 \(named\): there is no setting 'evry'; did you mean 'every'",
        ),
        (["named"], r"callback 1 \(named\): base missing"),
        ([{"name": "open", "dnsity": 2}], r"callback 1 \(open\): there is no parameter 'dnsity'"),
        ([{"name": "named", "base": "b", "every": 0}], r"callback 1 \(named\): every=0 is not positive"),
    ],
)
def test_mistakes_are_named(known, tmp_path, entries, problem):
    import yaml

    with pytest.raises(ConfigError, match=problem):
        callbacks_from_config(entries)
    path = tmp_path / "callbacks.yaml"
    path.write_text(yaml.safe_dump({"callbacks": entries}))
    with pytest.raises(ConfigError, match=problem) as caught:
        callbacks_from_file(path)
    assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("calbacks: []", "there is no key 'calbacks'; did you mean 'callbacks'"),
        ("- named", "not a mapping"),
        ("callbacks: [", "cannot be read as YAML"),
        ("callbacks: [{name: named, base: '${oc.env:NO_SUCH_VARIABLE_HERE}'}]", "NO_SUCH_VARIABLE_HERE"),
        (None, "no such file"),
    ],
)
def test_files_that_are_wrong(known, tmp_path, text, problem):
    path = tmp_path / "callbacks.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        callbacks_from_file(path)
    assert str(caught.value).count(str(path)) == 1


def test_variables_of_the_environment(known, tmp_path, monkeypatch):
    monkeypatch.setenv("BASE_OF_MINE", "there.nemo")
    path = tmp_path / "callbacks.yaml"
    path.write_text("callbacks: [{name: named, base: '${oc.env:BASE_OF_MINE}'}]")
    (callback,) = callbacks_from_file(path)
    assert callback.base == "there.nemo"


@pytest.fixture
def found_by_lightning(tmp_path, monkeypatch):
    """A folder on the path that declares the entry point, as an installed package does."""
    about = tmp_path / "site" / "entry_of_nemo_merge-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: entry-of-nemo-merge\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[lightning.pytorch.callbacks_factory]\nours = nemo_merge.hooks.entry:callbacks_factory\n"
    )
    monkeypatch.syspath_prepend(str(about.parent))


@nemo
@pytest.mark.nemo
def test_a_trainer_has_the_callbacks(found_by_lightning, tmp_path, monkeypatch):
    import lightning.pytorch as pl
    from nemo.collections.common.data.lhotse.cutset import get_known_config_data_types

    from nemo_merge.hooks import ProvenanceCallback

    def trainer():
        return pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=False)

    def ours(callbacks):
        return [item for item in callbacks if isinstance(item, ProvenanceCallback)]

    monkeypatch.delenv(entry.VARIABLE, raising=False)
    assert not ours(trainer().callbacks)
    assert "nemo_merge_domain" not in get_known_config_data_types()
    path = tmp_path / "callbacks.yaml"
    monkeypatch.setenv(entry.VARIABLE, str(path))
    path.write_text("callbacks: [provenance]")
    try:
        assert len(ours(trainer().callbacks)) >= 1
        assert "nemo_merge_domain" in get_known_config_data_types()
    finally:
        unregister()
    path.write_text("callbacks: [provenence]")
    with pytest.raises(ConfigError, match="did you mean 'provenance'"):
        trainer()
    assert "nemo_merge_domain" not in get_known_config_data_types()
