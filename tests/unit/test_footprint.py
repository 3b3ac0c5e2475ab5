"""Energy by phase, carbon, cost and wear of runs: what adds up, what changes with what, and what is unknown."""

import attrs
import pytest

from hetmem import catalog, fixed, simulate
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.config import machine
from hetmem.inventory import facts
from hetmem.monitor import carbon, cost
from hetmem.monitor.carbon import J_PER_KWH, S_PER_YEAR
from hetmem.study.footprint import accounting, intensity
from hetmem.system import System, system_class, system_ids

MOE = ("moe-lightning", "fiddler")


def run(system="m2cache", model="llama2-7b", **options):
    return simulate(system, model=model, workload=options.pop("workload", fixed(16, 4, 1)), **options)


@pytest.mark.parametrize("system", system_ids())
def test_components_and_phases_add_up_exactly_in_every_system(system):
    try:
        model = "opt-13b" if system_class(system).has_neurons else "llama2-7b"
        found = run(system, "mixtral-8x7b" if system in MOE else model)
    except (ConfigError, UnknownNameError):
        pytest.fail(f"{system} does not run")
    energy = found.energy
    assert sum(sum(parts.values()) for parts in energy.by_component.values()) == energy.total_fj
    assert sum(sum(parts.values()) for parts in energy.by_phase.values()) == energy.total_fj
    if system_class(system).spent_fj is System.spent_fj:  # else work is booked to other components than its server's
        components = {}
        for parts in energy.by_phase.values():
            for name, fj in parts.items():
                components[name] = components.get(name, 0) + fj
        assert {k: v for k, v in components.items() if v} == {
            name: total for name, parts in energy.by_component.items() if (total := sum(parts.values()))
        }
    row = found.summary()
    assert row["carbon_operational_g_per_token"] > 0
    assert row["cost_usd_per_mtoken"]["energy"] > 0
    if row["carbon_embodied_g_per_token"] is None:
        assert any("embodied" in reason for reason in row["unknown"])
    else:
        assert 0 < row["carbon_embodied_g_per_token"]["low"] < row["carbon_embodied_g_per_token"]["high"]


def test_waiting_between_requests_is_idle_power():
    found = simulate("resident", model="opt-6.7b", workload="chat", requests=3, rate=0.01, seed=3)
    waiting = found.energy.by_phase["wait"]["gpu"] * 1e-15
    card = machine("resident").gpu
    gaps = found.elapsed_s - sum(
        (end - start) * 1e-12
        for start, end in zip(found.steps.column("start_ps"), found.steps.column("end_ps"), strict=True)
    )
    assert waiting == pytest.approx(2 * card.context_w * gaps, rel=0.01)
    assert gaps > 50


def test_an_idle_gpu_without_a_context_draws_less():
    arrivals = {"workload": "chat", "requests": 2, "rate": 0.01, "seed": 3}
    live, bare = (
        run("resident", "opt-6.7b", settings={"machine.live_context": live}, **arrivals) for live in (True, False)
    )
    card = machine("resident").gpu
    assert bare.elapsed_ps == live.elapsed_ps
    waiting = [found.energy.by_phase["wait"]["gpu"] for found in (bare, live)]
    assert waiting[0] / waiting[1] == pytest.approx(card.idle_w / card.context_w)
    # While it works, the board draws the same.
    busy_s = sum(live.busy_ps[f"gpu{g}"] for g in range(2)) * 1e-12
    idle_s = 2 * live.elapsed_s - busy_s
    assert live.energy.total_j - bare.energy.total_j == pytest.approx((card.context_w - card.idle_w) * idle_s, rel=1e-6)


def test_idle_energy_accrues_during_stalls():
    stalled = run(settings={"machine.neurons.fixed_bytes": 0, "machine.neurons.preload_window": 0})
    free = run()
    assert stalled.elapsed_ps > 1.5 * free.elapsed_ps
    for component in ("gpu", "cpu", "host-dram", "ssd"):
        assert stalled.energy.by_component[component]["idle"] * free.elapsed_ps == pytest.approx(
            free.energy.by_component[component]["idle"] * stalled.elapsed_ps, rel=1e-9
        )


def test_operational_carbon_is_energy_by_pue_by_intensity():
    found = run(grid="coal")
    assert found.footprint.operational_g == pytest.approx(found.energy.total_j / J_PER_KWH * 1.2 * 820, rel=1e-9)


def test_doubling_the_intensity_doubles_operational_carbon_and_nothing_else():
    once, twice = (run(grid=grid).summary() for grid in ("100", "200"))
    assert twice.pop("carbon_operational_g_per_token") == pytest.approx(2 * once.pop("carbon_operational_g_per_token"))
    assert twice == once


def test_an_hourly_series_weighs_the_hours_by_their_energy(tmp_path):
    series = tmp_path / "grid.csv"
    series.write_text("hour,g_per_kwh\n0,100\n1,300\n")
    arrivals = {"workload": "chat", "requests": 6, "rate": 0.0005, "seed": 1}
    low, high, mixed = (run("resident", "opt-6.7b", grid=g, **arrivals).footprint for g in ("100", "300", str(series)))
    assert low.operational_g < mixed.operational_g < high.operational_g
    flat = tmp_path / "flat.csv"
    flat.write_text("hour,g_per_kwh\n0,100\n")
    assert run("resident", "opt-6.7b", grid=str(flat), **arrivals).footprint.operational_g == pytest.approx(
        low.operational_g, rel=1e-9
    )


def test_a_device_that_is_not_there_takes_its_idle_and_embodied_share_away():
    config = machine("m2cache", "fair")
    whole, without = run(machine=config), run(machine=attrs.evolve(config, ssd=None))
    assert without.elapsed_ps == whole.elapsed_ps
    gone = whole.energy.by_component["ssd"]["idle"]
    assert gone == whole.energy.total_fj - without.energy.total_fj == round(2.0 * 1000) * whole.elapsed_ps
    name = config.ssd.name
    embodied = dict(whole.footprint.embodied.by_part)
    assert dict(without.footprint.embodied.by_part) == {k: v for k, v in embodied.items() if k != name}
    assert without.footprint.embodied.total.high == pytest.approx(
        whole.footprint.embodied.total.high - embodied[name].high
    )
    assert without.footprint.ssd is None
    assert without.footprint.cost.capital_usd < whole.footprint.cost.capital_usd


def test_embodied_carbon_is_by_time_and_by_the_share_of_capacity_held():
    found = run()
    parts = dict(found.footprint.embodied.by_part)
    years = found.elapsed_s / S_PER_YEAR / 5
    held = 32 * 3 * 4096 * 11008 * 2 / 1e9  # FP16 feed-forward matrices in 64 GB of DRAM
    assert parts["host-dram"].low == pytest.approx(held * 0.065 * 1000 * years, rel=1e-6)
    half = run(settings={"accounting.embodied_years": 10.0})
    assert half.footprint.embodied.total.low == pytest.approx(found.footprint.embodied.total.low / 2)


def test_an_owned_card_costs_no_making_and_no_capital():
    new, owned = run(), run(settings={"accounting.owned": ["rtx-3090"]})
    assert dict(owned.footprint.embodied.by_part)["rtx-3090"].high == 0
    assert owned.footprint.embodied.total.high < new.footprint.embodied.total.high
    assert owned.footprint.cost.capital_usd < new.footprint.cost.capital_usd
    assert owned.footprint.operational_g == new.footprint.operational_g


def test_unknown_prices_and_footprints_are_null_with_the_reason():
    row = run("lia", "llama2-13b").summary()
    assert row["carbon_embodied_g_per_token"] is None
    assert row["cost_usd_per_mtoken"]["capital"] is None
    assert row["cost_usd_per_mtoken"]["energy"] > 0
    assert any(reason.startswith("embodied carbon of amx-host: no die area") for reason in row["unknown"])
    assert any(reason.startswith("price of amx-host: no price is known") for reason in row["unknown"])


def test_what_an_offloading_system_writes_to_its_disk_wears_it():
    config = machine("offload", "fair")
    small = attrs.evolve(config, host=attrs.evolve(config.host, capacity_bytes=20_000_000_000))
    found = run("flexgen", "opt-30b", machine=small, workload=fixed(400, 3, 16))
    ssd = found.footprint.ssd
    # Keys and values lie on the disk: those of 400 prompt and 2 further tokens of each sequence are written once.
    assert found.configuration["decisions"]["placement"]["kv"]["ssd"] == 1
    kv = 16 * 402 * found.scenario.model.kv_bytes_per_token()
    assert ssd["written_bytes"] == pytest.approx(kv, rel=0.01)
    assert ssd["endurance_share"] == pytest.approx(ssd["written_bytes"] / (config.ssd.capacity_bytes * 600), rel=1e-9)
    assert ssd["read_bytes"] > ssd["written_bytes"]


def test_carbon_follows_speed_when_all_power_is_static():
    slow = run(assumptions="as-published", policies={"neuron_cache": "none"})
    fast = run(assumptions="as-published")
    speed = fast.tokens_per_s / slow.tokens_per_s
    assert slow.footprint.operational_g / fast.footprint.operational_g == pytest.approx(speed, rel=0.02)


@pytest.mark.parametrize(
    ("grid", "match"), [("coall", "did you mean 'coal'"), ("-3", "0 or more"), ("none.csv", "none.csv")]
)
def test_an_unknown_grid_is_refused(grid, match):
    with pytest.raises((ConfigError, UnknownNameError), match=match):
        intensity(grid)
    with pytest.raises((ConfigError, UnknownNameError), match=match):
        run(grid=grid)


@pytest.mark.parametrize(("key", "value"), [("pue", 0.9), ("embodied_years", 0), ("usd_per_kwh", -1)])
def test_accounting_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=f"accounting.{key}"):
        run(settings={f"accounting.{key}": value})


def test_defaults_are_the_catalogues():
    by = accounting()
    assert (by.grid, by.pue, by.embodied_years, by.capital_years) == ("world-2023", 1.2, 5.0, 3.0)
    assert (by.usd_per_kwh, by.endurance_tbw_per_tb, by.owned) == (0.1, 600.0, ())


FACTS = [
    (kind, entry, key)
    for kind in ("carbon", "prices")
    for entry in catalog.ids(kind)
    for key, fact in catalog.entry(kind, entry).facts.items()
    if isinstance(fact.value, int | float | list) and key != "nodes"
]


def figures():
    """Return everything that carbon and prices of the catalogue lead to."""
    known = catalog.ids("carbon")
    dies = [name.removeprefix("die-") for name in known if name.startswith("die-")]
    gb = {name: 0.0 if name in catalog.ids("cpus") else 24.0 for name in dies}
    return [
        [attrs.astuple(carbon.processor_kg(name, gb[name])) for name in dies],
        [
            carbon.die_kg(100.0, n.removeprefix("node-"), 500.0, g)
            for n in known
            if n.startswith("node-")
            for g in (0, 1)
        ],
        [attrs.astuple(carbon.memory_kg(n.removeprefix("memory-"), 2.0)) for n in known if n.startswith("memory-")],
        [carbon.grid(n.removeprefix("grid-")).g_per_kwh for n in known if n.startswith("grid-")],
        [attrs.astuple(cost.purchase(n, 2.0)) for n in catalog.ids("prices") if n != "defaults"],
        attrs.astuple(accounting()),
    ]


@pytest.mark.parametrize(("kind", "entry", "key"), FACTS)
def test_no_number_of_carbon_and_prices_is_inert(kind, entry, key):
    before, value = figures(), catalog.entry(kind, entry)[key]
    for factor in (0.5, 0.9, 1.1):
        changed = [v * factor for v in value] if isinstance(value, list) else value * factor
        try:
            with catalog.patched(kind, entry, key, changed):
                if figures() != before:
                    return
        except (ConfigError, ValueError):
            continue  # out of range, such as a low above its high
    pytest.fail(f"{kind}.{entry}.{key} has no effect")


def test_the_catalogue_lists_the_sources_of_carbon():
    found = facts("carbon")
    assert {one["kind"] for one in found} == {"carbon", "prices"}
    every = [fact for one in found for fact in one["facts"].values()]
    assert all(fact["source"] and fact["grade"] in catalog.GRADES for fact in every)
    assert {"grid-coal", "memory-hbm3", "die-m40", "v100"} <= {one["id"] for one in found}
