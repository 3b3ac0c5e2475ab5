"""The SSD preload recursion: steady-state slow-down of layers read ahead, without an event loop.

Modelled: ``n_layers`` equal layers computed one after the other, token after token; every layer that is not
fixed needs one serial SSD read of ``read_ratio`` layer times, issued when compute reaches the layer
``window`` before it; unlimited buffer. Reads run on across tokens. Times are in units of one layer's compute
time.

An independent check for a simulated preloader: it knows no servers, queues or policies.
"""

from collections.abc import Collection


def preload_slowdown(
    read_ratio: float,
    n_layers: int,
    fixed: Collection[int],
    window: int,
    first_token: int = 10,
    last_token: int = 39,
) -> float:
    """Return the time of tokens ``first_token`` to ``last_token`` by that of compute alone."""
    reads = frozenset(range(n_layers)) - frozenset(fixed)
    landed: dict[int, float] = {}
    ssd_free = compute_end = steady_from = 0.0
    issued = 0
    for position in range(n_layers * (last_token + 1)):
        if position == n_layers * first_token:
            steady_from = compute_end
        for ahead in range(issued, position + window + 1):
            if ahead % n_layers in reads:
                ssd_free = max(ssd_free, compute_end) + read_ratio
                landed[ahead] = ssd_free
        issued = position + window + 1
        compute_end = max(compute_end, landed.pop(position, 0.0)) + 1
    return (compute_end - steady_from) / (n_layers * (last_token - first_token + 1))
