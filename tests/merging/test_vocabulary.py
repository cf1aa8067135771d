"""Merging models whose tokenizers differ."""

from __future__ import annotations

import json
import random
import sys
import tarfile

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_merge import merge, methods, open_checkpoint, plan_merge, sweep
from nemo_merge.cli import cli
from nemo_merge.errors import CheckpointError, ConfigError, OutputError, PlanError
from nemo_merge.merging.reproduce import reproduce
from tests.fixtures.models import write_huggingface, write_nemo
from tests.fixtures.vocabularies import config_of, flat, model, sentencepiece_model, tensors
from tests.fixtures.vocabularies import rows as rows_by_token

sentencepiece = pytest.importorskip("sentencepiece")

KINDS = ("ctc", "rnnt", "tdt", "attention")
METHODS = [name for name in methods.names() if name != "emr" and not methods.get(name).uses_posteriors]
CHARACTERS, PIECES = "abcdef", ["<unk>", "a", "b", "c", "ab", "bc"]
LANGUAGES = {"spl_tokens": ["<unk>", "<|pt|>"], "pt": ["<unk>", "a", "b", "c"]}


def shuffled(tokens, seed):
    """The same tokens in another order; in an aggregate also the languages."""
    order = random.Random(seed)
    if isinstance(tokens, dict):
        languages = list(tokens)
        order.shuffle(languages)
        return {language: shuffled(tokens[language], seed) for language in languages}
    mixed = list(tokens)
    order.shuffle(mixed)
    return "".join(mixed) if isinstance(tokens, str) else mixed


def table(path, kind="ctc"):
    """Rows by token of the first tensor with one row per token."""
    names = {"ctc": "decoder.decoder_layers.0.weight", "attention": "log_softmax.mlp.layer0.weight"}
    with open_checkpoint(path) as checkpoint:
        tensor = checkpoint[names.get(kind, "joint.joint_net.2.weight")].clone()
        vocabulary = checkpoint.vocabulary()
    assert vocabulary is not None
    found = {
        f"{token.language}/{token.text}" if token.language else token.text: row
        for token, row in zip(vocabulary.tokens, tensor, strict=False)
    }
    return found, tensor[len(vocabulary) :]


def same_tensors(a, b):
    with open_checkpoint(a) as left, open_checkpoint(b) as right:
        assert list(left.specs) == list(right.specs)
        return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("tokens", [CHARACTERS, PIECES, LANGUAGES], ids=["characters", "pieces", "aggregate"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_an_experts_tokens_does_not_matter(kind, tokens, tmp_path):
    base = model(tmp_path / "base.nemo", tokens, 0, kind)
    plain = [model(tmp_path / f"plain{seed}.nemo", tokens, seed, kind) for seed in (1, 2)]
    mixed = [model(tmp_path / f"mixed{seed}.nemo", shuffled(tokens, seed), seed, kind) for seed in (1, 2)]
    merge(base, plain, "ties", output=tmp_path / "a.nemo")
    report = merge(base, mixed, "ties", output=tmp_path / "b.nemo")
    assert same_tensors(tmp_path / "a.nemo", tmp_path / "b.nemo")
    assert report.provenance["vocabulary"]["policy"] == "strict"
    with open_checkpoint(base) as old, open_checkpoint(tmp_path / "b.nemo") as new:
        assert new.vocabulary().tokens == old.vocabulary().tokens
        assert new.metadata.tokenizers == old.metadata.tokenizers
        assert new.ties == old.ties


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.sets(st.sampled_from("abcdefgh"), min_size=1),
    experts=st.lists(st.sets(st.sampled_from("abcdefghij"), min_size=1), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_policies_over_any_sets_of_tokens(base, experts, seed, tmp_path):
    bases = shuffled("".join(sorted(base)), seed)
    lists = [shuffled("".join(sorted(tokens)), seed + 1) for tokens in experts]
    template = model(tmp_path / "base.nemo", bases)
    paths = [model(tmp_path / f"e{index}.nemo", tokens, index + 1) for index, tokens in enumerate(lists)]
    for policy in ("base", "union"):
        merge(
            template,
            paths,
            "task_arithmetic",
            output=tmp_path / f"kept {policy}.nemo",
            vocabulary=policy,
            overwrite=True,
        )
    old, _ = table(template)
    kept, after = table(tmp_path / "kept base.nemo")
    united, union_after = table(tmp_path / "kept union.nemo")
    own = [table(path)[0] for path in paths]
    assert list(united)[: len(bases)] == list(bases)
    assert set(united) == base.union(*experts)
    assert torch.equal(after, union_after)  # the blank
    for token, row in kept.items():
        assert torch.equal(row, united[token])
        if not any(token in rows for rows in own):
            assert torch.equal(row, old[token])
    for token in set(united) - base:
        known = torch.stack([rows[token] for rows in own if token in rows])
        torch.testing.assert_close(united[token], known.double().mean(0).float(), rtol=1e-7, atol=0)


def test_a_base_policy_keeps_the_file_of_the_base(tmp_path):
    base = model(tmp_path / "base.nemo", "abc")
    expert = model(tmp_path / "expert.nemo", "dcb", 1)
    report = merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary="base")
    assert "1 token of experts is not in" in report.warnings[0]
    assert "dropped: 'd'" in report.warnings[0]
    found, _ = table(tmp_path / "out.nemo")
    theirs, mine = table(expert)[0], table(base)[0]
    assert list(found) == list("abc")
    assert torch.equal(found["a"], mine["a"])
    torch.testing.assert_close(found["b"], theirs["b"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", [None, [1.0, 3.0]], ids=["alike", "weighted"])
def test_new_rows_are_the_mean_of_the_experts_that_have_them(method, weights, tmp_path):
    base = model(tmp_path / "base.nemo", PIECES, 0, "rnnt")
    experts = [
        model(tmp_path / "one.nemo", [*PIECES, "x", "both"], 1, "rnnt"),
        model(tmp_path / "two.nemo", ["<unk>", "both", *PIECES[1:-1], "y"], 2, "rnnt"),
    ]
    parameters = {"weights": weights} if weights else {}
    merge(base, experts, method, output=tmp_path / "out.nemo", vocabulary="union", **parameters)
    shares = torch.tensor(weights or [1.0, 1.0], dtype=torch.float64)
    with open_checkpoint(tmp_path / "out.nemo") as out:
        assert [token.text for token in out.vocabulary().tokens] == [*PIECES, "x", "both", "y"]
        loaded = [open_checkpoint(path) for path in experts]
        for name in ("joint.joint_net.2.weight", "joint.joint_net.2.bias", "decoder.prediction.embed.weight"):
            one, two = (expert[name].double() for expert in loaded)
            both = (shares[0] * one[7] + shares[1] * two[1]) / shares.sum()
            for row, expected in ((6, one[6]), (7, both), (8, two[6])):
                torch.testing.assert_close(out[name][row], expected.float(), rtol=1.2e-7, atol=0)
            assert out[name].shape[0] == 10
            assert torch.isfinite(out[name]).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_union_without_new_tokens_is_a_strict_merge(method, tmp_path):
    base = model(tmp_path / "base.nemo", LANGUAGES, 0, "attention")
    experts = [model(tmp_path / f"e{seed}.nemo", shuffled(LANGUAGES, seed), seed, "attention") for seed in (1, 2)]
    for policy in ("strict", "union"):
        merge(base, experts, method, output=tmp_path / f"{policy}.nemo", vocabulary=policy)
    assert same_tensors(tmp_path / "strict.nemo", tmp_path / "union.nemo")


def test_no_method_touches_the_tables_of_a_model_beside_their_rows(tmp_path):
    """Old rows of a union are those of a merge of experts that never had the new tokens."""
    base = model(tmp_path / "base.nemo", PIECES, 0, "tdt")
    small = [model(tmp_path / f"s{seed}.nemo", PIECES, seed, "tdt") for seed in (1, 2)]
    large = [model(tmp_path / f"l{seed}.nemo", [*PIECES, f"x{seed}"], seed, "tdt") for seed in (1, 2)]
    merge(base, small, "boosted_tsvm", output=tmp_path / "small.nemo")
    merge(base, large, "boosted_tsvm", output=tmp_path / "large.nemo", vocabulary="union")
    with open_checkpoint(tmp_path / "small.nemo") as a, open_checkpoint(tmp_path / "large.nemo") as b:
        for name, tensor in a.items():
            if tensor.shape == b[name].shape:
                assert torch.equal(tensor, b[name]), name
            else:
                old = len(PIECES)
                assert torch.equal(tensor[:old], b[name][:old]), name
                assert torch.equal(tensor[old:], b[name][old + 2 :]), name  # blank and durations


def test_the_order_of_experts_changes_the_order_of_new_rows_only(tmp_path):
    base = model(tmp_path / "base.nemo", "ab")
    experts = [model(tmp_path / f"e{seed}.nemo", tokens, seed) for seed, tokens in ((1, "abxz"), (2, "yabz"))]
    merge(base, experts, "task_arithmetic", output=tmp_path / "a.nemo", vocabulary="union")
    merge(base, experts[::-1], "task_arithmetic", output=tmp_path / "b.nemo", vocabulary="union")
    (a, _), (b, _) = table(tmp_path / "a.nemo"), table(tmp_path / "b.nemo")
    assert (list(a), list(b)) == (list("abxzy"), list("abyzx"))
    for token in a:
        torch.testing.assert_close(a[token], b[token])


def test_without_a_base_rows_that_one_expert_has_are_its_own(tmp_path):
    experts = [model(tmp_path / f"e{seed}.nemo", tokens, seed) for seed, tokens in ((1, "abx"), (2, "bay"))]
    merge(None, experts, "soup", output=tmp_path / "out.nemo", vocabulary="union")
    found, _ = table(tmp_path / "out.nemo")
    one, two = table(experts[0])[0], table(experts[1])[0]
    assert torch.equal(found["x"], one["x"])
    assert torch.equal(found["y"], two["y"])
    torch.testing.assert_close(found["a"], (one["a"] + two["a"]) / 2)


def test_padding_of_attention_decoders_grows_and_shrinks(tmp_path):
    """8 tokens need no padding, 9 need 7 rows that are never chosen, and 16 none again."""
    eight = ["<unk>", *"abcdefg"]
    for count in (1, 8):
        folder = tmp_path / str(count)
        folder.mkdir()
        base = model(folder / "base.nemo", eight, 0, "attention")
        new = [f"x{place}" for place in range(count)]
        expert = model(folder / "expert.nemo", [*eight, *new], 1, "attention")
        merge(base, [expert], "soup", output=folder / "out.nemo", vocabulary="union")
        with open_checkpoint(folder / "out.nemo") as out, open_checkpoint(expert) as theirs:
            assert out.metadata.config["head"]["num_classes"] == 16
            assert out.metadata.config["transf_decoder"]["config_dict"]["vocab_size"] == 16
            for name in ("log_softmax.mlp.layer0.weight", "log_softmax.mlp.layer0.bias"):
                assert torch.equal(out[name][8:], theirs[name][8:])  # padding too, where an expert has it
    base = model(tmp_path / "base.nemo", eight, 0, "attention")
    experts = [model(tmp_path / f"{x}.nemo", [*eight[:-1], x], seed, "attention") for seed, x in ((1, "x"), (2, "y"))]
    merge(base, experts, "soup", output=tmp_path / "out.nemo", vocabulary="union")
    with open_checkpoint(tmp_path / "out.nemo") as out:
        assert (out["log_softmax.mlp.layer0.bias"][10:] == -10000).all()
        assert (out["log_softmax.mlp.layer0.weight"][10:] == 0).all()


def test_files_and_configuration_grow_together(tmp_path):
    base = model(tmp_path / "base.nemo", LANGUAGES)
    expert = model(
        tmp_path / "expert.nemo",
        {"es": ["<unk>", "ñ"], "pt": ["<unk>", "a", "b", "c", "▁d"], "spl_tokens": ["<unk>", "<|es|>"]},
        1,
    )
    merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary="union")
    with open_checkpoint(tmp_path / "out.nemo") as out:
        config = out.metadata.config
        assert list(config["tokenizer"]["langs"]) == ["spl_tokens", "pt", "es"]
        pieces = ["<unk>", "<|pt|>", "<|es|>", "<unk>", "a", "b", "c", "▁d", "<unk>", "ñ"]
        assert [token.text for token in out.vocabulary().tokens] == pieces
        assert config["decoder"] == {"num_classes": 10, "vocabulary": pieces}
        assert config["optim"]["lr"] == 1e-5
        assert isinstance(config["optim"]["lr"], float)
        for language, size in (("spl_tokens", 3), ("pt", 5), ("es", 2)):
            entry = config["tokenizer"]["langs"][language]
            files = {
                key: out.artefact(entry[key].removeprefix("nemo:")) for key in entry if key.endswith(("path", "vocab"))
            }
            processor = sentencepiece.SentencePieceProcessor(model_proto=files["model_path"])
            assert processor.get_piece_size() == size
            assert len(files["spe_tokenizer_vocab"].decode().splitlines()) == size
        assert out.artefact(config["tokenizer"]["langs"]["pt"]["vocab_path"][5:]).decode().endswith("##c\nd\n")
        packed = [member.name.removeprefix("./") for member in out._others]
        assert sorted(packed) == sorted(
            value.removeprefix("nemo:")
            for entry in config["tokenizer"]["langs"].values()
            for value in entry.values()
            if value.startswith("nemo:")
        )


def test_a_grown_model_segments_the_text_of_both(tmp_path):
    base = model(tmp_path / "base.nemo", ["<unk>", "▁", "a", "b", "ab"])
    expert = model(tmp_path / "expert.nemo", ["<unk>", "▁", "ñ", "o", "ño"], 1)
    merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary="union")
    with open_checkpoint(tmp_path / "out.nemo") as out:
        name = out.metadata.config["tokenizer"]["model_path"].removeprefix("nemo:")
        processor = sentencepiece.SentencePieceProcessor(model_proto=out.artefact(name))
    assert processor.encode("ab ño", out_type=str) == ["▁", "ab", "▁", "ño"]
    assert processor.piece_to_id("ño") == 7


def test_labels_grow_wherever_the_configuration_has_them(tmp_path):
    base, expert = model(tmp_path / "base.nemo", "ab"), model(tmp_path / "expert.nemo", "bc", 1)
    merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary="union")
    config = open_checkpoint(tmp_path / "out.nemo").metadata.config
    assert config["labels"] == config["train_ds"]["labels"] == config["decoder"]["vocabulary"] == ["a", "b", "c"]
    assert config["decoder"]["num_classes"] == 3


def test_a_merge_of_merges_grows_again_and_repeats_to_the_byte(tmp_path):
    base = model(tmp_path / "base.nemo", PIECES)
    first = model(tmp_path / "first.nemo", [*PIECES, "x"], 1)
    second = model(tmp_path / "second.nemo", [*PIECES, "y"], 2)
    merge(base, [first], "ties", output=tmp_path / "one.nemo", vocabulary="union")
    merge(tmp_path / "one.nemo", [second], "ties", output=tmp_path / "two.nemo", vocabulary="union")
    with open_checkpoint(tmp_path / "two.nemo") as out:
        assert [token.text for token in out.vocabulary().tokens] == [*PIECES, "x", "y"]
    assert reproduce(tmp_path / "two.nemo").same_bytes


def test_every_output_of_a_sweep_has_its_own_weights(tmp_path):
    base = model(tmp_path / "base.nemo", "ab")
    experts = [model(tmp_path / f"e{seed}.nemo", "abx", seed) for seed in (1, 2)]
    reports = sweep(
        base, experts, "soup", grid={"weights": [[1, 0], [0, 1]]}, output=tmp_path / "sweep", vocabulary="union"
    )
    for report, expert in zip(reports, experts, strict=True):
        assert torch.equal(table(report.output)[0]["x"], table(expert)[0]["x"])


def test_types_of_weights_may_differ(tmp_path):
    config, _ = config_of("ab")
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors("ab", 0).items()}
    base = write_nemo(tmp_path / "base.nemo", half, config)
    expert = model(tmp_path / "expert.nemo", "bxa", 1)
    merge(base, [expert], "ties", output=tmp_path / "out.nemo", vocabulary="union", density=1.0)
    found, theirs = table(tmp_path / "out.nemo")[0], table(expert)[0]
    assert found["x"].dtype is torch.float16
    for token in "abx":
        torch.testing.assert_close(found[token], theirs[token].half(), rtol=2e-3, atol=1e-6)


REFUSED = {
    "characters and pieces": (CHARACTERS, PIECES, {}, "it has sentencepiece instead of characters"),
    "one language and several": (PIECES, LANGUAGES, {}, "it has aggregate instead of sentencepiece"),
    "missing and additional": ("abc", "bcdefghijk", {}, "it lacks 1 token ('a') and has 8 additional tokens ('d', 'e', 'f', 'g', 'h' and 3 more)"),
    "missing only": ("abc", "ab", {}, "it lacks 1 token ('c'); pass vocabulary=base"),
    "another unknown piece": (PIECES, ["?unk", *PIECES[1:]], {"types": {"?unk": "UNKNOWN"}}, "piece '?unk' is UNKNOWN and not in"),
    "another kind of piece": (PIECES, [*PIECES, "x"], {"types": {"ab": "CONTROL"}}, "piece 'ab' is CONTROL, but NORMAL in"),
    "another normalisation": (PIECES, [*PIECES, "x"], {"normaliser": "identity"}, "normalisation is identity"),
    "another segmentation": (PIECES, [*PIECES, "x"], {"kind": "BPE"}, "segmentation is bpe instead of unigram"),
}  # fmt: skip


@pytest.mark.parametrize(("mine", "theirs", "options", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_brought_together(mine, theirs, options, expected, tmp_path):
    base = model(tmp_path / "base.nemo", mine)
    config, artefacts = config_of(theirs)
    if options:
        extra = {**options, **options.get("types", {})}
        extra.pop("types", None)
        artefacts["one_tokenizer.model"] = sentencepiece_model(theirs, **extra)
    expert = write_nemo(tmp_path / "expert.nemo", tensors(flat(theirs), 1), config, artefacts)
    policy = "union" if options else "strict"
    with pytest.raises(PlanError) as caught:
        merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary=policy)
    (problem,) = caught.value.problems
    assert expected in problem
    assert "expert.nemo" in problem
    assert not (tmp_path / "out.nemo").exists()


def test_another_way_from_text_to_the_same_tokens_is_worth_a_warning(tmp_path):
    base = model(tmp_path / "base.nemo", PIECES)
    config, artefacts = config_of(PIECES)
    artefacts["one_tokenizer.model"] = sentencepiece_model(PIECES, normaliser="identity")
    expert = write_nemo(tmp_path / "expert.nemo", tensors(PIECES, 1), config, artefacts)
    report = merge(base, [expert], "soup", output=tmp_path / "out.nemo")
    assert "normalisation is identity" in report.warnings[0]
    assert "vocabulary" not in report.provenance  # rows were the same already


def test_sizes_that_do_not_fit_are_an_error(tmp_path):
    base = model(tmp_path / "base.nemo", "ab")
    config, _ = config_of("abc")
    expert = write_nemo(tmp_path / "expert.nemo", tensors("abcd", 1), config)
    with pytest.raises(
        PlanError, match=r"expert\.nemo: its rows cannot be aligned by token: tensor 'decoder\.decoder_layers"
    ):
        merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary="union")


def test_a_configuration_that_contradicts_itself(tmp_path):
    base = model(tmp_path / "base.nemo", "ab")
    config, _ = config_of("bc")
    config["labels"] = ["b", "d"]
    expert = write_nemo(tmp_path / "expert.nemo", tensors("bc", 1), config)
    with pytest.raises(PlanError, match=r"other tokens in decoder\.vocabulary than in labels"):
        merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary="union")


def test_rows_after_the_tokens_must_mean_the_same(tmp_path):
    base, expert = model(tmp_path / "base.nemo", "ab", 0, "rnnt"), model(tmp_path / "expert.nemo", "abc", 1, "tdt")
    with pytest.raises(
        PlanError, match=r"'joint\.joint_net\.2\.weight' has 4 rows after those of the tokens, but 1 in"
    ):
        merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary="base")


def test_another_width_is_reported_as_such(tmp_path):
    base = model(tmp_path / "base.nemo", "ab")
    weights = tensors("abc", 1)
    weights["decoder.decoder_layers.0.weight"] = torch.ones(4, 5, 1)
    expert = write_nemo(tmp_path / "expert.nemo", weights, config_of("abc")[0])
    with pytest.raises(PlanError, match=r"'decoder\.decoder_layers\.0\.weight' is \[4, 5, 1\] instead of \[3, 12, 1\]"):
        merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary="union")


def test_experts_that_bring_one_language_by_different_rules(tmp_path):
    base = model(tmp_path / "base.nemo", {"pt": ["<unk>", "a"]})
    first = model(tmp_path / "first.nemo", {"pt": ["<unk>", "a"], "es": ["<unk>", "b"]}, 1)
    tokens = {"pt": ["<unk>", "a"], "es": ["<unk>", "c"]}
    config, artefacts = config_of(tokens)
    artefacts["es_tokenizer.model"] = sentencepiece_model(tokens["es"], normaliser="identity")
    second = write_nemo(tmp_path / "second.nemo", tensors(flat(tokens), 2), config, artefacts)
    with pytest.raises(
        PlanError, match=r"second\.nemo: its tokenizer cannot be united .* normalisation of es is identity"
    ):
        merge(base, [first, second], "soup", output=tmp_path / "out.nemo", vocabulary="union")


def test_an_expert_under_other_names_and_twice(tmp_path):
    """What a wrapper of a model put before its names does not hide the tokens."""
    base, plain = model(tmp_path / "base.nemo", PIECES), model(tmp_path / "plain.nemo", [*PIECES, "x"], 1)
    config, artefacts = config_of([*PIECES, "x"])
    wrapped = {f"module.{name}": value for name, value in tensors([*PIECES, "x"], 1).items()}
    other = write_nemo(tmp_path / "wrapped.nemo", wrapped, config, artefacts)
    merge(base, [plain, plain], "ties", output=tmp_path / "a.nemo", vocabulary="union")
    merge(base, [other, other], "ties", output=tmp_path / "b.nemo", vocabulary="union")
    assert same_tensors(tmp_path / "a.nemo", tmp_path / "b.nemo")


def test_emr_cannot_grow(tmp_path):
    base, expert = model(tmp_path / "base.nemo", "ab"), model(tmp_path / "expert.nemo", "abc", 1)
    with pytest.raises(PlanError, match="emr needs the base beside its package"):
        merge(base, [expert], "emr", output=tmp_path / "out.nemo", vocabulary="union")
    merge(base, [expert], "emr", output=tmp_path / "out.nemo", vocabulary="base")


def test_a_policy_that_does_not_exist(nemo_family, tmp_path):
    base, experts = nemo_family
    with pytest.raises(ConfigError, match="vocabulary='unoin' does not exist; did you mean 'union'"):
        merge(base, experts, "soup", output=tmp_path / "out.nemo", vocabulary="unoin")


def test_the_same_tokenizers_are_not_read(tmp_path, monkeypatch):
    base, expert = model(tmp_path / "base.nemo", PIECES), model(tmp_path / "expert.nemo", PIECES, 1)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary="union")


def test_without_sentencepiece_the_way_out_is_named(tmp_path, monkeypatch):
    base, expert = model(tmp_path / "base.nemo", PIECES), model(tmp_path / "expert.nemo", [*PIECES, "x"], 1)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(PlanError, match=r"pip install 'nemo-merge\[vocabulary\]'"):
        merge(base, [expert], "soup", output=tmp_path / "out.nemo", vocabulary="union")


def test_the_plan_tells_what_happens_to_tokens(tmp_path):
    base, expert = model(tmp_path / "base.nemo", "ab"), model(tmp_path / "expert.nemo", "bac", 1)
    arguments = ["plan", "method=soup", f"base={base}", f"experts=[{expert}]", "vocabulary=union"]
    result = CliRunner().invoke(cli, arguments)
    assert "vocabulary=union: 3 tokens, rows aligned in 2 tensors; 1 new ('c')" in result.output
    with open_checkpoint(base) as a, open_checkpoint(expert) as b:
        plan = plan_merge(a, [b], methods.get("soup"), vocabulary="union")
        assert plan.alignment.record() == {
            "policy": "union",
            "tokens": 3,
            "added": 1,
            "dropped": 0,
            "tensors": ["decoder.decoder_layers.0.bias", "decoder.decoder_layers.0.weight"],
            "new_rows": ["2"],
        }


class TestHuggingFace:
    """Whisper's folders: tokens have numbers in several files, and rows may be more than tokens."""

    @staticmethod
    def folder(path, tokens, seed, rows=None, added=()):
        names = [*tokens, *added]
        count = rows or len(names)
        padded = [*names, *(f"after {place}" for place in range(count - len(names)))]
        state = tensors(padded, seed)
        state = {name: value for name, value in state.items() if not name.startswith("decoder")}
        state["model.decoder.embed_tokens.weight"] = rows_by_token(padded, seed, "embed", 8)
        state["model.decoder.embed_positions.weight"] = rows_by_token(["p", "q"], seed, "positions", 8)
        write_huggingface(path, state)
        (path / "tokenizer.json").unlink()
        (path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
        numbers = {token: len(tokens) + place for place, token in enumerate(added)}
        (path / "added_tokens.json").write_text(json.dumps(numbers))
        return path

    def test_rows_are_aligned_by_number(self, tmp_path):
        base = self.folder(tmp_path / "base", ["a", "b", "c"], 0, 6, ["<|pt|>"])
        plain = self.folder(tmp_path / "plain", ["a", "b", "c"], 1, 6, ["<|pt|>"])
        mixed = self.folder(tmp_path / "mixed", ["c", "a", "b"], 1, 6, ["<|pt|>"])
        merge(base, [plain], "ties", output=tmp_path / "one")
        merge(base, [mixed], "ties", output=tmp_path / "two")
        assert same_tensors(tmp_path / "one", tmp_path / "two")

    def test_the_base_is_kept_and_cannot_grow(self, tmp_path):
        base = self.folder(tmp_path / "base", ["a", "b"], 0, 4, ["<|pt|>"])
        expert = self.folder(tmp_path / "expert", ["b", "a", "x"], 1, 6, ["<|es|>"])
        report = merge(base, [expert], "soup", output=tmp_path / "out", vocabulary="base")
        assert "2 tokens of experts" in report.warnings[0]
        with open_checkpoint(tmp_path / "out") as out, open_checkpoint(base) as old, open_checkpoint(expert) as new:
            name = "model.decoder.embed_tokens.weight"
            torch.testing.assert_close(out[name][:2], new[name][[1, 0]])
            assert torch.equal(out[name][2], old[name][2])
            torch.testing.assert_close(out[name][3], new[name][4])  # the first row after the tokens
        with pytest.raises(PlanError, match="tokenizers of Hugging Face folders cannot grow"):
            merge(base, [expert], "soup", output=tmp_path / "union", vocabulary="union")

    def test_one_tokenizer_file_says_what_several_say(self, tmp_path):
        base = self.folder(tmp_path / "base", ["a", "b"], 0, None, ["<|pt|>"])
        expert = self.folder(tmp_path / "expert", ["a", "b"], 1, None, ["<|pt|>"])
        for name in ("vocab.json", "added_tokens.json"):
            (expert / name).unlink()
        content = {
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}},
            "added_tokens": [{"id": 2, "content": "<|pt|>"}],
        }
        (expert / "tokenizer.json").write_text(json.dumps(content))
        report = merge(base, [expert], "soup", output=tmp_path / "out")
        assert report.warnings == ()
        assert open_checkpoint(base).vocabulary().tokens == open_checkpoint(expert).vocabulary().tokens

    @pytest.mark.parametrize("content", ['{"a": "x"}', '{"a": -1}', '{"a": 99999999}', '{"a": 0, "b": 1, "c": true}'])
    def test_damaged_numbers(self, content, tmp_path):
        folder = self.folder(tmp_path / "base", ["a"], 0)
        (folder / "vocab.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"base"):
            open_checkpoint(folder).vocabulary()


def test_other_formats_of_nemo_models_and_outputs(tmp_path):
    """An unpacked folder tells its tokens; no output takes an expert's tokenizer for rows in the base's order."""
    base = model(tmp_path / "base.nemo", "abc")
    expert = model(tmp_path / "expert.nemo", "cab", 1)
    for name in ("base", "expert"):
        with tarfile.open(tmp_path / f"{name}.nemo") as tar:
            tar.extractall(tmp_path / name, filter="data")
    merge(base, [expert], "ties", output=tmp_path / "one.nemo")
    merge(base, [tmp_path / "expert"], "ties", output=tmp_path / "two.nemo")
    assert same_tensors(tmp_path / "one.nemo", tmp_path / "two.nemo")
    merge(base, [expert], "ties", output=tmp_path / "three.safetensors")
    with open_checkpoint(tmp_path / "one.nemo") as a, open_checkpoint(tmp_path / "three.safetensors") as b:
        assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(OutputError, match="cannot be written in this format"):
        merge(tmp_path / "base", [expert], "ties", output=tmp_path / "four.nemo")
