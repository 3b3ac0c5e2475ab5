"""What the reproduction of Hermes reads from a traced run."""

import hetmem
from hetmem.policy.balance import WindowRemap
from hetmem.study.hermes_cases import migration
from hetmem.study.simulate import simulate


def moved(balance):
    run = simulate(
        "hermes", model="opt-13b", workload=hetmem.fixed(24, 9, 1), assumptions="as-published", trace=True,
        settings={"model.n_layers": 8, "activity.group": 16, "machine.gpu_weight_bytes": 3e9},
        policies={"partition": "random", "balance": balance},
    )  # fmt: skip
    return run, migration(run)


def test_bytes_and_times_of_moves_are_those_of_the_trace():
    run, found = moved(WindowRemap(window=2))
    assert found.n_bytes == run.tables["neurons"].column("moved_bytes").sum() > 0
    links = [1e-12 * busy for name, busy in run.busy_ps.items() if name.endswith(".link")]
    assert max(links) <= found.link_s <= sum(links) * (1 + 1e-9)
    assert 0 <= found.late_s < 0.1 * found.link_s  # moves fit the projection, but for their last piece


def test_nothing_moves_without_a_balancer():
    _, found = moved("none")
    assert (found.n_bytes, found.link_s, found.late_s) == (0, 0, 0)
