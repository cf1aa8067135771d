"""A merge shared by the processes of ``torchrun``: every rank computes some of the tensors, rank 0 puts them together.

Each rank plans the same merge, writes its tensors into a safetensors shard in a hidden folder beside the output (which
all ranks must see), and rank 0 copies the shards into the output. The bytes are those of a merge by one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ..checkpoints import TensorSpec, Writer
from ..checkpoints._safetensors import lay_out
from ..checkpoints._work import WorkFolder, key_of
from ..errors import MergeError
from ..methods import SpectralMethod
from .plan import MergePlan, Treatment
from .ranks import Ranks

_SHARD = "shard.safetensors"


class ShardWriter(Writer):
    """Writes the tensors of one rank into a shard beside the output.

    Args:
        ranks: this rank among all.
        output: the output of the merge.
        specs: shape and type of this rank's tensors.
        record: provenance of the merge, which tells its shards from those of others.
    """

    def __init__(self, ranks: Ranks, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any]) -> None:
        self.work: WorkFolder = WorkFolder(shard_owner(output, ranks.rank, ranks.count), key_of(record))
        try:
            self._file = self.work.add(_SHARD, lay_out(specs, {}))
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, start: int, values: Tensor) -> None:
        self._file.write(name, start, values)

    def commit(self, documents: Mapping[str, str] = MappingProxyType({})) -> None:
        self._file.sync()


def shard_owner(output: Path, rank: int, count: int) -> Path:
    """The name under which a rank keeps its shard; never a file, only the beginning of a work folder's name."""
    return output.with_name(f"{output.name}.rank-{rank}-of-{count}")


def gather(output: Path, ranks: Ranks, record: Mapping[str, Any], writer: Writer) -> None:
    """Copies the tensors of all ranks' shards into the output.

    Raises:
        MergeError: this rank does not see a shard.
    """
    for rank in range(ranks.count):
        owner = shard_owner(output, rank, ranks.count)
        path = owner.with_name(f".{owner.name}.{key_of(record)}.partial") / _SHARD
        if not path.is_file():
            raise MergeError(
                f"{output}: the shard of rank {rank} is not in {output.parent} as rank 0 sees it; "
                "all nodes must write to the same shared folder"
            )
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118  # it is not a mapping
                if name not in writer.finished:
                    writer.write(name, 0, shard.get_tensor(name))


def share_of(plan: MergePlan, ranks: Ranks) -> frozenset[str]:
    """Names of the tensors that this rank computes."""

    def cost(index: int) -> float:
        row = plan.rows[index]
        spectral = isinstance(row.method, SpectralMethod) and row.treatment is Treatment.METHOD
        # Factorising an m x n matrix takes about min(m, n) operations per entry, of which a core does many at once.
        shortest = min(row.spec.shape[0], row.spec.numel // row.spec.shape[0]) if spectral else 0
        return row.spec.numel * (1 + shortest / 16)

    return frozenset(plan.rows[index].name for index in ranks.mine(range(len(plan.rows)), cost))
