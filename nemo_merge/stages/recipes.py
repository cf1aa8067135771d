"""Which stages a recipe has; its configuration names the recipe."""

from __future__ import annotations

from . import adaptation, data, models, results, retention
from .engine import Stage
from .languages import scores, search, training

_DATA = (
    Stage(
        "download",
        "synthesise or fetch the corpora",
        data.download,
        options=("seed", "corpus"),
        outputs=data.corpus_files,
    ),
    Stage(
        "prepare",
        "write Lhotse and NeMo manifests",
        data.prepare,
        after=("download",),
        outputs=data.manifest_files,
    ),
    Stage(
        "cuts",
        "make and check cuts",
        data.cuts,
        after=("prepare",),
        outputs=data.cut_files,
    ),
)

MERGE = (
    *_DATA,
    Stage(
        "train",
        "train the base and one expert per domain",
        models.train,
        options=("seed", "model", "train", "domains"),
        after=("cuts",),
        outputs=models.model_files,
    ),
    Stage(
        "merge",
        "merge the experts by every method",
        models.merge,
        options=("merge", "domains"),
        after=("train",),
        outputs=models.merged_files,
    ),
    Stage(
        "decode",
        "transcribe the test sets with every model",
        results.decode,
        options=("decode",),
        after=("cuts", "train", "merge"),
        outputs=results.hypothesis_files,
    ),
    Stage(
        "score",
        "word error rates with confidence intervals",
        results.score,
        options=("score", "domains"),
        after=("decode",),
        outputs=results.score_files,
    ),
    Stage(
        "report",
        "write RESULTS.md, a picture and report.html",
        results.write_report,
        options=("title",),
        after=("merge", "score"),
        outputs=results.report_files,
    ),
)

ADAPT = (
    *_DATA,
    Stage(
        "train",
        "train the base and fine-tune it by every method",
        adaptation.train,
        options=("seed", "seeds", "model", "train", "target", "source", "fine_tune"),
        after=("cuts",),
        outputs=adaptation.tuned_files,
    ),
    Stage(
        "merge",
        "fold adapters into the base, scale changes back",
        adaptation.scale,
        options=("merge", "seeds"),
        after=("train",),
        outputs=adaptation.adapted_files,
    ),
    Stage(
        "decode",
        "transcribe development and test sets with every model",
        adaptation.decode,
        options=("decode",),
        after=("cuts", "train", "merge"),
        outputs=adaptation.hypothesis_files,
    ),
    Stage(
        "score",
        "what was learnt and what was lost",
        retention.score,
        options=("score",),
        after=("decode",),
        outputs=retention.score_files,
    ),
    Stage(
        "report",
        "write RESULTS.md and a picture",
        retention.write_report,
        options=("title",),
        after=("score",),
        outputs=retention.report_files,
    ),
)

LANGUAGE = (
    *_DATA[:2],
    Stage(
        "cuts",
        "make and check cuts, read training transcripts aloud",
        training.cuts,
        options=("seed", "read_aloud"),
        after=("prepare",),
        outputs=training.cut_files,
    ),
    Stage(
        "train",
        "train the base and one expert per language",
        training.train,
        options=("seed", "model", "train", "old", "new"),
        after=("cuts",),
        outputs=training.model_files,
    ),
    Stage(
        "merge",
        "merge the known languages' experts by every method",
        search.merge,
        options=("merge", "old"),
        after=("train",),
        outputs=search.merged_files,
    ),
    Stage(
        "extend",
        "add the new language by merging its expert",
        search.extend,
        options=("extend", "new"),
        after=("train", "merge"),
        outputs=search.extended_files,
    ),
    Stage(
        "decode",
        "transcribe the test sets with every model",
        search.decode,
        options=("decode", "untouched"),
        after=("cuts", "train", "merge", "extend"),
        outputs=search.hypothesis_files,
    ),
    Stage(
        "score",
        "what the new language gained and the old ones lost",
        scores.score,
        options=("old", "new", "untouched"),
        after=("merge", "extend", "decode"),
        outputs=scores.score_files,
    ),
    Stage(
        "report",
        "write RESULTS.md and two pictures",
        scores.write_report,
        options=("title",),
        after=("score",),
        outputs=scores.report_files,
    ),
)

RECIPES = {"merge": MERGE, "adapt": ADAPT, "language": LANGUAGE}
"""Stages by the configuration's ``recipe``, which is ``merge`` where it says nothing."""
