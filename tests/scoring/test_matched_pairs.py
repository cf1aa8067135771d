from __future__ import annotations

import math
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.scoring import mapsswe
from nemo_merge.scoring.error_rates import sum_counts, utterance_errors
from nemo_merge.scoring.tokens import words


def test_by_hand():
    """Four segments, with the errors of A and B: (1, 0), (1, 1), (1, 0), (1, 0)."""
    references = ["a b c d e f g h i", "k l m", "o p q r"]
    system_a = ["a X c d e f Y h i", "k l m", "p q r s"]
    system_b = ["a b c d e f Z h i", "k l m", "o p q r"]
    result = mapsswe(references, system_a, system_b)
    assert (result.segments, result.errors_a, result.errors_b) == (4, 4, 1)
    differences = [1, 0, 1, 1]  # the deletion of o and the insertion of s are three correct words apart
    mean = sum(differences) / 4
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 3)
    assert result.mean_difference == mean == 0.75
    assert result.z == pytest.approx(mean / (deviation / 2)) == pytest.approx(3.0)
    assert result.p_value == pytest.approx(0.0026998, abs=1e-7)  # two tails beyond three standard deviations


@pytest.mark.parametrize(
    ("reference", "a", "b", "segments"),
    [
        ("a b c d", "X b c Y", "a b c d", 2),  # two correct words separate
        ("a b c", "X b Y", "a b c", 1),  # one does not
        ("a b c d", "X b c d", "a b Y d", 1),  # correct for A alone is not correct
        ("a b c d", "a b x c d", "a b c d", 1),  # an insertion
        ("a b c d", "a b x c y d", "a b c d", 1),  # two, with one word between them
        ("a b", "a b x", "a b", 1),  # at the end
        ("a b", "x a b", "y a b", 1),
        ("a b", "a b", "a b", 0),
        ("a", "", "", 1),
    ],
)
def test_what_separates_segments(reference, a, b, segments):
    assert mapsswe([reference], [a], [b]).segments == segments


def test_utterances_are_separate():
    assert mapsswe(["a", "a"], ["", ""], ["a", "a"]).segments == 2


def test_nothing_to_tell_apart():
    """Without spread there is no standard error; SCTK reports Z = 0 as well."""
    for hypotheses in (["a b"] * 3, ["a x"] * 3):
        result = mapsswe(["a b"] * 3, hypotheses, ["a b"] * 3)
        assert (result.z, result.p_value) == (0, 1)
    with pytest.raises(ValueError, match="one hypothesis per reference"):
        mapsswe(["a"], ["a"], [])


TEXT = st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6))
def test_swapping_the_systems_turns_the_sign(rows):
    references, a, b = map(list, zip(*rows, strict=True))
    forward, back = mapsswe(references, a, b), mapsswe(references, b, a)
    assert (back.segments, back.errors_a, back.errors_b) == (forward.segments, forward.errors_b, forward.errors_a)
    assert back.mean_difference == pytest.approx(-forward.mean_difference)
    assert back.z == pytest.approx(-forward.z)
    assert back.p_value == pytest.approx(forward.p_value)
    assert forward.errors_a == sum_counts(utterance_errors(references, a, words, "sclite")).errors
    same = mapsswe(references, a, a)
    assert (same.mean_difference, same.z, same.p_value) == (0, 0, 1)


def test_a_true_difference_is_found_and_a_false_one_rarely():
    rng = random.Random(0)

    def noisy(rate: float) -> list[str]:
        return [" ".join("x" if rng.random() < rate else word for word in text.split()) for text in references]

    references = [" ".join(rng.choice("abcdefgh") for _ in range(10)) for _ in range(60)]
    assert mapsswe(references, noisy(0.3), noisy(0.1)).p_value < 0.001
    false = sum(mapsswe(references, noisy(0.2), noisy(0.2)).p_value < 0.05 for _ in range(100))
    assert false <= 12


def sctk(program: str) -> str:
    """The program of the NIST Scoring Toolkit, Debian's package sctk."""
    found = shutil.which(
        program, path=os.pathsep.join([os.environ.get("SCTK_BIN", ""), os.environ["PATH"], "/usr/lib/sctk/bin"])
    )
    if found is None:
        pytest.skip(f"{program} of the NIST Scoring Toolkit is not installed (Debian: sctk; or SCTK_BIN)")
    return found


def corrupted(rng: random.Random, text: list[str], vocabulary: list[str]) -> list[str]:
    heard = []
    for word in text:
        draw = rng.random()
        heard += [rng.choice(vocabulary)] if draw < 0.09 else [] if draw < 0.13 else [word]
        heard += [rng.choice(vocabulary)] if rng.random() < 0.04 else []
    return heard


@pytest.mark.parametrize("seed", range(3))
def test_sc_stats_finds_the_same(tmp_path: Path, seed):
    sclite, sc_stats = sctk("sclite"), sctk("sc_stats")
    rng = random.Random(seed)
    vocabulary = [f"w{index}" for index in range(40)]
    references = [[rng.choice(vocabulary) for _ in range(rng.randint(1, 20))] for _ in range(400)]
    a = [corrupted(rng, text, vocabulary) for text in references]
    b = [
        old if rng.random() < 0.6 else corrupted(rng, text, vocabulary) for text, old in zip(references, a, strict=True)
    ]
    sides = {"ref": references, "a": a, "b": b}
    for name, texts in sides.items():
        lines = [f"{' '.join(text)} (s{index % 5}-u{index})\n" for index, text in enumerate(texts)]
        (tmp_path / f"{name}.trn").write_text("".join(lines))
    aligned = b""
    for name in "ab":
        command = [
            sclite,
            "-r",
            "ref.trn",
            "trn",
            "-h",
            f"{name}.trn",
            "trn",
            name,
            "-i",
            "spu_id",
            "-o",
            "sgml",
            "stdout",
        ]
        aligned += subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    subprocess.run(
        [sc_stats, "-p", "-t", "mapsswe", "-v", "-n", "out"],
        cwd=tmp_path,
        input=aligned,
        check=True,
        capture_output=True,
    )
    report = (tmp_path / "out.stats.mapsswe").read_text(errors="replace")

    ours = mapsswe(*([" ".join(text) for text in texts] for texts in sides.values()))
    totals = re.search(r"Totals\s+\d+\s+(\d+)\s+(\d+)", report)
    assert (ours.errors_a, ours.errors_b) == (int(totals[1]), int(totals[2]))
    found = re.search(r"# segs: (\d+)\).*\(mean: (\S+)\).*\(Z Stat: (\S+)\)", report)
    assert ours.segments == int(found[1])
    assert ours.mean_difference == pytest.approx(float(found[2]), abs=6e-4)
    assert ours.z == pytest.approx(float(found[3]), abs=6e-4)
