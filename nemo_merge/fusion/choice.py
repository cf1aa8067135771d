"""Chooses upstreams before anything is trained: what each one's layers tell, and what a second one adds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import AudioError, ConfigError
from ..scoring.error_rates import ErrorCounts
from ..scoring.significance import Interval, bootstrap_interval
from .alignment import Resampling, resample
from .cache import samples_of
from .choice_data import batches, draw, folds_of, read_cuts
from .choice_report import PairScore, UpstreamComparison, UpstreamScore, check_drawing, write
from .layer_interface import whole_number
from .probing import held_out, kernel
from .similarity import LayerSimilarity
from .sources import build, describe, load, plain, upstreams_at
from .upstream import Upstream
from .upstream_fusion import common_frame_shift

if TYPE_CHECKING:
    from lhotse import CutSet

MOST_BYTES = 4 << 30
"""Memory for the sums behind CKA."""
REPLICATIONS = 2000


def compare_upstreams(
    upstreams: Any,
    cuts: CutSet | str | Path,
    output: str | Path | None = None,
    *,
    label: str | Callable[[Any], Hashable] = "language",
    layers: int | Sequence[int] | None = None,
    seconds: float = 600.0,
    frames: int = 4096,
    seed: int = 0,
) -> UpstreamComparison:
    """Scores encoders, and pairs of them, on a little audio.

    Every encoder hears the same utterances; its layers are normalised as fusion normalises them and brought to the
    frame rate of the slowest encoder. Then

    - *similarity*: linear CKA between all layers of all encoders, without bias (:class:`LayerSimilarity`);
    - *probes*: how often a ridge classifier names the label of an utterance from the mean of its frames, in
      cross-validation, from each layer, from all layers of an encoder, and from all layers of two.

    Where the label is not the speaker and every class has speakers enough, no speaker is in two folds, so that a
    language is not recognised by who speaks it; intervals then resample speakers, otherwise utterances.

    Args:
        upstreams: a :class:`~nemo_merge.fusion.FusedUpstreamPreprocessor` (its cache is used), or a list of encoders:
            :class:`~nemo_merge.fusion.Upstream`, NeMo models, mappings as in its ``upstreams``, or paths and names as
            of :func:`~nemo_merge.fusion.sources.upstreams_at`.
        cuts: Lhotse cuts of one channel, or their file.
        output: a folder for ``choice.json``, ``choice.md`` and ``choice.png``.
        label: what probes tell apart: a field of the supervisions (``language``, ``speaker``), a custom field of
            supervisions or cuts (``domain``), or a function of a cut.
        layers: which of each encoder's hidden layers; a number takes so many, spread evenly
            from the last on. All by default.
        seconds: audio to hear; utterances are drawn at random, from each class in turn.
        frames: about how many frames CKA is computed on, evenly spaced over all.
        seed: of the draw, the folds and the bootstrap.

    Returns:
        The scores; ``ranking`` has the pairs, the best first.

    Raises:
        ConfigError: an argument is wrong, an encoder's layers are not finite, encoders hear other sample rates, or
            an optional package is missing.
        CorpusError: utterances have no label, or the labels do not suffice.
        AudioError: there is no audio, or it is too short.
    """
    if output is not None:
        check_drawing()
    whole_number("frames", frames)
    if not seconds > 0:
        raise ConfigError(f"seconds={seconds!r} is not above 0")
    drawn, labels = draw(read_cuts(cuts), label, seconds, seed)
    modules, hear = _encoders(upstreams)
    if len({module.sample_rate for module in modules}) > 1:
        heard = ", ".join(f"{module.name}: {module.sample_rate} Hz" for module in modules)
        raise ConfigError(f"encoders hear other sample rates and cannot be fused ({heard})")
    chosen = [_chosen(layers, module) for module in modules]
    widths = [module.dim for module, own in zip(modules, chosen, strict=True) for _ in own]
    if (needed := LayerSimilarity.bytes_needed(widths)) > MOST_BYTES:
        raise ConfigError(
            f"CKA between {len(widths)} layers needs {needed / 2**30:.1f} GiB, and {MOST_BYTES >> 30} is the limit; "
            f"take fewer, for example layers={max(1, int(max(map(len, chosen)) * (MOST_BYTES / needed) ** 0.5))}"
        )
    shift = common_frame_shift("min", [module.frame_shift for module in modules])
    stride = max(1, int(sum(cut.duration for cut in drawn) / shift / frames))
    similarity = LayerSimilarity(widths)
    pooled: list[list[Tensor]] = [[] for _ in widths]
    with _evaluating(modules):
        for batch, mask, aligned in _heard(drawn, modules, hear, chosen, shift):
            times = torch.arange(mask.shape[1], device=mask.device)
            kept = mask & (times % stride == stride // 2)
            similarity.add([layer[kept] for layer in aligned])
            count = mask.sum(1, keepdim=True)
            for index, layer in enumerate(aligned):
                mean = layer.masked_fill(~mask[:, :, None], 0.0).sum(1) / count
                if not bool(mean.isfinite().all()):
                    row = int((~mean.isfinite()).any(1).nonzero()[0])
                    raise _not_finite(modules, chosen, index, batch[row].id)
                pooled[index].append(mean.cpu())
    if similarity.frames < 4:
        raise AudioError(f"{similarity.frames} frames of {len(drawn)} cuts; CKA needs 4 or more: give more audio")
    report = _score(modules, chosen, similarity, [torch.cat(each) for each in pooled], drawn, labels, label, seed)
    if output is not None:
        write(report, Path(output))
    return report


def _score(
    modules: Sequence[Upstream],
    chosen: Sequence[Sequence[int]],
    similarity: LayerSimilarity,
    pooled: Sequence[Tensor],
    cuts: Sequence[Any],
    labels: Sequence[Hashable],
    label: Any,
    seed: int,
) -> UpstreamComparison:
    names = _names(modules)
    known = sorted(set(labels), key=str)
    classes = np.array([known.index(item) for item in labels])
    folds, groups = folds_of(cuts, labels, label, seed)

    def interval(right: np.ndarray, baseline: np.ndarray | None = None) -> Interval:
        counts = [
            [ErrorCounts(int(not item), 0, 0, 1) for item in each] for each in (right, baseline) if each is not None
        ]
        value, low, high = bootstrap_interval(
            [counts[0]], counts[1:] or None, blocks=[groups] if groups else None, replications=REPLICATIONS, seed=seed
        )
        return Interval(0.0 - value, 0.0 - high, 0.0 - low) if counts[1:] else Interval(1 - value, 1 - high, 1 - low)

    singles, kernels, right, place = [], [], [], 0
    for module, own, name in zip(modules, chosen, names, strict=True):
        each = [kernel(pooled[place + index]) for index in range(len(own))]
        place += len(own)
        kernels.append(torch.stack(each).mean(0))
        right.append(held_out(kernels[-1], classes, folds))
        by_layer = [interval(held_out(item, classes, folds)) for item in each]
        numbers = [module.layers[index] for index in own]
        singles.append(UpstreamScore(name, numbers, module.dim, module.frame_shift, interval(right[-1]), by_layer))
    matrix = similarity.matrix()
    ends = np.cumsum([len(own) for own in chosen])
    pairs = []
    for one, two in combinations(range(len(modules)), 2):
        both = held_out((kernels[one] + kernels[two]) / 2, classes, folds)
        better = max(one, two, key=lambda index: right[index].mean())
        block = matrix[ends[one] - len(chosen[one]) : ends[one], ends[two] - len(chosen[two]) : ends[two]]
        shared = float(block.amax(1).mean() + block.amax(0).mean()) / 2
        gain = interval(both, right[better])
        pairs.append(PairScore(names[one], names[two], interval(both), names[better], gain, shared))
    return UpstreamComparison(
        upstreams=singles,
        pairs=pairs,
        cka=matrix.tolist(),
        label=label if isinstance(label, str) else getattr(label, "__name__", "label"),
        classes=[str(item) for item in known],
        chance=float(np.bincount(classes).max() / len(classes)),
        utterances=len(cuts),
        seconds=float(sum(cut.duration for cut in cuts)),
        frames=similarity.frames,
        folds=len(set(folds.tolist())),
        apart="speakers" if groups else "utterances",
        seed=seed,
    )


def _encoders(given: Any) -> tuple[list[Upstream], Callable[[Tensor, Tensor], Any]]:
    """The encoders, and what hears a batch with all of them."""
    if hasattr(given, "upstreams") and hasattr(given, "hidden_layers"):
        return list(given.upstreams), given.hidden_layers
    if isinstance(given, (Upstream, nn.Module, str)) or not hasattr(given, "__iter__") or not (items := list(given)):
        raise ConfigError(f"upstreams={given!r} is no FusedUpstreamPreprocessor and no list with an entry per encoder")
    modules = [module for item in items for module in _built(item)]

    def hear(audio: Tensor, lengths: Tensor) -> Any:
        both = [module(audio, lengths) for module in modules]
        return [layers for layers, _ in both], [valid for _, valid in both]

    return modules, hear


def _built(item: Any) -> list[Upstream]:
    if isinstance(item, Upstream):
        return [item]
    if isinstance(item, (str, Path)):
        return upstreams_at(item)
    if not isinstance(item, nn.Module):
        return [load(plain(item))]
    upstream = build(describe(item))
    upstream.load_weights(item.state_dict())
    return [upstream.prepare()]


def _names(modules: Sequence[Upstream]) -> list[str]:
    """Short names, numbered where they are equal."""
    short = [Path(module.name).name or module.name for module in modules]
    return [name if short.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(short)]


def _chosen(layers: int | Sequence[int] | None, module: Upstream) -> list[int]:
    """Places in an encoder's list of hidden layers."""
    if layers is None:
        return list(range(module.num_layers))
    if isinstance(layers, int):
        count = min(whole_number("layers", layers), module.num_layers)
        return sorted({round(place) for place in np.linspace(module.num_layers - 1, 0, count)})
    missing = [layer for layer in layers if layer not in module.layers]
    if missing or not list(layers):
        raise ConfigError(f"{module.name}: layers={list(layers)} are not some of its {module.layers}")
    return [module.layers.index(layer) for layer in sorted(set(layers))]


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode without gradients for a while."""
    before = [module.training for module in modules]
    try:
        with torch.no_grad():
            for module in modules:
                module.eval()
            yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)


def _heard(
    cuts: Sequence[Any],
    modules: Sequence[Upstream],
    hear: Callable[[Tensor, Tensor], Any],
    chosen: Sequence[Sequence[int]],
    shift: float,
) -> Iterator[tuple[list[Any], Tensor, list[Tensor]]]:
    """Batches: cuts, which frames are theirs [batch, time], and every chosen layer at them [batch, time, dim]."""
    resampling = [Resampling.between(module.frame_shift, shift) for module in modules]
    weight = next((item for module in modules for item in module.parameters()), torch.empty(0))
    for batch in batches([cut.resample(modules[0].sample_rate) for cut in cuts]):
        audio = [torch.from_numpy(samples_of(cut)) for cut in batch]
        lengths = torch.tensor([len(samples) for samples in audio], device=weight.device)
        padded = nn.utils.rnn.pad_sequence(audio, batch_first=True).to(weight.device)
        features, valid = hear(padded, lengths)
        # Where models disagree by a frame, the end of the longer one has nothing to be compared with.
        ends = torch.stack([each.length(end) for each, end in zip(resampling, valid, strict=True)]).amin(0)
        if not bool((ends > 0).all()):
            raise AudioError(f"cut {batch[int(ends.argmin())].id}: shorter than a frame of {shift} s")
        times = torch.arange(int(ends.max()), device=ends.device)
        aligned: list[Tensor] = []
        for layers, own, each, end in zip(features, chosen, resampling, valid, strict=True):
            mixed = resample([layers[index] for index in own], *each.weights(end, times), norm=True)
            aligned.extend(mixed.unbind(-1))
        yield batch, times < ends[:, None], aligned


def _not_finite(modules: Sequence[Upstream], chosen: Sequence[Sequence[int]], index: int, cut: str) -> ConfigError:
    for module, own in zip(modules, chosen, strict=True):
        if index < len(own):
            return ConfigError(
                f"{module.name}: layer {module.layers[own[index]]} is not finite for cut {cut}; check the weights and "
                f"the audio, and take precision: fp32 (it is {module.options.precision})"
            )
        index -= len(own)
    raise AssertionError(index)
