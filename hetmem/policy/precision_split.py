"""Mixed precision by score: the format of each active neuron, and what is stored for it.

Modelled: M2Cache (arXiv 2410.14740, mixed-precision inference and Algorithm 1). The active neurons of the
highest predicted scores take the widest format, the next the second, the rest the narrowest; shares of the
active set are fixed offline. The offline search trades two formats at a constant number of bits and keeps the
shares of the least token entropy, which the user supplies as a table: hetmem does not generate text.

Ignored: scales and zero points of quantised rows, the time to dequantise (the system's affair).
"""

import itertools
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from hetmem.errors import ConfigError

FP16_BITS = 16
STORAGE_LAYOUTS = ("fp16_master", "multi_copy", "static_mixed")


@frozen(eq=False)
class ScoreView:
    """What a precision policy sees: the predictor's score of each active neuron, in any order."""

    scores: NDArray[np.float64]


@frozen(eq=False)
class SplitDecision:
    """Bits of each neuron, in the order of the view, and how many take each format, widest first."""

    bits: NDArray[np.int64]
    counts: tuple[int, ...]

    @property
    def total_bits(self) -> int:
        """Bits of one weight of every neuron: times the weights of a neuron, the bits to move."""
        return int(self.bits.sum())


@frozen
class PrecisionSplit:
    """Formats by score, in fixed shares of the active set.

    Parameters
    ----------
    bits : tuple of int
        Formats in bits per weight, widest first, 1 to 16.
    shares : tuple of float
        Share of the active neurons that takes each format; they add up to 1.

    Raises
    ------
    ConfigError
        When formats are not descending, or shares are negative or do not add up to 1.
    """

    bits: tuple[int, ...] = (16, 8, 4)
    shares: tuple[float, ...] = field(default=(0.25, 0.25, 0.5))

    def __attrs_post_init__(self) -> None:
        if not self.bits or len(self.bits) != len(self.shares):
            raise ConfigError("shares", f"expected one share for each of {len(self.bits)} formats")
        descending = all(wide > narrow for wide, narrow in zip(self.bits, self.bits[1:], strict=False))
        if not descending or not 1 <= self.bits[-1] <= self.bits[0] <= FP16_BITS:
            raise ConfigError("bits", f"expected formats of 16 to 1 bits, widest first, not {self.bits}")
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-9:
            raise ConfigError("shares", f"expected shares of 0 or more that add up to 1, not {self.shares}")

    @property
    def mean_ratio(self) -> float:
        """Mean bytes of an active neuron, relative to FP16."""
        return sum(b * share for b, share in zip(self.bits, self.shares, strict=True)) / FP16_BITS

    def counts(self, n_active: int) -> tuple[int, ...]:
        """Return how many neurons take each format; cumulated shares are rounded, so all are placed."""
        ends = [round(sum(self.shares[: i + 1]) * n_active) for i in range(len(self.shares) - 1)]
        bounds = [0, *ends, n_active]
        return tuple(high - low for low, high in itertools.pairwise(bounds))

    def decide(self, view: ScoreView) -> SplitDecision:
        """Return the format of each active neuron; of equal scores the first counts as higher."""
        counts = self.counts(view.scores.size)
        bits = np.empty(view.scores.size, dtype=np.int64)
        bits[np.argsort(-view.scores, kind="stable")] = np.repeat(self.bits, counts)
        return SplitDecision(bits, counts)


def stored_ratio(layout: str, split: PrecisionSplit) -> float:
    """Return the bytes stored for a neuron relative to FP16 under a storage layout.

    ``fp16_master`` keeps one FP16 copy and quantises on the way; ``multi_copy`` keeps a copy in each format
    that the split uses; ``static_mixed`` fixes each neuron's format offline, in the shares of the split. The
    paper does not say which it uses.

    Raises
    ------
    ConfigError
        When the layout is not one of :data:`STORAGE_LAYOUTS`.
    """
    if layout == "fp16_master":
        return 1.0
    if layout == "multi_copy":
        return sum(b for b, share in zip(split.bits, split.shares, strict=True) if share > 0) / FP16_BITS
    if layout == "static_mixed":
        return split.mean_ratio
    raise ConfigError("storage_layout", f"expected one of {', '.join(STORAGE_LAYOUTS)}, not {layout!r}")


def _descending_quality(table: "QualityTable", _: Any, shares: tuple[float, ...]) -> None:
    if len(shares) != len(table.entropy) or not shares:
        raise ConfigError("quality", f"{len(shares)} shares, but {len(table.entropy)} entropies")
    if any(low >= high for low, high in itertools.pairwise(shares)):
        raise ConfigError("quality", f"expected ascending shares, not {shares}")


@frozen
class QualityTable:
    """Measured quality: summed token entropy (lower is better) at shares of the wider format.

    Between points it is interpolated; outside them it is refused.
    """

    entropy: tuple[float, ...]
    high_share: tuple[float, ...] = field(validator=_descending_quality)

    def __call__(self, high_share: float) -> float:
        """Return the entropy at ``high_share``.

        Raises
        ------
        ConfigError
            When the table does not reach that far.
        """
        xs, ys = self.high_share, self.entropy
        if not xs[0] <= high_share <= xs[-1]:
            raise ConfigError("quality", f"no point at share {high_share:g}; the table spans {xs[0]:g} to {xs[-1]:g}")
        right = bisect_left(xs, high_share)
        if xs[right] == high_share:
            return ys[right]
        weight = (high_share - xs[right - 1]) / (xs[right] - xs[right - 1])
        return ys[right - 1] + weight * (ys[right] - ys[right - 1])


@frozen
class RatioSearch:
    """What the offline search tried: (share of the wide format, of the narrow one, entropy)."""

    tried: tuple[tuple[float, float, float], ...]

    @property
    def best(self) -> tuple[float, float, float]:
        """The step of the least entropy, the first of equals."""
        return min(self.tried, key=lambda step: step[2])


def search_ratio(
    quality: Callable[[float], float],
    high_bits: int,
    low_bits: int,
    low_share: float = 1.0,
    step: float = 0.05,
) -> RatioSearch:
    """Search the split of two formats at a constant byte budget (Algorithm 1 of M2Cache).

    From all-narrow (``low_share`` of the neurons at ``low_bits``), the wide share grows by ``step`` while the
    narrow one shrinks by ``step * high_bits / low_bits``, until that would be negative.

    Parameters
    ----------
    quality
        Entropy as a function of the wide share, e.g. a :class:`QualityTable`.

    Raises
    ------
    ConfigError
        When a format, a share or the step is out of range.
    """
    if not 0 < low_bits < high_bits <= FP16_BITS:
        raise ConfigError("low_bits", f"expected fewer bits than high_bits ({high_bits}), at least 1, not {low_bits}")
    if not 0 < low_share <= 1:
        raise ConfigError("low_share", f"expected a fraction above 0 up to 1, not {low_share}")
    if not 0 < step <= 1:
        raise ConfigError("step", f"expected a fraction above 0 up to 1, not {step}")
    tried: list[tuple[float, float, float]] = []
    # Multiples of the step, not a running sum: the last step must not depend on rounding.
    last = int(low_share * low_bits / (high_bits * step) + 1e-9)
    for i in range(last + 1):
        high = i * step
        tried.append((high, max(0.0, low_share - high * high_bits / low_bits), quality(high)))
    return RatioSearch(tuple(tried))
