"""Points: how they are spelled, what they resolve to, and when two are the same."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hetmem.study.point as module
from hetmem.errors import ConfigError, ConfigErrors, UnknownNameError, WorkloadError
from hetmem.hardware.config import machine
from hetmem.study.point import build, grid, grid_choices, normalised, read_points, resolve, resolve_all, travelling
from hetmem.study.scenario import scenario
from hetmem.workload import fixed

BASE = {"system": "ndp-dimm", "model": "opt-6.7b", "prompt": 8, "output": 2}


def identity(**values):
    return resolve({**BASE, **values}).identity


def test_grid_is_every_combination_over_the_base():
    points = grid({"batch": [1, 2], "machine.dimm.count": ["4", "8"]}, {"seed": 3, "batch": 9})
    assert [(p["batch"], p["machine.dimm.count"], p["seed"]) for p in points] == [
        (1, "4", 3), (1, "8", 3), (2, "4", 3), (2, "8", 3),
    ]  # fmt: skip


def test_grid_texts_are_typed_by_field():
    choices = grid_choices(["batch=1, 2", "rate=none,2.5", "truncate=true,false", "machine.dimm.count=4,8", "gpu=a,b"])
    assert choices == {
        "batch": [1, 2], "rate": [None, 2.5], "truncate": [True, False], "machine.dimm.count": ["4", "8"],
        "gpu": ["a", "b"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["batch"], "KEY=VALUE"),
        (["batch="], "KEY=VALUE"),
        (["=4"], "KEY=VALUE"),
        (["batch=1,,2"], "KEY=VALUE"),
        (["batch=1", "batch=2"], "given twice"),
        (["batch=two"], "batch: expected a whole number, not 'two'"),
        (["rate=fast"], "rate: expected a number, not 'fast'"),
        (["truncate=maybe"], "truncate: expected true or false"),
    ],
)
def test_bad_grid_texts(texts, problem):
    with pytest.raises(ConfigError, match=problem):
        grid_choices(texts)


def test_one_identity_for_every_spelling():
    assert identity(dimms=4) == identity(**{"machine.dimm.count": "4"}) == identity(**{"machine.dimm.count": 4})
    assert identity() == identity(assumptions="fair", seed=0, rate=None, **{"policy.batching": "static"})
    assert identity() == identity(gpu="RTX 4090") == identity(gpu="rtx-4090")
    assert identity(batch=3) == identity(requests=3, batch=3)


@pytest.mark.parametrize(
    "change",
    [
        {"system": "zero-inference"}, {"model": "opt-13b"}, {"prompt": 9}, {"output": 3}, {"batch": 2}, {"requests": 2},
        {"rate": 1.0}, {"gpu": "rtx-3090"}, {"dimms": 4}, {"multipliers": 64}, {"assumptions": "as-published"},
        {"dimm_preset": "paper-fit"}, {"seed": 1}, {"truncate": True}, {"policy.batching": "continuous"},
        {"policy.admission": "shortest"}, {"serving.block_tokens": 8}, {"machine.pcie.h2d_pinned.gbs": "30 GB/s"},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_changes_a_run_changes_the_identity(change):
    assert identity(**change) != identity()


def test_every_field_is_covered_above():
    changes = next(m for m in test_whatever_changes_a_run_changes_the_identity.pytestmark if m.name == "parametrize")
    named = {name for change in changes.args[1] for name in change}
    assert {*module.FIELDS} - {"workload", "gpus"} <= named
    named = {"system": "resident", "model": "opt-6.7b"}
    assert resolve({**named, "workload": "chat"}).identity != resolve({**named, "workload": "summarize"}).identity
    assert resolve({"system": "resident", "gpus": 1}).identity != resolve({"system": "resident", "gpus": 2}).identity


def test_the_version_is_part_of_the_identity(monkeypatch):
    before = identity()
    monkeypatch.setattr(module, "__version__", "9.9")
    assert identity() != before


def test_a_device_that_is_only_named_counts_with_its_numbers():
    from hetmem import catalog

    values = {"system": "zero-inference", "model": "opt-6.7b", "prompt": 8, "output": 2}
    before = resolve(values).identity
    with catalog.patched("dram", "ddr4-3200", "faw_ck", catalog.entry("dram", "ddr4-3200")["faw_ck"] + 1):
        assert resolve(values).identity != before
    with catalog.patched("dram", "ddr5-4800", "faw_ck", 99):
        assert resolve(values).identity == before


def test_a_draft_model_counts_with_its_dimensions(tmp_path):
    path = tmp_path / "draft.json"
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 2048,
    }  # fmt: skip
    values = {**BASE, "serving.tlp": 4, "serving.acceptance": "all", "serving.draft_model": str(path)}
    found = set()
    for layers in (2, 3):
        path.write_text(json.dumps({**config, "num_hidden_layers": layers}))
        found.add(resolve(values).identity)
    assert len(found) == 2


def test_a_trace_counts_by_content_not_by_place(tmp_path, monkeypatch):
    text = "arrival_s,in_tokens,out_tokens\n0,8,2\n1,4,3\n"
    for folder, content in (("a", text), ("b", text), ("c", text.replace("8", "9"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "trace.csv").write_text(content)
    values = {"system": "resident", "model": "opt-6.7b"}
    a, b, c = (resolve({**values, "workload": str(tmp_path / f / "trace.csv")}) for f in "abc")
    assert a.identity == b.identity != c.identity
    assert (a.columns["workload"], a.columns["requests"]) == ("trace.csv", 2)
    monkeypatch.chdir(tmp_path / "a")
    relative = {**values, "workload": "trace.csv"}
    assert resolve(relative).identity == a.identity
    assert travelling(relative)["workload"] == str(tmp_path / "a" / "trace.csv")
    assert travelling({**values, "workload": "chat"}) == {**values, "workload": "chat"}


def test_a_trace_that_changes_is_read_again(tmp_path):
    path = tmp_path / "trace.csv"
    values = {"system": "resident", "model": "opt-6.7b", "workload": str(path)}
    found = []
    for rows in (1, 2):
        path.write_text("arrival_s,in_tokens,out_tokens\n" + "0,8,2\n" * rows)
        found.append(resolve(values).columns["requests"])
    assert found == [1, 2]


def test_columns_say_what_a_point_resolved_to():
    point = resolve({**BASE, "dimms": 4}, ["machine.dimm.count", "policy.batching", "serving.kv_share"])
    expected = {
        "system": "ndp-dimm", "model": "opt-6.7b", "workload": "fixed-8-2", "prompt": 8, "output": 2, "batch": 1,
        "requests": 1, "rate": None, "gpu": "rtx-4090", "gpus": 1, "dimms": 4, "assumptions": "fair",
        "dimm_preset": "datasheet", "seed": 0, "truncate": False, "machine.dimm.count": 4, "policy.batching": "static",
        "serving.kv_share": 0.9,
    }  # fmt: skip
    assert {name: point.columns[name] for name in expected} == expected


def test_resolving_all_drops_repeats_and_sorts():
    points = [{**BASE, "dimms": 8}, {**BASE, "machine.dimm.count": 8}, {**BASE, "dimms": 4}]
    found = resolve_all(points)
    assert [p.identity for p in found] == sorted({identity(dimms=8), identity(dimms=4)})
    assert all({"dimms", "machine.dimm.count"} <= p.columns.keys() for p in found)
    for order in itertools.permutations(points):
        assert [(p.identity, p.columns) for p in resolve_all(list(order))] == [(p.identity, p.columns) for p in found]


def test_all_errors_come_at_once_with_what_is_particular_to_the_point():
    points = [{**BASE, "dimms": 8}, {**BASE, "dimms": 0}, {**BASE, "machine.dimm.cuont": 4, "dimms": 8}]
    with pytest.raises(ConfigErrors) as raised:
        resolve_all(points)
    first, second = str(raised.value).splitlines()
    assert first == "point 2 (dimms=0): dimms: expected a whole number of at least 1, not 0"
    assert "did you mean 'count'?" in second
    assert "opt-6.7b" not in first


@pytest.mark.parametrize(
    ("values", "kind", "problem"),
    [
        ({"batch": 1}, ConfigError, "system: is missing"),
        ({"system": "ndp-dim"}, UnknownNameError, "did you mean 'ndp-dimm'"),
        ({**BASE, "bacth": 1}, UnknownNameError, "did you mean 'batch'"),
        ({**BASE, "batch": 1.5}, ConfigError, "batch: expected a whole number, not 1.5"),
        ({**BASE, "batch": True}, ConfigError, "batch: expected a whole number, not True"),
        ({**BASE, "truncate": 1}, ConfigError, "truncate: expected true or false"),
        ({**BASE, "seed": -1}, ConfigError, "seed: expected a whole number of at least 0"),
        ({"system": "resident", "prompt": 4}, ConfigError, "output: prompt and output go together"),
        ({**BASE, "policy.batching": "dynamic"}, UnknownNameError, "batching policy 'dynamic'"),
        ({"system": "resident", "dimms": 4}, ConfigError, "has no NDP-DIMMs"),
        ({"system": "resident", "workload": "no/such.csv"}, WorkloadError, "no/such.csv"),
    ],
)
def test_bad_points(values, kind, problem):
    with pytest.raises(kind, match=problem):
        resolve(values)


def test_a_policy_that_is_no_name_has_no_identity():
    class Greedy:
        def decide(self, view):
            return view.waiting

    asked = scenario("resident", model="opt-6.7b", workload_=fixed(8, 2, 1), policies={"batching": Greedy()})
    with pytest.raises(ConfigError, match=r"policy\.batching: expected the name of a policy"):
        normalised(asked)


def test_a_point_is_the_scenario_that_simulate_takes():
    point = build({**BASE, "dimms": 4, "assumptions": "as-published", "batch": 2})
    assert point.configuration().machine == machine("ndp", "as-published", dimms=4)
    assert (point.workload, point.batch) == (fixed(8, 2, 2), 2)


def test_points_of_a_csv_file(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("batch,machine.dimm.count,gpu\n1,4,\n\n,8,rtx-3090\n")
    assert read_points(path) == [
        {"batch": 1, "machine.dimm.count": "4"}, {"machine.dimm.count": "8", "gpu": "rtx-3090"},
    ]  # fmt: skip


def test_points_of_a_jsonl_file(tmp_path):
    path = tmp_path / "points.jsonl"
    path.write_text('{"batch": 1}\n\n{"batch": 2, "machine.dimm.count": 8}\n')
    assert read_points(path) == [{"batch": 1}, {"batch": 2, "machine.dimm.count": 8}]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("p.csv", "", "holds no points"),
        ("p.csv", "batch\n", "holds no points"),
        ("p.csv", "batch,batch\n1,2\n", ":1: expected a header of different names"),
        ("p.csv", "batch,gpu\n1\n", ":2: expected 2 cells, found 1"),
        ("p.csv", "batch\n1\nx\n", ":3: batch: expected a whole number, not 'x'"),
        ("p.jsonl", "\n", "holds no points"),
        ("p.jsonl", '{"batch": 1}\n{"batch"\n', ":2: expected a JSON object"),
        ("p.jsonl", "[1]\n", r":1: expected a JSON object, not '\[1\]'"),
        ("p.csv", None, "cannot be read"),
    ],
)
def test_bad_point_files(tmp_path, name, text, problem):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_points(path)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_points_resolve_alike_in_any_order(counts, shuffler):
    points = [{**BASE, "dimms": count} if count % 2 else {**BASE, "machine.dimm.count": count} for count in counts]
    shuffled = list(points)
    shuffler.shuffle(shuffled)
    found, again = resolve_all(points), resolve_all(shuffled)
    assert len(found) == len(set(counts))
    assert [(p.identity, p.columns) for p in found] == [(p.identity, p.columns) for p in again]
