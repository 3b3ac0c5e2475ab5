"""Swap space: keys and values of preempted sequences in another memory, instead of computing them again.

The copies of a step, out and in, are made before its kernels (vLLM, SOSP'23, section 4.5). What does not fit in
the space is recomputed. Not modelled: copies of single blocks, each with the latency of its own.
"""

from collections.abc import Mapping
from typing import NamedTuple

from hetmem.engine.kv_cache import KvCache
from hetmem.hardware.ledger import Ledger

OWNER = "kv-swap"


class KvMoves(NamedTuple):
    """Bytes to copy to and from the swap space before a step, by the memory of the KV cache."""

    out: Mapping[str, int]
    back: Mapping[str, int]


class SwapSpace:
    """Counts the blocks that are swapped out.

    Parameters
    ----------
    ledger, memory
        Where they are.
    kv
        The cache that they come from.

    Attributes
    ----------
    out, back : int
        Blocks copied so far.
    """

    def __init__(self, ledger: Ledger, memory: str, kv: KvCache) -> None:
        self.memory = memory
        self._ledger, self._kv = ledger, kv
        self._block_bytes = sum(kv.block_bytes.values())
        self.held = self.out = self.back = 0
        self._leaving = self._coming = 0

    def store(self, blocks: int) -> bool:
        """Reserve space for ``blocks`` and note their copy; False if there is too little."""
        if blocks * self._block_bytes > self._ledger.free_bytes(self.memory):
            return False
        self._ledger.allocate(OWNER, self.memory, blocks * self._block_bytes)
        self.held += blocks
        self._leaving += blocks
        return True

    def load(self, blocks: int) -> None:
        """Note the copy of ``blocks`` back; their space is free again."""
        self._ledger.free(OWNER, self.memory, blocks * self._block_bytes)
        self.held -= blocks
        self._coming += blocks

    def moves(self) -> KvMoves | None:
        """Return the copies noted since the last call, or None."""
        if not self._leaving and not self._coming:
            return None
        out, back = ({m: n * k for m, n in self._kv.block_bytes.items()} for k in (self._leaving, self._coming))
        self.out += self._leaving
        self.back += self._coming
        self._leaving = self._coming = 0
        return KvMoves(out, back)
