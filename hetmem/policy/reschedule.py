"""Where the weight products (FC) of the next iteration run: on the GPUs or in memory.

Modelled: PAPI's online scheduler, which takes the token parallelism of an iteration (requests running times
tokens verified per request) for FC's arithmetic intensity and compares it with a threshold calibrated
offline; static mappings; an oracle that is told both times. Ignored: the host's decision latency, which the
system charges. Source: PAPI (ASPLOS 2025, arXiv 2502.15470), its scheduling section; hysteresis is an
addition.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Protocol

from attrs import field, frozen, validators

from hetmem.errors import ConfigError


class Side(StrEnum):
    """Where FC runs."""

    GPU = "gpu"
    PIM = "pim"


@frozen
class Parallelism:
    """Requests running (``rlp``) and tokens verified per request (``tlp``): the host's registers."""

    rlp: int = field(validator=validators.ge(0))
    tlp: int = field(default=1, validator=validators.ge(1))

    @property
    def tokens(self) -> int:
        """Tokens per iteration: the estimate of FC's arithmetic intensity, FLOP per weight byte."""
        return self.rlp * self.tlp

    def after(self, finished: int, admitted: int = 0, tlp: int | None = None) -> "Parallelism":
        """Return the registers after an iteration that ended ``finished`` requests and let ``admitted`` in.

        ``tlp`` is rewritten only when software says so.

        Raises
        ------
        ConfigError
            When more requests finish than run.
        """
        if not 0 <= finished <= self.rlp:
            raise ConfigError("finished", f"{finished} of {self.rlp} running requests cannot finish")
        return Parallelism(self.rlp - finished + admitted, self.tlp if tlp is None else tlp)


def arithmetic_intensity(tokens: int, hidden: int) -> float:
    """Return FLOP per byte of a square FC of width ``hidden``: about ``tokens`` while that is far smaller."""
    return 2 * tokens * hidden**2 / (2 * (2 * tokens * hidden + hidden**2))


@frozen
class RescheduleView:
    """What a rescheduling policy may know before an iteration.

    ``side`` is where FC runs now, ``None`` at the start; ``fc_s`` the FC time of the coming iteration on each
    side, given to oracles only.
    """

    parallelism: Parallelism
    side: Side | None = None
    fc_s: Mapping[Side, float] | None = None


class Rescheduler(Protocol):
    """A policy of this role: view in, side out, no state changed."""

    def decide(self, view: RescheduleView) -> Side:
        """Return the side that runs FC in the coming iteration."""
        ...


@frozen
class Threshold:
    """PAPI's scheduler: the GPUs above ``alpha`` tokens per iteration, memory at or below it.

    ``hysteresis`` keeps the side until the estimate is that many tokens beyond ``alpha``, in either
    direction.
    """

    alpha: float = field(validator=validators.ge(0))
    hysteresis: float = field(default=0.0, validator=validators.ge(0))

    def decide(self, view: RescheduleView) -> Side:
        """Return the side for the coming iteration."""
        edge = self.alpha
        if view.side is Side.PIM:
            edge += self.hysteresis
        elif view.side is Side.GPU:
            edge -= self.hysteresis
        return Side.GPU if view.parallelism.tokens > edge else Side.PIM


@frozen
class Static:
    """A baseline's fixed mapping."""

    side: Side = field(converter=Side)

    def decide(self, view: RescheduleView) -> Side:
        """Return the fixed side."""
        return self.side


@frozen
class Oracle:
    """Takes the faster side every time; a tie stays in memory."""

    def decide(self, view: RescheduleView) -> Side:
        """Return the side with the least FC time.

        Raises
        ------
        ConfigError
            When the view does not hold the times.
        """
        if view.fc_s is None:
            raise ConfigError("fc_s", "the oracle needs the FC time of both sides")
        return Side.PIM if view.fc_s[Side.PIM] <= view.fc_s[Side.GPU] else Side.GPU


@frozen
class Calibration:
    """Outcome of an offline calibration over 1 to ``upto`` tokens.

    ``pim_ranges`` are the closed ranges of tokens in which memory is not slower.
    """

    upto: int
    pim_ranges: tuple[tuple[int, int], ...]

    @property
    def alpha(self) -> int:
        """The most tokens at which memory is not slower; 0 when it always is."""
        return self.pim_ranges[-1][1] if self.pim_ranges else 0

    @property
    def crossings(self) -> int:
        """How often the faster side changes between 1 and ``upto`` tokens."""
        edges = [edge for first, last in self.pim_ranges for edge in (first > 1, last < self.upto)]
        return sum(edges)

    @property
    def holes(self) -> tuple[tuple[int, int], ...]:
        """Ranges below ``alpha`` in which the GPUs are faster: a single threshold mispredicts them."""
        starts = (1, *(last + 1 for _, last in self.pim_ranges))
        gaps = ((start, first - 1) for start, (first, _) in zip(starts, self.pim_ranges, strict=False))
        return tuple((start, end) for start, end in gaps if start <= end)

    @property
    def bounded(self) -> bool:
        """Whether the GPUs are faster at ``upto``; otherwise ``alpha`` is only a lower bound."""
        return self.alpha < self.upto

    def __str__(self) -> str:
        text = f"alpha {self.alpha}" if self.bounded else f"alpha at least {self.alpha}: no crossing below"
        if self.holes:
            gaps = ", ".join(f"{first}-{last}" for first, last in self.holes)
            text += f"; {self.crossings} crossings, the GPUs are faster at {gaps}"
        return text


def calibrate(pim_s: Callable[[int], float], gpu_s: Callable[[int], float], upto: int = 512) -> Calibration:
    """Compare FC's time in memory and on the GPUs at every token count from 1 to ``upto``.

    Raises
    ------
    ConfigError
        When ``upto`` is less than 1.
    """
    if upto < 1:
        raise ConfigError("upto", f"expected at least 1 token, not {upto}")
    ranges: list[tuple[int, int]] = []
    for tokens in range(1, upto + 1):
        if pim_s(tokens) > gpu_s(tokens):
            continue
        if ranges and ranges[-1][1] == tokens - 1:
            ranges[-1] = (ranges[-1][0], tokens)
        else:
            ranges.append((tokens, tokens))
    return Calibration(upto, tuple(ranges))
