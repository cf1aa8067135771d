"""What ``speed.py`` merges: our settings and the peers', and how each side is started."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """One merge: our method and settings, the peer that has it (if any) and the peer's settings."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    peer: str | None = None
    call: str = ""
    each: dict[str, float] = field(default_factory=dict)
    general: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Method and settings."""
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.settings.items())])


def _mergekit(method: str, settings: dict[str, Any], call: str, **parameters: Any) -> Case:
    each = {key: value for key, value in parameters.items() if key in ("weight", "density", "gamma", "epsilon")}
    general = {key: value for key, value in parameters.items() if key not in each}
    return Case(method, settings, "mergekit", call, each, general)


CASES = {
    "soup": _mergekit("soup", {}, "linear", weight=0.25),
    "task_arithmetic": _mergekit("task_arithmetic", {}, "task_arithmetic", weight=0.25),
    "model_stock": _mergekit("model_stock", {}, "model_stock"),
    "karcher": _mergekit("karcher", {}, "karcher"),
    "multislerp": _mergekit("multislerp", {}, "multislerp", weight=0.25),
    "ties": _mergekit("ties", {"density": 0.2}, "ties", weight=1.0, density=0.2),
    "dare": _mergekit("dare", {"density": 0.5}, "dare_linear", weight=0.25, density=0.5),
    "dare_ties": _mergekit("dare", {"density": 0.5, "combine": "ties"}, "dare_ties", weight=1.0, density=0.5),
    "sce": _mergekit("sce", {"select": 0.5}, "sce", select_topk=0.5),
    "breadcrumbs": _mergekit(
        "breadcrumbs", {"density": 0.85, "outliers": 0.01}, "breadcrumbs", weight=0.25, density=0.85, gamma=0.01
    ),
    "della": _mergekit("della", {"density": 0.5, "epsilon": 0.1}, "della", weight=1.0, density=0.5, epsilon=0.1),
    "ties_model": Case("ties", {"density": 0.2, "scope": "model"}),
    "pcb": Case("pcb"),
    "pcb_model": Case("pcb", {"scope": "model"}),
    "iso_c": Case("iso_c", {}, "fusion_bench", "iso_c"),
    "iso_cts": Case("iso_cts", {}, "fusion_bench", "iso_cts"),
    "tsvm": Case("tsvm", {"orthogonalizer": "gram_polar"}, "fusion_bench", "tsvm"),
    "boosted_tsvm": Case("boosted_tsvm"),
}
"""Every merge by name; those without a peer are ones that no peer can do in the memory of a workstation."""


def our_command(case: Case, models: Sequence[Path], output: Path, workers: int) -> list[str]:
    """``nemo-merge merge`` of a base and experts."""
    base, *experts = models
    settings = [f"method.{key}={value}" for key, value in case.settings.items()]
    return [
        sys.executable, "-m", "nemo_merge", "merge", f"method={case.method}", *settings, f"workers={workers}",
        f"base={base}", f"experts=[{','.join(map(str, experts))}]", f"output={output}", "overwrite=true",
    ]  # fmt: skip


def peer_command(case: Case, models: Sequence[Path], output: Path, python: Path) -> list[str]:
    """The peer's merge of the same files."""
    if case.peer == "fusion_bench":
        script = str(Path(__file__).with_name("fusion_bench_side.py"))
        weights = [str(model / "model.safetensors") for model in models]
        return [str(python), "-I", script, case.call, str(output.with_suffix(".safetensors")), *weights]
    base, *experts = models
    lines = [f"merge_method: {case.call}", "dtype: float32"]
    if case.call not in ("linear", "karcher", "multislerp"):  # merges of weights, not of task vectors
        lines.append(f"base_model: {base}")
    lines.append("models:")
    for expert in experts:
        lines.append(f"  - model: {expert}")
        if case.each:
            lines.append("    parameters: {" + ", ".join(f"{key}: {value}" for key, value in case.each.items()) + "}")
    if case.general:
        lines.append("parameters: {" + ", ".join(f"{key}: {value}" for key, value in case.general.items()) + "}")
    settings = output.with_suffix(".yml")
    settings.write_text("\n".join(lines) + "\n")
    return [str(python.with_name("mergekit-yaml")), str(settings), str(output), "--no-copy-tokenizer", "--quiet"]


def mend_mergekit(python: Path) -> None:
    """Adds the dot that mergekit 0.1.5's definition of Whisper lacks, without which it finds no decoder tensor."""
    for path in python.parent.parent.glob("lib/python*/site-packages/mergekit/_data/architectures/whisper.json"):
        text = path.read_text()
        path.write_text(text.replace('"weight_prefix": "model.decoder"', '"weight_prefix": "model.decoder."'))
