"""What holds of any task graph on any machine; graphs are drawn so that a failure shrinks to a small one."""

from collections import defaultdict
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from hetmem.engine.executor import Executor
from hetmem.engine.graph import Cost, GraphBuilder, Handle
from hetmem.hardware.clock import Clock
from hetmem.hardware.server import Server
from hetmem.testing import ReferenceExecutor, drive

SERVERS = ("s0", "s1", "s2")


@st.composite
def rows(draw):
    """Draw tasks as (server or None, ticks, predecessors, class, chunk, lag, background, waits for the step before)."""
    tasks = []
    for index in range(draw(st.integers(1, 10))):
        foreground = [i for i in range(index) if not tasks[i][6]]
        tasks.append(
            (
                draw(st.sampled_from((*SERVERS, None))),
                draw(st.integers(0, 6)),
                draw(st.lists(st.sampled_from(foreground), max_size=2, unique=True)) if foreground else [],
                draw(st.integers(0, 1)),
                draw(st.sampled_from((0, 0, 2))),
                draw(st.sampled_from((0, 0, 1))),
                draw(st.booleans()),
                draw(st.booleans()),
            )
        )
    return tasks


loops_of_steps = st.lists(
    st.lists(st.tuples(st.integers(0, 5), rows()), min_size=1, max_size=3), min_size=1, max_size=2
)
MANY = settings(max_examples=80, deadline=None)


def graph_of(tasks, scale=1, before=None, handle=None):
    builder, costs, wait = GraphBuilder(), {}, {}
    for index, (server, ticks, after, cls, chunk, lag, background, waits) in enumerate(tasks):
        costs[f"t{index}"] = Cost(ticks * scale)
        builder.task(
            server, f"t{index}", after, cls=cls, chunk_ps=chunk * scale, lag_ps=lag * scale, background=background
        )
        if waits and before is not None:
            wait[index] = [before]
    last = builder.join([i for i in range(len(tasks)) if not tasks[i][6]])
    return builder.build().bind(costs, {last: handle} if handle else None, wait)


def loop_of(steps, k, scale=1):
    before = None
    for number, (pause, tasks) in enumerate(steps):
        if pause:
            yield pause * scale
        handle = Handle((k, number))
        yield graph_of(tasks, scale, before, handle), number * 2 + k
        before = handle


def run(loops):
    """Return (log, gates, end) of the executor."""
    env, log, gates = Clock(), [], {}
    executor = Executor(env, {name: Server(env, name) for name in SERVERS}, lambda *row: log.append(row))
    for loop in loops:
        env.process(drive(executor, loop, gates))
    env.run()
    executor.check_drained()
    return sorted(log), gates, env.now


@MANY
@given(loops_of_steps)
def test_the_executor_agrees_with_the_reference(drawn):
    reference = ReferenceExecutor(SERVERS)
    reference.run([loop_of(steps, k) for k, steps in enumerate(drawn)])
    log, gates, end = run([loop_of(steps, k) for k, steps in enumerate(drawn)])
    assert (log, gates, end) == (sorted(reference.log), reference.gates, reference.now)


@MANY
@given(loops_of_steps, st.integers(2, 1000))
def test_everything_times_k_takes_k_times_as_long(drawn, k):
    log, gates, end = run([loop_of(steps, i) for i, steps in enumerate(drawn)])
    scaled_log, scaled_gates, scaled_end = run([loop_of(steps, i, k) for i, steps in enumerate(drawn)])
    assert scaled_log == sorted((*row[:3], row[3] * k, row[4] * k, row[5]) for row in log)
    assert (scaled_gates, scaled_end) == ({rank: tick * k for rank, tick in gates.items()}, end * k)


@MANY
@given(rows())
def test_no_graph_beats_its_critical_path_or_its_busiest_server(tasks):
    log, gates, end = run([loop_of([(0, tasks)], 0)])
    finish, work = [0] * len(tasks), defaultdict(int)
    for index, (server, ticks, after, _, _, lag, _, _) in enumerate(tasks):
        finish[index] = max((finish[i] for i in after), default=0) + ticks + lag
        work[server] += ticks
    work.pop(None, None)
    assert end >= max((*finish, *work.values()))
    assert gates[0] >= max((finish[i] for i in range(len(tasks)) if not tasks[i][6]), default=0)
    assert len(log) == sum(server is not None and ticks > 0 for server, ticks, *_ in tasks)
    for server in SERVERS:
        # Without chunks a server serves one at a time; with them, pieces interleave and only the sum is fixed.
        spans = sorted((row[3], row[4]) for row in log if row[1] == server)
        if not any(task[4] for task in tasks):
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
            assert sum(b - a for a, b in spans) == work[server]


@MANY
@given(st.lists(st.tuples(st.sampled_from(SERVERS), st.integers(1, 9), st.integers(0, 3)), min_size=1), st.data())
def test_a_faster_device_never_slows_a_single_chain(chain, data):
    def ends(steps):
        tasks = [(s, t, [i - 1] if i else [], 0, 0, lag, False, False) for i, (s, t, lag) in enumerate(steps)]
        return run([loop_of([(0, tasks)], 0)])[1][0]

    faster = [(s, data.draw(st.integers(0, t)), data.draw(st.integers(0, lag))) for s, t, lag in chain]
    assert ends(chain) == sum(t + lag for _, t, lag in chain)
    assert ends(faster) <= ends(chain)


@MANY
@given(loops_of_steps)
def test_equal_devices_may_change_places(drawn):
    swapped = {"s0": "s1", "s1": "s0", "s2": "s2", None: None}
    renamed = [[(pause, [(swapped[t[0]], *t[1:]) for t in tasks]) for pause, tasks in steps] for steps in drawn]
    log, gates, end = run([loop_of(steps, k) for k, steps in enumerate(drawn)])
    other_log, other_gates, other_end = run([loop_of(steps, k) for k, steps in enumerate(renamed)])
    assert (other_gates, other_end) == (gates, end)
    assert other_log == sorted((row[0], swapped[row[1]], *row[2:]) for row in log)


@MANY
@given(rows())
def test_work_of_no_length_changes_nothing(tasks):
    """A join put between a task and all that follow it is a no-op."""
    padded, where = [], {}
    for index, task in enumerate(tasks):
        padded.append((*task[:2], [where[i] for i in task[2]], *task[3:]))
        where[index] = len(padded) - 1
        if not task[6]:
            padded.append((None, 0, [where[index]], 0, 0, 0, False, False))
            where[index] = len(padded) - 1
    log, gates, end = run([loop_of([(0, tasks)], 0)])
    padded_log, padded_gates, padded_end = run([loop_of([(0, padded)], 0)])
    assert (padded_gates, padded_end) == (gates, end)
    assert sorted((row[1], *row[3:]) for row in padded_log) == sorted((row[1], *row[3:]) for row in log)
