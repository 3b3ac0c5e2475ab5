"""Pictures of runs and comparisons: each function takes an ``ax`` (or makes one) and returns it.

What a picture compares is given as :class:`~hetmem.study.run.Run` objects or as the rows that ``compare`` and its
``--json`` give; a refused row keeps its place. Labels name only what differs between the results. Every picture is
drawn in the style ``hetmem/monitor/hetmem.mplstyle``; to lay out several in one figure, make it inside :func:`style`.
Matplotlib is imported when a picture is drawn.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hetmem.errors import ConfigError, UnknownNameError
from hetmem.study.run import PERCENTILES, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.ticker import Formatter

Row = Mapping[str, Any]
Result = Run | Row

LATENCIES = {"ttft_s": "time to first token (s)", "tpot_s": "time per output token (s)", "latency_s": "latency (s)"}
TIME_BINS = 240

_STYLE = "hetmem.monitor.hetmem"
_NAMES = ("system", "assumptions", "dimm_preset", "model", "workload")
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "D", "s", "^", "v", "P")
_HATCHES = ("", "///", "...")
_NOTE = "#555555"
_ROW_IN = 0.24  # inches that a row of text takes


@contextmanager
def style() -> Iterator[None]:
    """Enter the style in which hetmem draws, for figures of several axes and for saving them."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    interactive = mpl.is_interactive()
    try:
        with plt.style.context(_STYLE):
            try:
                yield
            finally:
                interactive = mpl.is_interactive()
    finally:
        # The first figure loads the backend; a notebook's then turns interactive mode on, which leaving a style undoes.
        mpl.interactive(interactive)


def throughput(results: Iterable[Result], *, ax: "Axes | None" = None) -> "Axes":
    """Draw the generated tokens per second of each result, on a logarithmic axis with the value beside the dot.

    Parameters
    ----------
    results
        Runs or rows of a comparison, drawn from top to bottom.
    ax
        Where to draw; by default a new figure.

    Raises
    ------
    ConfigError
        When there is no result.
    """
    rows = _rows(results)
    with _axes(ax, (6.4, 1.0 + _ROW_IN * len(rows))) as ax:
        colours = _colour_by(row["system"] for row in rows)
        for y, row in enumerate(rows):
            if row["refused"] is not None:
                continue
            value = row["tokens_per_s"]
            ax.plot(value, y, "o", color=colours[row["system"]])
            ax.annotate(_short(value), (value, y), (6, 0), textcoords="offset points", va="center", fontsize=8)
        ax.margins(x=0.14)
        _log_axis(ax, "x")
        ax.set_xlabel("throughput (tokens/s)")
        _list_rows(ax, rows)
    return ax


def throughput_against_batch(by_batch: Mapping[int, Iterable[Result]], *, ax: "Axes | None" = None) -> "Axes":
    """Draw throughput against batch, a line per system, assumption set and DIMM preset; see :func:`throughput_against`.

    Parameters
    ----------
    by_batch
        For each batch the results, such as ``compare(..., batch=batch).rows``.
    """
    return throughput_against("batch (sequences)", by_batch, ax=ax)


def throughput_against(xlabel: str, points: Mapping[int, Iterable[Result]], *, ax: "Axes | None" = None) -> "Axes":
    """Draw tokens per second against a quantity that was swept, on two logarithmic axes.

    Colour tells the system, the line the assumption set, the marker the DIMM preset. A cross in the strip
    at the foot marks where a system refused, under one assumption set or preset at least.

    Parameters
    ----------
    xlabel
        The quantity and its unit.
    points
        For each of its values, above zero, the results there.

    Raises
    ------
    ConfigError
        When there is no point, a value is not above zero, or two results of one value have the same names.
    """
    series = _series(points)
    rows = [row for line in series.values() for row in line.values()]
    with _axes(ax, (7.2, 3.8)) as ax:
        names = _labels(rows)
        colours = _colour_by(row["system"] for row in rows)
        lines = _assign((row["assumptions"] for row in rows), _LINES)
        markers = _assign((row["dimm_preset"] for row in rows), _MARKERS)
        refusals: list[tuple[float, str]] = []
        for key, line in series.items():
            row = next(iter(line.values()))
            look = {"color": colours[row["system"]], "linestyle": lines[row["assumptions"]],
                    "marker": markers[row["dimm_preset"]], "label": names[key]}  # fmt: skip
            measured = [(x, one["tokens_per_s"]) for x, one in line.items() if one["refused"] is None]
            ax.plot([x for x, _ in measured], [y for _, y in measured], **look)
            refusals += [(x, look["color"]) for x, one in line.items() if one["refused"] is not None]
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(points), labels=[f"{x:g}" for x in sorted(points)])
        ax.minorticks_off()
        _log_axis(ax, "y")
        if refusals:
            _strip_of_refusals(ax, refusals)
        ax.set_xlabel(xlabel)
        ax.set_ylabel("throughput (tokens/s)")
        _grid(ax, "both")
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.2)
    return ax


def latency_percentiles(results: Iterable[Result], metric: str = "latency_s", *, ax: "Axes | None" = None) -> "Axes":
    """Draw the 50th, 90th and 99th percentile of a latency for each result, on a logarithmic axis.

    Parameters
    ----------
    results
        Runs or rows of a comparison, drawn from top to bottom.
    metric
        ``"ttft_s"``, ``"tpot_s"`` or ``"latency_s"``, as in the rows.
    ax
        Where to draw; by default a new figure.

    Raises
    ------
    ConfigError
        When there is no result.
    UnknownNameError
        For another metric.
    """
    if metric not in LATENCIES:
        raise UnknownNameError("latency", metric, tuple(LATENCIES))
    rows = _rows(results)
    with _axes(ax, (6.4, 1.2 + _ROW_IN * len(rows))) as ax:
        from matplotlib.lines import Line2D

        colours = _colour_by(row["system"] for row in rows)
        # Concentric, so that percentiles that coincide can all be seen.
        looks: tuple[dict[str, Any], ...] = (
            {"marker": "o", "markersize": 4.5},
            {"marker": "o", "markersize": 8, "markerfacecolor": "none"},
            {"marker": "|", "markersize": 13, "markeredgewidth": 1.6},
        )
        for y, row in enumerate(rows):
            values = [] if row["refused"] is not None else [row[metric][f"p{p}"] for p in PERCENTILES]
            if not values or values[0] is None:
                continue
            ax.plot(values, [y] * len(values), color=colours[row["system"]], linewidth=1.2)
            for value, look in zip(values, looks, strict=True):
                ax.plot(value, y, color=colours[row["system"]], linestyle="", **look)
        ax.margins(x=0.06)
        _log_axis(ax, "x")
        ax.set_xlabel(LATENCIES[metric])
        _list_rows(ax, rows, missing=[row["refused"] is None and row[metric]["p50"] is None for row in rows])
        keys = [
            Line2D([], [], color=_NOTE, linestyle="", label=f"p{p}", **look)
            for p, look in zip(PERCENTILES, looks, strict=True)
        ]
        ax.legend(handles=keys, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=0.2)
    return ax


def utilization(
    run: Run, *, servers: Sequence[str] | None = None, bins: int = TIME_BINS, ax: "Axes | None" = None
) -> "Axes":
    """Draw how busy each server was over the time of a run: a band per server, its colour the busy share.

    Servers that were busy for the same ticks in every step, such as balanced DIMMs, share one band.

    Parameters
    ----------
    run
        The run.
    servers
        Which to draw, from top to bottom; by default all, in the order of the machine.
    bins
        The most intervals of time. A run of no more steps is drawn step by step; a longer one in ``bins`` equal
        intervals, a step's busy ticks spread evenly over it.
    ax
        Where to draw; by default a new figure. The colour bar takes its room from it.

    Raises
    ------
    ConfigError
        When the run has no step or ``bins`` is below one.
    UnknownNameError
        For a server that the machine does not have.
    """
    if bins < 1:
        raise ConfigError("bins", f"expected a whole number of at least 1, not {bins!r}")
    known = tuple(run.busy_ps)
    for name in servers or ():
        if name not in known:
            raise UnknownNameError("server", name, known)
    if not len(run.utilization):
        raise ConfigError("utilization", "the run has no step")
    bands = _bands({name: run.utilization.column(name) for name in servers or known})
    ends = run.utilization.column("end_ps")
    edges_ps, shares = _binned(ends, np.array(list(bands.values())), bins)
    with _axes(ax, (7.2, 1.1 + _ROW_IN * len(bands))) as ax:
        mesh = ax.pcolormesh(edges_ps * 1e-12, np.arange(len(bands) + 1) - 0.5, 100 * shares, vmin=0, vmax=100)
        mesh.set_rasterized(True)
        ax.set_yticks(range(len(bands)), labels=list(bands))
        ax.set_ylim(len(bands) - 0.5, -0.5)
        ax.hlines(np.arange(1, len(bands)) - 0.5, 0, edges_ps[-1] * 1e-12, color="white", linewidth=1.5)
        ax.tick_params(axis="y", length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("time (s)")
        bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02, fraction=0.06, label="busy (% of the time)")
        bar.outline.set_visible(False)
    return ax


def energy(runs: Iterable[Run], *, share: bool = False, ax: "Axes | None" = None) -> "Axes":
    """Draw the energy per generated token of each run, stacked by component, with its total beside the bar.

    Components without a figure are named below the axis: they are missing from the bars, not zero.

    Parameters
    ----------
    runs
        Finished runs, drawn from top to bottom.
    share
        Draw percentages of each run's total, for runs that differ by orders of magnitude.
    ax
        Where to draw; by default a new figure.

    Raises
    ------
    ConfigError
        When there is no run.
    """
    runs = list(runs)
    rows = _rows(runs)
    with _axes(ax, (7.2, 1.3 + _ROW_IN * len(runs))) as ax:
        parts = [run.energy.component_j() for run in runs]
        components = list(dict.fromkeys(name for part in parts for name, joules in part.items() if joules))
        per_token = np.array([[part.get(name, 0.0) for name in components] for part in parts])
        per_token /= np.array([[run.output_tokens] for run in runs])
        totals = per_token.sum(axis=1)
        widths = 100 * per_token / totals[:, None] if share else per_token
        lefts = np.hstack([np.zeros((len(runs), 1)), widths.cumsum(axis=1)])
        colours = _palette()
        for k, name in enumerate(components):
            ax.barh(
                range(len(runs)), widths[:, k], left=lefts[:, k], height=0.72, label=name, edgecolor="white",
                linewidth=0.5, color=colours[k % len(colours)], hatch=_HATCHES[k // len(colours) % len(_HATCHES)],
            )  # fmt: skip
        for y, total in enumerate(totals):
            ax.annotate(
                f"{_short(total)} J", (lefts[y, -1], y), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
        ax.set_xlim(0, 1.16 * lefts[:, -1].max())  # room for the totals
        if share:
            ax.set_xticks(range(0, 101, 20))
        xlabel = "share of the energy per token (%), total beside the bar" if share else "energy per token (J)"
        missing = dict.fromkeys(name for run in runs for name in run.energy.not_counted)
        ax.set_xlabel(xlabel + (f"\nnot counted: {', '.join(missing)}" if missing else ""))
        _list_rows(ax, rows)
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="component", alignment="left")
    return ax


@contextmanager
def _axes(ax: "Axes | None", size_in: tuple[float, float]) -> "Iterator[Axes]":
    """Enter the style; give ``ax``, or the axes of a new figure of that size."""
    import matplotlib.pyplot as plt

    with style():
        yield plt.subplots(figsize=size_in)[1] if ax is None else ax


def _rows(results: Iterable[Result]) -> list[Row]:
    rows = [result.summary() if isinstance(result, Run) else result for result in results]
    if not rows:
        raise ConfigError("results", "expected at least one run or row")
    return rows


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _NAMES)


def _labels(rows: Sequence[Row]) -> dict[tuple[Any, ...], str]:
    """Return by key a label of what differs between ``rows``; the system is always named."""
    # Only a system without DIMMs has no preset, and its name tells it from those that have one.
    varying = [name for name in _NAMES if name == "system" or len({row[name] for row in rows} - {None}) > 1]
    return {_key(row): ", ".join(str(row[name]) for name in varying if row[name] is not None) for row in rows}


def _series(points: Mapping[int, Iterable[Result]]) -> dict[tuple[Any, ...], dict[int, Row]]:
    """Return the row of each line at each value of the swept quantity."""
    series: dict[tuple[Any, ...], dict[int, Row]] = {}
    for x in sorted(points):
        if not x > 0:
            raise ConfigError("points", f"expected values above 0, not {x!r}")
        for row in _rows(points[x]):
            if x in series.setdefault(_key(row), {}):
                raise ConfigError("points", f"two results at {x:g} have the same names: {_key(row)}")
            series[_key(row)][x] = row
    if not series:
        raise ConfigError("points", "expected at least one value")
    return series


def _bands(busy: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.int64]]:
    """Merge the servers whose columns are equal and whose names differ in one number only."""
    bands: dict[str, npt.NDArray[np.int64]] = {}
    members: dict[tuple[str, bytes], list[str]] = {}
    for name, column in busy.items():
        members.setdefault((_pattern(name), column.tobytes()), []).append(name)
    for (pattern, _), names in members.items():
        bands[_span(pattern, names)] = busy[names[0]]
    return bands


def _pattern(name: str) -> str:
    """Return ``name`` with its first number replaced by ``#``."""
    import re

    return re.sub(r"\d+", "#", name, count=1)


def _span(pattern: str, names: Sequence[str]) -> str:
    """Return one label for servers that share a pattern: ``dimm0-7.core``, ``dimm0,2.core``."""
    if len(names) == 1:
        return names[0]
    before, after = pattern.split("#", 1)
    numbers = sorted(int(name[len(before) : len(name) - len(after)]) for name in names)
    close = all(b - a == 1 for a, b in pairwise(numbers))
    text = f"{numbers[0]}-{numbers[-1]}" if close else ",".join(map(str, numbers))
    return f"{before}{text}{after}"


def _binned(
    ends_ps: npt.NDArray[np.int64], busy_ps: npt.NDArray[np.int64], bins: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the edges of the intervals and the busy share (bands x intervals) in each."""
    edges = np.concatenate([[0], ends_ps]).astype(np.float64)
    totals = np.hstack([np.zeros((len(busy_ps), 1)), busy_ps.cumsum(axis=1)])
    if len(ends_ps) > bins:
        even = np.linspace(0.0, edges[-1], bins + 1)
        totals = np.array([np.interp(even, edges, total) for total in totals])
        edges = even
    return edges, np.diff(totals, axis=1) / np.diff(edges)


def _palette() -> list[str]:
    import matplotlib as mpl

    colours: list[str] = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    return colours


def _assign(values: Iterable[Any], looks: Sequence[Any]) -> dict[Any, Any]:
    """Give each distinct value, in order of appearance, one of ``looks``, from the start again when they run out."""
    return {value: looks[k % len(looks)] for k, value in enumerate(dict.fromkeys(values))}


def _colour_by(values: Iterable[Any]) -> dict[Any, Any]:
    return _assign(values, _palette())


def _log_axis(ax: "Axes", which: str) -> None:
    """Make an axis logarithmic with plain numbers at 1, 2 and 5 of each decade, or at decades where there are many."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis: Axis = ax.xaxis if which == "x" else ax.yaxis
    set_scale = ax.set_xscale if which == "x" else ax.set_yscale
    set_limits: Callable[[float, float], tuple[float, float]] = ax.set_xlim if which == "x" else ax.set_ylim
    set_scale("log")
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    if low <= 0:  # nothing is drawn, so the limits are still those of a linear axis
        low, high = set_limits(0.1, 10.0)
    if high / low < 10**0.7:  # room for less than three labels otherwise
        middle = (low * high) ** 0.5
        low, high = set_limits(middle / 10**0.35, middle * 10**0.35)
    decades = np.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.2 else (1.0,), numticks=12))
    axis.set_major_formatter(_plain())
    axis.set_minor_formatter(NullFormatter())


def _plain() -> "Formatter":
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _position: f"{value:,.10g}")


def _short(value: float) -> str:
    """Return a value to three digits, never with an exponent above one."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 1000 else f"{value:.3g}"


def _strip_of_refusals(ax: "Axes", refused: Iterable[tuple[float, str]]) -> None:
    """Mark values of x in the given colours in a shaded strip at the foot, which is no part of the scale of y."""
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FixedLocator, NullLocator

    by_x: dict[float, list[str]] = {}
    for x, colour in dict.fromkeys(refused):
        by_x.setdefault(x, []).append(colour)
    low, high = ax.get_ylim()
    ticks = [tick for tick in ax.yaxis.get_majorticklocs() if low <= tick <= high]
    step = 0.05
    height = step * max(2, *map(len, by_x.values()))  # at least what the word takes
    ax.set_ylim(high / (high / low) ** (1 / (1 - height)), high)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.add_patch(Rectangle((0, 0), 1, height, transform=ax.transAxes, color="#EFEFEF", linewidth=0, zorder=0))
    ax.annotate("refused", (0, height / 2), (-5, 0), xycoords="axes fraction", textcoords="offset points",
                ha="right", va="center", fontsize=8, color=_NOTE, fontstyle="italic")  # fmt: skip
    for x, colours in by_x.items():
        for k, colour in enumerate(colours):
            y = height / 2 + step * (k - (len(colours) - 1) / 2)
            ax.plot(x, y, "x", color=colour, transform=ax.get_xaxis_transform())


def _list_rows(ax: "Axes", rows: Sequence[Row], missing: Sequence[bool] = ()) -> None:
    """Label the rows from top to bottom, and say in its place why a row is empty."""
    labels = _labels(rows)
    ax.set_yticks(range(len(rows)), labels=[labels[_key(row)] for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    empty = missing or [False] * len(rows)
    for y, (row, none) in enumerate(zip(rows, empty, strict=True)):
        text = "refused" if row["refused"] is not None else "no value" if none else ""
        if text:
            ax.annotate(text, (0, y), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                        va="center", fontsize=8, color=_NOTE, fontstyle="italic")  # fmt: skip
    _grid(ax, "x")


def _grid(ax: "Axes", axis: Any) -> None:
    """Draw the grid with the style's values pinned, because ticks are made when the style is left already."""
    import matplotlib as mpl

    ax.grid(True, which="major", axis=axis, color=mpl.rcParams["grid.color"], linewidth=mpl.rcParams["grid.linewidth"])
    ax.tick_params(labelsize=mpl.rcParams["xtick.labelsize"])
