"""Data spread over GPU, host DRAM and disk: how much of it is where, and what passes each server on its way.

Servers are those of :mod:`hetmem.system.parts`. Disk traffic passes through host DRAM, which it occupies twice.
"""

from collections.abc import Mapping

MEMORIES = ("gpu0", "host", "ssd")

Bytes = dict[str, float]

#: How often a byte passes each server on its way between the GPU, or host DRAM, and where it is.
LOAD: dict[str, Bytes] = {
    "host": {"host": 1, "pcie.h2d": 1, "gpu0.hbm": 1},
    "ssd": {"ssd": 1, "host": 2, "pcie.h2d": 1, "gpu0.hbm": 1},
}
STORE: dict[str, Bytes] = {
    "host": {"gpu0.hbm": 1, "pcie.d2h": 1, "host": 1},
    "ssd": {"gpu0.hbm": 1, "pcie.d2h": 1, "host": 2, "ssd": 1},
}
STAGE: dict[str, Bytes] = {"ssd": {"ssd": 1, "host": 1}}


def split(n_bytes: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return whole bytes by memory, nearest first; the farthest takes what rounding leaves."""
    used = [memory for memory in MEMORIES if shares.get(memory, 0.0) > 0]
    held = {memory: int(n_bytes * shares[memory]) for memory in used[:-1]}
    return held | {used[-1]: n_bytes - sum(held.values())}


def off_gpu(held: Mapping[str, float]) -> float:
    """Return the bytes that are not in GPU memory."""
    return sum(n for memory, n in held.items() if memory != "gpu0")


def on_disk(held: Mapping[str, float]) -> float:
    """Return the bytes that are on disk."""
    return held.get("ssd", 0)


def moved(held: Mapping[str, float], routes: Mapping[str, Bytes], scale: float) -> Bytes:
    """Return the bytes that pass each server when ``scale`` times what is held takes its routes."""
    return added(*({s: n * scale * times for s, times in routes.get(memory, {}).items()} for memory, n in held.items()))


def added(*parts: Mapping[str, float]) -> Bytes:
    """Return the sum by name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}
