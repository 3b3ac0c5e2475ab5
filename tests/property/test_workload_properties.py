"""Properties of request tables, readers and distributions for any input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetmem import rng
from hetmem.units import PS_PER_S
from hetmem.workload import JointQuantiles, RequestTable, arrival_times_ps, read_trace

rows = st.lists(
    st.tuples(st.integers(0, 10**15), st.integers(0, 10_000), st.integers(0, 10_000)), min_size=1, max_size=60
)
quantiles = st.lists(st.integers(1, 5000), min_size=2, max_size=9).map(sorted)
joints = st.builds(JointQuantiles, quantiles, st.lists(quantiles, min_size=1, max_size=5))


def _build(requests):
    arrival, prompt, output = zip(*requests, strict=True)
    return RequestTable.build(arrival, prompt, output, [(i,) for i in range(len(requests))])


@settings(deadline=None)  # other work on the machine must not fail a property
@given(rows)
def test_building_permutes_rows_and_loses_none(requests):
    table = _build(requests)
    assert np.all(np.diff(table.arrival_ps) >= 0)
    columns = (table.id, table.arrival_ps, table.prompt_tokens, table.output_tokens)
    found = list(zip(*(column.tolist() for column in columns), table.prefix_blocks, strict=True))
    expected = [(i, a, max(p, 1), max(o, 1), (i,)) for i, (a, p, o) in enumerate(requests)]
    assert found == sorted(expected, key=lambda row: row[1])  # sorted() is stable


@settings(deadline=None)
@given(rows, st.integers(2, 25_000), st.booleans())
def test_every_request_is_kept_within_the_context_or_dropped_with_a_reason(requests, context, truncate):
    before = _build(requests)
    after = before.within_context(context, truncate)
    assert after.n_in == before.n_in == len(requests)
    assert np.all(after.prompt_tokens + after.output_tokens <= context)
    assert sorted([*after.id.tolist(), *(number for number, _ in after.dropped)]) == list(range(len(requests)))
    if truncate:
        assert after.dropped == ()
        assert np.all(after.prompt_tokens <= before.prompt_tokens)
        assert np.all(after.output_tokens <= before.output_tokens)
        cut = (after.prompt_tokens < before.prompt_tokens) | (after.output_tokens < before.output_tokens)
        assert np.all((after.prompt_tokens + after.output_tokens)[cut] == context)  # no more than needed
        assert np.all(after.output_tokens[after.prompt_tokens < before.prompt_tokens] == 1)
    assert after.within_context(context, truncate) == after


@settings(deadline=None)
@given(rows, st.integers(1, 70))
def test_head_is_a_prefix(requests, n):
    table = _build(requests)
    head = table.head(n)
    assert len(head) == min(n, len(table))
    assert head.id.tolist() == table.id.tolist()[:n]


@settings(deadline=None)
@given(rows, st.integers(1, 50))
def test_scaling_by_whole_numbers_is_exact_for_sizes_and_keeps_the_order(requests, factor):
    table = _build(requests)
    scaled = table.scaled(time=factor, size=factor)
    assert scaled.prompt_tokens.tolist() == (table.prompt_tokens * factor).tolist()
    assert scaled.id.tolist() == table.id.tolist()
    assert scaled.arrival_ps == pytest.approx(table.arrival_ps * float(factor), rel=1e-15, abs=0.5)


@settings(deadline=None, max_examples=50)
@given(rows, st.sampled_from(["arrival_s", "arrival_ms", "timestamp"]), st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory, requests, arrival, as_json):
    """The same rows as text in any unit and form give the table built from the numbers, counted from the first."""
    per_unit = PS_PER_S if arrival == "arrival_s" else PS_PER_S // 1000
    digits = len(str(per_unit)) - 1
    lines = [] if as_json else [f"{arrival},in_tokens,out_tokens,hash_ids"]
    for i, (ps, prompt, output) in enumerate(requests):
        time = f"{ps // per_unit}.{ps % per_unit:0{digits}d}"
        lines.append(
            f'{{"{arrival}": {time}, "in_tokens": {prompt}, "out_tokens": {output}, "hash_ids": [{i}]}}'
            if as_json
            else f"{time},{prompt},{output},{i}"
        )
    path = tmp_path_factory.mktemp("trace") / "trace"
    path.write_text("\n".join(lines))
    expected = _build(requests)
    assert read_trace(path).table == expected.with_arrivals(expected.arrival_ps - expected.arrival_ps[0])


@settings(deadline=None)
@given(joints, st.integers(0, 2**32), st.integers(0, 200))
def test_samples_stay_within_their_tables_and_prefixes_agree(joint, seed, n):
    prompt, output = joint.sample(n, rng.stream(seed, "test"))
    assert len(prompt) == len(output) == n
    assert np.all((prompt >= joint.prompt_tokens[0]) & (prompt <= joint.prompt_tokens[-1]))
    assert np.all(output >= min(band[0] for band in joint.output_tokens))
    assert np.all(output <= max(band[-1] for band in joint.output_tokens))
    longer = joint.sample(n + 7, rng.stream(seed, "test"))
    assert (longer[0][:n].tolist(), longer[1][:n].tolist()) == (prompt.tolist(), output.tolist())


@settings(deadline=None)
@given(joints, st.integers(0, 2**32))
def test_a_context_keeps_the_draws_that_fit_and_their_order(joint, seed):
    free = joint.sample(64, rng.stream(seed, "test"))
    limit = int(np.median(free[0] + free[1]))
    fits = free[0] + free[1] <= limit
    held = joint.sample(int(fits.sum()), rng.stream(seed, "test"), limit)
    assert held[0].tolist() == free[0][fits].tolist()
    assert held[1].tolist() == free[1][fits].tolist()


@settings(deadline=None)
@given(joints)
def test_quantiles_never_fall_in_their_probability(joint):
    u = np.linspace(0, 1, 101)
    prompt, _ = joint.lengths(u, np.full(101, 0.5))
    assert np.all(np.diff(prompt) >= 0)
    _, output = joint.lengths(np.full(101, 0.3), u)
    assert np.all(np.diff(output) >= 0)


@settings(deadline=None)
@given(st.integers(0, 100), st.floats(1e-3, 1e6), st.floats(0, 5), st.integers(0, 2**32))
def test_arrivals_never_fall(n, rate, cv, seed):
    times = arrival_times_ps(n, rate, seed, cv)
    assert times.dtype == np.int64
    assert len(times) == n
    assert np.all(np.diff(times) >= 0)
    assert n == 0 or times[0] >= 0
