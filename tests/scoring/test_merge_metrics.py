from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nemo_merge.scoring
from nemo_merge.scoring import domain_means, language_retention, normalised_performance, set_means


def test_normalised_performance_by_hand():
    base, experts = {"pt": 0.5, "de": 0.4, "it": 0.3}, {"pt": 0.25, "de": 0.2, "it": 0.3}
    merged = {"pt": 0.375, "de": 0.25, "it": 0.1}
    result = normalised_performance(base, experts, merged)
    assert result.by_set == pytest.approx({"pt": 0.5, "de": 0.75})
    assert result.value == pytest.approx(0.625)
    assert result.undefined == ("it",)


def test_normalised_performance_of_bleu():
    result = normalised_performance({"pt": 20}, {"pt": 30}, {"pt": 26}, higher_is_better=True)
    assert result.value == pytest.approx(0.6)
    assert normalised_performance({"pt": 20}, {"pt": 30}, {"pt": 26}).undefined == ("pt",)


def test_no_expert_is_better():
    result = normalised_performance({"pt": 0.2}, {"pt": 0.2}, {"pt": 0.1})
    assert math.isnan(result.value)
    with pytest.raises(ValueError, match="merged has no entry for de"):
        normalised_performance({"pt": 1, "de": 1}, {"pt": 0.5, "de": 0.5}, {"pt": 0.5})


RATES = st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 1), min_size=1)


@given(RATES, st.floats(0.1, 0.9))
def test_what_normalised_performance_is_of_base_and_experts(base, share):
    experts = {name: share * rate for name, rate in base.items()}
    assert normalised_performance(base, experts, base).value == pytest.approx(0)
    assert normalised_performance(base, experts, experts).value == pytest.approx(1)
    half = {name: (rate + experts[name]) / 2 for name, rate in base.items()}
    assert normalised_performance(base, experts, half).value == pytest.approx(0.5)


def test_set_means_of_a_published_table():
    """15.62 % over ten sets in domain and 25.21 % over five others are 18.82 % over all (arXiv 2603.05354)."""
    rates = {f"in {index}": 0.1562 for index in range(10)} | {f"out {index}": 0.2521 for index in range(5)}
    result = set_means(rates, [f"out {index}" for index in range(5)])
    assert result == pytest.approx((0.1562, 0.2521, 0.1882), abs=5e-5)


def test_means_by_domain_and_by_set_differ():
    rates = {"news 1": 0.1, "news 2": 0.2, "talks": 0.6}
    domains = {"news 1": "news", "news 2": "news", "talks": "talks"}
    assert set_means(rates).full == pytest.approx(0.3)
    assert domain_means(rates, domains).full == pytest.approx((0.15 + 0.6) / 2)
    assert domain_means(rates, domains, ["talks"]) == pytest.approx((0.15, 0.6, 0.375))
    assert set_means(rates, ["talks"]).in_domain == pytest.approx(0.15)
    assert set_means({"a": 0.1}, ["a"]).in_domain is None
    assert set_means({}).full is None
    with pytest.raises(ValueError, match="no entry for gone"):
        set_means(rates, ["gone"])
    with pytest.raises(ValueError, match="domains has no entry for talks"):
        domain_means(rates, {"news 1": "news", "news 2": "news"})


def test_retention_by_hand():
    kept = language_retention(
        {"en": 0.04, "pt": 0.5, "xx": 0.0, "yy": 1.2}, {"en": 0.08, "pt": 0.25, "xx": 0.1, "yy": 1.0}
    )
    assert kept["en"] == pytest.approx((0.04, 0.08, 0.04, 1.0, 0.92 / 0.96))
    assert kept["pt"] == pytest.approx((0.5, 0.25, -0.25, -0.5, 1.5))
    assert kept["xx"].relative is None
    assert kept["yy"].accuracy_kept is None
    with pytest.raises(ValueError, match="merged has no entry for pt"):
        language_retention({"pt": 0.1}, {})


def test_all_public_names_are_there():
    for name in nemo_merge.scoring.__all__:
        assert getattr(nemo_merge.scoring, name) is not None
    assert callable(nemo_merge.scoring.mapsswe)
    with pytest.raises(AttributeError, match="no attribute 'mer'"):
        _ = nemo_merge.scoring.mer
