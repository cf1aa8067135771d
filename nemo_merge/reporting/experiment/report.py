"""Builds the page of an experiment and writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...checkpoints import check_output
from ...checkpoints._work import write_whole
from ...errors import ConfigError, NemoMergeError, TranscriptError, did_you_mean
from ...scoring.evaluation import TOKENS, Options
from ...scoring.normalised import TextOptions, drop_empty
from ...scoring.transcripts import Problems, Row
from ..environment import environment
from .charts import Scatter, pareto
from .folder import Roles, read_experiment
from .page import Page, render
from .provenance import read_provenance
from .sections import IN_DOMAIN, Section, group_sets, make_section
from .spectra import Spectra, find_models, measure_spectra, too_large
from .utterances import examples


@dataclass(frozen=True)
class ReportOptions:
    """What goes into the page.

    Attributes:
        title: its heading; by default the end of the folder's path.
        notice: what every reader of the figures must know.
        reference: file or folder of what was said; by default the hypotheses say so.
        base: system that the experts were fine-tuned from; by default ``base``.
        experts: expert by test set; by default the systems with the names of sets.
        groups: test sets without an expert, by what they have in common.
        baseline: system that the others are compared with.
        metric: ``wer``, ``cer`` or ``mixed``.
        text: what is done to texts first; by default nothing if a recipe made the folder, so that figures agree with
            its ``RESULTS.md``, else Whisper's basic profile.
        rewrite: before that, what is done to what was heard, by test set, where references are written so already.
        replications: draws for the intervals.
        worst: number of utterances shown.
        worst_of: the system that they are of; by default the merge with the smallest mean over the first group.
        audio: manifests, cuts and folders with the audio, before those that the experiment names.
        audio_limit: bytes of audio in the page.
        spectra: measure the task vectors; by default if the base has at most 256 MB.
        command: what made the page, for its last section.
    """

    title: str | None = None
    notice: str = ""
    reference: Path | None = None
    base: str | None = None
    experts: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    baseline: str | None = None
    metric: str = "wer"
    text: TextOptions | None = None
    rewrite: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    replications: int = 2000
    worst: int = 12
    worst_of: str | None = None
    audio: Sequence[Path] = ()
    audio_limit: int = 8_000_000
    spectra: bool | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if self.metric not in TOKENS:
            raise ConfigError(
                f"the report shows error rates; there is none {self.metric!r}{did_you_mean(self.metric, TOKENS)}"
            )


def write_page(folder: Path, output: Path, options: ReportOptions | None = None, *, overwrite: bool = False) -> Page:
    """Writes one HTML file that needs no other file and no network; it appears whole or not at all.

    Args:
        folder: of an experiment; see :func:`~nemo_merge.reporting.experiment.folder.read_experiment`.
        output: the file.
        options: what goes into it.
        overwrite: replace an earlier file.

    Returns:
        What the page says.

    Raises:
        OutputError: the file is there already or cannot be written.
        TranscriptError: nothing was scored, or a transcript or ``scores.json`` is damaged.
        ConfigError: a name that is not there, or a damaged ``merge.yaml``.
        CheckpointError, PlanError: spectra were asked for, and the models cannot be measured.
        AudioError: a manifest is damaged or missing.
    """
    check_output(output, overwrite)
    page = build_page(folder, options or ReportOptions())
    write_whole(output, render(page).encode())
    return page


def build_page(folder: Path, options: ReportOptions) -> Page:
    """Everything that the page shows; raises what :func:`write_page` does."""
    experiment = read_experiment(folder, options.reference)
    experiment = replace(experiment, rows=[_rewritten(row, options.rewrite) for row in experiment.rows])
    roles = experiment.roles(options.base, options.experts, options.baseline)
    if options.worst_of is not None and options.worst_of not in experiment.systems:
        raise ConfigError(
            f"there is no system {options.worst_of!r}{did_you_mean(options.worst_of, experiment.systems)}"
        )
    groups = group_sets(experiment, roles, options.groups)
    records = [record for record in read_provenance(folder) if record.name in experiment.systems]
    text = options.text or (TextOptions("none") if experiment.recipe else TextOptions())
    scoring = Options(metrics=(options.metric,), text=text, replications=options.replications)
    problems = Problems()
    rows = drop_empty(experiment.rows, text, problems)
    if not rows:
        raise TranscriptError(f"{folder}: no reference has words after the text profile {text}")
    sections = [
        make_section(name, sets, rows, scoring, roles.baseline)
        for name, names in groups.items()
        if (sets := [item for item in names if any(row.set == item for row in rows)])
    ]
    spectra, no_spectra = _spectra(folder, roles, options.spectra)
    best = best_system(sections[0], roles)
    system = options.worst_of or best
    return Page(
        title=options.title or "/".join(folder.resolve().parts[-2:]),
        notice=options.notice,
        experiment=experiment,
        roles=roles,
        systems=_ordered(sections[0], roles),
        utterances=len(rows),
        problems={**experiment.problems, **problems.counts()},
        metric=options.metric,
        text=str(text),
        sections=sections,
        plots=_plots(sections, roles),
        spectra=spectra,
        no_spectra=no_spectra,
        best=best,
        worst_of=system,
        examples=examples(
            experiment,
            sections[0],
            roles,
            system,
            limit=options.worst,
            audio=options.audio,
            audio_limit=options.audio_limit,
        ),
        records=records,
        command=options.command,
        environment=environment(),
    )


def _rewritten(row: Row, by_set: Mapping[str, Callable[[str], str]]) -> Row:
    rewrite = by_set.get(row.set, str)
    return replace(row, heard={system: rewrite(text) for system, text in row.heard.items()})


def best_system(section: Section, roles: Roles) -> str:
    """The merge with the smallest mean error rate; without merges, the system."""
    merges = [name for name in section.means if roles.of(name) == "merge"] or list(section.means)
    return min(merges, key=lambda name: section.means[name].value)


def _ordered(section: Section, roles: Roles) -> list[str]:
    """Base, experts in the order of their sets, then the others, best first."""
    first = [name for name in dict.fromkeys([roles.base, *roles.experts.values()]) if name]
    rest = [name for name in section.means if name not in first]
    return [*first, *sorted(rest, key=lambda name: section.means[name].value)]


def _plots(sections: Sequence[Section], roles: Roles) -> dict[str, Scatter]:
    """Error in domain against every other group of sets."""
    first, *others = sections
    if first.name != IN_DOMAIN:
        return {}
    return {
        section.name: pareto(
            {name: (first.means[name].value, section.means[name].value) for name in first.means}, roles.of
        )
        for section in others
    }


def _spectra(folder: Path, roles: Roles, wanted: bool | None) -> tuple[Spectra | None, str]:
    """Spectra; or why the page has none."""
    if wanted is False:
        return None, "left out (--no-spectra)"
    models = find_models(folder, roles)
    if isinstance(models, str):
        if wanted:
            raise ConfigError(f"{folder}: no spectra: {models}")
        return None, models
    base, experts = models
    if wanted is None and too_large(base):
        return None, "the models are large; --spectra measures them all the same"
    try:
        return measure_spectra(base, experts), ""
    except NemoMergeError as error:
        if wanted:
            raise
        return None, str(error)
