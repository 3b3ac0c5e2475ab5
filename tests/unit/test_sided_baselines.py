"""The machines that H2M2 is compared with: one memory, a hierarchy, several devices."""

from typing import Any

import pytest
from attrs import evolve

import hetmem
from hetmem.errors import CapacityError, ConfigError
from hetmem.hardware.config import machine
from hetmem.hardware.link import link
from hetmem.model import Precision, load_model
from hetmem.study.run import Run
from hetmem.study.scenario import scenario

INT8 = Precision(weights_bits=8, kv_bits=8, activation_bits=8)
MODEL = load_model("opt-6.7b")
LAYER = sum(MODEL.layer_params[group] for group in ("qkv", "proj", "up", "down"))
BATCH, LENGTH = 4, 100


def simulate(system: str, **given: Any) -> Run:
    options: dict[str, Any] = {"precision": INT8, "assumptions": "as-published", "model": MODEL} | given
    return hetmem.simulate(system, workload=hetmem.fixed(LENGTH - 1, 2, BATCH), **options)


def decode_s(run: Run) -> float:
    return float(run.steps.column("end_ps")[1] - run.steps.column("start_ps")[1]) * 1e-12


def test_lpddr_only_reads_everything_at_the_rate_of_its_memory() -> None:
    kv = BATCH * LENGTH * 2 * MODEL.d_model * MODEL.n_layers
    written = BATCH * 2 * MODEL.d_model * MODEL.n_layers
    latency = 3 * MODEL.n_layers * 45e-9
    expected = (MODEL.n_layers * LAYER + kv + written) / 544e9 + latency
    assert decode_s(simulate("lpddr-only")) == pytest.approx(expected, rel=1e-6)


def test_the_head_is_counted_where_the_machine_has_more_than_decoder_layers() -> None:
    without, with_head = (
        decode_s(simulate("lpddr-only", settings={"machine.decoder_only": only})) for only in (True, False)
    )
    assert with_head - without == pytest.approx(MODEL.vocab * MODEL.d_model / 544e9 + 45e-9, rel=1e-6)


@pytest.mark.parametrize("system", ["h2m2", "hierarchical", "multi-hbm"])
def test_the_head_takes_time_on_every_board(system: str) -> None:
    without, with_head = (simulate(system, settings={"machine.decoder_only": only}) for only in (True, False))
    assert decode_s(with_head) > decode_s(without)


def test_fair_boards_sustain_less_than_their_peaks_and_read_shared_kv_once() -> None:
    board = machine("h2m2", "fair")
    assert board.slow.rate_bytes_per_s == pytest.approx(0.915 * 544e9, rel=0.01)
    assert board.fast.rate_bytes_per_s == pytest.approx(0.902 * 3e12, rel=0.01)
    assert board.link.path().gbs == pytest.approx(960 * 288.8 / 300, rel=1e-3)
    assert board.gqa_reuse
    published = machine("h2m2", "as-published")
    assert published.slow.rate_bytes_per_s == 544e9
    assert published.link.path().gbs == 960.0
    assert not published.gqa_reuse


@pytest.mark.parametrize(("reuse", "unit", "reads"), [(False, "matrix", 8), (True, "matrix", 1), (True, "vector", 1)])
def test_grouped_queries_read_their_kv_as_often_as_asked(reuse: bool, unit: str, reads: int) -> None:
    model = load_model("llama2-70b")
    run = simulate(
        "lpddr-only", model=model, trace=True, settings={"machine.gqa_reuse": reuse, "machine.gqa_unit": unit}
    )
    assert run.tasks is not None
    tasks = run.tasks.to_pandas()
    attention = tasks[(tasks.task == "attention.decode") & (tasks.server == "slow.memory")]
    assert attention.bytes.sum() == reads * BATCH * LENGTH * 2 * 1024 * 80


def test_the_hierarchy_moves_up_what_its_upper_memory_cannot_hold() -> None:
    held = MODEL.n_layers * LAYER + BATCH * LENGTH * 2 * MODEL.d_model * MODEL.n_layers
    settings = {"machine.fast.capacity_bytes": held - 10**9}
    apart, together = (simulate("hierarchical", settings={**settings, "machine.overlap": o}) for o in (0.0, 1.0))
    roomy = simulate("hierarchical")
    assert decode_s(apart) - decode_s(roomy) == pytest.approx(10**9 / 544e9, rel=1e-3)
    assert decode_s(roomy) <= decode_s(together) < decode_s(apart)


def test_several_devices_share_kernels_and_pay_for_reductions() -> None:
    settings = {"machine.devices": 4}
    run = simulate("multi-hbm", settings=settings, trace=True)
    assert run.tasks is not None
    tasks = run.tasks.to_pandas()
    reduced = tasks[(tasks.step == 1) & (tasks.task == "allreduce")]
    took = (reduced.end_ps - reduced.start_ps).sum() * 1e-12
    once = link("nvlink3").allreduce_s(BATCH * MODEL.d_model, 4)
    assert took == pytest.approx(2 * MODEL.n_layers * once, rel=1e-6)
    assert {f"hbm{d}.memory" for d in range(4)} <= set(tasks.server)
    one = simulate("multi-hbm", settings={"machine.devices": 1})
    assert "link" not in one.busy_ps


def test_what_does_not_fit_names_the_memory() -> None:
    with pytest.raises(CapacityError, match="slow: "):
        simulate("lpddr-only", settings={"machine.slow.capacity_bytes": 10**9})
    with pytest.raises(CapacityError, match="pool: "):
        simulate("hierarchical", settings={"machine.slow.capacity_bytes": 1, "machine.fast.capacity_bytes": 10**9})


@pytest.mark.parametrize(("path", "value", "problem"), [
    ("machine.overlap", 1.5, r"machine\.overlap: expected a fraction from 0 to 1"),
    ("machine.gqa_unit", "tensor", r"machine\.gqa_unit: "),
    ("machine.fast.capacity_bytes", 0, r"machine\.fast\.capacity_bytes: expected a whole number"),
    ("machine.fast.bandwith", 1, r"machine\.fast\.bandwith: unknown field"),
])  # fmt: skip
def test_bad_values_name_their_field(path: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        simulate("hierarchical", settings={path: value})


def test_settings_of_a_board_are_given_with_their_units() -> None:
    settings = {
        "machine.fast.bandwidth_bytes_per_s": "6 TB/s", "machine.slow.capacity_bytes": "1 TB",
        "machine.paging.miss_s": "400 ns", "machine.abstraction.paged": "false",
    }  # fmt: skip
    board = scenario("h2m2", model=MODEL, workload_="chat", settings=settings).configuration().machine
    assert (board.fast.bandwidth_bytes_per_s, board.slow.capacity_bytes) == (6e12, 10**12)
    assert (board.paging.miss_s, board.abstraction.paged) == (4e-7, False)
    with pytest.raises(ConfigError, match=r"machine\.fast\.bandwidth_bytes_per_s: '6 TB' is in B, expected B/s"):
        scenario(
            "h2m2", model=MODEL, workload_="chat", settings={"machine.fast.bandwidth_bytes_per_s": "6 TB"}
        ).configuration()


def test_the_same_policies_run_on_another_pair_of_memories() -> None:
    board = machine("hbm3e-cxl", "fair")
    for name in ("greedy", "oracle", "static"):
        run = simulate("h2m2", machine=board, policies={"mapping": name})
        assert decode_s(run) > 0
    slower = evolve(board, link=evolve(board.link, peer=evolve(board.link.peer, gbs=1.0)))
    assert decode_s(simulate("h2m2", machine=slower)) > decode_s(simulate("h2m2", machine=board))
