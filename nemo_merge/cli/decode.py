"""``nemo-merge decode``: runs models over test sets and writes what they heard."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from ._background import run_logged

_SUFFIXES = (".nemo", ".gz", ".jsonl", ".json")
_PASSED_ON = (
    "batch_size", "batch_seconds", "language", "task", "target_language", "beam", "decoder", "device", "precision",
    "strict", "overwrite",
)  # fmt: skip


@click.command("decode", no_args_is_help=True)
@click.argument("models", metavar="[NAME=]MODEL...", nargs=-1, required=True)
@click.option(
    "--data", "--cuts", "sets", metavar="[NAME=]PATH", multiple=True, required=True, help="A test set; repeat it."
)
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Utterances in a batch.")
@click.option("--batch-seconds", type=click.FloatRange(0, min_open=True), help="Seconds in a batch, with padding.")
@click.option("--language", metavar="TAG", help="Of utterances that do not say, for Canary and Whisper: pt, en ...")
@click.option("--task", type=click.Choice(["transcribe", "translate"]), default="transcribe", help="For the same.")
@click.option("--target-language", metavar="TAG", help="Into which Canary translates.")
@click.option("--prompt", "prompts", metavar="SLOT=VALUE", multiple=True, help="Of Canary's prompt, e.g. pnc=yes.")
@click.option("--beam", type=click.IntRange(1), help="Search with so many hypotheses, instead of as the model says.")
@click.option("--decoder", type=click.Choice(["ctc", "rnnt"]), help="Of a hybrid model.")
@click.option("--channel", metavar="N|mix", help="Of audio with several channels; the first is 0.")
@click.option("--vad", is_flag=True, help="Cut recordings into segments of speech, by energy.")
@click.option(
    "--vad-set", "vad_settings", metavar="KEY=VALUE", multiple=True, help="threshold, pause, padding, longest."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the processor.  [all]")
@click.option("--strict", is_flag=True, help="Stop at an utterance that cannot be decoded, instead of leaving it out.")
@click.option("--overwrite", is_flag=True, help="Replace what another model, other data or settings left.")
def command(models: tuple[str, ...], sets: tuple[str, ...], **given: Any) -> None:
    """Transcribe test sets with NeMo models (.nemo) and Whisper folders of Hugging Face.

    \b
      nemo-merge decode base.nemo tsvm=merged.nemo --data test.jsonl.gz --data news=news.json --output exp/decode
      nemo-merge score news.json exp/decode/base/news.jsonl exp/decode/tsvm/news.jsonl

    Test sets are Lhotse cuts, NeMo manifests or folders of audio; give --data as often as there are some. What is heard
    goes to DIR/MODEL/SET.jsonl. The same command goes on after an interruption. Utterances that cannot be decoded are
    named and left out; the same command tries them again.
    """
    from ..training.decode import DecodingJob

    output: Path = given["output"]
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file; results go to a folder")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    job = DecodingJob(
        models=_named(models, "models"),
        sets=_named(sets, "test sets"),
        output=output,
        threads=given["threads"] or cpus,
        prompt=_pairs(given["prompts"], "--prompt"),
        channel=_channel(given["channel"]),
        vad=_vad(given["vad"], given["vad_settings"]),
        progress=True,
        **{name: given[name] for name in _PASSED_ON},
    )
    job.check()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        from ..errors import OutputError

        raise OutputError(f"{output}: cannot be made ({error.strerror})") from error
    with _bar() as (say, shown):
        run_logged(job, "decoding", say, shown)


def _named(items: Sequence[str], what: str) -> dict[str, str | Path]:
    """Paths by name: what stands before an equals sign, else the name of the file or folder without suffixes."""
    found: dict[str, str | Path] = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not equals or Path(item).exists():
            name, path = Path(item).name, item
            while (suffix := Path(name).suffix) in _SUFFIXES and not Path(item).is_dir():
                name = name.removesuffix(suffix)
        if not name or "/" in name or name.startswith("."):
            raise ConfigError(f"{item}: {name!r} cannot be the name of a file; write NAME=PATH")
        if name in found:
            raise ConfigError(f"two {what} are called {name!r}; name them: NAME=PATH")
        found[name] = path
    return found


def _pairs(items: Sequence[str], option: str) -> dict[str, str]:
    pairs = dict(item.partition("=")[::2] for item in items)
    if bad := [item for item in items if not all(item.partition("="))]:
        raise click.UsageError(f"{option} {bad[0]}: expected KEY=VALUE")
    return pairs


def _channel(given: str | None) -> int | str | None:
    if given is None or given == "mix":
        return given
    if not given.isdecimal():
        raise click.UsageError(f"--channel {given}: is neither a number nor mix")
    return int(given)


def _vad(wanted: bool, settings: Sequence[str]) -> dict[str, float] | None:
    if not wanted and not settings:
        return None
    try:
        return {key: float(value) for key, value in _pairs(settings, "--vad-set").items()}
    except ValueError as error:
        raise click.UsageError(f"--vad-set: {error}") from error


@contextmanager
def _bar() -> Iterator[tuple[Callable[[str], None], Callable[[str], bool]]]:
    """What shows reports, and what shows progress: a bar on a terminal, nothing elsewhere."""
    from rich import progress
    from rich.console import Console

    from ..training.jobs import PROGRESS_PREFIX

    console = Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as shown:
        task = shown.add_task("loading", total=None)

        def advance(line: str) -> bool:
            if not line.startswith(PROGRESS_PREFIX):
                return False
            state = json.loads(line.removeprefix(PROGRESS_PREFIX))
            shown.update(task, description=state["shown"], completed=state["done"], total=state["total"])
            return True

        def say(line: str) -> None:
            if console.is_terminal:
                shown.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                click.echo(line, err=True)

        yield say, advance
