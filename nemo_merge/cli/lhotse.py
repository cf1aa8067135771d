"""``nemo-merge-lhotse``: Lhotse's own command line with the corpora of this package in its groups.

Lhotse finds no recipes of other packages by itself; its ``lhotse`` script stays as it is.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError, NemoMergeError
from . import download as download_verb
from . import prepare as prepare_verb

PREFIX = "nemo-merge-"
"""Put before the name of a recipe of which Lhotse has one of its own."""


def lhotse_cli() -> click.Group:
    """Lhotse's command group with ``prepare`` and ``download`` commands for every corpus of the registry.

    Raises:
        ConfigError: Lhotse is not installed.
    """
    try:
        import lhotse.bin.modes as modes
    except ImportError as error:
        raise ConfigError("this command needs Lhotse; pip install 'nemo-merge[lhotse]'") from error
    from ..corpora import corpora

    for corpus in corpora():
        _add(modes.prepare, prepare_verb.command, prepare_verb.run, corpus)
        if corpus.download:
            _add(modes.download, download_verb.command, download_verb.run, corpus)
    return modes.cli


def _add(group: click.Group, verb: click.Command, run: Any, corpus: Any) -> None:
    """A copy of one of our verbs for one corpus; a command that Lhotse has keeps its name."""
    name = corpus.name.replace("_", "-")
    if isinstance(group.commands.get(name), _Ours):
        return
    if name in group.commands:
        name = PREFIX + name
    group.add_command(
        _Ours(
            name,
            callback=functools.partial(run, corpus.name),
            params=[item for item in verb.params if item.name != "corpus"],
            help=f"{corpus.title}: {corpus.domain}, {', '.join(corpus.languages)}. Needs {corpus.layout}. (nemo_merge)",
        )
    )


class _Ours(click.Command):
    """A command that this package added."""


def main() -> None:
    """Entry point of ``nemo-merge-lhotse``; problems are told as by ``nemo-merge``."""
    try:
        lhotse_cli()(prog_name=Path(sys.argv[0]).name)
    except NemoMergeError as error:
        click.echo(f"nemo-merge-lhotse: error: {error}", err=True)
        sys.exit(error.exit_code)
