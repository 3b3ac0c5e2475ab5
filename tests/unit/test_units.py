"""Text to numbers, seconds to ticks, joules to femtojoules."""

import doctest
import math
from fractions import Fraction

import pint
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hetmem import units
from hetmem.errors import RangeError
from hetmem.units import MAX_PS, parse_quantity, power_fj_per_ps, to_fj, to_j, to_ps, to_s


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5.0), ("-5", -5.0), ("+.5", 0.5), ("1_000", 1000.0), ("2e3", 2000.0), ("1.5E-3", 0.0015),
        ("80 GB/s", 80e9), ("80GB/s", 80e9), (" 80  GB/s ", 80e9), ("16 GiB", 16 * 2**30), ("4 KiB", 4096.0),
        ("5 us", 5e-6), ("5 µs", 5e-6), ("100 ns", 1e-7), ("3 ps", 3e-12), ("1 s", 1.0), ("20 ms", 0.02),
        ("8 Gbit/s", 1e9), ("1 TB", 1e12), ("1.41 GHz", 1.41e9), ("312 TFLOPS", 312e12), ("2 GMAC/s", 2e9),
        ("300 W", 300.0), ("250 mW", 0.25), ("7 pJ", 7e-12), ("5 pJ/bit", 40e-12), ("5 pJ/B", 5e-12),
    ],
)  # fmt: skip
def test_quantities(text, value):
    assert parse_quantity(text) == pytest.approx(value, rel=1e-12)


def test_quantities_agree_with_pint():
    registry = pint.UnitRegistry()
    in_base_units = {
        "byte / second": ("80 GB/s", "3 TB/s", "0.5 Mbit/s", "2 KiB/s"), "byte": ("16 GiB", "3 MB"),
        "second": ("5 us", "12 ns", "3 ps", "2.5 ms"), "hertz": ("1.41 GHz",), "watt": ("250 mW", "1.2 kW"),
        "joule / byte": ("5 pJ/bit",),
    }  # fmt: skip
    for unit, texts in in_base_units.items():
        for text in texts:
            assert parse_quantity(text) == pytest.approx(registry.Quantity(text).to(unit).magnitude, rel=1e-9), text


@pytest.mark.parametrize(
    "text", ["", "GB", "five", "5 GB/h", "5 apples", "5 5", "0x10", "1e", "5 kk", "5 G", "nan", "5 /s"]
)
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValueError, match="is not a quantity such as"):
        parse_quantity(text)


def test_seconds_are_rounded_up_to_ticks():
    assert [to_ps(s) for s in (0.0, 1e-12, 1.1e-12, 1.9e-12, 2e-12, 1.0, 1.5)] == [0, 1, 2, 2, 2, 10**12, 15 * 10**11]
    assert type(to_ps(1e-12)) is int


@given(st.integers(0, 10**15))
@example(976626625)
@example(66548908034133)
def test_ticks_survive_a_trip_through_seconds(ps):
    assert to_ps(to_s(ps)) == ps


@given(st.floats(0, 2000, allow_nan=False))
def test_no_work_is_faster_than_it_is(seconds):
    exact = Fraction(seconds) * 10**12
    assert exact * (1 - Fraction(1, 2**50)) <= to_ps(seconds) < exact + 1


@given(st.integers(0, 10**15))
def test_femtojoules_survive_a_trip_through_joules(fj):
    assert to_fj(to_j(fj)) == fj


def test_a_watt_is_a_thousand_femtojoules_per_tick():
    assert [power_fj_per_ps(watts) for watts in (0, 1, 0.25, 300)] == [0, 1000, 250, 300_000]


def test_the_examples_of_the_module():
    assert doctest.testmod(units).failed == 0


@pytest.mark.parametrize("seconds", [1e7, 1e300, math.inf, math.nan])
def test_a_duration_that_ticks_cannot_hold_is_refused(seconds):
    with pytest.raises(RangeError, match=r"a duration of .* more than the 106 days"):
        to_ps(seconds)


def test_the_longest_duration_is_the_one_that_a_column_holds():
    assert 0.99 * MAX_PS < to_ps(106.7 * 86_400) < MAX_PS
    with pytest.raises(RangeError):
        to_ps(106.8 * 86_400)


@pytest.mark.parametrize("joules", [1e300, math.inf, math.nan])
def test_an_energy_beyond_floating_point_is_refused(joules):
    with pytest.raises(RangeError, match="an energy of"):
        to_fj(joules)
