"""Stage 8: the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...reporting.fusion import write_results
from ..data import notice, speech_sets
from ..engine import Context, seconds_of
from .encoders import comparison_folder
from .systems import is_trained_here


def write_report(context: Context) -> None:
    """Stage 8: ``RESULTS.md`` and two pictures."""
    config = context.config
    made = write_results(
        context.expdir,
        title=config["title"],
        notice=notice(context),
        command=config["command"],
        scores=json.loads((context.expdir / "scores.json").read_text(encoding="utf-8")),
        encoders={name: _described(context, entry) for name, entry in config["upstreams"].items()},
        comparison=_comparison(comparison_folder(context)) if config.get("compare") else "",
        seeds=len(config["seeds"]),
        stage_seconds=seconds_of(context),
    )
    for path in made:
        context.say(f"wrote {path}")


def _described(context: Context, entry: Mapping[str, Any]) -> str:
    if not is_trained_here(entry):
        return ", ".join(f"{key} {value}" for key, value in entry.items())
    encoder = {**context.config["model"]["encoder"], **(entry.get("encoder") or {})}
    titles = [speech_sets(context)[name].title for name in entry["data"]]
    learnt = f"names the {entry['label']}" if entry.get("label") else "transcribes"
    shift = 1000 * context.config["model"]["preprocessor"]["window_stride"] * encoder["subsampling_factor"]
    return (
        f"{learnt}; {encoder['n_layers']} blocks of width {encoder['d_model']}, {shift:.0f} ms per frame, "
        f"{entry['steps']} steps on {', '.join(titles)}"
    )


def _comparison(folder: Path) -> str:
    """What the comparison of the encoders says, a level deeper, with its picture."""
    text = (folder / "choice.md").read_text(encoding="utf-8")
    return text.replace("# ", "## ", 1).replace("](", f"]({folder.name}/").rstrip()


def report_files(context: Context) -> list[Path]:
    """What stage 8 leaves."""
    return [context.expdir / name for name in ("RESULTS.md", "fusion.png")]
