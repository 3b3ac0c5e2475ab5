"""PIM stacks: arrangements, rates, passes, area, power; expected values are the papers' arithmetic."""

from pathlib import Path

import pytest
from attrs import evolve

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.pim import PimStack, Units, check_design, fc_on_pim, pim_stack


@pytest.mark.parametrize(
    ("text", "per_bank", "tokens", "share"),
    [("1P1B", 1, 1, 1), ("2P1B", 2, 2, 1), ("4p1b", 4, 4, 1), ("1P2B", 0.5, 1, 0.5), ("3P2B", 1.5, 1, 1)],
)
def test_an_arrangement_says_how_many_tokens_and_banks_it_serves(text, per_bank, tokens, share):
    units = Units.parse(text)
    assert (units.per_bank, units.tokens_per_pass, units.bank_share) == (per_bank, tokens, share)
    assert str(units) == text.upper()


@pytest.mark.parametrize("text", ["", "P1B", "0P1B", "1P0B", "4P", "1.5P1B", "-1P1B"])
def test_a_malformed_arrangement_is_refused(text):
    with pytest.raises(ConfigError, match="not of the form '4P1B'"):
        Units.parse(text)


@pytest.mark.parametrize(
    ("level", "limit", "terabytes"),
    # The least of MAC peak (banks x 32 B over the spacing) and bandwidth factor x 670.4 GB/s.
    [
        ("bank", True, 9 * 0.6704),
        ("bank", False, 1024 * 32 / (4 * 0.769e-9) / 1e12),
        ("bank-group", True, 256 * 32 / (6 * 0.769e-9) / 1e12),
        ("bank-group", False, 256 * 32 / (2 * 0.769e-9) / 1e12),
        ("buffer", True, 16 * 32 / 0.769e-9 / 1e12),
        ("buffer", False, 16 * 32 / 0.769e-9 / 1e12),
    ],
)
def test_weight_rate_of_each_level(level, limit, terabytes):
    assert pim_stack("1P1B", level, limit).weight_bytes_per_s == pytest.approx(terabytes * 1e12, rel=1e-12)


def test_mac_peak_is_seven_terabytes_with_the_limit_and_ten_without():
    assert pim_stack(power_limit=True).mac_peak_bytes_per_s == pytest.approx(7.10e12, rel=1e-3)
    assert pim_stack(power_limit=False).mac_peak_bytes_per_s == pytest.approx(10.65e12, rel=1e-3)


def test_four_units_cost_a_bank_group_of_four():
    stack = pim_stack("4P1B")
    assert (stack.banks, stack.bank_fraction) == (768, 0.75)
    assert stack.capacity_bytes == 12 * 2**30
    assert stack.weight_bytes_per_s == pytest.approx(0.75 * pim_stack("1P1B").weight_bytes_per_s)


def test_half_the_units_read_half_the_banks_at_once_and_keep_them_all():
    stack = pim_stack("1P2B")
    assert stack.banks == 1024
    assert stack.weight_bytes_per_s == pytest.approx(0.5 * pim_stack("1P1B").weight_bytes_per_s)


def test_units_off_the_banks_leave_the_banks_alone():
    assert pim_stack("4P1B", "buffer").banks == 1024


@pytest.mark.parametrize(("level", "pj"), [("bank", 4.4), ("bank-group", 12.48), ("buffer", 26.32)])
def test_array_energy_by_level(level, pj):
    assert pim_stack("1P1B", level).array_energy(1e12).total == pytest.approx(pj)


def test_a_stack_of_the_users_own_spends_its_own_energies(tmp_path, monkeypatch):
    ours = (Path(catalog.__file__).parent / "pim_stacks.toml").read_text()
    theirs = ours.replace("[hbm3-pim", "[mine").replace("row_pj_per_bit = 0.11", "row_pj_per_bit = 1.11")
    (tmp_path / "pim_stacks.toml").write_text(theirs)
    monkeypatch.setenv("HETMEM_CATALOG", str(tmp_path))
    monkeypatch.setattr(catalog, "_loaded", {})
    assert pim_stack().array_energy(1e12).total == pytest.approx(4.4)
    assert pim_stack(stack="mine").array_energy(1e12).total == pytest.approx(4.4 + 8)
    assert check_design("1P1B", stack="mine").power_w > check_design("1P1B").power_w


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_an_impossible_bank_fraction_is_refused(fraction):
    with pytest.raises(ConfigError, match="bank_fraction"):
        evolve(pim_stack(), bank_fraction=fraction)


def test_an_unknown_level_is_refused():
    with pytest.raises(UnknownNameError, match="pim_level"):
        pim_stack(level="rank")


@pytest.mark.parametrize(("tokens", "passes"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_pass_serves_as_many_tokens_as_a_bank_has_units(tokens, passes):
    stack = pim_stack("4P1B")
    cost = fc_on_pim(stack, 30, 1e12, tokens)
    assert cost.passes == passes
    assert cost.time_s == pytest.approx(passes * 1e12 / (30 * stack.weight_bytes_per_s))
    assert cost.energy.dram == pytest.approx(passes * 4.4)
    assert cost.energy.pim_mac == pytest.approx(0.16 * tokens)


def test_dram_share_with_and_without_reuse():
    # PAPI: 96.7 % of a 1P1B pass's energy is DRAM access; 33.1 % when 64 tokens share it. The same constants
    # give 96.5 % and 30.1 %: the paper's last decimals need its own DRAM energy.
    alone = fc_on_pim(pim_stack("1P1B"), 30, 1e12, 1).energy
    assert alone.dram / alone.total == pytest.approx(0.967, abs=0.003)
    plain = pim_stack("1P1B")
    shared = fc_on_pim(PimStack(plain.geometry, plain.level, Units(64, 1)), 30, 1e12, 64).energy
    assert shared.dram / shared.total == pytest.approx(0.331, abs=0.035)


@pytest.mark.parametrize(
    ("units", "banks_per_die"), [("1P1B", 128), ("2P1B", 96), ("4P1B", 96), ("1P2B", 128), ("8P1B", 64)]
)
def test_banks_that_fit_the_die(units, banks_per_die):
    check = check_design(units)
    assert check.banks_per_die == banks_per_die
    assert check.banks_per_stack == 8 * banks_per_die
    assert check.area_mm2 <= check.area_budget_mm2


def test_the_area_bound_of_four_units_per_bank():
    assert check_design("4P1B").area_limit_banks == pytest.approx(97.58, abs=0.005)


@pytest.mark.parametrize(
    ("units", "reuse", "fits"),
    [("1P1B", 1, False), ("1P2B", 1, True), ("4P1B", 3, False), ("4P1B", 4, True), ("4P1B", 64, True)],
)
def test_designs_that_fit_the_power_of_a_cube(units, reuse, fits):
    assert check_design(units, reuse).fits_power is fits


def test_power_is_background_plus_access_over_reuse_plus_macs():
    rate = 768 * 4 * 20.8e9
    assert check_design("4P1B", 4).power_w == pytest.approx(25 + rate * (4.4 / 4 + 0.16) * 1e-12)


def test_a_design_without_room_for_a_bank_group_is_refused():
    with pytest.raises(ConfigError, match=r"less than a bank group of 32"):
        check_design("40P1B")


def test_reuse_below_one_is_refused():
    with pytest.raises(ConfigError, match="reuse"):
        check_design("1P1B", reuse=0)
