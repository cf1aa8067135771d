"""One model over one test set: batches, audio that is read ahead, segments of long recordings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import AudioError
from .batches import packed
from .jobs import PROGRESS_PREFIX
from .recogniser import Recogniser
from .speech_activity import VadSettings, speech_segments
from .transcripts_file import Hypothesis, Segment, TranscriptsFile
from .utterances import Utterance, load_samples

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from .decode import DecodingJob

    Samples = Float[np.ndarray, " samples"]

_READERS = 4  # threads that read audio; more wait for the same disk


class DecodingRun:
    """One model over one set.

    Batches are planned from the whole set, whatever was decoded before, so that a run which goes on has the same
    batches as one that was never interrupted, and the same transcripts to the last bit.
    """

    def __init__(self, job: DecodingJob, recogniser: Recogniser, file: TranscriptsFile, shown: str, total: int) -> None:
        self.skipped: dict[str, str] = {}
        self._job, self._recogniser, self._file, self._shown, self._total = job, recogniser, file, shown, total
        self._limits = (job.batch_size, job.batch_seconds)

    def go(self, utterances: Sequence[Utterance]) -> None:
        """Decodes what is not there yet."""
        job = self._job
        prompts = {item.id: self._recogniser.prompt_for(item.lang or job.language, item.slots) for item in utterances}
        if job.vad is not None:
            batches, decode = [[item] for item in utterances], self._segmented
        else:
            batches, decode = list(self._batches(utterances, prompts)), self._together
        known = self._file.known
        missing = [batch for batch in batches if any(item.id not in known for item in batch)]
        self._show()
        with ThreadPoolExecutor(_READERS) as pool:
            for batch in _ahead(pool, self._load, missing):
                loaded = [(item, samples) for item, x in batch if (samples := self._result(item, x)) is not None]
                if loaded:
                    self._file.add(decode(loaded, prompts[loaded[0][0].id]))
                self._show()

    def _load(self, utterance: Utterance) -> Samples:
        samples = load_samples(utterance, self._recogniser.rate, self._job.channel)
        longest, seconds = self._recogniser.longest, len(samples) / self._recogniser.rate
        if self._job.vad is None and longest is not None and seconds > longest:
            raise AudioError(f"has {seconds:.1f} s, but the model hears {longest:g} s at once; --vad cuts recordings")
        return samples

    def _result(self, utterance: Utterance, future: Future[Any]) -> Samples | None:
        """The samples, or None if there is something wrong with them."""
        try:
            return future.result()
        except AudioError as error:
            self.skipped[utterance.id] = str(error)
            if self._job.strict:
                stop_at_any(self._shown, self.skipped)
            return None

    def _together(self, loaded: Sequence[tuple[Utterance, Samples]], prompt: Mapping[str, str]) -> list[Hypothesis]:
        texts = self._recogniser.transcribe([samples for _, samples in loaded], prompt)
        return [self._hypothesis(item, len(x), text) for (item, x), text in zip(loaded, texts, strict=True)]

    def _segmented(self, loaded: Sequence[tuple[Utterance, Samples]], prompt: Mapping[str, str]) -> list[Hypothesis]:
        """One recording, cut into segments of speech."""
        ((utterance, samples),) = loaded
        rate, settings = self._recogniser.rate, VadSettings(**(self._job.vad or {}))
        settings = replace(settings, longest=min(settings.longest, self._recogniser.longest or settings.longest))
        times = speech_segments(samples, rate, settings)
        pieces = [samples[round(start * rate) : round(end * rate)] for start, end in times]
        texts: dict[int, str] = {}
        for batch in packed(range(len(pieces)), lambda index: len(pieces[index]) / rate, *self._limits):
            heard = self._recogniser.transcribe([pieces[index] for index in batch], prompt)
            texts |= dict(zip(batch, heard, strict=True))
        segments = [Segment(round(start, 3), round(end, 3), texts[index]) for index, (start, end) in enumerate(times)]
        text = " ".join(segment.text for segment in segments if segment.text)
        return [self._hypothesis(utterance, len(samples), text, segments)]

    def _hypothesis(
        self, item: Utterance, samples: int, text: str, segments: Sequence[Segment] | None = None
    ) -> Hypothesis:
        return Hypothesis(
            item.id,
            item.text,
            text,
            lang=item.lang or self._job.language,
            speaker=item.speaker,
            domain=item.domain,
            duration=item.duration if item.duration is not None else round(samples / self._recogniser.rate, 3),
            audio_filepath=item.path,
            offset=item.offset or None,
            channel=item.channel,
            segments=segments,
        )

    def _batches(
        self, utterances: Sequence[Utterance], prompts: Mapping[str, Mapping[str, str]]
    ) -> Iterator[list[Utterance]]:
        """Utterances of one prompt together, of similar length."""
        groups: dict[tuple[Any, ...], list[Utterance]] = {}
        for item in utterances:
            groups.setdefault(tuple(sorted(prompts[item.id].items())), []).append(item)
        for group in groups.values():
            yield from packed(group, lambda item: item.duration or 0.0, *self._limits)

    def _show(self) -> None:
        if self._job.progress:
            state = {"shown": self._shown, "done": len(self._file.known) + len(self.skipped), "total": self._total}
            print(f"{PROGRESS_PREFIX}{json.dumps(state)}", flush=True)


def stop_at_any(shown: str, skipped: Mapping[str, str]) -> None:
    """Refuses utterances that cannot be decoded.

    Raises:
        AudioError: there are some.
    """
    if skipped:
        name, reason = next(iter(skipped.items()))
        more = f"; {len(skipped) - 1} more cannot be decoded" if len(skipped) > 1 else ""
        raise AudioError(f"{shown}: {name}: {reason}{more}")


def _ahead(
    pool: ThreadPoolExecutor, load: Callable[[Utterance], Any], batches: Sequence[list[Utterance]]
) -> Iterator[list[tuple[Utterance, Future[Any]]]]:
    """Batches with their audio, of which the next is read while the model is at work on one."""
    following: list[tuple[Utterance, Future[Any]]] = []
    for batch in [*batches, []]:
        current, following = following, [(item, pool.submit(load, item)) for item in batch]
        if current:
            yield current
