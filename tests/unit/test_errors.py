"""Every error survives what SimPy and pickle do to exceptions, and says what it means on one line."""

import pickle

import pytest
import simpy

from hetmem import errors
from hetmem.errors import (
    CapacityError,
    ConfigError,
    ConfigErrors,
    ConservationError,
    DeadlockError,
    HetmemError,
    RangeError,
    UnknownNameError,
    UnsupportedError,
    WorkloadError,
    suggestion,
)

SAMPLES = {
    HetmemError("plain"): "plain",
    ConfigError("machine.gpu.tdp_w", "must be > 0: -1"): "machine.gpu.tdp_w: must be > 0: -1",
    ConfigErrors((ConfigError("a", "b"), ConfigError("c", "d"))): "a: b\nc: d",
    UnknownNameError("model", "lama2-70b", ("llama2-70b", "opt-13b")): (
        "unknown model 'lama2-70b'; did you mean 'llama2-70b'?"
    ),
    RangeError("end_ps", "64 bits hold"): (
        "end_ps: more than 64 bits hold; is a rate or a size of the configuration off by orders of magnitude?"
    ),
    WorkloadError("trace.csv:7", "expected a number, not 'x'"): "trace.csv:7: expected a number, not 'x'",
    CapacityError("gpu0", 30_000_000_000, 4_000_000_000, 24_000_000_000, (("weights", 20_000_000_000),)): (
        "gpu0: 30.00 GB asked, 4.00 GB free of 24.00 GB (holds weights 20.00 GB)"
    ),
    UnsupportedError("ndp-dimm", "runs on one GPU"): "ndp-dimm: runs on one GPU",
    DeadlockError(("a waits for b", "b waits for a")): (
        "deadlock: no event is left, but work is outstanding\na waits for b\nb waits for a"
    ),
    ConservationError("tokens", "5 in, 4 out"): "tokens violated: 5 in, 4 out",
}


def every_class():
    return {item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)}


def test_every_class_of_the_tree_has_a_sample():
    assert {type(error) for error in SAMPLES} == every_class()
    assert all(issubclass(cls, HetmemError) for cls in every_class())


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_leaving_a_simpy_process(error):
    env = simpy.Environment()

    def inner():
        yield env.timeout(1)
        raise error

    def outer():
        yield env.process(inner())

    env.process(outer())
    with pytest.raises(type(error)) as caught:
        env.run()
    again = caught.value
    assert again is not error  # it was rebuilt, twice
    assert str(again) == str(error) == SAMPLES[error]
    assert {k: v for k, v in vars(again).items() if k != "errors"} == {
        k: v for k, v in vars(error).items() if k != "errors"
    }
    assert type(error)(*error.args).args == error.args


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), SAMPLES[error])


def test_a_memory_that_holds_nothing_says_so():
    assert str(CapacityError("hbm", 2 * 10**9, 10**9, 10**9, ())).endswith("(holds nothing)")


def test_a_part_of_a_memory_names_the_whole():
    error = CapacityError("gpu0", 30 * 10**9, 10**9, 21_600_000_000, (), 24 * 10**9)
    assert str(error) == "gpu0: 30.00 GB asked, 1.00 GB free of 21.60 GB usable of 24.00 GB (holds nothing)"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_suggestions():
    assert suggestion("Lama2-70B", ("llama2-70b", "opt-13b")) == "; did you mean 'llama2-70b'?"
    assert suggestion("zzz", ("llama2-70b", "opt-13b")) == "; known: llama2-70b, opt-13b"
    assert suggestion("zzz", ()) == ""
    assert suggestion("a", iter(["b"])) == "; known: b"
