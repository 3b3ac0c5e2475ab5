"""Named random streams."""

import os
import subprocess
import sys

from hetmem.rng import stream


def test_a_stream_depends_on_seed_and_scope_alone():
    first = stream(1, "workload.lengths").integers(0, 2**62, 8).tolist()
    stream(1, "something.else").random(100)
    assert stream(1, "workload.lengths").integers(0, 2**62, 8).tolist() == first
    assert stream(2, "workload.lengths").integers(0, 2**62, 8).tolist() != first
    assert stream(1, "workload.arrivals").integers(0, 2**62, 8).tolist() != first


def test_a_stream_does_not_depend_on_the_hash_seed():
    code = "from hetmem.rng import stream; print(stream(7, 'a.b').integers(0, 2**62, 4).tolist())"
    stub = "import sys, types; p = types.ModuleType('hetmem'); p.__path__ = [sys.argv[1]]; sys.modules['hetmem'] = p\n"
    import hetmem

    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    command = [sys.executable, "-c", stub + code, hetmem.__path__[0]]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(stream(7, "a.b").integers(0, 2**62, 4).tolist())


def test_the_draws_are_those_they_have_always_been():
    """A change of the generator changes every result: it is a change of the schema."""
    assert stream(0, "workload.lengths").integers(0, 1000, 6).tolist() == [662, 562, 588, 40, 234, 683]
