"""The documentation builds, its code runs, and its figures are those of the committed results."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from nemo_merge import merge_state_dicts, methods
from nemo_merge.cli.finetune import read_job
from nemo_merge.cli.settings import AnalyzeSettings, compose, compose_plain
from nemo_merge.corpora.mini import NOTICE
from nemo_merge.methods import _registry
from nemo_merge.reporting.method_cards import methods_page

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("recipes/*/*.md")])


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index.html", "tutorials/first-merge/index.html", "reference/methods/index.html"):
        assert (tmp_path / page).is_file()
    assert "BoostedTsvm" in (tmp_path / "reference" / "methods" / "index.html").read_text()


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md"))


def test_the_page_of_methods_is_up_to_date():
    """``make docs`` writes it."""
    assert (ROOT / "docs" / "reference" / "methods.md").read_text() == methods_page()


def test_every_method_is_in_the_table_of_all_methods():
    rows = [row.split(" ")[0] for row in table_rows(ROOT / "recipes" / "ep_mini" / "ALL_METHODS.md")]
    # Whole models, which the experts of this recipe are, have no posteriors.
    assert {name for name in methods.names() if not methods.get(name).uses_posteriors} <= set(rows)


def test_the_example_method_works(monkeypatch):
    monkeypatch.setattr(_registry.METHODS, "classes", dict(_registry.METHODS.classes))
    (code,) = code_blocks(ROOT / "docs" / "how-to" / "add-a-method.md", "python")
    exec(compile(code, "add-a-method.md", "exec", dont_inherit=True), {"__name__": "example"})
    base, experts = {"w": torch.zeros(3, 4)}, [{"w": torch.randn(3, 4)} for _ in range(3)]
    merged = merge_state_dicts(base, experts, "signed_mean", power=0.0)["w"]
    torch.testing.assert_close(merged, torch.stack([expert["w"] for expert in experts]).mean(0))
    assert "signed_mean" in methods.names()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_documentation_have_valid_settings(page):
    for block in code_blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            program = next((index for index, word in enumerate(words) if word.endswith("nemo-merge")), None)
            if program is None or words[program + 1] not in ("merge", "plan", "analyze", "finetune"):
                continue
            arguments = [
                str(ROOT / word.removeprefix("../../")) if word.endswith(".yaml") and "=" not in word else word
                for word in words[program + 2 :]
            ]
            if words[program + 1] == "finetune":
                assert read_job(arguments).train
                continue
            if words[program + 1] == "analyze":
                assert compose_plain(arguments, AnalyzeSettings).experts
                continue
            settings, _ = compose(arguments)
            assert settings.experts


def table_rows(page: Path) -> dict[str, list[str]]:
    """Rows of the first table with models, by the model's name."""
    rows = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("*`") for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in rows and any(re.search(r"\[-?\d", cell) for cell in cells):
            rows[cells[0]] = cells[1:]
    return rows


def test_figures_in_the_readme_are_those_of_the_results():
    results, readme = table_rows(ROOT / "recipes" / "ep_mini" / "RESULTS.md"), table_rows(ROOT / "README.md")
    assert len(readme) >= 6
    for name, cells in readme.items():
        assert cells == results[name][: len(cells)], name


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/tutorials/ten-domains.md",
        "recipes/ep_domains/README.md",
        "recipes/ep_domains/RESULTS.md",
        "recipes/whisper/RESULTS.md",
        "docs/tutorials/add-a-language.md",
        "recipes/language_extension/RESULTS.md",
        "docs/tutorials/speech-translation.md",
        "recipes/speech_translation/README.md",
        "recipes/speech_translation/RESULTS.md",
        "recipes/ep_mini/RESULTS.md",
        "recipes/ep_mini/README.md",
        "docs/index.md",
        "docs/tutorials/first-merge.md",
        "docs/tutorials/code-switching.md",
        "recipes/code_switching/RESULTS.md",
        "recipes/code_switching/README.md",
        "docs/reference/all-methods.md",
        "recipes/ep_mini/ALL_METHODS.md",
        "docs/reference/ep-mini.md",
        "docs/explanation/batch-norm.md",
    ],
)
def test_wherever_figures_appear_it_is_said_what_they_are(page):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").replace(">", " ").split()).lower()
    assert "synthetic and small" in text
    assert "synthetic and small" in NOTICE


def test_citation_and_version_agree():
    import nemo_merge

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == nemo_merge.__version__


def test_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "quick", "docs"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
