"""Units at the boundary: text such as ``"80 GB/s"`` to numbers, seconds to ticks, joules to femtojoules.

Inside, time is an ``int`` number of picoseconds and energy an ``int`` number of femtojoules, so that sums
are exact. Outside, seconds, bytes, FLOP and joules. Only this module converts.
"""

import math
import re

PS_PER_S = 1_000_000_000_000
FJ_PER_J = 1_000_000_000_000_000
FJ_PER_PS_PER_W = 1000  # 1 W = 1e15 fJ / 1e12 ps
_ROUNDING = 1 - 2.0**-51  # twice what a division and a multiplication may be off, of 53 bits

_PREFIX = {
    "": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
    "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15,
}  # fmt: skip
_UNIT = {"B": 1.0, "bit": 0.125, "s": 1.0, "Hz": 1.0, "FLOP": 1.0, "FLOPS": 1.0, "MAC": 1.0, "W": 1.0, "J": 1.0}
_QUANTITY = re.compile(
    r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
    r"(?:(Ki|Mi|Gi|Ti|[kKMGTPmuµnpf])?(B|bit|s|Hz|FLOPS|FLOP|MAC|W|J)(/s|/bit|/B)?)?\s*"
)


def parse_quantity(text: str) -> float:
    """Return the value of ``text`` in base units (bytes, seconds, hertz, FLOP, watts, joules).

    >>> parse_quantity("80 GB/s")
    80000000000.0
    >>> parse_quantity("5 us")
    5e-06

    Raises
    ------
    ValueError
        When ``text`` is not a number with an optional prefix and unit.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as '80 GB/s', '5 us' or '16 GiB'")
    number, prefix, unit, per = match.groups()
    value = float(number)
    if unit is None:
        return value
    scale = _PREFIX[prefix or ""] * _UNIT[unit]
    if per == "/bit":
        scale *= 8.0  # an energy per bit, returned per byte
    return round(value * scale, 15) if scale < 1 else value * scale


def to_ps(seconds: float) -> int:
    """Return ``seconds`` in ticks, rounded up: no work is reported faster than it is.

    The rounding error of the product is forgiven, so that a value computed back from ticks returns to them.
    """
    return math.ceil(seconds * PS_PER_S * _ROUNDING)


def to_s(ps: int) -> float:
    """Return ticks in seconds."""
    return ps / PS_PER_S


def to_fj(joules: float) -> int:
    """Return ``joules`` in femtojoules, rounded to the nearest."""
    return round(joules * FJ_PER_J)


def to_j(fj: int) -> float:
    """Return femtojoules in joules."""
    return fj / FJ_PER_J


def power_fj_per_ps(watts: float) -> int:
    """Return a power in femtojoules per tick (milliwatts), so that power times ticks is an integer."""
    return round(watts * FJ_PER_PS_PER_W)
