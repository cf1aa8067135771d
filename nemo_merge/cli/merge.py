"""``nemo-merge merge``: merges checkpoints into one."""

from __future__ import annotations

import click


@click.command("merge", context_settings={"ignore_unknown_options": True}, no_args_is_help=True)
@click.argument("arguments", nargs=-1, metavar="[CONFIG.yaml] [KEY=VALUE]...")
def command(arguments: tuple[str, ...]) -> None:
    """Merge expert checkpoints into one.

    Settings come from a YAML file, from KEY=VALUE overrides in Hydra's grammar, or both:

    \b
      nemo-merge merge method=boosted_tsvm method.beta=0.3 \\
          base=base.nemo 'experts=[a.nemo,b.nemo]' output=merged.nemo
      nemo-merge merge configs/merge/ties.yaml method.density=0.5 output=ties.nemo
      torchrun --nproc-per-node 4 -m nemo_merge merge ...    # shares the tensors among processes, on one or many nodes

    \b
    base=PATH         the model that the experts were fine-tuned from
    experts=[A,B]     the experts: checkpoints of any format, adapters of the base, or {path: A, ema: true}
    output=PATH       the merged checkpoint; it appears whole or not at all
    method=NAME       merging method (nemo-merge methods)   [boosted_tsvm]
    method.KEY=VALUE  its parameters (nemo-merge methods NAME); all have scale and weights
    rules=[...]       other settings for some tensors: {match: REGEX} or {group: encoder} with method, scale, weights
    then=[lines]      post-processors of what the method gives
    overwrite=true    replace an output that exists          [false]
    batch_norm=WORD   average, pooled, base or recalibrate   [average]
    audio=PATH        for recalibrate: manifest, cuts or folder of unlabelled audio
    dtype=TYPE        float32, float16, bfloat16, float64    [the base's]
    vocabulary=WORD   strict, base or union, where tokens differ   [strict]
    device=cuda       factorise on the GPU                   [cpu]
    workers=N         threads                                [number of cores]
    as_adapter=true   write merged adapters as one LoRA adapter, exact or (as_adapter=16) of that rank at most
    """
    from ._memory import return_large_buffers
    from .settings import compose

    return_large_buffers()

    settings, method = compose(arguments)
    if not settings.output:
        raise click.UsageError("output=PATH is missing")
    if not settings.experts:
        raise click.UsageError("experts=[PATH,PATH] is missing")
    from ..merging import merge
    from ..merging.ranks import ranks_of_torchrun

    with ranks_of_torchrun(settings.device) as ranks:
        report = merge(
            settings.base,
            settings.experts,
            method,
            output=settings.output,
            ranks=ranks,
            as_adapter=settings.as_adapter,
            **settings.merge_options(),
        )
        if ranks.first:
            click.echo(str(report))
