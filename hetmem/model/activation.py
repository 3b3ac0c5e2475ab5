"""Which neurons fire at each token of a sequence: a fast synthetic source, in packed bits.

A unit of a layer is a neuron, or a group of neurons taken to fire together. The frequencies, rates and
persistence are those of :mod:`hetmem.model.sparsity`; the index of a unit says nothing of its frequency. On
top of them comes correlation: a unit and its *sibling* half a layer away have neighbouring frequencies and
draw the same random bits where they draw anew; and a unit that is
*linked* follows the unit of the same index one layer before: it has its rate quantile, and at each token,
with probability ``follow``, its random bits. Sharing the random bits and not the outcome leaves every unit
its own frequency.

All draws are bitwise over whole words: a Bernoulli draw with a rate of its own per lane folds one random word
per binary digit of the rate, ``majority(x, random, digit)``. The Markov step is one select. Rates are rounded
to 8 binary digits at random, which keeps their mean. Ignored: everything that the module of the law ignores;
a group that fires together overstates the noise of counts, so units of one neuron are the faithful choice and
larger ones the cheap one.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Protocol

import numpy as np
from attrs import field, frozen, validators
from numpy.typing import NDArray

from hetmem.errors import ConfigError
from hetmem.model.bits import LANES, Words, pack, tally, unpack
from hetmem.model.random_words import RandomWords
from hetmem.model.rates import QUANTILES, RateTable, rate_table, rungs_of
from hetmem.model.sparsity import BlockSparsity, FiringLaw, fit_firing_law
from hetmem.rng import stream

_RATE_DIGITS = 8
_FOLLOW_DIGITS = 5
_KEEP_DIGITS = 6
_CHUNK_WORDS = 2048  # words drawn at once for a layer: large enough to amortise calls, small enough for the cache
_RENEWAL_TOKENS = 32  # new rates come at multiples of this; a power of two, and the longest chunk


@frozen
class NeuronBlock:
    """The neurons of one kind of block: ``n_neurons`` in each layer, in units of ``group``."""

    sparsity: BlockSparsity
    n_layers: int = field(validator=validators.ge(1))
    n_neurons: int = field(validator=validators.ge(2))
    group: int = field(default=1, validator=validators.ge(1))

    def __attrs_post_init__(self) -> None:
        if self.n_neurons % self.group:
            raise ConfigError(f"{self.name}.group", f"{self.group} does not divide {self.n_neurons} neurons")

    @property
    def name(self) -> str:
        return self.sparsity.name

    @property
    def n_units(self) -> int:
        return self.n_neurons // self.group

    @property
    def n_words(self) -> int:
        """Words of one layer at one token; even, because siblings are half of them apart."""
        return 2 * -(-self.n_units // (2 * LANES))


class ActivitySource(Protocol):
    """Whatever tells which units fire: synthetic, recorded, or the user's own."""

    @property
    def n_units(self) -> Mapping[str, int]:
        """Units of one layer, by kind of block."""

    def next_token(self) -> Mapping[str, Words]:
        """Return the packed activity of the next token, ``[layer, word]`` by kind of block; read-only."""


@frozen(eq=False)
class ActivationModel:
    """The static side of synthetic activity: the law, and the frequency and link of every unit.

    ``frequency[layer, unit]`` is the firing frequency over the corpus; ``linked[layer, word]`` marks in
    packed bits the units that follow the layer before.
    """

    block: NeuronBlock
    law: FiringLaw
    frequency: NDArray[np.float32]
    rungs: NDArray[np.uint16]
    linked: Words
    table: RateTable

    @property
    def sibling(self) -> NDArray[np.int64]:
        """The sibling of each unit, itself where its half of the layer has no partner."""
        n, half = self.block.n_units, self.block.n_words // 2 * LANES
        index = np.arange(n)
        partner = (index + half) % (2 * half)
        return np.where(partner < n, partner, index)

    @property
    def parents(self) -> NDArray[np.int64]:
        """The two units of the layer before that say most about each unit, ``[unit, 2]``."""
        return np.stack([np.arange(self.block.n_units), self.sibling], axis=1)


def activation_model(block: NeuronBlock, seed: int) -> ActivationModel:
    """Return the static side of the activity of ``block``; the structure depends on ``seed`` alone.

    Raises
    ------
    ConfigError
        When the anchors of the block exclude each other.
    """
    law = fit_firing_law(block.sparsity, block.n_layers)
    n, n_words = block.n_units, block.n_words
    half = n_words // 2 * LANES
    rng = stream(seed, f"activation-structure/{block.name}")
    # siblings take neighbouring ranks; the order of the pairs is random and the same in every layer
    place = np.arange(n)
    rank = np.empty(n, dtype=np.int64)
    rank[np.lexsort((place // half, rng.permutation(half)[place % half]))] = np.arange(n)
    padded = np.zeros((block.n_layers, n_words * LANES), dtype=np.float32)
    for layer in range(block.n_layers):
        padded[layer, :n] = law.frequencies(layer, n)[rank]
    linked = np.repeat(rng.random((block.n_layers, 1, half)) < block.sparsity.link, 2, axis=1)
    linked[0] = False  # nothing comes before the first layer
    return ActivationModel(
        block,
        law,
        _read_only(padded[:, :n]),
        rungs_of(padded),
        pack(linked.reshape(block.n_layers, -1)),
        rate_table(law.concentration),
    )


def count_fired(source: ActivitySource, n_tokens: int) -> dict[str, NDArray[np.uint16]]:
    """Take ``n_tokens`` tokens and return how often each unit fired, ``[layer, unit]`` by kind of block."""
    digits: dict[str, list[Words]] = {name: [] for name in source.n_units}
    for _ in range(n_tokens):
        for name, words in source.next_token().items():
            tally(digits[name], words)
    return {name: _add_planes(planes, source.n_units[name]) for name, planes in digits.items()}


def _add_planes(planes: list[Words], n: int) -> NDArray[np.uint16]:
    total = np.zeros((*planes[0].shape[:-1], n), dtype=np.uint16)
    for place, plane in enumerate(planes):
        total += unpack(plane, n).astype(np.uint16) << np.uint16(place)
    return total


def next_batch(sources: Sequence[ActivitySource]) -> dict[str, Words]:
    """Return the next token of each sequence of a batch, ``[sequence, layer, word]`` by kind of block."""
    tokens = [source.next_token() for source in sources]
    return {name: np.stack([token[name] for token in tokens]) for name in tokens[0]}


class GeneratedActivity:
    """The activity of one sequence, token by token: an :class:`ActivitySource` without end.

    Two sources with the same models, ``seed`` and ``sequence`` yield the same tokens; other sequences are
    independent.
    """

    def __init__(self, models: tuple[ActivationModel, ...], seed: int, sequence: int = 0) -> None:
        self._blocks = tuple(_SequenceBlock(model, seed, sequence) for model in models)
        self._tokens = self._stream()
        self.n_units: Mapping[str, int] = {m.block.name: m.block.n_units for m in models}

    def next_token(self) -> Mapping[str, Words]:
        """Return the packed activity of the next token, ``[layer, word]`` by kind of block; read-only."""
        return next(self._tokens)

    def _stream(self) -> Iterator[Mapping[str, Words]]:
        streams = {block.name: block.tokens() for block in self._blocks}
        while True:
            yield {name: next(words) for name, words in streams.items()}


class _SequenceBlock:
    """One sequence of one kind of block: its rates, and the state that the next chunk starts from."""

    def __init__(self, model: ActivationModel, seed: int, sequence: int) -> None:
        self.name = model.block.name
        self._model = model
        self._rng = stream(seed, f"activation/{self.name}/{sequence}")
        self._words = RandomWords(self._rng)
        shape = (model.block.n_layers, 2, model.block.n_words // 2)
        self._linked: Words = model.linked.reshape(shape)
        self._quantiles = self._fresh_quantiles()
        self._digits = self._rate_digits()
        self._last: Words | None = None

    def tokens(self) -> Iterator[Words]:
        block = self._model.block
        half = block.n_words // 2
        chunk = min(_RENEWAL_TOKENS, 1 << max(3, (_CHUNK_WORDS // block.n_words).bit_length() - 1))
        for token in count(step=chunk):
            if token and token % _RENEWAL_TOKENS == 0 and block.sparsity.renewal > 0:
                self._renew(1.0 - (1.0 - block.sparsity.renewal) ** _RENEWAL_TOKENS)
            drawn, keep = self._draw(chunk, half)
            last = drawn[0].copy() if self._last is None else self._last
            for state, held in zip(drawn, keep, strict=True):  # keep the state, or take what was drawn
                last = np.bitwise_xor(state, held & (state ^ last), out=state)
            self._last = last
            words = drawn.reshape(chunk, block.n_layers, block.n_words)
            words.flags.writeable = False
            yield from words

    def _draw(self, chunk: int, half: int) -> tuple[Words, Words]:
        """Return the states drawn and the masks of those to keep, ``[token, layer, half, word]``."""
        law, sparsity, n_layers = self._model.law, self._model.block.sparsity, self._model.block.n_layers
        drawn = np.empty((chunk, n_layers, 2, half), dtype=np.uint64)
        keep = np.empty_like(drawn)
        planes = np.zeros((_RATE_DIGITS, 2, chunk, half), dtype=np.uint64)
        kept, state = np.zeros((2, 2, chunk, half), dtype=np.uint64)
        spare, apart = np.empty_like(state), np.empty_like(planes)
        for layer in range(n_layers):
            # Where the layer before is followed its random words stay, elsewhere fresh ones come.
            anew = self._words.bernoulli(1.0 - sparsity.follow, _FOLLOW_DIGITS, state.shape)
            anew |= ~self._linked[layer][:, None, :]
            fresh = self._words.draw((_RATE_DIGITS, 1, chunk, half))
            fresh_kept = self._words.bernoulli(law.persistence, _KEEP_DIGITS, (1, chunk, half))
            for old, new, changed in ((planes, fresh, apart), (kept, fresh_kept, spare)):
                np.bitwise_xor(old, new, out=changed)
                changed &= anew
                old ^= changed
            digits = self._digits[layer]
            np.bitwise_and(planes[0], digits[0], out=state)
            state |= digits[-1]
            for place in range(1, _RATE_DIGITS):  # from the least digit: majority(state, random, digit)
                np.bitwise_xor(planes[place], state, out=spare)
                spare &= digits[place]
                state &= planes[place]
                state |= spare
            drawn[:, layer] = state.transpose(1, 0, 2)
            keep[:, layer] = kept.transpose(1, 0, 2)
        return drawn, keep

    def _fresh_quantiles(self) -> NDArray[np.uint16]:
        """Return the rate quantile of every unit, ``[layer, unit]``; linked units share theirs."""
        n_layers, _, half = self._linked.shape
        drawn = self._rng.integers(QUANTILES, size=(n_layers, 1, half * LANES), dtype=np.uint16)
        return self._along_links(np.repeat(drawn, 2, axis=1).reshape(n_layers, -1))

    def _along_links(self, values: NDArray[np.uint16]) -> NDArray[np.uint16]:
        for layer in range(1, values.shape[0]):
            linked = unpack(self._linked[layer].reshape(-1), values.shape[1])
            np.copyto(values[layer], values[layer - 1], where=linked)
        return values

    def _renew(self, probability: float) -> None:
        """Give units new rates with ``probability``; units joined by links change together."""
        chosen = self._along_links((self._rng.random(self._quantiles.shape) < probability).astype(np.uint16))
        np.copyto(self._quantiles, self._fresh_quantiles(), where=chosen != 0)
        self._digits = self._rate_digits()

    def _rate_digits(self) -> Words:
        """Return the digits of the rates, least first, packed: ``[layer, digit, half, 1, word]``.

        The last says which lanes have a rate of 1, whose digits are all set.
        """
        n_layers, _, half = self._linked.shape
        rates = self._model.table.draw(self._model.rungs, self._quantiles)
        dropped = 16 - _RATE_DIGITS
        noise = self._rng.integers(1 << dropped, size=rates.shape, dtype=np.uint16)
        rounded = (rates >> np.uint16(dropped)) + (
            noise + (rates & np.uint16((1 << dropped) - 1)) >> np.uint16(dropped)
        )
        rounded[:, self._model.block.n_units :] = 0  # lanes beyond the last unit never fire
        surely = rounded >> np.uint16(_RATE_DIGITS)
        rounded -= surely
        packed = np.empty((n_layers, _RATE_DIGITS + 1, 2, 1, half), dtype=np.uint64)
        for place in range(_RATE_DIGITS):
            packed[:, place] = pack(rounded & np.uint16(1 << place) != 0).reshape(n_layers, 2, 1, half)
        packed[:, -1] = pack(surely != 0).reshape(n_layers, 2, 1, half)
        return packed


def _read_only(array: NDArray[np.float32]) -> NDArray[np.float32]:
    array.flags.writeable = False
    return array
