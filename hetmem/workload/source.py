"""Where requests come from: a fixed batch, a table of lengths, a recorded trace, or a distribution.

A description is frozen, holds no random state, and gives the same table for the same arguments.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen

from hetmem import rng
from hetmem.errors import ConfigError, WorkloadError
from hetmem.units import to_s
from hetmem.workload.arrivals import arrival_times_ps
from hetmem.workload.lengths import JointQuantiles, spread
from hetmem.workload.request import IntArray, RequestTable, check_count
from hetmem.workload.traces import TraceFile, read_trace


@frozen
class Workload(ABC):
    """A source of requests; ``name`` is how tables and manifests call it."""

    name: str

    def requests(
        self,
        *,
        max_context: int | None,
        n: int | None = None,
        rate: float | None = None,
        cv: float = 1.0,
        seed: int,
        truncate: bool = False,
    ) -> RequestTable:
        """Return the requests of one run.

        Parameters
        ----------
        max_context : int or None
            Most tokens (prompt and output) of a sequence of the model; None is no limit.
        n : int, optional
            Requests that come in. By default those of the description; a distribution needs the number.
        rate : float, optional
            Requests per second of a Poisson process, or of a gamma process when ``cv`` is not one. Replaces a
            trace's own arrivals (the order stays; to keep the bursts, scale the trace's time instead). By
            default a trace keeps its arrivals and everything else is there at the start.
        cv : float
            Coefficient of variation of the gaps between arrivals, used with ``rate``.
        seed : int
            Seed of the streams ``workload.lengths`` and ``workload.arrivals``.
        truncate : bool
            Cut a request that exceeds ``max_context`` (:meth:`RequestTable.within_context`) instead of
            dropping it with the reason ``context``. A distribution never exceeds it.

        Raises
        ------
        ConfigError
            When a number is out of range, named ``requests``, ``rate``, ``cv`` or ``max_context``.
        WorkloadError
            When the description cannot give that many requests, or none within ``max_context``.
        """
        if n is not None:
            n = check_count("requests", n)
        table = self._draw(n, max_context, seed)
        if rate is not None:
            table = table.with_arrivals(arrival_times_ps(len(table), rate, seed, cv))
        return table.within_context(max_context, truncate)

    @abstractmethod
    def _draw(self, n: int | None, max_context: int | None, seed: int) -> RequestTable:
        """Return ``n`` requests with the description's own arrivals, or all at tick zero."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the workload is, as plain JSON values: for people and for a run's manifest."""


@frozen
class FixedBatch(Workload):
    """Requests that are all alike; ``batch`` of them unless told otherwise."""

    prompt: int
    output: int
    batch: int

    def _draw(self, n: int | None, max_context: int | None, seed: int) -> RequestTable:
        requests = n or self.batch
        return _at_start(np.full(requests, self.prompt), np.full(requests, self.output))

    def describe(self) -> dict[str, Any]:
        """Return the three numbers."""
        numbers = {"prompt": self.prompt, "output": self.output, "batch": self.batch}
        return {"name": self.name, "kind": "fixed", **numbers}


@frozen
class Recorded(Workload):
    """Requests read from a file; ``digest`` is the SHA-256 of its bytes, and tells two files apart."""

    path: str
    digest: str
    trace: TraceFile = field(repr=False, eq=False)

    def describe(self) -> dict[str, Any]:
        """Return the file, its digest and how its lengths and arrivals are distributed."""
        table = self.trace.table
        span_s = to_s(int(table.arrival_ps[-1] - table.arrival_ps[0]))
        return {
            "name": self.name,
            "kind": "trace" if isinstance(self, Trace) else "length table",
            "path": self.path,
            "format": self.trace.format,
            "sha256": self.digest,
            "requests": len(table),
            "prompt_tokens": spread(table.prompt_tokens),
            "output_tokens": spread(table.output_tokens),
            "span_s": span_s,
            "rate_per_s": (len(table) - 1) / span_s if span_s else None,
            "prefix_blocks": sum(map(len, table.prefix_blocks)) if table.prefix_blocks is not None else None,
        }


@frozen
class Trace(Recorded):
    """A file with arrivals: ``n`` takes the first by arrival."""

    def _draw(self, n: int | None, max_context: int | None, seed: int) -> RequestTable:
        table = self.trace.table
        if n is None:
            return table
        if n > len(table):
            raise WorkloadError(self.path, f"{n} requests asked for, but the trace holds {len(table)}")
        return table.head(n)


@frozen
class LengthTable(Recorded):
    """A file of length pairs: all rows in their order, or ``n`` of them shuffled with the seed.

    A row is not drawn again before every other has been: beyond the number of rows, the table is shuffled
    anew. A pair stays together. Arrivals that the file may have are not used.
    """

    def _draw(self, n: int | None, max_context: int | None, seed: int) -> RequestTable:
        table = self.trace.table
        order = np.argsort(table.id)
        if n is not None:
            generator = rng.stream(seed, "workload.lengths")
            rounds = -(-n // len(table))
            order = np.concatenate([order[generator.permutation(len(table))] for _ in range(rounds)])[:n]
        blocks = table.prefix_blocks
        return _at_start(
            table.prompt_tokens[order],
            table.output_tokens[order],
            None if blocks is None else tuple(blocks[i] for i in order.tolist()),
        )


@frozen
class Distribution(Workload):
    """Lengths drawn from a joint distribution, given that they fit in the model's context.

    ``about`` holds what :meth:`describe` says besides the tables: title, source, licence.
    """

    lengths: JointQuantiles
    about: tuple[tuple[str, str], ...] = ()

    def _draw(self, n: int | None, max_context: int | None, seed: int) -> RequestTable:
        if n is None:
            raise ConfigError("requests", f"expected a number of requests: {self.name} has no end of its own")
        try:
            return _at_start(*self.lengths.sample(n, rng.stream(seed, "workload.lengths"), max_context))
        except WorkloadError as error:
            raise WorkloadError(self.name, error.problem) from None

    def describe(self) -> dict[str, Any]:
        """Return source and licence, mean and percentiles, and the quantile tables themselves."""
        return {
            "name": self.name,
            "kind": "distribution",
            **dict(self.about),
            **self.lengths.describe(),
            "prompt_quantiles": list(self.lengths.prompt_tokens),
            "output_quantiles": [list(band) for band in self.lengths.output_tokens],
        }


def fixed(prompt: int, output: int, batch: int) -> FixedBatch:
    """Return ``batch`` requests of ``prompt`` and ``output`` tokens, all there at the start.

    Raises
    ------
    ConfigError
        When a number is not whole or below one.
    """
    prompt, output = check_count("prompt", prompt), check_count("output", output)
    return FixedBatch(f"fixed-{prompt}-{output}", prompt, output, check_count("batch", batch))


def table(path: str | Path) -> LengthTable:
    """Return the length pairs of a file, whatever arrivals it has besides.

    Raises
    ------
    WorkloadError
        As :func:`hetmem.workload.traces.read_trace`.
    """
    trace = read_trace(path)
    return LengthTable(Path(path).name, str(path), _sha256(path), trace)


def from_file(path: str | Path) -> Recorded:
    """Return a :class:`Trace` when the file has arrivals, else a :class:`LengthTable`.

    Raises
    ------
    WorkloadError
        As :func:`hetmem.workload.traces.read_trace`.
    """
    trace = read_trace(path)
    kind = Trace if trace.has_arrivals else LengthTable
    return kind(Path(path).name, str(path), _sha256(path), trace)


def _sha256(path: str | Path) -> str:
    import hashlib

    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _at_start(prompt: IntArray, output: IntArray, blocks: tuple[tuple[int, ...], ...] | None = None) -> RequestTable:
    return RequestTable.build(np.zeros(len(prompt), dtype=np.int64), prompt, output, blocks)
