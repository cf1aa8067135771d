"""``nemo-merge plan``: shows what a merge would do, and everything that stands against it."""

from __future__ import annotations

import click


@click.command("plan", context_settings={"ignore_unknown_options": True}, no_args_is_help=True)
@click.argument("arguments", nargs=-1, metavar="[CONFIG.yaml] [KEY=VALUE]...")
def command(arguments: tuple[str, ...]) -> None:
    """Show what a merge would do to every tensor; writes nothing.

    Takes the arguments of 'nemo-merge merge'. Reads all values, so that models which do not fit together or hold NaN
    are found here.
    """
    from .settings import compose

    settings, method = compose(arguments)
    if not settings.experts:
        raise click.UsageError("experts=[PATH,PATH] is missing")
    from contextlib import ExitStack

    from ..merging import plan_merge, plan_table
    from ..merging.inputs import open_inputs
    from ._console import console

    with ExitStack() as stack:
        base, experts = open_inputs(settings.base, settings.experts, stack)
        plan = plan_merge(
            base,
            experts,
            method,
            **settings.plan_options(),
        )
        out = console()
        out.print(plan_table(plan))
        for treatment, roles in plan.decisions().items():
            out.print(f"{treatment}: " + ", ".join(f"{count} {role}" for role, count in roles.items()))
        if plan.alignment is not None:
            out.print(str(plan.alignment), markup=False)
        for warning in plan.warnings:
            out.print(f"warning: {warning}")
