"""Systems whose host computes: decisions carried out as decided, overlap, refusals."""

import attrs
import numpy as np
import pytest

from hetmem import fixed, simulate
from hetmem.engine.step import StepView
from hetmem.errors import UnsupportedError
from hetmem.model import StepShape
from hetmem.policy.cgopipe import HrmPolicy
from hetmem.policy.fiddler import crossover_tokens
from hetmem.policy.lia import SUBLAYERS
from hetmem.study.scenario import scenario
from hetmem.system import Setup, system_class


def planner(system, model, batch=4, longest=64, seed=0, **settings):
    config = scenario(system, model=model, workload_=fixed(8, 8, 1), settings=settings).configuration()
    return system_class(system)(
        Setup(config.model, config.precision, config.machine, "fair", batch, longest, 16, {}, seed=seed)
    )


@pytest.mark.parametrize("system", ["fiddler", "moe-lightning"])
def test_a_system_made_for_experts_refuses_a_dense_model_with_the_reason(system):
    with pytest.raises(UnsupportedError, match=r"expert.*; llama2-7b is dense"):
        simulate(system, model="llama2-7b", workload=fixed(8, 2, 1))


# -- LIA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 16, 256])
@pytest.mark.parametrize("prefill", [False, True])
def test_lia_takes_the_time_of_the_best_vector(batch, prefill):
    lia = planner("lia", "opt-13b", batch, 600)
    shape = StepShape.prefill([200] * batch) if prefill else StepShape.decode(batch, batch * 300)
    view = StepView(0, 0, shape if prefill else None, None if prefill else shape, batch, 0)
    seen = lia.sublayers(view)
    decided = lia.policy.decide(seen)
    every = [tuple(map(int, f"{k:06b}")) for k in range(64)]
    assert decided.time_s == min(seen.time_s(vector) for vector in every)
    found = simulate("lia", model="opt-13b", workload=fixed(200, 2, batch))
    assert found.configuration["decisions"]["decode_vector"]


def test_lia_simulates_what_it_decided():
    found = simulate("lia", model="opt-13b", workload=fixed(300, 2, 8), trace=True)
    lia = planner("lia", "opt-13b", 8, 302)
    view = StepView(1, 0, None, StepShape.decode(8, 8 * 300), 8, 0)
    decided = lia.policy.decide(lia.sublayers(view))
    head = lia.stage_costs("head", lia.ops.head(view.decode))["head.compute"].ps
    lasted = int(found.steps.column("end_ps")[1] - found.steps.column("start_ps")[1])
    # Copies have a latency that the decision leaves out.
    assert (lasted - head) * 1e-12 / 40 == pytest.approx(decided.time_s, rel=0.1)
    assert len(decided.vector) == len(SUBLAYERS)


def test_lia_goes_from_the_cpu_to_the_gpu_as_prompts_grow():
    lia = planner("lia", "opt-13b", 64, 2048)

    def on_cpu(tokens):
        shape = StepShape.prefill([tokens])
        return sum(lia.policy.decide(lia.sublayers(StepView(0, 0, shape, None, 1, 0))).vector)

    assert on_cpu(2) > on_cpu(2000) == 0


# -- Fiddler -------------------------------------------------------------------------------------------------------


def test_fiddler_sends_experts_to_the_gpu_from_the_crossover_on():
    fiddler = planner("fiddler", "mixtral-8x7b", 1, 32)
    turn = crossover_tokens(lambda n: fiddler.expert(n)[0], lambda n: fiddler.expert(n)[2], fiddler.load_s, most=4096)
    assert turn is not None
    assert turn > 1
    free = int(np.flatnonzero(~fiddler.pinned[0])[0])
    for n, on_cpu in ((turn - 1, True), (turn, False)):
        tokens = np.zeros(8, dtype=np.int64)
        tokens[free] = n
        where = fiddler.decide(0, tokens)
        assert bool(where.on_cpu[free]) is on_cpu
        assert bool(where.copied[free]) is not on_cpu


def test_fiddler_routes_every_token_to_distinct_experts():
    fiddler = planner("fiddler", "mixtral-8x7b", seed=7)
    counts = fiddler.routing(3, 40)
    assert counts.shape == (32, 8)
    assert (counts.sum(axis=1) == 80).all()
    assert counts.max() <= 40
    assert (counts == fiddler.routing(3, 40)).all()
    assert (fiddler.routing(3, 1) <= 1).all()


def test_fiddler_pins_what_fits_and_pinned_experts_are_not_copied():
    few, many = (
        simulate("fiddler", model="mixtral-8x7b", workload=fixed(8, 3, 1), settings={"machine.gpu.capacity_gb": gb})
        for gb in (12.0, 60.0)
    )
    pinned = [found.configuration["decisions"]["pinned_experts"] for found in (few, many)]
    assert pinned[0] < pinned[1] < 256
    assert many.tokens_per_s > few.tokens_per_s
    assert many.busy_ps["cpu"] < few.busy_ps["cpu"]


# -- MoE-Lightning -------------------------------------------------------------------------------------------------


def chosen(**policy):
    """Return MoE-Lightning with a given point of its search."""
    found = planner("moe-lightning", "mixtral-8x7b", 64, 512)
    found.chosen = HrmPolicy(
        64, 16, **{"gpu_attention": False, "gpu_ffn": True, "weights_on_gpu": 0.0, "kv_on_gpu": 0.0, **policy}
    )
    experts = 0 if found.chosen.gpu_ffn else found.expert_bytes
    found.paged_bytes = found.layer_bytes - experts
    return found


def test_cgopipe_overlaps_gpu_cpu_and_link():
    """A warm step takes about its slowest resource, far from the sum of all three."""
    from hetmem.engine.executor import Executor
    from hetmem.hardware.clock import Clock

    system = chosen()
    plans = [system.plan(StepView(0, 0, None, StepShape.decode(64, 64 * 500), 64, 0))]
    system.commit(plans[0])
    plans.append(system.plan(StepView(1, 0, None, StepShape.decode(64, 64 * 501), 64, 0)))
    env = Clock()
    servers, _ = system.machine().elaborate(env)
    executor = Executor(env, servers)
    ends = []
    for order, plan in enumerate(plans):
        gate = executor.submit(plan.graph, order)
        env.run(until=gate)
        ends.append((env.now, {name: server.busy_at(env.now) for name, server in servers.items()}))
    (start, before), (end, after) = ends
    busy = {name: after[name] - before[name] for name in ("gpu0", "cpu", "pcie.h2d")}
    assert max(busy.values()) >= 0.9 * (end - start)
    assert sum(busy.values()) > 1.15 * (end - start)
    assert busy["cpu"] > 0


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("ffn", [True, False])
@pytest.mark.parametrize("sequences", [1, 16, 17, 64])
def test_every_point_of_the_search_can_be_carried_out(attention, ffn, sequences):
    system = chosen(gpu_attention=attention, gpu_ffn=ffn)
    plan = system.plan(StepView(0, 0, None, StepShape.decode(sequences, sequences * 100), sequences, 0))
    on_cpu = sum(
        cost.ps for server, cost in zip(plan.graph.template.servers, plan.graph.costs, strict=True) if server == "cpu"
    )
    assert (on_cpu == 0) is (attention and ffn)
    paged = sum(
        cost.bytes
        for server, tag, cost in zip(
            plan.graph.template.servers, plan.graph.template.tags, plan.graph.costs, strict=True
        )
        if server == "pcie.h2d" and tag.startswith("page.")
    )
    assert paged == 32 * system.paged_bytes


def test_moe_lightning_searches_within_the_batch_it_gets():
    found = simulate("moe-lightning", model="mixtral-8x7b", workload=fixed(16, 3, 24))
    assert found.configuration["decisions"]["micro_batch"] <= 24
    slower = simulate(
        "moe-lightning", model="mixtral-8x7b", workload=fixed(16, 3, 24), settings={"machine.cpu.memory_gbs": 30.0}
    )
    assert slower.tokens_per_s < found.tokens_per_s


def test_machines_have_the_assumed_hosts():
    for system, cpu in (("moe-lightning", "host-24c"), ("fiddler", "host-24c"), ("lia", "amx-host")):
        config = scenario(system, model="mixtral-8x7b", workload_=fixed(8, 2, 1)).configuration().machine
        assert config.cpu.name == cpu
        assert attrs.evolve(config).gpus == 1


@pytest.mark.parametrize(("channels", "gbs"), [(4, 89.6), (2, 51.2)])
def test_the_host_processor_reads_no_faster_than_the_memory_or_its_own_controllers(channels, gbs):
    system = planner("flexgen", "opt-13b", **{"machine.host.channels": channels})
    assert system.host_cpu.memory_gbs == pytest.approx(gbs)
    whole, _, memory_s = system._cpu_attention_s(StepShape.decode(64, 64 * 2000), 1.0)
    n_bytes = 2 * 64 * 2001 * system.model.kv_width * 2
    assert whole > n_bytes / (gbs * 1e9)
    assert memory_s > 0
