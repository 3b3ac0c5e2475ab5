"""FlexGen: what its linear program places is what its steps move, and its prediction is what they take."""

import pytest
from attrs import evolve

import hetmem
from hetmem.engine.step import StepView
from hetmem.errors import CapacityError, UnknownNameError, UnsupportedError
from hetmem.hardware.clock import Clock
from hetmem.hardware.config import machine
from hetmem.model import FP16, StepShape, load_model
from hetmem.system import Setup
from hetmem.system.flexgen import FlexGen, portion

BATCH, CONTEXT = 16, 256


def build(model="opt-66b", assumed="fair", batch=BATCH, longest=CONTEXT, attention="auto", **parts):
    config = evolve(machine("offload", assumed), **parts)
    return FlexGen(Setup(load_model(model), FP16, config, assumed, batch, longest, 16, {"attention": attention}))


def with_host(system_machine, n_bytes):
    return evolve(system_machine.host, capacity_bytes=n_bytes)


def run(model="opt-66b", prompt=250, output=4, batch=BATCH, **options):
    return hetmem.simulate("flexgen", model=model, workload=hetmem.fixed(prompt, output, batch), **options)


def decode_s(finished):
    """Seconds of the last decode step."""
    steps = finished.steps
    return float(steps.column("end_ps")[-1] - steps.column("start_ps")[-1]) * 1e-12


def streamed_bytes(model):
    spec = load_model(model)
    return spec.n_layers * sum(spec.layer_bytes(FP16).values()) + 2 * spec.vocab * spec.d_model


# -- as published --------------------------------------------------------------------------------------------------


def test_as_published_nothing_is_resident_and_the_cache_is_on_the_gpu():
    shares = build(assumed="as-published").decisions()["placement"]
    assert shares["weights"].get("gpu0", 0.0) == 0.0
    assert shares["kv"]["gpu0"] == 1.0


@pytest.mark.parametrize("model", ["opt-66b", "opt-13b", "llama2-70b"])
def test_as_published_a_step_is_all_weights_over_the_pinned_rate(model):
    assert decode_s(run(model, assumptions="as-published", batch=1)) == pytest.approx(
        streamed_bytes(model) / 12.1e9, rel=0.002
    )


def test_as_published_the_step_time_does_not_depend_on_the_batch():
    one, sixteen = (decode_s(run(assumptions="as-published", batch=batch)) for batch in (1, 16))
    assert sixteen == pytest.approx(one, rel=0.001)


def test_weights_that_may_stay_are_not_streamed():
    streaming = run(assumptions="as-published", batch=1)
    resident = run(assumptions="as-published", batch=1, settings={"machine.flexgen_resident": True})
    share = resident.configuration["decisions"]["placement"]["weights"]["gpu0"]
    assert 0.1 < share < 0.2
    assert decode_s(resident) == pytest.approx(decode_s(streaming) * (1 - share), rel=0.01)


def test_the_limit_of_resident_weights_is_kept():
    system = build(assumed="as-published", flexgen_resident=True, gpu_weight_bytes=5e9)
    assert system.weight_split["gpu0"] == pytest.approx(5e9, rel=1e-3)


# -- the placement is what is simulated ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "attention"),
    [
        ({"policies": {"attention": "gpu"}}, "gpu"),
        ({"policies": {"attention": "cpu"}}, "cpu"),
        ({"model": "llama2-70b"}, "gpu"),
        ({"model": "mixtral-8x7b", "batch": 4}, "gpu"),
        ({"model": "llama2-70b", "settings": {"machine.host.capacity_bytes": 40 * 10**9}}, "gpu"),
        ({"batch": 64, "prompt": 500, "policies": {"attention": "gpu"}}, "gpu"),
        ({"model": "opt-30b", "batch": 64, "prompt": 1000, "policies": {"attention": "cpu"}}, "cpu"),
    ],
)
def test_a_step_takes_what_the_program_predicts(options, attention):
    finished = run(**options)
    decided = finished.configuration["decisions"]
    spec = finished.scenario.model
    outer = spec.outer_bytes(FP16)
    head = (outer["head"] or outer["embedding"]) / sum(spec.layer_bytes(FP16).values())
    assert decided["attention"] == attention
    assert decode_s(finished) == pytest.approx(decided["layer_s"] * (spec.n_layers + head), rel=0.02)


def test_what_crosses_the_link_is_what_is_not_on_the_gpu():
    finished = run(batch=4, trace=True, policies={"attention": "gpu"})
    shares = finished.configuration["decisions"]["placement"]
    tasks, step = finished.tasks.to_pandas(), int(finished.steps.column("step")[-1])
    moved = tasks[(tasks.step == step) & (tasks.server == "pcie.h2d")]
    by_kind = moved.groupby(moved.task.str.split(".").str[0])["bytes"].sum()
    weights = streamed_bytes("opt-66b") * (1 - shares["weights"]["gpu0"])
    # The first layer's weights came in the step before, and the next step's go.
    assert by_kind["weights"] + by_kind["head-weights"] + by_kind["first-weights"] == pytest.approx(weights, rel=1e-6)
    cached = 4 * 252 * finished.scenario.model.kv_bytes_per_token(FP16)
    assert by_kind["kv-in"] == pytest.approx(cached * (1 - shares["kv"].get("gpu0", 0.0)), rel=1e-6)


def test_with_attention_on_the_cpu_only_queries_and_results_cross():
    finished = run(trace=True, policies={"attention": "cpu"})
    tasks, step = finished.tasks.to_pandas(), int(finished.steps.column("step")[-1])
    tasks = tasks[tasks.step == step]
    assert not tasks.task.str.startswith("kv-in").any()
    spec, share = finished.scenario.model, finished.configuration["decisions"]["placement"]["kv"]["host"]
    results = tasks[tasks.task.str.startswith("back") & (tasks.server == "pcie.h2d")]["bytes"].sum()
    assert results == pytest.approx(BATCH * spec.q_width * 2 * spec.n_layers * share, rel=1e-6)
    assert (tasks.server == "cpu").sum() == spec.n_layers


def test_every_layer_runs_over_all_gpu_batches_before_the_next():
    finished = run(batch=64, prompt=500, output=2, trace=True, policies={"attention": "gpu"})
    parts = finished.configuration["decisions"]["gpu_batches"]
    assert parts > 1
    tasks, step = finished.tasks.to_pandas(), int(finished.steps.column("step")[-1])
    kernels = tasks[(tasks.step == step) & (tasks.server == "gpu0")].sort_values("start_ps").task.tolist()
    layers = finished.scenario.model.n_layers
    assert kernels == [f"layer.{part}" for _ in range(layers) for part in range(parts)] + ["head"]


@pytest.mark.parametrize(("batch", "host_gb"), [(1, 256), (16, 256), (64, 256), (16, 40)])
def test_the_ledger_holds_what_was_placed(batch, host_gb):
    config = machine("offload", "fair")
    system = build(batch=batch, longest=2048, host=with_host(config, host_gb * 10**9))
    servers, ledger = system.machine().elaborate(Clock())
    system.place(ledger)
    spec = load_model("opt-66b")
    held = {memory: ledger.held_bytes("weights", memory) for memory in ledger.capacities}
    assert sum(held.values()) == spec.weight_bytes(FP16)
    for memory, share in system.decisions()["placement"]["weights"].items():
        assert held.get(memory, 0) == pytest.approx(share * spec.weight_bytes(FP16), abs=2)
    per_token = system.kv_bytes_per_token()
    assert sum(per_token.values()) == spec.kv_bytes_per_token(FP16)
    for memory, n_bytes in per_token.items():
        assert n_bytes * batch * 2048 <= ledger.free_bytes(memory)
    assert ("ssd" in servers) == bool(held.get("ssd") or per_token.get("ssd"))
    assert ("ssd" in servers) == (host_gb < 100 or batch == 64)


# -- attention on either side --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "longest"), [(1, 64), (16, 256), (16, 2048)])
def test_auto_is_the_better_of_the_two(batch, longest):
    layer_s = {
        mode: build(batch=batch, longest=longest, attention=mode).decisions()["layer_s"]
        for mode in ("auto", "cpu", "gpu")
    }
    assert layer_s["auto"] == min(layer_s["cpu"], layer_s["gpu"])


def test_the_better_program_is_the_faster_run():
    long = {mode: run(prompt=1500, policies={"attention": mode}) for mode in ("gpu", "cpu", "auto")}
    assert long["auto"].configuration["decisions"]["attention"] == "cpu"
    assert decode_s(long["cpu"]) < 0.9 * decode_s(long["gpu"])
    assert decode_s(long["auto"]) == decode_s(long["cpu"])


def test_without_a_host_processor_the_gpu_attends():
    assert build(longest=2048, cpu=None).decisions()["attention"] == "gpu"
    with pytest.raises(UnsupportedError, match="needs a host processor"):
        build(cpu=None, attention="cpu")


def test_an_unknown_kind_of_attention_is_refused():
    with pytest.raises(UnknownNameError, match="unknown attention policy 'gpus'; did you mean 'gpu'"):
        run(policies={"attention": "gpus"})


# -- bounds, purity, refusals --------------------------------------------------------------------------------------


def view(prefill=None, decode=None):
    shapes = [shape for shape in (prefill, decode) if shape is not None]
    return StepView(0, 0, prefill, decode, sum(shape.sequences for shape in shapes), 0)


@pytest.mark.parametrize("attention", ["cpu", "gpu"])
def test_the_bound_is_near_and_below_a_step(attention):
    finished = run(policies={"attention": attention})
    context = BATCH * 253
    floor = build(longest=254, attention=attention).floor_s(view(decode=StepShape.decode(BATCH, context - BATCH)))
    assert 0.7 * decode_s(finished) < floor < decode_s(finished)


def test_planning_twice_gives_the_same_graph():
    system = build(batch=64, longest=600, attention="gpu")
    step = view(StepShape.prefill([100] * 9), StepShape.decode(30, 30 * 500))
    first, second = system.plan(step), system.plan(step)
    assert first.graph.template is second.graph.template
    assert first.graph.costs == second.graph.costs


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_portions_add_up_to_the_step(parts):
    whole = StepShape.decode(13, 1709)
    pieces = [portion(whole, part, parts) for part in range(parts)]
    assert sum(pieces[1:], pieces[0]) == whole


def test_prompts_in_chunks_beside_decoding_are_served():
    finished = hetmem.simulate(
        "flexgen", model="opt-13b", workload=hetmem.fixed(300, 4, 12), batch=6, policies={"batching": "continuous"},
        settings={"serving.token_budget": 200},
    )  # fmt: skip
    assert finished.summary()["requests"] == {"in": 12, "done": 12, "dropped": 0}


def test_a_model_that_no_memory_holds_is_refused_with_what_is_missing():
    config = machine("offload", "fair")
    with pytest.raises(CapacityError, match=r"gpu0 \+ host: 1\d\d\.\d\d GB asked"):
        build(ssd=None, host=with_host(config, 80 * 10**9))
    with pytest.raises(CapacityError, match=r"gpu0: 4\.\d\d GB asked, 2\.40 GB free"):
        build(gpu_usable=0.1)
