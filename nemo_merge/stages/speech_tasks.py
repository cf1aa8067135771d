"""Cuts of one task each: the same speech to be transcribed, or translated, as a model with prompts is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..training.recogniser import primary_language

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

TASKS = {"transcribe": "asr", "translate": "ast"}
"""What a task is called in a recipe, and in the prompts of Canary."""


def task_cuts(cuts: CutSet, task: str, place: str, *, pnc: bool = False) -> CutSet:
    """Cuts with the text that a task asks for, and the fields from which NeMo fills the prompt.

    Args:
        cuts: speech with transcripts; to be translated, also with ``translation`` and ``translation_language`` among
            the custom fields of its supervision, as the recipes of corpora for speech translation write them.
        task: ``transcribe`` or ``translate``.
        place: how messages call the cuts.
        pnc: whether the text has punctuation and capital letters.

    Raises:
        ConfigError: the speech says no language, or has no translation.
    """
    from lhotse import CutSet

    return CutSet.from_cuts(_asked(cut, task, place, pnc) for cut in cuts)


def _asked(cut: Cut, task: str, place: str, pnc: bool) -> Cut:
    from lhotse.utils import fastcopy

    (said,) = cut.supervisions
    custom = said.custom or {}
    if not said.language:
        raise ConfigError(f"{place}: {said.id} does not say the language of the speech")
    source = target = primary_language(said.language)
    text = said.text
    if task == "translate":
        if not custom.get("translation") or not custom.get("translation_language"):
            raise ConfigError(
                f"{place}: {said.id} has no translation (custom fields translation and translation_language)"
            )
        text, target = custom["translation"], primary_language(custom["translation_language"])
    slots = {"source_lang": source, "target_lang": target, "task": TASKS[task], "pnc": "yes" if pnc else "no"}
    supervision = fastcopy(said, text=text, language=target, custom={**custom, **slots})
    return fastcopy(cut, supervisions=[supervision], custom={**(cut.custom or {}), **slots})
