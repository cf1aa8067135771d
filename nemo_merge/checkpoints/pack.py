"""Expert packs: an expert as low-rank and sparse changes of its base, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..errors import CheckpointError, PlanError
from ..low_rank import LowRank
from ..vocabulary import Token, Vocabulary
from ._adapted import AdaptedCheckpoint
from ._changes import Change, replaced
from ._checkpoint import Checkpoint, Metadata, TensorSpec, Writer
from .safetensors_file import SafetensorsCheckpoint

PACK, VERSION = "nemo_merge_pack", 1
"""Key of the header's metadata that makes a safetensors file a pack, and the version of its layout."""

PACK_SUFFIX = ".pack.safetensors"
ARTEFACT = "artefact"
_WHOLE, _FACTORS = {"whole"}, {"left", "right"}
_SPARSE = ({"values", "mask"}, {"values", "index"})
_FORMS = (_WHOLE, _FACTORS, *_SPARSE, *(_FACTORS | sparse for sparse in _SPARSE))
_PARTS = frozenset().union(*_FORMS)


class PackCheckpoint(Checkpoint):
    """A pack; alone it has no weights of a model, see :meth:`bind`.

    A tensor ``NAME`` of the expert is held as

    - ``NAME/whole``: its values, in a type and (for rows of other tokens) a shape of their own; or
    - ``NAME/left`` and ``NAME/right``: factors of a matrix that is added to the base's tensor, and/or
    - ``NAME/values`` with ``NAME/mask`` (one bit per entry, the first in the highest bit) or ``NAME/index`` (flat
      places, ascending): entries that are added to it.

    What is not named is the base's. ``artefact/FILE`` holds tokenizer files of an expert whose tokens are not the
    base's. The rest is JSON under ``nemo_merge_pack`` in the header: the base's and the expert's SHA-256, how it was
    packed, what that lost, and the expert's tokens and configuration where the tokens differ.

    Raises:
        CheckpointError: damaged, of a later version, or parts that do not belong together.
    """

    format = "pack"

    def __init__(self, path: str | Path, file: SafetensorsCheckpoint | None = None) -> None:
        self.path = Path(path)
        self._file = file or SafetensorsCheckpoint(self.path)
        self.about = read_about(self.path, self._file.file_metadata)
        self.specs, self.ties = self._file.specs, {}
        self.own_vocabulary = self._read_vocabulary()
        self.forms: dict[str, set[str]] = {}
        for key in self.specs:
            name, _, part = key.rpartition("/")
            if name == ARTEFACT:
                continue
            if part not in _PARTS or not name:
                raise CheckpointError(f"{self.path}: tensor {key!r} is no part of a pack")
            self.forms.setdefault(name, set()).add(part)
        for name, parts in self.forms.items():
            if parts not in _FORMS:
                raise CheckpointError(
                    f"{self.path}: holds {', '.join(sorted(parts))} of tensor {name!r}, which do not make a change"
                )
        told = ", ".join(f"{key} {value}" for key, value in self.about["settings"].items())
        lacks = f"lacks {self.about['error']:.1%} of its change" if self.about["error"] else "lacks nothing"
        self.metadata = Metadata("pack", f"of {self.about['expert']['path']} ({told}; {lacks})", self._summary)

    def __getitem__(self, name: str) -> Tensor:
        return self._file[name]

    @property
    def details(self) -> Mapping[str, Any]:
        return {"pack": self._summary}

    @property
    def _summary(self) -> dict[str, Any]:
        return {key: self.about[key] for key in ("name", "expert", "error", "settings") if key in self.about}

    def artefact(self, name: str) -> bytes:
        key = f"{ARTEFACT}/{name}"
        if key not in self.specs or self.specs[key].dtype != torch.uint8:
            raise CheckpointError(f"{self.path}: has no packed file {name!r}")
        return self[key].flatten().numpy().tobytes()

    def close(self) -> None:
        self._file.close()

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        raise PlanError([f"{self.path}: a pack cannot be what a merge starts from; pass its base model as base="])

    def bind(self, base: Checkpoint) -> PackedExpert:
        """The expert that base and pack make.

        Args:
            base: the model that the expert was trained from.

        Raises:
            CheckpointError: another base, or a tensor that has no place in it.
        """
        wanted, found = self.about["base"], sorted(base.sha256().values())
        if sorted(wanted["sha256"].values()) != found:
            raise CheckpointError(
                f"{self.path}: is a pack of a model trained from {wanted['path']} (sha256 {short(wanted['sha256'])}), "
                f"which {base.path} (sha256 {found[0][:16] if found else 'none'}) is not; pass the base that it was "
                "made with"
            )
        return PackedExpert(base, self, {name: self._change(name, base) for name in self.forms})

    def _change(self, name: str, base: Checkpoint) -> Change:
        """What the pack does to one tensor; everything that the header tells is checked."""
        spec = base.specs.get(name)
        if spec is None or name in base.ties:
            raise CheckpointError(f"{self.path}: changes tensor {name!r}, which {base.path} does not have")
        parts = {part: self.specs[f"{name}/{part}"] for part in self.forms[name]}
        if "whole" in parts:
            rows_free = self.own_vocabulary is not None and bool(spec.shape)
            shape, wanted = parts["whole"].shape, spec.shape
            if shape != wanted and not (rows_free and shape[1:] == wanted[1:] and len(shape) == len(wanted)):
                raise self._misfit(name, "whole", shape, wanted)
            return replaced(self[f"{name}/whole"])
        if not spec.dtype.is_floating_point:
            raise CheckpointError(f"{self.path}: adds to tensor {name!r}, which is {spec.dtype} in {base.path}")
        for part in parts.keys() - {"mask", "index"}:
            if not parts[part].dtype.is_floating_point:
                raise CheckpointError(f"{self.path}: {name}/{part} is {parts[part].dtype}, not floating-point")
        if "left" in parts:
            left, right = parts["left"].shape, parts["right"].shape
            rows = spec.shape[0] if spec.shape else 1
            columns = spec.numel // rows if rows else 0
            if len(left) != 2 or left != (rows, right[0] if right else -1) or right != (left[1], columns):
                raise self._misfit(name, "left and right", (*left, *right), (rows, "rank", "rank", columns))
        if "values" in parts:
            place = "mask" if "mask" in parts else "index"
            count = parts["values"].numel
            length = -(-spec.numel // 8) if place == "mask" else count
            kind = torch.uint8 if place == "mask" else torch.int32
            if parts["values"].shape != (count,) or parts[place] != TensorSpec((length,), kind):
                raise self._misfit(name, place, parts[place].shape, (length,))

        def factors() -> LowRank:
            left, right = self[f"{name}/left"].double(), self[f"{name}/right"].double()
            return LowRank(left, right)

        def apply(tensor: Tensor) -> Tensor:
            moved = tensor.double()
            if "left" in parts:
                moved = moved + factors().to(tensor.device).rows().view(moved.shape)
            if "values" in parts:
                places = self._places(name, spec.numel).to(tensor.device)
                values = self[f"{name}/values"].to(tensor.device).double()
                moved = moved.reshape(-1).index_add(0, places, values).view(moved.shape)
            return moved

        return Change("pack", apply, factors if "values" not in parts else None)

    def _places(self, name: str, numel: int) -> Int[Tensor, " entries"]:
        """Flat places of the sparse entries of a tensor with so many entries.

        Raises:
            CheckpointError: more or fewer than there are values, out of range, or not ascending.
        """
        count = self.specs[f"{name}/values"].numel
        if "mask" in self.forms[name]:
            places = places_of(self[f"{name}/mask"])
        else:
            places = self[f"{name}/index"].long()
            if bool((places[1:] <= places[:-1]).any()):
                raise CheckpointError(f"{self.path}: {name}/index is not ascending; the pack is damaged")
        if len(places) != count or (count and not 0 <= int(places[0]) <= int(places[-1]) < numel):
            raise CheckpointError(
                f"{self.path}: the places of {name}/values are not {count} of the {numel} entries of {name!r}; the "
                "pack is damaged"
            )
        return places

    def _misfit(self, name: str, part: str, found: Any, wanted: Any) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {part} of tensor {name!r} has the shape {list(found)} instead of {list(wanted)}; is the "
            "pack of this base?"
        )

    def _read_vocabulary(self) -> Vocabulary | None:
        told = self.about.get("vocabulary")
        if told is None:
            return None
        try:
            tokens = tuple(Token(str(language), str(text)) for language, text in told["tokens"])
            rules = {str(key): {str(a): str(b) for a, b in value.items()} for key, value in told["rules"].items()}
            return Vocabulary(str(told["kind"]), tokens, rules)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{self.path}: its list of tokens is damaged ({error})") from error


class PackedExpert(AdaptedCheckpoint):
    """An expert made of its base and a pack.

    Changed tensors are computed in float64 when they are read and rounded once; those that are held whole have the
    expert's own values and type.
    """

    format = "pack"
    adapter: PackCheckpoint

    def __init__(self, base: Checkpoint, pack: PackCheckpoint, changes: Mapping[str, Change]) -> None:
        super().__init__(base, pack, changes)
        if pack.own_vocabulary is not None:
            about = pack.about
            self.metadata = replace(self.metadata, config=about["config"], tokenizers=about["tokenizers"])

    def __getitem__(self, name: str) -> Tensor:
        owner = self.ties.get(name, name)
        return self.adapter[f"{owner}/whole"] if self._whole(owner) else super().__getitem__(name)

    def vocabulary(self) -> Vocabulary | None:
        return self.adapter.own_vocabulary or self.base.vocabulary()

    def artefact(self, name: str) -> bytes:
        return self.adapter.artefact(name) if f"{ARTEFACT}/{name}" in self.adapter.specs else self.base.artefact(name)

    def _whole(self, owner: str) -> bool:
        return "whole" in self.adapter.forms.get(owner, ())

    def _spec(self, name: str, spec: TensorSpec) -> TensorSpec:
        owner = self.ties.get(name, name)
        return self.adapter.specs[f"{owner}/whole"] if self._whole(owner) else super()._spec(name, spec)


def read_about(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the header of a pack says.

    Raises:
        CheckpointError: damaged, or of a later version.
    """
    try:
        about = json.loads(metadata[PACK])
        version = about["version"]
        if version == VERSION:
            for place in ("base", "expert"):
                digests = about[place]["sha256"]
                if not isinstance(about[place]["path"], str) or not all(map(_is_text, [*digests, *digests.values()])):
                    raise ValueError(f"{place} is not described")
            about["error"] = float(about["error"])
            if not _is_text(about["name"]) or not isinstance(about["settings"], dict):
                raise ValueError("name or settings are missing")
            if "vocabulary" in about and not all(isinstance(about[key], dict) for key in ("config", "tokenizers")):
                raise ValueError("configuration or tokenizers are missing")
            return about
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not that of a pack ({error}); fetch it again") from error
    raise CheckpointError(f"{path}: is a pack of version {version!r}, this nemo_merge reads version {VERSION}; update")


def mask_of(kept: Tensor) -> UInt8[Tensor, " bytes"]:
    """One bit per entry, the first in the highest bit."""
    return torch.from_numpy(np.packbits(kept.reshape(-1).numpy()))


def places_of(mask: UInt8[Tensor, " bytes"]) -> Int[Tensor, " entries"]:
    """The places of the bits that are set."""
    return torch.from_numpy(np.flatnonzero(np.unpackbits(mask.numpy())))


def added(parts: Mapping[str, Float[Tensor, "..."]], shape: tuple[int, ...]) -> Float[Tensor, "*shape"]:
    """What parts other than ``whole`` add to a tensor of this shape, in float64."""
    total = torch.zeros(shape, dtype=torch.float64)
    if "left" in parts:
        total += (parts["left"].double() @ parts["right"].double()).view(shape)
    if "values" in parts:
        places = places_of(parts["mask"]) if "mask" in parts else parts["index"].long()
        total.view(-1)[places] += parts["values"].double()
    return total


def short(digests: Mapping[str, str]) -> str:
    """The beginning of the first digest, for messages."""
    return next(iter(digests.values()), "?")[:16]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
