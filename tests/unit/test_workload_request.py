"""The request table: sorting, accounting of what is dropped, scaling, cutting to a context."""

import json
import tracemalloc

import attrs
import numpy as np
import pytest

from hetmem.errors import ConfigError, WorkloadError
from hetmem.workload import DROP_CONTEXT, PREFIX_BLOCK_TOKENS, RequestTable, fixed


def _table(**changes):
    columns = {"arrival_ps": [30, 10, 20, 10], "prompt_tokens": [1, 2, 3, 4], "output_tokens": [5, 6, 7, 8]}
    return RequestTable.build(**(columns | changes))


def test_sorted_by_arrival_with_equal_arrivals_in_the_order_given():
    table = _table()
    assert table.arrival_ps.tolist() == [10, 10, 20, 30]
    assert table.id.tolist() == [1, 3, 2, 0]
    assert table.prompt_tokens.tolist() == [2, 4, 3, 1]
    assert table.output_tokens.tolist() == [6, 8, 7, 5]


def test_zero_lengths_become_one():
    table = _table(prompt_tokens=[0, 2, 3, 4], output_tokens=[5, 0, 7, 8])
    assert table.prompt_tokens.tolist() == [2, 4, 3, 1]
    assert table.output_tokens.tolist() == [1, 8, 7, 5]


def test_columns_are_private_and_read_only():
    given = np.array([1, 2, 3, 4])
    table = _table(arrival_ps=np.zeros(4, dtype=int), prompt_tokens=given)
    given[:] = 99
    assert table.prompt_tokens.tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="read-only"):
        table.prompt_tokens[0] = 7
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        table.id = given


def test_equality_is_by_value():
    assert _table() == _table()
    assert _table() != _table(output_tokens=[5, 6, 7, 9])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival_ps": [1, 2, 3]}, "4 requests, but 3 arrivals|differ in length"),
        ({"arrival_ps": [-1, 0, 0, 0]}, "start at zero or later"),
        ({"prompt_tokens": [-1, 2, 3, 4]}, "must not be negative"),
        ({"output_tokens": [1, 2, 3, -4]}, "must not be negative"),
        ({"output_tokens": [1, 2, 3, 2**40]}, "output_tokens must lie between"),
        ({"prompt_tokens": [1.5, 2, 3, 4]}, "whole numbers, not float64"),
        ({"prefix_blocks": [()]}, "differ in length"),
    ],
)
def test_unsound_columns_are_refused(changes, message):
    with pytest.raises(WorkloadError, match=message):
        _table(**changes)


def test_the_constructor_refuses_unsorted_arrivals_and_repeated_ids():
    columns = {"arrival_ps": [0, 1], "prompt_tokens": [1, 1], "output_tokens": [1, 1], "id": [0, 1]}
    RequestTable(**columns)
    with pytest.raises(WorkloadError, match="never fall"):
        RequestTable(**(columns | {"arrival_ps": [1, 0]}))
    with pytest.raises(WorkloadError, match="id must not occur twice"):
        RequestTable(**(columns | {"id": [1, 1]}))
    with pytest.raises(WorkloadError, match="prompt_tokens must lie between 1"):
        RequestTable(**(columns | {"prompt_tokens": [0, 1]}))


def test_an_empty_table_is_a_table():
    table = RequestTable.build([], [], [])
    assert len(table) == table.n_in == 0
    assert len(table.within_context(10)) == len(table.scaled(time=2.0, size=2.0)) == len(table.head(3)) == 0


def test_too_long_requests_are_dropped_with_the_reason_and_counted():
    table = _table().within_context(9)
    assert table.id.tolist() == [1, 0]
    assert table.dropped == ((3, DROP_CONTEXT), (2, DROP_CONTEXT))
    assert (len(table), table.n_in) == (2, 4)
    again = table.within_context(7)
    assert again.dropped == (*table.dropped, (1, DROP_CONTEXT))
    assert again.n_in == 4


def test_a_request_of_exactly_the_context_stays():
    assert len(_table().within_context(12)) == 4
    assert len(_table().within_context(11)) == 3
    assert len(_table().within_context(None)) == 4


def test_truncation_cuts_the_output_then_the_prompt():
    table = RequestTable.build([0, 1, 2], [3, 9, 50], [4, 9, 9]).within_context(10, truncate=True)
    assert table.prompt_tokens.tolist() == [3, 9, 9]
    assert table.output_tokens.tolist() == [4, 1, 1]
    assert table.dropped == ()


@pytest.mark.parametrize("context", [1, 0, -5, 2.5, True])
def test_a_context_without_room_for_a_prompt_and_an_output_is_an_error(context):
    with pytest.raises(ConfigError, match=r"^max_context: expected a whole number of at least 2"):
        _table().within_context(context)


def test_scaling_in_time_and_size():
    table = _table().scaled(time=2.5, size=3)
    assert table.arrival_ps.tolist() == [25, 25, 50, 75]
    assert table.prompt_tokens.tolist() == [6, 12, 9, 3]
    assert table.id.tolist() == [1, 3, 2, 0]
    assert _table().scaled(size=0.01).output_tokens.tolist() == [1, 1, 1, 1]
    assert _table().scaled() == _table()


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"time": 0}, r"^time: expected a factor above zero, not 0$"),
        ({"time": -1.0}, r"^time: "),
        ({"time": float("nan")}, r"^time: "),
        ({"time": 1e30}, r"^time: .* beyond"),
        ({"size": float("inf")}, r"^size: "),
        ({"size": "2"}, r"^size: "),
        ({"size": 1e12}, r"^size: .* beyond"),
    ],
)
def test_a_bad_scale_names_its_field(factors, message):
    with pytest.raises(ConfigError, match=message):
        _table().scaled(**factors)


def test_head_takes_the_first_by_arrival():
    assert _table().head(2).id.tolist() == [1, 3]
    assert len(_table().head(99)) == 4
    with pytest.raises(ConfigError, match=r"^requests: "):
        _table().head(0)


def test_new_arrivals_go_to_the_rows_in_order_and_sort_them_anew():
    table = _table().with_arrivals([5, 4, 5, 0])
    assert table.arrival_ps.tolist() == [0, 4, 5, 5]
    assert table.id.tolist() == [0, 3, 1, 2]
    with pytest.raises(WorkloadError, match="4 requests, but 1 arrivals"):
        _table().with_arrivals([1])


def test_prefix_blocks_travel_with_their_rows_and_are_cut_with_the_prompt():
    block = PREFIX_BLOCK_TOKENS
    blocks = [(1, 2, 3), (1,), (), (1, 9)]
    table = RequestTable.build([3, 1, 2, 0], [3 * block, block, 5, block + 1], [1, 1, 1, 1], blocks)
    assert table.prefix_blocks == ((1, 9), (1,), (), (1, 2, 3))
    cut = table.within_context(2 * block, truncate=True)
    assert cut.prefix_blocks == ((1, 9), (1,), (), (1, 2))
    assert table.within_context(2 * block).prefix_blocks == ((1, 9), (1,), ())
    assert table.scaled(size=0.4).prefix_blocks == ((1,), (1,), (), (1, 2))
    assert table.scaled(size=4.0).prefix_blocks == table.prefix_blocks
    assert table.head(1).prefix_blocks == ((1, 9),)


def test_many_requests_are_four_columns():
    n = 200_000
    tracemalloc.start()
    table = fixed(10, 10, n).requests(max_context=None, seed=0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == n
    assert held < 4 * 8 * n * 1.01
    assert sum(column.nbytes for column in (table.arrival_ps, table.id)) == 16 * n


def test_fixed_batches():
    batch = fixed(prompt=128, output=64, batch=4)
    table = batch.requests(max_context=4096, seed=0)
    assert len(table) == 4
    assert set(table.arrival_ps.tolist()) == {0}
    assert set(table.prompt_tokens.tolist()) == {128}
    assert set(table.output_tokens.tolist()) == {64}
    assert len(batch.requests(max_context=4096, n=9, seed=0)) == 9
    assert batch.requests(max_context=100, seed=0).dropped == tuple((i, DROP_CONTEXT) for i in range(4))
    assert json.loads(json.dumps(batch.describe())) == {
        "name": "fixed-128-64", "kind": "fixed", "prompt": 128, "output": 64, "batch": 4,
    }  # fmt: skip


@pytest.mark.parametrize("field", ["prompt", "output", "batch"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_fixed_refuses_what_is_no_count(field, value):
    with pytest.raises(ConfigError, match=rf"^{field}: expected a whole number of at least 1, not "):
        fixed(**({"prompt": 1, "output": 1, "batch": 1} | {field: value}))


@pytest.mark.parametrize("n", [0, -3, 2.0])
def test_a_bad_number_of_requests_names_its_field(n):
    with pytest.raises(ConfigError, match=r"^requests: "):
        fixed(1, 1, 1).requests(max_context=None, n=n, seed=0)
