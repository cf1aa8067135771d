"""The worst utterances of a system, with what the others made of them and with their audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..alignments import Aligned, worst_utterances
from .audio import Clip, Clips, find_audio, is_manifest
from .folder import Experiment, Roles
from .sections import Section


@dataclass(frozen=True)
class Example:
    """One utterance of the page.

    Attributes:
        aligned: what was said and heard.
        words: number of reference tokens.
        language: BCP-47 tag of the utterance, if known.
        others: errors of base, expert and baseline.
        clip: its audio.
    """

    aligned: Aligned
    words: int
    language: str | None
    others: Mapping[str, int]
    clip: Clip


def examples(
    experiment: Experiment,
    section: Section,
    roles: Roles,
    system: str,
    *,
    limit: int,
    audio: Sequence[Path],
    audio_limit: int,
) -> list[Example]:
    """The utterances with most errors of a system.

    Args:
        experiment: where they are from.
        section: the sets to look in.
        roles: who is who.
        system: whose errors.
        limit: number of utterances.
        audio: where to look for audio before the places that the experiment names.
        audio_limit: bytes of audio.

    Raises:
        AudioError: a manifest is damaged or missing.
    """
    worst = worst_utterances(section.evaluation, system, limit)
    sets = list(dict.fromkeys(item.row.set for item in worst))
    known = [experiment.audio.get(name) for name in sets]
    manifests = [item.row.where[0] for item in worst if is_manifest(item.row.where[0])]
    places = [*audio, *(path for path in known if path is not None and path.is_file()), *dict.fromkeys(manifests)]
    sources = find_audio(places, {item.row.id for item in worst})
    clips = Clips(audio_limit)
    errors = section.evaluation.errors[section.evaluation.options.metrics[0]]
    found = []
    for item in worst:
        source = sources.get(item.row.id)
        others = (roles.base, roles.experts.get(item.row.set), roles.baseline)
        found.append(
            Example(
                item,
                sum(step.said is not None for step in item.steps),
                item.row.language or (source.language if source else None),
                {name: errors[name][item.index].errors for name in dict.fromkeys(others) if name and name != system},
                clips.get(source),
            )
        )
    return found
