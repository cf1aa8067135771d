"""Runs stages in order: skips what is done, says why it does something again, and keeps a log of each."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConfigError, NemoMergeError

NAMES = ("download", "prepare", "cuts", "train", "merge", "extend", "decode", "score", "report", "pack")
"""Names of the stages; a stage's number is its place here. Neither ever changes its meaning."""

_LOG_TAIL = 25
_HASH_LIMIT = 256 << 20


class StageError(NemoMergeError):
    """A stage that did not finish; its log says why."""

    exit_code = 1


@dataclass(frozen=True)
class Stage:
    """One step of a recipe.

    Attributes:
        name: one of :data:`NAMES`.
        summary: what it does, one line.
        run: does it.
        options: top-level keys of the configuration that change its result.
        after: stages whose results it reads.
        outputs: files that it leaves; if one is gone, it runs again, and if one changed, the stages after it do.
    """

    name: str
    summary: str
    run: Callable[[Context], None]
    options: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    outputs: Callable[[Context], Sequence[Path]] = lambda context: ()

    @property
    def number(self) -> int:
        """The stage's number in ``--stage``."""
        return NAMES.index(self.name)

    @property
    def label(self) -> str:
        """For messages: ``stage 4 (merge)``."""
        return f"stage {self.number} ({self.name})"


@dataclass
class Context:
    """What a stage works with.

    Attributes:
        config: the recipe's configuration, plain data.
        datadir: corpora and manifests.
        expdir: models, hypotheses, results.
        jobs: processes to run side by side.
        force: do everything again.
    """

    config: Mapping[str, Any]
    datadir: Path
    expdir: Path
    jobs: int = 1
    force: bool = False
    _console: Callable[[str], None] = field(default=print, repr=False)

    def say(self, message: str) -> None:
        """Shows a line to the user and writes it to the stage's log."""
        line = f"{time.strftime('%H:%M:%S')}   {message}"
        self._console(line)
        print(line, flush=True)

    def result(self, stage: str) -> str:
        """Fingerprint of the result of a stage."""
        marker = _read(_marker(self, stage))
        return digest([marker.get("options"), marker.get("outputs")])

    def is_fresh(self, part: str, outputs: Sequence[Path], **depends_on: Any) -> bool:
        """Whether a part of a stage was finished before with the same options and inputs."""
        known = _read(self._part(part)).get("fingerprint") == digest(depends_on)
        return known and not self.force and all(path.exists() for path in outputs)

    def mark_fresh(self, part: str, **depends_on: Any) -> None:
        """Notes that a part of a stage is finished."""
        _write(self._part(part), {"fingerprint": digest(depends_on)})

    def _part(self, part: str) -> Path:
        return self.expdir / ".done" / "parts" / f"{part}.json"


def run(stages: Sequence[Stage], context: Context, *, dry_run: bool = False, resume_command: str = "") -> None:
    """Runs the given stages, which must be in order.

    Args:
        stages: what to run; every stage named in ``after`` must be among them or finished.
        context: configuration and folders.
        dry_run: only say what would be done.
        resume_command: command to show after a failure, without the stage.

    Raises:
        ConfigError: a stage needs another one that has not run.
        StageError: a stage failed.
    """
    _preflight(stages, context)
    again: set[str] = set()
    for stage in stages:
        reason = "forced" if context.force else _reason(stage, context)
        if dry_run and reason is None and again & set(stage.after):
            reason = f"after {', '.join(name for name in stage.after if name in again)}"
        if reason is None:
            _console_line(context, f"SKIP  {stage.label}: done before, nothing changed")
        elif dry_run:
            again.add(stage.name)
            _console_line(context, f"WOULD RUN {stage.label}: {stage.summary} ({reason})")
        else:
            _run_one(stage, context, reason, resume_command)


def describe(stages: Sequence[Stage]) -> str:
    """The stages, one line each, for ``--help``."""
    return "\n".join(f"  {stage.number}  {stage.name:<9} {stage.summary}" for stage in stages)


def seconds_of(context: Context) -> dict[str, float]:
    """Wall-clock seconds that each finished stage took."""
    found = {name: _read(_marker(context, name)) for name in NAMES}
    return {name: marker["seconds"] for name, marker in found.items() if "seconds" in marker}


def digest(value: Any) -> str:
    """Fingerprint of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _run_one(stage: Stage, context: Context, reason: str, resume_command: str) -> None:
    marker = {"version": __version__, "options": _options(stage, context), "inputs": _inputs(stage, context)}
    _marker(context, stage.name).unlink(missing_ok=True)
    log = context.expdir / "logs" / f"{stage.number:02d}_{stage.name}.log"
    _console_line(context, f"START {stage.label}: {stage.summary} ({reason})")
    started = time.monotonic()
    try:
        with _captured(log, context):
            stage.run(context)
    except NemoMergeError as error:
        raise StageError(f"{stage.label} failed: {error}\n  log: {log}{_resume(stage, resume_command)}") from error
    except Exception as error:
        tail = "".join(f"  | {line}" for line in log.read_text(errors="replace").splitlines(keepends=True)[-_LOG_TAIL:])
        raise StageError(f"{stage.label} failed; the end of {log}:\n{tail}{_resume(stage, resume_command)}") from error
    seconds = round(time.monotonic() - started, 1)
    outputs = {str(path): identity(path) for path in stage.outputs(context)}
    _write(_marker(context, stage.name), {**marker, "outputs": outputs, "seconds": seconds})
    _console_line(context, f"DONE  {stage.label} in {seconds} s")


def _resume(stage: Stage, command: str) -> str:
    return f"\n  to go on after mending it: {command} --stage {stage.number}" if command else ""


def _preflight(stages: Sequence[Stage], context: Context) -> None:
    planned: set[str] = set()
    for stage in stages:
        for needed in stage.after:
            if needed not in planned and not _marker(context, needed).is_file():
                number = NAMES.index(needed)
                raise ConfigError(
                    f"{stage.label} needs the result of stage {number} ({needed}), "
                    f"which has not run in {context.expdir}; start with --stage {number}"
                )
        planned.add(stage.name)


def _reason(stage: Stage, context: Context) -> str | None:
    """Why a stage has to run, or None if it need not."""
    marker = _read(_marker(context, stage.name))
    if not marker:
        return "not done yet"
    if marker.get("version") != __version__:
        return f"made by version {marker.get('version')}"
    if changed := sorted(_changes(marker.get("options"), _options(stage, context))):
        return f"changed: {', '.join(changed[:5])}"
    if marker.get("inputs") != _inputs(stage, context):
        return f"another result of {', '.join(stage.after)}"
    gone = [path for path in stage.outputs(context) if not path.exists()]
    return f"{gone[0].name} is gone" if gone else None


def _changes(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Dotted names of the options that differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {*before, *now}:
            yield from _changes(before.get(key), now.get(key), f"{place}.{key}" if place else str(key))
    elif before != now:
        yield place


def _options(stage: Stage, context: Context) -> dict[str, Any]:
    options = {key: context.config.get(key) for key in stage.options}
    return json.loads(json.dumps(options, default=str))


def _inputs(stage: Stage, context: Context) -> dict[str, str]:
    return {name: context.result(name) for name in stage.after}


def identity(path: str | Path) -> str:
    """What tells whether a file changed: its content, or its size and time if it is large.

    A gzipped file is looked at inside, because gzip writes the time of day into its header. A folder is what is in it.
    """
    if Path(path).is_dir():
        inside = sorted(item for item in Path(path).rglob("*") if item.is_file())
        return digest([[str(item.relative_to(path)), identity(item)] for item in inside])
    status = Path(path).stat()
    if status.st_size > _HASH_LIMIT:
        return f"{status.st_size} bytes at {status.st_mtime_ns}"
    opener = gzip.open if str(path).endswith(".gz") else open
    content = hashlib.sha256()
    with opener(path, "rb") as file:
        while chunk := file.read(1 << 20):
            content.update(chunk)
    return content.hexdigest()[:16]


def _marker(context: Context, name: str) -> Path:
    return context.expdir / ".done" / f"{NAMES.index(name):02d}_{name}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _console_line(context: Context, message: str) -> None:
    context._console(f"{time.strftime('%H:%M:%S')} {message}")


@contextlib.contextmanager
def _captured(log: Path, context: Context) -> Iterator[None]:
    """Sends all output of this process and its children to a log file; ``context.say`` still reaches the user."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    console_before = context._console
    terminal = os.fdopen(os.dup(saved[0]), "w", buffering=1)
    context._console = lambda line: print(line, file=terminal, flush=True)
    with open(log, "w", buffering=1, encoding="utf-8") as file:
        # Both levels: what libraries and child processes write, and what Python prints where sys.stdout was replaced.
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                try:
                    yield
                except BaseException:
                    traceback.print_exc()
                    raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for fd in saved:
                os.close(fd)
            terminal.close()
            context._console = console_before
