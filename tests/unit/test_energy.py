"""Energy by component: exact integers, and nothing counted as zero that is not known."""

import pytest

import hetmem
from hetmem.hardware.dram import DramDevice
from hetmem.hardware.machine import Unit
from hetmem.monitor.energy import PARTS, account
from hetmem.units import FJ_PER_J, PS_PER_S


def test_state_power_times_time_and_joules_per_bit():
    gpu, link = Unit("gpu0", "gpu", 20.0, 300.0), Unit("pcie", "link", 1.0, 1.0)
    energy = account([(gpu, PS_PER_S // 4, 7), (link, PS_PER_S, 3 * FJ_PER_J)], [("dram", 5.0)], PS_PER_S)
    assert energy.by_component == {
        "gpu": {"idle": 20 * FJ_PER_J, "active": 70 * FJ_PER_J, "dynamic": 7},
        "link": {"idle": FJ_PER_J, "active": 0, "dynamic": 3 * FJ_PER_J},
        "dram": {"idle": 5 * FJ_PER_J, "active": 0, "dynamic": 0},
    }
    assert energy.not_counted == ()
    assert energy.total_fj == 99 * FJ_PER_J + 7
    assert energy.total_j == pytest.approx(99.0)
    assert energy.component_j() == pytest.approx({"gpu": 90.0, "link": 4.0, "dram": 5.0})


def test_units_of_one_component_add_up():
    units = [(Unit(f"core{i}", "cores", 1.5, 2.5), PS_PER_S, i) for i in range(4)]
    energy = account(units, [("cores", 0.25)], 2 * PS_PER_S)
    assert energy.by_component["cores"] == {
        "idle": int((4 * 1.5 + 0.25) * 2 * FJ_PER_J), "active": 4 * FJ_PER_J, "dynamic": 0 + 1 + 2 + 3,
    }  # fmt: skip


@pytest.mark.parametrize(("idle_w", "active_w"), [(None, 5.0), (5.0, None), (None, None)])
def test_state_power_that_is_not_known_is_listed_once_and_the_dynamic_part_is_kept(idle_w, active_w):
    units = [(Unit(f"u{i}", "switch", idle_w, active_w), 100, 11) for i in range(2)]
    energy = account(units, [("base", None), ("dram", 1.0)], 1000)
    assert energy.by_component["switch"] == {"idle": 0, "active": 0, "dynamic": 22}
    assert len(energy.not_counted) == 2
    assert energy.not_counted[0].startswith("switch")
    assert energy.not_counted[1] == "base"
    assert "base" not in energy.by_component


def test_the_parts_add_up_to_the_total_in_the_frame():
    energy = account([(Unit("gpu0", "gpu", 1.0, 2.0), 500, 3)], [("dram", 1.0)], 1000)
    frame = energy.to_pandas()
    assert list(frame.columns) == ["component", *(f"{part}_j" for part in PARTS), "total_j"]
    assert frame["component"].tolist() == ["gpu", "dram"]
    assert frame["total_j"].sum() == pytest.approx(energy.total_j)


def test_a_run_of_nothing_costs_nothing():
    energy = account([], [], 0)
    assert (energy.total_fj, energy.component_j(), len(energy.to_pandas())) == (0, {}, 0)


def test_work_without_a_figure_is_listed_and_what_is_known_of_it_still_counts():
    unit = Unit("dimm0.dram", "ndp-dimm", 1.0, 1.0, ("dimm0",), dynamic_known=False)
    known = Unit("gpu0", "gpu", 1.0, 1.0, ("gpu0",))
    found = account([(unit, 10, 7), (unit, 10, 7), (known, 10, 5)], [], 100)
    assert found.not_counted == ("ndp-dimm (dynamic)",)
    assert found.by_component["ndp-dimm"]["dynamic"] == 14


def test_dimms_whose_device_has_no_energy_say_so(monkeypatch):
    def run():
        return hetmem.simulate("ndp-dimm", model="llama2-13b", workload=hetmem.fixed(16, 2, 1)).energy

    known = run()
    monkeypatch.setattr(DramDevice, "energy_j", lambda *_, **__: None)
    unknown = run()
    assert "ndp-dimm (dynamic)" not in known.not_counted
    assert "ndp-dimm (dynamic)" in unknown.not_counted
    assert 0 < unknown.by_component["ndp-dimm"]["dynamic"] < known.by_component["ndp-dimm"]["dynamic"]
