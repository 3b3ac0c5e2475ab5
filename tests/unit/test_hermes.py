"""The systems with hot and cold neurons, on a model small enough to run in a moment."""

import numpy as np
import pytest
from attrs import evolve

import hetmem
from hetmem.engine.step import StepView
from hetmem.errors import CapacityError, ConfigError, UnknownNameError, UnsupportedError
from hetmem.model import StepShape
from hetmem.policy.adjustment import HotColdAdjustment
from hetmem.policy.balance import WindowRemap
from hetmem.policy.predictor import StateTable
from hetmem.study.compare import compare
from hetmem.study.scenario import scenario
from hetmem.study.simulate import simulate
from hetmem.system import Setup
from hetmem.system.hermes import Hermes
from hetmem.testing.conformance import snapshot

PROMPT, OUTPUT = 24, 9
QUICK = {"partition": "greedy", "balance": WindowRemap(window=2)}
DEFAULTS = {"hermes": QUICK, "powerinfer": {"partition": "greedy"}, "deja-vu": {}}
COARSE = {"model.n_layers": 8, "activity.group": 16, "machine.gpu_weight_bytes": 3e9}


def run(system="hermes", *, model="opt-13b", batch=1, policies=None, settings=None, output=OUTPUT, **options):
    return simulate(
        system, model=model, workload=hetmem.fixed(PROMPT, output, batch), settings=COARSE | (settings or {}),
        policies=policies or DEFAULTS[system], **({"assumptions": "as-published"} | options),
    )  # fmt: skip


def built(**settings):
    """Return the system itself, as a run would build it, decoding one sequence."""
    asked = scenario("hermes", model="opt-13b", workload_=hetmem.fixed(PROMPT, OUTPUT, 1), policies=QUICK,
                     assumptions="as-published", settings=COARSE | settings)  # fmt: skip
    config = asked.configuration()
    system = Hermes(
        Setup(config.model, config.precision, config.machine, asked.assumptions, 1, 64, 16, QUICK,
              activity=config.activity, seed=asked.seed)
    )  # fmt: skip
    system.state.joined(1, PROMPT, idle=True)
    return system


def view_of(order, batch=1):
    return StepView(order, 0, None, StepShape.decode(batch, 30 * batch), batch, 0)


def state_of(system):
    state = system.state
    return snapshot(
        (state.resident, state.home, {b: state.tracker.states(b) for b in ("qkv", "mlp")}, state._window, state._slack)
    )


# -- the contract of a system ----------------------------------------------------------------------------------------


def test_plan_is_repeatable_and_changes_nothing():
    system = built()
    for order in range(1, 6):
        before = state_of(system)
        first, second = system.plan(view_of(order)), system.plan(view_of(order))
        assert first.graph.costs == second.graph.costs
        assert first.graph.template is second.graph.template
        assert snapshot(first.step) == snapshot(second.step)
        assert state_of(system) == before
        system.commit(first)
        system.state.observe(order)
    assert state_of(system) != before


def test_policies_see_arrays_that_they_cannot_change():
    seen = []

    class Looks:
        def __init__(self, policy):
            self.policy = policy
            self.window = getattr(policy, "window", None)

        def decide(self, view):
            arrays = [value for name in dir(view) if isinstance(value := getattr(view, name), np.ndarray)]
            seen.append((type(view).__name__, {array.flags.writeable for array in arrays} - {False}))
            return self.policy.decide(view)

    roles = {"predictor": StateTable(), "adjustment": HotColdAdjustment(), "balance": WindowRemap()}
    run(policies=QUICK | {role: Looks(policy) for role, policy in roles.items()}, output=8)
    assert {name for name, _ in seen} == {"PredictView", "AdjustmentView", "BalanceView"}
    written = {name for name, writeable in seen if writeable}
    assert not written, written


def test_runs_are_the_same_and_the_seed_matters():
    first, second, other = run(), run(), run(seed=7)
    assert first.tables["neurons"].to_pandas().equals(second.tables["neurons"].to_pandas())
    assert first.elapsed_ps == second.elapsed_ps != other.elapsed_ps


def test_a_step_costs_each_neuron_once():
    system = built()
    step = system.plan(view_of(1)).step
    for block in ("qkv", "mlp"):
        assert step.work[block].units.sum() == step.computed[block].sum()
        on_gpu = (step.computed[block] & system.state.resident[block]).sum(axis=1)
        assert (step.work[block].units[:, 0] == on_gpu).all()


def test_a_batch_reads_the_union_and_multiplies_for_each_sequence():
    alone, together = (run(batch=b).tables["neurons"].to_pandas() for b in (1, 4))
    assert (alone.multiplied == alone.computed_gpu + alone.computed_dimms).all()
    assert (together.multiplied > together.computed_gpu + together.computed_dimms).all()
    assert together.fired.mean() > alone.fired.mean()
    assert together.fired.mean() < 4 * alone.fired.mean()


# -- mispredictions --------------------------------------------------------------------------------------------------


def test_missed_neurons_are_dropped_or_computed_late_and_counted_either_way():
    dropped, late = run(), run(settings={"activity.misses": "late"})
    tables = [r.tables["neurons"].to_pandas() for r in (dropped, late)]
    for table in tables:
        assert (table.missed > 0).any()
        assert (table.missed <= table.fired).all()
    computed = [table.computed_gpu + table.computed_dimms for table in tables]
    assert (computed[0] == tables[0].predicted).all()
    assert (computed[1] == tables[1].predicted + tables[1].missed).all()
    assert late.elapsed_ps > dropped.elapsed_ps


def test_the_oracle_misses_nothing_and_computes_what_fires():
    table = run(policies=QUICK | {"predictor": "oracle"}).tables["neurons"].to_pandas()
    assert (table.missed == 0).all()
    assert (table.predicted == table.fired).all()


def test_states_start_from_what_fired_in_the_prefill():
    system = built()
    sequence = system.neurons.neurons.source(0)
    fired = sum(np.unpackbits(sequence.next_token()["mlp"][0].view(np.uint8), bitorder="little")[:1280].astype(int)
                for _ in range(PROMPT))  # fmt: skip
    states = system.state.tracker.states("mlp")[0]
    assert (states[fired / PROMPT > 0.9] == 15).all()
    assert (states[fired == 0] == 0).all()
    assert (states[(fired > 0) & (fired / PROMPT <= 0.9)] > 0).all()


# -- copies and moves behind the projection --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traced():
    return run(policies=QUICK | {"partition": "random"}, trace=True)


def test_copies_and_moves_start_with_the_projection_and_fit_it(traced):
    tasks = traced.tasks.to_pandas()
    proj = tasks[(tasks.task == "proj") & (tasks.server == "gpu0")].sort_values("start_ps")
    gap_ps = int((proj.end_ps - proj.start_ps).max())
    for kind, server in (("copy", "pcie.h2d"), ("move", r"dimm\d.link")):
        behind = tasks[tasks.task.str.endswith(kind) & tasks.server.str.fullmatch(server)]
        assert len(behind)
        assert (behind.end_ps - behind.start_ps).max() <= 1.1 * gap_ps
        before = np.searchsorted(proj.start_ps.to_numpy(), behind.start_ps.to_numpy(), side="right") - 1
        assert (behind.start_ps.to_numpy() - proj.start_ps.to_numpy()[before] < gap_ps).all()


def test_moved_bytes_stay_within_one_gap_per_layer_and_token(traced):
    system = built()
    _, link_bytes = system._gap_bytes(StepShape.decode(1, 60))
    tasks = traced.tasks.to_pandas()
    sent = tasks[tasks.task.str.endswith("move") & tasks.server.str.endswith("link")]
    assert 0 < sent.bytes.max() <= link_bytes + max(system.neurons.unit_bytes.values())
    assert int(sent.bytes.sum()) == int(traced.tables["neurons"].column("moved_bytes").sum())


def test_without_policies_that_move_nothing_moves():
    table = run(policies={"partition": "greedy", "adjustment": "none", "balance": "none"}).tables["neurons"].to_pandas()
    assert (table.copied_bytes == 0).all()
    assert (table.moved_bytes == 0).all()


def test_residents_keep_their_number_and_homes_stay_on_dimms():
    system = built()
    slots = {b: system.state.resident[b].sum(axis=1) for b in ("qkv", "mlp")}
    for order in range(1, 12):
        plan = system.plan(view_of(order))
        system.commit(plan)
        system.state.observe(order)
    for block, held in slots.items():
        assert (system.state.resident[block].sum(axis=1) == held).all()
        assert (system.state.home[block] >= 0).all()
        assert (system.state.home[block] < 8).all()


def test_a_layer_waits_for_what_is_on_its_way_to_it():
    system = built()
    plan = next(p for p in _steps(system) if p.handles)
    following = system.plan(view_of(99))
    starts = {following.graph.template.names[f"start.{layer}"] for layer in plan.handles}
    assert set(following.graph.wait) >= starts


def _steps(system):
    for order in range(1, 12):
        plan = system.plan(view_of(order))
        system.commit(plan)
        yield plan
        system.state.observe(order)


@pytest.mark.parametrize("balance", ["window", "round-robin", "offline-optimal"])
def test_balancers_level_what_a_random_partition_left(balance):
    settings = {"activity.partition_group": 256, "activity.group": 4}
    start = {"partition": "random", "adjustment": "none"}
    none, levelled = (
        run(policies=start | {"balance": name}, settings=settings, output=32).tables["windows"].column("imbalance")
        for name in ("none", balance)
    )
    assert none[0] == levelled[0]  # the first window is met before anything can move
    assert levelled[2:].mean() < none[2:].mean()


# -- options and refusals --------------------------------------------------------------------------------------------


def test_dimms_multipliers_gpu_and_batch_are_one_option_each():
    base = run().tokens_per_s
    assert run(dimms=16).tokens_per_s > base
    assert run(multipliers=512).tokens_per_s > base
    assert run(gpu="rtx-3090", assumptions="fair").tokens_per_s != run(assumptions="fair").tokens_per_s
    assert run(batch=4).tokens_per_s > base


def test_what_does_not_fit_is_refused():
    big = {"model": "opt-66b", "workload": hetmem.fixed(8, 2, 1), "settings": {"activity.group": 64}}
    with pytest.raises(CapacityError, match="dimms"):
        simulate("hermes", dimms=2, **big)
    with pytest.raises(CapacityError, match="gpu0"):
        simulate("hermes", gpu="t4", **big)
    with pytest.raises(CapacityError, match="dimm"):
        run(batch=256, settings={"machine.dimm.capacity_bytes": 800_000_000})


def test_a_model_without_known_activity_is_refused_not_guessed():
    with pytest.raises(UnsupportedError, match=r"activation sparsity of opt-6\.7b, which is not known"):
        simulate("hermes", model="opt-6.7b", workload=hetmem.fixed(8, 2, 1))
    with pytest.raises(UnsupportedError, match="the activity of drafts is not known"):
        run(settings={"serving.tlp": 2})
    rows = compare(["hermes", "powerinfer", "deja-vu"], model="mixtral-8x7b", workload=hetmem.fixed(8, 2, 1)).rows
    assert all("has experts" in row["refused"] for row in rows)


def test_unknown_policies_and_settings_are_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown balance policy 'windw'; did you mean 'window'"):
        run(policies={"balance": "windw"})
    with pytest.raises(ConfigError, match=r"activity\.misses"):
        run(settings={"activity.misses": "ignored"})
    with pytest.raises(ConfigError, match="opt-13b has no calibrated densities"):
        run(settings={"activity.densities": "calibrated"})
    with pytest.raises(ConfigError, match=r"activity\.partition_group: 64 is no multiple of group, 48"):
        run(settings={"activity.group": 48})


def test_a_policy_of_ones_own_takes_the_role():
    eager = StateTable(threshold=7)
    assert eager != StateTable()
    ours, theirs = (
        run(policies=QUICK | {"predictor": p}).tables["neurons"].to_pandas() for p in (eager, "state-table")
    )
    assert ours.predicted.sum() > theirs.predicted.sum()


def test_calibrated_densities_are_sparser():
    settings = {"activity.group": 64, "machine.gpu_weight_bytes": 4e9}
    fired = [
        run(model="opt-66b", settings=settings | {"activity.densities": d}).tables["neurons"].to_pandas().fired.mean()
        for d in ("calibrated", "untuned")
    ]
    assert fired[0] < 0.6 * fired[1]


def test_the_decisions_are_in_the_manifest():
    decided = run(policies=QUICK | {"partition": "milp"}).configuration["decisions"]
    assert decided["partition"]["method"] in ("milp", "greedy")
    assert decided["partition"]["value_s"] <= decided["partition"]["greedy_s"]
    assert decided["state_table_bytes"] == 8 * (5120 + 20480) // 2


# -- recorded activity -----------------------------------------------------------------------------------------------


def test_recorded_activity_is_replayed(tmp_path):
    rng = np.random.default_rng(3)
    bits = {"qkv": rng.random((20, 8, 5120)) < 0.3, "mlp": rng.random((20, 8, 20480)) < 0.05}
    path = tmp_path / "trace.npz"
    np.savez(path, **bits)
    settings = {"activity.trace": str(path)}
    table = run(settings=settings, output=4).tables["neurons"].to_pandas()
    for block, recorded in bits.items():
        fired = table[table.block == block].fired.tolist()
        groups = recorded.reshape(20, 8, -1, 16).any(axis=-1)
        # the prompt of 24 tokens uses up the 20 recorded ones and four more, so decoding goes on at the fifth
        assert fired == [int(groups[t].sum()) for t in (4, 5, 6)]
    np.savez(path, qkv=bits["qkv"][:, :4], mlp=bits["mlp"][:, :4])
    with pytest.raises(ConfigError, match=r"activity\.trace: expected 8 layers"):
        run(settings=settings)


# -- the baselines ---------------------------------------------------------------------------------------------------


def test_deja_vu_is_flat_in_the_batch_as_published_and_grows_else():
    for assumed, most in (("as-published", 1.03), ("fair", 99.0)):
        steps = [run("deja-vu", batch=b, assumptions=assumed).steps.to_pandas() for b in (1, 8)]
        alone, together = ((s.end_ps - s.start_ps)[1:].mean() for s in steps)
        assert 1.0 <= together / alone <= most
        assert assumed == "as-published" or together / alone > 1.1


def test_deja_vu_spends_the_printed_share_on_copies():
    decode = run("deja-vu").utilization.to_pandas()[1:]
    lasted = decode.end_ps.iloc[-1] - decode.end_ps.iloc[0]
    assert decode["pcie.h2d"].iloc[1:].sum() / lasted == pytest.approx(0.89, abs=0.01)


def test_powerinfer_is_slower_than_hermes_and_its_host_computes():
    host, dimms = run("powerinfer"), run()
    assert host.tokens_per_s < dimms.tokens_per_s
    assert host.busy_ps["cpu"] > 0
    assert run("powerinfer", settings={"activity.misses": "late"}).elapsed_ps > host.elapsed_ps


def test_requests_that_arrive_over_time_are_served():
    for system in ("hermes", "powerinfer", "deja-vu"):
        done = simulate(
            system, model="opt-13b", workload=hetmem.fixed(16, 4, 3), settings=COARSE, rate=2.0, requests=4,
            policies={"batching": "continuous"} | DEFAULTS[system],
        )  # fmt: skip
        assert done.summary()["requests"]["done"] == 4


def test_the_machine_needs_its_parts():
    asked = scenario("hermes", model="opt-13b", workload_=hetmem.fixed(8, 2, 1))
    bare = evolve(asked.configuration().machine, dimm_link=None)
    with pytest.raises(UnsupportedError, match="links between the DIMMs"):
        run(machine=bare, settings={"machine.gpu_weight_bytes": 3e9})
