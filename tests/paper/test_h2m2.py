"""H2M2 (arXiv 2504.14893) by event-driven runs: published averages, closed form, bounds, eviction, migration."""

import numpy as np
import pytest
from attrs import evolve

from hetmem.errors import ConservationError
from hetmem.hardware.config import machine
from hetmem.hardware.kernel_cost import DecodeWork, Side, hierarchical_s, mapping_view, single_memory_s
from hetmem.policy.kernel_mapping import SUBLAYERS
from hetmem.policy.kernel_search import STATELESS
from hetmem.study import reproduce_h2m2
from hetmem.study.h2m2_runs import (
    CASES,
    CONTENTION_FREE,
    GPT3,
    IDEAL,
    LLAMA2,
    UNPAGED,
    Case,
    Growth,
    Setting,
    growth,
    iteration,
    mean,
    speedup,
    window_s,
)
from hetmem.study.reproduce import Row, within

BOARD = machine("h2m2", "as-published")
FAST, SLOW = BOARD.side("fast"), BOARD.side("slow")

# The dimensions of the decoder layers, written down apart from the catalogue (weights without biases).
LAYERS = {
    "gpt3-175b": DecodeWork(96, 96, 96, 128, 3 * 12288**2, 9 * 12288**2, 32, 0),
    "chinchilla-70b": DecodeWork(80, 64, 64, 128, 3 * 8192**2, 9 * 8192**2, 64, 0),
    "llama2-70b": DecodeWork(80, 64, 8, 128, 8192**2 + 2 * 8192 * 1024, 8192**2 + 3 * 8192 * 28672, 128, 0),
}


def closed_form(case: Case, length: int) -> DecodeWork:
    return evolve(LAYERS[case.model], context_tokens=case.batch * length)


def both(side: Side) -> Side:
    return evolve(side, chips=2)


def average(case: Case, mapping: str | None = None, settings: tuple = ()) -> float:
    return mean(speedup(case, s, Setting(mapping=mapping, settings=settings)) for s in case.lengths)


# -- published averages ------------------------------------------------------------------------------------------------


def test_h2m2_with_all_its_costs_is_within_seven_percent_of_the_published_average():
    assert average(GPT3) == pytest.approx(1.46, rel=0.07)


@pytest.mark.parametrize(
    ("mapping", "published"), [("oracle", 1.50), ("a-major", 1.40), ("q-major", 1.22), ("f-major", 1.12)]
)
def test_mappings_are_within_five_percent_of_the_published_averages(mapping: str, published: float):
    assert average(GPT3, mapping, IDEAL) == pytest.approx(published, rel=0.05)


def test_the_majors_rank_as_published():
    a, q, f = (average(GPT3, name, IDEAL) for name in ("a-major", "q-major", "f-major"))
    assert a > q > f


def test_greedy_is_at_least_095_of_the_oracle_and_never_above():
    for s in GPT3.lengths:
        greedy, oracle = (iteration(GPT3, s, Setting(mapping=m, settings=IDEAL)).seconds for m in ("greedy", "oracle"))
        assert greedy >= oracle
    assert 0.95 <= average(GPT3, "greedy", IDEAL) / average(GPT3, "oracle", IDEAL) <= 0.99


def test_paged_memory_costs_between_03_and_2_percent_with_two_walkers():
    assert BOARD.paging.walkers == 2
    overheads = [window_s(GPT3, s, Setting()) / window_s(GPT3, s, Setting(settings=UNPAGED)) - 1 for s in GPT3.lengths]
    assert 0.003 <= mean(overheads) <= 0.02


# -- closed form -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
@pytest.mark.parametrize("mapping", ["greedy", "oracle", "q-major"])
def test_the_run_equals_the_closed_form_at_every_length_where_nothing_contends(case: Case, mapping: str):
    for s in case.lengths:
        work = closed_form(case, s)
        view = mapping_view(work, FAST, SLOW)
        expected = view.time_s(STATELESS[mapping]().decide(view))
        assert iteration(case, s, Setting(mapping=mapping, settings=CONTENTION_FREE)).seconds == pytest.approx(
            expected, rel=0.01
        )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_the_baseline_equals_its_closed_form_at_every_length(case: Case):
    for s in case.lengths:
        expected = single_memory_s(closed_form(case, s), both(SLOW))
        assert iteration(case, s, Setting("lpddr-only")).seconds == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_the_hierarchy_equals_its_closed_form_at_every_length(case: Case):
    for s in case.lengths:
        expected = hierarchical_s(closed_form(case, s), both(FAST), SLOW.memory)
        assert iteration(case, s, Setting("hierarchical")).seconds == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("overlap", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_overlapped_movement_contends_with_kernels_for_the_hbm_and_no_more(case: Case, overlap: float):
    setting = Setting("hierarchical", settings=(("machine.overlap", overlap),))
    for s in case.lengths:
        ours = iteration(case, s, setting)
        least = hierarchical_s(closed_form(case, s), both(FAST), SLOW.memory, overlap)
        fetched = ours.bytes_of.get("slow.memory", 0)
        most = least + overlap * fetched / FAST.memory.bandwidth_bytes_per_s
        assert least * 0.995 <= ours.seconds <= most * 1.01


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_speedup_stays_below_the_bytes_that_the_slow_memory_is_spared(case: Case):
    for s in case.lengths:
        base = iteration(case, s, Setting("lpddr-only"))
        moved = base.bytes_of["slow.memory"]
        assert base.seconds == pytest.approx(moved / SLOW.memory.bandwidth_bytes_per_s, rel=0.01)  # memory bound
        for mapping in ("greedy", "oracle"):
            ours = iteration(case, s, Setting(mapping=mapping))
            assert ours.bytes_of["fast.memory"] + ours.bytes_of["slow.memory"] == pytest.approx(moved, rel=0.02)
            assert base.seconds / ours.seconds < moved / (moved - ours.bytes_of["fast.memory"])


@pytest.mark.parametrize("system", ["h2m2", "lpddr-only", "hierarchical", "multi-hbm"])
def test_no_iteration_beats_the_bytes_of_each_memory(system: str):
    rate = {"fast": FAST.memory.bandwidth_bytes_per_s, "slow": SLOW.memory.bandwidth_bytes_per_s}
    for s in LLAMA2.lengths[::3]:
        ours = iteration(LLAMA2, s, Setting(system))
        moved = {server: n for server, n in ours.bytes_of.items() if server.endswith(".memory")}
        assert moved
        for server, n_bytes in moved.items():
            assert ours.seconds >= n_bytes / rate.get(server.split(".")[0], rate["fast"])


def test_a_run_that_beats_its_bound_is_refused(monkeypatch: pytest.MonkeyPatch):
    from hetmem.system.h2m2 import H2m2

    monkeypatch.setattr(H2m2, "stream", staticmethod(lambda n_bytes, memory, times=1: _free()))
    with pytest.raises(ConservationError, match="physical lower bound"):
        iteration(GPT3, 512, Setting(settings=(*IDEAL, ("machine.fast_chip.matrix.cores", 400),
                                               ("machine.slow_chip.matrix.cores", 400))))  # fmt: skip


def _free():
    from hetmem.engine.graph import Cost

    return Cost(0)


# -- growth ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown() -> Growth:
    return growth(GPT3, 1060, 1560)


def test_fc_leaves_the_hbm_first_then_qkv_and_only_then_attention(grown: Growth):
    first = {name: int(grown.length[np.flatnonzero(grown.shares[name] == 0)[0]]) for name in ("fc", "qkv")}
    falls = int(grown.length[np.flatnonzero(grown.shares["attention"] < grown.shares["attention"][0])[0]])
    assert first["fc"] == pytest.approx(1140, abs=24)
    assert first["qkv"] == pytest.approx(1490, abs=24)
    assert first["fc"] < first["qkv"] <= falls


def _rises(grown: Growth) -> dict[str, float]:
    return {n: float(np.max(s - np.minimum.accumulate(s))) for n, s in grown.shares.items()}


def test_what_has_left_does_not_come_back(grown: Growth):
    assert max(_rises(grown).values()) <= 4 / 96


def test_migration_is_a_small_share_of_an_iteration(grown: Growth):
    share = grown.migrated_s / grown.seconds
    assert 0 < share.mean() < 0.005
    assert share.max() < 0.03


def test_held_bytes_are_what_the_lengths_need_in_pages(grown: Growth):
    page, layers = 2**21, 96
    widths = {"attention": 2 * 12288 * 32, "qkv": 3 * 12288 * 12289, "fc": 9 * 12288**2 + 12288 * (1 + 4 + 1)}
    for at in range(0, len(grown.length), 17):
        for index, side in enumerate(("fast", "slow")):
            pages = 2  # of the table itself
            for name in SUBLAYERS:
                size = widths[name] * (int(grown.length[at]) if name == "attention" else 1)
                fast = size * round(grown.shares[name][at] * 96) // 96
                pages += layers * -(-(fast if index == 0 else size - fast) // page)
            assert grown.held_bytes[side][at] == pages * page


@pytest.mark.slow
def test_the_order_holds_over_the_whole_range():
    whole = reproduce_h2m2.gpt3_growth()
    assert max(_rises(whole).values()) <= 4 / 96
    assert whole.shares["attention"][-1] >= 0.6
    assert whole.shares["fc"][-1] == 0
    assert float((whole.migrated_s / whole.seconds).mean()) < 0.005


# -- the reproduction --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    listed = reproduce_h2m2.h2m2()
    named = {row.quantity: row for row in listed}
    assert len(named) == len(listed)
    return named


@pytest.mark.slow
def test_the_reproduction_has_every_row(rows: dict[str, Row]):
    for case in CASES:
        for what in ("h2m2", "oracle", "hierarchical", "greedy-over-oracle", "abstraction-overhead"):
            assert f"{case.model}/{what}" in rows
            for s in case.lengths:
                assert rows[f"{case.model}/{what}@{s}"].paper is None
    for what in ("a-major", "q-major", "f-major", "naive", "static", "static-kv-first"):
        assert f"gpt3-175b/{what}" in rows


@pytest.mark.slow
def test_gated_rows_are_within_their_tolerances_and_the_others_say_why_not(rows: dict[str, Row]):
    for row in rows.values():
        if row.tolerance is None:
            assert row.verdict == "not-reproducible"
            assert row.note
        else:
            assert within(row.as_published, row.paper, row.tolerance), row
            assert row.verdict in ("match", "calibrated")
    assert {name for name, row in rows.items() if row.verdict == "calibrated"} == {"gpt3-175b/h2m2", "gpt3-175b/oracle"}


@pytest.mark.slow
def test_means_are_of_the_grid_that_the_note_states(rows: dict[str, Row]):
    for case in CASES:
        row = rows[f"{case.model}/h2m2"]
        values = [rows[f"{case.model}/h2m2@{s}"].as_published for s in case.lengths]
        assert row.as_published == pytest.approx(sum(values) / 8)
        assert f"S = {', '.join(map(str, case.lengths))}" in row.note
        assert "doublings" in row.note
