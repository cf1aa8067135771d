"""Scores several systems on the same rows: by set, language and domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import ConfigError, TranscriptError, did_you_mean
from .alignment import Costs
from .code_switching import Tag, code_mixing_index, script_tags, switch_point_fraction, switch_points
from .error_rates import ErrorCounts, sum_counts, utterance_errors
from .normalised import TextOptions, Texts, marked_references, normalise
from .points_of_interest import Insertions, has_tags, masked_errors, other_scripts, without_tags
from .significance import Interval, bootstrap_interval
from .tokens import Tokeniser, characters, mixed_tokens, script, words
from .transcripts import Row
from .translation import TranslationScore, bleu, chrf

TOKENS: dict[str, Tokeniser] = {"wer": words, "cer": characters, "mixed": mixed_tokens}
_TRANSLATION: dict[str, Callable[[Sequence[str], Sequence[str]], TranslationScore]] = {"bleu": bleu, "chrf": chrf}
METRICS = {
    "wer": "word error rate",
    "cer": "character error rate, spaces included",
    "mixed": "mixed error rate: Han characters and kana one by one, other words whole; also by script",
    "pier": "point-of-interest error rate: at tagged words, or at words in another script than most",
    "bleu": "BLEU, by sacrebleu, on the text as it is",
    "chrf": "chrF, by sacrebleu, on the text as it is",
}


@dataclass(frozen=True)
class Options:
    """What to compute.

    Attributes:
        metrics: some of :data:`METRICS`; systems are compared by the first.
        text: what is done to texts before.
        spelling: also count words with Portuguese spellings made equal, see
            :func:`~nemo_merge.scoring.text.normaliser`.
        costs: of alignments.
        insertions: to which reference word PIER counts an insertion.
        by_speaker: draw whole speakers for the intervals instead of utterances.
        replications: draws for the intervals; 0 for none.
    """

    metrics: tuple[str, ...] = ("wer", "cer")
    text: TextOptions = field(default_factory=TextOptions)
    spelling: str | None = None
    costs: Costs = "levenshtein"
    insertions: Insertions = "next"
    by_speaker: bool = False
    replications: int = 2000

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise ConfigError(f"there is no metric {name!r}{did_you_mean(name, METRICS)}")
        if not self.metrics:
            raise ConfigError("name one metric at least")


@dataclass(frozen=True)
class Group:
    """Some of the rows: all of them, or those of one set, language or domain."""

    kind: str
    name: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """One number of one system.

    Attributes:
        value: error rates are fractions, BLEU and chrF go up to 100; ``None`` without anything to count.
        counts: of an error rate.
        interval: 95 % bootstrap interval of an error rate.
        signature: of BLEU and chrF.
    """

    value: float | None
    counts: ErrorCounts | None = None
    interval: Interval | None = None
    signature: str | None = None


class Switching(NamedTuple):
    """How mixed references are.

    Attributes:
        code_mixing_index: mean over the utterances, 0 to 100.
        switch_points: number of changes of language.
        switch_point_fraction: the same over all tokens.
        mixed_utterances: number of utterances with a change.
    """

    code_mixing_index: float
    switch_points: int
    switch_point_fraction: float
    mixed_utterances: int


@dataclass(frozen=True)
class Evaluation:
    """Everything that was counted.

    Attributes:
        rows: what was scored.
        systems: names.
        groups: of rows; the first is all of them.
        errors: error counts of every row, by metric and system.
        scores: by metric, system and group.
        texts: what was compared.
        options: as given.
        switching: how mixed the references are, by group, if that was asked for with ``mixed`` or ``pier``.
    """

    rows: Sequence[Row]
    systems: Sequence[str]
    groups: Sequence[Group]
    errors: Mapping[str, Mapping[str, Sequence[ErrorCounts]]]
    scores: Mapping[tuple[str, str, Group], Score]
    texts: Texts
    options: Options
    switching: Mapping[Group, Switching]

    @property
    def metrics(self) -> list[str]:
        """Names of all that was computed, those by script and spelling included."""
        return list(dict.fromkeys(metric for metric, _, _ in self.scores))

    def groups_of(self, kind: str) -> list[Group]:
        """Groups of one kind: ``all``, ``set``, ``language`` or ``domain``."""
        return [group for group in self.groups if group.kind == kind]

    def rates(self, metric: str, system: str, kind: str) -> dict[str, float]:
        """Values by group of one kind, where there are any."""
        values = {group.name: self.scores[metric, system, group].value for group in self.groups_of(kind)}
        return {name: value for name, value in values.items() if value is not None}


def evaluate(rows: Sequence[Row], options: Options) -> Evaluation:
    """Scores all systems of the rows.

    Raises:
        TranscriptError: there are no rows, or speakers are wanted and not known.
        ConfigError: a text profile is not for a language of the rows, or a library is missing.
    """
    if not rows:
        raise TranscriptError("no utterance is left to score")
    if options.by_speaker and (unknown := [row.id for row in rows if row.speaker is None]):
        raise TranscriptError(f"{len(unknown)} utterances have no speaker, the first is {unknown[0]}; see --utt2spk")
    texts = normalise(rows, options.text)
    groups = _groups(rows)
    systems = list(rows[0].heard)
    errors: dict[str, dict[str, list[ErrorCounts]]] = {}
    scores: dict[tuple[str, str, Group], Score] = {}
    for metric in options.metrics:
        if metric in _TRANSLATION:
            scores.update(_translations(metric, rows, systems, groups))
            continue
        counted = _errors(metric, rows, texts, options)
        if metric == "wer" and options.spelling:
            unified = normalise(rows, options.text, options.spelling)
            counted[f"wer+{options.spelling}"] = _by_system(unified, words, options.costs)
        errors.update(counted)
        for name, by_system in counted.items():
            for system, counts in by_system.items():
                scores.update({(name, system, group): _score(counts, rows, group, options) for group in groups})
    switching = _switching(rows, texts, groups, options) if {"mixed", "pier"} & {*options.metrics} else {}
    return Evaluation(rows, systems, groups, errors, scores, texts, options, switching)


def _groups(rows: Sequence[Row]) -> list[Group]:
    groups = [Group("all", "", tuple(range(len(rows))))]
    for kind in ("set", "language", "domain"):
        members: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            members.setdefault(getattr(row, kind) or "", []).append(index)
        if len(members) > 1 or (kind != "set" and "" not in members):
            groups += [Group(kind, name or "(none)", tuple(found)) for name, found in members.items()]
    return groups


def _errors(
    metric: str, rows: Sequence[Row], texts: Texts, options: Options
) -> dict[str, dict[str, list[ErrorCounts]]]:
    if metric == "pier":
        return {metric: _points_of_interest(rows, texts, options)}
    found = {metric: _by_system(texts, TOKENS[metric], options.costs)}
    if metric == "mixed":
        # Each script by itself: its tokens are picked from both sides and aligned anew, as recipes for SEAME report it.
        scripts = {script(token) for text in texts.references for token in mixed_tokens(text)} - {None}
        for name in sorted(filter(None, scripts)) if len(scripts) > 1 else ():
            found[f"{metric}[{name}]"] = _by_system(texts, _only(name), options.costs)
    return found


def _only(name: str) -> Tokeniser:
    return lambda text: [token for token in mixed_tokens(text) if script(token) == name]


def _by_system(texts: Texts, tokens: Tokeniser, costs: Costs) -> dict[str, list[ErrorCounts]]:
    return {
        system: utterance_errors(texts.references, heard, tokens, costs) for system, heard in texts.hypotheses.items()
    }


def _points_of_interest(rows: Sequence[Row], texts: Texts, options: Options) -> dict[str, list[ErrorCounts]]:
    marked = marked_references(rows, options.text)
    said = [tokens for tokens, _ in marked]
    masks = [mask for _, mask in marked]
    if not any(has_tags(row.text) for row in rows):
        masks = other_scripts(said)
    return {
        system: [
            masked_errors(tokens, mixed_tokens(text), mask, insertions=options.insertions, costs=options.costs)
            for tokens, mask, text in zip(said, masks, heard, strict=True)
        ]
        for system, heard in texts.hypotheses.items()
    }


def _translations(
    metric: str, rows: Sequence[Row], systems: Sequence[str], groups: Sequence[Group]
) -> dict[tuple[str, str, Group], Score]:
    scores = {}
    for system in systems:
        for group in groups:
            chosen = [rows[index] for index in group.rows]
            value, signature = _TRANSLATION[metric](
                [without_tags(row.text) for row in chosen], [row.heard[system] for row in chosen]
            )
            scores[metric, system, group] = Score(value, signature=signature)
    return scores


def _score(counts: Sequence[ErrorCounts], rows: Sequence[Row], group: Group, options: Options) -> Score:
    chosen = [counts[index] for index in group.rows]
    total = sum_counts(chosen)
    if not total.reference_length:
        return Score(None, total)
    interval = None
    if options.replications:
        blocks = [[rows[index].speaker for index in group.rows]] if options.by_speaker else None
        interval = bootstrap_interval([chosen], blocks=blocks, replications=options.replications)
    return Score(total.rate, total, interval)


def _switching(rows: Sequence[Row], texts: Texts, groups: Sequence[Group], options: Options) -> dict[Group, Switching]:
    """How mixed the references are, by tags where there are some and else by script."""
    tags: list[list[Tag]]
    if any(has_tags(row.text) for row in rows):
        tags = [
            ["tagged" if tagged else "rest" for tagged in mask] for _, mask in marked_references(rows, options.text)
        ]
    else:
        tags = [script_tags(text) for text in texts.references]
    found = {}
    for group in groups:
        chosen = [tags[index] for index in group.rows]
        switches = [switch_points(item) for item in chosen]
        fraction = switch_point_fraction(chosen)
        found[group] = Switching(code_mixing_index(chosen), sum(switches), fraction, sum(map(bool, switches)))
    return found
