"""Bits of units, packed 64 to a word: unit ``i`` of a layer is bit ``i % 64`` of word ``i // 64``."""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
LANES = 64


def pack(bits: NDArray[np.bool_]) -> Words:
    """Return ``bits`` packed along the last axis, filled up with zeros to whole words."""
    n = bits.shape[-1]
    if n % LANES:
        bits = np.concatenate([bits, np.zeros((*bits.shape[:-1], -n % LANES), dtype=np.bool_)], axis=-1)
    return np.packbits(bits, axis=-1, bitorder="little").view("<u8")


def unpack(words: Words, n: int) -> NDArray[np.bool_]:
    """Return the first ``n`` bits along the last axis as booleans."""
    flat = np.ascontiguousarray(words).view(np.uint8)
    return np.unpackbits(flat, axis=-1, count=n, bitorder="little").view(np.bool_)


def union(batch: Words) -> Words:
    """Return the units that fire in any sequence of ``batch[sequence, ...]``: their weights are read."""
    return np.asarray(np.bitwise_or.reduce(batch, axis=0))


def tally(digits: list[Words], words: Words) -> None:
    """Count ``words`` once more in ``digits``, one counter per bit, cut into binary digits, the least first."""
    carry = words
    for digit in digits:
        carried = digit & carry
        digit ^= carry
        carry = carried
    if carry.any() or not digits:
        digits.append(carry.copy())


def count(words: Words) -> NDArray[np.int64]:
    """Return how many bits are set along the last axis."""
    return np.asarray(np.bitwise_count(words).sum(axis=-1, dtype=np.int64))


def count_in(words: Words, masks: Words) -> NDArray[np.int64]:
    """Return how many units fire within each mask, ``[..., place, layer]``.

    ``words`` is packed ``[..., layer, word]``, ``masks[place, layer, word]`` the units that each place holds.
    """
    return count(words[..., None, :, :] & masks)
