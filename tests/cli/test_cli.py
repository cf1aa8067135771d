"""The command line as users call it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from nemo_merge import merge_state_dicts, methods, open_checkpoint
from nemo_merge.cli import _VERBS, cli
from tests.fixtures.models import family, same, write_huggingface, write_nemo

ROOT = Path(__file__).parents[2]


@pytest.fixture
def inputs(nemo_family):
    base, experts = nemo_family
    return [f"base={base}", f"experts=[{','.join(map(str, experts))}]"]


def test_merge_as_in_the_readme(inputs, tmp_path, command_line):
    output = tmp_path / "merged.nemo"
    code, out, err = command_line("merge", "method=boosted_tsvm", "method.beta=0.2", *inputs, f"output={output}")
    assert (code, err) == (0, "")
    assert "merged by boosted_tsvm" in out
    assert same(dict(open_checkpoint(output)), merge_state_dicts(*family(), "boosted_tsvm", beta=0.2))


def test_a_yaml_file_and_overrides_after_it(inputs, tmp_path, command_line):
    settings = tmp_path / "settings.yaml"
    base, experts = inputs[0].removeprefix("base="), inputs[1].removeprefix("experts=[").removesuffix("]").split(",")
    content = {
        "method": {"name": "ties", "density": 0.5},
        "base": base,
        "experts": experts,
        "output": str(tmp_path / "a.nemo"),
    }
    settings.write_text(yaml.safe_dump(content))
    assert command_line("merge", str(settings))[0] == 0
    assert open_checkpoint(tmp_path / "a.nemo").metadata.provenance["method"]["density"] == 0.5
    more = ["method.scale=0.5", "+method.weights=[1,2,3]", "~method.density", f"output={tmp_path / 'b.nemo'}"]
    assert command_line("merge", str(settings), *more)[0] == 0
    method = open_checkpoint(tmp_path / "b.nemo").metadata.provenance["method"]
    assert (method["density"], method["scale"], method["weights"]) == (0.2, 0.5, [1.0, 2.0, 3.0])
    # Another method forgets the parameters of the file's.
    assert command_line("merge", str(settings), "method=tsvm", f"output={tmp_path / 'c.nemo'}")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methd=ties"], "there is no setting 'methd'; did you mean 'method'?"),
        (["method=tie"], "there is no merging method 'tie'; did you mean 'ties'?"),
        (["scale=0.3"], "there is no setting 'scale'; did you mean 'method.scale'?"),
        (["method=ties", "densty=0.3"], "there is no setting 'densty'; did you mean 'method.density'?"),
        (["base_modle=x"], "there is no setting 'base_modle'; did you mean 'base'?"),
        (["method.bta=0.3"], "has no parameter 'bta'; did you mean 'beta'?"),
        (["method.beta=7"], "beta=7 is out of range: 0 <= x <= 1"),
        (["method.beta=0.1,0.2"], "several values; nemo-merge sweep"),
        (["method.name.x=1"], "'name' is a value"),
        (["workers=many"], "workers: Value 'many'"),
        (["overwrite=perhaps"], "overwrite: Value 'perhaps'"),
        (["batch_norm=averag"], "did you mean 'average'?"),
        (["dtype=float31"], "did you mean 'float32'?"),
        (["experts=[a"], "quote values"),
        (["nosuch.yaml"], "nosuch.yaml: no such file"),
        (["~method.beta"], "nothing to remove"),
        (["method.weights=[1,2]"], "2 weights for 3 experts"),
        (["base=gone.nemo"], "gone.nemo: no such file"),
    ],
)
def test_mistakes_exit_with_two_and_one_message(inputs, tmp_path, arguments, message, command_line):
    first = arguments if arguments[0].endswith(".yaml") else ["method=boosted_tsvm"]
    rest = [] if arguments[0].endswith(".yaml") else arguments
    output = tmp_path / "m.nemo"
    for verb in ("merge", "plan"):
        code, out, err = command_line(verb, *first, *inputs, f"output={output}", *rest)
        assert code == 2
        assert message in err
        assert err.startswith("nemo-merge: error: ")
        assert "Traceback" not in err + out
    assert not output.exists()


def test_a_bad_yaml_file(tmp_path, command_line):
    for content, message in (
        ("a: [", "cannot be read as YAML"),
        ("- a", "not a mapping"),
        ("method: [1]", "neither a name"),
    ):
        (tmp_path / "s.yaml").write_text(content)
        code, _, err = command_line("merge", str(tmp_path / "s.yaml"), "experts=[a]", "output=b")
        assert code == 2
        assert message in err


@pytest.mark.parametrize("missing", ["output", "experts"])
def test_what_is_missing_is_named(inputs, missing, command_line):
    arguments = [item for item in [*inputs, "output=m.nemo"] if not item.startswith(missing)]
    code, _, err = command_line("merge", *arguments)
    assert code == 2
    assert f"{missing}=" in err


def test_plan_writes_nothing_and_shows_every_tensor(inputs, tmp_path, command_line):
    code, out, _ = command_line("plan", "method=tsvm", *inputs, f"output={tmp_path / 'm.nemo'}")
    assert code == 0
    for name in family()[0]:
        assert name in out
    assert "arithmetic could make a variance negative" in out
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]


def test_inspect(tmp_path, command_line):
    base, (expert, *_) = family()
    write_nemo(tmp_path / "b.nemo", {**base, "tied": base["decoder.decoder_layers.0.bias"]})
    code, out, _ = command_line("inspect", str(tmp_path / "b.nemo"), "--tensors")
    assert code == 0
    assert "EncDecCTCModel" in out
    assert "tied: tied shares the data of decoder.decoder_layers.0.bias" in out
    assert "24x12x1" in out
    paths = [write_huggingface(tmp_path / name, tensors) for name, tensors in (("base", base), ("expert", expert))]
    arguments = ["merge", f"base={paths[0]}", f"experts=[{paths[1]}]", f"output={tmp_path / 'merged'}"]
    assert command_line(*arguments)[0] == 0
    _, out, _ = command_line("inspect", str(tmp_path / "merged"))
    assert "merged with nemo_merge" in out
    assert "name: boosted_tsvm" in out
    code, _, err = command_line("inspect", str(tmp_path / "nothing"))
    assert code == 2
    assert "no such file" in err


def test_methods(command_line):
    code, out, _ = command_line("methods")
    assert code == 0
    for name in methods.names():
        assert re.search(rf"^{name}\b", out, re.MULTILINE)
        assert command_line("methods", name)[0] == 0
    code, _, err = command_line("methods", "boosted")
    assert code == 2
    assert "did you mean 'boosted_tsvm'" in err


def test_unknown_verbs():
    result = CliRunner().invoke(cli, ["mrge"])
    assert result.exit_code == 2
    assert "did you mean 'merge'?" in result.output


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "nemo_merge", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("nemo-merge, version ")


def test_progress_is_shown_on_a_terminal(nemo_family, tmp_path, monkeypatch, capsys):
    from nemo_merge import merge

    base, experts = nemo_family
    monkeypatch.setenv("TERM", "xterm")
    merge(base, experts, "tsvm", output=tmp_path / "m.nemo", progress=True)
    shown = capsys.readouterr().err
    assert "merging by tsvm" in shown
    assert "kB" in shown


def test_rules_and_post_processors(inputs, tmp_path, command_line):
    output = tmp_path / "merged.nemo"
    settings = ["method=ties", "rules=[{group: head, method: base}, {match: linear, scale: 0.5}]", "+then=[lines]"]
    code, out, err = command_line("plan", *settings, *inputs)
    assert code == 0, err
    assert re.search(r"decoder_layers.0.weight .* copy .* rule 1 \(group=head\); left at the base", out)
    assert re.search(r"linear1.weight .* ties scale=0.5 .*rule 2", out)
    assert "tensors match no rule" in out
    assert command_line("merge", *settings, *inputs, f"output={output}")[0] == 0
    rules = [{"group": "head", "method": "base"}, {"match": "linear", "scale": 0.5}]
    assert same(dict(open_checkpoint(output)), merge_state_dicts(*family(), "ties", rules=rules, then=["lines"]))


def test_sweep_from_the_command_line_and_from_a_file(inputs, tmp_path, command_line):
    folder = tmp_path / "sweep"
    grid = ["method.beta=0.1,0.3", "method.scale=1.0,0.5"]
    code, out, err = command_line("sweep", "method=boosted_tsvm", "method.steps=4", *grid, *inputs, f"output={folder}")
    assert code == 0, err
    assert out.splitlines()[-1].startswith("4 merges in")
    merged = open_checkpoint(folder / "boosted_tsvm-beta=0.3,scale=0.5.nemo")
    assert same(dict(merged), merge_state_dicts(*family(), "boosted_tsvm", steps=4, beta=0.3, scale=0.5))
    settings = tmp_path / "settings.yaml"
    settings.write_text("method: ties\ngrid: {density: [0.2, 0.5]}\n")
    code, out, _ = command_line("sweep", str(settings), *inputs, f"output={folder}", "method.scale=0.5")
    assert code == 0
    assert open_checkpoint(folder / "ties-density=0.5.nemo").metadata.provenance["method"]["scale"] == 0.5
    code, _, err = command_line("sweep", "method=ties", *inputs, f"output={folder}", "workers=1,2")
    assert (code, "only parameters of the method" in err) == (2, True)
    code, _, err = command_line("sweep", "method=ties", *inputs, f"output={folder}")
    assert (code, "several values" in err) == (2, True)


def test_emr_and_the_model_of_one_domain(inputs, tmp_path, command_line):
    output, domain = tmp_path / "merged.nemo", tmp_path / "domain.nemo"
    assert command_line("merge", "method=emr", *inputs, f"output={output}")[0] == 0
    arguments = [str(tmp_path / "merged.emr.safetensors"), "--base", inputs[0][5:], "--output", str(domain)]
    code, out, _ = command_line("emr-apply", *arguments, "--expert", "expert_1")
    assert (code, out.strip()) == (0, str(domain))
    assert open_checkpoint(domain).metadata.provenance["emr"]["expert"] == 1
    code, _, err = command_line("emr-apply", *arguments, "--expert", "9", "--overwrite")
    assert (code, "holds no expert '9'" in err) == (2, True)


@pytest.mark.parametrize("name", [*methods.names(), *methods.post_names()])
def test_every_method_has_a_card(name, command_line):
    code, out, _ = command_line("methods", name)
    assert code == 0
    assert out.startswith(name)
    assert "source: " in out


@pytest.mark.parametrize("verb", _VERBS)
def test_help_keeps_its_lines(verb):
    text = CliRunner().invoke(cli, [verb, "--help"], terminal_width=80).output
    assert "\\b" not in text  # click's mark for what it is not to wrap
    assert "\b" not in text
    if verb in ("merge", "analyze"):
        assert any(line.startswith("  base=PATH  ") for line in text.splitlines())
