"""The search: its space, its budgets, an exact front, resuming, and what it prints."""

import json
import struct
import sys
from concurrent.futures import Future

import matplotlib as mpl
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hetmem import plot_search
from hetmem.cli import main
from hetmem.errors import ConfigError, HetmemError, UnknownNameError
from hetmem.study.executors import ProcessExecutor, SerialExecutor
from hetmem.study.metrics import METRICS, Metric, register
from hetmem.study.search import GENERATION, read_budgets, search
from hetmem.study.space import Choice, Span, combinations, every, space

mpl.use("Agg")
BASE = {"system": "ndp-dimm", "model": "opt-6.7b", "prompt": 8, "output": 2}
SMALL = space(["machine.dimm.count=2..16:2", "batch=1,2"])
LARGE = space(["machine.dimm.count=1..64", "gpu=rtx-4090,rtx-3090", "batch=1..32", "serving.kv_share=0.3..0.9"])


class Counting(SerialExecutor):
    def __init__(self, fail=()):
        self.calls, self.fail = 0, set(fail)

    def submit(self, function, /, *args):
        self.calls += 1
        if self.calls in self.fail:
            future = Future()
            future.set_exception(ZeroDivisionError("planted"))
            return future
        return super().submit(function, *args)


def figures(found, names=("tokens_per_s", "power_w")):
    return [tuple(one.figure(name) for name in names) for one in found.front]


def undominated(places):
    """Return the pairs (more is better, less is better) that no other pair beats, the largest first."""
    return sorted(
        {
            (x, y)
            for x, y in places
            if not any(a >= x and b <= y and (a, b) != (x, y) for a, b in places)
        },
        reverse=True,
    )  # fmt: skip


def test_space_of_texts():
    found = space(["gpu=a,b,a", "batch=1..8", "dimms=2..9:3", "rate=0.5..2", "serving.kv_share=0.1..0.35:0.1"])
    assert found == [
        Choice("gpu", ("a", "b")), Span("batch", 1, 8, 1), Span("dimms", 2, 8, 3), Span("rate", 0.5, 2.0, None),
        Span("serving.kv_share", 0.1, 0.3, 0.1),
    ]  # fmt: skip
    assert [one.distribution() for one in found] == [
        CategoricalDistribution(("a", "b")), IntDistribution(1, 8), IntDistribution(2, 8, step=3),
        FloatDistribution(0.5, 2.0), FloatDistribution(0.1, 0.3, step=0.1),
    ]  # fmt: skip
    assert found[2].values == (2, 5, 8)
    assert found[4].values == (0.1, 0.2, 0.3)
    assert combinations(found) is None
    assert combinations(found[:3]) == len(every(found[:3])) == 2 * 8 * 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("batch", "NAME=VALUE"),
        ("batch=", "NAME=VALUE"),
        ("batch=1..", "NAME=LOW..HIGH"),
        ("batch=a..b", "NAME=LOW..HIGH"),
        ("batch=1..4:x", "NAME=LOW..HIGH"),
        ("batch=4..1", "LOW <= HIGH"),
        ("batch=1..4:0", "a STEP above 0"),
        ("batch=1..4:0.5", "batch takes whole numbers"),
        ("gpu=1..4", "gpu has no range"),
        ("batch=1,x", "batch: expected a whole number"),
    ],
)
def test_bad_spaces(text, problem):
    with pytest.raises(ConfigError, match=problem):
        space([text])
    with pytest.raises(ConfigError, match="given twice"):
        space(["batch=1", "batch=2"])


def test_budgets_of_texts():
    assert read_budgets(["power_w=300", "tpot_s_p99=0.05"]) == {"power_w": 300.0, "tpot_s_p99": 0.05}
    for bad in ("power_w", "power_w=x", "power_w=inf"):
        with pytest.raises(ConfigError, match="budget: expected"):
            read_budgets([bad])
    with pytest.raises(ConfigError, match="one finite limit"):
        read_budgets(["power_w=1", "power_w=2"])
    with pytest.raises(UnknownNameError, match="did you mean 'power_w'"):
        read_budgets(["power=300"])


def test_a_small_space_is_searched_whole_and_its_front_is_exact(tmp_path):
    found = search(BASE, SMALL, tmp_path, executor=SerialExecutor(), trials=100)
    frame = pd.read_parquet(found.dataset)
    assert found.exhaustive
    assert found.trials == len(found.candidates) == len(frame) == 16
    assert figures(found) == undominated(list(zip(frame["tokens_per_s"], frame["power_w"], strict=True)))
    assert 1 < len(found.front) < 16
    chosen = found.front[0].chosen
    fastest = frame.loc[frame["tokens_per_s"].idxmax()]
    assert (fastest["machine.dimm.count"], fastest["batch"]) == (chosen["machine.dimm.count"], chosen["batch"])


def test_budgets_bound_the_front(tmp_path):
    whole = search(BASE, SMALL, tmp_path, executor=SerialExecutor())
    frame = pd.read_parquet(whole.dataset)
    limit, least = frame["power_w"].median(), frame["tokens_per_s"].quantile(0.25)
    untouched = Counting()
    found = search(BASE, SMALL, tmp_path, executor=untouched, budgets={"power_w": limit, "tokens_per_s": least})
    kept = frame[(frame["power_w"] <= limit) & (frame["tokens_per_s"] >= least)]
    assert untouched.calls == 0
    assert figures(found) == undominated(list(zip(kept["tokens_per_s"], kept["power_w"], strict=True)))
    assert found.counts() == {"within": len(kept), "beyond": len(frame) - len(kept)}
    beyond = next(one for one in found.candidates if one.status == "beyond" and one.figure("power_w") > limit)
    assert f"power_w is {beyond.figure('power_w'):.4g}, at most {limit:.4g} asked" in beyond.reason


def test_one_objective_has_one_best(tmp_path):
    found = search(BASE, SMALL, tmp_path, executor=SerialExecutor(), objectives=["energy_per_token_j"])
    frame = pd.read_parquet(found.dataset)
    assert figures(found, ["energy_per_token_j"]) == [(frame["energy_per_token_j"].min(),)]
    assert plot_search.save(found) is None


def test_a_large_space_depends_on_neither_workers_nor_interruptions(tmp_path):
    def run(name, executor, trials=GENERATION + 7, seed=3):
        return search(BASE, LARGE, tmp_path / name, executor=executor, trials=trials, seed=seed)

    one = run("one", SerialExecutor())
    with ProcessExecutor(2) as executor:
        two = run("two", executor)
    assert not one.exhaustive
    assert one.trials == GENERATION + 7
    assert [c.chosen for c in one.candidates] == [c.chosen for c in two.candidates]
    assert one.dataset.read_bytes() == two.dataset.read_bytes()
    assert figures(one) == figures(two)

    class Stopping(Counting):
        def submit(self, function, /, *args):
            if self.calls == GENERATION + 3:
                raise KeyboardInterrupt
            return super().submit(function, *args)

    with pytest.raises(KeyboardInterrupt):
        run("three", Stopping())
    rest = Counting()
    three = run("three", rest)
    assert rest.calls == len(one.candidates) - GENERATION - 3
    assert three.dataset.read_bytes() == one.dataset.read_bytes()
    shorter = run("three", Counting(), trials=GENERATION + 2)
    assert [c.chosen for c in shorter.candidates] == [c.chosen for c in one.candidates[: len(shorter.candidates)]]
    assert [c.chosen for c in run("one", SerialExecutor(), seed=4).candidates] != [c.chosen for c in one.candidates]


def test_later_generations_learn(tmp_path):
    """More throughput per watt on average after five generations than in the first, which is drawn at random."""
    found = search(
        BASE, LARGE, tmp_path, executor=SerialExecutor(), trials=6 * GENERATION, objectives=["energy_per_token_j"]
    )
    energies = [one.figure("energy_per_token_j") for one in found.candidates]
    first, last = energies[:GENERATION], energies[-GENERATION:]
    assert sum(last) / len(last) < 0.7 * sum(first) / len(first)
    assert figures(found, ["energy_per_token_j"]) == [(min(energies),)]


def test_what_cannot_run_is_told_apart(tmp_path):
    register(Metric("sometimes", "known below 9 DIMMs", "min", lambda run, _: _few(run)))
    try:
        dimensions = space(["machine.dimm.count=1,4,8,12", "serving.block_tokens=16,0"])
        base = {**BASE, "model": "opt-66b"}
        found = search(base, dimensions, tmp_path, executor=Counting(fail={2}), objectives=["sometimes"])
    finally:
        del METRICS["sometimes"]
    reasons = {one.status: one.reason for one in found.candidates}
    assert found.counts()["invalid"] == 4
    assert "serving.block_tokens" in reasons["invalid"]
    assert reasons["failed"] == "ZeroDivisionError: planted"
    assert "GB asked" in reasons["refused"]
    assert sum(found.counts().values()) == 8
    assert len(pd.read_parquet(found.dataset)) == 4


def _few(run):
    count = run.configuration["machine"]["dimm"]["count"]
    return float(count) if count < 9 else None


def test_a_figure_that_is_not_known_is_no_candidate(tmp_path):
    register(Metric("sometimes", "known below 9 DIMMs", "max", lambda run, _: _few(run)))
    try:
        found = search(BASE, space(["dimms=4,8,12"]), tmp_path, executor=Counting(), objectives=["sometimes"])
    finally:
        del METRICS["sometimes"]
    assert found.counts() == {"within": 2, "unknown": 1}
    assert [one.chosen["dimms"] for one in found.front] == [8]
    assert [one.reason for one in found.candidates if one.status == "unknown"] == ["sometimes is not known"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"dimensions": []}, "space: expected something to vary"),
        ({"trials": 0}, "trials: expected at least 1"),
        ({"objectives": []}, "objective: expected at least one"),
        ({"objectives": ["power_w", "power_w"]}, "objective: expected at least one, each once"),
        ({"objectives": ["speed"]}, "unknown metric 'speed'"),
        ({"budgets": {"power": 3.0}}, "did you mean 'power_w'"),
        ({"dimensions": space(["machine.dimm.cuont=4,8"])}, "did you mean 'count'"),
    ],
)
def test_bad_searches(tmp_path, change, problem):
    given = {"dimensions": SMALL, **change}
    counting = Counting()
    with pytest.raises(HetmemError, match=problem):
        search(BASE, given.pop("dimensions"), tmp_path, executor=counting, **given)
    assert counting.calls == 0


def test_missing_optuna_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'hetmem\[search\]'"):
        search(BASE, SMALL, tmp_path, executor=SerialExecutor())


def call(capsys, *words):
    with pytest.raises(SystemExit) as done:
        main(words)
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def test_the_command_prints_a_front_and_draws_it(tmp_path, capsys):
    words = ("search", "ndp-dimm", "--model", "opt-6.7b", "--prompt", "8", "--output", "2", "--workers", "0",
             "--space", "dimms=2..16:2", "--space", "gpu=rtx-4090,rtx-3090", "--out", str(tmp_path))  # fmt: skip
    status, out, err = call(capsys, *words)
    found = search(BASE, space(["dimms=2..16:2", "gpu=rtx-4090,rtx-3090"]), tmp_path, executor=Counting())
    assert (status, err) == (0, "")
    assert "16 points, all that the space holds: 16 within" in out
    lines = [line for line in out.splitlines() if line.startswith("│")]
    assert len(lines) == len(found.front)
    assert f"{found.front[0].chosen['dimms']}" in lines[0]
    header = (tmp_path / "front.png").read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert min(struct.unpack(">II", header[16:])) > 600
    assert mpl.pyplot.get_fignums() == []

    status, out, _ = call(capsys, *words, "--budget", "power_w=1e9", "--json")
    printed = json.loads(out)
    assert status == 0
    assert printed["budgets"] == {"power_w": 1e9}
    assert printed["objectives"] == {"tokens_per_s": "max", "power_w": "min"}
    assert [(row["tokens_per_s"], row["power_w"]) for row in printed["front"]] == figures(found)

    status, out, _ = call(capsys, *words, "--budget", "power_w=1")
    assert status == 2
    assert "no point is within the budgets" in out
    assert "16 beyond" in out


def test_the_picture_shows_every_point_and_the_budget(tmp_path):
    frame = pd.read_parquet(search(BASE, SMALL, tmp_path, executor=SerialExecutor()).dataset)
    limit = frame["power_w"].median()
    found = search(BASE, SMALL, tmp_path, executor=Counting(), budgets={"power_w": limit})
    ax = plot_search.front(found)
    drawn = {line.get_label(): len(line.get_xdata()) for line in ax.lines[:3]}
    counts = found.counts()
    assert drawn == {"beyond a budget": counts["beyond"], "within": counts["within"], "front": len(found.front)}
    assert [text.get_text() for text in ax.texts] == [str(k) for k in range(1, len(found.front) + 1)]
    assert ax.lines[3].get_ydata()[0] == limit
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("throughput (tokens/s)", "mean power (W)")
    mpl.pyplot.close(ax.figure)


def test_metrics_are_listed(capsys):
    _, out, _ = call(capsys, "list", "metrics", "--json")
    listed = {row["metric"]: row["better"] for row in json.loads(out)["metrics"]}
    assert listed.keys() == METRICS.keys()
    assert (listed["tokens_per_s"], listed["tpot_s_p99"]) == ("max", "min")
