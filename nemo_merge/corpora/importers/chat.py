r"""CHAT ``.cha``: main lines ``*SPK: words . \x15start_end\x15``, with codes for language, errors and noises.

The format is that of the CHAT manual of TalkBank (MacWhinney, "Tools for Analyzing Talk, Part 1: The CHAT
Transcription Format"). Read here is what recognition needs: who, when, the words as they were said, and the language of
each word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..languages import language_tag, spans_of_words
from ..sessions import Audio, Session, Span, Utterance
from ..source import Source
from ._times import seconds, stamp

_BULLET = re.compile(r"\x15(?:%\w+:\"[^\"]*\"_)?(\d+)_(\d+)\x15")
_MAIN = re.compile(r"\*([^:\s]+):\s*(.*)", re.DOTALL)
_PRECODE = re.compile(r"\[-\s*(\w+)\]")
_REPLACED = re.compile(r"\[:+\s*[^\]]*\]")
_RETRACED = re.compile(r"\[[^\]]*\]")
_DROPPED = re.compile(r"^(?:&[=~*+-].*|0.*|\+.*|xxx|yyy|www|[.?!,;:‡„“”\"]+|\(\.+\)|\(\d[\d.:]*\))$")
_WORD_CODES = re.compile(r"@(?!s)[a-z]+(?::\w+)?")
_LANGUAGE_CODE = re.compile(r"@s(?::([\w+&]+))?")
_LETTERS = re.compile(r"[()<>\u2039\u203a^:ˈˌ\u02d0\u0002\u0001↑↓⌈⌉⌊⌋„‡]|(?<=\w)\+(?=\w)")
ISO_639_3 = {
    "eng": "en", "spa": "es", "cym": "cy", "por": "pt", "fra": "fr", "deu": "de", "cat": "ca", "ita": "it", "zho": "zh",
}  # fmt: skip
"""BCP-47 tags of the languages of CHAT headers; other codes of three letters are BCP-47 tags themselves."""


def cha_sessions(
    source: Source, files: list[Path], audio_dir: Path | None = None, *, suffixes: tuple[str, ...] = (".wav", ".mp3")
) -> Iterator[Session]:
    """Sessions of transcripts, one per file; main lines without a time bullet are reported.

    Args:
        source: the corpus.
        files: transcripts.
        audio_dir: folder of the audio; that of the transcript when None.
        suffixes: of the audio, in the order of preference.
    """
    for path in files:
        headers: dict[str, list[str]] = {}
        utterances: list[Utterance] = []
        for place, line in _logical_lines(source, path):
            if line.startswith("@") and ":" in line:
                name, value = line[1:].split(":", 1)
                headers.setdefault(name.strip(), []).append(value.strip())
            elif line.startswith("*"):
                utterances += _utterance(source, path, place, line, headers)
        media = (headers.get("Media") or [path.stem])[0].split(",")[0].strip().strip('"')
        folder = audio_dir or path.parent
        choices = [folder / f"{name}{suffix}" for name in dict.fromkeys((media, path.stem)) for suffix in suffixes]
        audio = next((choice for choice in choices if choice.is_file()), choices[0])
        if utterances:
            yield Session(path.stem, Audio(audio), utterances)


def _logical_lines(source: Source, path: Path) -> Iterator[tuple[str, str]]:
    """Lines with those that continue them, which begin with a tab."""
    current: tuple[str, str] | None = None
    for place, line in source.lines(path):
        if line.startswith("\t") and current:
            current = (current[0], f"{current[1]} {line.strip()}")
            continue
        if current:
            yield current
        current = (place, line)
    if current:
        yield current


def _utterance(
    source: Source, path: Path, place: str, line: str, headers: Mapping[str, list[str]]
) -> Iterator[Utterance]:
    match = _MAIN.match(line)
    if match is None:
        source.problems.add("row", place, "a main line without the colon after its speaker")
        return
    speaker, content = match.groups()
    bullets = _BULLET.findall(content)
    if not bullets:
        source.problems.add("row", place, f"the line of {speaker} has no time bullet")
        return
    raw = " ".join(_BULLET.sub(" ", content).split())
    languages = [tag(code.strip()) for code in (headers.get("Languages") or ["und"])[0].split(",")]
    text, spans = words_of(raw, languages)
    try:
        start, end = seconds(bullets[0][0], 1000), seconds(bullets[-1][1], 1000)
    except ValueError as error:
        source.problems.add("row", place, str(error))
        return
    about = _person(headers, speaker)
    yield Utterance(
        id=f"{path.stem}-{speaker}-{stamp(start)}",
        place=place,
        text=text,
        raw=raw,
        start=start,
        end=end,
        speaker=f"{path.stem}-{speaker}",
        gender={"male": "Male", "female": "Female"}.get(about.get("sex", "")),
        language=language_tag(languages[0], spans),
        spans=spans,
        custom={key: value for key, value in about.items() if key == "age" and value},
    )


def words_of(raw: str, languages: list[str]) -> tuple[str, tuple[Span, ...]]:
    """The words that were said and their languages.

    ``word@s`` is in the other of two languages, ``word@s:eng`` in a named one, ``word@s:eng&spa`` in both (no span);
    ``[- eng]`` sets the language of a line. Omitted words (``0word``), noises (``&=laughs``), fillers and fragments
    (``&-uh``), unintelligible words (``xxx``) and comments are left out; retraced words were said and are kept.

    Args:
        raw: a main line without speaker and bullet.
        languages: of the file, the main one first.

    Example:
        >>> words_of("y mi boss@s:eng <se fue> [/] se fue &=laughs .", ["es", "en"])
        ('y mi boss se fue se fue', (('es', 0, 4), ('en', 5, 9), ('es', 10, 23)))
    """
    main = languages[0]
    if precode := _PRECODE.search(raw):
        main = tag(precode[1])
    other = next((language for language in languages if language != main), main)
    content = _RETRACED.sub(" ", _REPLACED.sub(" ", raw))
    words: list[tuple[str, str | None]] = []
    for token in content.split():
        if _DROPPED.match(token.strip("<>")):
            continue
        language: str | None = main
        if code := _LANGUAGE_CODE.search(token):
            language = other if code[1] is None else None if set("+&") & set(code[1]) else tag(code[1])
            token = token[: code.start()]
        word = _LETTERS.sub("", _WORD_CODES.sub("", token)).replace("_", " ").strip(".?!,;")
        words += [(part, language) for part in word.split()]
    return spans_of_words(words)


def tag(code: str) -> str:
    """BCP-47 tag of a language code of CHAT."""
    return ISO_639_3.get(code.lower(), code.lower())


def _person(headers: Mapping[str, list[str]], speaker: str) -> dict[str, str]:
    """Age and sex from the ``@ID`` line: language|corpus|code|age|sex|..."""
    for line in headers.get("ID", ()):
        fields = line.split("|")
        if len(fields) > 4 and fields[2] == speaker:
            return {"age": fields[3], "sex": fields[4]}
    return {}
