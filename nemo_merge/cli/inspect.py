"""``nemo-merge inspect``: shows what a checkpoint holds without loading it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="List every tensor with its role, shape and type.")
def command(file: Path, tensors: bool) -> None:
    """Show what the checkpoint FILE holds: model, tokenizer, tensors by role, and how it was merged."""
    import yaml
    from rich.table import Table
    from rich.text import Text

    from ..checkpoints import open_checkpoint
    from ..tensors import role_of
    from ._console import console

    out = console()
    with open_checkpoint(file) as checkpoint:
        metadata = checkpoint.metadata
        own = {name: spec for name, spec in checkpoint.specs.items() if name not in checkpoint.ties}
        roles = {name: role_of(name, spec.shape, spec.dtype) for name, spec in own.items()}
        out.print(Text(f"{file}: {metadata.format}, {metadata.model_class or 'unknown model class'}"))
        for place, digest in metadata.tokenizers.items():
            out.print(Text(f"tokenizer: {place} (sha256 {digest}...)"))
        summary = Table("role", "tensors", "parameters", "types", box=None, pad_edge=False)
        for role, count in Counter(roles.values()).most_common():
            held = [own[name] for name in own if roles[name] is role]
            types = sorted({str(spec.dtype).removeprefix("torch.") for spec in held})
            summary.add_row(role.value, str(count), f"{sum(spec.numel for spec in held):,}", ", ".join(types))
        total = sum(spec.numel for spec in own.values())
        summary.add_row(
            "total", str(len(own)), f"{total:,}", f"{sum(spec.nbytes for spec in own.values()) / 1e6:,.1f} MB"
        )
        out.print(summary)
        for alias, owner in checkpoint.ties.items():
            out.print(Text(f"tied: {alias} shares the data of {owner}"))
        if tensors:
            table = Table("tensor", "role", "shape", "type", box=None, pad_edge=False)
            for name, spec in own.items():
                table.add_row(
                    name,
                    roles[name].value,
                    "x".join(map(str, spec.shape)) or "scalar",
                    str(spec.dtype).removeprefix("torch."),
                )
            out.print(table)
        if metadata.provenance:
            out.print(Text(f"{metadata.provenance.get('made_by', 'merged with nemo_merge')}:"))
            out.print(Text(yaml.safe_dump(dict(metadata.provenance), sort_keys=False, allow_unicode=True, width=120)))
