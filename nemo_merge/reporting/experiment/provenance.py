"""How the merges of an experiment were made, from the records beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...checkpoints import RECORD
from ...errors import ConfigError

_SETTINGS = ("rules", "then", "batch_norm", "audio", "dtype", "vocabulary")


@dataclass(frozen=True)
class Input:
    """A model that a merge read.

    Attributes:
        role: ``base`` or ``expert``.
        path: where it was.
        sha256: of its files by name.
    """

    role: str
    path: str
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class MergeRecord:
    """What a ``merge.yaml`` says.

    Attributes:
        name: of the merged model.
        method: its method.
        parameters: of the method, and other settings of the merge, in words.
        command: that makes it again.
        versions: of nemo_merge, Python and libraries.
        inputs: base and experts.
    """

    name: str
    method: str
    parameters: Mapping[str, str]
    command: str
    versions: Mapping[str, str]
    inputs: tuple[Input, ...]


def read_provenance(folder: Path) -> list[MergeRecord]:
    """Records of all merges in ``folder`` and ``folder/merged``: ``NAME.nemo.merge.yaml`` and ``NAME/merge.yaml``.

    Raises:
        ConfigError: a record is damaged; with file and, where it is not YAML, line.
    """
    homes = (folder, folder / "merged")
    paths = [
        path for home in homes for pattern in (f"*.{RECORD}", f"*/{RECORD}") for path in sorted(home.glob(pattern))
    ]
    return [_read(path) for path in paths]


def _read(path: Path) -> MergeRecord:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not YAML ({error.problem}); merge again or remove it") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); merge again or remove it") from error
    name = path.parent.name if path.name == RECORD else path.name.removesuffix(f".{RECORD}").removesuffix(".nemo")
    try:
        method = dict(content["method"])
        settings = {key: content[key] for key in _SETTINGS if content.get(key) is not None}
        inputs = [("base", content["base"])] if content.get("base") else []
        inputs += [("expert", item) for item in content["experts"]]
        return MergeRecord(
            name,
            str(method.pop("name")),
            {str(key): _shown(value) for key, value in {**method, **settings}.items()},
            str(content.get("command", "")),
            {"nemo_merge": str(content["nemo_merge"]), **_strings(content.get("versions") or {})},
            tuple(Input(role, str(item["path"]), _strings(item.get("sha256") or {})) for role, item in inputs),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not the record of a merge ({error!r}); merge again or remove it") from error


def _strings(values: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items()}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)
