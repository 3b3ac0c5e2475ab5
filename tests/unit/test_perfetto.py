"""The timeline file: valid JSON, exact times, and spans that nest on every track."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hetmem
from hetmem.monitor.perfetto import write_timeline
from hetmem.monitor.table import Table

COLUMNS = {"step": "q", "server": "s", "task": "s", "start_ps": "q", "end_ps": "q", "bytes": "q"}


def tasks(*rows):
    """A tasks table; a row is (server, task, start, end), given by end as a run does."""
    table = Table(COLUMNS)
    for server, task, start, end in sorted(rows, key=lambda row: row[3]):
        table.append((0, server, task, start, end, 7))
    return table


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def spans_by_track(document):
    """Check the begin and end events of every track as a viewer does; return its spans in whole ns, by track name."""
    names, stacks, clocks, spans = {}, {}, {}, {}
    for event in document["traceEvents"]:
        tid = event["tid"]
        if event["ph"] == "M":
            if event["name"] == "thread_name":
                names[tid] = event["args"]["name"]
            continue
        assert tid in names, "a track is named before its first span"
        ns = int(event["ts"] * 1000.0 + 0.5)
        assert ns >= clocks.get(tid, 0), "time runs backwards on a track"
        clocks[tid] = ns
        stack = stacks.setdefault(tid, [])
        if event["ph"] == "B":
            assert event["args"]["start_ps"] // 1000 == ns
            stack.append((ns, event))
        else:
            assert event["ph"] == "E"
            start, begun = stack.pop()
            assert begun["args"]["end_ps"] // 1000 == ns, "an end closes another span than its own"
            spans.setdefault(names[tid], []).append((begun["name"], start, ns))
    assert not any(stacks.values()), "a span is left open"
    return spans


def test_tasks_one_after_another_share_a_track(tmp_path):
    table = tasks(("a", "x", 0, 5000), ("a", "y", 5000, 9000), ("b", "x", 1000, 2000))
    assert spans_by_track(read(write_timeline(tmp_path / "t.json", table))) == {
        "a": [("x", 0, 5), ("y", 5, 9)],
        "b": [("x", 1, 2)],
    }


def test_a_chunked_task_encloses_what_passes_it(tmp_path):
    table = tasks(("a", "long", 0, 9000), ("a", "short", 3000, 4000), ("a", "next", 9000, 9500))
    assert spans_by_track(read(write_timeline(tmp_path / "t.json", table))) == {
        "a": [("short", 3, 4), ("long", 0, 9), ("next", 9, 9)]
    }


def test_tasks_that_cross_go_to_further_slots(tmp_path):
    table = tasks(("a", "x", 0, 5000), ("a", "y", 3000, 8000), ("a", "z", 4000, 9000), ("a", "w", 6000, 7000))
    assert spans_by_track(read(write_timeline(tmp_path / "t.json", table))) == {
        "a": [("x", 0, 5), ("w", 6, 7)],
        "a #2": [("y", 3, 8)],
        "a #3": [("z", 4, 9)],
    }


def test_scaling_is_stated_and_ticks_are_kept(tmp_path):
    start, end = 9_656_238_014_873_601, 9_656_238_014_875_999  # more than a double holds in ticks
    document = read(write_timeline(tmp_path / "t.json", tasks(("a", "x", start, end))))
    assert "1 us = 1,000,000 ps" in document["otherData"]["scaling"]
    begin, finish = document["traceEvents"][-2:]
    assert (begin["ts"], finish["ts"]) == (9_656_238_014.873, 9_656_238_014.875)
    assert begin["args"] == {"step": 0, "bytes": 7, "start_ps": start, "end_ps": end}


def test_tracks_come_in_the_order_of_the_machine(tmp_path):
    table = tasks(("late", "x", 0, 1), ("new", "x", 0, 2), ("early", "x", 0, 3))
    document = read(write_timeline(tmp_path / "t.json", table, servers=("early", "idle", "late")))
    order = [(e["tid"], e["args"]["name"]) for e in document["traceEvents"] if e.get("name") == "thread_name"]
    assert order == [(0, "early"), (1, "late"), (2, "new")]
    assert [e["args"]["sort_index"] for e in document["traceEvents"] if "sort_index" in e.get("args", {})] == [0, 1, 2]


def test_names_are_escaped(tmp_path):
    document = read(write_timeline(tmp_path / "t.json", tasks(('a"\\', 'x\n"', 0, 1000))))
    assert spans_by_track(document) == {'a"\\': [('x\n"', 0, 1)]}


def test_no_tasks_is_a_valid_file(tmp_path):
    assert spans_by_track(read(write_timeline(tmp_path / "deep" / "t.json", Table(COLUMNS)))) == {}


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "t.json"
    path.write_text("before")
    with pytest.raises(KeyError):
        write_timeline(path, Table({"server": "s", "task": "s"} | {"start_ps": "q"}), steps=Table({"step": "q"}))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("t.json", "before")]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.just("x"), st.integers(0, 9000), st.integers(1, 6000)), max_size=25
    )
)  # fmt: skip
def test_any_tasks_nest_on_their_tracks(tmp_path_factory, rows):
    table = tasks(*((server, name, start, start + duration) for server, name, start, duration in rows))
    path = tmp_path_factory.mktemp("timeline") / "t.json"
    tracks = spans_by_track(read(write_timeline(path, table)))
    drawn = sorted(
        (track.split(" #")[0], start, end) for track, spans in tracks.items() for _, start, end in spans
    )  # fmt: skip
    assert drawn == sorted((server, start // 1000, (start + dur) // 1000) for server, _, start, dur in rows)


@pytest.mark.parametrize("system", ["ndp-dimm", "zero-inference"])
def test_a_run_needs_one_slot_per_server_and_loses_no_time(tmp_path, system):
    run = hetmem.simulate(system, model="opt-13b", workload=hetmem.fixed(64, 2, 2), trace=True)
    document = read(write_timeline(tmp_path / "t.json", run.tasks, steps=run.steps, servers=tuple(run.busy_ps)))
    tracks = spans_by_track(document)
    used = [name for name, busy in run.busy_ps.items() if busy]
    assert list(tracks) == ["steps", *used]
    assert [name for name, _, _ in tracks["steps"]] == ["prefill", "decode"]
    ends = {e["args"]["end_ps"] for e in document["traceEvents"] if e["ph"] == "B" and e["tid"] > 0}
    assert max(ends) <= run.elapsed_ps
    assert sum(len(spans) for name, spans in tracks.items() if name != "steps") == run.counters["tasks"]


def test_the_file_is_the_same_every_time(tmp_path):
    def text(name):
        run = hetmem.simulate("resident", model="opt-13b", gpus=1, workload=hetmem.fixed(64, 2, 2), trace=True)
        return write_timeline(tmp_path / name, run.tasks, steps=run.steps).read_bytes()

    assert text("a.json") == text("b.json")
