"""The running set: sequences in progress, counted together so that a step costs nothing per sequence.

Every decoding sequence gains one token a step. So a counter of decode steps stands for all of them: a sequence
that joined at counter ``n0`` with ``c0`` computed tokens has ``c0 + n - n0`` at ``n``, finishes at a counter
known when it joins, and needs a new KV block when its residue of the block size comes round.
"""

from heapq import heappop, heappush

from attrs import define

from hetmem.model import StepShape
from hetmem.workload.speculation import TokenCount


@define(slots=True, eq=False)
class Sequence:
    """One request in progress. While it decodes, ``computed`` and ``generated`` are those of when it joined.

    Of the hashes ``prefix`` of its prompt the first ``cached`` are known to the prefix cache, which owns ``shared``
    of its ``blocks``; ``swapped`` blocks are in the swap space.
    """

    id: int
    arrival: int
    arrival_ps: int
    prompt: int
    output: int
    computed: int = 0
    generated: int = 0
    joined: int = -1
    blocks: int = 0
    admitted_ps: int = -1
    first_token_ps: int = -1
    preemptions: int = 0
    prefix: tuple[int, ...] = ()
    cached: int = 0
    shared: int = 0
    swapped: int = 0
    verified: TokenCount | None = None

    @property
    def known(self) -> int:
        """Tokens whose values are known: the prompt and what was generated, while it does not decode."""
        return self.prompt + self.generated


class RunningSet:
    """The sequences that run, oldest first: those that decode, then those still in prefill.

    Parameters
    ----------
    block_tokens
        Tokens per KV block.
    """

    #: Tokens of each sequence that a step computes.
    tlp = 1

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.emitted = 0
        self.order: dict[int, Sequence] = {}
        self.prefilling: dict[int, Sequence] = {}
        self.decoding = 0
        self.kv_tokens = 0
        self._step = 0
        self._residues = [0] * block_tokens
        self._finish: list[tuple[int, int, int, Sequence]] = []

    def __len__(self) -> int:
        return len(self.order)

    def admit(self, seq: Sequence) -> None:
        """Add a sequence, as the youngest, in prefill."""
        self.order[seq.id] = self.prefilling[seq.id] = seq

    def start_decoding(self, seq: Sequence) -> None:
        """Move a sequence whose known tokens are all computed but the last from prefill to decoding."""
        del self.prefilling[seq.id]
        seq.joined = self._step
        self.decoding += 1
        self.kv_tokens += seq.computed
        self._residues[(seq.computed - self._step) % self.block_tokens] += 1
        finish = self._step + seq.output - seq.generated
        # The joining step tells a stale entry, of a sequence preempted since, from a live one.
        heappush(self._finish, (finish, seq.arrival, seq.joined, seq))

    def begin(self) -> None:
        """Prepare for the next step."""

    def shape(self) -> StepShape | None:
        """Return the shape of the decode group of the next step; None when nothing decodes."""
        if not self.decoding:
            return None
        context = self.kv_tokens + self.decoding
        return StepShape(
            tokens=self.decoding, sequences=self.decoding, attended=context, kv_tokens=context, sampled=self.decoding
        )

    def contexts(self) -> tuple[int, ...]:
        """Return the tokens that each decoding sequence attends to in the next step, in order of admission."""
        ahead = self._step + 1
        return tuple(seq.computed + ahead - seq.joined for seq in self.order.values() if seq.joined >= 0)

    def reserve(self) -> int:
        """Note that the blocks needed for the next step are taken, and return how many."""
        return self.blocks_needed()

    def blocks_needed(self) -> int:
        """Return the new KV blocks that the decoding sequences need for their next token."""
        return self._residues[-self._step % self.block_tokens]

    def advance(self) -> list[Sequence]:
        """Give every decoding sequence its token; return those that finish by it, removed."""
        self._step += 1
        self.emitted = self.decoding
        self.kv_tokens += self.decoding
        finished = []
        while self._finish and self._finish[0][0] <= self._step:
            _, _, joined, seq = heappop(self._finish)
            if seq.joined == joined and seq.id in self.order:
                self._leave(seq)
                del self.order[seq.id]
                finished.append(seq)
        return finished

    def youngest(self) -> Sequence:
        """Return the sequence admitted last."""
        return next(reversed(self.order.values()))

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out; its ``computed``, ``generated`` and ``blocks`` are brought up to date."""
        del self.order[seq.id]
        if self.prefilling.pop(seq.id, None) is None:
            self._leave(seq)

    def _leave(self, seq: Sequence) -> None:
        grown = self._step - seq.joined
        self._residues[(seq.computed - seq.joined) % self.block_tokens] -= 1
        seq.computed += grown
        seq.generated += grown
        seq.blocks = -(-seq.computed // self.block_tokens)
        seq.joined = -1
        self.decoding -= 1
        self.kv_tokens -= seq.computed
