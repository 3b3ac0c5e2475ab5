"""Units at the boundary: text such as ``"80 GB/s"`` to numbers, seconds to ticks, joules to femtojoules.

Inside, time is an ``int`` number of picoseconds and energy an ``int`` number of femtojoules, so that sums
are exact. Outside, seconds, bytes, FLOP and joules. Only this module converts.
"""

import math
import re
from decimal import Decimal

from hetmem.errors import RangeError

PS_PER_S = 1_000_000_000_000
FJ_PER_J = 1_000_000_000_000_000
MAX_PS = 2**63 - 1  # the last tick that an int64 column holds
MAX_PS_WORDS = "the 106 days that picoseconds in 64 bits hold"
FJ_PER_PS_PER_W = 1000  # 1 W = 1e15 fJ / 1e12 ps
_ROUNDING = 1 - 2.0**-51  # twice what a division and a multiplication may be off, of 53 bits

_PREFIX = {
    "": Decimal(1), "k": Decimal("1e3"), "K": Decimal("1e3"), "M": Decimal("1e6"), "G": Decimal("1e9"),
    "T": Decimal("1e12"), "P": Decimal("1e15"), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30),
    "Ti": Decimal(2**40), "m": Decimal("1e-3"), "u": Decimal("1e-6"), "µ": Decimal("1e-6"), "n": Decimal("1e-9"),
    "p": Decimal("1e-12"), "f": Decimal("1e-15"),
}  # fmt: skip
# Each unit as a base unit and how many of those it is.
_UNIT = {
    "B": ("B", Decimal(1)), "bit": ("B", Decimal("0.125")), "s": ("s", Decimal(1)), "Hz": ("Hz", Decimal(1)),
    "FLOP": ("FLOP", Decimal(1)), "FLOPS": ("FLOP/s", Decimal(1)), "MAC": ("MAC", Decimal(1)), "W": ("W", Decimal(1)),
    "J": ("J", Decimal(1)),
}  # fmt: skip
_PER = {"": ("", 1), "/s": ("/s", 1), "/B": ("/B", 1), "/bit": ("/B", 8)}
_QUANTITY = re.compile(
    r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
    r"(?:(Ki|Mi|Gi|Ti|[kKMGTPmuµnpf])?(B|bit|s|Hz|FLOPS|FLOP|MAC|W|J)(/s|/bit|/B)?)?\s*"
)


def parse_quantity(text: str, unit: str | None = None) -> float:
    """Return the value of ``text`` in base units: B, s, Hz, FLOP, MAC, W, J, or one of them per second or per byte.

    With ``unit``, a text that names another base unit is refused; a bare number is taken to be in base units.

    >>> parse_quantity("80 GB/s")
    80000000000.0
    >>> parse_quantity("5 us", "s")
    5e-06

    Raises
    ------
    ValueError
        When ``text`` is not a number with an optional prefix and unit, or not of ``unit``.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as '80 GB/s', '5 us' or '16 GiB'")
    number, prefix, name, per = match.groups()
    if name is None:
        return float(number)
    base, scale = _UNIT[name]
    below, times = _PER[per or ""]
    if unit is not None and base + below != unit:
        raise ValueError(f"{text!r} is in {base + below}, expected {unit}")
    return float(Decimal(number) * _PREFIX[prefix or ""] * scale * times)


def to_ps(seconds: float) -> int:
    """Return ``seconds`` in ticks, rounded up: no work is reported faster than it is.

    The rounding error of the product is forgiven, so that up to 1000 s a value computed back from
    ticks returns to them.

    Raises
    ------
    RangeError
        When the duration is longer than :data:`MAX_PS`, or no number.
    """
    ticks = seconds * PS_PER_S * _ROUNDING
    if not ticks < MAX_PS:
        raise RangeError(f"a duration of {seconds:.3g} s", MAX_PS_WORDS)
    return math.ceil(ticks)


def to_s(ps: int) -> float:
    """Return ticks in seconds."""
    return ps / PS_PER_S


def to_fj(joules: float) -> int:
    """Return ``joules`` in femtojoules, rounded to the nearest; :class:`RangeError` when that is not finite."""
    fj = joules * FJ_PER_J
    if not math.isfinite(fj):
        raise RangeError(f"an energy of {joules:.3g} J", "a floating-point number holds")
    return round(fj)


def to_j(fj: int) -> float:
    """Return femtojoules in joules."""
    return fj / FJ_PER_J


def power_fj_per_ps(watts: float) -> int:
    """Return a power in femtojoules per tick (milliwatts), so that power times ticks is an integer."""
    return round(watts * FJ_PER_PS_PER_W)
