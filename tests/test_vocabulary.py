"""Tokens and rows, without files and weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.vocabulary import Token, Vocabulary, conflicts, named, rows_of, tables_of, union, with_extra


def vocabulary(*tokens: str, rules: dict | None = None) -> Vocabulary:
    """Tokens written ``language/text`` or ``text``."""
    parts = [token.rpartition("/") for token in tokens]
    return Vocabulary("test", tuple(Token(language, text) for language, _, text in parts), rules or {})


texts = st.lists(st.sampled_from("abcdefghij"), min_size=1, unique=True)


@given(st.lists(texts, min_size=1, max_size=4))
def test_a_union_keeps_the_rows_of_the_first_and_has_the_tokens_of_all(lists):
    vocabularies = [vocabulary(*tokens) for tokens in lists]
    united = union(vocabularies[0], vocabularies[1:])
    assert united.tokens[: len(lists[0])] == vocabularies[0].tokens
    assert {token.text for token in united.tokens} == set().union(*lists)
    assert not any(united.lacks(one) for one in vocabularies)


@given(texts, texts)
def test_rows_lead_to_the_same_token(a, b):
    target, source = vocabulary(*a).tokens, vocabulary(*b).tokens
    found = rows_of(target, source)
    assert [source[row] if row >= 0 else None for row in found] == [
        token if token in source else None for token in target
    ]


def test_in_an_aggregate_a_language_stays_together_and_new_languages_come_last():
    united = union(vocabulary("pt/a", "pt/b", "en/a"), [vocabulary("es/a", "pt/c"), vocabulary("en/z", "es/b")])
    assert [f"{token.language}/{token.text}" for token in united.tokens] == [
        "pt/a", "pt/b", "pt/c", "en/a", "en/z", "es/a", "es/b",
    ]  # fmt: skip


def test_a_token_that_appears_twice_is_refused():
    with pytest.raises(ValueError, match="token 'a' appears twice"):
        vocabulary("a", "b", "a")
    vocabulary("pt/a", "en/a")  # of two languages they are two


def test_rules_that_differ_are_named():
    mine = vocabulary("a", rules={"": {"normalisation": "nfkc", "segmentation": "bpe"}})
    assert conflicts(mine, mine) == []
    theirs = vocabulary("a", rules={"": {"normalisation": "none", "segmentation": "bpe"}})
    assert conflicts(mine, theirs) == ["normalisation is none instead of nfkc"]
    other = vocabulary("es/a", rules={"es": {"normalisation": "none"}})
    assert conflicts(mine, other) == []


def test_a_long_list_of_tokens_is_cut():
    assert named(vocabulary("a", "es/b").tokens) == "'a', es:'b'"
    assert named(vocabulary(*"abcdefg").tokens) == "'a', 'b', 'c', 'd', 'e' and 2 more"


def test_tokens_beyond_the_rows_have_none():
    """wav2vec 2.0 adds <s> and </s> behind the numbers that it has outputs for."""
    shapes = {"lm_head.weight": (8, 4)}
    ((_, extra),) = tables_of(shapes, 10, {"vocab_size": 8}).values()
    assert extra == -2
    assert with_extra(vocabulary(*"abcd").tokens, -2) == vocabulary("a", "b").tokens


def test_rows_after_the_tokens_are_told_apart_by_place():
    a, b = with_extra(vocabulary("a").tokens, 2), with_extra(vocabulary("a", "b").tokens, 3)
    assert rows_of(b, a) == [0, -1, 1, 2, -1]


NEMO = {"joint": {"num_extra_outputs": 5}}
TABLES = {
    "CTC": ({"decoder.decoder_layers.0.weight": (11, 4, 1), "decoder.decoder_layers.0.bias": (11,)}, {}, [1, 1]),
    "RNN-T": ({"decoder.prediction.embed.weight": (11, 4), "joint.joint_net.2.bias": (11,)}, {}, [1, 1]),
    "TDT": ({"decoder.prediction.embed.weight": (11, 4), "joint.joint_net.2.bias": (16,)}, NEMO, [1, 6]),
    "stateless": ({"decoder.prediction.embeds.0.weight": (11, 4), "decoder.prediction.embeds.1.weight": (11, 2)}, {}, [1, 1]),
    "no padding": ({"decoder.prediction.embed.weight": (10, 4)}, {}, [0]),
    "HAT": ({"joint.joint_net.2.weight": (10, 4)}, {"joint": {"_target_": "x.HATJoint"}}, [0]),
    "attention": (
        {
            "transf_decoder._embedding.token_embedding.weight": (16, 4),
            "transf_decoder._embedding.position_embedding.pos_enc": (64, 4),
            "log_softmax.mlp.layer0.weight": (4, 4),
            "log_softmax.mlp.layer2.weight": (16, 4),
            "log_softmax.mlp.layer2.bias": (16,),
        },
        {},
        [6, 6, 6],
    ),
    "Whisper": ({"model.decoder.embed_tokens.weight": (13, 4), "model.decoder.embed_positions.weight": (40, 4)}, {}, [3]),
    "wav2vec": ({"lm_head.weight": (10, 4), "lm_head.bias": (10,), "wav2vec2.masked_spec_embed": (4,)}, {}, [0, 0]),
}  # fmt: skip


@pytest.mark.parametrize(("shapes", "config", "extra"), TABLES.values(), ids=TABLES)
def test_tables_of_models(shapes, config, extra):
    others = {"encoder.layers.0.linear.weight": (11, 11), "joint.enc.weight": (11, 4)}
    assert [rows for _, rows in tables_of({**shapes, **others}, 10, config).values()] == extra


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("decoder.decoder_layers.0.weight", 12, "has 12 rows, but 11 belong"),
        ("decoder.decoder_layers.0.weight", 10, "has 10 rows, but 11 belong"),
        ("joint.joint_net.2.weight", 16, "has 16 rows, but 11 belong"),
        ("decoder.prediction.embed.weight", 12, "has 12 rows, but 10 or 11 belong"),
        ("transf_decoder._embedding.token_embedding.weight", 24, "has 24 rows, but 16 belong"),
        ("lm_head.weight", 9, "has 9 rows, but 10 or more belong"),
        ("encoder.weight", 10, "no tensor with one row per token"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, rows, expected):
    with pytest.raises(ValueError, match=expected):
        tables_of({name: (rows, 4)}, 10, {})
