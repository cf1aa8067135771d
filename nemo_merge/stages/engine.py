"""Runs stages in order: skips what is done, says why it does something again, and keeps a log of each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, NemoMergeError
from .capture import captured
from .markers import changes, described, digest, identity, read_marker, tools, write_marker
from .placement import PLACEMENT, Placement

__all__ = ["NAMES", "Context", "Stage", "StageError", "describe", "digest", "identity", "run", "seconds_of"]

NAMES = ("download", "prepare", "cuts", "train", "merge", "extend", "decode", "score", "report", "pack")
"""Names of the stages; a stage's number is its place here. Neither ever changes its meaning."""

_LOG_TAIL = 25
_SHOWN = 5  # things that changed


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
        without: files of those stages that it does without, and that may be gone.
        reads: files from elsewhere that it takes, such as models that the user has; if one changed, it runs again.
    """

    name: str
    summary: str
    run: Callable[[Context], None]
    options: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    outputs: Callable[[Context], Sequence[Path]] = lambda context: ()
    without: Callable[[Context], Sequence[Path]] = lambda context: ()
    reads: Callable[[Context], Sequence[Path]] = lambda context: ()

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
        placements: where the jobs of a stage run, by its name; here by default.
    """

    config: Mapping[str, Any]
    datadir: Path
    expdir: Path
    jobs: int = 1
    force: bool = False
    placements: Mapping[str, Placement] = field(default_factory=dict)
    _console: Callable[[str], None] = field(default=print, repr=False)

    def say(self, message: str) -> None:
        """Shows a line to the user and writes it to the stage's log."""
        print(_console_line(self, f"  {message}"), flush=True)

    def result(self, stage: str) -> str:
        """Fingerprint of the result of a stage."""
        marker = read_marker(_marker(self, stage))
        return digest([marker.get("options"), marker.get("outputs")])

    def is_fresh(self, part: str, outputs: Sequence[Path], **depends_on: Any) -> bool:
        """Whether a part of a stage was finished before with the same options and inputs."""
        known = read_marker(self._part(part)).get("fingerprint") == digest(depends_on)
        return known and not self.force and all(path.exists() for path in outputs)

    def mark_fresh(self, part: str, **depends_on: Any) -> None:
        """Notes that a part of a stage is finished."""
        write_marker(self._part(part), {"fingerprint": digest(depends_on)})

    def _part(self, part: str) -> Path:
        return self.expdir / ".done" / "parts" / f"{part}.json"


def run(
    stages: Sequence[Stage],
    context: Context,
    *,
    recipe: Sequence[Stage] = (),
    dry_run: bool = False,
    resume_command: str = "",
) -> None:
    """Runs the given stages, which must be in order.

    Args:
        stages: what to run; every stage named in ``after`` must be among them or finished.
        context: configuration and folders.
        recipe: all stages that there are; those given by default.
        dry_run: only say what would be done.
        resume_command: command to show after a failure, without the stage.

    Raises:
        ConfigError: a stage needs another one that has not run, or a file that is not there.
        StageError: a stage failed.
    """
    recipe = recipe or stages
    _preflight(stages, recipe, context)
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
            if context.force:
                _mark_stale(stage, recipe, context)


def describe(stages: Sequence[Stage]) -> str:
    """The stages, one line each, for ``--help``."""
    return "\n".join(f"  {stage.number}  {stage.name:<9} {stage.summary}" for stage in stages)


def seconds_of(context: Context) -> dict[str, float]:
    """Wall-clock seconds that each finished stage took."""
    found = {name: read_marker(_marker(context, name)) for name in NAMES}
    return {name: marker["seconds"] for name, marker in found.items() if "seconds" in marker}


def _run_one(stage: Stage, context: Context, reason: str, resume_command: str) -> None:
    marker = {"tools": tools(), "options": _options(stage, context), "inputs": _inputs(stage, context)}
    _marker(context, stage.name).unlink(missing_ok=True)
    log = context.expdir / "logs" / f"{stage.number:02d}_{stage.name}.log"
    first = _console_line(context, f"START {stage.label}: {stage.summary} ({reason})")
    started = time.monotonic()
    try:
        with captured(log, context), _placed(stage, context):
            print(first, flush=True)
            stage.run(context)
            outputs = described(stage.outputs(context))
            seconds = round(time.monotonic() - started, 1)
            last = f"DONE  {stage.label} in {seconds} s"
            print(_timed(last))
    except NemoMergeError as error:
        raise StageError(f"{stage.label} failed: {error}\n  log: {log}{_resume(stage, resume_command)}") from error
    except Exception as error:
        tail = "".join(f"  | {line}" for line in log.read_text(errors="replace").splitlines(keepends=True)[-_LOG_TAIL:])
        raise StageError(f"{stage.label} failed; the end of {log}:\n{tail}{_resume(stage, resume_command)}") from error
    write_marker(_marker(context, stage.name), {**marker, "outputs": outputs, "seconds": seconds})
    _console_line(context, last)


@contextmanager
def _placed(stage: Stage, context: Context) -> Iterator[None]:
    """Jobs of the stage run where its placement says."""
    token = PLACEMENT.set(context.placements.get(stage.name, Placement()))
    try:
        yield
    finally:
        PLACEMENT.reset(token)


def _resume(stage: Stage, command: str) -> str:
    return f"\n  to go on after mending it: {command} --stage {stage.number}" if command else ""


def _preflight(stages: Sequence[Stage], recipe: Sequence[Stage], context: Context) -> None:
    """Looks for everything that the stages read and that none of them makes."""
    known = {stage.name: stage for stage in recipe}
    planned: set[str] = set()
    for stage in stages:
        for path in stage.reads(context):
            if not path.exists():
                raise ConfigError(f"{stage.label} reads {path}, which does not exist")
        for needed in stage.after:
            if needed not in planned:
                _check_done(stage, needed, known.get(needed), context)
        planned.add(stage.name)


def _check_done(stage: Stage, needed: str, maker: Stage | None, context: Context) -> None:
    """Whether a stage that is not to run has left what another one needs."""
    number = NAMES.index(needed)
    marker = read_marker(_marker(context, needed))
    if not marker:
        raise ConfigError(
            f"{stage.label} needs the result of stage {number} ({needed}), "
            f"which has not run in {context.expdir}; start with --stage {number}"
        )
    expected = [*map(Path, marker.get("outputs", ())), *(maker.outputs(context) if maker else ())]
    spared = set(stage.without(context))
    if gone := [path for path in expected if path not in spared and not path.exists()]:
        raise ConfigError(
            f"{stage.label} needs {gone[0]}, which stage {number} ({needed}) makes and which is not there; "
            f"start with --stage {number}"
        )
    if maker and (reason := _reason(maker, context)):
        _console_line(context, f"NOTE  {stage.label} uses {maker.label} as it was done before ({reason})")


def _reason(stage: Stage, context: Context) -> str | None:
    """Why a stage has to run, or None if it need not."""
    marker = read_marker(_marker(context, stage.name))
    if not marker:
        return "not done yet"
    if stale := marker.get("stale"):
        return str(stale)
    for name, (kind, now) in {
        "tools": ("another version of", tools()),
        "options": ("changed:", _options(stage, context)),
        "inputs": ("another", _inputs(stage, context)),
    }.items():
        if changed := sorted(changes(marker.get(name, {}), now)):
            if name == "inputs":
                changed = [f"result of {item}" if item in NAMES else item for item in changed]
            return f"{kind} {', '.join(changed[:_SHOWN])}"
    gone = [path for path in stage.outputs(context) if not path.exists()]
    return f"{gone[0].name} is gone" if gone else None


def _mark_stale(stage: Stage, recipe: Sequence[Stage], context: Context) -> None:
    """Notes that what was made from the earlier result of a stage is out of date."""
    stale = {stage.name}
    for later in recipe:
        if stale & set(later.after):
            stale.add(later.name)
            if marker := read_marker(_marker(context, later.name)):
                write_marker(_marker(context, later.name), {**marker, "stale": f"{stage.label} was forced"})


def _options(stage: Stage, context: Context) -> dict[str, Any]:
    options = {key: context.config.get(key) for key in stage.options}
    return json.loads(json.dumps(options, default=str))


def _inputs(stage: Stage, context: Context) -> dict[str, str]:
    """Results of other stages by their names, and files from elsewhere by their paths."""
    files = {str(path): identity(path) if path.is_file() else "" for path in stage.reads(context)}
    return {**{name: context.result(name) for name in stage.after}, **files}


def _marker(context: Context, name: str) -> Path:
    return context.expdir / ".done" / f"{NAMES.index(name):02d}_{name}.json"


def _console_line(context: Context, message: str) -> str:
    """Shows a line to the user, with the time, and returns it."""
    line = _timed(message)
    context._console(line)
    return line


def _timed(message: str) -> str:
    return f"{time.strftime('%H:%M:%S')} {message}"
