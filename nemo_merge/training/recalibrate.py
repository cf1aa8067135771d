r"""Estimates the running statistics of batch normalisation anew, from unlabelled audio.

The statistics in a checkpoint describe the activations of the model that was trained. A merged model has other weights
and so other activations, and no average of the experts' statistics need be right for them.

**What is estimated.** For every batch-normalisation layer, mean and variance of each channel of its input over all
frames of the audio, where all layers before it normalise by *their new statistics*, as they will when the model is
used: the "precise" statistics of Wu and Johnson (2021, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, section 3),
here with the whole sample as one batch. With the result in place, the inputs of every layer over this audio have
exactly the stored mean and variance. Frames count alike, whatever utterance they are in; the variance has Bessel's
correction, as in PyTorch.

**How.** Layers are done in the order of the forward pass. For each, every utterance is run up to that layer and no
further, so that L layers cost about L / 2 forward passes, and memory is that of one utterance per thread.

**Why not** :func:`torch.optim.swa_utils.update_bn`, which needs one pass only: it puts the whole model into training
mode (dropout, dither, SpecAugment), weighs batches alike rather than frames, takes the mean of the batches' variances
and so leaves out how their means differ, counts padding (a Conformer's convolution module sets padded frames to zero
and normalises them with the rest), and normalises every batch by its own statistics, so that the result depends on who
shares a batch with whom. Here nothing is padded, because utterances are run one by one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..errors import AudioError, CheckpointError, MergeError
from .audio import AudioSample, Piece, Source, read_audio
from .jobs import Job, Report

if TYPE_CHECKING:
    from torch import Tensor

MEAN, VARIANCE = "running_mean", "running_var"


@dataclass(frozen=True)
class RecalibrationJob(Job):
    """Models whose batch-normalisation statistics are estimated from the same audio.

    Attributes:
        models: ``.nemo`` files by name.
        pieces: what to listen to, as plain data (:class:`~nemo_merge.training.audio.Piece`).
        output: folder; the statistics go to ``<output>/<name>.safetensors``.
        names: statistics to estimate; the others stay as they are.
        device: ``cpu`` or ``cuda``.
        workers: threads on a CPU.
    """

    kind: ClassVar[str] = "recalibrate"

    models: Mapping[str, str | Path]
    pieces: Sequence[Mapping[str, Any]]
    output: str | Path
    names: Sequence[str] | None = None
    device: str = "cpu"
    workers: int = 1

    def run(self, report: Report) -> None:
        from safetensors.torch import save_file

        pieces = [Piece(**piece) for piece in self.pieces]
        Path(self.output).mkdir(parents=True, exist_ok=True)
        for name, path in self.models.items():
            found = _recalibrate(path, pieces, self.names, self.device, self.workers, report)
            save_file(found, Path(self.output) / f"{name}.safetensors")


def recalibrate(
    model: str | os.PathLike[str],
    audio: Source | AudioSample,
    *,
    seconds: float = 600.0,
    seed: int = 0,
    names: Collection[str] | None = None,
    device: str = "cpu",
    workers: int = 1,
    report: Report | None = None,
) -> dict[str, Tensor]:
    """Estimates the batch-normalisation statistics of a NeMo model from unlabelled audio; see this module's heading.

    Needs NeMo, and runs the encoder in evaluation mode, without gradients: no dropout, no dither, no SpecAugment. The
    decoder is not used, so that CTC, RNN-T, hybrid and attention models are all alike.

    Args:
        model: ``.nemo`` file; it is not changed.
        audio: manifest, cuts, folder or files, see :func:`~nemo_merge.training.audio.read_audio`.
        seconds: how much audio to draw.
        seed: of the draw.
        names: statistics to estimate (``running_mean`` and ``running_var`` of a layer go together); all by default.
        device: ``cpu`` or ``cuda``.
        workers: threads on a CPU; the result does not depend on them.
        report: called with a line per layer.

    Returns:
        ``running_mean`` and ``running_var`` of every layer, float32, shape [channels].

    Raises:
        AudioError: audio is missing, unreadable or too short.
        CheckpointError: not a NeMo model, or one without encoder or batch normalisation.
        MergeError: statistics are not finite.
    """
    sample = audio if isinstance(audio, AudioSample) else read_audio(audio, seconds=seconds, seed=seed)
    return _recalibrate(model, sample.pieces, names, device, workers, report)


def _recalibrate(
    path: str | os.PathLike[str],
    pieces: Sequence[Piece],
    names: Collection[str] | None,
    device: str,
    workers: int,
    report: Report | None,
) -> dict[str, Tensor]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # parallel sums would change in the last digit with the number of threads
    try:
        with torch.inference_mode():
            restored = _restore(Path(path), device)
            layers = _layers(restored, Path(path), names)
            inputs = _features(restored, pieces)
            with ThreadPoolExecutor(1 if device.startswith("cuda") else max(1, workers)) as pool:
                return _estimate(restored.encoder, layers, inputs, pool, Path(path), report)
    finally:
        torch.set_num_threads(before)


def _restore(path: Path, device: str) -> Any:
    from nemo.collections.asr.models import ASRModel

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        model = ASRModel.restore_from(str(path), map_location=device).eval()
    except Exception as error:  # NeMo has no error class of its own
        raise CheckpointError(f"{path}: NeMo cannot restore it ({type(error).__name__}: {error})") from error
    if not hasattr(model, "preprocessor") or not hasattr(model, "encoder"):
        raise CheckpointError(f"{path}: a {type(model).__name__} has no preprocessor and encoder to run audio through")
    return model


def _layers(model: Any, path: Path, names: Collection[str] | None) -> dict[str, Any]:
    """Batch-normalisation layers that keep statistics, by their names in the model."""
    from torch.nn.modules.batchnorm import _BatchNorm

    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
    if not found:
        raise CheckpointError(
            f"{path}: has no batch normalisation with running statistics; there is nothing to estimate"
        )
    if names is None:
        return found
    wanted = {name.rpartition(".")[0] for name in names}
    for name in sorted(wanted - found.keys()):
        raise CheckpointError(f"{path}: has no batch normalisation {name!r}")
    return {name: module for name, module in found.items() if name in wanted}


def _features(model: Any, pieces: Iterable[Piece]) -> list[Tensor]:
    """Features of every piece, [1, features, frames], without padding."""
    import torch

    rate = int(model.cfg.preprocessor.get("sample_rate", 16000))
    features = []
    for piece in pieces:
        signal = torch.from_numpy(_load(piece, rate)).to(model.device)
        computed, length = model.preprocessor(
            input_signal=signal[None], length=torch.tensor([len(signal)], device=model.device)
        )
        features.append(computed[:, :, : int(length[0])].cpu())
    return features


def _load(piece: Piece, rate: int) -> Any:
    """Samples of a piece: float32, one channel."""
    from lhotse import Recording
    from lhotse.serialization import deserialize_item

    shown = piece.path or (piece.cut or {}).get("id")
    try:
        whole = (
            Recording.from_file(piece.path).to_cut()
            if piece.path
            else deserialize_item(copy.deepcopy(dict(piece.cut or {})))
        )
        left = whole.duration - piece.start
        cut = whole.truncate(offset=piece.start, duration=min(piece.duration, left)) if left > 0 else None
        samples = cut.resample(rate).load_audio() if cut is not None else None
    except Exception as error:  # every audio backend has errors of its own
        raise AudioError(f"{shown}: cannot be read as audio ({type(error).__name__}: {error})") from error
    if samples is None or not samples.size:
        raise AudioError(f"{shown}: ends before {piece.start:.2f} s, where the manifest says that audio starts")
    return samples.mean(0, dtype="float32")


class _Sums(NamedTuple):
    """What one utterance adds to a layer's statistics: frames, and sums over them in float64, [channels]."""

    frames: int
    total: Tensor
    squares: Tensor


class _Reached(Exception):  # noqa: N818 - it ends a forward pass where its purpose is fulfilled
    """Carries the sums of a layer's input [batch, channels, ...]."""

    def __init__(self, layer_input: Tensor) -> None:
        flat = layer_input.double().transpose(0, 1).flatten(1)
        self.sums = _Sums(flat.shape[1], flat.sum(1), flat.square().sum(1))


def _estimate(
    encoder: Any,
    layers: Mapping[str, Any],
    inputs: Sequence[Tensor],
    pool: ThreadPoolExecutor,
    path: Path,
    report: Report | None,
) -> dict[str, Tensor]:
    import torch

    # The longest first, alone: encoders extend their tables of positions here and never again.
    order = _order(encoder, layers, max(inputs, key=lambda features: features.shape[-1]), path)
    found: dict[str, Tensor] = {}
    for number, name in enumerate(order, 1):
        layer = layers[name]
        with _hooked(layer, _stop):
            sums = list(pool.map(lambda features: _until_reached(encoder, features), inputs))
        # Added in the order of the source, whichever thread was first.
        count = sum(item.frames for item in sums)
        total = torch.stack([item.total for item in sums]).sum(0)
        squares = torch.stack([item.squares for item in sums]).sum(0)
        if count < 2:
            raise AudioError(f"{path}: one frame reaches {name!r}; give more audio")
        mean = total / count
        variance = (squares - count * mean.square()).clamp(min=0) / (count - 1)
        for key, value in ((MEAN, mean), (VARIANCE, variance)):
            if not value.isfinite().all():
                raise MergeError(
                    f"{path}: the audio gives values for '{name}.{key}' that are not finite; "
                    "the merged model is broken, use a smaller scale"
                )
            getattr(layer, key).copy_(value)
            found[f"{name}.{key}"] = getattr(layer, key).clone().cpu()
        if report is not None:
            report(f"batch normalisation {number} of {len(order)}: {name}, {count} frames")
    return found


def _order(encoder: Any, layers: Mapping[str, Any], features: Tensor, path: Path) -> list[str]:
    """Names of the layers in the order in which the encoder uses them."""
    order: list[str] = []
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(_hooked(layer, lambda module, args, name=name: order.append(name)))
        _forward(encoder, features)
    for name in layers:
        if order.count(name) != 1:
            raise CheckpointError(
                f"{path}: the encoder uses batch normalisation {name!r} {order.count(name)} times instead of once; "
                "its statistics cannot be estimated this way, use batch_norm=average"
            )
    return order


def _forward(encoder: Any, features: Tensor) -> None:
    import torch

    device = next(encoder.parameters()).device
    with torch.inference_mode():  # threads do not inherit it
        encoder(audio_signal=features.to(device), length=torch.tensor([features.shape[-1]], device=device))


def _until_reached(encoder: Any, features: Tensor) -> _Sums:
    try:
        _forward(encoder, features)
    except _Reached as reached:
        return reached.sums
    raise MergeError("an encoder took another way through its layers for other audio; use batch_norm=average")


def _stop(module: Any, args: tuple[Tensor, ...]) -> None:
    raise _Reached(args[0])


@contextmanager
def _hooked(module: Any, hook: Callable[..., Any]) -> Any:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def plain(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """Pieces as a job file holds them."""
    return [asdict(piece) for piece in pieces]
