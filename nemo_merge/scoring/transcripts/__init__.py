"""Reads references and hypotheses in the formats that speech toolkits write."""

from __future__ import annotations

from .matching import Row, match
from .problems import Problem, Problems
from .reading import FORMATS, SUFFIXES, read_labels, read_transcripts
from .sets import ReadingOptions, read_rows, system_names
from .utterance import Utterance

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "Problem",
    "Problems",
    "ReadingOptions",
    "Row",
    "Utterance",
    "match",
    "read_labels",
    "read_rows",
    "read_transcripts",
    "system_names",
]
