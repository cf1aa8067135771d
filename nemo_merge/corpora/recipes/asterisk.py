"""Telephone prompts of Asterisk: recorded speech that Debian packages, with transcripts, in five languages.

Two packages for each language: ``asterisk-core-sounds-<language>-wav`` and ``asterisk-core-sounds-<language>``
(texts). 8 kHz; some 20 minutes and 500 prompts each. One speaker for each language, and one person speaks English and
Spanish: the set says nothing about new speakers, and language is mixed up with speaker.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError, CorpusError, did_you_mean
from ..registry import Corpus, register
from ..sessions import Audio, Layout, Session, Utterance, single
from ..source import Source
from ..splits import split_of

LANGUAGES = {
    "en": ("en-US", "CC BY-SA 3.0"),
    "es": ("es-MX", "CC BY-SA 3.0"),
    "fr": ("fr-CA", "CC BY-SA 3.0"),
    "it": ("it-IT", "CC BY 3.0"),
    "ru": ("ru-RU", "CC BY 3.0"),
}
"""BCP-47 tag and licence of each language."""
_LINE = re.compile(r"^([^;:\s][^:]*):\s*(.*\S)\s*$")  # a semicolon begins a comment
_TONES = re.compile(r"[\[\(<{]")  # a description of a tone, not speech
_SIGNS = re.compile(r"[\d#*]")
CORPUS = register(
    Corpus(
        name="asterisk",
        title="Asterisk core sounds",
        domain="telephone",
        languages=("en-US",),
        variety="one speaker for each of en-US, es-MX, fr-CA, it-IT, ru-RU",
        licence="CC BY-SA 3.0 (en, es, fr), CC BY 3.0 (it, ru)",
        licence_verified=True,
        access="open",
        source="Debian: asterisk-core-sounds-{en,es,fr,it,ru}-wav and asterisk-core-sounds-{en,es,fr,it,ru}",
        layout="/ where the packages are installed, or a folder that they were unpacked in",
        splits=("train", "dev", "test"),
        citation="Digium, Asterisk core sounds 1.6.1",
        status="tested_on_real",
        note="Real telephone speech that can be had anywhere. Splits are by text. Spanish is mostly written without "
        "accents: strip them on both sides before scoring.",
    )
)


@CORPUS.recipe
def prepare_asterisk(source: Source, *, language: str = "en", least_words: int = 1, signs: bool = True) -> Layout:
    """Prompts of one language.

    Args:
        source: the root of the system, or the folder that the packages were unpacked in.
        language: ``en``, ``es``, ``fr``, ``it`` or ``ru``.
        least_words: leave shorter prompts out; many are single words and letters.
        signs: keep prompts whose text has digits, ``#`` or ``*``, which are not written as they are spoken.
    """
    if language not in LANGUAGES:
        raise ConfigError(f"asterisk has no language {language!r}{did_you_mean(language, LANGUAGES)}")
    packages = f"asterisk-core-sounds-{language}-wav asterisk-core-sounds-{language}"
    documents = sorted(source.root.glob(f"usr/share/doc/*/core-sounds-{language}.txt.gz"))
    voices = sorted(source.root.glob(f"usr/share/asterisk/sounds/{language}_*"))
    if not documents or not voices:
        raise CorpusError(
            f"{source.root}: the packages {packages} are not there; install them (apt-get install {packages}) and give "
            f"/ as the folder, or, without being root, nemo-merge download asterisk DIR language={language}"
        )
    prompts = _prompts(source, documents[0], voices[0], least_words, signs)
    by_split: dict[str, list[Session]] = {}
    for session in prompts:
        by_split.setdefault(split_of(session.utterances[0].text.lower()), []).append(session)
    tag, licence = LANGUAGES[language]
    return Layout(
        {split: by_split[split] for split in ("train", "dev", "test") if split in by_split},
        stem=f"asterisk-{language}",
        languages=(tag,),
        variety="one speaker",
        licence=licence,
    )


def _prompts(source: Source, document: Path, voice: Path, least_words: int, signs: bool) -> Iterator[Session]:
    _, _, gender, name = voice.name.split("_", 3)
    try:
        lines = gzip.decompress(source.note(document).read_bytes()).decode("utf-8", "replace").splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{document}: cannot be unpacked ({error})") from error
    for number, line in enumerate(lines, 1):
        match = _LINE.match(line)
        if match is None or _TONES.search(match[2]) or not (path := voice / f"{match[1]}.wav").is_file():
            continue  # the texts are of all releases: prompts without audio are many
        if len(match[2].split()) < least_words or (not signs and _SIGNS.search(match[2])):
            continue
        yield single(
            Audio(path),
            Utterance(
                id=f"{voice.name.split('_')[0]}-{match[1].replace('/', '-')}",
                place=f"{document}, line {number}",
                text=" ".join(match[2].split()),
                raw=match[2],
                speaker=name,
                gender={"f": "Female", "m": "Male"}.get(gender),
            ),
        )


@CORPUS.downloader
def download_asterisk(target_dir: str | Path, force_download: bool = False, language: str = "en") -> Path:
    """Fetches the Debian packages of one language with apt and unpacks them, without being root.

    Raises:
        CorpusError: this is no Debian, or apt has no such package.
    """
    folder = Path(target_dir).resolve()
    completed = folder / f".asterisk-{language}.completed"
    if completed.is_file() and not force_download:
        return folder
    packages = [f"asterisk-core-sounds-{language}-wav", f"asterisk-core-sounds-{language}"]
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise CorpusError(
            f"fetching {' and '.join(packages)} needs apt-get and dpkg-deb of Debian or Ubuntu; elsewhere fetch the "
            f".deb files by other means and unpack each of them in {folder} (ar x FILE; tar xf data.tar.*)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", *packages], folder)
    for package in packages:
        for path in sorted(folder.glob(f"{package}_*.deb")):
            _run(["dpkg-deb", "-x", str(path), str(folder)], folder)
            path.unlink()
    completed.touch()
    return folder


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise CorpusError(
            f"{' '.join(command)} failed: {reason[-1] if reason else done.returncode}; "
            "where apt knows no such package, apt-get update comes first"
        )
