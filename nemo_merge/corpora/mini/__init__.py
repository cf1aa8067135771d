"""EP-mini, the embedded corpus: synthetic European Portuguese speech in ten domains, made at run time.

It exists so that everything in this package can be shown and tested on speech without a download. It is synthetic
(espeak-ng) and small; its error rates say how methods compare on it and nothing about speech recognition at large.
"""

from __future__ import annotations

from ..splits import split_of
from .build import SPLITS, Sizes, Utterance, read_utterances, synthesise
from .grammar import IN_DOMAIN, NAMES, OTHERS, OUT_OF_DOMAIN, Grammar, Sentence, load
from .manifests import NOTICE, infeasible_for_ctc, prepare_cuts, prepare_ep_mini

__all__ = [
    "IN_DOMAIN",
    "NAMES",
    "NOTICE",
    "OTHERS",
    "OUT_OF_DOMAIN",
    "SPLITS",
    "Grammar",
    "Sentence",
    "Sizes",
    "Utterance",
    "infeasible_for_ctc",
    "load",
    "prepare_cuts",
    "prepare_ep_mini",
    "read_utterances",
    "split_of",
    "synthesise",
]
