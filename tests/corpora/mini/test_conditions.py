"""Every acoustic effect does to a signal what it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from nemo_merge.corpora.mini.conditions import (
    Condition,
    a_law,
    add_noise,
    babble_of,
    coloured_noise,
    reverberate,
    telephone,
    tilt_spectrum,
)

RATE = 16000


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def level(x: np.ndarray, low: float, high: float) -> float:
    """Mean power density of a band, dB."""
    frequency, power = signal.welch(x, RATE, nperseg=2048)
    return 10 * np.log10(power[(frequency >= low) & (frequency < high)].mean())


@pytest.mark.parametrize(("colour", "slope"), [("white", 0.0), ("pink", -3.0), ("brown", -6.0)])
def test_noise_falls_by_so_many_decibels_per_octave(colour, slope, rng):
    noise = coloured_noise(20 * RATE, colour, rng)
    assert noise.std() == pytest.approx(1)
    assert level(noise, 2000, 4000) - level(noise, 1000, 2000) == pytest.approx(slope, abs=0.5)


@pytest.mark.parametrize("snr", [0, 10, 25])
def test_noise_is_added_at_the_ratio_asked_for(snr, rng):
    x = rng.standard_normal(RATE) * 0.1
    noise = coloured_noise(RATE, "pink", rng)
    added = add_noise(x, noise, snr) - x
    assert 20 * np.log10(x.std() / added.std()) == pytest.approx(snr, abs=0.01)


def test_reverberation_decays_by_sixty_decibels_in_t60(rng):
    click = np.zeros(RATE)
    click[0] = 1
    tail = reverberate(click, 0.5, rng)
    energy = np.cumsum(tail[1:][::-1] ** 2)[::-1]
    decay = 10 * np.log10(energy / energy[0])
    at = np.flatnonzero(decay < -20)[0] / RATE
    assert 3 * at == pytest.approx(0.5, rel=0.15)


def test_the_telephone_band(rng):
    x = rng.standard_normal(4 * RATE)
    line = telephone(x)
    assert len(line) == len(x)
    inside = level(line, 500, 3000)
    assert level(line, 20, 150) < inside - 20
    assert level(line, 4200, 8000) < inside - 40


def test_a_law_is_a_coarse_identity():
    x = np.linspace(-1, 1, 2001)
    coded = a_law(x)
    assert len(np.unique(coded)) <= 255
    assert np.abs(coded - x).max() < 0.03
    assert (np.sign(coded) * np.sign(x) >= 0).all()


@pytest.mark.parametrize("slope", [-6.0, 3.0])
def test_tilt(slope, rng):
    x = rng.standard_normal(8 * RATE)
    tilted = tilt_spectrum(x, slope)
    assert level(tilted, 2000, 2100) - level(tilted, 1000, 1050) == pytest.approx(slope, abs=0.7)


def test_babble_is_everyone_at_the_same_level(rng):
    voices = [rng.standard_normal(RATE + 100 * index) * (index + 1) for index in range(3)]
    together = babble_of(voices)
    assert len(together) == RATE
    assert together.std() == pytest.approx(1)


ALL = {
    "reverberation": [0.2, 0.3],
    "noise": "pink",
    "snr": [10, 20],
    "babble": [5, 10],
    "tilt": [-3, 3],
    "clipping": 1.0,
}


@pytest.mark.parametrize("channel", [None, "telephone", "radio", "dull"])
def test_conditions_keep_length_and_range_and_repeat(channel):
    x = np.random.default_rng(1).standard_normal(12345).astype(np.float32) * 0.1
    condition = Condition.parse({**ALL, "channel": channel})
    babble = np.random.default_rng(2).standard_normal(4000)
    first, second = (condition.apply(x, np.random.default_rng(3), babble) for _ in range(2))
    assert first.dtype == np.float32
    assert len(first) == len(x)
    assert 0.29 < np.abs(first).max() < 0.91
    assert np.array_equal(first, second)


def test_mistakes_in_conditions():
    with pytest.raises(ValueError, match="unknown acoustic condition"):
        Condition.parse({"reverb": [0.1, 0.2]})
    with pytest.raises(ValueError, match="recording of other speakers"):
        Condition.parse({"babble": [5, 10]}).apply(np.ones(10, np.float32), np.random.default_rng(0))
