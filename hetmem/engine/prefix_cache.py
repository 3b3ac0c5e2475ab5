"""Prefix reuse: KV blocks of prompts whose beginning another request has computed.

A trace names the blocks of :data:`~hetmem.workload.request.PREFIX_BLOCK_TOKENS` prompt tokens by hashes that
stand for a block and all before it (Qin et al., Mooncake, FAST'25), so a prompt reuses its longest run of known
hashes. A block is known from the step that computes it: within a layer keys and values are written before they
are read, for all sequences of the step (as in vLLM's prefix cache). Blocks that no sequence uses are kept until
the space is needed, and then the least recently used goes first, the end of a prompt before its beginning.
At least the last token of a prompt is computed. Shared is what fills whole KV blocks.
"""

from collections.abc import Iterable

from attrs import define

from hetmem.engine.kv_cache import KvCache
from hetmem.engine.running import Sequence
from hetmem.errors import ConfigError, ConservationError
from hetmem.workload.request import PREFIX_BLOCK_TOKENS


@define(slots=True, eq=False)
class _Block:
    """The KV blocks of one hash, and the sequences that use them."""

    kv_blocks: int
    users: int = 1


class PrefixCache:
    """The blocks that are known by their hash.

    Parameters
    ----------
    kv
        Where they are; blocks pass from a sequence to this cache when it computes them.

    Attributes
    ----------
    asked, reused : int
        Hashes of the requests admitted so far, and those of them whose block was known.

    Raises
    ------
    ConfigError
        When a hashed block is not a whole number of KV blocks.
    """

    def __init__(self, kv: KvCache) -> None:
        if PREFIX_BLOCK_TOKENS % kv.block_tokens:
            raise ConfigError(
                "serving.block_tokens",
                f"prefix reuse needs a divisor of {PREFIX_BLOCK_TOKENS}, not {kv.block_tokens}",
            )
        self._kv = kv
        self._blocks: dict[int, _Block] = {}
        self._idle: dict[int, None] = {}  # in the order in which they are given up
        self.held = self.asked = self.reused = 0

    def attach(self, seq: Sequence) -> None:
        """Give a sequence that has computed nothing the blocks that are known, and skip their tokens."""
        known = 0
        while known < len(seq.prefix) and seq.prefix[known] in self._blocks:
            known += 1
        for name in seq.prefix[:known]:
            self._blocks[name].users += 1
            self._idle.pop(name, None)
        seq.cached = known
        seq.blocks = seq.shared = self._end(seq, known)
        seq.computed = min(seq.shared * self._kv.block_tokens, seq.known - 1)

    def detach(self, seq: Sequence) -> None:
        """Take the shared blocks from a sequence; they stay until their space is needed."""
        for name in reversed(seq.prefix[: seq.cached]):
            block = self._blocks[name]
            block.users -= 1
            if not block.users:
                self._idle[name] = None
        seq.blocks -= seq.shared
        seq.cached = seq.shared = 0

    def admitted(self, seq: Sequence) -> None:
        """Count the hashes of a request that is admitted for the first time."""
        self.asked += len(seq.prefix)
        self.reused += seq.cached

    def computed(self, seq: Sequence, tokens: int) -> None:
        """Make known the blocks of ``seq`` up to ``tokens`` computed tokens."""
        while seq.cached < len(seq.prefix):
            name, end = seq.prefix[seq.cached], min((seq.cached + 1) * PREFIX_BLOCK_TOKENS, seq.prompt)
            if tokens < end or name in self._blocks:
                return  # known since: this sequence keeps a copy of its own
            kv_blocks = self._end(seq, seq.cached + 1) - seq.shared
            self._blocks[name] = _Block(kv_blocks)
            self.held += kv_blocks
            seq.shared += kv_blocks
            seq.cached += 1

    def make_room(self, blocks: int) -> None:
        """Give up unused blocks until ``blocks`` are free, or none is left."""
        while self._idle and blocks > self._kv.free:
            name = next(iter(self._idle))
            del self._idle[name]
            gone = self._blocks.pop(name).kv_blocks
            self.held -= gone
            self._kv.give(gone)

    def check_conserved(self) -> None:
        """Raise :class:`ConservationError` unless what is held is unused, and is what the KV cache holds."""
        if self.held != self._kv.used or len(self._idle) != len(self._blocks):
            in_use = len(self._blocks) - len(self._idle)
            raise ConservationError(
                "shared KV blocks", f"{self.held} of {self._kv.used} held are known prefixes, {in_use} hashes in use"
            )

    def _end(self, seq: Sequence, hashes: int) -> int:
        """Return the whole KV blocks that the first ``hashes`` blocks of a prompt fill."""
        return min(hashes * PREFIX_BLOCK_TOKENS, seq.prompt) // self._kv.block_tokens


def has_hashes(prefixes: Iterable[tuple[int, ...]] | None) -> bool:
    """Return whether any request names its prefix blocks."""
    return prefixes is not None and any(prefixes)
