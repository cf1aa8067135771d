"""Runs frozen encoders over speech once, for all models that will be trained and tested on their hidden layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .jobs import Job, Report


@dataclass(frozen=True)
class FeatureCacheJob(Job):
    """Hidden layers to keep; see :func:`nemo_merge.fusion.cache_features`.

    Attributes:
        upstreams: encoders, as for :class:`~nemo_merge.fusion.FusedUpstreamPreprocessor`.
        cuts: Lhotse cut manifests.
        output: folder for the layers of all of them.
        sample_rate: that the encoders hear.
        dtype: ``float32`` or ``float16``.
    """

    kind: ClassVar[str] = "feature_cache"

    upstreams: Sequence[Mapping[str, Any]]
    cuts: Sequence[str | Path]
    output: str | Path
    sample_rate: int = 16000
    dtype: str = "float32"

    def run(self, report: Report) -> None:
        import torch
        from lhotse import CutSet

        from ..fusion import FusedUpstreamPreprocessor, cache_features

        torch.set_num_threads(1)
        # Which interface stands on the encoders does not matter: a weighted sum has the fewest demands on them.
        fused = FusedUpstreamPreprocessor(self.upstreams, "ws", sample_rate=self.sample_rate).eval()
        cuts = CutSet.from_cuts(cut for path in self.cuts for cut in CutSet.from_file(path))
        with torch.inference_mode():
            made = cache_features(fused, cuts, self.output, dtype=self.dtype, overwrite=True)
        report(f"hidden layers of {len(self.upstreams)} encoders for {len(made)} utterances")
