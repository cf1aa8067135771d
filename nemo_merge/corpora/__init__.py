"""Speech corpora: a registry of what exists, importers for their formats, and recipes that make manifests.

A recipe turns a corpus folder into Lhotse manifests and cuts that NeMo trains on::

    from nemo_merge.corpora import find
    manifests = find("lectra").prepare("LECTRA", "data/manifests", num_jobs=4)

Importing this package needs neither Lhotse nor torch.
"""

from __future__ import annotations

from .prepared import Prepared, find_prepared
from .registry import Corpus, corpora, find, register
from .sessions import Audio, Headerless, Layout, Session, Utterance, single
from .source import Source

__all__ = [
    "Audio",
    "Corpus",
    "Headerless",
    "Layout",
    "Prepared",
    "Session",
    "Source",
    "Utterance",
    "corpora",
    "find",
    "find_prepared",
    "register",
    "single",
]
