"""Hidden layers of frozen upstreams in Lhotse's storage, so that the encoders run once and not in every epoch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError, ConfigError, OutputError

if TYPE_CHECKING:
    from lhotse import CutSet

ARRAYS, CUTS, ABOUT = "arrays", "cuts.jsonl.gz", "cache.json"
DTYPES = ("float32", "float16")

logger = logging.getLogger("nemo_merge")


def cache_features(
    preprocessor: Any,
    cuts: CutSet,
    folder: str | Path,
    *,
    max_duration: float = 120.0,
    dtype: str = "float32",
    overwrite: bool = False,
) -> CutSet:
    """Runs the encoders of a fused preprocessor over some cuts and keeps their hidden layers.

    Training with ``cache: FOLDER`` then takes them from there: an utterance is recognised by its samples, so any data
    loader will do, and audio that augmentation has changed is computed as before. Preprocessors that have only some of
    these encoders, in whatever order and behind whatever interface, can take theirs from the same folder. The cuts that
    are returned, and lie in the folder, have the layers of encoder ``i`` as the custom array ``upstream_i``, [frames,
    layers, dim], for data sets of one's own.

    A base model takes about 2 MB (float32) per second of audio: 13 x 768 x 50 x 4 bytes.

    Args:
        preprocessor: the :class:`~nemo_merge.fusion.FusedUpstreamPreprocessor`, on the device to compute on.
        cuts: of one channel; they are resampled to the preprocessor's rate.
        folder: where to put arrays, cuts and what tells whether a cache fits a preprocessor.
        max_duration: seconds of audio per batch.
        dtype: ``float32``, which training reads as it was computed, or ``float16`` in half the space.
        overwrite: whether a finished cache may be replaced.

    Returns:
        The cuts with their arrays.

    Raises:
        ConfigError: an encoder is trained, or Lhotse is not installed.
        AudioError: a cut has several channels or no samples.
        OutputError: there is a cache already.
    """
    try:
        from lhotse import CutSet
        from lhotse.dataset.sampling import SimpleCutSampler
        from lhotse.features.io import NumpyFilesWriter
        from lhotse.utils import fastcopy
    except ImportError as error:
        raise ConfigError("caching features needs Lhotse; pip install 'nemo-merge[lhotse]'") from error
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is none of {', '.join(DTYPES)}")
    _check_frozen(preprocessor)
    folder = Path(folder)
    if (folder / ABOUT).exists() and not overwrite:
        raise OutputError(f"{folder}: is a cache already; give overwrite=True or another folder")
    (folder / ABOUT).unlink(missing_ok=True)
    (folder / ARRAYS).mkdir(parents=True, exist_ok=True)
    device = next(preprocessor.fusion.parameters()).device
    stored: list[Any] = []
    with NumpyFilesWriter(folder / ARRAYS) as writer:
        rate = preprocessor._sample_rate
        for batch in SimpleCutSampler(cuts.resample(rate), max_duration=max_duration, shuffle=False):
            audio = [torch.from_numpy(samples_of(cut)) for cut in batch]
            lengths = torch.tensor([len(samples) for samples in audio])
            padded = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True)
            features, valid = preprocessor.compute(padded.to(device), lengths.to(device))
            for row, cut in enumerate(batch):
                digest = digest_of(audio[row])
                custom = {**(cut.custom or {}), "fusion_digest": digest}
                for index, layers in enumerate(features):
                    frames = int(valid[index][row])
                    array = torch.stack([layer[row, :, :frames].T for layer in layers], dim=1).cpu().numpy()
                    shift = preprocessor.upstreams[index].frame_shift
                    custom[f"upstream_{index}"] = writer.store_array(
                        f"{digest}-{index}", array.astype(dtype), frame_shift=shift, temporal_dim=0, start=cut.start
                    )
                stored.append(fastcopy(cut, custom=custom))
    result = CutSet.from_cuts(stored)
    result.to_file(folder / CUTS)
    about = {"fingerprints": [fingerprint(upstream) for upstream in preprocessor.upstreams], "dtype": dtype}
    beside = folder / f".{ABOUT}"
    beside.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, folder / ABOUT)
    return result


class FeatureCache:
    """A finished cache, looked up by the samples of an utterance.

    Raises:
        ConfigError: the folder is no finished cache, is of other encoders, or an encoder is trained.
    """

    def __init__(self, folder: Path, preprocessor: Any) -> None:
        if not (folder / ABOUT).is_file():
            raise ConfigError(f"cache={str(folder)!r}: no cache that is finished; see nemo_merge.fusion.cache_features")
        from lhotse import CutSet
        from lhotse.utils import fastcopy

        _check_frozen(preprocessor)
        self.folder, self._missed = folder, False
        cached = json.loads((folder / ABOUT).read_text(encoding="utf-8")).get("fingerprints", [])
        wanted = [fingerprint(upstream) for upstream in preprocessor.upstreams]
        if missing := [up.name for up, own in zip(preprocessor.upstreams, wanted, strict=True) if own not in cached]:
            raise ConfigError(
                f"cache={str(folder)!r}: has no layers of {missing[0]}; they are of other encoders, or were chosen "
                "differently: make it anew"
            )
        place = str(folder / ARRAYS)
        self._arrays: dict[str, list[Any]] = {
            cut.fusion_digest: [
                fastcopy(getattr(cut, f"upstream_{cached.index(own)}").array, storage_path=place) for own in wanted
            ]
            for cut in CutSet.from_file(folder / CUTS)
        }

    def hidden_layers(
        self, preprocessor: Any, audio: Tensor, lengths: Tensor
    ) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Those of a batch, as :meth:`FusedUpstreamPreprocessor.hidden_layers` gives them."""
        samples, ends = audio.detach().float().cpu(), lengths.tolist()
        found = [self._arrays.get(digest_of(row[:end])) for row, end in zip(samples, ends, strict=True)]
        missing = [index for index, arrays in enumerate(found) if arrays is None]
        if len(missing) == len(found):
            self._note(len(missing))
            return preprocessor.compute(audio, lengths)
        rows: list[list[Tensor]] = [
            [] if arrays is None else [torch.from_numpy(np.asarray(array.load(), np.float32)) for array in arrays]
            for arrays in found
        ]
        if missing:
            self._note(len(missing))
            longest = max(ends[index] for index in missing)
            layers, valid = preprocessor.compute(audio[missing, :longest], lengths[missing])
            for place, index in enumerate(missing):
                rows[index] = [
                    torch.stack([layer[place, :, : int(end[place])].T for layer in each], dim=1).cpu()
                    for each, end in zip(layers, valid, strict=True)
                ]
        features, frames = [], []
        for each in zip(*rows, strict=True):
            padded = torch.nn.utils.rnn.pad_sequence(list(each), batch_first=True).to(audio.device)
            features.append([layer.transpose(1, 2) for layer in padded.unbind(2)])
            frames.append(torch.tensor([len(array) for array in each], device=audio.device))
        return features, frames

    def _note(self, count: int) -> None:
        if not self._missed:
            self._missed = True
            logger.info("%s: %d utterances of a batch are not cached and are computed", self.folder, count)


def digest_of(samples: Tensor) -> str:
    """What an utterance is recognised by: its samples, bit by bit."""
    return hashlib.blake2b(samples.contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def fingerprint(upstream: Any) -> str:
    """Tells an encoder by its weights, the layers that are taken and the precision."""
    digest = hashlib.sha256(f"{upstream.layers} {upstream.options.precision}".encode())
    for name, value in upstream.state_dict().items():
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


def _check_frozen(preprocessor: Any) -> None:
    for upstream in preprocessor.upstreams:
        if upstream.options.train != "frozen":
            raise ConfigError(f"{upstream.name}: is trained (train={upstream.options.train}) and cannot be cached")


def samples_of(cut: Any) -> np.ndarray:
    """The samples of a cut of one channel."""
    try:
        samples = cut.load_audio()
    except Exception as error:  # Lhotse's own, OSError, RuntimeError and others, by what is wrong and who reads
        reason = (str(error).splitlines() or [""])[0]
        raise AudioError(f"cut {cut.id}: its audio cannot be read ({type(error).__name__}: {reason})") from error
    if samples.shape[0] != 1 or not samples.shape[1]:
        raise AudioError(f"cut {cut.id}: {list(samples.shape)} channels and samples; one channel of some is needed")
    return np.ascontiguousarray(samples[0], dtype=np.float32)
