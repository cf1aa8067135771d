"""``nemo-merge sweep``: merges for every combination of values, or searches for the best by error rates."""

from __future__ import annotations

from typing import Any

import click


@click.command("sweep", context_settings={"ignore_unknown_options": True}, no_args_is_help=True)
@click.argument("arguments", nargs=-1, metavar="[CONFIG.yaml] [KEY=VALUE]...")
def command(arguments: tuple[str, ...]) -> None:
    """Merge once for every combination of values of the method's parameters.

    Takes the settings of 'nemo-merge merge'; parameters with several values make the grid, and output is a folder:

    \b
      nemo-merge sweep method=boosted_tsvm method.beta=0.1,0.3 method.scale=0.8,1.0 \\
          base=base.nemo 'experts=[a.nemo,b.nemo]' output=sweep

    In a YAML file the grid is a mapping, grid: {beta: [0.1, 0.3]}. What the values share, such as the singular value
    decompositions for scale and beta, is computed once.

    With 'search' in the file, merges are tried on development sets, and a sampler proposes what to try next:

    \b
      search:
        space: {method: [ties, boosted_tsvm], scale: {low: 0.5, high: 1.5}, boosted_tsvm.beta: {low: 0.05, high: 1.0}}
        in_domain: {news: news_dev.jsonl.gz}
        retention: {english: english_dev.jsonl.gz}
        trials: 50
    """
    from ..settings import settings_of
    from ._memory import return_large_buffers
    from .settings import given_settings

    return_large_buffers()

    grid: dict[str, list[Any]] = {}
    plain = given_settings(arguments, grid)
    if "search" in plain:
        _search(plain, grid)
        return
    settings, method = settings_of(plain, grid)
    if not settings.output:
        raise click.UsageError("output=FOLDER is missing")
    if not settings.experts:
        raise click.UsageError("experts=[PATH,PATH] is missing")
    if settings.as_adapter is not None:
        raise click.UsageError("as_adapter is for nemo-merge merge; a sweep writes models")
    from dataclasses import fields

    from ..merging import sweep
    from ..merging.ranks import ranks_of_torchrun

    given = {
        item.name: getattr(method, item.name)
        for item in fields(method)
        if item.name not in grid and getattr(method, item.name) != item.default
    }
    with ranks_of_torchrun(settings.device) as ranks:
        reports = sweep(
            settings.base,
            settings.experts,
            method.name,
            grid=grid,
            output=settings.output,
            ranks=ranks,
            **settings.merge_options(),
            **given,
        )
        if not ranks.first:
            return
    for report in reports:
        click.echo(str(report.output))
    click.echo(f"{len(reports)} merges in {reports[0].seconds:.1f} s")


def _search(plain: dict[str, Any], grid: dict[str, list[Any]]) -> None:
    """Runs a search and says what it found."""
    from dataclasses import fields

    from ..errors import ConfigError, did_you_mean
    from ..searching import SearchJob, search
    from ..searching.job import describe

    given = plain.pop("search")
    if not isinstance(given, dict):
        raise ConfigError(f"search={given!r} is not a mapping with space and in_domain")
    if grid or "grid" in plain or "method" in plain:
        raise ConfigError("a search takes its methods and values from search.space; leave method and grid out")
    own = [item.name for item in fields(SearchJob) if item.name not in ("output", "base", "experts", "merge", "worker")]
    for key in given:
        if key not in (*own, "workers"):
            raise ConfigError(f"search has no setting {key!r}{did_you_mean(str(key), [*own, 'workers'])}")
    for key in ("space", "in_domain"):
        if key not in given:
            raise ConfigError(f"search.{key} is missing")
    workers = given.pop("workers", 1)
    if not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"search.workers={workers!r} is not a positive number")
    paths = {key: plain.pop(key, None) for key in ("output", "base", "experts")}
    if missing := [key for key, value in paths.items() if not value]:
        raise ConfigError(f"{missing[0]}= is missing")
    _check_rest(plain)
    found = search(SearchJob(**paths, merge=plain, **given), workers, click.echo)
    click.echo(f"{len(found.trials)} merges measured, {found.failed} cannot be merged; files:")
    for path in found.files:
        click.echo(f"  {path}")
    if found.chosen is None:
        click.echo("no merge keeps the error rate of search.retention within the tolerance; see the front")
    else:
        best = found.chosen
        retained = "" if best.retention is None else f", retention {100 * best.retention:.1f} %"
        click.echo(f"best: {describe(best.settings)}: in domain {100 * best.in_domain:.1f} %{retained}")


def _check_rest(plain: dict[str, Any]) -> None:
    """Refuses settings that a merge does not have, or that a search decides itself."""
    from ..errors import ConfigError
    from ..settings import MergeSettings, settings_of

    settings_of(dict(plain))
    for key in ("as_adapter", "overwrite"):
        if plain.get(key, getattr(MergeSettings, key)) != getattr(MergeSettings, key):
            raise ConfigError(f"{key} is for nemo-merge merge; a search writes models, and goes on where it was")
        plain.pop(key, None)
