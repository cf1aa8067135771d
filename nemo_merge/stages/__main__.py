"""``python -m nemo_merge.stages --config RECIPE.yaml``: what every ``run.sh`` calls."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..corpora.mini import SPLITS
from ..errors import ConfigError, NemoMergeError, did_you_mean
from ..termination import terminable
from ..training.jobs import started_together
from .engine import NAMES, Context, Stage, describe, run
from .placement import read_placements
from .recipes import RECIPES
from .sets import SpeechSets

_DEFAULTS = {"cmd": "local", "pack": {}}
"""Settings that every recipe has, whether its configuration mentions them or not."""
_LISTS = ("corpus", "merge.methods", "upstreams", "tasks")
"""Where an entry that is null, in a configuration or on the command line, is taken out."""
_CHOICE = ("--stage", "--stop-stage", "--stages", "--skip-stages")


class _Command(click.Command):
    """Shows the stages of the configuration at hand under ``--help``."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        config = ctx.params.get("config")
        stages = describe(_stages(_settings(config, ())) if config else RECIPES["merge"])
        formatter.write(f"\nStages (numbers and names never change their meaning):\n{stages}\n")


@click.command(
    cls=_Command,
    context_settings={
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)
@click.option(
    "--config", required=True, is_eager=True, type=click.Path(path_type=Path), help="Configuration of the recipe."
)
@click.option("--stage", type=int, default=0, show_default=True, help="First stage to run.")
@click.option("--stop-stage", type=int, default=len(NAMES) - 1, show_default=True, help="Last stage to run.")
@click.option("--stages", help="Names or numbers of the stages to run instead, separated by commas.")
@click.option("--skip-stages", default="", help="Names or numbers of stages to leave out.")
@click.option("--datadir", type=click.Path(path_type=Path), help="Corpora and manifests.  [data beside the recipe]")
@click.option("--expdir", type=click.Path(path_type=Path), help="Models and results.  [exp beside the recipe]")
@click.option("--nj", type=click.IntRange(1), help="Processes side by side.  [number of cores; elsewhere 16]")
@click.option("--ngpu", type=click.IntRange(0), help="GPUs to use, 0 for none.  [those that are visible]")
@click.option("--cmd", help="Where jobs run: local, slurm, a YAML file, or a command.  [cmd of the configuration]")
@click.option("--resume/--no-resume", default=True, help="Go on from checkpoints of training.  [--resume]")
@click.option("--force", is_flag=True, help="Run the stages even if they are done; later ones are then out of date.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, and why.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(
    config: Path,
    stage: int,
    stop_stage: int,
    stages: str | None,
    skip_stages: str,
    datadir: Path | None,
    expdir: Path | None,
    nj: int | None,
    ngpu: int | None,
    cmd: str | None,
    resume: bool,
    force: bool,
    dry_run: bool,
    overrides: tuple[str, ...],
) -> None:
    """Run the stages of a recipe; a stage that is done and whose options did not change is skipped.

    KEY=VALUE changes a setting of the configuration, for example train.experts.steps=50; null takes out a merge, a
    set of speech, an encoder or a task: merge.methods.ties=null.
    """
    if started_together():
        raise ConfigError("a recipe is started once, not by torchrun or srun; it starts processes itself, see --cmd")
    settings = _settings(config, overrides)
    SpeechSets.read(settings)  # refuses entries of no known form before anything is done
    recipe = _stages(settings)
    chosen = _choose(recipe, stage, stop_stage, stages, skip_stages)
    home = config.resolve().parent.parent
    where = (cmd, Path.cwd()) if cmd is not None else (settings["cmd"], config.parent)
    context = Context(
        settings,
        (datadir or home / "data").resolve(),
        (expdir or home / "exp").resolve(),
        jobs=nj or len(os.sched_getaffinity(0)),
        force=force,
        placements=read_placements(where[0], NAMES, where[1], gpus=ngpu, jobs=nj, resume=resume),
    )
    run(chosen, context, recipe=recipe, dry_run=dry_run, resume_command=_resume_command())


def _stages(settings: Mapping[str, Any]) -> Sequence[Stage]:
    """All stages of the recipe that a configuration is for."""
    name = settings.get("recipe", "merge")
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}{did_you_mean(str(name), RECIPES)}")
    return RECIPES[name]


def _choose(recipe: Sequence[Stage], first: int, last: int, wanted: str | None, skipped: str) -> list[Stage]:
    if not 0 <= first <= last < len(NAMES):
        raise ConfigError(
            f"--stage {first} --stop-stage {last}: stages go from 0 to {len(NAMES) - 1}, first before last"
        )
    known = {stage.name for stage in recipe}
    leave_out = _named(skipped, known)
    in_range = {stage.name for stage in recipe if first <= stage.number <= last}
    chosen = (in_range if wanted is None else _named(wanted, known)) - leave_out
    if not chosen:
        there = ", ".join(f"{stage.number} ({stage.name})" for stage in recipe)
        raise ConfigError(f"none of the stages that were asked for is in this recipe, which has {there}")
    return [stage for stage in recipe if stage.name in chosen]


def _named(text: str, known: set[str]) -> set[str]:
    """Names of the stages in a list of names and numbers."""
    names = set()
    for item in filter(None, (part.strip() for part in text.split(","))):
        name = NAMES[int(item)] if item.isdigit() and int(item) < len(NAMES) else item
        if name not in known:
            raise ConfigError(f"this recipe has no stage {item!r}{did_you_mean(item, known)}")
        names.add(name)
    return names


def _settings(config: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        settings: Any = OmegaConf.merge(_DEFAULTS, _load(config))
        changes: Any = OmegaConf.from_dotlist(list(overrides))
        for key in changes:
            if key not in settings:
                raise ConfigError(f"{config} has no setting {key!r}{did_you_mean(str(key), map(str, settings))}")
        model: Any = None  # where the base is given, there is none to be made
        if file := settings.pop("model", None):
            model = _model(config.parent / file, changes.pop("model", {}))
        settings = OmegaConf.merge(settings, changes)
        for place in _LISTS:
            entries = OmegaConf.select(settings, place) or {}
            for name in [name for name in entries if entries[name] is None]:
                entries.pop(name)
        plain: Any = OmegaConf.to_container(settings, resolve=True)
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename}: no such file") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{config}: {str(error).splitlines()[0]}") from error
    return {**plain, "model": model, "command": shlex.join(_typed())}


def _load(config: Path) -> Any:
    """A configuration; what it is ``like`` is another one, of which it changes some settings."""
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.load(config)
    like = settings.pop("like", None)
    return _like(_load(config.parent / like), settings) if like else settings


def _model(file: Path, changes: Any) -> Any:
    """The configuration of a model, a file of its own, whose interpolations refer to its own keys."""
    from omegaconf import OmegaConf

    model: Any = OmegaConf.load(file)
    if like := model.pop("like", None):
        model = OmegaConf.merge(OmegaConf.load(file.parent / like), model)
    return OmegaConf.to_container(OmegaConf.merge(model, changes), resolve=True)


def _like(other: Any, settings: Any) -> Any:
    """Another configuration with the settings of this one in their place; sets of speech are replaced as a whole."""
    from omegaconf import OmegaConf

    for name, entry in (settings.get("corpus") or {}).items():
        if not set(entry or ()) <= set(SPLITS):  # not only other numbers of the same synthesised set
            other.get("corpus", {}).pop(name, None)
    return OmegaConf.merge(other, settings)


def _typed() -> list[str]:
    """The command as the user typed it; a run.sh passes its own on."""
    typed = os.environ.get("NEMO_MERGE_COMMAND")
    return shlex.split(typed) if typed else ["python", "-m", "nemo_merge.stages", *sys.argv[1:]]


def _resume_command() -> str:
    """The command without its choice of stages."""
    words, kept = iter(_typed()), []
    for word in words:
        option, with_value, _ = word.partition("=")
        option = option.replace("_", "-")
        if option in _CHOICE and not with_value:
            next(words, None)
        elif option not in (*_CHOICE, "--force"):
            kept.append(word)
    return shlex.join(kept)


def main() -> None:
    """Entry point: usage errors exit with 2, a failed stage with 1, an interrupted one with 128 and the signal."""
    try:
        with terminable():
            command.main(standalone_mode=False)
    except NemoMergeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        if isinstance(error, click.NoSuchOption):
            names = [name for option in command.params for name in option.opts if name.startswith("--")]
            click.echo(f"There are {', '.join(sorted(names))}.", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
