from __future__ import annotations

from pathlib import Path

import pytest

from nemo_merge.errors import ConfigError, TranscriptError
from nemo_merge.scoring import mapsswe
from nemo_merge.scoring.comparison import compare, kept, means
from nemo_merge.scoring.evaluation import Options, evaluate
from nemo_merge.scoring.normalised import TextOptions, drop_empty
from nemo_merge.scoring.transcripts import Problems, Row

NONE = TextOptions("none")


def row(index: int, text: str, heard: dict[str, str], set_name: str = "s", **about: str) -> Row:
    return Row(f"u{index}", (Path("ref"), index + 1), set_name, text, heard, **about)


def rows(*items: tuple) -> list[Row]:
    """Rows of (set, language, domain, text, a, b)."""
    return [
        row(index, text, {"a": a, "b": b}, name, language=language, domain=domain, speaker=f"sp{index % 2}")
        for index, (name, language, domain, text, a, b) in enumerate(items)
    ]


FOUR = rows(
    ("news 1", "pt", "news", "a b c d", "a b c d", "a b c x"),
    ("news 2", "pt", "news", "a b", "a x", "a b"),
    ("talks", "de", "talks", "a b c d", "a b", "a b c d e"),
    ("talks", "de", "talks", "a b", "a b", "a b"),
)


def test_tables_by_hand():
    found = evaluate(FOUR, Options(("wer", "cer"), NONE, replications=0))
    assert found.metrics == ["wer", "cer"]
    assert found.rates("wer", "a", "all") == {"": 3 / 12}
    assert found.rates("wer", "a", "set") == {"news 1": 0, "news 2": 0.5, "talks": 2 / 6}
    assert found.rates("wer", "b", "language") == {"pt": 1 / 6, "de": 1 / 6}
    assert found.rates("cer", "b", "domain") == {"news": 1 / 10, "talks": 2 / 10}
    everything = found.scores["wer", "a", found.groups[0]]
    assert (everything.counts.deletions, everything.counts.substitutions, everything.interval) == (2, 1, None)


def test_groups_add_up():
    found = evaluate(FOUR, Options(("wer",), NONE, replications=0))
    for kind in ("set", "language", "domain"):
        for system in found.systems:
            counts = [found.scores["wer", system, group].counts for group in found.groups_of(kind)]
            assert sum(item.errors for item in counts) == found.scores["wer", system, found.groups[0]].counts.errors


def test_what_is_not_known_makes_no_table():
    found = evaluate([row(0, "a", {"s": "a"})], Options(("wer",), NONE))
    assert [group.kind for group in found.groups] == ["all"]
    partly = [row(0, "a", {"s": "a"}, language="pt"), row(1, "a", {"s": "a"})]
    names = [group.name for group in evaluate(partly, Options(("wer",), NONE)).groups_of("language")]
    assert names == ["pt", "(none)"]


def test_profiles_by_language():
    mixed = [
        row(0, "Fa-lo-ei às 16.", {"s": "fa-lo-ei às dezasseis"}, language="pt-PT"),
        row(1, "E-Mail!", {"s": "e mail"}, language="de"),
    ]
    pytest.importorskip("num2words")
    text = TextOptions({"": "whisper_basic", "pt": "pt_ep"})
    assert evaluate(mixed, Options(("wer",), text)).rates("wer", "s", "all") == {"": 0}
    assert evaluate(mixed, Options(("wer",))).rates("wer", "s", "language")["pt-PT"] == 1 / 5
    with pytest.raises(ConfigError, match="texts are in 'de'"):
        evaluate(mixed, Options(("wer",), TextOptions("pt_ep")))


def test_casing_by_language():
    both = [row(0, "Das Haus", {"s": "das haus"}, language="de"), row(1, "Bom Dia", {"s": "bom dia"}, language="pt-PT")]
    text = TextOptions("words", casing={"de": "keep"})
    assert evaluate(both, Options(("wer",), text)).rates("wer", "s", "language") == {"de": 1, "pt-PT": 0}
    assert str(text) == "words; casing de=keep"
    assert str(TextOptions({"pt": "pt_ep"})) == "pt=pt_ep, whisper_basic"
    with pytest.raises(ConfigError, match="casing='kep' is none of lower, keep"):
        TextOptions("words", casing={"de": "kep"})


def test_spellings_are_reported_beside():
    found = evaluate(
        [row(0, "a acção directa", {"s": "a ação direta"}, language="pt")], Options(("wer",), spelling="ao90")
    )
    assert found.rates("wer", "s", "all") == {"": 2 / 3}
    assert found.rates("wer+ao90", "s", "all") == {"": 0}


def test_mixed_scripts_together_and_apart():
    found = evaluate([row(0, "我想 book 房间", {"s": "我想 look 房"})], Options(("mixed", "pier"), NONE))
    assert found.rates("mixed", "s", "all") == {"": 2 / 5}
    assert found.rates("mixed[Han]", "s", "all") == {"": 1 / 4}
    assert found.rates("mixed[Latin]", "s", "all") == {"": 1}
    assert found.rates("pier", "s", "all") == {"": 1}
    assert list(found.switching.values()) == [(20, 2, 0.4, 1)]


def test_tags_do_not_disturb_word_errors():
    found = evaluate(
        [row(0, "das <tag meeting> war", {"s": "das meeting war"})], Options(("wer", "pier", "bleu"), NONE)
    )
    assert found.rates("wer", "s", "all") == found.rates("pier", "s", "all") == {"": 0}
    assert found.switching[found.groups[0]].switch_points == 2


def test_translation_uses_the_text_as_it_is():
    sacrebleu = pytest.importorskip("sacrebleu")
    found = evaluate([row(0, "The Cat, here now.", {"s": "the cat here now"})], Options(("bleu", "chrf")))
    assert found.rates("bleu", "s", "all")[""] == pytest.approx(
        sacrebleu.corpus_bleu(["the cat here now"], [["The Cat, here now."]]).score
    )


def test_references_without_words():
    problems = Problems()
    assert [
        item.id for item in drop_empty([row(0, "[riso]", {"s": ""}), row(1, "a", {"s": ""})], TextOptions(), problems)
    ] == ["u1"]
    assert str(problems.found[0]) == "ref:1: the reference of u0 has no words after its text profile"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": ("were",)}, ConfigError, "no metric 'were'; did you mean 'wer'"),
        ({"metrics": ()}, ConfigError, "name one metric"),
        ({"by_speaker": True}, TranscriptError, "1 utterances have no speaker, the first is u0"),
    ],
)
def test_what_cannot_be_computed(options, error, message):
    with pytest.raises(error, match=message):
        evaluate([row(0, "a", {"s": "a"})], Options(**options))


def test_no_rows():
    with pytest.raises(TranscriptError, match="no utterance is left"):
        evaluate([], Options())


def test_intervals_by_speaker_differ():
    plain = evaluate(FOUR, Options(("wer",), NONE))
    blocked = evaluate(FOUR, Options(("wer",), NONE, by_speaker=True))
    key = ("wer", "a", plain.groups[0])
    assert plain.scores[key].value == blocked.scores[key].value
    assert plain.scores[key].interval != blocked.scores[key].interval


def test_comparison_with_the_baseline():
    found = evaluate(FOUR, Options(("wer",), NONE))
    pooled, *by_group = compare(found, "b")
    # Languages and domains are the same rows here, and the last domain is the last set.
    names = [(item.group.kind, item.group.name) for item in by_group]
    assert names == [("set", "news 1"), ("set", "news 2"), ("set", "talks"), ("language", "pt")]
    assert (pooled.system, pooled.group.kind) == ("a", "all")
    expected = mapsswe([item.text for item in FOUR], *([item.heard[name] for item in FOUR] for name in "ab"))
    assert pooled.test == expected
    assert pooled.p_holm == pooled.test.p_value  # one comparison
    assert pooled.difference.value == pytest.approx(1 / 12)
    assert all(item.p_holm >= item.test.p_value for item in by_group)
    with pytest.raises(ConfigError, match="no baseline 'c'"):
        compare(found, "c")
    with pytest.raises(ConfigError, match="put one of wer, cer, mixed first, not pier"):
        compare(evaluate(FOUR, Options(("pier",), NONE)), "b")


def test_means_by_set_and_by_domain():
    found = means(evaluate(FOUR, Options(("wer",), NONE, replications=0)), "a", ["talks"])
    assert found.by_set == pytest.approx((0.25, 1 / 3, (0 + 0.5 + 1 / 3) / 3))
    assert found.by_domain == pytest.approx((0.25, 1 / 3, (0.25 + 1 / 3) / 2))
    with pytest.raises(ConfigError, match="'talk' is neither a test set nor a domain; did you mean 'talks'"):
        means(evaluate(FOUR, Options(("wer",), NONE)), "a", ["talk"])


def test_sets_without_words_of_interest_have_no_mean():
    tagged = rows(("s1", "de", "d1", "a <tag b>", "a b", "a x"), ("s2", "de", "d2", "a c", "a c", "a c"))
    found = means(evaluate(tagged, Options(("pier",), NONE)), "b", ["s2"])
    assert found.by_set == (1, None, 1)
    assert found.by_domain == (1, None, 1)


def test_what_a_merge_kept_of_translation():
    pytest.importorskip("sacrebleu")
    said = "the cat sits on the mat"
    heard = {"base": "the cat", "merge": "the cat sits on", "expert": said}
    found = kept(evaluate([row(0, said, heard, language="pt")], Options(("chrf",))), "merge", "base", {"pt": "expert"})
    assert 0 < found.performance.value < 1
    assert found.retention == {}


def test_what_a_merge_kept():
    three = [
        row(0, "a b c d", {"base": "x x x x", "merge": "a b x x", "expert": "a b c d"}, language="pt"),
        row(1, "a b c d", {"base": "a b c x", "merge": "a b x x", "expert": "x x x x"}, language="de"),
    ]
    found = kept(evaluate(three, Options(("wer",), NONE)), "merge", "base", {"pt": "expert"})
    assert found.performance.by_set == {"pt": 0.5}
    assert found.retention["de"] == (0.25, 0.5, 0.25, 1.0, pytest.approx(0.5 / 0.75))
    evaluation = evaluate(three, Options(("wer",), NONE))
    assert kept(evaluation, "merge", "base", {}).performance is None
    with pytest.raises(ConfigError, match="is called 'fr'"):
        kept(evaluation, "merge", "base", {"fr": "expert"})
    with pytest.raises(ConfigError, match="there is no system 'bse'; did you mean 'base'"):
        kept(evaluation, "merge", "bse", {})
