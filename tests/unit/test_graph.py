"""Templates and their numbers."""

import numpy as np
import pytest

from hetmem.engine.graph import FREE, Cost, CostColumns, GraphBuilder, Handle
from hetmem.errors import ConfigError


def test_a_template_holds_what_was_added():
    graph = GraphBuilder()
    a = graph.task("gpu", "a", cls=1, chunk_ps=2, lag_ps=3, tag="first")
    b = graph.task("link", "b", a, background=True, name="copy")
    c = graph.join([a, b], name="end")
    template = graph.build()
    assert (a, b, c, len(template)) == (0, 1, 2, 3)
    assert template.servers == ("gpu", "link", None)
    assert template.successors == ((1, 2), (2,), ())
    assert template.n_preds == (0, 1, 2)
    assert (template.classes, template.chunk_ps, template.lag_ps) == ((1, 0, 0), (2, 0, 0), (3, 0, 0))
    assert template.background == (False, True, False)
    assert template.tags == ("first", "b", "")
    assert template.names == {"copy": 1, "end": 2}


def test_building_again_gives_an_equal_template_that_later_tasks_do_not_change():
    graph = GraphBuilder()
    a = graph.task("gpu", "a")
    before = graph.build()
    graph.task("gpu", "b", a)
    assert (len(before), before.successors) == (1, ((),))
    assert len(graph.build()) == 2


def test_an_empty_template_is_a_graph_without_tasks():
    template = GraphBuilder().build()
    assert len(template) == len(template.bind({})) == 0


def test_a_kernel_is_two_legs_and_a_join():
    graph = GraphBuilder()
    start = graph.join()
    end = graph.kernel("qkv", "gpu0", "gpu0.hbm", start)
    template = graph.build()
    assert template.servers == (None, "gpu0", "gpu0.hbm", None)
    assert template.slots == (None, "qkv.compute", "qkv.memory", None)
    assert template.successors[start] == (1, 2)
    assert template.tags == ("", "qkv", "qkv", "")
    assert (end, template.n_preds[end]) == (3, 2)


def test_a_transfer_is_a_leg_per_hop_and_a_join():
    graph = GraphBuilder()
    end = graph.transfer("load", ("host", "pcie"), lag_ps=5, cls=1, chunk_ps=9, background=True, name="loaded")
    template = graph.build()
    assert template.slots == ("load@host", "load@pcie", None)
    assert (template.lag_ps, template.classes, template.chunk_ps) == ((5, 5, 0), (1, 1, 0), (9, 9, 0))
    assert template.background == (True, True, True)
    assert template.names == {"loaded": end}


def test_binding_gives_each_task_the_cost_of_its_slot():
    graph = GraphBuilder()
    graph.task("gpu", "a", graph.task("gpu", "a"))
    graph.join()
    bound = graph.build().bind({"a": Cost(5, 6, 7), "unused": Cost(1)})
    assert bound.costs == [Cost(5, 6, 7), Cost(5, 6, 7), FREE]
    assert (bound.publish, bound.wait) == ({}, {})


def test_a_slot_without_a_cost_is_refused_by_name():
    graph = GraphBuilder()
    graph.task("gpu", "qkv")
    with pytest.raises(ConfigError, match="slot 'qkv' has no cost"):
        graph.build().bind({"proj": Cost(1)})


@pytest.mark.parametrize("after", [0, 1, -1, [5]])
def test_a_task_cannot_follow_one_that_is_not_there(after):
    with pytest.raises(ConfigError, match=r"task 0 \(qkv\) cannot follow task"):
        GraphBuilder().task("gpu", "qkv", after)


def test_a_name_is_given_once():
    graph = GraphBuilder()
    graph.join(name="end")
    with pytest.raises(ConfigError, match="the name 'end' is taken by task 0"):
        graph.join(name="end")


@pytest.mark.parametrize("handles", [{"publish": {1: Handle("a")}}, {"wait": {-1: [Handle("a")]}}])
def test_a_handle_of_a_task_that_is_not_there_is_refused(handles):
    graph = GraphBuilder()
    graph.join()
    with pytest.raises(ConfigError, match=r"a handle is at task .*, but there are 1 tasks"):
        graph.build().bind({}, **handles)


def test_a_handle_has_landed_from_its_tick_on():
    handle = Handle(("layer", 3))
    assert not handle.landed(10**18)
    handle.landed_ps = 7
    assert [handle.landed(tick) for tick in (6, 7, 8)] == [False, True, True]


def columns_of(**costs: Cost) -> CostColumns:
    return CostColumns(tuple(costs), *np.array([tuple(cost) for cost in costs.values()], dtype=np.int64).T)


def test_columns_give_the_costs_of_their_slots_and_the_rest_comes_by_name():
    graph = GraphBuilder()
    first = graph.join()
    for slot in ("b", "a", "c", "b"):
        graph.task("gpu", slot, first)
    template = graph.build()
    costs = {"a": Cost(1, 2, 3), "b": Cost(4, 5, 6), "c": Cost(7, 8, 9)}
    expected = template.bind(costs)
    given = [columns_of(c=costs["c"]), columns_of(b=costs["b"])]
    for columns in (given, given[::-1]):
        found = template.bind({"a": costs["a"]}, columns=columns)
        assert (found.ps, found.fj, found.n_bytes) == (expected.ps, expected.fj, expected.n_bytes)
        assert all(type(ticks) is int for ticks in found.ps)
    with pytest.raises(ConfigError, match="slot 'd' is in no task"):
        template.bind(costs, columns=[columns_of(d=Cost(1))])
    with pytest.raises(ConfigError, match="slot 'a' has no cost"):
        template.bind({}, columns=given)
