"""Makes expert packs: what an expert changes of its base, as low rank plus sparse, in a fraction of its size."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..checkpoints import AdaptedCheckpoint, Checkpoint, TensorSpec, check_output
from ..checkpoints._nemo_config import packed_files
from ..checkpoints._safetensors import lay_out
from ..checkpoints._single_file import SingleFileWriter
from ..checkpoints.pack import ARTEFACT, PACK, PACK_SUFFIX, VERSION, added, mask_of
from ..errors import ConfigError, PlanError, did_you_mean
from ..linalg import randomised_svd, thin_svd
from ..methods._selection import largest_in
from ..vocabulary import Vocabulary, tables_of
from .checks import compare_headers
from .inputs import Source, check_unchanged, fingerprints, name_of, open_inputs
from .parallel import in_threads
from .plan import DTYPES
from .provenance import source_of

logger = logging.getLogger("nemo_merge")

_BITS = 1 / 32
"""Share of entries above which one bit per entry takes less than a place of 32 bits per kept entry."""


@dataclass(frozen=True)
class PackOptions:
    """How much of an expert a pack keeps.

    Attributes:
        rank: number of singular triplets of every matrix; by default by ``rank_fraction`` or ``energy``.
        rank_fraction: the same as a share of the shorter side, at least 1.
        energy: the same as the share of the squared norm that the triplets must hold.
        keep: share of the entries of what the triplets leave over; 1 holds every tensor whole, without any loss.
        dtype: type of factors and entries: ``bfloat16``, ``float16`` or ``float32``. Tensors that are held whole keep
            their own.

    Raises:
        ConfigError: a value out of range.
    """

    rank: int | None = None
    rank_fraction: float = 0.01
    energy: float | None = None
    keep: float = 0.2
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 0):
            raise ConfigError(f"rank={self.rank!r} is not a number of singular triplets, 0 or more")
        if self.rank is not None and self.energy is not None:
            raise ConfigError("rank and energy both say how many singular triplets to keep; leave one of them out")
        for name in ("rank_fraction", "energy", "keep"):
            value = getattr(self, name)
            if value is None and name == "energy":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ConfigError(f"{name}={value!r} is not a share between 0 and 1")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} does not exist{did_you_mean(str(self.dtype), _DTYPES)}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> PackOptions:
        """The options by name; one that does not exist is a ConfigError too."""
        known = cls.__dataclass_fields__
        for key in options:
            if key not in known:
                raise ConfigError(f"there is no option {key!r}{did_you_mean(key, known)}")
        return cls(**options)

    def settings(self) -> dict[str, Any]:
        """For the header of the pack: what has an effect."""
        if self.keep == 1:
            return {"keep": 1.0}
        said = asdict(self)
        way = "rank" if self.rank is not None else "energy" if self.energy is not None else "rank_fraction"
        return {way: said[way], "keep": float(self.keep), "dtype": self.dtype}


_DTYPES = {name: dtype for name, dtype in DTYPES.items() if name != "float64"}


@dataclass(frozen=True)
class PackReport:
    """What was packed.

    Attributes:
        output: the pack.
        name: the expert's name.
        size: bytes of the pack.
        expert_size: bytes of the expert's tensors.
        error: Frobenius norm of what the pack lost of the expert's change, relative to that change.
    """

    output: Path
    name: str
    size: int
    expert_size: int
    error: float

    def __str__(self) -> str:
        lost = f"loses {self.error:.2%} of its change" if self.error else "loses nothing"
        return (
            f"{self.output}: {self.name} packed into {self.size / 1e6:.1f} MB, {self.size / self.expert_size:.1%} of "
            f"the expert; {lost}"
        )


def pack(
    expert: Source,
    base: Source,
    output: str | os.PathLike[str],
    *,
    name: str | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    **options: Any,
) -> PackReport:
    """Packs an expert: the change of every matrix as low rank plus its largest other entries, everything else whole.

    The form is that of LoRS-Merging (Zhao et al., 2025, arXiv 2502.17380, section 3), here for storage: a pack is
    opened wherever an expert is, with its base beside it. Factors are rounded before the entries are chosen, so that
    these make up for the rounding too. A tensor that would not get smaller is held whole. The pack is in memory until
    it is written.

    Example:
        >>> pack("pt.nemo", "base.nemo", "packs/pt.pack.safetensors", rank=16, keep=0.1)  # doctest: +SKIP

    Args:
        expert: the fine-tuned model.
        base: the model that it was trained from.
        output: the pack, by custom ``NAME.pack.safetensors``.
        name: the expert's name; by default that of its file.
        overwrite: replace an output that exists.
        workers: threads; the number of cores by default.
        **options: those of :class:`PackOptions`.

    Raises:
        CheckpointError: an input cannot be read.
        PlanError: the two are not base and expert, or the expert is an adapter, which is small already.
        ConfigError: an option that does not exist, or a value out of range.
        OutputError: the output exists or cannot be written.
    """
    chosen, target = PackOptions.of(options), Path(output)
    if not target.name.endswith(".safetensors"):
        raise ConfigError(f"{target}: a pack is a safetensors file; choose an output that ends in {PACK_SUFFIX}")
    check_output(target, overwrite)
    with ExitStack() as stack:
        template, (opened,) = open_inputs(base, [expert], stack)
        assert template is not None
        inputs = [opened, template]
        before = fingerprints(inputs)
        if isinstance(opened, AdaptedCheckpoint) or template.added:
            raise PlanError([f"{opened.path}: is an adapter or a pack, small already; keep it as it is"])
        vocabulary = _other_vocabulary(template, opened)
        tables = _tables(opened, vocabulary)
        problems: list[str] = []
        compare_headers(template, [opened], problems, [], tables)
        if problems:
            raise PlanError(problems)
        names = [key for key in template.specs if key not in template.ties]

        def encode(place: int) -> _Encoded:
            key = names[place]
            return _encode(key, template[key], opened[key], chosen, whole=key in tables)

        encoded = in_threads(len(names), encode, lambda place: -template.specs[names[place]].nbytes, workers)
        tensors = {
            f"{key}/{part}": tensor
            for key, found in zip(names, encoded, strict=True)
            for part, tensor in found.parts.items()
        }
        total = sum(found.total for found in encoded)
        error = (sum(found.lost for found in encoded) / total) ** 0.5 if total else 0.0
        about: dict[str, Any] = {
            "version": VERSION,
            "name": name or name_of(opened.path),
            "base": {"path": str(template.path), "sha256": template.sha256()},
            "expert": {**_reference(opened), "sha256": opened.sha256()},
            "settings": chosen.settings(),
            "error": error,
        }
        if vocabulary is not None:
            about |= {
                "vocabulary": {"kind": vocabulary.kind, "tokens": vocabulary.tokens, "rules": vocabulary.rules},
                "config": {**opened.metadata.config},
                "tokenizers": dict(opened.metadata.tokenizers),
            }
            for file in sorted(packed_files(opened.metadata.config)):
                data = torch.frombuffer(bytearray(opened.artefact(file)), dtype=torch.uint8)
                tensors[f"{ARTEFACT}/{file}"] = data
        check_unchanged(inputs, before)
        _write(target, tensors, about, overwrite)
        full = sum(opened.specs[key].nbytes for key in names)
    return PackReport(target, about["name"], target.stat().st_size, full, error)


@dataclass(frozen=True)
class _Encoded:
    """The parts of one tensor; none if the expert did not change it. ``lost`` and ``total`` are squared norms."""

    parts: dict[str, Tensor]
    lost: float = 0.0
    total: float = 0.0


def _encode(
    name: str, base: Shaped[Tensor, "..."], expert: Shaped[Tensor, "..."], options: PackOptions, *, whole: bool
) -> _Encoded:
    if base.shape == expert.shape and torch.equal(base.to(expert), expert):
        return _Encoded({})
    kept_whole = {"whole": expert.contiguous()}
    if whole or not expert.dtype.is_floating_point:
        return _Encoded(kept_whole)  # rows of other tokens, counters: no change that could be measured
    change = expert.double() - base.double()
    total = float(change.square().sum())
    if not total < float("inf"):
        raise PlanError([f"tensor {name!r} of expert or base holds NaN or infinite values; this model is broken"])
    if expert.dim() < 2 or options.keep == 1:
        return _Encoded(kept_whole, 0.0, total)
    parts = _compress(change, options)
    if sum(part.nbytes for part in parts.values()) >= expert.nbytes:
        return _Encoded(kept_whole, 0.0, total)
    lost = float((change - added(parts, tuple(change.shape))).square().sum())
    if not lost < float("inf"):
        raise ConfigError(f"tensor {name!r}: its change does not fit into {options.dtype}; pack with dtype=bfloat16")
    return _Encoded(parts, lost, total)


def _compress(change: Float[Tensor, "rows *columns"], options: PackOptions) -> dict[str, Tensor]:
    """Low rank, then the largest entries of the rest; empty where nothing is to be kept."""
    matrix = change.flatten(1)
    dtype = _DTYPES[options.dtype]
    parts: dict[str, Tensor] = {}
    left, right = _factors(matrix, options)
    rest = matrix
    if left.shape[1]:
        parts = {"left": left.to(dtype), "right": right.to(dtype).contiguous()}
        rest = matrix - parts["left"].double() @ parts["right"].double()
    count = int(options.keep * rest.numel() + 1e-9)
    if count:
        kept = largest_in(rest.abs(), count)
        parts["values"] = rest[kept].to(dtype)
        if options.keep > _BITS or rest.numel() >= 1 << 31:
            parts["mask"] = mask_of(kept)
        else:
            parts["index"] = kept.flatten().nonzero().flatten().int()
    return parts


def _factors(matrix: Float[Tensor, "rows columns"], options: PackOptions) -> tuple[Tensor, Tensor]:
    """The leading singular triplets, shared evenly between two factors."""
    short = min(matrix.shape)
    if options.energy is not None:
        u, s, vt = thin_svd(matrix)
        squares = s.square().cumsum(0)
        rank = int((squares < options.energy * squares[-1]).sum()) + 1 if options.energy else 0
        rank = min(rank, short)
    else:
        share = max(1, int(options.rank_fraction * short + 1e-9)) if options.rank_fraction else 0
        rank = min(share if options.rank is None else options.rank, short)
        found = randomised_svd(matrix, rank) if rank > 0 and 8 * (rank + 8) <= short else None
        u, s, vt = found if found is not None else thin_svd(matrix, max(rank, 1))
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]


def _other_vocabulary(base: Checkpoint, expert: Checkpoint) -> Vocabulary | None:
    """The expert's tokens where they are not the base's."""
    if base.metadata.tokenizers == expert.metadata.tokenizers or not expert.metadata.tokenizers:
        return None
    return expert.vocabulary()


def _tables(expert: Checkpoint, vocabulary: Vocabulary | None) -> Collection[str]:
    """Tensors with one row per token, which are held whole where the tokens differ."""
    if vocabulary is None:
        return ()
    try:
        shapes = {name: spec.shape for name, spec in expert.specs.items()}
        return frozenset(tables_of(shapes, len(vocabulary), expert.metadata.config))
    except ValueError as error:
        raise PlanError([f"{expert.path}: its rows cannot be told apart by token: {error}"]) from error


def _reference(expert: Checkpoint) -> dict[str, Any]:
    """How to find and open the expert again."""
    source = source_of({"path": str(expert.path), **expert.details})
    return {"format": expert.format, **(source if isinstance(source, dict) else {"path": source})}


def _write(target: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], overwrite: bool) -> None:
    specs = {key: TensorSpec(tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}
    if not specs:
        raise PlanError([f"{about['expert']['path']}: does not differ from {about['base']['path']}"])
    layout = lay_out(specs, {"format": "pt", PACK: json.dumps(about, ensure_ascii=False, sort_keys=True)})
    with SingleFileWriter(target, layout, about, overwrite=overwrite) as writer:
        for key, tensor in tensors.items():
            if key not in writer.finished:
                writer.write(key, 0, tensor.contiguous())
        writer.commit()
