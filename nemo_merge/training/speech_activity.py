"""Where speech is in a long recording, by its energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

_FRAME, _HOP = 0.064, 0.016  # seconds
_LEAST = 0.1  # seconds; what is shorter is a click


@dataclass(frozen=True)
class VadSettings:
    """How recordings are cut.

    Attributes:
        threshold: decibels below the loudest frame from which on a frame counts as silence.
        pause: seconds of silence that separate two stretches of speech.
        padding: seconds of silence that are kept on both sides.
        longest: seconds of a segment; speech without a pause is cut at its quietest frame before that.
    """

    threshold: float = 35.0
    pause: float = 0.3
    padding: float = 0.2
    longest: float = 25.0


def speech_segments(
    samples: Float[np.ndarray, " samples"], rate: int, settings: VadSettings | None = None
) -> list[tuple[float, float]]:
    """Starts and ends, in seconds, of segments that hold all speech and are not longer than allowed.

    Frames are speech if their energy is within ``threshold`` of the loudest. Stretches are joined as long as they fit
    in a segment, so that a recogniser has context; segments do not overlap.

    Args:
        samples: float32, one channel.
        rate: samples per second.
        settings: how to cut.

    Returns:
        Nothing for digital silence.
    """
    import numpy as np

    settings = settings or VadSettings()
    total = len(samples) / rate
    if not np.any(samples):
        return []
    energy = _energy(samples, rate)
    loud = energy >= energy.max() * 10 ** (-settings.threshold / 10)
    edges = np.flatnonzero(np.diff(loud, prepend=False, append=False)).reshape(-1, 2) * _HOP
    stretches: list[tuple[float, float]] = []
    for start, end in edges.tolist():
        if stretches and start - stretches[-1][1] < settings.pause:
            stretches[-1] = (stretches[-1][0], min(end, total))
        else:
            stretches.append((start, min(end, total)))
    spoken = [stretch for stretch in stretches if stretch[1] - stretch[0] >= _LEAST]
    pieces = [
        piece
        for start, end in _padded(spoken, settings.padding, total)
        for piece in _cut(start, end, energy, settings.longest)
    ]
    joined: list[tuple[float, float]] = []
    for start, end in pieces:
        if joined and end - joined[-1][0] <= settings.longest:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _energy(samples: Float[np.ndarray, " samples"], rate: int) -> Float[np.ndarray, " frames"]:
    """Mean square of frames around every multiple of the hop; frames reach over the edges of the samples."""
    import numpy as np

    sums = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    middles = (np.arange(int(np.ceil(len(samples) / rate / _HOP))) + 0.5) * _HOP * rate
    reach = _FRAME * rate / 2
    first = np.clip(np.rint(middles - reach), 0, len(samples)).astype(int)
    last = np.clip(np.rint(middles + reach), 0, len(samples)).astype(int)
    return (sums[last] - sums[first]) / (_FRAME * rate)


def _padded(stretches: Sequence[tuple[float, float]], padding: float, total: float) -> list[tuple[float, float]]:
    """With silence around them, up to the middle of the pause between two."""
    padded = []
    for index, (start, end) in enumerate(stretches):
        before = (stretches[index - 1][1] + start) / 2 if index else 0.0
        after = (end + stretches[index + 1][0]) / 2 if index + 1 < len(stretches) else total
        padded.append((max(before, start - padding), min(after, end + padding)))
    return padded


def _cut(start: float, end: float, energy: Float[np.ndarray, " frames"], longest: float) -> list[tuple[float, float]]:
    """Parts that are not too long, cut at the quietest frame of the second half of what fits."""
    parts = []
    while end - start > longest:
        first, last = int((start + longest / 2) / _HOP), int((start + longest) / _HOP)
        at = min((first + int(energy[first:last].argmin())) * _HOP, start + longest)
        parts.append((start, at))
        start = at
    return [*parts, (start, end)]
