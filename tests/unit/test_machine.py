"""What is inconsistent in a machine is refused before time zero, by name."""

import pytest
from attrs import evolve

from hetmem.errors import ConfigError
from hetmem.hardware.clock import Clock
from hetmem.hardware.machine import Machine, Memory, Unit

GOOD = Machine(
    (Unit("gpu0", "gpu", 20.0, 300.0, ("gpu0",)), Unit("pcie", "pcie", 1.0, 1.0, ("gpu0", "host"))),
    (Memory("gpu0", 24, "gpu"), Memory("host", 64, "dram", 5.0)),
    base_w=30.0,
)


def test_elaboration_builds_the_servers_and_an_empty_ledger():
    servers, ledger = GOOD.elaborate(Clock())
    assert list(servers) == ["gpu0", "pcie"]
    assert [server.name for server in servers.values()] == ["gpu0", "pcie"]
    assert ledger.capacities == {"gpu0": 24, "host": 64}
    assert ledger.holdings() == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"units": (*GOOD.units, Unit("gpu0", "x"))}, "machine.units: 'gpu0' is there twice"),
        ({"memories": (*GOOD.memories, Memory("host", 1, "x"))}, "machine.memories: 'host' is there twice"),
        (
            {"units": (*GOOD.units, Unit("link", "x", ends=("hots",)))},
            "machine.link: is connected to unknown memory 'hots'",
        ),
        ({"units": GOOD.units[:1]}, "machine.host: is connected to no unit"),
        ({"memories": (Memory("gpu0", 0, "gpu"), GOOD.memories[1])}, "machine.gpu0: capacity must be positive, not 0"),
    ],
)
def test_what_is_inconsistent_is_refused_by_name(change, says):
    with pytest.raises(ConfigError) as caught:
        evolve(GOOD, **change).elaborate(Clock())
    assert str(caught.value) == says
