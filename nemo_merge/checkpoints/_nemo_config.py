"""``model_config.yaml`` of NeMo models: what it tells of the tokenizer, and how a merge's record gets into it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import CheckpointError
from ._checkpoint import Metadata
from ._yaml import dump, load

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
PROVENANCE_KEY = "nemo_merge"
MAX_CONFIG = 16 << 20


def nemo_metadata(text: str, shown: str, digest: Callable[[str], str | None]) -> Metadata:
    """What a configuration says of its model.

    Args:
        text: the configuration.
        shown: how messages call the checkpoint.
        digest: SHA-256 of an artefact, or None if there is none of that name.

    Raises:
        CheckpointError: no YAML, or it names an artefact that is not there.
    """
    config = load(text, f"{shown} ({CONFIG})")
    digests: dict[str, str] = {}
    for place, value in _strings(config):
        if value.startswith("nemo:") and "tokenizer" in place:
            found = digest(value.removeprefix("nemo:"))
            if found is None:
                raise CheckpointError(f"{shown}: its configuration names {value} ({place}), which is not in the file")
            digests[place] = found[:16]
    provenance = config.get(PROVENANCE_KEY)
    return Metadata(
        "nemo",
        config.get("target"),
        config,
        digests or label_digests(config),
        provenance if isinstance(provenance, dict) else None,
    )


def label_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the vocabularies that a configuration spells out, by their places."""
    digests = {}
    for place in ("labels", "decoder.vocabulary", "joint.vocabulary"):
        labels: Any = config
        for key in place.split("."):
            labels = labels.get(key) if isinstance(labels, dict) else None
        if isinstance(labels, list):
            digests[place] = hashlib.sha256("\0".join(map(str, labels)).encode()).hexdigest()[:16]
            break
    return digests


def with_record(text: str, config: Mapping[str, Any], record: Mapping[str, Any], shown: str) -> str:
    """The configuration, to the letter, with the record of this merge in place of any earlier one."""
    lines, keep = [], True
    for line in text.splitlines():
        if line and not line[0].isspace() and line[0] not in "-#":  # a key of the top level
            keep = not line.startswith(f"{PROVENANCE_KEY}:")
        if keep:
            lines.append(line)
    entry = {PROVENANCE_KEY: dict(record)}
    written = "\n".join(lines).rstrip("\n") + "\n" + dump(entry)
    wanted = {**config, **entry}
    try:
        same = load(written, shown) == wanted
    except CheckpointError:
        same = False
    return written if same else dump(wanted)  # the other way for a file in YAML's flow style


def packed_files(config: Mapping[str, Any]) -> set[str]:
    """Names of the packed files that a configuration refers to."""
    return {value.removeprefix("nemo:") for _, value in _strings(config) if value.startswith("nemo:")}


def _strings(node: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a configuration with their dotted places."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _strings(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _strings(value, f"{place}.{index}")
    elif isinstance(node, str):
        yield place, node
