"""Mapping policies as plain functions on small hand-made views."""

import pickle

import numpy as np
import pytest
from attrs import evolve

from hetmem.errors import CapacityError, ConfigError
from hetmem.policy.kernel_mapping import (
    GreedyMapper,
    Mapping,
    MappingView,
    SplitTable,
    StaticMapper,
    Tier,
    parts_of,
)
from hetmem.policy.kernel_search import (
    STATELESS,
    MajorMapper,
    NaiveMapper,
    OracleMapper,
    fastest,
    fastest_static,
    kv_first_static,
)


def table(parts, fast_part_s, slow_part_s, part_bytes):
    """Return a sub-layer whose halves take time in proportion to their parts."""
    n = np.arange(parts + 1)
    return SplitTable(n * fast_part_s, n[::-1] * slow_part_s, n * part_bytes, n[::-1] * part_bytes)


def view(fast_bytes=1000, slow_bytes=1000, attention=None, qkv=None, fc=None):
    return MappingView(
        attention=attention or table(4, 1.0, 3.0, 10),
        qkv=qkv or table(4, 2.0, 2.0, 20),
        fc=fc or table(8, 2.0, 2.0, 30),
        fast=Tier("HBM", fast_bytes),
        slow=Tier("LPDDR", slow_bytes),
    )


def test_greedy_balances_the_finishing_times_where_all_fits():
    assert GreedyMapper().decide(view()) == Mapping(attention=3, qkv=2, fc=4)


def test_greedy_serves_attention_first_then_qkv_then_fc():
    assert GreedyMapper().decide(view(fast_bytes=80)) == Mapping(attention=3, qkv=2, fc=0)
    assert GreedyMapper().decide(view(fast_bytes=50)) == Mapping(attention=3, qkv=1, fc=0)
    assert GreedyMapper().decide(view(fast_bytes=20)) == Mapping(attention=2, qkv=0, fc=0)


def test_greedy_follows_another_order():
    assert GreedyMapper(order=["fc", "qkv", "attention"]).decide(view(fast_bytes=130)) == Mapping(1, 0, 4)
    with pytest.raises(ConfigError, match="order: expected each of attention, qkv, fc once"):
        GreedyMapper(order=("fc", "qkv"))


def test_of_equal_times_the_fewest_parts_on_the_fast_side():
    flat = SplitTable([2.0, 1.0, 1.0, 2.0], [2.0, 1.0, 1.0, 0.0], [0, 1, 2, 3], [3, 2, 1, 0])
    assert GreedyMapper().decide(view(attention=flat)).attention == 1


def test_the_splits_that_fit_are_a_range():
    uneven = SplitTable(np.ones(6), np.ones(6), [0, 0, 10, 10, 30, 40], [40, 40, 30, 30, 10, 0])
    for fast_free in range(-1, 45):
        for slow_free in range(-1, 45):
            fits = (uneven.fast_bytes <= fast_free) & (uneven.slow_bytes <= slow_free)
            assert list(uneven.fitting(fast_free, slow_free)) == np.flatnonzero(fits).tolist()


def test_alpha_shifts_the_balance_of_its_sublayer_only():
    slowed = GreedyMapper(alpha={("attention", "fast"): 10.0})
    assert slowed.decide(view()) == Mapping(attention=1, qkv=2, fc=4)
    with pytest.raises(ConfigError, match="alpha: unknown"):
        GreedyMapper(alpha={("ffn", "fast"): 1.0})
    with pytest.raises(ConfigError, match=r"alpha\[fc, slow\]: expected a positive factor, not 0"):
        GreedyMapper(alpha={("fc", "slow"): 0})


def test_greedy_raises_where_another_mapping_exists():
    # 360 bytes in 120 + 240: attention and QKV take 80 of the fast memory, and 240 of FC have no place.
    full = view(fast_bytes=120, slow_bytes=240)
    with pytest.raises(CapacityError) as error:
        GreedyMapper().decide(full)
    assert error.value.memory == "LPDDR"
    assert error.value.args == ("LPDDR", 210, 190, 240, (("attention", 10), ("qkv", 40)))
    best = OracleMapper().decide(full)
    assert full.fits(best)
    assert full.fast_bytes(best) == 120


def test_capacity_error_names_what_no_mapping_can_hold():
    with pytest.raises(CapacityError) as error:
        OracleMapper().decide(view(fast_bytes=100, slow_bytes=200))
    assert error.value.args == ("LPDDR", 260, 200, 200, ())


def test_splits_that_overfill_the_fast_memory_name_it():
    splits = {"attention": np.array([4]), "qkv": np.array([4]), "fc": np.array([7, 8])}
    with pytest.raises(CapacityError) as error:
        fastest(view(fast_bytes=300), splits)
    assert error.value.args == ("HBM", 330, 300, 300, ())


def test_oracle_looks_at_every_mapping():
    for fast_bytes in range(0, 400, 10):
        tight = view(fast_bytes=fast_bytes)
        every = [Mapping(a, q, f) for a in range(5) for q in range(5) for f in range(9)]
        best = min(tight.time_s(m) for m in every if tight.fits(m))
        assert tight.time_s(OracleMapper().decide(tight)) == best


def test_major_fills_the_fast_memory_with_its_sublayer_first():
    assert MajorMapper("fc").decide(view(fast_bytes=100)).fc == 3
    assert MajorMapper("qkv").decide(view(fast_bytes=100)).qkv == 4
    assert MajorMapper("attention").decide(view(fast_bytes=110)) == Mapping(attention=4, qkv=2, fc=1)
    with pytest.raises(ConfigError, match="sublayer: expected one of attention, qkv, fc, not 'ffn'"):
        MajorMapper("ffn")


def test_naive_places_whole_sublayers():
    assert NaiveMapper().decide(view(fast_bytes=120)) == Mapping(attention=4, qkv=0, fc=0)
    roomy = view(fc=table(8, 1.0, 2.0, 30))
    assert NaiveMapper().decide(roomy) == Mapping(attention=4, qkv=0, fc=8)


def test_naive_raises_where_whole_sublayers_do_not_fit():
    with pytest.raises(CapacityError):
        NaiveMapper().decide(view(fast_bytes=100, slow_bytes=260))
    OracleMapper().decide(view(fast_bytes=100, slow_bytes=260))


def test_static_keeps_its_fractions_and_checks_both_memories():
    static = StaticMapper(weights=0.5, kv=0.25)
    assert static.decide(view()) == Mapping(attention=1, qkv=2, fc=4)
    with pytest.raises(CapacityError, match="HBM"):
        static.decide(view(fast_bytes=169))
    with pytest.raises(CapacityError, match="LPDDR"):
        static.decide(view(slow_bytes=189))
    assert view(fast_bytes=170, slow_bytes=190).fits(static.decide(view(fast_bytes=170, slow_bytes=190)))
    with pytest.raises(ConfigError, match=r"kv: expected a fraction from 0 to 1, not 1\.5"):
        StaticMapper(weights=0.5, kv=1.5)


def test_fastest_static_is_the_best_of_its_grid():
    for fast_bytes in range(0, 400, 30):
        tight = view(fast_bytes=fast_bytes)
        chosen = fastest_static(tight)
        grid = [StaticMapper(w / 8, k / 4) for w in range(9) for k in range(5)]
        times = []
        for static in grid:
            try:
                times.append(tight.time_s(static.decide(tight)))
            except CapacityError:
                continue
        assert tight.time_s(chosen.decide(tight)) == min(times)


def test_kv_first_static_takes_all_kv_then_all_weights_that_fit():
    assert kv_first_static(view(fast_bytes=25)) == StaticMapper(weights=0.0, kv=0.5)
    assert kv_first_static(view(fast_bytes=100)) == StaticMapper(weights=1 / 8, kv=1.0)
    assert kv_first_static(view()) == StaticMapper(weights=1.0, kv=1.0)


def test_static_refuses_what_no_fractions_fit():
    with pytest.raises(CapacityError):
        fastest_static(view(fast_bytes=100, slow_bytes=200))
    with pytest.raises(CapacityError):
        kv_first_static(view(fast_bytes=100, slow_bytes=200))


def test_parts_of_rounds_to_the_nearest():
    assert [parts_of(f, 8) for f in (0.0, 0.06, 0.07, 0.5, 1.0)] == [0, 0, 1, 4, 8]


@pytest.mark.parametrize("name", [*STATELESS, "greedy", "static"])
def test_a_mapper_repeats_itself_leaves_the_view_and_pickles(name):
    mappers = {"greedy": GreedyMapper(), "static": fastest_static(view(fast_bytes=140))}
    mapper = mappers[name] if name in mappers else STATELESS[name]()
    given, same = view(fast_bytes=140), view(fast_bytes=140)
    first = mapper.decide(given)
    assert given == same
    assert mapper.decide(given) == first
    assert pickle.loads(pickle.dumps(mapper)).decide(pickle.loads(pickle.dumps(given))) == first
    assert given.fits(first)


def test_a_view_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        view().attention.fast_s[0] = 1.0


def test_shares_are_fractions_of_parts():
    assert view().shares(Mapping(1, 2, 8)) == {"attention": 0.25, "qkv": 0.5, "fc": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slow_s": [1.0]}, "slow_s: expected 5 values in one row, at least 2"),
        ({"fast_s": [0, 1, 2, 3, np.inf]}, "fast_s: expected finite values of at least 0"),
        ({"slow_s": [4, 3, 2, 1, -1]}, "slow_s: expected finite values of at least 0"),
        ({"slow_s": [4, np.nan, 2, 1, 0]}, "slow_s: expected finite values of at least 0"),
        ({"fast_bytes": [-1, 0, 1, 2, 3]}, "a side without parts must hold no bytes"),
        ({"fast_bytes": [0, 2, 1, 3, 4]}, "fast_bytes: must not fall"),
        ({"slow_bytes": [40, 41, 20, 10, 0]}, "fast_bytes: must not fall, nor slow_bytes rise"),
        ({"slow_bytes": [40, 30, 20, 10, 1]}, "a side without parts must hold no bytes"),
    ],
)
def test_bad_tables_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        evolve(table(4, 1.0, 3.0, 10), **change)
