"""The KV cache: blocks of tokens, held in the memories where the system puts them."""

from collections.abc import Mapping

from hetmem.errors import CapacityError, ConservationError
from hetmem.hardware.ledger import Ledger

OWNER = "kv-cache"
UNLIMITED = 1 << 40  # blocks where capacity is not enforced


class KvCache:
    """Counts blocks and keeps the ledger in step.

    Parameters
    ----------
    ledger
        Holds the bytes.
    block_tokens
        Tokens per block.
    bytes_per_token
        KV bytes of a token in each memory that holds a share of it.
    share
        Fraction of the memory that is free now which the cache may take.
    blocks
        Number of blocks, or None for as many as ``share`` allows.

    Raises
    ------
    CapacityError
        When not even one block fits, or not ``blocks``.
    """

    def __init__(
        self, ledger: Ledger, block_tokens: int, bytes_per_token: Mapping[str, int], share: float,
        blocks: int | None = None,
    ) -> None:  # fmt: skip
        self.block_tokens = block_tokens
        self._ledger = ledger
        self.block_bytes = {memory: n * block_tokens for memory, n in bytes_per_token.items() if n}
        if not ledger.enforced and blocks is None:
            blocks = UNLIMITED
        share = share if blocks is None else 1.0
        fitting = {m: int(ledger.free_bytes(m) * share) // n for m, n in self.block_bytes.items()}
        tightest = min(fitting, key=lambda memory: fitting[memory])
        self.total = fitting[tightest] if blocks is None else blocks
        if ledger.enforced and not 1 <= self.total <= fitting[tightest]:
            held = tuple((owner, n) for memory, owner, n in ledger.holdings() if memory == tightest)
            asked = self.block_bytes[tightest] * max(1, self.total)
            raise CapacityError(
                tightest, asked, ledger.free_bytes(tightest), ledger.capacities[tightest], held
            )  # fmt: skip
        self.used = self.peak = self.allocated = self.freed = 0

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self.total - self.used

    def blocks_for(self, tokens: int) -> int:
        """Return the blocks that ``tokens`` of one sequence need."""
        return -(-tokens // self.block_tokens)

    def take(self, blocks: int) -> None:
        """Allocate ``blocks``; the caller has seen that they are free."""
        if blocks:
            for memory, n_bytes in self.block_bytes.items():
                self._ledger.allocate(OWNER, memory, blocks * n_bytes)
            self.used += blocks
            self.allocated += blocks
            self.peak = max(self.peak, self.used)

    def give(self, blocks: int) -> None:
        """Free ``blocks``."""
        if blocks:
            for memory, n_bytes in self.block_bytes.items():
                self._ledger.free(OWNER, memory, blocks * n_bytes)
            self.used -= blocks
            self.freed += blocks

    def check_conserved(self) -> None:
        """Raise :class:`ConservationError` unless blocks allocated = freed + held."""
        if self.allocated != self.freed + self.used:
            raise ConservationError("KV blocks", f"{self.allocated} allocated, {self.freed} freed, {self.used} held")
