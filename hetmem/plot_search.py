"""The picture of a search: its points in the plane of the first two figures asked for, and the Pareto front."""

from pathlib import Path
from typing import TYPE_CHECKING

from hetmem.plot import _NOTE, _axes, _grid, _log_axis, _palette, style
from hetmem.study.metrics import metric
from hetmem.study.search import Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "front.png"
DPI = 200
SIZE_IN = (6.4, 4.2)


def save(result: Search) -> Path | None:
    """Draw ``result`` into its directory; None where fewer than two figures or no points make no plane."""
    if len(result.shown) < 2 or not any(one.status in ("within", "beyond") for one in result.candidates):
        return None
    import matplotlib.pyplot as plt

    path = result.directory / FIGURE
    with style():
        figure, ax = plt.subplots(figsize=SIZE_IN)
        front(result, ax=ax)
        figure.savefig(path, dpi=DPI, bbox_inches="tight")
        plt.close(figure)
    return path


def front(result: Search, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the points of a search by its first two objectives, or its objective and its first budget.

    The front is numbered as in the table; with further objectives it is no line in this plane. Crosses are beyond
    a budget; a dashed line is the budget of an axis.

    Parameters
    ----------
    result
        A search with two figures at least.
    ax
        Where to draw; by default a new figure.
    """
    x, y = (metric(name) for name in result.shown[:2])

    def places(status: str) -> tuple[list[float], list[float]]:
        those = [one for one in result.candidates if one.status == status]
        return [one.figure(x.name) for one in those], [one.figure(y.name) for one in those]

    with _axes(ax, SIZE_IN) as ax:
        best = [(one.figure(x.name), one.figure(y.name)) for one in result.front]
        # Between two points nothing better is known than the one that is worse in the second figure: stairs.
        line = "-" if len(result.objectives) == 2 else ""
        ax.plot(*places("beyond"), "x", color=_NOTE, alpha=0.5, label="beyond a budget", markersize=5)
        ax.plot(*places("within"), "o", color=_NOTE, alpha=0.5, label="within", markersize=4)
        ax.plot([x for x, _ in best], [y for _, y in best], "o", color=_palette()[0], linestyle=line,
                drawstyle="steps-post", label="front")  # fmt: skip
        for number, place in enumerate(best, 1):
            ax.annotate(str(number), place, (8, -9), textcoords="offset points", ha="center", fontsize=8)
        ax.margins(0.08)
        for name, which in ((x.name, "x"), (y.name, "y")):
            if all(one.figure(name) > 0 for one in result.candidates if one.status in ("within", "beyond")):
                _log_axis(ax, which)
        if x.name in result.budgets:
            ax.axvline(result.budgets[x.name], color=_NOTE, linestyle="--", linewidth=1)
        if y.name in result.budgets:
            ax.axhline(result.budgets[y.name], color=_NOTE, linestyle="--", linewidth=1)
        ax.set_xlabel(x.label)
        ax.set_ylabel(y.label)
        _grid(ax, "both")
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax
