"""Which stages a recipe has; its configuration names the recipe."""

from __future__ import annotations

from . import adaptation, data, models, pack, results, retention, translation, translation_results
from .domains import report, scores, search, training
from .engine import Stage
from .fusion import checks, downstream, encoders
from .fusion import report as fusion_report
from .fusion import scores as fusion_scores
from .languages import scores as languages_scores
from .languages import search as languages_search
from .languages import training as languages_training

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
        "train the base and one expert per domain, or take given ones",
        models.train,
        options=("seed", "model", "train", "domains"),
        after=("cuts",),
        reads=models.given_files,
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
        options=("score", "corpus", "domains"),
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
    Stage(
        "pack",
        "models, records, figures and checksums in one folder, for a hub",
        pack.pack,
        options=("pack", "title"),
        after=("merge", "score", "report"),
        outputs=pack.packed_files,
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
        reads=models.given_files,
        outputs=adaptation.tuned_files,
    ),
    Stage(
        "merge",
        "merge what was learnt with the base and with each other",
        adaptation.merge,
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
        options=("score", "corpus"),
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

DOMAINS = (
    *_DATA,
    Stage(
        "train",
        "train the base, an expert per domain and seed, and all domains jointly",
        training.train,
        options=("seed", "seeds", "model", "train", "domains"),
        after=("cuts",),
        reads=training.given_files,
        outputs=training.model_files,
    ),
    Stage(
        "merge",
        "choose settings on development sets, merge by every method",
        search.merge,
        options=("merge", "search", "seeds", "domains", "evaluate"),
        after=("cuts", "train"),
        outputs=search.merged_files,
    ),
    Stage(
        "decode",
        "transcribe the test sets with every model",
        scores.decode,
        options=("decode", "evaluate"),
        after=("cuts", "train", "merge"),
        outputs=scores.hypothesis_files,
    ),
    Stage(
        "score",
        "error rates, their means, and tests against joint fine-tuning",
        scores.score,
        options=("score", "corpus", "evaluate"),
        after=("decode",),
        outputs=report.score_files,
    ),
    Stage(
        "report",
        "write RESULTS.md and two pictures",
        report.write_report,
        options=("title",),
        after=("merge", "score"),
        outputs=report.report_files,
    ),
)

TRANSLATION = (
    *_DATA[:2],
    Stage(
        "cuts",
        "make and check cuts of every set and every task",
        translation.cuts,
        options=("tasks",),
        after=("prepare",),
        outputs=translation.cut_files,
    ),
    Stage(
        "train",
        "train the base, one expert per task, and jointly",
        translation.train,
        options=("seed", "model", "train", "tasks", "groups"),
        after=("cuts",),
        reads=translation.given_files,
        outputs=translation.model_files,
    ),
    Stage(
        "merge",
        "merge experts across languages and tasks",
        translation.merge,
        options=("merge", "tasks", "groups"),
        after=("train",),
        outputs=translation.merged_files,
    ),
    Stage(
        "decode",
        "choose merges on development sets, decode test sets",
        translation_results.decode,
        options=("decode",),
        after=("cuts", "train", "merge"),
        outputs=translation_results.hypothesis_files,
    ),
    Stage(
        "score",
        "word error rates, BLEU and recovered gains",
        translation_results.score,
        options=("corpus",),
        after=("decode",),
        outputs=translation_results.score_files,
    ),
    Stage(
        "report",
        "write RESULTS.md and a picture",
        translation_results.write_report,
        options=("title",),
        after=("score",),
        outputs=translation_results.report_files,
    ),
)

LANGUAGE = (
    *_DATA[:2],
    Stage(
        "cuts",
        "make and check cuts, read training transcripts aloud",
        languages_training.cuts,
        options=("seed", "read_aloud"),
        after=("prepare",),
        outputs=languages_training.cut_files,
    ),
    Stage(
        "train",
        "train the base and one expert per language",
        languages_training.train,
        options=("seed", "model", "train", "old", "new"),
        after=("cuts",),
        outputs=languages_training.model_files,
    ),
    Stage(
        "merge",
        "merge the known languages' experts by every method",
        languages_search.merge,
        options=("merge", "old"),
        after=("train",),
        outputs=languages_search.merged_files,
    ),
    Stage(
        "extend",
        "add the new language by merging its expert",
        languages_search.extend,
        options=("extend", "new"),
        after=("train", "merge"),
        outputs=languages_search.extended_files,
    ),
    Stage(
        "decode",
        "transcribe the test sets with every model",
        languages_search.decode,
        options=("decode", "untouched"),
        after=("cuts", "train", "merge", "extend"),
        without=languages_training.training_files,
        outputs=languages_search.hypothesis_files,
    ),
    Stage(
        "score",
        "what the new language gained and the old ones lost",
        languages_scores.score,
        options=("corpus", "old", "new", "untouched"),
        after=("merge", "extend", "decode"),
        outputs=languages_scores.score_files,
    ),
    Stage(
        "report",
        "write RESULTS.md and two pictures",
        languages_scores.write_report,
        options=("title",),
        after=("score",),
        outputs=languages_scores.report_files,
    ),
)

FUSION = (
    *_DATA[:2],
    Stage(
        "cuts",
        "make and check cuts of every set and every task",
        encoders.cuts,
        options=("tasks",),
        after=("prepare",),
        outputs=encoders.task_cut_files,
    ),
    Stage(
        "train",
        "train the encoders or take given ones, compare them, run them once over all speech",
        encoders.train,
        options=("seed", "model", "upstreams", "tasks", "compare"),
        after=("cuts",),
        reads=checks.given_files,
        outputs=encoders.encoder_files,
    ),
    Stage(
        "merge",
        "fuse: train every interface on every set of encoders, for every task",
        downstream.fuse,
        options=("fuse", "tasks", "seeds"),
        after=("cuts", "train"),
        reads=checks.given_files,
        outputs=downstream.fused_files,
    ),
    Stage(
        "decode",
        "run every model over its test sets, measure what one of each system costs",
        fusion_scores.decode,
        options=("decode",),
        after=("cuts", "train", "merge"),
        outputs=fusion_scores.hypothesis_files,
    ),
    Stage(
        "score",
        "error rates, what fusion adds, and what belongs to encoders or interfaces",
        fusion_scores.score,
        options=("corpus",),
        after=("decode",),
        outputs=fusion_scores.score_files,
    ),
    Stage(
        "report",
        "write RESULTS.md and a picture",
        fusion_report.write_report,
        options=("title",),
        after=("train", "score"),
        outputs=fusion_report.report_files,
    ),
)

RECIPES = {
    "merge": MERGE,
    "adapt": ADAPT,
    "domains": DOMAINS,
    "fusion": FUSION,
    "language": LANGUAGE,
    "translation": TRANSLATION,
}
"""Stages by the configuration's ``recipe``, which is ``merge`` where it says nothing."""
