"""Cost: capital over the lifetime plus energy, wear of an SSD, and the reason where a price is missing."""

import pytest

from hetmem import catalog
from hetmem.errors import ConfigError
from hetmem.monitor.carbon import S_PER_YEAR
from hetmem.monitor.cost import Purchase, defaults, purchase, run_cost, ssd_wear


def test_a_year_of_one_card_and_a_kilowatt_hour():
    cost = run_cost([Purchase("card", 3000.0)], 3.6e6, S_PER_YEAR, pue=1.2, usd_per_kwh=0.1, capital_years=3)
    assert cost.capital_usd == pytest.approx(1000)
    assert cost.energy_usd == pytest.approx(0.12)
    assert cost.per_mtoken(2_000_000) == (pytest.approx(500), pytest.approx(0.06))
    assert cost.per_mtoken(0) == (None, None)


def test_half_of_a_card_costs_half():
    whole, half = (
        run_cost([Purchase("card", 3000.0, share=share)], 0, 60, 1.0, 0.1, 3).capital_usd for share in (1.0, 0.5)
    )
    assert half == pytest.approx(whole / 2)


def test_prices_of_the_catalogue_carry_their_date():
    card = purchase("rtx-3090")
    assert (card.usd, card.date) == (1499.0, "2020-09")
    assert purchase("memory-ddr", gb=64).usd == pytest.approx(720)


def test_every_price_of_the_catalogue_can_be_read():
    for name in catalog.ids("prices"):
        if name != "defaults":
            found = purchase(name, gb=1.0)
            assert found.usd is not None
            assert found.date


def test_without_a_price_capital_is_unknown_but_energy_is_not():
    cost = run_cost([purchase("rtx-3090"), purchase("ndp-dimm")], 3.6e6, 60, 1.0, 0.1, 3)
    assert cost.capital_usd is None
    assert cost.unknown == ("ndp-dimm: no price is known",)
    assert cost.per_mtoken(1000) == (None, pytest.approx(100))


def test_an_entry_must_have_one_kind_of_price():
    with (
        catalog.patched("prices", "rtx-3090", "usd", None),
        pytest.raises(ConfigError, match="either usd or usd_per_gb"),
    ):
        purchase("rtx-3090")


def test_wear_is_bytes_over_the_rated_endurance():
    # 600 TB written per TB of capacity.
    assert ssd_wear(600 * 10**12, 10**12, defaults().endurance_tbw_per_tb).endurance_share == 1.0
    assert ssd_wear(0, 10**12, 600).endurance_share == 0.0


def test_defaults():
    assert (defaults().capital_years, defaults().usd_per_kwh) == (3.0, 0.1)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("capital_years", {"capital_years": 0}),
        ("pue", {"pue": 0.5}),
        ("usd_per_kwh", {"usd_per_kwh": -0.1}),
        ("elapsed_s", {"elapsed_s": -1}),
    ],
)
def test_bad_numbers_are_refused_by_name(field, arguments):
    good = {"joules": 1, "elapsed_s": 1, "pue": 1.0, "usd_per_kwh": 0.1, "capital_years": 3}
    with pytest.raises(ConfigError, match=field):
        run_cost([], **(good | arguments))


@pytest.mark.parametrize(
    ("field", "arguments"),
    [("written_bytes", (-1, 1, 1)), ("capacity_bytes", (0, 0, 1)), ("endurance_tbw_per_tb", (0, 1, 0))],
)
def test_bad_wear_is_refused_by_name(field, arguments):
    with pytest.raises(ConfigError, match=field):
        ssd_wear(*arguments)


def test_a_missing_price_must_say_why():
    with pytest.raises(ConfigError, match="reason"):
        Purchase("pim", None)
