"""A finished run: its tables, its summary, and how it is saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

from hetmem.errors import ConfigError
from hetmem.monitor.energy import Energy
from hetmem.monitor.perfetto import write_timeline
from hetmem.monitor.save import save_tables
from hetmem.monitor.table import Table
from hetmem.study.footprint import Footprint
from hetmem.units import to_s

if TYPE_CHECKING:
    from hetmem.study.scenario import Scenario

PERCENTILES = (50, 90, 99)
SERVED = (
    "makespan_s", "output_tokens_per_s", "steps", "preemptions", "kv_blocks", "batch", "refused_on_arrival",
    "prefix_blocks", "attention", "stack",
)  # fmt: skip


@frozen(eq=False, repr=False)
class Run:
    """What a simulation returns.

    Attributes
    ----------
    scenario
        What was asked.
    requests, steps, utilization
        Tables with a row per request, per step, and per step the ticks that each server was busy.
    tasks
        A row per task, or None where the run was not traced.
    energy
        Femtojoules by component.
    elapsed_ps
        From time zero to the last event.
    busy_ps
        Ticks that each server was busy.
    output_tokens
        Tokens of the requests that finished.
    tables
        Further tables by name: the system's own, and where speculated tokens went.
    counters
        Steps, events, preemptions and the KV blocks of the run, and what the system counted.
    footprint
        Carbon, cost and wear of the SSD.
    """

    scenario: "Scenario"
    requests: Table
    steps: Table
    utilization: Table
    tasks: Table | None
    energy: Energy
    elapsed_ps: int
    busy_ps: Mapping[str, int]
    output_tokens: int
    counters: Mapping[str, int]
    tables: Mapping[str, Table]
    footprint: Footprint
    configuration: Mapping[str, Any]

    def __repr__(self) -> str:
        names = ", ".join(str(name) for name in self.scenario.labels().values() if name is not None)
        done = int((self.requests.column("status") == "done").sum())
        return f"<Run of {names}: {done} of {len(self.requests)} requests, {self.tokens_per_s:.4g} tokens/s>"

    @property
    def elapsed_s(self) -> float:
        """Length of the run in seconds."""
        return to_s(self.elapsed_ps)

    @property
    def makespan_s(self) -> float:
        """Seconds from time zero until the last request finished."""
        finish = self.requests.column("finish_ps")
        return to_s(int(finish.max())) if len(finish) else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second, prefill included, until the last request finished."""
        return self.output_tokens / self.makespan_s

    def latencies_s(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return TTFT, TPOT and latency of the finished requests, in seconds.

        TTFT counts from arrival to the first token, TPOT is the mean gap between the tokens after it (requests
        of one token have none), latency ends with the last token.
        """
        done = self.requests.column("finish_ps") >= 0
        arrival, first, finish, output = (
            self.requests.column(name)[done].astype(np.float64)
            for name in ("arrival_ps", "first_token_ps", "finish_ps", "output_tokens")
        )
        several = output > 1
        return {
            "ttft_s": (first - arrival) * 1e-12,
            "tpot_s": ((finish - first)[several] / (output[several] - 1)) * 1e-12,
            "latency_s": (finish - arrival) * 1e-12,
        }

    def summary(self) -> dict[str, Any]:
        """Return the row that ``hetmem run`` and ``hetmem compare`` print."""
        status = self.requests.column("status")
        done = int((status == "done").sum())
        shares = {name: busy / self.elapsed_ps for name, busy in self.busy_ps.items()}
        return {
            **self.scenario.labels(),
            "tokens_per_s": self.tokens_per_s,
            "energy_per_token_j": self.energy.total_j / self.output_tokens,
            "energy_phase_j": self.energy.phase_j(),
            **self.footprint.per_token(self.output_tokens),
            **{name: _spread(values) for name, values in self.latencies_s().items()},
            "time_share": shares,
            "bound": max(shares, key=lambda name: shares[name]),
            "requests": {"in": len(self.requests), "done": done, "dropped": len(self.requests) - done},
            "refused": None,
            **self._serving(),
        }

    def _serving(self) -> dict[str, Any]:
        """Return what a serving engine reports, and how attention was composed on which stack."""
        blocks, counters, running = "kv_blocks_", self.counters, self.steps.column("running")
        asked = counters.get("prefix_blocks_asked")
        values = (
            self.makespan_s,
            self.tokens_per_s,
            counters["steps"],
            counters["preemptions"],
            {name: counters[blocks + name] for name in ("total", "peak", "allocated", "freed", "held")},
            {"mean": float(running.mean()), "max": int(running.max())},
            counters["refused_on_arrival"],
            None if asked is None else {"asked": asked, "reused": counters["prefix_blocks_reused"]},
            self.configuration["serving"]["attention"],
            self.configuration["stack"],
        )
        return dict(zip(SERVED, values, strict=True))

    def save(self, directory: str | Path) -> Path:
        """Write Parquet tables and a manifest to ``directory``; the manifest comes last.

        Raises
        ------
        ConfigError
            When the directory holds a run already.
        """
        return save_tables(Path(directory), self.saved_tables(), self.manifest())

    def saved_tables(self) -> dict[str, Any]:
        """Return the tables of a saved run, by name."""
        tables: dict[str, Any] = {"requests": self.requests, "steps": self.steps, "utilization": self.utilization}
        if self.tasks is not None:
            tables["tasks"] = self.tasks
        return tables | {**self.tables, "energy": self.energy}

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest of a saved run says."""
        return {
            "configuration": self.configuration,
            "summary": self.summary(),
            "counters": dict(self.counters),
            "not_counted": list(self.energy.not_counted),
        }

    def timeline(self, path: str | Path) -> Path:
        """Write the tasks of a traced run as a timeline that Perfetto and Chrome open.

        Raises
        ------
        ConfigError
            When the run was not traced.
        """
        if self.tasks is None:
            raise ConfigError("trace", "the run kept no tasks; simulate(..., trace=True) does")
        return write_timeline(Path(path), self.tasks, steps=self.steps, servers=tuple(self.busy_ps))

    def _repr_html_(self) -> str:
        import pandas as pd

        row = {k: v for k, v in self.summary().items() if not isinstance(v, dict)}
        return str(pd.DataFrame([row]).to_html(index=False))


def _spread(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """Return mean and percentiles, None of each where there is no value."""
    names = ("mean", *(f"p{p}" for p in PERCENTILES))
    if not len(values):
        return dict.fromkeys(names)
    return dict(zip(names, map(float, (values.mean(), *np.percentile(values, PERCENTILES))), strict=True))
