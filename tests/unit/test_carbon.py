"""Carbon: operational from joules, embodied from footprints, and the invariants between them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.monitor.carbon import (
    S_PER_YEAR,
    ConstantIntensity,
    HourlyIntensity,
    Part,
    Range,
    Spell,
    defaults,
    die_kg,
    embodied_g,
    grid,
    grids,
    memory_kg,
    memory_part,
    operational_g,
    processor_kg,
    processor_part,
    read_intensity,
)

RUN = (Spell(0, 10, 1000.0), Spell(10, 40, 500.0))


def test_a_kilowatt_hour_costs_the_intensity_times_the_pue():
    assert operational_g([Spell(0, 3600, 3.6e6)], grid("coal"), pue=1.0) == 820
    assert operational_g([Spell(0, 3600, 3.6e6)], grid("USA 2022"), pue=1.2) == pytest.approx(456)


def test_the_published_ratio_of_grids():
    ratio = operational_g(RUN, grid("usa-2022"), 1.2) / operational_g(RUN, grid("coal"), 1.2)
    assert ratio == pytest.approx(0.463, abs=0.0005)


@given(joules=st.floats(0, 1e9), g=st.floats(0, 1000), pue=st.floats(1, 2))
def test_doubling_the_intensity_doubles_operational_carbon_only(joules, g, pue):
    spells, parts = [Spell(0, 60, joules)], [Part("card", Range(10, 100))]
    once, twice = (operational_g(spells, ConstantIntensity(x), pue) for x in (g, 2 * g))
    assert twice == pytest.approx(2 * once)
    assert embodied_g(parts, 60, 5) == embodied_g(parts, 60, 5)


@given(
    hours=st.lists(st.floats(0, 1000), min_size=1, max_size=48),
    start=st.floats(0, 1e6),
    length=st.floats(1, 1e6),
)
def test_an_hourly_series_is_integrated_exactly(hours, start, length):
    series = HourlyIntensity(tuple(hours))
    mean = series.mean_g_per_kwh(start, start + length)
    assert min(hours) - 1e-6 <= mean <= max(hours) + 1e-6
    middle = start + length / 3
    parts = sum((b - a) * series.mean_g_per_kwh(a, b) for a, b in ((start, middle), (middle, start + length)))
    assert parts == pytest.approx(mean * length, rel=1e-6, abs=1e-3)


def test_an_hourly_series_repeats_and_weights_part_hours():
    series = HourlyIntensity((100.0, 400.0))
    assert series.mean_g_per_kwh(1800, 5400) == pytest.approx(250)
    assert series.mean_g_per_kwh(2 * 3600, 3 * 3600) == pytest.approx(100)
    assert series.mean_g_per_kwh(3 * 3600 + 5, 3 * 3600 + 5) == 400
    assert series.mean_g_per_kwh(0, 2.5 * 3600) == pytest.approx((100 + 400 + 50) / 2.5)


def test_a_flat_series_is_a_constant():
    assert operational_g(RUN, HourlyIntensity((300.0,) * 24), 1.1) == pytest.approx(
        operational_g(RUN, ConstantIntensity(300.0), 1.1)
    )


def test_waiting_emits_by_the_power_drawn_in_it():
    busy = operational_g([Spell(0, 10, 3000.0)], grid("coal"), 1.0)
    with_stall = operational_g([Spell(0, 10, 3000.0), Spell(10, 30, 20 * 60.0)], grid("coal"), 1.0)
    assert with_stall - busy == pytest.approx(1200 / 3.6e6 * 820)


def test_a_series_is_read_from_csv(tmp_path):
    path = tmp_path / "day.csv"
    path.write_text("hour,g_per_kwh\n0,100\n1,200.5\n\n")
    assert read_intensity(path).g_per_kwh == (100.0, 200.5)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ":1: expected the header"),
        ("hour,co2\n0,1\n", ":1: expected the header"),
        ("hour,g_per_kwh\n0,1\n2,1\n", r":3: expected hour 1 .*'2,1'"),
        ("hour,g_per_kwh\n0,-1\n", ":2: expected hour 0 and 0 or more"),
        ("hour,g_per_kwh\n0,nan\n", ":2: expected hour 0"),
        ("hour,g_per_kwh\n0,many\n", ":2: expected two numbers, not '0,many'"),
        ("hour,g_per_kwh\n0\n", ":2: expected two numbers"),
        ("hour,g_per_kwh\n", "has no hours"),
    ],
)
def test_a_bad_series_names_the_line(tmp_path, text, problem):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_intensity(path)


def test_a_missing_series_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_intensity(tmp_path / "none.csv")


# --- embodied ---


def test_embodied_carbon_is_shared_by_time_and_capacity():
    found = embodied_g([Part("dram", Range(10, 20), share=0.25)], S_PER_YEAR, lifetime_years=5)
    assert found.total is not None
    assert (found.total.low, found.total.high) == (pytest.approx(500), pytest.approx(1000))


def test_taking_a_device_away_takes_exactly_its_share():
    card, dram = Part("card", Range(10, 96)), Part("dram", Range(4, 26), share=0.5)
    both, one = embodied_g([card, dram], 3600, 5), embodied_g([dram], 3600, 5)
    shares = dict(both.by_part)
    assert shares["dram"] == one.total
    assert both.total == shares["card"] + one.total


def test_an_owned_card_is_free_and_an_unknown_one_makes_the_total_unknown():
    parts = [Part("old", Range(10, 96), owned=True), Part("pim", None, reason="no figure for PIM stacks")]
    found = embodied_g(parts, 3600, 5)
    assert found.by_part == (("old", Range(0, 0)), ("pim", None))
    assert found.total is None
    assert found.unknown == ("pim: no figure for PIM stacks",)
    assert embodied_g([Part("pim", None, owned=True, reason="no figure")], 3600, 5).total == Range(0, 0)


def test_chip_footprints_agree_with_act():
    mean = {"ga102": (628, "8nm"), "ga100": (826, "7nm"), "gh100": (814, "5nm")}
    found = {name: die_kg(*die, grid("taiwan-2022").g_per_kwh) for name, die in mean.items()}
    assert found == pytest.approx({"ga102": 11.3, "ga100": 19.1, "gh100": 22.6}, abs=0.06)
    assert die_kg(628, "8nm", grid("korea-2022").g_per_kwh) == pytest.approx(9.7, abs=0.06)
    assert die_kg(628, "8nm", 400, gas=0) < die_kg(628, "8nm", 400) < die_kg(628, "8nm", 400, gas=1)


def test_a_node_with_a_3090_lies_where_a_point_estimate_puts_it():
    # Die 11, 24 GB at 0.3, 64 GB at 0.4, 1 TB at 0.018: about 62 kg.
    node = processor_kg("rtx-3090", 24) + memory_kg("ddr", 64) + memory_kg("ssd", 1000)
    assert node.low < 62 < node.high
    # 350 W on coal, the U.S. grid and hydro: embodied is about 0.5, 1 and 17 % of operational.
    hour = 62_000 / (5 * S_PER_YEAR) * 3600
    for name, share in (("coal", 0.005), ("usa-2022", 0.0106), ("hydro", 0.17)):
        assert hour / operational_g([Spell(0, 3600, 350 * 3600.0)], grid(name), 1.0) == pytest.approx(share, rel=0.05)


def test_published_footprints_of_boards_lie_within_the_ranges():
    h100 = processor_kg("h100-sxm-80gb", 80)
    assert (h100.low, h100.high) == (29.9, 318)
    a100 = processor_kg("a100-pcie-80gb", 80)
    assert a100.low < 150 < a100.high
    assert processor_kg("i9-13900k").low < processor_kg("i9-13900k").high < 20


def test_every_die_of_the_catalogue_gives_a_range():
    for name in (id.removeprefix("die-") for id in catalog.ids("carbon") if id.startswith("die-")):
        found = processor_kg(name, 0.0)
        assert 0 < found.low < found.high


@pytest.mark.parametrize(
    "kind", [id.removeprefix("memory-") for id in catalog.ids("carbon") if id.startswith("memory-")]
)
def test_every_memory_of_the_catalogue_gives_a_range(kind):
    assert 0 < memory_kg(kind, 1).low < memory_kg(kind, 1).high == memory_kg(kind, 2).high / 2


def test_unknown_parts_say_why():
    assert processor_part("tpu-v9").reason == "no die area or footprint is published"
    assert memory_part("stacks", "hbm-pim", 16).footprint_kg is None
    assert memory_part("stacks", "hbm-pim", 16).reason == "no footprint of hbm-pim is published"
    assert processor_part("m40", 24, owned=True).owned
    assert memory_part("dram", "ddr", 64, share=0.5).footprint_kg == memory_kg("ddr", 64)


def test_names_of_grids_and_their_near_misses():
    assert {"coal", "world-2023", "korea-2022"} <= set(grids())
    assert all(grid(name).g_per_kwh > 0 for name in grids())
    with pytest.raises(UnknownNameError, match=r"unknown grid 'cole'; did you mean 'coal'"):
        grid("cole")
    assert defaults().pue == 1.2
    assert grid(defaults().grid).g_per_kwh == 481
    assert defaults().embodied_years == 5


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("pue", lambda: operational_g(RUN, grid("coal"), 0.9)),
        ("spell", lambda: Spell(5, 4, 1.0)),
        ("g_per_kwh", lambda: HourlyIntensity(())),
        ("g_per_kwh", lambda: HourlyIntensity((math.inf,))),
        ("range", lambda: Range(2, 1)),
        ("reason", lambda: Part("pim", None)),
        ("lifetime_years", lambda: embodied_g([], 1, 0)),
        ("elapsed_s", lambda: embodied_g([], -1, 5)),
        ("memory_gb", lambda: processor_kg("i9-13900k", 8)),
    ],
)
def test_what_cannot_be_is_refused_by_name(field, make):
    with pytest.raises(ConfigError, match=field):
        make()
