"""PAPI's scheduler at work: switches on a trace that move nothing, capacity, and what the decay of a batch gives."""

import numpy as np
import pytest

import hetmem as hm
from hetmem.errors import CapacityError, UnknownNameError, UnsupportedError
from hetmem.system.papi import ATTN_PIM, FC_PIM
from hetmem.workload.lognormal import lognormal

DECAY = lognormal(40, 120, 0.8, 32)
FLAT = {"serving.tlp": 2, "machine.papi.fc_law": "flat"}


def simulate(system="papi", workload=DECAY, **options):
    options = {"model": "llama-65b", "assumptions": "as-published", "settings": FLAT} | options
    return hm.simulate(system, workload=workload, **options)


def test_the_side_changes_when_the_parallelism_crosses_the_threshold():
    done = simulate()
    table = done.tables["iterations"]
    tokens = table.column("rlp") * table.column("tlp")
    side, switched = table.column("side"), table.column("switched")
    assert done.configuration["decisions"]["alpha"] == 28
    np.testing.assert_array_equal(side == "gpu", tokens > 28)
    np.testing.assert_array_equal(np.flatnonzero(switched), np.flatnonzero(side[1:] != side[:-1]) + 1)
    assert done.counters["switches"] == switched.sum() == 1
    # RLP is counted from the requests that finished: it never rises in a static batch, and ends with the last.
    assert (np.diff(table.column("rlp")) <= 0).all()
    assert table.column("rlp")[0] == 32


def test_hysteresis_delays_the_switch():
    plain, late = (simulate(settings=FLAT | {"machine.papi.hysteresis": h}) for h in (0, 12))
    first = [np.flatnonzero(run.tables["iterations"].column("switched"))[0] for run in (plain, late)]
    assert first[1] > first[0]
    table = late.tables["iterations"]
    assert table.column("rlp")[first[1]] * 2 <= 28 - 12


def test_a_batch_that_grows_again_switches_back():
    done = simulate(
        workload=lognormal(40, 60, 0.8, 96), batch=32, policies={"batching": "static"},
    )  # fmt: skip
    side = done.tables["iterations"].column("side")
    assert done.counters["switches"] >= 3
    assert side[0] == "gpu"
    assert (np.diff(done.tables["iterations"].column("rlp")) > 0).any()


def test_a_switch_moves_no_bytes_and_holds_nothing_new():
    """The bytes on the links of a step are those of its activations, whether the side changed or not."""
    done = simulate(trace=True)
    table, tasks = done.tables["iterations"], done.tasks
    step = table.column("step")
    at = step[np.flatnonzero(table.column("switched"))]
    assert len(at) == 1
    servers, owners, n_bytes = tasks.column("server"), tasks.column("step"), tasks.column("bytes")
    hidden, layers = 8192, 80
    for server, columns in (("attn-link.down", 3 * hidden), ("attn-link.up", hidden)):
        on_link = np.array([n_bytes[(servers == server) & (owners == k)].sum() for k in step])
        np.testing.assert_array_equal(on_link, 2 * columns * layers * table.column("rlp") * table.column("tlp"))
    moved = {server for server in set(servers) if "link" in server}
    assert moved == {"attn-link.down", "attn-link.up", "gpu-link"}
    # Weights stay where they were allocated: what the stacks read is weights only, in whole passes.
    weights = 80 * 2 * hidden * (4 * hidden + 3 * 22016)
    in_stacks = step[table.column("side") == "pim"]
    for k in in_stacks[:5]:
        tokens = 2 * table.column("rlp")[step == k][0]
        assert n_bytes[(servers == "fc-pim") & (owners == k)].sum() == weights * -(-tokens // 4)


def test_a_switch_that_moves_weights_is_an_error(monkeypatch):
    from hetmem.errors import ConservationError
    from hetmem.system.papi import Papi

    links = Papi._links

    def moves(self, tokens):
        charges = links(self, tokens)
        cost = charges["send"].cost
        charges["send"] = charges["send"]._replace(cost=cost._replace(bytes=cost.bytes + 1))
        return charges

    monkeypatch.setattr(Papi, "_links", moves)
    with pytest.raises(ConservationError, match="a switch moves nothing violated: 1 bytes cross the links"):
        simulate()


def test_weights_and_keys_never_move_in_the_ledger(monkeypatch):
    from hetmem.hardware.ledger import Ledger

    seen = []
    for name in ("allocate", "free", "move"):
        method = getattr(Ledger, name)

        def spy(self, owner, *rest, _method=method, _name=name):
            seen.append((_name, owner, rest[0]))
            return _method(self, owner, *rest)

        monkeypatch.setattr(Ledger, name, spy)
    simulate()
    assert ("allocate", "weights", FC_PIM) in seen
    assert [event for event in seen if event[0] == "move"] == []
    assert sum(owner == "weights" for _, owner, _ in seen) == 1
    assert {memory for _, owner, memory in seen if owner == "kv-cache"} == {ATTN_PIM}


def test_the_decision_is_charged_on_the_host():
    free, charged = (simulate(settings=FLAT | {"machine.papi.decision_s": s}) for s in (0.0, 1e-3))
    steps = len(charged.tables["iterations"])
    assert charged.makespan_s - free.makespan_s == pytest.approx(steps * 1e-3)
    assert charged.busy_ps["host"] == steps * 10**9
    assert simulate().busy_ps["host"] == steps * 10**7  # 10 us by default
    assert simulate("a100-attacc").busy_ps["host"] == 0


def test_papi_is_never_slower_than_either_fixed_side_in_any_iteration():
    runs = {name: simulate(policies={"reschedule": name}) for name in ("threshold", "gpu", "pim", "oracle")}
    fc = {name: run.tables["iterations"].column("fc_ps") for name, run in runs.items()}
    best = np.minimum(fc["gpu"], fc["pim"])
    np.testing.assert_array_equal(fc["oracle"], best)
    np.testing.assert_array_equal(fc["threshold"], best)  # the flat law crosses once


def test_a_policy_of_ones_own_may_look_at_both_times():
    from attrs import frozen

    from hetmem.policy.reschedule import RescheduleView, Side

    @frozen
    class TwiceAsFast:
        def decide(self, view: RescheduleView) -> Side:
            return Side.GPU if 2 * view.fc_s[Side.GPU] < view.fc_s[Side.PIM] else Side.PIM

    own, oracle = (simulate(policies={"reschedule": policy}) for policy in (TwiceAsFast(), "oracle"))
    assert 0 < own.counters["iterations_gpu"] < oracle.counters["iterations_gpu"]


def test_unrolled_layers_give_the_same_ticks():
    whole, unrolled = (
        simulate(settings=FLAT | {"serving.unroll_layers": flag}, workload=lognormal(40, 12, 0.8, 20))
        for flag in (False, True)
    )
    assert unrolled.makespan_s == pytest.approx(whole.makespan_s, rel=1e-9)
    assert unrolled.energy.total_j == pytest.approx(whole.energy.total_j, rel=1e-12)
    for name in ("fc_ps", "attention_ps", "all_reduce_ps", "transfer_ps"):
        ours, theirs = (run.tables["iterations"].column(name) for run in (unrolled, whole))
        np.testing.assert_array_equal(ours, theirs)


def test_keys_and_values_that_do_not_fit_are_refused():
    with pytest.raises(CapacityError, match="attn-pim"):
        simulate(workload=hm.fixed(1024, 1024, 256), model="gpt3-175b")
    with pytest.raises(CapacityError, match="fc-pim"):
        simulate(workload=hm.fixed(40, 4, 1), model="llama3.1-405b")
    beyond = simulate(
        workload=hm.fixed(1024, 8, 256), model="gpt3-175b", settings={"serving.enforce_capacity": False},
    )  # fmt: skip
    assert beyond.counters["bytes_over_capacity"] > 0
    assert simulate().counters["bytes_over_capacity"] == 0


def test_what_the_systems_cannot_run_is_refused():
    with pytest.raises(UnsupportedError, match="runs dense models only"):
        simulate(model="mixtral-8x7b")
    with pytest.raises(UnknownNameError, match="reschedule"):
        simulate("a100-attacc", policies={"reschedule": "gpu"})
    with pytest.raises(UnknownNameError, match="did you mean 'nvlink"):
        simulate(settings={"machine.pim.link": "nvlink5"})
    with pytest.raises(UnsupportedError, match="knows no tiles of rtx-4090; it has those of a100a, h100-sxm-80gb"):
        simulate(gpu="rtx-4090")
    with pytest.raises(UnsupportedError, match="40 stacks do not divide over 6 devices"):
        simulate("dgx-attacc", gpus=6, settings={})
    with pytest.raises(UnsupportedError, match="16-bit"):
        simulate(settings={"precision.weights_bits": 8})


@pytest.mark.parametrize("system", ["papi", "dgx", "dgx-attacc"])
def test_other_gpus_and_other_numbers_of_them(system):
    one = simulate(system, settings={}, workload=hm.fixed(40, 4, 4))
    fast = simulate(system, settings={}, workload=hm.fixed(40, 4, 4), gpu="h100-sxm-80gb")
    few = simulate(system, settings={}, workload=hm.fixed(40, 4, 4), gpus=4)
    assert fast.makespan_s < one.makespan_s
    assert few.makespan_s != one.makespan_s
    assert few.counters["kv_blocks_total"] <= one.counters["kv_blocks_total"]


@pytest.mark.parametrize("system", ["papi", "attacc-only", "dgx-attacc"])
def test_units_at_other_levels_are_slower(system):
    times = [
        simulate(
            system, workload=hm.fixed(200, 6, 32), policies={"reschedule": "pim"} if system == "papi" else {},
            settings={"machine.pim.level": level, "machine.pim.power_limit": limit},
        ).makespan_s
        for level in ("bank", "bank-group", "buffer")
        for limit in (False, True)
    ]  # fmt: skip
    bank, bank_limited, group, group_limited, buffer, buffer_limited = times
    assert bank < bank_limited < group_limited
    assert bank < group < group_limited < buffer
    assert buffer == buffer_limited  # the channels hold it back, not power


def test_a_saved_run_keeps_its_iterations(tmp_path):
    import pandas as pd

    done = simulate()
    folder = done.save(tmp_path / "run")
    iterations = pd.read_parquet(folder / "iterations.parquet")
    assert len(iterations) == sum(done.counters[f"iterations_{side}"] for side in ("gpu", "pim"))
    assert set(iterations["side"]) == {"gpu", "pim"}
    components = [name for name in iterations if name.endswith("_fj")]
    assert len(components) == 8
    assert 0 < iterations[components].to_numpy().sum() < done.energy.total_fj  # the prefill is not in it
    assert len(pd.read_parquet(folder / "speculation.parquet")) == (done.requests.column("output_tokens") > 1).sum()


def test_energy_by_component_adds_up_and_shows_reuse():
    """DRAM takes nearly all of FC's energy in the stacks without reuse, and far less at four tokens per access."""
    shares = {}
    for system in ("attacc-only", "papi-pim-only"):
        done = simulate(system, settings={"serving.tlp": 4}, workload=hm.fixed(40, 40, 16))
        parts = done.energy.component_j()
        assert done.energy.total_j == pytest.approx(sum(parts.values()))
        dram = parts["dram-row"] + parts["dram-cell"]
        shares[system] = dram / (dram + parts["pim-mac"])
    assert shares["attacc-only"] == pytest.approx(0.967, abs=0.01)  # PAPI's figure without reuse
    assert 0.8 < shares["papi-pim-only"] < 0.9  # four tokens per access: 8.8 / 4 against 0.32 pJ


def test_decay_explains_part_of_the_gain_over_continuous_batching():
    """With a full batch all the time FC leaves the stacks, and the gain falls towards one."""
    gains = {}
    for batching in ("static", "continuous"):
        runs = [
            simulate(
                system, workload=lognormal(40, 120, 0.8, 160), batch=64, policies={"batching": batching},
                settings={"serving.token_budget": None},
            )
            for system in ("a100-attacc", "papi")
        ]  # fmt: skip
        gains[batching] = runs[0].makespan_s / runs[1].makespan_s
    assert gains["static"] > 1.3
    assert gains["continuous"] < gains["static"] - 0.1
    assert gains["continuous"] > 0.99
