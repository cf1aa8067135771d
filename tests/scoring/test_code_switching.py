from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.scoring import code_mixing_index, switch_point_fraction, switch_points
from nemo_merge.scoring.code_switching import script_tags


@pytest.mark.parametrize(
    ("tags", "index", "switches"),
    [
        (["de", "de", "de", "en"], 25.0, 1),
        (["de", "en", "de", "en"], 50.0, 3),
        (["de", None, "univ", "en"], 50.0, 1),  # two of two tokens with a language
        (["de", "en", "pt"], 100 * (1 - 1 / 3), 2),
        (["de", "und", "de"], 0.0, 0),
        ([None, "zxx"], 0.0, 0),
        ([], 0.0, 0),
    ],
)
def test_utterances_by_hand(tags, index, switches):
    assert code_mixing_index(tags) == pytest.approx(index)
    assert switch_points(tags) == switches


def test_corpora_are_means_over_utterances():
    corpus = [["de", "en"], ["de", "de", "de", "en"], ["de"]]
    assert code_mixing_index(corpus) == (50 + 25 + 0) / 3
    assert switch_point_fraction(corpus) == 2 / 7
    assert switch_point_fraction([]) == 0


def test_other_neutral_tags():
    assert code_mixing_index(["de", "ne", "ne"], neutral=frozenset({"ne"})) == 0
    assert code_mixing_index(["de", "ne"]) == 50  # Nepali


def test_tags_by_script():
    assert script_tags("我想 book 2 个room。") == ["Han", "Han", "Latin", None, "Han", "Latin"]


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=12), st.permutations(["a", "b", "c"]))
def test_names_of_languages_do_not_matter(tags, names):
    renamed = [dict(zip("abc", names, strict=True)).get(tag) for tag in tags]
    assert code_mixing_index(renamed) == code_mixing_index(tags)
    assert switch_points(renamed) == switch_points(tags) == switch_points(tags[::-1])
    assert 0 <= code_mixing_index(tags) < 100
