"""What queueing theory says about a first-come, first-served queue.

:func:`lindley_waits_ps` and :func:`time_integral_of_number` are exact in integer ticks: compare with ``==``. The others
are means of the stationary queue, which a run approaches slowly near saturation: compare at a moderate load, over
several seeds, within an interval. Loads are per server; waits are in units of the mean service time.
"""

import math

import numpy as np
import numpy.typing as npt

from hetmem.errors import ConfigError

IntArray = npt.NDArray[np.int64]


def lindley_waits_ps(arrival_ps: npt.ArrayLike, service_ps: npt.ArrayLike) -> IntArray:
    """Return how long each job waits for one server that serves in the order of arrival.

    Lindley's recursion ``W' = max(0, W + S - A)`` (Lindley 1952), ``A`` the gap to the next arrival.

    Parameters
    ----------
    arrival_ps : array of int, shape (n,)
        Ticks, never falling; equal arrivals are served in the order given.
    service_ps : array of int, shape (n,)
        Ticks of service.

    Returns
    -------
    ndarray of int64, shape (n,)
        Ticks between arrival and start of service.

    Raises
    ------
    ConfigError
        When the shapes differ, arrivals fall or a service is negative.
    """
    arrival, service = np.asarray(arrival_ps, np.int64), np.asarray(service_ps, np.int64)
    if arrival.ndim != 1 or arrival.shape != service.shape:
        raise ConfigError("arrival_ps, service_ps", f"expected equal lengths, not {arrival.shape}, {service.shape}")
    if np.any(np.diff(arrival) < 0) or np.any(service < 0):
        raise ConfigError("arrival_ps, service_ps", "arrivals must never fall, and no service be negative")
    waits, wait = [], 0
    gaps = [*np.diff(arrival).tolist(), 0]
    for served, gap in zip(service.tolist(), gaps, strict=True) if len(arrival) else ():
        waits.append(wait)
        wait = max(0, wait + served - gap)
    return np.asarray(waits, np.int64)


def time_integral_of_number(arrival_ps: npt.ArrayLike, departure_ps: npt.ArrayLike) -> int:
    """Return the integral over time of the jobs present, from a sweep over arrivals and departures.

    By Little's law on a drained path it equals the sum of what any correct server counts per job: waits and services.

    Raises
    ------
    ConfigError
        When the jobs present are ever fewer than none, or some are left at the end.
    """
    arrival = np.sort(np.asarray(arrival_ps, np.int64)).tolist()
    departure = np.sort(np.asarray(departure_ps, np.int64)).tolist()
    changes = sorted([(tick, 1) for tick in departure] + [(tick, 0) for tick in arrival])
    present = area = last = 0
    for tick, leaves in changes:
        area += present * (tick - last)
        last = tick
        present += -1 if leaves else 1
        if present < 0:
            raise ConfigError("departure_ps", f"more departures than arrivals by tick {tick}")
    if present:
        raise ConfigError("departure_ps", f"{present} jobs never leave")
    return area


def mg1_wait(load: float, service_scv: float) -> float:
    """Return the mean wait of an M/G/1 queue in service times (Pollaczek 1930, Khinchine 1932).

    Parameters
    ----------
    load
        Arrival rate times mean service time, below 1.
    service_scv
        Squared coefficient of variation of the service time.

    Raises
    ------
    ConfigError
        When the queue has no stationary state.
    """
    if service_scv < 0:
        raise ConfigError("service_scv", f"expected at least 0, not {service_scv!r}")
    return _stable(load) / (1 - load) * (1 + service_scv) / 2


def mm1_wait(load: float) -> float:
    """Return the mean wait of an M/M/1 queue in service times: ``load / (1 - load)``."""
    return mg1_wait(load, 1.0)


def md1_wait(load: float) -> float:
    """Return the mean wait of an M/D/1 queue in service times: ``load / (2 (1 - load))``."""
    return mg1_wait(load, 0.0)


def erlang_c(load: float, servers: int) -> float:
    """Return the probability that a job of an M/M/c queue must wait (Erlang 1917)."""
    if servers < 1:
        raise ConfigError("servers", f"expected at least 1, not {servers!r}")
    offered = servers * _stable(load)
    busy = offered**servers / (math.factorial(servers) * (1 - load))
    return busy / (sum(offered**n / math.factorial(n) for n in range(servers)) + busy)


def mmc_wait(load: float, servers: int) -> float:
    """Return the mean wait of an M/M/c queue in service times."""
    return erlang_c(load, servers) / (servers * (1 - load))


def _stable(load: float) -> float:
    if not 0 <= load < 1:
        raise ConfigError("load", f"expected at least 0 and below 1, not {load!r}")
    return load
