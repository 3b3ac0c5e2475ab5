"""Attention inside PIM stacks: rounds of heads over channels, contexts in buckets of 16 tokens.

Modelled: one head per channel and round, heads in request order, a round as long as its longest head; score,
softmax (on the buffer die) and context of every head; row openings, refresh; the command counts that energy
needs. Ignored: skew between stacks (the busiest sets the time) and reuse of K and V between verified tokens
beyond the units of a bank. Source: a cycle law fitted to Ramulator2 runs of the AttAcc simulator (AttAcc!,
ASPLOS 2024), head dimension 128; mean error 0.07 %, maximum 2.1 % on those 208 points
(tests/paper/test_attacc_reference.py). Other head dimensions scale the MAC count and keep the row and round
terms; other levels and units scale the MAC term alone.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil

from attrs import frozen

from hetmem.errors import ConfigError
from hetmem.hardware.component_energy import ComponentEnergy
from hetmem.hardware.pim import WORD_BYTES, PimStack

_PJ = 1e-12


def rounds(stack: PimStack, stacks: int, heads: int, contexts: Sequence[int]) -> tuple[int, ...]:
    """Return the longest context of each round when ``heads`` per request spread over the ``stacks``.

    Parameters
    ----------
    contexts
        Tokens of context of each request, in request order.

    Raises
    ------
    ConfigError
        When a context is not positive.
    """
    if not contexts:
        return ()
    if min(contexts) < 1:
        raise ConfigError("contexts", f"expected at least one token each, found {min(contexts)}")
    width = stacks * stack.geometry.channels
    total = heads * len(contexts)
    longest = []
    for first in range(0, total, width):
        last = min(first + width, total) - 1
        longest.append(max(contexts[first // heads : last // heads + 1]))
    return tuple(longest)


def pass_s(stack: PimStack, longest: tuple[int, ...], head_dim: int = 128) -> float:
    """Return the seconds of one attention pass of one layer; ``longest`` is each round's context."""
    return pass_clocks(stack, longest, head_dim) * stack.geometry.clock_s


def pass_clocks(stack: PimStack, longest: tuple[int, ...], head_dim: int = 128) -> float:
    """Return DRAM clocks of one attention pass of one layer, refresh included."""
    geometry = stack.geometry
    buckets = sum(-(-tokens // geometry.bucket_tokens) for tokens in longest)
    blocks = sum(-(-tokens // geometry.row_block_tokens) - 1 for tokens in longest)
    return _clocks(stack, len(longest), buckets, blocks, head_dim)


@lru_cache(maxsize=65536)
def _clocks(stack: PimStack, count: int, buckets: int, blocks: int, head_dim: int) -> float:
    if count == 0:
        return 0.0
    geometry, level = stack.geometry, stack.level
    clocks = (
        macs_per_bucket(stack, head_dim) * level.spacing_clocks * buckets
        + level.pair_clocks * (count // 2)
        + level.odd_clocks * (count % 2)
        + level.first_clocks
        + level.block_clocks * blocks
    )
    # A refresh lengthens the pass, which may meet a further refresh: iterate to the fixed point.
    refreshes = 0
    while (met := int((clocks + geometry.refresh_clocks * refreshes) // geometry.refresh_interval_clocks)) != (
        refreshes
    ):
        refreshes = met
    return clocks + geometry.refresh_clocks * refreshes


def macs_per_bucket(stack: PimStack, head_dim: int) -> float:
    """Return all-bank accesses that one head needs per bucket of tokens, score and context together."""
    bucket_bytes = 2 * stack.geometry.bucket_tokens * head_dim * WORD_BYTES
    return bucket_bytes / (stack.level.banks_per_access * stack.geometry.access_bytes * stack.read_share)


def passes(stack: PimStack, tokens: int) -> int:
    """Return passes over K and V for ``tokens`` verified at once: one each, unless a bank has more units."""
    return ceil(tokens / stack.units.tokens_per_pass)


def softmax_s(stack: PimStack, elements: float) -> float:
    """Return the buffer die's time for softmax over ``elements`` scores of one stack, seconds.

    Five FLOP and four bytes an element at one of each per external byte-time. The cycle law includes it
    already: only AttAcc's pipelining rules add it.
    """
    return max(5 * elements, 2 * WORD_BYTES * elements) / stack.geometry.external_bytes_per_s


@frozen
class AttentionCommands:
    """Commands of one stack in one pass of one layer; ``mac`` are all-bank accesses summed over channels."""

    mac: float
    to_gemv_buffer: float
    to_softmax_buffer: float
    write_gemv_buffer: float


def stack_commands(stack: PimStack, heads: int, context: int, head_dim: int = 128) -> AttentionCommands:
    """Return the commands of one stack with ``heads`` of equal ``context``, as AttAcc's traces hold.

    An even number of rounds replays MACs for the empty channels of the last one.
    """
    geometry = stack.geometry
    buckets = ceil(context / geometry.bucket_tokens)
    return mean_commands(stack, heads, buckets, ceil(context / geometry.row_block_tokens), head_dim)


def mean_commands(stack: PimStack, heads: int, buckets: float, blocks: float, head_dim: int = 128) -> AttentionCommands:
    """Return the commands of one stack with ``heads`` of so many ``buckets`` and row ``blocks`` on average."""
    geometry = stack.geometry
    count = ceil(heads / geometry.channels)
    per_bucket = macs_per_bucket(stack, head_dim)
    empty = count * geometry.channels - heads
    replayed = per_bucket / 2 * buckets * empty if count and count % 2 == 0 else 0.0
    prologue = geometry.channels if count >= 2 else 0
    return AttentionCommands(
        mac=per_bucket * buckets * heads + prologue + replayed,
        to_gemv_buffer=8 * heads * blocks,
        to_softmax_buffer=8 * heads * (blocks + 2),
        write_gemv_buffer=8 * heads,
    )


def array_energy(stack: PimStack, commands: AttentionCommands) -> ComponentEnergy:
    """Return the DRAM energy of the all-bank accesses of ``commands``."""
    n_bytes = commands.mac * stack.geometry.access_bytes * stack.level.banks_per_access * stack.read_share
    return stack.array_energy(n_bytes)


def buffer_energy(stack: PimStack, commands: AttentionCommands, corrected: bool) -> ComponentEnergy:
    """Return the energy of moves between banks and buffer die.

    The AttAcc simulator applies energies per bit to bytes here; ``corrected`` does not.
    """
    dram = stack.geometry.dram
    path = dram.tsv_pj_per_bit + dram.channel_mux_pj_per_bit + dram.bank_group_mux_pj_per_bit
    writes, moves = commands.write_gemv_buffer, commands.to_gemv_buffer + commands.to_softmax_buffer
    picojoules = stack.geometry.access_bytes * (dram.interposer_pj_per_bit * writes + path * (writes + moves))
    return ComponentEnergy(dram_bus=_PJ * picojoules * (8 if corrected else 1))


def softmax_energy(stack: PimStack, elements: float) -> ComponentEnergy:
    """Return the buffer die's energy of softmax over ``elements`` scores: buffer bytes and five FLOP each."""
    geometry = stack.geometry
    return ComponentEnergy(
        sram=_PJ * geometry.softmax_buffer_pj_per_byte * 2 * WORD_BYTES * elements,
        pim_mac=_PJ * geometry.mac_pj * 5 * elements / 2,
    )


@frozen
class ContextTotals:
    """What attention energy is linear in, summed over requests: tokens, buckets and row blocks."""

    requests: int = 0
    tokens: int = 0
    buckets: int = 0
    blocks: int = 0

    @classmethod
    def of(cls, stack: PimStack, contexts: Sequence[int]) -> "ContextTotals":
        """Return the sums over one pass of requests with these ``contexts``."""
        bucket, block = stack.geometry.bucket_tokens, stack.geometry.row_block_tokens
        return cls(
            len(contexts),
            sum(contexts),
            sum(-(-tokens // bucket) for tokens in contexts),
            sum(-(-tokens // block) for tokens in contexts),
        )

    def __add__(self, other: "ContextTotals") -> "ContextTotals":
        return ContextTotals(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.buckets + other.buckets,
            self.blocks + other.blocks,
        )


def request_energy(
    stack: PimStack,
    heads: int,
    totals: ContextTotals,
    *,
    queries: int = 1,
    head_dim: int = 128,
    corrected: bool = False,
) -> ComponentEnergy:
    """Return the energy of attention of one layer over ``totals``, all stacks together.

    Each of a request's ``heads`` serves ``queries`` query vectors: arrays and buffers are charged per pass,
    MACs and softmax per query. Counts the heads there are: neither the rounding of heads to stacks nor
    replayed MACs. ``corrected`` charges the context product's MACs and buffer moves by the bit, both of which
    the AttAcc simulator understates.
    """
    commands = AttentionCommands(
        mac=macs_per_bucket(stack, head_dim) * totals.buckets * heads,
        to_gemv_buffer=8 * heads * totals.blocks,
        to_softmax_buffer=8 * heads * (totals.blocks + 2 * totals.requests),
        write_gemv_buffer=8 * heads * totals.requests,
    )
    elements = heads * totals.tokens * queries
    per_pass = array_energy(stack, commands) + buffer_energy(stack, commands, corrected)
    return (
        per_pass * passes(stack, queries)
        + stack.mac_energy(elements * head_dim * (2 if corrected else 1))
        + softmax_energy(stack, elements)
    )
