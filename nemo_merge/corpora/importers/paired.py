"""A folder of audio files with a text file of the same name beside each, or one list of ids and texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..sessions import Audio, Session, Utterance, single
from ..source import Source

AUDIO = ("*.wav", "*.flac", "*.sph", "*.mp3", "*.ogg", "*.opus", "*.m4a")
_TEXTS = (".txt", ".lab", ".trn")


def paired_sessions(
    source: Source, folder: Path, *, encoding: str | None = None, transcripts: dict[str, tuple[str, str]] | None = None
) -> Iterator[Session]:
    """One recording with one utterance for each audio file; the folder that holds it is the speaker.

    Args:
        source: the corpus.
        folder: searched with its subfolders.
        encoding: of the text files.
        transcripts: place and text by the name of the audio without suffix, in place of text files.
    """
    for audio in source.find(*AUDIO, under=folder):
        relative = audio.relative_to(folder).with_suffix("")
        name = "-".join(audio.relative_to(source.root).with_suffix("").parts)  # unlike that of any other split
        if transcripts is not None:
            found = transcripts.get(audio.stem)
        else:
            path = next((audio.with_suffix(suffix) for suffix in _TEXTS if audio.with_suffix(suffix).is_file()), None)
            if path and (content := source.text(path, encoding)) is None:
                continue  # and the reason is said
            found = (str(path), content or "") if path else None
        if found is None:
            source.problems.add("missing_text", str(audio), "no transcript goes with this audio")
            continue
        place, text = found
        speaker = relative.parts[-2] if len(relative.parts) > 1 else None
        yield single(
            Audio(audio),
            Utterance(name, place, " ".join(text.split()), raw=text.strip(), speaker=speaker),
        )


def list_of_texts(source: Source, path: Path, encoding: str | None = None) -> dict[str, tuple[str, str]]:
    """Place and text by id, from lines of an id, white space or a bar, and a text."""
    texts: dict[str, tuple[str, str]] = {}
    for place, line in source.lines(path, encoding):
        if not line.strip():
            continue
        key, _, text = line.strip().replace("\t", " ").replace("|", " ", 1).partition(" ")
        key = Path(key).stem
        if key in texts:
            source.problems.add("duplicate_id", place, f"the id {key!r} was used before")
            continue
        texts[key] = (place, text.strip())
    return texts
