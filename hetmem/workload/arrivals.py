"""When requests arrive: a renewal process with gamma-distributed gaps.

One law covers the usual ones: a coefficient of variation of one is a Poisson process, above one is bursty,
zero is a metronome. Ignored: rates that change over the day, and users who wait for an answer before they ask
again.
"""

import numpy as np

from hetmem import rng
from hetmem.errors import ConfigError
from hetmem.units import MAX_PS, PS_PER_S
from hetmem.workload.request import IntArray, check_positive

_EVEN_CV = 1e-9  # below, gaps of a second or less differ by less than a nanosecond: drawn as even


def arrival_times_ps(n: int, rate: float, seed: int, cv: float = 1.0) -> IntArray:
    """Return ``n`` arrival ticks, never falling, of a renewal process that starts at tick zero.

    Parameters
    ----------
    n : int
        Arrivals; the first comes one gap after zero. A longer draw begins with a shorter one.
    rate : float
        Mean requests per second.
    seed : int
        Seed of the random stream ``workload.arrivals``.
    cv : float
        Standard deviation of a gap over its mean: 1 is Poisson, 0 evenly spaced.

    Raises
    ------
    ConfigError
        When ``rate`` is not above zero, ``cv`` is negative, or the arrivals run past the last tick.
    """
    rate = check_positive("rate", rate, "a number of requests per second")
    if isinstance(cv, bool) or not isinstance(cv, int | float | np.number) or not 0 <= cv < np.inf:
        raise ConfigError("cv", f"expected a coefficient of variation of zero or more, not {cv!r}")
    if cv < _EVEN_CV:
        gaps_s = np.full(n, 1.0 / rate)
    else:
        # variance = shape * scale^2 = (cv / rate)^2 at mean = shape * scale = 1 / rate
        gaps_s = rng.stream(seed, "workload.arrivals").gamma(cv**-2, cv**2 / rate, size=n)
    # the margin covers the rounding of each gap and of this sum
    if float(gaps_s.sum()) * PS_PER_S >= 0.999 * MAX_PS:
        longest_s = MAX_PS / PS_PER_S
        raise ConfigError("rate", f"{n} requests at {rate!r} per second take longer than {longest_s:.3g} s")
    return np.cumsum(np.rint(gaps_s * PS_PER_S).astype(np.int64))
