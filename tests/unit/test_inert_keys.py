"""No number of a configuration is inert: changed by a tenth, it changes some output of some system."""

import json
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

import hetmem
from hetmem.errors import HetmemError
from hetmem.study.compare import attempt
from hetmem.study.scenario import Scenario, scenario
from hetmem.study.settings import with_settings
from hetmem.workload import fixed

SMALL = fixed(40, 3, 2)
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
    "ndp": {"system": "ndp-dimm", "model": "opt-30b"},
    "ndp-published": {
        "system": "ndp-dimm",
        "model": "opt-30b",
        "assumptions": "as-published",
        "dimm_preset": "paper-fit",
    },
}

BOUNDS = ("machine.pcie.peak_gbs", "machine.gpu_link.peak_gbs")


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
    if isinstance(value, int):
        step = max(1, round(abs(value) * 0.1))
        return [value + step, value - step]
    return [value * 1.1, value * 0.9] if value else [0.1]


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    """The outputs of every probe as it stands."""
    return {probe: _outputs(_scenario(probe)) for probe in PROBES}


def _paths() -> list[tuple[str, list[str]]]:
    """Every numeric path, and the probes whose configuration has it; a model's own numbers are tested with it."""
    paths: dict[str, list[str]] = {}
    for probe in PROBES:
        for path, _ in _numbers(_scenario(probe).configuration()):
            if not path.startswith("model."):
                paths.setdefault(path, []).append(probe)
    return list(paths.items())


@pytest.mark.parametrize(("path", "probes"), _paths(), ids=lambda item: item if isinstance(item, str) else "")
def test_no_number_of_the_configuration_is_inert(path: str, probes: list[str], before: dict[str, str]) -> None:
    for probe in probes:
        asked = _scenario(probe)
        value = dict(_numbers(asked.configuration()))[path]
        for nudged in _nudged(value):
            try:
                changed = _outputs(_scenario(probe, path, nudged))
            except HetmemError:
                continue  # out of range in this direction
            if changed != before[probe]:
                return
    if path in BOUNDS:  # a nominal rate: what a path may not exceed
        with pytest.raises(HetmemError):
            _scenario(probes[0], path, value / 4).configuration()
        return
    pytest.fail(f"{path} has no effect on {', '.join(probes)}")


def test_an_unknown_key_is_refused_by_name() -> None:
    tree = _scenario("ndp").configuration()
    with pytest.raises(hetmem.ConfigError, match=r"machine\.dimm\.cuont: unknown field 'cuont'; did you mean 'count'"):
        with_settings(tree, {"machine.dimm.cuont": 3})
