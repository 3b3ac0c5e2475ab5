"""How many events a decode step schedules, exactly: the cost of an engine that does not depend on the machine.

``event`` schedules some for every task. ``auto`` has four: the request, the arbitration after the submission, the gate
and the outcome; one more where copies for the next step go on behind the gate, or where blocks take turns.
"""

import pytest

import hetmem

STEPS = (10, 20)
EVENTS = {
    "resident": ({"model": "llama3.1-8b", "gpu": "a100-sxm-80gb", "gpus": 1}, 4, 10),
    "zero-inference": ({"model": "llama2-7b"}, 5, 399),
    "accelerate": ({"model": "opt-30b"}, 4, 58),
    "flexgen": ({"model": "opt-30b"}, 6, 1263),
    "ndp-dimm": ({"model": "llama2-70b"}, 4, 517),
    "papi": ({"model": "llama-65b"}, 4, 34),
    "deja-vu": ({"model": "opt-13b", "settings": {"activity.group": 64}}, 4, 526),
}


@pytest.mark.parametrize("system", EVENTS)
def test_events_of_a_step(system: str) -> None:
    options, *expected = EVENTS[system]
    for engine, events in zip(("auto", "event"), expected, strict=True):
        fewer, more = (
            hetmem.simulate(system, workload=hetmem.fixed(64, n, 4), engine=engine, **options).counters for n in STEPS
        )
        assert more["steps"] - fewer["steps"] == 10
        assert more["events"] - fewer["events"] == 10 * events, engine


@pytest.mark.parametrize(("system", "model"), [("hermes", "opt-13b"), ("powerinfer", "opt-13b"), ("h2m2", "opt-13b")])
def test_steps_of_different_work_schedule_no_more_events(system: str, model: str) -> None:
    """Their tasks differ from step to step; the events of ``auto`` do not."""
    settings = {} if system == "h2m2" else {"activity.group": 64}
    fewer, more = (
        hetmem.simulate(system, model=model, workload=hetmem.fixed(64, n, 1), settings=settings).counters for n in STEPS
    )
    assert more["events"] - fewer["events"] == 4 * (more["steps"] - fewer["steps"])
