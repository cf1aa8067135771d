"""Speech synthesis by espeak-ng through the ``espeakng-loader`` wheel, which holds library and voices."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_RATE = 16000

# Numbers of espeak-ng's C interface (speak_lib.h).
_SYNCHRONOUS_RETRIEVAL = 2
_UTF8, _SSML = 0x01, 0x10
_RATE, _PITCH, _RANGE = 1, 3, 4


@dataclass(frozen=True)
class Voice:
    """A speaker: an espeak-ng language, a voice variant and its prosody.

    Attributes:
        variant: espeak-ng voice variant, for example ``f2`` or ``Annie``; this is what makes a speaker.
        rate: speaking rate in words per minute.
        pitch: base pitch, 0 to 99.
        pitch_range: liveliness of the intonation, 0 (monotone) to 99.
        formant_shift: ratio by which all frequencies are raised; above 1 sounds like a shorter vocal tract (a child).
    """

    variant: str
    rate: int = 165
    pitch: int = 50
    pitch_range: int = 50
    formant_shift: float = 1.0


class Synthesiser:
    """One espeak-ng engine.

    The library keeps global state, so there is one per process (use :func:`synthesiser`), and it carries the phase of
    its oscillators from one utterance to the next: the same calls in the same order give the same samples, but the
    same sentence said twice does not.
    """

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
        self._variants = {path.name for path in Path(data, "voices", "!v").iterdir()}
        self.native_rate = self._library.espeak_Initialize(_SYNCHRONOUS_RETRIEVAL, 0, data.encode(), 0)
        if self.native_rate <= 0:
            raise RuntimeError("espeak-ng did not start: reinstall the espeakng-loader package")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # of the breath of some voices; the clock is the default
        self._chunks: list[np.ndarray] = []
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

        def receive(samples: Any, count: int, _events: Any) -> int:
            if samples and count > 0:
                self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        self._callback = callback_type(receive)  # the library keeps only the pointer: this reference keeps it alive
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, language: str, voice: Voice, ssml: bool = False) -> np.ndarray:
        """Speaks ``text``.

        Args:
            text: what to say; with ``ssml`` a ``<speak>`` document that may switch language inside a sentence.
            language: espeak-ng language, for example ``pt`` (European Portuguese) or ``pt-br``.
            voice: who says it.
            ssml: whether ``text`` is SSML.

        Returns:
            Samples in [-1, 1], float32, mono, at 16 kHz, silence at both ends cut.

        Raises:
            ValueError: espeak-ng does not know the language or the voice variant.
        """
        import soxr

        name = f"{language}+{voice.variant}"
        # espeak-ng falls back to the plain voice when it does not know the variant: ask first.
        if voice.variant not in self._variants or self._library.espeak_SetVoiceByName(name.encode()):
            raise ValueError(f"espeak-ng has no voice {name!r}")
        rate = round(voice.rate / voice.formant_shift)
        for parameter, value in ((_RATE, rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        self._chunks = []
        encoded = text.encode() + b"\0"
        flags = _UTF8 | (_SSML if ssml else 0)
        if self._library.espeak_Synth(encoded, len(encoded), 0, 0, 0, flags, None, None):
            raise RuntimeError(f"espeak-ng could not speak {text!r}")
        samples = np.concatenate(self._chunks).astype(np.float32) / 32768.0
        # Reading the samples as if they had been recorded at a higher rate raises every frequency by that ratio.
        samples = soxr.resample(samples, self.native_rate * voice.formant_shift, SAMPLE_RATE)
        loud = np.flatnonzero(np.abs(samples) > 1e-3)
        return samples[loud[0] : loud[-1] + 1] if loud.size else samples


@functools.cache
def synthesiser() -> Synthesiser:
    """The one espeak-ng engine of this process."""
    return Synthesiser()
