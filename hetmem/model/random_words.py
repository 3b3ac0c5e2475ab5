"""Random words in bulk: the exclusive or of stretches of two pools of fresh ones.

Drawing 64 bits costs ten times as much as combining them. Where the stretches begin is drawn for every call, so any
two bits are independent, but for calls whose stretches overlap as far apart in both pools: 0.02 pairs a pool where a
call draws 512 words, 0.7 where it draws 8192 (measured). Those shift whole words between layers and tokens, far below
the noise of what is counted. Pools serve for :data:`_CALLS`.
"""

import math

import numpy as np

from hetmem.model.bits import Words

_POOL_WORDS = 1 << 15
_SHARE = 4  # a pool holds at least so many stretches side by side
_CALLS = 256
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


class RandomWords:
    """A stream of random words, drawn from ``rng``."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._pools: Words = np.empty((2, 0), dtype=np.uint64)
        self._starts: list[list[float]] = []

    def draw(self, shape: tuple[int, ...]) -> Words:
        """Return random words of ``shape``."""
        n = math.prod(shape)
        if not self._starts or self._pools.shape[1] < _SHARE * n:
            self._refill(max(_POOL_WORDS, _SHARE * n))
        room = self._pools.shape[1] - n + 1
        first, second = (int(start * room) for start in self._starts.pop())
        return (self._pools[0, first : first + n] ^ self._pools[1, second : second + n]).reshape(shape)

    def bernoulli(self, probability: float, digits: int, shape: tuple[int, ...]) -> Words:
        """Return words whose bits are 1 with ``probability``, rounded to ``digits`` binary digits."""
        fraction = round(probability * (1 << digits))
        if fraction in (0, 1 << digits):
            return np.full(shape, _ALL if fraction else 0, dtype=np.uint64)
        while fraction % 2 == 0:
            fraction, digits = fraction // 2, digits - 1
        words = self.draw((digits, *shape))
        state = words[0]
        for place in range(1, digits):
            if fraction >> place & 1:
                state |= words[place]
            else:
                state &= words[place]
        return np.asarray(state)

    def _refill(self, n_words: int) -> None:
        self._pools = self._rng.bit_generator.random_raw(2 * n_words).reshape(2, n_words)
        self._starts = self._rng.random((_CALLS, 2)).tolist()
