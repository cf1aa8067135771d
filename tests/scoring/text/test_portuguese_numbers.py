from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.errors import ConfigError

num2words = pytest.importorskip("num2words").num2words

from nemo_merge.scoring.text.portuguese_numbers import spell_numbers  # noqa: E402


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("16, 17 e 19", "dezasseis, dezassete e dezanove"),
        ("1998", "mil novecentos e noventa e oito"),
        ("1.250", "mil duzentos e cinquenta"),
        ("10 000 e 10\u202f000", "dez mil e dez mil"),
        ("1000000000", "mil milhões"),
        ("3,14", "três vírgula catorze"),
        ("3,05", "três vírgula zero cinco"),
        ("1.250,50", "mil duzentos e cinquenta vírgula cinquenta"),
        ("3.5", "três ponto cinco"),
        ("2.ª e 21.º e 25º", "segunda e vigésimo primeiro e vigésimo quinto"),
        ("10% e 0,5 %", "dez por cento e zero vírgula cinco por cento"),
        ("10 € e 1€", "dez euros e um euro"),
        ("10,50 € e 10,01€ e 7,00 €", "dez euros e cinquenta cêntimos e dez euros e um cêntimo e sete euros"),
        ("1.000.000 €", "um milhão de euros"),
        ("R$ 5,20 e US$ 3", "cinco reais e vinte centavos e três dólares"),
        ("15h30, 8:05 e 1h", "quinze horas e trinta, oito horas e cinco e uma hora"),
        ("às 22h", "às vinte e duas horas"),
        ("-5 graus", "menos cinco graus"),
        ("007", "zero zero sete"),
        ("1998-2004", "mil novecentos e noventa e oito -dois mil e quatro"),
        ("1" * 16, " ".join(["um"] * 16)),
        ("0.º", "zero"),
        ("10km", "dez km"),
        ("em 2020 300 pessoas", "em dois mil e vinte trezentos pessoas"),
        ("A4 e COVID-19", "A4 e COVID-dezanove"),
        ("fim: 12.", "fim: doze."),
        ("versão 2.0.1", "versão dois.zero.um"),
        ("25/12/1998", "vinte e cinco/doze/mil novecentos e noventa e oito"),
        ("...16", "...dezasseis"),
        ("sem números", "sem números"),
    ],
)  # fmt: skip
def test_by_hand(written, said):
    assert spell_numbers(written) == said


@given(st.integers(0, 10**12))
def test_digits_become_words_however_they_are_grouped(number):
    said = num2words(number, lang="pt")
    assert spell_numbers(str(number)) == said
    assert spell_numbers(f"{number:,}".replace(",", ".")) == said
    assert spell_numbers(f"{number:,}".replace(",", " ")) == said


@given(st.text("0123456789.,:hH%€$R-ºª aé", max_size=15))
def test_any_text_can_be_read(text):
    assert spell_numbers(spell_numbers(text)) is not None


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert spell_numbers("nada") == "nada"
    with pytest.raises(ConfigError, match=r"needs num2words.*pip install 'nemo-merge\[score\]'"):
        spell_numbers("16")
