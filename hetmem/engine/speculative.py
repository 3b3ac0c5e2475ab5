"""The running set under speculative decoding: each step verifies several tokens of every sequence.

A step computes ``tlp`` tokens of a sequence, its last known one and ``tlp - 1`` drafts, and emits the accepted
drafts and one more. The keys and values of drafts that are not kept are overwritten by the next step, so a sequence
holds blocks for all tokens that a step computes. How long the drafts are is a policy's decision before each step.
Not modelled: trees of drafts.
"""

from typing import Protocol

import numpy as np
from attrs import astuple, fields, frozen

from hetmem.engine.running import RunningSet, Sequence
from hetmem.errors import ConfigError, ConservationError
from hetmem.model import StepShape
from hetmem.monitor.table import Table
from hetmem.policy.speculation import SpeculationView
from hetmem.workload.speculation import AcceptanceLaw, TokenCount, verify

COUNTED = tuple(field.name for field in fields(TokenCount))


class SpeculationPolicy(Protocol):
    """How many tokens of each sequence the next step verifies."""

    def decide(self, view: SpeculationView) -> int: ...


@frozen
class Speculation:
    """How long drafts are, which of them are accepted, and the random stream of that."""

    policy: SpeculationPolicy
    acceptance: AcceptanceLaw
    rng: np.random.Generator


class SpeculativeSet(RunningSet):
    """Sequences that advance by different numbers of tokens; a step costs a little per sequence.

    Parameters
    ----------
    block_tokens
        Tokens per KV block.
    speculation
        Policy, acceptance and random stream.
    """

    def __init__(self, block_tokens: int, speculation: Speculation) -> None:
        super().__init__(block_tokens)
        self._speculation = speculation
        self._live: dict[int, Sequence] = {}
        self.tokens = TokenCount()
        self.table = Table({"id": "q", **dict.fromkeys(COUNTED, "q")})
        self.begin()

    def begin(self) -> None:
        """Let the policy choose how many tokens the next step verifies."""
        tlp = self._speculation.policy.decide(SpeculationView(self.decoding))
        if isinstance(tlp, bool) or not isinstance(tlp, int) or tlp < 1:
            raise ConfigError("speculation", f"the policy must decide on a whole number of at least 1, not {tlp!r}")
        self.tlp = tlp

    def start_decoding(self, seq: Sequence) -> None:
        del self.prefilling[seq.id]
        seq.joined = self._step
        seq.verified = seq.verified or TokenCount()
        self._live[seq.id] = seq
        self.decoding += 1
        self.kv_tokens += seq.computed

    def shape(self) -> StepShape | None:
        if not self.decoding:
            return None
        tlp, n = self.tlp, self.decoding
        return StepShape(
            tokens=n * tlp, sequences=n, attended=tlp * self.kv_tokens + n * tlp * (tlp + 1) // 2,
            kv_tokens=self.kv_tokens + n * tlp, sampled=n * tlp,
        )  # fmt: skip

    def contexts(self) -> tuple[int, ...]:
        return tuple(seq.computed + 1 for seq in self.order.values() if seq.joined >= 0)

    def blocks_needed(self) -> int:
        return sum(max(0, self._blocks(seq) - seq.blocks) for seq in self._live.values())

    def reserve(self) -> int:
        needed = self.blocks_needed()
        for seq in self._live.values():
            seq.blocks = max(seq.blocks, self._blocks(seq))
        return needed

    def advance(self) -> list[Sequence]:
        """Verify the drafts of every decoding sequence; return those that finish, removed."""
        law, rng, drafts = self._speculation.acceptance, self._speculation.rng, self.tlp - 1
        self._step += 1
        self.emitted = 0
        finished = []
        for seq in [seq for seq in self.order.values() if seq.joined >= 0]:
            found = verify(seq.output - seq.generated, self.tlp, law.accepted(drafts, rng))
            assert seq.verified is not None
            seq.verified = seq.verified + found
            seq.generated += found.emitted
            seq.computed += found.emitted
            self.kv_tokens += found.emitted
            self.emitted += found.emitted
            self.tokens = self.tokens + found
            if seq.generated == seq.output:
                _check_tokens(seq)
                self.table.append((seq.id, *astuple(seq.verified)))
                del self.order[seq.id]
                self._leave(seq)
                finished.append(seq)
        return finished

    def check_conserved(self) -> None:
        """Raise unless the tokens of all steps add up.

        Raises
        ------
        ConservationError
            Naming what does not.
        """
        _raise("the run", self.tokens.violations())

    def _blocks(self, seq: Sequence) -> int:
        return -(-(seq.computed + self.tlp) // self.block_tokens)

    def _leave(self, seq: Sequence) -> None:
        del self._live[seq.id]
        seq.joined = -1
        self.decoding -= 1
        self.kv_tokens -= seq.computed


def _check_tokens(seq: Sequence) -> None:
    """Raise unless ``seq`` emitted its output: a token by each prefill, the rest by verification."""
    count = seq.verified
    assert count is not None
    _raise(f"request {seq.id}", count.violations())
    prefills = seq.preemptions + 1  # a recomputed prompt, too, ends with a token
    if not seq.output - prefills <= count.emitted <= seq.output - 1:
        raise ConservationError("tokens", f"request {seq.id} emitted {count.emitted} of {seq.output} by verification")


def _raise(who: str, violations: tuple[str, ...]) -> None:
    if violations:
        raise ConservationError("speculated tokens", f"{who}: {'; '.join(violations)}")
