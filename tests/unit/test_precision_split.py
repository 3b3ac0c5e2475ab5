"""Formats by score, storage layouts, and the offline search on a table the user gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmem.errors import ConfigError
from hetmem.policy.precision_split import (
    PrecisionSplit,
    QualityTable,
    ScoreView,
    search_ratio,
    stored_ratio,
)


def test_the_highest_scores_take_the_widest_format():
    decision = PrecisionSplit().decide(ScoreView(np.array([0.1, 0.9, 0.5, 0.2])))
    assert decision.bits.tolist() == [4, 16, 8, 4]
    assert decision.counts == (1, 1, 2)
    assert decision.total_bits == 32


def test_of_equal_scores_the_first_counts_as_higher():
    assert PrecisionSplit((16, 4), (0.5, 0.5)).decide(ScoreView(np.ones(4))).bits.tolist() == [16, 16, 4, 4]


@given(
    scores=st.lists(st.floats(-5, 5), max_size=60),
    weights=st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any),
)
def test_every_neuron_gets_one_format_and_no_higher_score_a_narrower_one(scores, weights):
    split = PrecisionSplit((16, 8, 4), tuple(w / sum(weights) for w in weights))
    decision = split.decide(ScoreView(np.array(scores)))
    assert sum(decision.counts) == len(scores)
    assert [int((decision.bits == b).sum()) for b in split.bits] == list(decision.counts)
    ranked = decision.bits[np.argsort(-np.array(scores), kind="stable")] if scores else decision.bits
    assert (np.diff(ranked) <= 0).all()
    for count, share in zip(decision.counts, split.shares, strict=True):
        assert abs(count - share * len(scores)) <= 1
    assert abs(decision.total_bits / 16 - split.mean_ratio * len(scores)) <= 1.5


def test_stored_bytes_by_layout():
    split = PrecisionSplit((16, 8, 4), (0.5, 0.5, 0.0))
    assert stored_ratio("fp16_master", split) == 1.0
    assert stored_ratio("multi_copy", split) == 1.5  # no INT4 copy where none is used
    assert stored_ratio("static_mixed", split) == 0.75
    with pytest.raises(ConfigError, match=r"storage_layout: .*static_mixed.*'zip'"):
        stored_ratio("zip", split)


@pytest.mark.parametrize(
    ("field", "bits", "shares"),
    [
        ("shares", (16, 8), (1.0,)),
        ("bits", (8, 16), (0.5, 0.5)),
        ("bits", (32, 16), (0.5, 0.5)),
        ("shares", (16, 8), (0.5, 0.6)),
        ("shares", (16, 8), (1.5, -0.5)),
    ],
)
def test_a_bad_split_is_refused_by_name(field, bits, shares):
    with pytest.raises(ConfigError, match=field):
        PrecisionSplit(bits, shares)


def test_search_keeps_the_byte_budget_and_finds_the_least_entropy():
    table = QualityTable(high_share=(0.0, 0.1, 0.25), entropy=(3.0, 1.0, 2.0))
    search = search_ratio(table, high_bits=16, low_bits=4, step=0.05)
    assert [round(high, 9) for high, _, _ in search.tried] == [0, 0.05, 0.1, 0.15, 0.2, 0.25]
    for high, low, _ in search.tried:
        assert 16 * high + 4 * low == pytest.approx(4)
    assert search.best == (0.1, pytest.approx(0.6), 1.0)
    assert search.tried[1][2] == pytest.approx(2.0)  # between two points of the table


def test_search_prefers_the_narrow_format_where_nothing_is_gained():
    assert search_ratio(lambda _: 1.0, 8, 4).best[0] == 0


def test_a_table_is_not_stretched_beyond_its_points():
    table = QualityTable(high_share=(0.0, 0.1), entropy=(3.0, 1.0))
    with pytest.raises(ConfigError, match=r"no point at share 0.2; the table spans 0 to 0.1"):
        search_ratio(table, 16, 4, step=0.2)


@pytest.mark.parametrize(("shares", "entropy"), [((0.0, 0.1), (1.0,)), ((0.1, 0.0), (1.0, 2.0)), ((), ())])
def test_a_bad_table_is_refused(shares, entropy):
    with pytest.raises(ConfigError, match="quality"):
        QualityTable(high_share=shares, entropy=entropy)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("low_bits", {"high_bits": 4, "low_bits": 8}),
        ("low_share", {"high_bits": 16, "low_bits": 8, "low_share": 0.0}),
        ("step", {"high_bits": 16, "low_bits": 8, "step": 0.0}),
    ],
)
def test_a_bad_search_is_refused_by_name(field, arguments):
    with pytest.raises(ConfigError, match=field):
        search_ratio(lambda _: 1.0, **arguments)
