"""The physical bound of every system finds a graph whose data come too fast, or that forgets a transfer."""

from typing import Any

import pytest
from attrs import evolve

import hetmem
from hetmem.engine.graph import FREE, Cost
from hetmem.engine.step import Plan, StepView
from hetmem.errors import ConservationError
from hetmem.system import SYSTEMS, System

GPU = ("gpu0", "gpu0.hbm")
DIMMS = tuple(f"dimm{d}.{part}" for d in range(8) for part in ("dram", "core"))

# System and model, the servers whose costs are halved, and a word of the tags of the transfers that are forgotten.
CASES = {
    "resident": ("llama2-13b", GPU, "up"),
    "zero-inference": ("opt-13b", ("pcie.h2d",), "load.layer"),
    "flexgen": ("opt-66b", ("pcie.h2d",), "weights"),
    "accelerate": ("opt-30b", ("pcie.h2d",), "load."),
    "ndp-dimm": ("llama2-70b", DIMMS, ".up"),
}


def changed(system: str, servers: tuple[str, ...] = (), forgotten: str | None = None) -> type[System]:
    """Return ``system`` with the costs of some tasks halved, or of others left out."""
    base: Any = {known.name: known for known in SYSTEMS}[system]

    class Changed(base):  # type: ignore[misc]
        def plan(self, view: StepView) -> Plan:
            plan = super().plan(view)
            graph, template = plan.graph, plan.graph.template
            costs = dict(zip(template.slots, graph.costs, strict=True))
            tasks = list(zip(template.servers, template.slots, template.tags, strict=True))
            for slot in {slot for server, slot, _ in tasks if server in servers}:
                costs[slot] = Cost(costs[slot].ps // 2, costs[slot].fj, costs[slot].bytes)
            if forgotten is not None:
                costs |= {slot: FREE for server, slot, tag in tasks if server is not None and forgotten in tag}
            return evolve(plan, graph=template.bind(costs, graph.publish, graph.wait))

    return Changed


def run(system: type[System], model: str, **options: Any) -> Any:
    return hetmem.simulate(system, model=model, workload=hetmem.fixed(32, 4, 1), assumptions="fair", gpus=1, **options)


@pytest.mark.parametrize("system", CASES)
def test_an_unchanged_graph_keeps_the_bound(system: str) -> None:
    model, _, _ = CASES[system]
    assert run(changed(system), model).output_tokens == 4


@pytest.mark.parametrize("system", CASES)
def test_twice_the_bandwidth_is_found_out(system: str) -> None:
    model, servers, _ = CASES[system]
    with pytest.raises(ConservationError, match="physical lower bound"):
        run(changed(system, servers), model)


@pytest.mark.parametrize("system", CASES)
def test_a_forgotten_transfer_is_found_out(system: str) -> None:
    model, _, tag = CASES[system]
    with pytest.raises(ConservationError, match="physical lower bound"):
        # Unrolled, so that every kernel is a task of its own.
        run(changed(system, forgotten=tag), model, settings={"serving.unroll_layers": True})


@pytest.mark.parametrize("system", ["zero-inference", "accelerate"])
def test_kernels_that_read_too_fast_are_found_out_too(system: str) -> None:
    """The wire alone would not show it: here the GPU's memory is slower than the link."""
    slow = {"machine.gpu.memory_gbs": 20.0}
    model, _, _ = CASES[system]
    assert run(changed(system), model, settings=slow).output_tokens == 4
    with pytest.raises(ConservationError, match="physical lower bound"):
        run(changed(system, GPU), model, settings=slow)


@pytest.mark.parametrize("system", ["resident", "accelerate", "zero-inference", "ndp-dimm"])
def test_chunks_without_logits_do_not_read_the_head(system: str) -> None:
    done = hetmem.simulate(
        system, model="llama3.1-8b", workload=hetmem.fixed(64, 2, 1), assumptions="as-published", gpus=1,
        policies={"batching": "continuous"}, settings={"serving.token_budget": 16},
    )  # fmt: skip
    assert list(done.steps.column("emitted_tokens")) == [0, 0, 0, 1, 1]
