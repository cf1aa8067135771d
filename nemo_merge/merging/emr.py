"""EMR's package: what brings each expert nearly back from base and unified task vector (arXiv 2405.17461)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import __version__
from ..checkpoints import RECORD, TensorSpec, check_output, open_checkpoint, writer_for
from ..checkpoints._safetensors import lay_out
from ..checkpoints._work import WorkFolder
from ..checkpoints._yaml import dump
from ..errors import CheckpointError, ConfigError, PlanError, did_you_mean
from ..methods.emr import unified
from .blocks import TensorBlocks, compute_dtype, sources
from .parallel import single_threaded_torch
from .plan import MergePlan, Row, Treatment

_FORMAT = "nemo_merge emr 1"
_STATISTICS = (Treatment.AVERAGE, Treatment.POOLED, Treatment.RECALIBRATED)


def package_path(output: Path) -> Path:
    """Where the package of a merged checkpoint stands: ``merged.nemo`` has ``merged.emr.safetensors`` beside it."""
    return output.with_name(output.name.removesuffix(".nemo") + ".emr.safetensors")


class EmrPackage:
    """Computes and writes the package of a merge by ``emr``; a context manager that leaves no trace without commit.

    It holds, for every tensor that the method merged, the unified task vector in float32 and one packed mask per
    expert (one bit per entry, first entry in the highest bit), one factor per expert, and each expert's own
    batch-normalisation statistics, which are no task vectors.
    """

    def __init__(self, path: Path, plan: MergePlan) -> None:
        merged = [row for row in plan.rows if row.treatment is Treatment.METHOD]
        statistics = [row for row in plan.rows if row.treatment in _STATISTICS]
        experts = len(plan.experts)
        specs = {"factors": TensorSpec((experts,), torch.float64)}
        for row in merged:
            specs[f"unified/{row.name}"] = TensorSpec(row.spec.shape, torch.float32)
            for expert in range(experts):
                specs[f"mask/{expert}/{row.name}"] = TensorSpec(((row.spec.numel + 7) // 8,), torch.uint8)
        for row in statistics:
            for expert in range(experts):
                specs[f"own/{expert}/{row.name}"] = row.spec
        about = {
            "format": _FORMAT,
            "nemo_merge": __version__,
            "experts": json.dumps([str(expert.path) for expert in plan.experts]),
        }
        self._work = WorkFolder(path)
        try:
            self._file = self._work.add(path.name, lay_out(specs, about))
            with single_threaded_torch():
                self._write(plan, merged, statistics)
        except BaseException:
            self._work.discard()
            raise

    def _write(self, plan: MergePlan, merged: list[Row], statistics: list[Row]) -> None:
        experts = len(plan.experts)
        own, kept = torch.zeros(experts, dtype=torch.float64), torch.zeros(experts, dtype=torch.float64)
        for row in merged:
            base, tensors = plan.template[row.name], sources(plan.template, plan.experts, row.name)
            weights = row.method.resolved_weights(experts)
            masks, position = [], 0
            for block in TensorBlocks(base, tensors, compute_dtype([base, *tensors])):
                common = unified(block.weighted(weights))
                deltas = block.deltas
                mask = deltas * common > 0
                masks.append(mask.flatten(1))
                self._file.write(f"unified/{row.name}", position, common.float())
                position += common.numel()
                # Means over each tensor are what is summed, so that a small tensor counts as much as a large one.
                own += deltas.abs().flatten(1).sum(1, dtype=torch.float64) / row.spec.numel
                kept += (mask * common.abs()).flatten(1).sum(1, dtype=torch.float64) / row.spec.numel
            for expert, mask in enumerate(torch.cat(masks, dim=1)):
                self._file.write(f"mask/{expert}/{row.name}", 0, _pack(mask))
        for row in statistics:
            for expert, checkpoint in enumerate(plan.experts):
                self._file.write(f"own/{expert}/{row.name}", 0, checkpoint[row.name])
        self._file.write("factors", 0, torch.where(kept > 0, own / torch.where(kept > 0, kept, 1), 1.0))

    def commit(self) -> None:
        """Gives the package its name."""
        self._work.publish_file(self._file.path.name)

    def __enter__(self) -> EmrPackage:
        return self

    def __exit__(self, *_: object) -> None:
        self._work.discard()


def apply_emr(
    package: str | os.PathLike[str],
    base: str | os.PathLike[str],
    expert: int | str,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Makes the model of one domain from a package: ``base + factor * unified * mask`` of that expert.

    Args:
        package: ``*.emr.safetensors`` as a merge by ``emr`` leaves it.
        base: the base of that merge.
        expert: number of the expert, from 0, or its path or file name without suffix.
        output: the checkpoint to write, in the base's format.
        overwrite: replace an output that exists.

    Returns:
        The output.

    Raises:
        CheckpointError: the package cannot be read or is none.
        ConfigError: there is no such expert.
        PlanError: the package does not belong to this base.
        OutputError: the output exists or cannot be written.
    """
    target, path = Path(output), Path(package)
    check_output(target, overwrite)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file ({error})") from error
    with handle as stored, open_checkpoint(os.fspath(base)) as checkpoint:
        about = stored.metadata() or {}
        if about.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: not a package of a merge by emr; pass OUTPUT.emr.safetensors")
        index = _expert(expert, about, path)
        names = set(stored.keys())
        unknown = [name for name in names if "/" in name and _tensor(name) not in checkpoint.specs]
        wrong = [
            name
            for name in names
            if name.startswith("unified/")
            and _tensor(name) in checkpoint.specs
            and tuple(stored.get_slice(name).get_shape()) != checkpoint.specs[_tensor(name)].shape
        ]
        if unknown or wrong:
            raise PlanError([f"{path}: tensor {_tensor((unknown + wrong)[0])!r} does not fit {checkpoint.path}"])
        factor = float(stored.get_tensor("factors")[index])
        specs = {name: spec for name, spec in checkpoint.specs.items() if name not in checkpoint.ties}
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        record = {
            "nemo_merge": __version__,
            "base": {"path": str(checkpoint.path), "format": checkpoint.format, "sha256": checkpoint.sha256()},
            "emr": {
                "package": str(path),
                "sha256": digest,
                "experts": json.loads(about["experts"]),
                "expert": index,
                "factor": factor,
            },
        }
        with writer_for(checkpoint, [], target, specs, record, overwrite=overwrite) as writer, single_threaded_torch():
            for name, spec in specs.items():
                values = checkpoint[name]
                if f"unified/{name}" in names:
                    common = stored.get_tensor(f"unified/{name}")
                    mask = _unpack(stored.get_tensor(f"mask/{index}/{name}"), spec.numel).view(spec.shape)
                    values = (values.to(compute_dtype([values])) + factor * common * mask).to(spec.dtype)
                elif f"own/{index}/{name}" in names:
                    values = stored.get_tensor(f"own/{index}/{name}").to(spec.dtype)
                if name not in writer.finished:
                    writer.write(name, 0, values)
            writer.commit({RECORD: dump(record)})
    return target


def _expert(expert: int | str, about: Mapping[str, str], path: Path) -> int:
    paths = json.loads(about["experts"])
    known = {name: index for index, full in enumerate(paths) for name in (str(index), full, Path(full).stem)}
    if str(expert) not in known:
        raise ConfigError(f"{path}: holds no expert {str(expert)!r}{did_you_mean(str(expert), known)}")
    return known[str(expert)]


def _tensor(name: str) -> str:
    kind, _, rest = name.partition("/")
    return rest if kind == "unified" else rest.partition("/")[2]


def _pack(mask: Bool[Tensor, " entries"]) -> UInt8[Tensor, " bytes"]:
    return torch.from_numpy(np.packbits(mask.numpy(force=True)))


def _unpack(packed: UInt8[Tensor, " bytes"], count: int) -> Float[Tensor, " entries"]:
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count)).to(torch.float32)
