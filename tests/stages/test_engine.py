"""The contract of staged recipes: skip what is done, notice what changed, say what is missing, fail with the log."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from nemo_merge.errors import ConfigError, NemoMergeError
from nemo_merge.stages import markers
from nemo_merge.stages.engine import NAMES, Context, Stage, StageError, describe, run, seconds_of


class Recipe:
    """Three stages that write numbers and remember that they ran."""

    def __init__(self, folder: Path, **config) -> None:
        self.ran: list[str] = []
        self.lines: list[str] = []
        self.config = {"start": 1, "factor": 2, "title": "x", **config}
        self.folder = folder
        self.stages = [
            Stage("download", "make a number", self._stage("download", lambda _: self.config["start"]), ("start",), (), self._files("download")),
            Stage("train", "double it", self._stage("train", lambda c: self._value("download") * self.config["factor"]), ("factor",), ("download",), self._files("train")),
            Stage("report", "show it", self._stage("report", lambda c: self._value("train")), ("title",), ("train",), self._files("report")),
        ]  # fmt: skip

    def _files(self, name):
        return lambda context: [self.folder / f"{name}.txt"]

    def _value(self, name) -> int:
        return int((self.folder / f"{name}.txt").read_text())

    def _stage(self, name, value):
        def work(context):
            self.ran.append(name)
            context.say(f"working on {name}")
            (self.folder / f"{name}.txt").write_text(str(value(context)))

        return work

    def go(self, stages=None, **options) -> list[str]:
        """Runs the recipe and returns the names of the stages that did something."""
        self.ran.clear()
        self.lines.clear()
        force = options.pop("force", False)
        context = Context(self.config, self.folder, self.folder / "exp", force=force, _console=self.lines.append)
        run(stages or self.stages, context, **options)
        return list(self.ran)


@pytest.fixture
def recipe(tmp_path):
    return Recipe(tmp_path)


ALL = ["download", "train", "report"]


def test_what_is_done_is_skipped(recipe):
    assert recipe.go() == ALL
    assert recipe.go() == []
    assert all("SKIP" in line for line in recipe.lines)


def test_a_changed_option_runs_its_stage_and_those_after_it_and_is_named(recipe):
    recipe.go()
    recipe.config["factor"] = 3
    assert recipe.go() == ["train", "report"]
    assert any("START stage 3 (train): double it (changed: factor)" in line for line in recipe.lines)
    recipe.config["title"] = "y"
    assert recipe.go() == ["report"]


def test_a_stage_that_leaves_the_same_result_does_not_disturb_the_others(recipe):
    recipe.go()
    assert recipe.go(recipe.stages[:1], force=True) == ["download"]
    assert recipe.go() == []
    recipe.config["start"] = 5
    assert recipe.go(recipe.stages[:1]) == ["download"]
    assert recipe.go() == ["train", "report"]
    assert any("another result of download" in line for line in recipe.lines)


def test_a_result_that_is_gone_is_made_again(recipe):
    recipe.go()
    (recipe.folder / "train.txt").unlink()
    assert recipe.go() == ["train"]
    assert any("train.txt is gone" in line for line in recipe.lines)


def test_force(recipe):
    recipe.go()
    assert recipe.go(force=True) == ALL


def test_a_forced_stage_makes_later_ones_out_of_date(recipe):
    recipe.go()
    assert recipe.go(recipe.stages[:1], force=True, recipe=recipe.stages) == ["download"]
    assert recipe.go() == ["train", "report"]
    assert any("START stage 3 (train): double it (stage 0 (download) was forced)" in line for line in recipe.lines)
    assert recipe.go() == []


def test_another_version_of_a_tool_is_noticed(recipe, monkeypatch):
    recipe.go()
    monkeypatch.setattr(markers.importlib.metadata, "version", lambda name: "0.0" if name == "torch" else "1")
    monkeypatch.setattr(markers, "_TOOLS", ("torch",))
    assert recipe.go(recipe.stages[:1]) == ["download"]
    assert any("(another version of" in line and "torch" in line for line in recipe.lines)


def test_a_file_that_is_gone_between_stages_names_the_stage_that_makes_it(recipe):
    recipe.go()
    (recipe.folder / "train.txt").unlink()
    with pytest.raises(
        ConfigError, match=r"report\) needs .*train.txt, which stage 3 \(train\) makes .*start with --stage 3"
    ):
        recipe.go(recipe.stages[2:])
    assert recipe.ran == []


def test_settings_that_need_more_than_a_stage_made_name_it(recipe):
    recipe.go()
    more = dataclasses.replace(recipe.stages[1], outputs=lambda context: [recipe.folder / "more.txt"])
    with pytest.raises(ConfigError, match=r"needs .*more.txt, which stage 3 \(train\) makes"):
        recipe.go(recipe.stages[2:], recipe=[recipe.stages[0], more, recipe.stages[2]])


def test_a_stage_that_was_done_otherwise_is_used_and_said(recipe):
    recipe.go()
    recipe.config["factor"] = 9
    recipe.config["title"] = "y"
    assert recipe.go(recipe.stages[2:], recipe=recipe.stages) == ["report"]
    assert any(
        "NOTE  stage 8 (report) uses stage 3 (train) as it was done before (changed: factor)" in line
        for line in recipe.lines
    )


def test_a_file_from_elsewhere(recipe, tmp_path):
    file = tmp_path / "given.txt"
    stages = [dataclasses.replace(recipe.stages[0], reads=lambda context: [file])]
    with pytest.raises(ConfigError, match=r"stage 0 \(download\) reads .*given.txt, which does not exist"):
        recipe.go(stages)
    file.write_text("1")
    assert recipe.go(stages) == ["download"]
    assert recipe.go(stages) == []
    file.write_text("2")
    assert recipe.go(stages) == ["download"]
    assert any(f"(another {file})" in line for line in recipe.lines)


def test_starting_too_late_names_the_stage_to_run_first(recipe):
    with pytest.raises(
        ConfigError, match=r"stage 3 \(train\) needs the result of stage 0 \(download\).*start with --stage 0"
    ):
        recipe.go(recipe.stages[1:])
    assert recipe.ran == []
    recipe.go(recipe.stages[:2])
    assert recipe.go(recipe.stages[2:]) == ["report"]


def test_a_dry_run_says_what_would_happen_and_does_nothing(recipe):
    assert recipe.go(dry_run=True) == []
    assert [line.split()[1:3] for line in recipe.lines] == [["WOULD", "RUN"]] * 3
    recipe.go()
    recipe.config["factor"] = 7
    assert recipe.go(dry_run=True) == []
    assert "SKIP" in recipe.lines[0]
    assert "changed: factor" in recipe.lines[1]
    assert "after train" in recipe.lines[2]


def test_a_failure_shows_the_end_of_the_log_and_how_to_go_on(recipe):
    def fail(context):
        os.write(2, b"a message from deep inside\n")
        raise ValueError("out of luck")

    stages = [recipe.stages[0], Stage("train", "fails", fail, ("factor",), ("download",))]
    with pytest.raises(StageError) as caught:
        recipe.go(stages, resume_command="./run.sh --nj 2")
    message = str(caught.value)
    assert "stage 3 (train) failed" in message
    assert "a message from deep inside" in message
    assert "ValueError: out of luck" in message
    assert "./run.sh --nj 2 --stage 3" in message
    assert caught.value.exit_code == 1
    assert recipe.go(recipe.stages) == ["train", "report"]  # nothing was marked as done


def test_a_problem_the_user_can_solve_is_one_message(recipe):
    def fail(context):
        raise NemoMergeError("the file is broken; fetch it again")

    with pytest.raises(StageError, match="failed: the file is broken; fetch it again") as caught:
        recipe.go([Stage("download", "fails", fail)])
    assert "Traceback" not in str(caught.value)


def test_output_goes_to_the_log_and_news_to_both(recipe, capfd):
    def noisy(context):
        print("printed")
        os.write(1, b"written below Python\n")
        print("to stderr", file=sys.stderr)
        context.say("news")

    recipe.go([Stage("download", "noisy", noisy)])
    log = (recipe.folder / "exp" / "logs" / "00_download.log").read_text()
    for text in ("printed", "written below Python", "to stderr", "news"):
        assert text in log
    for text in ("START stage 0 (download): noisy", "DONE  stage 0 (download)"):
        assert log.count(text) == 1
    shown = capfd.readouterr().out
    assert "news" in shown
    assert "printed" not in shown


def test_parts_of_a_stage_are_kept_when_it_is_interrupted(recipe):
    done = []

    def train(context, stop=[True]):  # noqa: B006
        for name in ("base", "expert"):
            if context.is_fresh(name, [recipe.folder / name], steps=10, data=context.result("download")):
                continue
            if name == "expert" and stop.pop():
                raise KeyboardInterrupt
            done.append(name)
            (recipe.folder / name).touch()
            context.mark_fresh(name, steps=10, data=context.result("download"))

    stages = [recipe.stages[0], Stage("train", "in parts", train, (), ("download",))]
    with pytest.raises(KeyboardInterrupt):
        recipe.go(stages)
    train.__defaults__ = ([False],)
    recipe.go(stages)
    assert done == ["base", "expert"]
    (recipe.folder / "exp" / ".done" / "03_train.json").unlink()
    recipe.config["start"] = 2  # another input: nothing is fresh any more
    train.__defaults__ = ([False],)
    recipe.go(stages)
    assert done == ["base", "expert", "base", "expert"]


def test_markers_tell_how_long_it_took(recipe):
    recipe.go()
    marker = json.loads((recipe.folder / "exp" / ".done" / "03_train.json").read_text())
    assert marker["options"] == {"factor": 2}
    assert {"nemo_merge", "python", "torch"} <= marker["tools"].keys()
    assert marker["outputs"][str(recipe.folder / "train.txt")]["bytes"] == 1
    assert set(seconds_of(Context({}, recipe.folder, recipe.folder / "exp"))) == set(ALL)


def test_numbers_and_names_of_stages_never_change():
    assert NAMES == ("download", "prepare", "cuts", "train", "merge", "extend", "decode", "score", "report", "pack")


def test_description(recipe):
    assert describe(recipe.stages).splitlines()[1].split() == ["3", "train", "double", "it"]
