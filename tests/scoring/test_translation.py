from __future__ import annotations

import sys

import numpy as np
import pytest

from nemo_merge.errors import ConfigError
from nemo_merge.scoring import bleu, chrf
from nemo_merge.scoring.translation import resampled_bleu

sacrebleu = pytest.importorskip("sacrebleu")

REFERENCES = ["The cat sits on the mat.", "It is raining today, again."]
HYPOTHESES = ["The cat sat on the mat.", "Today it rains again."]


def test_sacrebleu_computes_the_same():
    assert bleu(REFERENCES, HYPOTHESES).score == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score)
    assert chrf(REFERENCES, HYPOTHESES).score == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score)
    plus = sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score
    assert chrf(REFERENCES, HYPOTHESES, word_order=2).score == pytest.approx(plus)
    assert "tok:13a" in bleu(REFERENCES, HYPOTHESES).signature
    assert "tok:char|" in bleu(REFERENCES, HYPOTHESES, tokenize="char").signature
    assert bleu(REFERENCES, REFERENCES).score == pytest.approx(100)


def test_by_hand():
    """Precisions 4/4, 3/3, 2/2, 1/1 and a brevity penalty of exp(1 - 5/4)."""
    assert bleu(["a b c d e"], ["a b c d"]).score == pytest.approx(100 * 2.718281828 ** (1 - 5 / 4))


def test_what_is_missing(monkeypatch):
    with pytest.raises(ValueError, match="one hypothesis per reference"):
        bleu(["a"], [])
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(
        ConfigError, match=r"BLEU needs sacrebleu, which is not installed: pip install 'nemo-merge\[score\]'"
    ):
        bleu(["a"], ["a"])


def test_bleu_of_samples_is_that_of_the_drawn_utterances():
    references = [*REFERENCES, "The dog barks at the neighbours.", "Nobody came."]
    hypotheses = [*HYPOTHESES, "The dog barks at the neighbours.", "No."]
    drawn = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 1, 0, 3], [0, 0, 4, 0]])
    found = resampled_bleu(references, hypotheses, drawn)
    for counts, score in zip(drawn, found, strict=True):
        at = np.repeat(np.arange(4), counts)
        assert score == pytest.approx(bleu([references[i] for i in at], [hypotheses[i] for i in at]).score)
    assert found[3] == pytest.approx(100)
