"""Stage 9: what was made, in one folder for others: models, records, figures, environment; no speech or transcripts."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean
from ..reporting.environment import environment
from .data import notice
from .engine import Context, seconds_of
from .markers import file_sha256
from .models import merged_path
from .results import report_options

_SETTINGS = ("models", "archive")
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
_CARD = """\
---
library_name: nemo
pipeline_tag: automatic-speech-recognition
tags: [nemo_merge, merge]
---

# {title}

{notice}Models that were merged by nemo_merge {version} from one base and its experts, without training, and what was
measured of them: [RESULTS.md](RESULTS.md), [report.html](report.html).

| model | bytes | SHA-256 |
| --- | --- | --- |
{models}

How each was merged is in `records/`, its card in `cards/`. The base and the experts are not here, and neither is any
speech or transcript.

```python
from nemo.collections.asr.models import ASRModel

model = ASRModel.restore_from("models/{first}.nemo")
print(model.transcribe(["speech.wav"])[0].text)
```

All was made by `{command}` with the settings in `config.json` and the packages in `requirements.txt`
(`environment.json`: machine and commit). `sha256sum -c SHA256SUMS` checks the files.
"""


def pack(context: Context) -> None:
    """Stage 9: the folder appears whole, in place of an earlier one; with ``pack.archive`` an archive beside it."""
    from ..checkpoints import CARD, RECORD, beside
    from ..reporting.experiment import write_page

    names = packed_models(context.config)
    folder = packed(context).parent
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "models").mkdir(parents=True)
    for name in names:
        _link(merged_path(context, name), partial / "models" / f"{name}.nemo")
        for document, place in (
            (RECORD, partial / "records" / f"{name}.yaml"),
            (CARD, partial / "cards" / f"{name}.md"),
        ):
            place.parent.mkdir(exist_ok=True)
            shutil.copy2(beside(merged_path(context, name), document), place)
    results = (context.expdir / "RESULTS.md").read_text(encoding="utf-8")
    for file in ("RESULTS.md", "scores.json", *_PICTURE.findall(results)):
        shutil.copy2(context.expdir / file, partial / file)
    write_page(context.expdir, partial / "report.html", report_options(context, speech=False))
    _write_environment(context, partial)
    _write_card(context, partial, names)
    _write_sums(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    context.say(f"wrote {folder}: {', '.join(names)}")
    if context.config["pack"].get("archive"):
        context.say(f"wrote {_archive(folder)}")


def packed_models(config: Mapping[str, Any]) -> list[str]:
    """The merges to pack: ``pack.models``, or all.

    Raises:
        ConfigError: a setting or a merge that does not exist.
    """
    settings, merges = config["pack"], list(config["merge"]["methods"])
    for key in settings:
        if key not in _SETTINGS:
            raise ConfigError(f"pack: there is no setting {key!r}{did_you_mean(key, _SETTINGS)}")
    chosen = settings.get("models") or merges
    for name in chosen:
        if name not in merges:
            raise ConfigError(f"pack.models: there is no merge {name!r}{did_you_mean(str(name), merges)}")
    return list(chosen)


def packed(context: Context) -> Path:
    """The file that the packed folder ends with."""
    return context.expdir / "pack" / "SHA256SUMS"


def packed_files(context: Context) -> list[Path]:
    """What stage 9 leaves."""
    archive = [context.expdir / "pack.tar.gz"] if context.config["pack"].get("archive") else []
    return [packed(context), *archive]


def _link(path: Path, to: Path) -> None:
    """A second name of a file rather than a copy, where the file system has that."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copy2(path, to)


def _write_environment(context: Context, folder: Path) -> None:
    known = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    packages = {name: known[name] for name in sorted(filter(None, known), key=str.lower)}
    (folder / "requirements.txt").write_text("".join(f"{name}=={version}\n" for name, version in packages.items()))
    made = {"command": context.config["command"], "environment": environment(), "seconds": seconds_of(context)}
    for name, content in {"environment": made, "config": dict(context.config)}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def _write_card(context: Context, folder: Path, names: list[str]) -> None:
    rows = []
    for name in names:
        path = folder / "models" / f"{name}.nemo"
        rows.append(f"| `models/{path.name}` | {path.stat().st_size} | `{file_sha256(path)}` |")
    values = {
        "title": context.config["title"],
        "notice": f"{said}\n\n" if (said := notice(context)) else "",
        "version": environment()["nemo_merge"],
        "models": "\n".join(rows),
        "first": names[0],
        "command": context.config["command"],
    }
    (folder / "README.md").write_text(_CARD.format(**values), encoding="utf-8")


def _write_sums(folder: Path) -> None:
    """As ``sha256sum`` writes and checks them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def _archive(folder: Path) -> Path:
    archive = folder.with_name(f"{folder.name}.tar.gz")
    partial = archive.with_name(f".{archive.name}.partial")
    try:
        with tarfile.open(partial, "w:gz", compresslevel=1) as tar:  # weights hardly compress
            tar.add(folder, folder.name)
        os.replace(partial, archive)
    finally:
        partial.unlink(missing_ok=True)
    return archive
