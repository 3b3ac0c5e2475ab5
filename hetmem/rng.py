"""Named random streams: one per consumer, so that a new part shifts nobody else's draws."""

import zlib

import numpy as np


def stream(seed: int, scope: str) -> np.random.Generator:
    """Return the generator of the consumer named ``scope`` under ``seed``.

    The stream depends on the two arguments alone: not on the order of creation, nor on the hash seed.
    """
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(scope.encode())]))
