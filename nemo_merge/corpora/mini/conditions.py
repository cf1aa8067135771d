"""Acoustic conditions: what happens to clean speech between the mouth and the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import fft

from .speech import SAMPLE_RATE

Samples = Float[np.ndarray, " samples"]
Interval = tuple[float, float]

_NOISE_EXPONENTS = {"white": 0.0, "pink": 0.5, "brown": 1.0}
_A_LAW = 87.6  # ITU-T G.711
_A_LAW_LEVELS = 127


@dataclass(frozen=True)
class Condition:
    """One set's recording condition; an interval is drawn from anew for every utterance.

    Attributes:
        reverberation: T60 of the room, seconds.
        noise: colour of the stationary noise: white, pink or brown.
        snr: signal-to-noise ratio of that noise, dB.
        babble: signal-to-noise ratio of other people's speech, dB.
        tilt: slope of the microphone's response, dB per octave around 1 kHz.
        channel: ``telephone`` (300 to 3400 Hz, 8 kHz, A-law), ``radio`` (500 to 2500 Hz) or ``dull`` (below 2500 Hz).
        clipping: share of utterances whose peaks are cut off.
    """

    reverberation: Interval | None = None
    noise: str | None = None
    snr: Interval = (30.0, 30.0)
    babble: Interval | None = None
    tilt: Interval | None = None
    channel: str | None = None
    clipping: float = 0.0

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Condition:
        """Reads a condition from YAML, where intervals are lists of two numbers."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown acoustic condition {sorted(unknown)}")
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**arguments)

    def apply(self, speech: Samples, rng: np.random.Generator, babble: Samples | None = None) -> Samples:
        """The utterance as the microphone and the line leave it, peak between 0.3 and 0.9."""
        x = speech.astype(np.float64)
        if self.reverberation:
            x = reverberate(x, rng.uniform(*self.reverberation), rng)
        if self.babble:
            if babble is None:
                raise ValueError("a babble condition needs a recording of other speakers")
            x = add_noise(x, _excerpt(babble, len(x), rng), rng.uniform(*self.babble))
        if self.noise:
            x = add_noise(x, coloured_noise(len(x), self.noise, rng), rng.uniform(*self.snr))
        if self.tilt:
            x = tilt_spectrum(x, rng.uniform(*self.tilt))
        if self.channel:
            x = CHANNELS[self.channel](x)
        if rng.random() < self.clipping:
            ceiling = np.quantile(np.abs(x), rng.uniform(0.97, 0.995))
            x = np.clip(x, -ceiling, ceiling)
        return (x * (rng.uniform(0.3, 0.9) / max(np.abs(x).max(), 1e-9))).astype(np.float32)


def reverberate(x: Samples, t60: float, rng: np.random.Generator) -> Samples:
    """Convolves with a decaying-noise room response of reverberation time ``t60`` seconds."""
    from scipy import signal

    time = np.arange(int(t60 * SAMPLE_RATE)) / SAMPLE_RATE
    response = rng.standard_normal(len(time)) * np.exp(-6.9 * time / t60)
    response[0] = 6.0  # the direct path
    response /= np.sqrt(np.sum(response**2))
    return signal.fftconvolve(x, response)[: len(x)]


def coloured_noise(length: int, colour: str, rng: np.random.Generator) -> Samples:
    """Noise of unit variance: amplitude falls with frequency to the power 0 (white), 1/2 (pink) or 1 (brown)."""
    padded = fft.next_fast_len(length, real=True)
    bins = padded // 2 + 1
    spectrum = rng.standard_normal(bins) + 1j * rng.standard_normal(bins)
    # Below 20 Hz the spectrum stays flat, or brown noise would be all rumble.
    lowest = max(1, int(20 * padded / SAMPLE_RATE))
    spectrum /= np.maximum(np.arange(bins), lowest) ** _NOISE_EXPONENTS[colour]
    noise = fft.irfft(spectrum, padded)[:length]
    return noise / noise.std()


def add_noise(x: Samples, noise: Samples, snr: float) -> Samples:
    """Adds noise of unit variance at a signal-to-noise ratio of ``snr`` dB."""
    return x + noise * x.std() / 10 ** (snr / 20)


def tilt_spectrum(x: Samples, slope: float) -> Samples:
    """Tilts the spectrum by ``slope`` dB per octave around 1 kHz."""
    padded = fft.next_fast_len(len(x), real=True)
    octaves = np.log2(np.maximum(fft.rfftfreq(padded, 1 / SAMPLE_RATE), 50.0) / 1000.0)
    return fft.irfft(fft.rfft(x, padded) * 10 ** (slope * octaves / 20), padded)[: len(x)]


def telephone(x: Samples) -> Samples:
    """The 8 kHz telephone line: 300 to 3400 Hz and an A-law round trip."""
    import soxr

    narrow = soxr.resample(x, SAMPLE_RATE, 8000)
    narrow = _band(narrow, 300, 3400, 8000)
    peak = max(np.abs(narrow).max(), 1e-9)
    narrow = a_law(narrow / peak) * peak
    wide = soxr.resample(narrow, 8000, SAMPLE_RATE)
    return np.pad(wide, (0, max(0, len(x) - len(wide))))[: len(x)]


def a_law(x: Samples) -> Samples:
    """Compresses samples in [-1, 1] to A-law codes and expands them again (ITU-T G.711, continuous formula)."""
    scale = 1.0 + np.log(_A_LAW)
    magnitude = np.abs(x)
    linear = magnitude < 1.0 / _A_LAW
    compressed = np.where(linear, _A_LAW * magnitude, 1.0 + np.log(np.maximum(_A_LAW * magnitude, 1e-12))) / scale
    code = np.round(compressed * _A_LAW_LEVELS) / _A_LAW_LEVELS
    linear = code < 1.0 / scale
    expanded = np.where(linear, code * scale, np.exp(code * scale - 1.0)) / _A_LAW
    return np.sign(x) * expanded


def _band(x: Samples, low: float, high: float, rate: int) -> Samples:
    from scipy import signal

    return signal.sosfilt(signal.butter(4, [low, high], btype="band", fs=rate, output="sos"), x)


def _radio(x: Samples) -> Samples:
    return _band(x, 500, 2500, SAMPLE_RATE)


def _dull(x: Samples) -> Samples:
    from scipy import signal

    return signal.sosfilt(signal.butter(4, 2500, fs=SAMPLE_RATE, output="sos"), x)


CHANNELS: dict[str, Callable[[Samples], Samples]] = {"telephone": telephone, "radio": _radio, "dull": _dull}


def babble_of(voices: list[Samples]) -> Samples:
    """Several speakers at once: each at unit variance, cut to the shortest, the sum at unit variance."""
    length = min(len(voice) for voice in voices)
    total = np.sum([voice[:length] / voice[:length].std() for voice in voices], axis=0)
    return total / total.std()


def _excerpt(recording: Samples, length: int, rng: np.random.Generator) -> Samples:
    repeated = np.tile(recording, 1 + length // len(recording) + 1)
    start = int(rng.integers(0, len(repeated) - length + 1))
    return repeated[start : start + length]
