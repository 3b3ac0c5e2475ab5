"""The stream of requests a run is fed: when each arrives, how long its prompt is, how much it generates.

A table is a few integer columns, whatever its length. Modelled: arrival, prompt and output lengths, and the
hashes of the prompt's prefix blocks where a trace has them. Ignored: the text, sampling, and users who stop
early (an output length is what was, or will be, generated).
"""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from hetmem.errors import ConfigError, WorkloadError
from hetmem.units import MAX_PS

IntArray = npt.NDArray[np.int64]

DROP_CONTEXT = "context"  # the reason kept with a request that is longer than the model's context
PREFIX_BLOCK_TOKENS = 512  # tokens behind one prefix hash: Qin et al., Mooncake, FAST'25, the released traces
MAX_TOKENS = 2**31 - 1


def check_count(name: str, value: object, least: int = 1) -> int:
    """Return ``value`` as an int.

    Raises
    ------
    ConfigError
        When it is not a whole number of at least ``least``; it names the field ``name``.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= MAX_TOKENS:
        raise ConfigError(name, f"expected a whole number of at least {least}, not {value!r}")
    return int(value)


def check_positive(name: str, value: float, what: str) -> float:
    """Return ``value`` as a float, or raise :class:`ConfigError` when it is not finite and above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        raise ConfigError(name, f"expected {what} above zero, not {value!r}")
    return float(value)


def _column(values: Any) -> IntArray:
    """Return a read-only int64 column; an array that others may write to is copied."""
    given = np.asarray(values)
    if given.size and given.dtype.kind not in "iu":
        raise WorkloadError("requests", f"expected whole numbers, not {given.dtype} values")
    column = given.astype(np.int64, copy=given.flags.writeable)
    column.flags.writeable = False
    return column


_BY_VALUE = attrs.cmp_using(eq=np.array_equal)


@frozen(kw_only=True)
class RequestTable:
    """Requests in order of arrival, as columns.

    Attributes
    ----------
    arrival_ps : ndarray of int64, shape (n,)
        Ticks from the start of the run, never falling; equal arrivals keep the order they were given in.
    prompt_tokens, output_tokens : ndarray of int64, shape (n,)
        At least one each.
    id : ndarray of int64, shape (n,)
        Distinct; the position in the file or draw, counted from zero before sorting.
    prefix_blocks : tuple of tuples of int, or None
        Per request, the hash of each block of :data:`PREFIX_BLOCK_TOKENS` prompt tokens, each hash standing
        for the block *and all before it*; None when nothing is known about shared prefixes.
    dropped : tuple of (id, reason)
        Requests that came in and are not in the columns.

    Raises
    ------
    WorkloadError
        When the columns differ in length, arrivals are unsorted, a length is below one or an id occurs twice.
    """

    arrival_ps: IntArray = field(converter=_column, eq=_BY_VALUE)
    prompt_tokens: IntArray = field(converter=_column, eq=_BY_VALUE)
    output_tokens: IntArray = field(converter=_column, eq=_BY_VALUE)
    id: IntArray = field(converter=_column, eq=_BY_VALUE)
    prefix_blocks: tuple[tuple[int, ...], ...] | None = None
    dropped: tuple[tuple[int, str], ...] = ()

    def __attrs_post_init__(self) -> None:
        sizes = {len(self.arrival_ps), len(self.prompt_tokens), len(self.output_tokens), len(self.id)}
        if self.prefix_blocks is not None:
            sizes.add(len(self.prefix_blocks))
        if len(sizes) > 1:
            raise WorkloadError("requests", f"columns differ in length: {sorted(sizes)}")
        if len(self.arrival_ps) == 0:
            return
        if self.arrival_ps[0] < 0 or np.any(self.arrival_ps[1:] < self.arrival_ps[:-1]):
            raise WorkloadError("requests", "arrival_ps must start at zero or later and never fall")
        for name, column in (("prompt_tokens", self.prompt_tokens), ("output_tokens", self.output_tokens)):
            if column.min() < 1 or column.max() > MAX_TOKENS:
                raise WorkloadError("requests", f"{name} must lie between 1 and {MAX_TOKENS}")
        if len(np.unique(self.id)) < len(self.id):
            raise WorkloadError("requests", "id must not occur twice")

    @classmethod
    def build(
        cls,
        arrival_ps: npt.ArrayLike,
        prompt_tokens: npt.ArrayLike,
        output_tokens: npt.ArrayLike,
        prefix_blocks: Sequence[tuple[int, ...]] | None = None,
    ) -> "RequestTable":
        """Return the table of requests given in any order; ``id`` is the position given.

        Sorted by arrival, stably. A prompt or output of zero tokens becomes one: a model reads at least a
        start-of-text token, and a request that generates nothing takes no decode step.
        """
        arrival, prompt, output = _column(arrival_ps), _column(prompt_tokens), _column(output_tokens)
        if any(column.size and column.min() < 0 for column in (prompt, output)):
            raise WorkloadError("requests", "lengths must not be negative")
        table = cls(
            arrival_ps=np.zeros_like(arrival),
            prompt_tokens=np.maximum(prompt, 1),
            output_tokens=np.maximum(output, 1),
            id=np.arange(len(arrival)),
            prefix_blocks=None if prefix_blocks is None else tuple(prefix_blocks),
        )
        return table.with_arrivals(arrival)

    def __len__(self) -> int:
        return len(self.id)

    @property
    def n_in(self) -> int:
        """Requests that came in: those in the table and those dropped."""
        return len(self) + len(self.dropped)

    def take(self, index: npt.NDArray[np.bool_] | IntArray) -> "RequestTable":
        """Return the rows of ``index`` (a mask, or positions in rising order); ``dropped`` is kept."""
        at = np.flatnonzero(index) if index.dtype == np.bool_ else index.astype(np.intp)
        return self._at(at, self.arrival_ps[at])

    def _at(self, at: npt.NDArray[np.integer[Any]], arrival_ps: IntArray) -> "RequestTable":
        blocks = self.prefix_blocks
        return attrs.evolve(
            self,
            arrival_ps=arrival_ps,
            prompt_tokens=self.prompt_tokens[at],
            output_tokens=self.output_tokens[at],
            id=self.id[at],
            prefix_blocks=None if blocks is None else tuple(blocks[i] for i in at.tolist()),
        )

    def head(self, n: int) -> "RequestTable":
        """Return the first ``n`` requests by arrival (all of them when there are fewer)."""
        return self.take(np.arange(min(check_count("requests", n), len(self))))

    def with_arrivals(self, arrival_ps: npt.ArrayLike) -> "RequestTable":
        """Return the table with other arrivals, one for each row in the present order, sorted anew."""
        arrival = _column(arrival_ps)
        if len(arrival) != len(self):
            raise WorkloadError("requests", f"{len(self)} requests, but {len(arrival)} arrivals")
        order = np.argsort(arrival, kind="stable")
        return self._at(order, arrival[order])

    def scaled(self, *, time: float = 1.0, size: float = 1.0) -> "RequestTable":
        """Return the table with arrivals times ``time`` and lengths times ``size``.

        ``time=0.5`` doubles the rate and keeps the shape of every burst. Lengths are rounded to the nearest
        token, at least one. Where a prompt shrinks, the prefix blocks beyond it go; where it grows, the added
        tokens belong to no block.

        Raises
        ------
        ConfigError
            When a factor is not above zero, or takes a column beyond its range.
        """
        time = check_positive("time", time, "a factor")
        size = check_positive("size", size, "a factor")
        arrival = self.arrival_ps
        if time != 1.0:
            if len(self) and float(arrival[-1]) * time >= MAX_PS:
                raise ConfigError("time", f"a factor of {time!r} takes arrivals beyond {MAX_PS} ps")
            arrival = np.rint(arrival * time).astype(np.int64)
        longest = max(int(self.prompt_tokens.max()), int(self.output_tokens.max())) if len(self) else 0
        if longest * size > MAX_TOKENS:
            raise ConfigError("size", f"a factor of {size!r} takes lengths beyond {MAX_TOKENS} tokens")
        return attrs.evolve(self, arrival_ps=arrival)._with_lengths(
            np.maximum(np.rint(self.prompt_tokens * size).astype(np.int64), 1),
            np.maximum(np.rint(self.output_tokens * size).astype(np.int64), 1),
        )

    def within_context(self, max_context: int | None, truncate: bool = False) -> "RequestTable":
        """Return the table with every prompt + output at most ``max_context`` tokens (None: no limit).

        A request that is longer is dropped with the reason ``context``. With ``truncate`` it is kept and cut
        instead: first its output, down to one token, then its prompt, from the end.

        Raises
        ------
        ConfigError
            When ``max_context`` holds no prompt token and output token together.
        """
        if max_context is None:
            return self
        check_count("max_context", max_context, least=2)
        if truncate:
            prompt = np.minimum(self.prompt_tokens, max_context - 1)
            return self._with_lengths(prompt, np.minimum(self.output_tokens, max_context - prompt))
        fits = self.prompt_tokens + self.output_tokens <= max_context
        if fits.all():
            return self
        dropped = tuple((number, DROP_CONTEXT) for number in self.id[~fits].tolist())
        return attrs.evolve(self.take(fits), dropped=self.dropped + dropped)

    def _with_lengths(self, prompt: IntArray, output: IntArray) -> "RequestTable":
        blocks = self.prefix_blocks
        if blocks is not None:
            kept = -(-prompt // PREFIX_BLOCK_TOKENS)
            shrunk = prompt < self.prompt_tokens
            blocks = tuple(
                row[:n] if cut else row for row, n, cut in zip(blocks, kept.tolist(), shrunk.tolist(), strict=True)
            )
        return attrs.evolve(self, prompt_tokens=prompt, output_tokens=output, prefix_blocks=blocks)
