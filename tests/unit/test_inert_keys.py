"""No number is inert: changed by a tenth, in a configuration or in the catalogue, it changes some system's output.

The catalogue's devices, models and workloads have tests of their own, key by key, beside their laws.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import attrs
import pytest

import hetmem
from hetmem import catalog
from hetmem.errors import HetmemError
from hetmem.policy.balance import WindowRemap
from hetmem.study.compare import attempt
from hetmem.study.scenario import Scenario, scenario
from hetmem.study.settings import with_settings
from hetmem.system.h2m2 import H2m2
from hetmem.workload import fixed
from hetmem.workload.lognormal import lognormal


class H2m2OnCxl(H2m2):
    """On the other preset of a board with two sides."""

    preset = "hbm3e-cxl"


SMALL = fixed(40, 3, 2)
DRAFTING = {"serving.tlp": 2, "serving.acceptance": "vicuna-7b-sps", "serving.draft_model": "llama-7b"}
FULL = fixed(40, 3, 64)  # attention takes several rounds
NEURONS = fixed(32, 7, 1)
# Names that hold no number of the machine: identifiers, and what a run is fed rather than what it runs on.
PROBES: dict[str, dict[str, Any]] = {
    "resident": {"system": "resident", "model": "llama2-13b"},
    "resident-int8": {
        "system": "resident",
        "model": "opt-13b",
        "settings": {"precision.weights_bits": 8, "precision.activation_bits": 8},
    },
    "resident-bare": {"system": "resident", "model": "opt-13b", "settings": {"machine.live_context": False}},
    "resident-shards": {"system": "resident", "model": "opt-13b", "gpu": "rtx-4090"},
    "resident-host": {"system": "resident", "model": "opt-13b", "kv_memory": "host"},
    "resident-published": {
        "system": "resident",
        "model": "opt-6.7b",
        "gpu": "rtx-4090",
        "gpus": 1,
        "assumptions": "as-published",
        "workload": fixed(1000, 2, 1),
    },
    "resident-published-share": {  # of a GPU of which all may not be used
        "system": "resident",
        "model": "opt-6.7b",
        "gpu": "rtx-3090",
        "gpus": 1,
        "assumptions": "as-published",
        "workload": fixed(1000, 2, 1),
    },
    "tight": {"system": "resident", "model": "opt-13b", "settings": {"serving.kv_blocks": 7}},
    "budget": {
        "system": "resident",
        "model": "opt-13b",
        "policies": {"batching": "continuous"},
        "settings": {"serving.token_budget": 33},
    },
    "zero": {"system": "zero-inference", "model": "llama2-13b"},
    "zero-nvme": {
        "system": "zero-inference",
        "model": "llama2-13b",
        "settings": {"machine.host.capacity_bytes": 20_000_000_000},
    },
    "accelerate": {"system": "accelerate", "model": "opt-30b"},
    "accelerate-published": {"system": "accelerate", "model": "opt-30b", "assumptions": "as-published"},
    "m2cache": {"system": "m2cache", "model": "llama2-7b"},
    "m2cache-published": {"system": "m2cache", "model": "llama2-7b", "assumptions": "as-published"},
    "m2cache-lru": {  # sets matter one by one; reads from the SSD; what a prediction missed is fetched
        "system": "m2cache",
        "model": "llama2-7b",
        "policies": {"neuron_cache": "lru"},
        "workload": fixed(8, 5, 1),
        "settings": {
            "machine.neurons.cache_capacity": 1.2,
            "machine.neurons.fixed_bytes": 4_000_000_000,
            "machine.neurons.ssd_unit": "missing",
            "machine.neurons.fetch_mispredicted": True,
        },
    },
    "m2cache-window": {
        "system": "m2cache",
        "model": "llama2-7b",
        "policies": {"neuron_cache": "sliding-window"},
        "workload": fixed(8, 8, 1),
        "settings": {"machine.neurons.cache_capacity": 1.4},
    },
    "m2cache-ssd-published": {
        "system": "m2cache",
        "model": "llama2-7b",
        "assumptions": "as-published",
        "settings": {"machine.neurons.fixed_bytes": 4_000_000_000},
    },
    "m2cache-70b": {"system": "m2cache", "model": "llama2-70b", "machine": "m2cache-70b"},
    "m2cache-70b-published": {
        "system": "m2cache",
        "model": "llama2-70b",
        "machine": "m2cache-70b",
        "assumptions": "as-published",
    },
    "zero-m2cache": {
        "system": "zero-inference",
        "model": "llama2-70b",
        "machine": "m2cache",
        "assumptions": "as-published",
    },
    "zero-dram-m2cache": {
        "system": "zero-inference",
        "model": "llama2-7b",
        "machine": "m2cache",
        "assumptions": "as-published",
    },
    "flash": {"system": "llm-in-a-flash", "model": "opt-6.7b"},
    "flash-window": {"system": "llm-in-a-flash", "model": "opt-6.7b", "workload": fixed(8, 8, 1)},
    "flash-published": {"system": "llm-in-a-flash", "model": "opt-6.7b", "assumptions": "as-published"},
    "moe-lightning": {"system": "moe-lightning", "model": "mixtral-8x7b", "workload": fixed(300, 3, 16)},
    "fiddler": {"system": "fiddler", "model": "mixtral-8x7b"},
    "lia": {"system": "lia", "model": "llama2-13b"},
    "lia-gpu": {"system": "lia", "model": "llama2-13b", "workload": fixed(600, 3, 8)},
    "flexgen": {"system": "flexgen", "model": "opt-30b"},
    "flexgen-cpu": {  # grouped queries, so that the CPU computes; blocks of the cache on several channels
        "system": "flexgen",
        "model": "llama2-70b",
        "workload": fixed(1000, 3, 64),
        "policies": {"attention": "cpu"},
        "settings": {"machine.host.interleave_bytes": 4096},
    },
    "flexgen-published": {"system": "flexgen", "model": "opt-30b", "assumptions": "as-published"},
    "flexgen-small-blocks": {
        "system": "flexgen",
        "model": "llama2-70b",
        "workload": fixed(1000, 3, 64),
        "policies": {"attention": "cpu"},
        "settings": {"serving.block_tokens": 2},
    },
    "flexgen-disk": {
        "system": "flexgen",
        "model": "opt-30b",
        "workload": fixed(1000, 3, 16),
        "settings": {"machine.host.capacity_bytes": 40_000_000_000},
    },
    "ndp": {"system": "ndp-dimm", "model": "opt-30b"},
    "ndp-published": {
        "system": "ndp-dimm",
        "model": "opt-30b",
        "assumptions": "as-published",
        "dimm_preset": "paper-fit",
    },
    "h2m2": {"system": "h2m2", "model": "opt-13b", "settings": {"serving.block_tokens": 1}},
    "h2m2-walks": {
        "system": "h2m2",
        "model": "opt-13b",
        "settings": {
            "machine.paging.tlb_entries": 4000,
            "machine.fast_chip.matrix.cores": 40,
            "machine.slow_chip.matrix.cores": 40,
        },
    },
    "h2m2-vectors": {
        "system": "h2m2",
        "model": "opt-6.7b",
        "settings": {"machine.fast_chip.vector.lanes": 1, "machine.slow_chip.vector.lanes": 1},
    },
    "h2m2-passes": {
        "system": "h2m2",
        "model": "opt-6.7b",
        "settings": {
            "machine.fast_chip.scratchpad.buffer_bytes": 40_000,
            "machine.slow_chip.scratchpad.buffer_bytes": 40_000,
        },
    },
    "h2m2-cxl": {"system": H2m2OnCxl, "model": "opt-13b"},
    "lpddr-only": {"system": "lpddr-only", "model": "opt-6.7b"},
    "hierarchical": {"system": "hierarchical", "model": "opt-30b", "settings": {"machine.fast.capacity_bytes": 10**10}},
    "multi-hbm": {"system": "multi-hbm", "model": "opt-13b"},
    "papi": {"system": "papi", "model": "llama-65b", "settings": {"machine.papi.attention_law": "flat"}},
    "papi-full": {"system": "papi", "model": "llama-65b", "workload": FULL},
    "papi-alpha": {
        "system": "papi",
        "model": "llama-65b",
        "workload": lognormal(40, 12, 0.8, 4),
        "settings": {"machine.papi.alpha": 3, "machine.papi.hysteresis": 1},
    },
    "papi-level": {
        "system": "papi",
        "model": "llama-65b",
        "workload": fixed(40, 20, 1),
        "policies": {"speculation": "level"},
        "settings": DRAFTING | {"serving.tlp": 9},
    },
    "papi-published": {"system": "papi", "model": "llama-65b", "assumptions": "as-published"},
    "dgx": {"system": "dgx", "model": "llama-65b", "workload": FULL},
    "dgx-attacc": {"system": "dgx-attacc", "model": "llama2-70b", "workload": FULL, "settings": DRAFTING},
    **{
        f"{name}-drafting": {"system": name, "model": "llama2-70b", "workload": FULL, "settings": DRAFTING}
        for name in ("papi", "papi-pim-only", "a100-attacc", "a100-hbm-pim", "attacc-only")
    },
    "hermes": {  # groups that their neighbours divide too; a window that ends within the run
        "system": "hermes",
        "model": "opt-13b",
        "workload": NEURONS,
        "policies": {"partition": "random", "balance": WindowRemap(window=2)},
        "settings": {"activity.group": 5, "activity.partition_group": 20},
    },
    "hermes-published": {
        "system": "hermes",
        "model": "opt-13b",
        "workload": NEURONS,
        "assumptions": "as-published",
        "dimm_preset": "paper-fit",
        "policies": {"partition": "greedy"},
        "settings": {"activity.group": 1, "activity.partition_group": 5},
    },
    "hermes-calibrated": {
        "system": "hermes",
        "model": "opt-66b",
        "workload": fixed(16, 3, 1),
        "policies": {"partition": "greedy"},
        "settings": {"activity.densities": "calibrated", "activity.group": 64},
    },
    "powerinfer": {
        "system": "powerinfer",
        "model": "opt-13b",
        "workload": NEURONS,
        "policies": {"partition": "greedy"},
    },
    "powerinfer-published": {
        "system": "powerinfer",
        "model": "opt-13b",
        "workload": NEURONS,
        "assumptions": "as-published",
        "policies": {"partition": "greedy"},
    },
    "deja-vu": {"system": "deja-vu", "model": "opt-13b", "workload": NEURONS},
    "deja-vu-published": {"system": "deja-vu", "model": "opt-13b", "workload": NEURONS, "assumptions": "as-published"},
}

BOUNDS = (
    "machine.pcie.peak_gbs",
    "machine.gpu_link.peak_gbs",
    "machine.link.peak_gbs",
    "machine.dimm_link.peak_gbs",
    "assumptions.as-published.link_peak_gbs",
)


def _scenario(probe: str, path: str | None = None, value: Any = None) -> Scenario:
    given = dict(PROBES[probe])
    settings = dict(given.pop("settings", {}))
    if path is not None:
        settings[path] = value
    return scenario(workload_=given.pop("workload", SMALL), settings=settings, **given)


def _outputs(asked: Scenario) -> str:
    run, row = attempt(asked)
    counters = None if run is None else {k: v for k, v in run.counters.items() if k != "events"}
    energy = None if run is None else {k: dict(v) for k, v in run.energy.by_component.items()}
    return json.dumps([row, counters, energy], sort_keys=True)


def _numbers(node: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    for field in attrs.fields(type(node)):
        value, path = getattr(node, field.name), f"{prefix}{field.name}"
        if attrs.has(type(value)):
            yield from _numbers(value, f"{path}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, value


def _nudged(value: float) -> list[float]:
    if not value:
        return [0.1, 1, 10**10]
    if isinstance(value, int):
        step = max(1, round(abs(value) * 0.1))
        return [value + step, value - step, value // 2]  # half, where only powers of two are taken
    return [value * 1.1, value * 0.9]


@cache
def _before(probe: str) -> str:
    """Return the outputs of a probe as it stands."""
    return _outputs(_scenario(probe))


def _paths() -> list[tuple[str, list[str]]]:
    """Every numeric path, and the probes whose configuration has it; a model's own numbers are tested with it."""
    paths: dict[str, list[str]] = {}
    for probe in PROBES:
        for path, _ in _numbers(_scenario(probe).configuration()):
            if not path.startswith("model."):
                paths.setdefault(path, []).append(probe)
    return list(paths.items())


@pytest.mark.parametrize(("path", "probes"), _paths(), ids=lambda item: item if isinstance(item, str) else "")
def test_no_number_of_the_configuration_is_inert(path: str, probes: list[str]) -> None:
    for probe in probes:
        asked = _scenario(probe)
        value = dict(_numbers(asked.configuration()))[path]
        for nudged in _nudged(value):
            try:
                changed = _outputs(_scenario(probe, path, nudged))
            except HetmemError:
                continue  # out of range in this direction
            if changed != _before(probe):
                return
    if path in BOUNDS:  # a nominal rate: what a path may not exceed
        with pytest.raises(HetmemError):
            _scenario(probes[0], path, value / 4).configuration()
        return
    pytest.fail(f"{path} has no effect on {', '.join(probes)}")


def _leaves(value: Any, rebuild: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, changed whole) for every number in a catalogue value, both ways."""
    if isinstance(value, dict):
        for key, inner in value.items():
            for name, changed in _leaves(inner, lambda new, key=key: rebuild({**value, key: new})):
                yield f".{key}{name}", changed
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield "", [rebuild(new) for new in _nudged(value)]


CATALOGUE = [
    (kind, entry, key, name, changed)
    for kind in ("machines", "assumptions", "ndp", "neurons")
    for entry in catalog.ids(kind)
    for key, fact in catalog.entry(kind, entry).facts.items()
    for name, changed in _leaves(fact.value, lambda new: new)
]


def _entries(asked: Scenario) -> set[Any]:
    """Return the entries of the catalogue that a scenario names, one way or another."""
    machine = asked.machine if isinstance(asked.machine, str) else asked.system.preset
    parts = catalog.entry("machines", machine).values()
    assumed = parts.get("published", asked.assumptions) if asked.assumptions == "as-published" else asked.assumptions
    return {machine, assumed, asked.dimm_preset, parts.get("neurons")}


@pytest.mark.parametrize(
    ("kind", "entry", "key", "name", "changed"), CATALOGUE, ids=[f"{k}.{e}.{key}{n}" for k, e, key, n, _ in CATALOGUE]
)
def test_no_number_of_the_catalogue_is_inert(kind: str, entry: str, key: str, name: str, changed: list[Any]) -> None:
    refused = []
    for probe in PROBES:
        asked = _scenario(probe)
        if entry not in _entries(asked):
            continue
        for value in changed:
            with catalog.patched(kind, entry, key, value):
                try:
                    after = _outputs(_scenario(probe))
                except HetmemError:
                    refused.append(True)
                    continue
            refused.append(False)
            if after != _before(probe):
                return
    if refused and all(refused):
        return  # no other number is taken beside the entry's others
    if f"{kind}.{entry}.{key}" in BOUNDS:
        with catalog.patched(kind, entry, key, changed[0] / 4), pytest.raises(HetmemError):
            _scenario("flexgen-published").configuration()
        return
    pytest.fail(f"{kind}.{entry}.{key}{name} has no effect")


def test_an_unknown_key_is_refused_by_name() -> None:
    tree = _scenario("ndp").configuration()
    with pytest.raises(hetmem.ConfigError, match=r"machine\.dimm\.cuont: unknown field 'cuont'; did you mean 'count'"):
        with_settings(tree, {"machine.dimm.cuont": 3})
