"""Figures of a run by name: the columns of a sweep's dataset, and what a search optimises and bounds.

A further figure is a :class:`Metric` given to :func:`register`; it then is a column, an objective and a budget.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from hetmem.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from hetmem.study.run import Run

Figure = Callable[["Run", Mapping[str, Any]], float | None]
STATISTICS = ("mean", "p50", "p90", "p99")
OBJECTIVES = ("tokens_per_s", "power_w")  # what a search looks for unless told otherwise


@frozen
class Metric:
    """One figure of a run.

    Attributes
    ----------
    name
        With its unit at the end; the column of a dataset.
    label
        What axes and tables call it.
    goal
        Which way is better.
    of
        Gives the figure from the run and its summary, or None where the run has none.
    """

    name: str
    label: str
    goal: Literal["max", "min"]
    of: Figure

    def excess(self, value: float, limit: float) -> float:
        """Return how far ``value`` is beyond ``limit``, relative to it; at most 0 where it is not."""
        over = value - limit if self.goal == "min" else limit - value
        return over / abs(limit) if limit else over


METRICS: dict[str, Metric] = {}


def _cost(summary: Any) -> float | None:
    """Return capital and energy together, or None where a part has no price."""
    parts = summary["cost_usd_per_mtoken"]
    return None if parts["capital"] is None else parts["capital"] + parts["energy"]


def register(metric: Metric) -> Metric:
    """Make ``metric`` known by its name.

    Raises
    ------
    ConfigError
        When another has that name.
    """
    if metric.name in METRICS:
        raise ConfigError("metric", f"{metric.name} is registered already")
    METRICS[metric.name] = metric
    return metric


def metric(name: str) -> Metric:
    """Return the metric called ``name``.

    Raises
    ------
    UnknownNameError
        With a suggestion.
    """
    if name not in METRICS:
        raise UnknownNameError("metric", name, tuple(METRICS))
    return METRICS[name]


def measure(run: "Run", summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return every metric of a run with its summary."""
    return {name: one.of(run, summary) for name, one in METRICS.items()}


def _of_spread(key: str, statistic: str) -> Figure:
    return lambda run, summary: summary[key][statistic]


register(Metric("tokens_per_s", "throughput (tokens/s)", "max", lambda run, summary: summary["tokens_per_s"]))
register(Metric("energy_per_token_j", "energy (J/token)", "min", lambda run, summary: summary["energy_per_token_j"]))
register(Metric("power_w", "mean power (W)", "min", lambda run, summary: run.energy.total_j / run.elapsed_s))
register(
    Metric(
        "carbon_operational_g_per_token", "operational carbon (g/token)", "min",
        lambda run, summary: summary["carbon_operational_g_per_token"],
    )
)  # fmt: skip
register(
    Metric(
        "carbon_embodied_g_per_token_high", "embodied carbon, high end (g/token)", "min",
        lambda run, summary: (summary["carbon_embodied_g_per_token"] or {}).get("high"),
    )
)  # fmt: skip
register(Metric("cost_usd_per_mtoken", "cost ($/Mtoken)", "min", lambda run, summary: _cost(summary)))
register(Metric("makespan_s", "makespan (s)", "min", lambda run, summary: run.makespan_s))
for _key, _what in (("ttft_s", "time to first token"), ("tpot_s", "time per output token"), ("latency_s", "latency")):
    for _statistic in STATISTICS:
        register(Metric(f"{_key}_{_statistic}", f"{_what}, {_statistic} (s)", "min", _of_spread(_key, _statistic)))
