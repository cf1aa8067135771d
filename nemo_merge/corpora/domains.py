"""Where the manifest of one split of one domain of a corpus is: the names that preparation gives it.

A folder of a corpus holds, for a domain (a set, a register, a speaker group) and a split (``train``, ``dev``,
``test``), one of these, looked for in this order (``PREFIX`` is the corpus in small letters with ``-`` for ``_``):

- ``[cuts/]PREFIX-DOMAIN_cuts_SPLIT.jsonl.gz``, Lhotse cuts as Lhotse recipes name them;
- ``[manifests/]PREFIX-DOMAIN_SPLIT.json``, a manifest of NeMo;
- ``DOMAIN/SPLIT.jsonl.gz``, cuts in a folder for each domain;
- ``DOMAIN/SPLIT.json`` or ``.jsonl``, a manifest of NeMo in a folder for each domain;
- the cuts of a corpus that ``nemo-merge prepare`` wrote there, or into a folder in there, with that domain.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError, did_you_mean
from .prepared import find_prepared

_PATTERNS = (
    "cuts/{prefix}-{domain}_cuts_{split}.jsonl.gz",
    "{prefix}-{domain}_cuts_{split}.jsonl.gz",
    "manifests/{prefix}-{domain}_{split}.json",
    "{prefix}-{domain}_{split}.json",
    "{domain}/{split}.jsonl.gz",
    "{domain}/{split}.json",
    "{domain}/{split}.jsonl",
)
_CUTS = ".jsonl.gz"


def find_manifest(root: str | os.PathLike[str], corpus: str, domain: str, split: str) -> Path:
    """The manifest of a split of a domain.

    Args:
        root: folder of the corpus, as a recipe or ``prepare_*`` leaves it.
        corpus: name of the corpus, for example ``ep_mini``.
        domain: name of the domain, for example ``telephone``.
        split: ``train``, ``dev`` or ``test``.

    Returns:
        Lhotse cuts (``.jsonl.gz``) or a manifest of NeMo (``.json``, ``.jsonl``); :func:`is_cuts` tells them apart.

    Raises:
        ConfigError: there is none; the message says what there is.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder (root of corpus {corpus!r})")
    prefix = corpus.lower().replace("_", "-")
    for pattern in _PATTERNS:
        path = folder / pattern.format(prefix=prefix, domain=domain, split=split)
        if path.is_file():
            return path
    prepared = find_prepared(folder, corpus=corpus)
    for item in prepared:
        if item.domain == domain and split in item.splits:
            return item.path("cuts", split)
    there: dict[str, set[str]] = {item.domain: set(item.splits) for item in prepared}
    for found, of in _listed(folder, prefix):
        there.setdefault(found, set()).add(of)
    place = f"{folder}: corpus {corpus!r}"
    if not there:
        raise ConfigError(
            f"{place}: no manifests like {prefix}-DOMAIN_cuts_SPLIT.jsonl.gz, {prefix}-DOMAIN_SPLIT.json or "
            "DOMAIN/SPLIT.json here"
        )
    if domain not in there:
        raise ConfigError(f"{place}: there is no domain {domain!r}{did_you_mean(domain, there)}")
    raise ConfigError(f"{place}: {domain!r} has no split {split!r}, only {', '.join(sorted(there[domain]))}")


def is_cuts(manifest: Path) -> bool:
    """Whether a manifest holds Lhotse cuts, and not lines of NeMo."""
    return manifest.name.endswith(_CUTS)


def _listed(folder: Path, prefix: str) -> Iterator[tuple[str, str]]:
    """Domains and splits of the manifests in a folder."""
    for pattern in _PATTERNS:
        shape = pattern.format(prefix=re.escape(prefix), domain=r"(?P<domain>[^/]+?)", split=r"(?P<split>[^/_.]+)")
        expected = re.compile(shape.replace(".json", r"\.json").replace(".gz", r"\.gz"))
        for path in folder.glob(pattern.format(prefix=prefix, domain="*", split="*")):
            match = expected.fullmatch(path.relative_to(folder).as_posix())
            if match and not match["domain"].endswith(("_recordings", "_supervisions")):
                yield match["domain"], match["split"]
