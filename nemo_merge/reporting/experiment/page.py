"""The page as HTML: one file, with a content security policy that lets nothing in and nothing out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from ...scoring.evaluation import METRICS
from ..markdown import p_value
from .charts import Scatter
from .folder import Experiment, Roles
from .provenance import Input, MergeRecord
from .sections import SIGNIFICANT, Section
from .spectra import Spectra
from .utterances import Example

_SHADES = 8


class Verdict(NamedTuple):
    """How a system compares with the baseline: a sign, the word for it, and p after Holm's correction."""

    sign: str
    word: str
    p: str


class Cell(NamedTuple):
    """One error rate of the heat map."""

    value: str
    title: str
    shade: int
    verdict: Verdict | None


@dataclass(frozen=True)
class Page:
    """What the page says.

    Attributes:
        title: its heading.
        notice: what every reader of the figures must know.
        experiment: what was read.
        roles: who is who.
        systems: in the order of the tables.
        utterances: how many were scored.
        problems: of the input, by kind.
        metric: name of the error rate.
        text: the text profile.
        sections: groups of test sets; the systems are judged by the first.
        plots: error in the first group against that in others, by name of the other group.
        spectra: of task vectors; ``no_spectra`` says why there are none.
        best: the merge with the smallest mean over the first group, or the system where nothing is known to be a merge.
        worst_of: whose worst utterances ``examples`` are.
        records: how the merges were made.
        command: what made the page.
        environment: with what.
    """

    title: str
    notice: str
    experiment: Experiment
    roles: Roles
    systems: Sequence[str]
    utterances: int
    problems: Mapping[str, int]
    metric: str
    text: str
    sections: Sequence[Section]
    plots: Mapping[str, Scatter]
    spectra: Spectra | None
    no_spectra: str
    best: str
    worst_of: str
    examples: Sequence[Example]
    records: Sequence[MergeRecord]
    command: str
    environment: Mapping[str, str]

    @property
    def rate(self) -> str:
        """The metric in words."""
        return METRICS[self.metric].partition(",")[0].partition(":")[0]

    @property
    def inputs(self) -> list[Input]:
        """Models that merges read, each once."""
        unique = {(item.path, *item.sha256.items()): item for record in self.records for item in record.inputs}
        return list(unique.values())

    @property
    def versions(self) -> list[str]:
        """Versions that the merges were made with; one entry if all were made with the same."""
        return list(dict.fromkeys(", ".join(f"{k} {v}" for k, v in record.versions.items()) for record in self.records))

    def verdict(self, section: Section, system: str, name: str | None = None) -> Verdict | None:
        """What the test against the baseline says, for all sets of a section or for one."""
        test = section.test(system, name)
        if test is None:
            return None
        p = p_value(test.p_holm)
        if test.p_holm >= SIGNIFICANT or not test.test.mean_difference:
            return Verdict("", "unclear", p)
        return Verdict("▼", "better", p) if test.test.mean_difference < 0 else Verdict("▲", "worse", p)

    @cached_property
    def heat(self) -> dict[str, dict[str, Cell]]:
        """Error rates by system and set; shades go from the smallest to the largest of each set."""
        table: dict[str, dict[str, Cell]] = {system: {} for system in self.systems}
        for section in self.sections:
            for name in section.sets:
                rates = {system: section.counts(system, name).rate for system in self.systems}
                low, span = min(rates.values()), max(rates.values()) - min(rates.values())
                for system, rate in rates.items():
                    interval = section.interval(system, name)
                    shade = round(_SHADES * (rate - low) / span) if span else 0
                    title = f"95 %: {100 * interval.low:.1f} to {100 * interval.high:.1f}" if interval else ""
                    table[system][name] = Cell(f"{100 * rate:.1f}", title, shade, self.verdict(section, system, name))
        return table


def render(page: Page) -> str:
    """The page as HTML; everything that is data is escaped, and scripts and styles are only those of this package."""
    style, script = (
        Markup((files(__package__) / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nemo_merge.reporting", "experiment"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "signed": _signed, "p": p_value}
    return environment.get_template("page.html").render(
        page=page, style=style, script=script, policy=policy, significant=SIGNIFICANT
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")
