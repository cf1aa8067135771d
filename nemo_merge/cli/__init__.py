"""The command line, one module per verb. Nothing here imports torch before a verb runs."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any

import click

from ..errors import NemoMergeError
from ..termination import terminable

_VERBS = (
    "analyze", "compare-upstreams", "corpora", "decode", "download", "emr-apply", "export-nemo", "extend", "finetune",
    "forget", "inspect", "merge", "methods", "multirun", "pack", "plan", "prepare", "report", "reproduce", "score",
    "sweep",
)  # fmt: skip


class _LazyGroup(click.Group):
    """Imports the module of a verb when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        return importlib.import_module(f".{cmd_name.replace('-', '_')}", __name__).command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            from ..errors import did_you_mean

            ctx.fail(f"no such command {args[0]!r}{did_you_mean(args[0], _VERBS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nemo-merge", prog_name="nemo-merge")
def cli() -> None:
    """Merge specialised speech-recognition models into one, without retraining."""


def main() -> None:
    """Entry point of ``nemo-merge``: a problem the user can solve is one message on stderr and exit code 2."""
    # Importing torch makes very many objects that stay; looking for garbage among them takes a sixth of that time.
    gc.set_threshold(50_000, 20, 100)
    try:
        with terminable():
            cli.main(standalone_mode=False)
    except NemoMergeError as error:
        if not error.silent:
            click.echo(f"nemo-merge: error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("nemo-merge: interrupted; the output is as it was", err=True)
        sys.exit(130)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
