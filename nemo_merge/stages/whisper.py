"""Studies of Whisper: where the base comes from, and the jobs that fine-tune it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..training.jobs import job_from
from ..training.outcome import appearing
from ..training.whisper_base import is_hub_name, is_whisper, whisper_folder
from ..training.whisper_fine_tune import WhisperFineTuningJob
from .data import cuts_path
from .engine import Context, identity
from .models import model_path


def check_base(config: Mapping[str, Any]) -> None:
    """Finds what is wrong with ``train.base.whisper`` before anything is made or fetched.

    Raises:
        ConfigError: it is neither a Whisper's folder, nor a name of the hub, nor settings of a tiny one.
    """
    wanted = config["train"]["base"]["whisper"]
    if not isinstance(wanted, Mapping) and not is_hub_name(wanted) and not is_whisper(Path(wanted).expanduser()):
        raise ConfigError(f"train.base.whisper: {wanted} is neither the folder of a Whisper nor OWNER/NAME of the hub")


def make_base(context: Context) -> Path:
    """Puts the base beside the models that are trained from it, and returns its path.

    ``train.base.whisper`` names a folder or a model of the Hugging Face hub, which is fetched if it is not here; then
    its place is a link. Where it holds settings of :func:`~.tiny_whisper.write_tiny_whisper`, a tiny one is made.
    """
    settings = context.config["train"]["base"]
    place, wanted = model_path(context, "base"), settings["whisper"]
    if isinstance(wanted, Mapping):
        return _make_tiny(context, place, wanted)
    found = whisper_folder(wanted if is_hub_name(wanted) else Path(wanted).expanduser(), settings.get("revision"))
    if place.resolve() != found.resolve():
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(".base.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(found.resolve())
        os.replace(partial, place)
    context.say(f"base: {wanted}")
    return place


def fine_tuning(
    context: Context, base: Path, output: Path, sets: list[str], seed: int, settings: Mapping[str, Any]
) -> WhisperFineTuningJob:
    """The job that fine-tunes on sets of the recipe; with ``select``, their development sets choose the weights.

    Raises:
        ConfigError: a setting does not exist.
    """
    train = [str(cuts_path(context, name, "train")) for name in sets]
    values = {"overwrite": True, **settings}
    if settings.get("select"):
        values.setdefault("validation", {name: str(cuts_path(context, name, "dev")) for name in sets})
    filled = {"base": str(base), "output": str(output), "train": train, "seed": seed}
    return job_from(WhisperFineTuningJob, values, "train.experts, train.joint", **filled)


def _make_tiny(context: Context, place: Path, settings: Mapping[str, Any]) -> Path:
    from .tiny_whisper import write_tiny_whisper

    cuts = [cuts_path(context, name, "train") for name in context.config["domains"]]
    depends_on = {
        "settings": dict(settings),
        "seed": context.config["seed"],
        "files": [identity(path) for path in cuts],
    }
    if context.is_fresh("base", [place], **depends_on):
        context.say("base: made before")
        return place
    with appearing(place) as folder:
        write_tiny_whisper(folder, _texts(cuts), seed=context.config["seed"], **settings)
    context.mark_fresh("base", **depends_on)
    context.say("base: a tiny Whisper with random weights, which recognises nothing")
    return place


def _texts(files: list[Path]) -> Iterator[str]:
    from lhotse import CutSet

    for path in files:
        for cut in CutSet.from_file(path):
            yield from (f" {item.text}" for item in cut.supervisions if item.text)
