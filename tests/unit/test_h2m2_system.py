"""The system ``h2m2``: who waits for what, what is charged, and what is refused."""

from typing import Any

import numpy as np
import pytest
from attrs import evolve, frozen

import hetmem
from hetmem.engine.step import StepView
from hetmem.errors import CapacityError, ConfigError, UnknownNameError, UnsupportedError
from hetmem.hardware.config import machine
from hetmem.model import Precision, StepShape, load_model
from hetmem.policy.kernel_mapping import SIDES, SUBLAYERS, GreedyMapper, Mapping, MappingView
from hetmem.policy.kernel_search import MAPPERS
from hetmem.study.run import Run
from hetmem.system import Setup
from hetmem.system.h2m2 import H2m2, MappedPlan

INT8 = Precision(weights_bits=8, kv_bits=8, activation_bits=8)
GPT3 = evolve(load_model("gpt3-175b"), n_layers=4)  # four of its layers: the same kernels, a twentieth of the memory
SCALE = 4 / 96
BATCH = 32


def small(assumptions: str = "as-published") -> Any:
    """Return a board with memories as small as the four layers."""
    board = machine("h2m2", assumptions)
    return evolve(
        board, fast=evolve(board.fast, capacity_bytes=int(board.fast.capacity_bytes * SCALE)),
        slow=evolve(board.slow, capacity_bytes=int(board.slow.capacity_bytes * SCALE)), decoder_only=True,
    )  # fmt: skip


def simulate(prompt: int, output: int, **given: Any) -> Run:
    options = {"machine": small(), "precision": INT8, "assumptions": "as-published"} | given
    return hetmem.simulate("h2m2", model=GPT3, workload=hetmem.fixed(prompt, output, BATCH), **options)


def system(**given: Any) -> H2m2:
    settings: dict[str, Any] = {
        "model": GPT3, "precision": INT8, "machine": small(), "assumptions": "as-published", "batch": BATCH,
        "longest": 2048, "kv_block_tokens": 16, "policies": {},
    } | given  # fmt: skip
    return H2m2(Setup(**settings))


def decode(order: int, length: int) -> StepView:
    tokens = BATCH * length
    return StepView(order, 0, None, StepShape(BATCH, BATCH, tokens, tokens, BATCH), BATCH, 0)


def seconds(run: Run) -> np.ndarray:
    return (run.steps.column("end_ps") - run.steps.column("start_ps")) * 1e-12


def eviction() -> Run:
    """Return a traced run in which FC gives parts up while the batch grows."""
    return simulate(1010, 40, trace=True)


# -- waiting -----------------------------------------------------------------------------------------------------------


@frozen
class Flip:
    """Moves one sub-layer's parts from the fast to the slow side from a length on."""

    sublayer: str
    tokens: int

    def decide(self, view: MappingView) -> Mapping:
        parts = {"attention": 40, "qkv": 40, "fc": 20}
        if view.attention.slow_bytes[0] >= self.tokens * 2 * 12288 * 4:
            parts[self.sublayer] -= 10
        return Mapping(**parts)

    def candidates(self, view: MappingView) -> int:
        return 0


@pytest.mark.parametrize("sublayer", SUBLAYERS)
def test_a_half_kernel_waits_for_its_own_pages_only(sublayer: str) -> None:
    flip = Flip(sublayer, BATCH * 513)
    slow_link = {"machine.link.peer.gbs": 10.0}
    run = simulate(510, 5, policies={"mapping": flip}, settings=slow_link, trace=True)
    assert run.tasks is not None
    tasks = run.tasks.to_pandas()
    moved = tasks[tasks.task == f"move.{sublayer}"]
    (step,) = moved.step.unique()
    here = tasks[tasks.step == step]
    landed = moved[moved.server == "link.down"].end_ps.to_numpy()
    assert len(landed) == GPT3.n_layers
    slot = {"attention": "attention.decode", "qkv": "qkv", "fc": "fc"}[sublayer]
    for name in ("qkv", "attention.decode", "fc"):
        for side in SIDES:
            starts = here[(here.task == f"{name}.{side}") & (here.server == f"{side}.chip")].start_ps.to_numpy()
            assert len(starts) == GPT3.n_layers
            waits = starts >= landed
            if (name, side) == (slot, "slow"):
                assert waits.all()  # each layer for its own pages
            elif name == slot:
                assert not waits.any()  # the fast half of the same sub-layer goes ahead
    first = here[here.task == "qkv.fast"].start_ps.min()
    assert first < landed.min()


def test_without_migration_nothing_is_copied_and_nothing_waits() -> None:
    flip = Flip("fc", BATCH * 513)
    with_copies = simulate(510, 5, policies={"mapping": flip})
    without = simulate(510, 5, policies={"mapping": flip}, settings={"machine.abstraction.migration": False})
    assert with_copies.tables["mapping"].column("to_slow_bytes").sum() > 0
    assert without.tables["mapping"].column("to_slow_bytes").sum() == 0
    step = int(np.flatnonzero(with_copies.tables["mapping"].column("to_slow_bytes"))[0])
    assert seconds(with_copies)[step] > seconds(without)[step]
    assert (np.delete(seconds(with_copies), step) == np.delete(seconds(without), step)).all()


def test_copies_pass_through_both_memories_and_the_link() -> None:
    run = eviction()
    assert run.tasks is not None
    tasks = run.tasks.to_pandas()
    copies = tasks[tasks.task.str.startswith("move.") & (tasks.bytes > 0)]
    assert set(copies.server) == {"fast.memory", "link.down", "slow.memory"}
    for step in copies.step.unique():
        both = tasks[(tasks.step == step) & (tasks.server == "slow.memory")].sort_values("start_ps")
        assert (
            both.bytes[both.task.str.startswith("move.")].sum()
            == copies[(copies.step == step) & (copies.server == "slow.memory")].bytes.sum()
        )


def test_new_kv_pages_wait_for_frames_that_leave_when_the_fast_memory_is_full() -> None:
    run = eviction()
    assert run.tables["mapping"].column("frame_waits").max() > 0


# -- charges -----------------------------------------------------------------------------------------------------------


def test_the_decision_is_the_first_task_on_the_host_and_delays_the_step() -> None:
    cost = {"machine.decision_s_per_candidate": 1e-4}
    slow, quick = (simulate(100, 3, trace=True, settings=s) for s in (cost, {"machine.decision_s_per_candidate": 0.0}))
    assert slow.tasks is not None
    first = slow.tasks.to_pandas().sort_values("start_ps").groupby("step").first()
    assert set(first.server) == {"host"}
    assert set(first.task) == {"decide"}
    assert seconds(slow) - seconds(quick) == pytest.approx(np.full(3, 3 * 97 * 1e-4), rel=1e-9)


def test_the_greedy_takes_what_the_paper_says() -> None:
    board = machine("h2m2", "as-published")
    assert 3 * 97 * board.decision_s_per_candidate == pytest.approx(0.05e-3, rel=1e-3)


@pytest.mark.parametrize(("name", "candidates"), [("greedy", 291), ("oracle", 97**3), ("a-major", 97**2),
                                                   ("naive", 8), ("static", 0)])  # fmt: skip
def test_each_policy_is_charged_for_what_it_compares(name: str, candidates: int) -> None:
    run = simulate(200, 2, policies={"mapping": name})
    assert run.tables["mapping"].column("candidates").tolist() == [candidates] * 2


def test_walks_show_where_memory_decides_and_more_walkers_hide_them() -> None:
    tlb = {"machine.paging.tlb_entries": 16}
    plain = seconds(simulate(600, 2, settings={"machine.abstraction.translation": False}))[1]
    one, two, many = (
        seconds(simulate(600, 2, settings={**tlb, "machine.paging.walkers": n}))[1] for n in (1, 2, 10**6)
    )
    assert one > two > plain
    assert many == pytest.approx(plain, rel=1e-4)


def test_a_memory_within_the_reach_of_the_tlb_costs_no_walks() -> None:
    run = simulate(100, 2, settings={"machine.paging.tlb_entries": 10**6})
    assert run.busy_ps["fast.mmu"] == run.busy_ps["slow.mmu"] == 0


def test_table_entries_cost_time_on_the_host() -> None:
    cheap, dear = (simulate(300, 4, settings={"machine.paging.update_s": s}) for s in (0.0, 1e-3))
    entries = dear.tables["mapping"].column("table_entries")
    assert (seconds(dear) - seconds(cheap)) == pytest.approx(entries * 1e-3, abs=1e-9)


def test_unpaged_memory_pays_for_nothing_of_it() -> None:
    run = simulate(1010, 40, settings={"machine.abstraction.paged": False})
    for column in ("table_entries", "to_fast_bytes", "to_slow_bytes", "fast_waste_bytes", "slow_waste_bytes"):
        assert not run.tables["mapping"].column(column).any()


def test_unrolled_layers_take_the_same_ticks() -> None:
    folded, unrolled = (simulate(300, 4, settings={"serving.unroll_layers": u}) for u in (False, True))
    assert folded.steps.column("end_ps").tolist() == unrolled.steps.column("end_ps").tolist()


def test_a_prompt_takes_the_tile_law_with_its_tokens_as_rows() -> None:
    # Everything on the fast side: a wide memory and no paging leave the matrix unit alone.
    settings = {
        "machine.abstraction.paged": False, "machine.decision_s_per_candidate": 0.0,
        "machine.fast.bandwidth_bytes_per_s": 1e18, "machine.fast.capacity_bytes": 10**12,
        "machine.link.peak_gbs": 1e9, "machine.link.peer.gbs": 1e9, "machine.link.peer.latency_s": 0.0,
    }  # fmt: skip
    run = simulate(64, 1, policies={"mapping": AllFast()}, settings=settings)
    rows, d = 64 * BATCH, 12288
    weights = {"qkv": 3 * d * (d + 1), "fc": d * (d + 1) + 4 * d * (d + 1) + d * (4 * d + 1)}
    passes = {"qkv": -(-rows // (16_000_000 // d)), "fc": -(-rows // (16_000_000 // (4 * d)))}
    gemm = sum(weights[k] / 128**2 * (rows + passes[k] * 100) for k in weights) / 4e9
    keys, attended = 64 * BATCH, 64 * 65 // 2 * BATCH
    attention = 2 * d * keys / 128**2 * (attended / keys + 100) / 4e9
    assert seconds(run)[0] == pytest.approx(4 * (gemm + attention), rel=1e-4)


@frozen
class AllFast:
    """Everything on the fast side."""

    def decide(self, view: MappingView) -> Mapping:
        return Mapping(view.attention.parts, view.qkv.parts, view.fc.parts)

    def candidates(self, view: MappingView) -> int:
        return 0


def test_memory_energy_is_bytes_times_picojoules_per_bit() -> None:
    run = simulate(100, 2, trace=True)
    assert run.tasks is not None
    tasks = run.tasks.to_pandas()
    for side, pj in (("fast", 3.59), ("slow", 7.0)):
        n_bytes = int(tasks[tasks.server == f"{side}.memory"].bytes.sum())
        assert run.energy.component_j()[f"{side}-memory"] == pytest.approx(8 * n_bytes * pj * 1e-12, rel=0.01)
    assert "chips (idle)" in run.energy.not_counted


# -- state -------------------------------------------------------------------------------------------------------------


def test_planning_is_pure_and_repeatable() -> None:
    planner = system()
    planner.commit(planner.plan(decode(0, 500)))
    first, second = planner.plan(decode(1, 501)), planner.plan(decode(1, 501))
    assert first.mapping == second.mapping
    assert first.row == second.row
    assert first.graph.costs == second.graph.costs
    assert (first.allocate, first.release) == (second.allocate, second.release)


def test_an_unchanged_footprint_is_not_mapped_again() -> None:
    planner = system()
    planner.commit(planner.plan(decode(0, 500)))
    again = planner.plan(decode(1, 500))
    assert again.row[COLUMN["candidates"]] == 0
    assert again.row[COLUMN["table_entries"]] == 0


def test_what_has_no_work_is_no_task() -> None:
    planner = system(policies={"mapping": AllFast()}, machine=evolve(small(), fast=small().slow))
    graph = planner.plan(decode(0, 500)).graph
    slots = set(graph.template.slots)
    assert {"tables", "qkv.fast.compute", "fc.fast.memory"} < slots
    assert not slots & {"decide", "qkv.slow.compute", "fc.slow.out", "head.compute"}  # decoder layers only, on one side
    assert all(cost.ps or server is None for cost, server in zip(graph.costs, graph.template.servers, strict=True))


COLUMN = {name: i for i, name in enumerate(("step", *SUBLAYERS, "candidates", "table_entries"))}


def test_page_tables_and_ledger_agree_with_a_recount_while_sequences_come_and_go() -> None:
    planner, held = system(), dict.fromkeys(SIDES, 0)
    rng = np.random.default_rng(7)
    length = 400
    for order in range(60):
        plan = planner.plan(decode(order, length))
        assert isinstance(plan, MappedPlan)
        for _, side, n in plan.allocate:
            held[side] += n
            assert held[side] <= planner.capacity[SIDES.index(side)] * 2**21
        planner.commit(plan)
        for _, side, n in plan.release:
            held[side] -= n
        for index, side in enumerate(SIDES):
            pages = 0
            for name, elements in (("attention", 2 * 12288 * BATCH * length), ("qkv", GPT3.layer_params["qkv"]),
                                   ("fc", sum(GPT3.layer_params[g] for g in ("proj", "up", "down")))):  # fmt: skip
                fast = elements * getattr(plan.mapping, name) // 96
                pages += 4 * -(-(fast if index == 0 else elements - fast) // 2**21)
            assert planner.pages[index].held_pages == pages + 2  # and the table itself
            assert held[side] == pages * 2**21
        length = max(2, length + int(rng.choice([1, 1, 1, 150, -120])))


def test_requests_of_a_dynamic_batch_join_and_leave_and_the_mapping_follows() -> None:
    from hetmem.study.h2m2_runs import dynamic_workload

    run = hetmem.simulate(
        "h2m2", model=GPT3, workload=dynamic_workload(), requests=60, batch=BATCH, machine=small(), precision=INT8,
        assumptions="as-published", policies={"batching": "continuous"}, settings={"serving.token_budget": "none"},
    )  # fmt: skip
    table, steps = run.tables["mapping"].to_pandas(), run.steps.to_pandas()
    requests = run.requests.to_pandas()
    # Tokens held at each step from the requests alone: the prompt in the step of admission, one more each step after.
    contexts = np.zeros(len(steps), dtype=int)
    for one in requests.itertuples():
        active = steps[(steps.start_ps >= one.admitted_ps) & (steps.end_ps <= one.finish_ps)].index.to_numpy()
        assert len(active) == one.output_tokens
        contexts[active] += one.prompt_tokens + np.arange(len(active))
    page = 2**21
    for at in range(len(steps)):
        attention = 2 * 12288 * int(contexts[at])
        weights = {"qkv": GPT3.layer_params["qkv"], "fc": sum(GPT3.layer_params[g] for g in ("proj", "up", "down"))}
        fast = 2
        for name, size in {"attention": attention, **weights}.items():
            fast += 4 * -(-(size * int(table[name][at]) // 96) // page)
        assert table.fast_bytes[at] == fast * page
    assert table.fc.nunique() > 3
    assert (table.to_fast_bytes > 0).any()
    assert (table.to_slow_bytes > 0).any()


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPPERS)
def test_every_policy_can_be_chosen_by_name(name: str) -> None:
    assert len(simulate(64, 2, policies={"mapping": name}).steps) == 2


def test_policies_may_be_objects() -> None:
    named, given = simulate(64, 2), simulate(64, 2, policies={"mapping": GreedyMapper()})
    assert named.steps.column("end_ps").tolist() == given.steps.column("end_ps").tolist()


def test_an_unknown_policy_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'oracle'"):
        simulate(64, 2, policies={"mapping": "oracel"})
    with pytest.raises(UnknownNameError, match="policy role"):
        hetmem.simulate("lpddr-only", model="opt-6.7b", policies={"mapping": "greedy"})


def test_a_mapping_that_does_not_fit_names_the_memory() -> None:
    with pytest.raises(CapacityError, match=r"hbm3: .* asked"):
        simulate(1500, 2, policies={"mapping": AllFast()})


def test_mixtures_of_experts_are_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        hetmem.simulate("h2m2", model="mixtral-8x7b", workload=hetmem.fixed(8, 2, 1))


def test_a_board_has_no_gpus_and_a_gpu_machine_is_no_board() -> None:
    with pytest.raises(ConfigError, match="gpu: machine h2m2 has none"):
        hetmem.simulate("h2m2", model="opt-6.7b", gpu="rtx-4090", workload=hetmem.fixed(8, 2, 1))
    with pytest.raises(ConfigError, match="h2m2 runs on a board"):
        hetmem.simulate("h2m2", model="opt-6.7b", machine=machine("resident"), workload=hetmem.fixed(8, 2, 1))
    with pytest.raises(ConfigError, match="resident runs on GPUs"):
        hetmem.simulate("resident", model="opt-6.7b", machine=machine("h2m2"), workload=hetmem.fixed(8, 2, 1))


def test_a_board_without_a_part_names_it() -> None:
    with pytest.raises(ConfigError, match=r"machine\.fast: is missing on this board"):
        hetmem.simulate("h2m2", model="opt-6.7b", machine=machine("lpddr-only"), workload=hetmem.fixed(8, 2, 1))
