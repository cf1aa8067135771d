"""``nemo-merge multirun``: merges for many settings through Hydra's sweepers and launchers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

_ERROR = "error.txt"


@click.command("multirun", context_settings={"ignore_unknown_options": True}, no_args_is_help=True)
@click.argument("arguments", nargs=-1, metavar="[CONFIG.yaml] [KEY=VALUE[,VALUE]...]...")
def command(arguments: tuple[str, ...]) -> None:
    """Merge for every combination of values, as jobs of Hydra.

    Takes the settings of 'nemo-merge merge'; every one of them may have several values, the method and the experts
    too. What is written 'hydra...' goes to Hydra, such as its launcher:

    \b
      nemo-merge multirun method=ties,tsvm method.scale=0.8,1.0 base=base.nemo \\
          'experts=[a.nemo,b.nemo],[a.nemo,c.nemo]' hydra/launcher=joblib
      nemo-merge multirun CONFIG.yaml method.scale=0.8,1.0 hydra/launcher=submitit_slurm \\
          hydra.launcher.partition=cpu

    Job N leaves its model as merged (.nemo) in multirun/DATE/TIME/N, or where output=PATH says; put
    ${hydra:job.num} or ${hydra:job.override_dirname} into it. Install 'nemo-merge[launchers]' for joblib and submitit.
    'nemo-merge sweep' is faster where only parameters of one method vary: it computes once what they share.
    """
    import hydra
    from hydra.core.config_store import ConfigStore

    from .settings import read_file

    config, rest = read_file(arguments)
    callbacks = {"nemo_merge": {"_target_": "nemo_merge.cli.multirun.RememberFolder"}}
    ConfigStore.instance().store("nemo_merge", node={**config, "hydra": {"callbacks": callbacks}})
    sys.argv = ["nemo-merge", "--multirun", *map(_for_hydra, rest)]
    hydra.main(version_base="1.3", config_path=None, config_name="nemo_merge")(run_job)()
    failed = sorted(RememberFolder.folder.glob(f"*/{_ERROR}")) if RememberFolder.folder else []
    if failed:
        click.echo(f"nemo-merge: error: {len(failed)} jobs failed; {failed[0]} says why", err=True)
        sys.exit(2)


class RememberFolder:
    """A callback of Hydra that remembers, in the process that starts the jobs, where they write."""

    folder: Path | None = None

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *_, **__: None

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Called before the first job."""
        RememberFolder.folder = Path(config.hydra.sweep.dir)


def run_job(config: Any) -> str | None:
    """One merge; what is wrong with it goes into its folder, so that other jobs go on."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from ..errors import ConfigError, NemoMergeError
    from ..merging import merge
    from ..settings import settings_of
    from ._memory import return_large_buffers

    return_large_buffers()
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        settings, method = settings_of({str(key): value for key, value in plain.items()})
        if not settings.experts:
            raise ConfigError("experts=[PATH,PATH] is missing")
        first = settings.base or settings.experts[0]
        output = settings.output or folder / f"merged{'.nemo' if str(first).endswith('.nemo') else ''}"
        report = merge(settings.base, settings.experts, method, output=output, **settings.merge_options())
    except NemoMergeError as error:
        (folder / _ERROR).write_text(f"{error}\n", encoding="utf-8")
        click.echo(f"nemo-merge: error: {error}", err=True)
        return None
    click.echo(str(report))
    return str(report.output)


def _for_hydra(argument: str) -> str:
    """An override that adds what Hydra does not know; ``method=NAME`` sets the name beside the method's parameters."""
    if argument.startswith(("hydra", "+", "~", "-")):
        return argument
    if argument.startswith("method="):
        argument = "method.name=" + argument.removeprefix("method=")
    return f"++{argument}"
