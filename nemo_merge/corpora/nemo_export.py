"""Prepared corpora as NeMo takes them: JSON manifests, and the ``input_cfg`` that mixes them with weights and tags."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, CorpusError
from .manifests import replaced
from .prepared import Prepared

_CUSTOM = ("corpus", "domain", "variety", "orig_text", "language_spans")


def export_nemo(
    prepared: Sequence[Prepared], output_dir: str | Path, split: str, *, temperature: float = 1.0, jsonl: bool = True
) -> Path:
    """Writes ``<corpus>_<split>.json`` for each corpus and ``input_cfg_<split>.yaml`` for all.

    Corpora with recordings of several channels have no manifest, which could not say which channel is meant: their
    entry in the configuration is the Lhotse cuts.

    Args:
        prepared: corpora.
        output_dir: where the files go.
        split: which split of each; ``train`` also takes ``train-0``, ``train-1`` ...
        temperature: weights are hours to this power, scaled to a sum of 1: 1 mixes in proportion, 0 all alike.
        jsonl: whether entries are NeMo manifests; otherwise the Lhotse cuts themselves, and no manifest is written.

    Returns:
        The path of the configuration.

    Raises:
        CorpusError: no corpus has the split.
        ConfigError: the temperature is negative.
    """
    if temperature < 0:
        raise ConfigError(f"temperature={temperature} is negative")
    chosen = [(item, name) for item in prepared for name in item.splits if name == split or _is_part_of(name, split)]
    if not chosen:
        have = sorted({name for item in prepared for name in item.splits})
        raise CorpusError(f"no corpus has the split {split!r}; there are {', '.join(have) or 'no corpora'}")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    shares = [item.splits[name]["hours"] ** temperature for item, name in chosen]
    entries = []
    for (item, name), share in zip(chosen, shares, strict=True):
        entry: dict[str, Any] = {"type": "lhotse", "cuts_path": str(item.path("cuts", name).resolve())}
        if jsonl and item.splits[name]["channels"] == 1:
            path = folder / f"{item.stem}_{name}.json"
            _write_manifest(path, item.path("cuts", name))
            entry = {"type": "nemo", "manifest_filepath": str(path.resolve())}
        tags = {"corpus": item.stem, "domain": item.domain, "lang": item.languages[0]}
        entries.append({**entry, "weight": round(share / sum(shares), 6), "tags": tags})
    configuration = folder / f"input_cfg_{split}.yaml"
    with replaced(configuration) as stream:
        stream.write(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True).encode())
    return configuration


def nemo_rows(cuts: Path) -> Iterator[dict[str, Any]]:
    """Rows of a NeMo manifest, one for each cut of a manifest of this package.

    Raises:
        CorpusError: a recording is not one file.
    """
    with gzip.open(cuts, "rt", encoding="utf-8") as lines:
        for line in lines:
            cut = json.loads(line)
            recording, (supervision,) = cut["recording"], cut["supervisions"]
            (source,) = recording["sources"]
            if source["type"] != "file":
                raise CorpusError(
                    f"{cuts}: {cut['id']} is no file but of type {source['type']}; prepare it into a folder"
                )
            row = {"id": cut["id"], "audio_filepath": source["source"], "duration": cut["duration"]}
            if cut["start"] or cut["duration"] < recording["duration"]:
                row["offset"] = cut["start"]
            else:  # NeMo takes the duration of a row with a rate for that of the whole file, and does not look at it
                row["sampling_rate"] = recording["sampling_rate"]
            custom = supervision.get("custom") or {}
            about = {key: supervision.get(key) for key in ("text", "speaker", "gender")}
            yield {
                **row,
                **{key: value for key, value in about.items() if value is not None},
                "lang": supervision["language"],
                **{key: custom[key] for key in _CUSTOM if custom.get(key)},
            }


def _write_manifest(path: Path, cuts: Path) -> None:
    with replaced(path) as stream:
        for row in nemo_rows(cuts):
            stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))


def _is_part_of(name: str, split: str) -> bool:
    return name.startswith(f"{split}-") and name.removeprefix(f"{split}-").isdigit()
