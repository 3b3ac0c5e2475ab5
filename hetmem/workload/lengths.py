"""Joint distribution of prompt and output lengths, as quantile tables small enough to print.

Prompts follow a table of their quantiles. The prompts' probabilities are cut into bands, and each band has a
table of the quantiles of its outputs, so that what a long prompt does to the output is kept. Both are sampled
by inverse transform with linear interpolation (Devroye, Non-Uniform Random Variate Generation, 1986, ch. II).
Ignored: what happens inside a band, where prompt and output are independent, and any dependence between
successive requests.

The probabilities of a table are those of the cosine grid, (1 - cos(pi i / m)) / 2 for i = 0 … m, dense at
both ends: lengths have long tails, and an evenly spaced table would stretch its last interval over all of
them. So the number of entries of a table says where they belong.

Measured against the two traces behind the built-in workloads (41 prompt entries, 12 bands of 21 outputs):
means within 1 %, medians and 5th percentiles within 3 %, 95th percentiles within 8 %. Given a context of
4,096 tokens, means stay within 4 %, 95th percentiles within 8 %, the correlation within 0.08.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from hetmem.errors import WorkloadError
from hetmem.workload.request import IntArray, check_count

FloatArray = npt.NDArray[np.float64]

_DRAWS_PER_REQUEST = 1000  # a context that so few requests fit in is refused: they would not be this workload


@cache
def cosine_grid(points: int) -> tuple[float, ...]:
    """Return the ``points`` probabilities, from 0 to 1, of a quantile table with that many entries.

    >>> [round(p, 3) for p in cosine_grid(5)]
    [0.0, 0.146, 0.5, 0.854, 1.0]
    """
    return tuple(((1.0 - np.cos(np.pi * np.arange(points) / (points - 1))) / 2.0).tolist())


def _quantile(p: FloatArray, table: tuple[float, ...]) -> IntArray:
    return np.rint(np.interp(p, cosine_grid(len(table)), table)).astype(np.int64)


def _quantile_table(values: Iterable[float]) -> tuple[float, ...]:
    table = tuple(float(value) for value in values)
    if len(table) < 2 or table[0] < 1 or not np.all(np.isfinite(table)) or list(table) != sorted(table):
        raise WorkloadError("quantiles", f"expected two or more counts from 1 up that never fall, not {list(table)}")
    return table


def _band_tables(bands: Iterable[Iterable[float]]) -> tuple[tuple[float, ...], ...]:
    tables = tuple(_quantile_table(band) for band in bands)
    if not tables:
        raise WorkloadError("quantiles", "expected one or more bands of output quantiles")
    return tables


@frozen
class JointQuantiles:
    """Prompt and output lengths by quantile tables.

    Attributes
    ----------
    prompt_tokens : tuple of float
        Quantiles of the prompt at the probabilities of :func:`cosine_grid`.
    output_tokens : tuple of tuples of float
        Per band of prompts, the quantiles of the output. The edges of the bands are prompt probabilities, on
        the cosine grid too.

    Raises
    ------
    WorkloadError
        When a table falls somewhere, or begins below one token.
    """

    prompt_tokens: tuple[float, ...] = field(converter=_quantile_table)
    output_tokens: tuple[tuple[float, ...], ...] = field(converter=_band_tables)

    @classmethod
    def fit(
        cls,
        prompt_tokens: Sequence[int] | IntArray,
        output_tokens: Sequence[int] | IntArray,
        *,
        prompt_points: int = 41,
        bands: int = 12,
        output_points: int = 21,
    ) -> "JointQuantiles":
        """Return the distribution of observed pairs; table entries are rounded to whole tokens.

        Bands hold equal ranks, not equal values, so that many requests of one length do not upset them.

        Raises
        ------
        WorkloadError
            When there are too few pairs to give each band one.
        """
        prompt, output = np.maximum(prompt_tokens, 1), np.maximum(output_tokens, 1)
        order = np.argsort(prompt, kind="stable")
        edges = np.rint(np.array(cosine_grid(bands + 1)) * len(order)).astype(int).tolist()
        if any(low >= high for low, high in pairwise(edges)):
            raise WorkloadError("quantiles", f"{len(order)} requests are too few for {bands} bands")
        return cls(
            np.rint(np.quantile(prompt, cosine_grid(prompt_points))).tolist(),
            [
                np.rint(np.quantile(output[order[low:high]], cosine_grid(output_points))).tolist()
                for low, high in pairwise(edges)
            ],
        )

    def lengths(self, u: npt.ArrayLike, v: npt.ArrayLike) -> tuple[IntArray, IntArray]:
        """Return the prompt and output lengths at probabilities ``u`` and, inside the band of ``u``, ``v``.

        Parameters
        ----------
        u, v : array_like of float, shape (n,)
            From 0 to 1.

        Returns
        -------
        prompt_tokens, output_tokens : ndarray of int64, shape (n,)
        """
        u, v = np.asarray(u, dtype=float), np.asarray(v, dtype=float)
        prompt = _quantile(u, self.prompt_tokens)
        edges = cosine_grid(len(self.output_tokens) + 1)
        band = np.searchsorted(edges[1:-1], u, side="right")
        output = np.empty_like(prompt)
        for number, table in enumerate(self.output_tokens):
            here = band == number
            output[here] = _quantile(v[here], table)
        return prompt, output

    def sample(
        self, n: int, generator: np.random.Generator, max_context: int | None = None
    ) -> tuple[IntArray, IntArray]:
        """Return ``n`` prompt and output lengths, conditioned on their sum being at most ``max_context``.

        A pair that is too long is drawn again, both lengths, so that the pairs follow the joint distribution
        *given* that they fit. A longer draw from an equal generator begins with a shorter one.

        Raises
        ------
        WorkloadError
            When fewer than one pair in a thousand fits.
        """
        if max_context is not None:
            check_count("max_context", max_context, least=2)
        found: list[FloatArray] = []
        missing, left = n, _DRAWS_PER_REQUEST * n
        while missing > 0 and left > 0:
            draws = generator.random((min(max(2 * missing, 64), left), 2))
            left -= len(draws)
            prompt, output = self.lengths(draws[:, 0], draws[:, 1])
            fits = draws if max_context is None else draws[prompt + output <= max_context]
            found.append(fits[:missing])
            missing -= len(found[-1])
        if missing > 0:
            few = f"fewer than one request in {_DRAWS_PER_REQUEST}"
            raise WorkloadError("lengths", f"{few} fits in a context of {max_context} tokens")
        kept = np.concatenate(found) if found else np.empty((0, 2))
        return self.lengths(kept[:, 0], kept[:, 1])

    def describe(self) -> dict[str, Any]:
        """Return mean and percentiles of both lengths, integrated on an even grid of probabilities."""
        u, v = np.meshgrid((np.arange(500) + 0.5) / 500, (np.arange(200) + 0.5) / 200)
        prompt, output = self.lengths(u.ravel(), v.ravel())
        longest = max(table[-1] for table in self.output_tokens)
        return {
            "prompt_tokens": spread(prompt) | {"max": self.prompt_tokens[-1]},
            "output_tokens": spread(output) | {"max": longest},
        }


def spread(values: npt.ArrayLike) -> dict[str, float]:
    """Return mean, 5th, 50th and 95th percentile and maximum of ``values``, rounded to a tenth."""
    values = np.asarray(values)
    p5, p50, p95 = np.quantile(values, (0.05, 0.5, 0.95))
    named = {"mean": values.mean(), "p5": p5, "p50": p50, "p95": p95, "max": values.max()}
    return {name: round(float(value), 1) for name, value in named.items()}
