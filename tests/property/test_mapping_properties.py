"""Mapping policies over random models, capacities and rates."""

import itertools

import numpy as np
import pytest
from attrs import evolve
from hypothesis import event, given
from hypothesis import strategies as st

from hetmem.errors import CapacityError
from hetmem.hardware.kernel_cost import (
    DecodeWork,
    Side,
    SideMemory,
    iteration_s,
    mapping_view,
    read_bytes,
    single_memory_s,
)
from hetmem.hardware.systolic import Chip, MatrixUnit, Scratchpad, VectorUnit
from hetmem.policy.kernel_mapping import SUBLAYERS, GreedyMapper, Mapping
from hetmem.policy.kernel_search import STATELESS, OracleMapper, fastest_static, kv_first_static
from hetmem.rng import stream

PAD = Scratchpad(buffer_bytes=16_000_000, buffers=2)


@st.composite
def works(draw):
    kv_heads = draw(st.integers(1, 8))
    heads = kv_heads * draw(st.sampled_from((1, 1, 2, 8)))
    return DecodeWork(
        layers=draw(st.integers(1, 4)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from((64, 128))),
        qkv_weights=draw(st.integers(10**4, 10**7)),
        fc_weights=draw(st.integers(10**4, 10**7)),
        batch=draw(st.integers(1, 300)),
        context_tokens=draw(st.integers(0, 10**4)),
        weight_bits=8 * draw(st.integers(1, 2)),
        kv_bits=8 * draw(st.integers(1, 2)),
        gqa_reuse=draw(st.booleans()),
        attention_unit=draw(st.sampled_from(("vector", "matrix"))),
    )


@st.composite
def sides(draw, name, footprint):
    chip = Chip(
        MatrixUnit(128, 128, draw(st.integers(1, 8)), 1e9, draw(st.floats(0, 300))),
        VectorUnit(draw(st.integers(1, 64)), 128, 4, 1e9),
        PAD,
    )
    capacity = max(1, int(footprint * draw(st.floats(0.1, 1.5))))
    return Side(SideMemory(name, capacity, draw(st.floats(1e11, 4e12)), 0.0), chip)


@st.composite
def cases(draw):
    work = draw(works())
    return work, draw(sides("fast", work.footprint_bytes)), draw(sides("slow", work.footprint_bytes))


@given(cases())
def test_greedy_is_never_better_than_the_oracle_and_both_fit(case):
    view = mapping_view(*case)
    try:
        best = OracleMapper().decide(view)
    except CapacityError:
        event("no mapping fits")
        with pytest.raises(CapacityError):
            GreedyMapper().decide(view)
        return
    assert view.fits(best)
    try:
        chosen = GreedyMapper().decide(view)
    except CapacityError:
        event("greedy finds no placement though one exists")
        return
    assert view.fits(chosen)
    assert view.time_s(chosen) >= view.time_s(best)
    event(f"greedy reaches {int(10 * view.time_s(best) / view.time_s(chosen)) * 10} % of the oracle or more")


@given(cases())
def test_oracle_equals_a_plain_search(case):
    view = mapping_view(*case)
    every = itertools.product(*(range(view.table(name).parts + 1) for name in SUBLAYERS))
    if max(view.table(name).parts for name in SUBLAYERS) > 8:
        return  # a plain search of 64 slices takes too long
    times = [view.time_s(m) for m in itertools.starmap(Mapping, every) if view.fits(m)]
    if times:
        assert view.time_s(OracleMapper().decide(view)) == pytest.approx(min(times), rel=1e-12)
    else:
        with pytest.raises(CapacityError):
            OracleMapper().decide(view)


@given(cases())
def test_no_policy_beats_the_oracle_or_overfills_a_memory(case):
    view = mapping_view(*case)
    try:
        best_s = view.time_s(OracleMapper().decide(view))
    except CapacityError:
        return
    answers = [lambda v, make=make: make().decide(v) for make in STATELESS.values()]
    answers += [lambda v: fastest_static(v).decide(v), lambda v: kv_first_static(v).decide(v)]
    for answer in answers:
        try:
            mapping = answer(view)
        except CapacityError:
            continue
        assert view.fits(mapping)
        assert view.time_s(mapping) >= best_s * (1 - 1e-12)


@given(cases(), st.sampled_from((0.25, 0.5, 2.0, 8.0)))
def test_slower_hardware_stretches_time_and_decides_the_same(case, factor):
    work, fast, slow = case

    def slower(side):  # by a power of two, so that every rounding scales with it
        matrix, vector = side.chip.matrix, side.chip.vector
        chip = Chip(
            evolve(matrix, clock_hz=matrix.clock_hz / factor),
            evolve(vector, clock_hz=vector.clock_hz / factor),
            PAD,
        )
        rate = side.memory.bandwidth_bytes_per_s / factor
        return evolve(side, chip=chip, memory=evolve(side.memory, bandwidth_bytes_per_s=rate))

    before, after = mapping_view(*case), mapping_view(work, slower(fast), slower(slow))
    for mapper in (GreedyMapper(), OracleMapper()):
        try:
            chosen = mapper.decide(before)
        except CapacityError:
            with pytest.raises(CapacityError):
                mapper.decide(after)
            continue
        assert mapper.decide(after) == chosen
        assert after.time_s(chosen) == factor * before.time_s(chosen)


@given(cases(), st.data())
def test_time_is_bounded_by_the_bytes_each_memory_moves(case, data):
    work, fast, slow = case
    mapping = Mapping(**{name: data.draw(st.integers(0, work.parts(name)), name) for name in SUBLAYERS})
    time_s = iteration_s(work, fast, slow, mapping)
    on_fast, on_slow = read_bytes(work, mapping)
    assert on_fast + on_slow == work.moved_bytes
    assert time_s >= on_fast / fast.memory.bandwidth_bytes_per_s * (1 - 1e-12)
    assert time_s >= on_slow / slow.memory.bandwidth_bytes_per_s * (1 - 1e-12)
    assert time_s == pytest.approx(mapping_view(work, fast, slow).time_s(mapping), rel=1e-12)


@given(cases(), st.data())
def test_speedup_over_a_memory_bound_baseline_is_bounded(case, data):
    work, fast, slow = case
    mapping = Mapping(**{name: data.draw(st.integers(0, work.parts(name)), name) for name in SUBLAYERS})
    roomy = evolve(slow.memory, capacity_bytes=work.footprint_bytes + 1)
    baseline_s = single_memory_s(work, evolve(slow, chips=2, memory=roomy))
    if baseline_s > work.moved_bytes / roomy.bandwidth_bytes_per_s * (1 + 1e-12):
        return  # the baseline computes, so memory does not bound the speedup
    moved, on_fast = work.moved_bytes, read_bytes(work, mapping)[0]
    speedup = baseline_s / iteration_s(work, fast, slow, mapping)
    assert on_fast == moved or speedup <= moved / (moved - on_fast) * (1 + 1e-9)


def test_the_gap_between_greedy_and_oracle_is_reported(record_property):
    rng = stream(0, "greedy-against-oracle")
    ratios, feasible, stranded = [], 0, 0
    for _ in range(800):
        kv_heads = int(rng.integers(2, 17))
        work = DecodeWork(
            layers=int(rng.integers(1, 100)),
            heads=kv_heads,
            kv_heads=kv_heads,
            head_dim=128,
            qkv_weights=int(rng.integers(10**6, 10**8)),
            fc_weights=int(rng.integers(10**6, 10**9)),
            batch=int(rng.integers(1, 129)),
            context_tokens=int(rng.integers(1, 10**6)),
        )
        share, slack = rng.uniform(0.05, 0.95), rng.uniform(0.95, 1.6)
        chip = Chip(MatrixUnit(128, 128, 4, 1e9, 100), VectorUnit(32, 128, 4, 1e9), PAD)
        fast, slow = (
            Side(SideMemory(name, int(work.footprint_bytes * part), rng.uniform(*rates), 0.0), chip)
            for name, part, rates in (
                ("fast", slack * share, (1e12, 4e12)),
                ("slow", slack * (1 - share), (1e11, 1e12)),
            )
        )
        view = mapping_view(work, fast, slow)
        try:
            best_s = view.time_s(OracleMapper().decide(view))
        except CapacityError:
            continue
        feasible += 1
        try:
            ratios.append(best_s / view.time_s(GreedyMapper().decide(view)))
        except CapacityError:
            stranded += 1
    figures = {
        "feasible": feasible,
        "greedy found no placement": stranded,
        "mean oracle time over greedy time": round(float(np.mean(ratios)), 4),
        "least": round(min(ratios), 4),
    }
    for name, value in figures.items():
        record_property(name, value)
    print(f"greedy against oracle: {figures}")
    assert max(ratios) <= 1.0
    assert len(ratios) + stranded == feasible
    assert feasible > 500
    assert stranded < 0.05 * feasible
