"""Language spans: by script, by words, by tags."""

from __future__ import annotations

import doctest
import importlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.corpora.languages import DEVANAGARI, HAN, LATIN, language_tag, spans_by_script, spans_of_words

SCRIPTS = {HAN: "zh", LATIN: "en", DEVANAGARI: "hi"}
MODULES = (
    "languages", "importers.chat", "importers.hf_audio", "importers.seame", "importers.transcriber", "recipes.common_voice",
    "recipes.fleurs", "recipes.lectra", "recipes.portugues_falado", "recipes.talcs",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"nemo_merge.corpora.{name}"))
    assert results.attempted > 0
    assert results.failed == 0


@given(st.text(alphabet="我们go '2é,हिं है.", max_size=40))
def test_spans_are_ordered_disjoint_and_hold_every_letter_of_their_script(text):
    spans = spans_by_script(text, SCRIPTS)
    assert all(start < end <= len(text) for _, start, end in spans)
    assert all(end <= following for (_, _, end), (_, following, _) in pairwise(spans))
    assert all(one[0] != two[0] for one, two in pairwise(spans))
    covered = {position for _, start, end in spans for position in range(start, end)}
    assert {position for position, character in enumerate(text) if character.isalpha()} <= covered


@given(
    st.lists(
        st.tuples(st.text(alphabet="abc", min_size=1, max_size=4), st.sampled_from(["pt", "en", None])), max_size=8
    )
)
def test_words_and_their_spans(words):
    text, spans = spans_of_words(words)
    assert text.split() == [word for word, _ in words]
    found = [(word, language) for language, start, end in spans for word in text[start:end].split()]
    assert found == [(word, language) for word, language in words if language]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [([], "zh"), ([("zh", 0, 1)], "zh"), ([("zh", 0, 1), ("en", 2, 3)], "zh-en"), ([("en", 0, 1)], "en")],
)
def test_language_tags(spans, expected):
    assert language_tag("zh", spans) == expected
