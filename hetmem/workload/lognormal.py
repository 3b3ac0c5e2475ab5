"""Equal prompts with lognormal output lengths: how a batch whose requests finish at different times is assumed.

PAPI (ASPLOS 2025) runs Dolly prompts and publishes no lengths; the tool's default for its figures is assumed here.
"""

from typing import Any

import numpy as np
from attrs import field, frozen, validators

from hetmem import rng
from hetmem.workload.request import RequestTable, check_count
from hetmem.workload.source import Workload
from hetmem.workload.speculation import lognormal_lengths


@frozen
class LognormalOutput(Workload):
    """``batch`` requests of ``prompt`` tokens whose outputs are lognormal with ``mean`` and log-deviation ``sigma``."""

    prompt: int
    mean: float = field(validator=validators.gt(0))
    sigma: float = field(validator=validators.ge(0))
    batch: int

    def _draw(self, n: int | None, max_context: int | None, seed: int) -> RequestTable:
        requests = n or self.batch
        lengths = lognormal_lengths(self.mean, self.sigma, requests, rng.stream(seed, "workload.lengths"))
        return RequestTable.build(
            np.zeros(requests, dtype=np.int64), np.full(requests, self.prompt, dtype=np.int64), lengths
        )

    def describe(self) -> dict[str, Any]:
        """Return the four numbers."""
        numbers = {"prompt": self.prompt, "mean": self.mean, "sigma": self.sigma, "batch": self.batch}
        return {"name": self.name, "kind": "lognormal", **numbers}


def lognormal(prompt: int, mean: float, sigma: float, batch: int) -> LognormalOutput:
    """Return ``batch`` requests of ``prompt`` tokens with lognormal outputs, all there at the start.

    Raises
    ------
    ConfigError
        When a count is not whole or below one.
    """
    name = f"lognormal-{prompt}-{mean:g}-{sigma:g}"
    return LognormalOutput(name, check_count("prompt", prompt), mean, sigma, check_count("batch", batch))
