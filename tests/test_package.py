"""What an import costs, and which part may know which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nemo_merge

PACKAGE = Path(nemo_merge.__file__).parent
HEAVY = ("torch", "nemo", "lightning", "lhotse", "transformers", "hydra", "rich", "matplotlib")


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after running ``code``."""
    script = f"{code}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_after("import nemo_merge") & set(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["merge", "--help"],
        ["plan", "--help"],
        ["analyze", "--help"],
        ["methods", "--help"],
        ["score", "--help"],
        ["--version"],
    ],
)
def test_help_does_not_import_torch(arguments):
    code = f"import sys; sys.argv = ['nemo-merge', *{arguments}]\nfrom nemo_merge.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert "torch" not in loaded_after(code)


def test_a_merge_does_not_import_nemo(nemo_family, tmp_path):
    base, experts = nemo_family
    loaded = loaded_after(
        f"import nemo_merge\nnemo_merge.merge({str(base)!r}, {[str(path) for path in experts]}, 'tsvm', output={str(tmp_path / 'o.nemo')!r})"
    )
    assert "torch" in loaded
    assert not loaded & {"nemo", "lightning", "lhotse", "transformers", "peft"}


def test_public_names_are_there():
    for name in nemo_merge.__all__:
        assert getattr(nemo_merge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'merg'"):
        nemo_merge.merg  # noqa: B018


LAYERS = {
    # part -> parts of the package that it may import
    "_lazy": set(),
    "errors": set(),
    "tensors": set(),
    "linalg": set(),
    "low_rank": set(),
    "posterior": {"low_rank"},
    "vocabulary": {"errors", "tensors"},
    "methods": {"errors", "tensors", "linalg", "low_rank", "posterior"},
    "checkpoints": {"errors", "tensors", "low_rank", "posterior", "vocabulary"},
    "adapters": {"_lazy", "errors", "low_rank", "posterior", "methods", "checkpoints", "merging", "__init__"},
    "scoring": {"_lazy", "errors"},
    "corpora": {"errors"},
    "merging": {
        "errors",
        "tensors",
        "linalg",
        "low_rank",
        "posterior",
        "methods",
        "checkpoints",
        "vocabulary",
        "training",
        "__init__",
    },
    "reporting": {"errors", "tensors", "methods", "checkpoints", "merging", "scoring", "corpora", "__init__"},
    "training": {"errors", "vocabulary", "checkpoints", "adapters", "scoring", "searching", "fusion", "__init__"},
    "searching": {"_lazy", "errors", "methods", "merging", "scoring", "training"},
    "termination": {"errors"},
    "cli": {
        "termination",
        "searching",
        "errors",
        "tensors",
        "methods",
        "checkpoints",
        "merging",
        "reporting",
        "training",
        "settings",
        "scoring",
        "corpora",
        "fusion",
    },
    "hooks": {
        "_lazy",
        "errors",
        "tensors",
        "methods",
        "checkpoints",
        "merging",
        "corpora",
        "settings",
        "fusion",
        "__init__",
    },
    "settings": {"errors", "methods"},
    "fusion": {
        "_lazy",
        "errors",
        "settings",
        "checkpoints",
        "merging",
        "adapters",
        "hooks",
        "reporting",
        "scoring",
        "training",
        "__init__",
    },
    "configs": set(),
    "stages": {
        "termination",
        "fusion",
        "errors",
        "corpora",
        "scoring",
        "reporting",
        "training",
        "merging",
        "methods",
        "checkpoints",
        "tensors",
        "__init__",
    },
}
WITHOUT_NEMO = (
    "methods", "linalg", "low_rank", "posterior", "tensors", "vocabulary", "scoring", "checkpoints", "merging", "settings", "cli",
)  # fmt: skip


def imports_of(file: Path) -> tuple[set[str], set[str]]:
    """Parts of the package, and other top-level modules, that a file imports."""
    own, others = set(), set()
    depth = len(file.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            parts = {path.stem for path in PACKAGE.iterdir()}
            own |= {name if name in parts else "__init__" for name in names}
    return own, others


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in ("__init__", "__main__"):
        return
    own, others = imports_of(file)
    assert own - {part} <= LAYERS[part], f"{part} must not import {own - LAYERS[part]}"
    assert "nemo_merge" not in others, "inside the package, imports are relative"
    if part in WITHOUT_NEMO and file != PACKAGE / "cli" / "lhotse.py":  # that is Lhotse's own command line
        assert not others & {"nemo", "lightning", "lhotse"}
