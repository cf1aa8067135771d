from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.scoring import normaliser, pier
from nemo_merge.scoring.error_rates import utterance_errors
from nemo_merge.scoring.points_of_interest import masked_errors, other_scripts, tagged_tokens, without_tags


def counted(errors):
    return errors.substitutions, errors.deletions, errors.insertions, errors.reference_length


def test_the_example_of_the_paper():
    """File is right, gedownloadet is wrong, and the insertion before or after it belongs to it."""
    reference, hypothesis = "Hast du das <tag File> <tag gedownloadet>", "Hast du das File geload et"
    assert counted(pier([reference], [hypothesis])) == (1, 0, 1, 2)
    assert counted(pier([reference], [hypothesis], insertions="none")) == (1, 0, 0, 2)
    assert pier([reference], [hypothesis]).rate == 1.0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a <tag b> c", "a b c", (0, 0, 0, 1)),
        ("a <tag b> c", "x b y", (0, 0, 0, 1)),  # errors elsewhere
        ("a <tag b> c", "a c", (0, 1, 0, 1)),
        ("a <tag b> c", "a x c", (1, 0, 0, 1)),
        ("a <tag b> c", "a x b c", (0, 0, 1, 1)),  # before the tagged word
        ("a <tag b> c", "a b x c", (0, 0, 0, 1)),  # before c
        ("a <tag b>", "a b x", (0, 0, 1, 1)),  # at the end, after the tagged word
        ("<tag a> b", "a b x", (0, 0, 0, 1)),
        ("<tag a b> c", "c", (0, 2, 0, 2)),
        ("<tag a>", "", (0, 1, 0, 1)),
    ],
)
def test_by_hand(reference, hypothesis, expected):
    assert counted(pier([reference, "z"], [hypothesis, "y"])) == expected


def test_without_tags_other_scripts_are_of_interest():
    errors = pier(["我想 book 一个 room", "好的"], ["我想 look 一个 room", "好"])
    assert counted(errors) == (1, 0, 0, 2)
    assert errors.utterances == 1
    # Where most words are English, the Han characters are.
    assert counted(pier(["the big red 房 is nice"], ["the big red 风 is nice"])) == (1, 0, 0, 1)


def test_nothing_of_interest():
    assert counted(pier(["a b"], ["a c"])) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="no error rate"):
        _ = pier(["a b"], ["a b"]).rate
    assert other_scripts([["42"], []]) == [[False], []]


@pytest.mark.parametrize("profile", ["none", "whisper_basic", "words", "pt_ep"])
def test_tags_survive_text_profiles(profile):
    """Whisper's normaliser drops what stands in angle brackets; numbers and clitics may become several words."""
    step = normaliser(profile)
    tokens, mask = tagged_tokens("das <tag E-Mail> ist <tag gut>!", normalise=step)
    assert tokens == step(without_tags("das <tag E-Mail> ist <tag gut>!")).split()
    assert [token for token, tagged in zip(tokens, mask, strict=True) if tagged] == {
        "none": ["E-Mail", "gut!"],
        "whisper_basic": ["e", "mail", "gut"],
    }.get(profile, ["e-mail", "gut"])


def test_a_word_may_be_tagged_in_part():
    assert tagged_tokens("ge<tag download>et ok") == (["gedownloadet", "ok"], [True, False])


TOKENS = st.lists(st.sampled_from("abc"), max_size=7)


@given(TOKENS, TOKENS, st.data())
def test_a_mask_and_its_opposite_make_the_whole(reference, hypothesis, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(reference), max_size=len(reference)))
    parts = [masked_errors(reference, hypothesis, chosen) for chosen in (mask, [not item for item in mask])]
    (whole,) = utterance_errors([" ".join(reference)], [" ".join(hypothesis)])
    if reference:
        assert sum(part.errors for part in parts) == whole.errors
    assert sum(part.reference_length for part in parts) == whole.reference_length
