"""The activity that a run meets, token by token: an input from outside, drawn once per step and then fixed.

Each sequence of the running batch has a source of its own. A finished sequence leaves, one whose prompt is done
joins; which of the running ones finished is not known here, so the oldest leaves. Activity while a prompt is
processed is recorded over its first :data:`PROFILE_TOKENS` tokens.
"""

from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hetmem.model.activation import ActivitySource, count_fired
from hetmem.model.activity_config import Neurons
from hetmem.model.bits import Words, union, unpack

PROFILE_TOKENS = 128


class _Sequence:
    """The source of one sequence, with tokens drawn ahead for those who may look into the future."""

    def __init__(self, source: ActivitySource) -> None:
        self.source = source
        self.n_units = source.n_units
        self._ahead: deque[Mapping[str, Words]] = deque()

    def next_token(self) -> Mapping[str, Words]:
        return self._ahead.popleft() if self._ahead else self.source.next_token()

    def ahead(self, n_tokens: int) -> list[Mapping[str, Words]]:
        while len(self._ahead) < n_tokens:
            self._ahead.append(self.source.next_token())
        return list(self._ahead)[:n_tokens]


class NeuronFeed:
    """The activity of the running batch.

    Parameters
    ----------
    neurons
        The units, and where their activity comes from.
    """

    def __init__(self, neurons: Neurons) -> None:
        self.neurons = neurons
        self._sequences: list[_Sequence] = []
        self._begun = 0
        self._drawn: tuple[int, dict[str, Words]] | None = None

    def __len__(self) -> int:
        return len(self._sequences)

    def join(self, n: int, prompt_tokens: int) -> dict[str, NDArray[np.float64]]:
        """Let ``n`` sequences join; return how often each unit fired for any of them, by block ``[layer, unit]``."""
        silent = {b: np.ones((self.neurons.n_layers, units)) for b, units in self.neurons.n_units.items()}
        n_tokens = max(1, min(prompt_tokens, PROFILE_TOKENS))
        for _ in range(n):
            sequence = self._begin()
            for block, fired in count_fired(sequence, n_tokens).items():
                silent[block] *= 1.0 - fired / n_tokens
        return {block: 1.0 - product for block, product in silent.items()}

    def clear(self) -> None:
        """Let all sequences leave."""
        self._sequences.clear()

    def _begin(self) -> _Sequence:
        sequence = _Sequence(self.neurons.source(self._begun))
        self._begun += 1
        self._sequences.append(sequence)
        return sequence

    def at(self, order: int, n: int) -> dict[str, Words]:
        """Return the activity of ``n`` sequences in step ``order``, ``[sequence, layer, word]``; the same each time."""
        if self._drawn is None or self._drawn[0] != order:
            while len(self._sequences) < n:
                self._begin()
            del self._sequences[: len(self._sequences) - n]
            tokens = [sequence.next_token() for sequence in self._sequences]
            self._drawn = order, {block: np.stack([token[block] for token in tokens]) for block in self.neurons.n_units}
        return self._drawn[1]

    def future(self, n_tokens: int) -> dict[str, NDArray[np.int64]]:
        """Return how often each unit is going to fire for any sequence in the next ``n_tokens`` tokens."""
        counts = {
            block: np.zeros((self.neurons.n_layers, units), dtype=np.int64)
            for block, units in self.neurons.n_units.items()
        }
        for tokens in zip(*(sequence.ahead(n_tokens) for sequence in self._sequences), strict=True):
            for block, total in counts.items():
                total += unpack(union(np.stack([token[block] for token in tokens])), total.shape[1])
        return counts
