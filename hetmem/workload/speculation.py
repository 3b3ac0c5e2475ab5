"""Speculative decoding: how many drafted tokens a step keeps, and where every token goes.

A step verifies ``tlp`` tokens of a request: ``tlp - 1`` drafts and the target's own. It emits the accepted
drafts and one token of the target. Modelled: how many drafts are accepted, and the cut at the end of a
request. Ignored: tree-shaped drafts, dependence of acceptance on the text. Acceptance means are Spec-Bench
leader-board values (tokens per target step); a geometric law of that mean is assumed, as no distributions are
published.
"""

from collections.abc import Sequence
from math import log
from typing import Protocol

import numpy as np
from attrs import field, frozen, validators

from hetmem.catalog import entry
from hetmem.errors import ConfigError


class AcceptanceLaw(Protocol):
    """Draws how many of the drafts of a step are accepted."""

    def accepted(self, drafts: int, rng: np.random.Generator) -> int:
        """Return a count in 0..``drafts``."""
        ...

    def mean_tokens(self, tlp: int) -> float:
        """Return the expected tokens emitted by a step that verifies ``tlp``."""
        ...


@frozen
class AllAccepted:
    """Every draft is accepted: what PAPI's evaluation assumes."""

    def accepted(self, drafts: int, rng: np.random.Generator) -> int:
        """Return ``drafts``; draws nothing."""
        return drafts

    def mean_tokens(self, tlp: int) -> float:
        """Return ``tlp``."""
        return float(tlp)


@frozen
class Geometric:
    """Each draft is accepted with the same ``probability`` until the first is not."""

    probability: float = field(validator=[validators.ge(0), validators.lt(1)])

    @classmethod
    def of_mean(cls, mean_tokens: float, drafts: int | None = None) -> "Geometric":
        """Return the law whose step emits ``mean_tokens`` on average.

        ``drafts`` is the number of drafts per step behind that mean; ``None`` means not limited, which is the
        smallest acceptance that explains it.

        Raises
        ------
        ConfigError
            When no such law exists: the mean is below 1, or not below ``drafts`` + 1.
        """
        most = float("inf") if drafts is None else drafts + 1
        if not 1 <= mean_tokens < most:
            raise ConfigError("mean_tokens", f"expected 1 <= mean < {most}, not {mean_tokens}")
        if drafts is None:
            return cls(1 - 1 / mean_tokens)
        low, high = 0.0, 1.0
        while (middle := (low + high) / 2) not in (low, high):
            low, high = (middle, high) if _mean(middle, drafts) < mean_tokens else (low, middle)
        return cls(low)

    @classmethod
    def of_method(cls, target: str, method: str) -> "Geometric":
        """Return the law of a measured pair, e.g. ``("vicuna-7b", "eagle2")``.

        Raises
        ------
        UnknownNameError
            When the catalogue has no such measurement.
        """
        return cls.named(f"{target}-{method}")

    @classmethod
    def named(cls, name: str) -> "Geometric":
        """Return the law of the catalogue's acceptance entry ``name``; see :meth:`of_method`."""
        return cls.of_mean(float(entry("acceptance", name)["mean_tokens"]))

    def accepted(self, drafts: int, rng: np.random.Generator) -> int:
        """Return the length of the run of accepted drafts; one draw whatever ``drafts`` is."""
        uniform = 1.0 - rng.random()  # in (0, 1], so that the logarithm exists
        if self.probability == 0.0:
            return 0
        return min(drafts, int(log(uniform) / log(self.probability)))

    def mean_tokens(self, tlp: int) -> float:
        """Return the mean of the run, cut at ``tlp - 1`` drafts, plus one."""
        return _mean(self.probability, tlp - 1)


def _mean(probability: float, drafts: int) -> float:
    return sum(probability**run for run in range(drafts + 1))


@frozen
class TokenCount:
    """Where tokens went. Counts add up over steps and requests.

    ``accepted`` drafts were kept by the verification before the request's end, ``rejected`` ones not;
    ``discarded`` ones lay behind the end. ``cut`` counts the target's own tokens behind the end.
    """

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    discarded: int = 0
    cut: int = 0
    emitted: int = 0

    def __add__(self, other: "TokenCount") -> "TokenCount":
        return TokenCount(
            self.steps + other.steps,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.rejected + other.rejected,
            self.discarded + other.discarded,
            self.cut + other.cut,
            self.emitted + other.emitted,
        )

    def violations(self) -> tuple[str, ...]:
        """Return what does not add up, a line each; empty when tokens are conserved."""
        found = []
        if self.emitted != self.accepted + self.steps - self.cut:
            found.append(f"emitted {self.emitted} != accepted {self.accepted} + steps {self.steps} - cut {self.cut}")
        if self.drafted != self.accepted + self.rejected + self.discarded:
            found.append(
                f"drafted {self.drafted} != accepted {self.accepted} + rejected {self.rejected}"
                f" + discarded {self.discarded}"
            )
        return tuple(found)


def verify(remaining: int, tlp: int, accepted: int) -> TokenCount:
    """Return where the tokens of one step of one request go.

    Parameters
    ----------
    remaining
        Tokens that the request still has to emit.
    tlp
        Tokens verified: ``tlp - 1`` drafts and the target's own.
    accepted
        Drafts that the target agrees with, from the first on.

    Raises
    ------
    ConfigError
        When the counts are impossible.
    """
    drafts = tlp - 1
    if remaining < 1 or not 0 <= accepted <= drafts:
        raise ConfigError(
            "verify",
            f"remaining {remaining}, tlp {tlp}, accepted {accepted}: expected 1 <= remaining, accepted < tlp",
        )
    if accepted < remaining:
        return TokenCount(1, drafts, accepted, drafts - accepted, 0, 0, accepted + 1)
    # The last token is a draft: all that follows, agreed with or not, is behind the end.
    return TokenCount(1, drafts, remaining, 0, drafts - remaining, 1, remaining)


@frozen
class BatchStep:
    """One iteration of a static batch: contexts of the running requests in request order, and its tokens."""

    contexts: tuple[int, ...]
    tlp: int
    finished: int
    tokens: TokenCount

    @property
    def rlp(self) -> int:
        """Requests running."""
        return len(self.contexts)


def static_batch(
    prompts: Sequence[int],
    outputs: Sequence[int],
    tlp: int = 1,
    law: AcceptanceLaw | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[BatchStep, ...]:
    """Return the iterations of a batch whose requests leave as they finish and are not replaced.

    The prefill emits each request's first token; a step's context is the prompt and all tokens emitted so
    far. Without ``law`` every draft is accepted.

    Raises
    ------
    ConfigError
        When lengths do not match or are not positive, or a drawing law has no ``rng``.
    """
    if len(prompts) != len(outputs) or not prompts or min(*prompts, *outputs) < 1:
        raise ConfigError("static_batch", "expected as many prompts as outputs, all at least 1 token")
    if tlp < 1:
        raise ConfigError("tlp", f"expected at least 1, not {tlp}")
    law = law or AllAccepted()
    if rng is None:
        if not isinstance(law, AllAccepted):
            raise ConfigError("rng", "a law that draws needs a random stream")
        rng = np.random.default_rng(0)
    running = [(prompt + 1, output - 1) for prompt, output in zip(prompts, outputs, strict=True) if output > 1]
    steps = []
    while running:
        counts = [verify(remaining, tlp, law.accepted(tlp - 1, rng)) for _, remaining in running]
        after = [
            (context + count.emitted, remaining - count.emitted)
            for (context, remaining), count in zip(running, counts, strict=True)
        ]
        left = [request for request in after if request[1] > 0]
        steps.append(
            BatchStep(
                contexts=tuple(context for context, _ in running),
                tlp=tlp,
                finished=len(running) - len(left),
                tokens=total(counts),
            )
        )
        running = left
    return tuple(steps)


def total(counts: Sequence[TokenCount]) -> TokenCount:
    """Return the sum of ``counts``."""
    found = TokenCount()
    for count in counts:
        found = found + count
    return found


def lognormal_lengths(mean: float, sigma: float, count: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Return ``count`` lengths, lognormal with ``mean`` and log-deviation ``sigma``, at least 1.

    Raises
    ------
    ConfigError
        When ``mean`` is not positive or ``sigma`` negative.
    """
    if mean <= 0 or sigma < 0:
        raise ConfigError("lengths", f"expected mean > 0 and sigma >= 0, not {mean} and {sigma}")
    drawn = rng.lognormal(log(mean) - sigma**2 / 2, sigma, count)
    return tuple(max(1, round(float(length))) for length in drawn)
