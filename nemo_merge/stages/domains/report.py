"""Stage 8: the report."""

from __future__ import annotations

import json
from pathlib import Path

from ...reporting.domains import write_results
from ..data import notice, speech_sets
from ..engine import Context, seconds_of
from .experiment import test_sets
from .search import candidates, chosen, described


def write_report(context: Context) -> None:
    """Stage 8: ``RESULTS.md`` and two pictures."""
    config = context.config
    found = speech_sets(context)
    rows = json.loads((context.expdir / "search.json").read_text(encoding="utf-8"))
    best = chosen(candidates(config), {row["name"]: row["dev"] for row in rows})
    made = write_results(
        context.expdir,
        title=config["title"],
        notice="\n\n".join(filter(None, [notice(context), config.get("note")])),
        command=config["command"],
        scores=json.loads((context.expdir / "scores.json").read_text(encoding="utf-8")),
        search=[{**row, "words": described(row["settings"])} for row in rows],
        chosen={item.entry: described(item.settings) for item in best},
        titles={name: found[name].title for name in test_sets(config)},
        stage_seconds=seconds_of(context),
    )
    for path in made:
        context.say(f"wrote {path}")


def score_files(context: Context) -> list[Path]:
    """What stage 7 leaves."""
    return [context.expdir / "scores.json"]


def report_files(context: Context) -> list[Path]:
    """What stage 8 leaves."""
    return [context.expdir / name for name in ("RESULTS.md", "wer.png", "trade_off.png")]
