"""Published results beside ours: the rows that ``hetmem reproduce NAME`` prints.

A reproduction is a function that returns :class:`Row` objects; it registers itself under its name. ``as_published``
is what the paper's own numbers give here, ``fair`` what remains when every system gets the same measured rates.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from hetmem._version import __version__
from hetmem.errors import UnknownNameError
from hetmem.monitor.save import SCHEMA_VERSION

VERDICTS = ("match", "miss", "calibrated", "not-reproducible")
Tolerance = float | tuple[float, float] | None


@frozen(kw_only=True)
class Row:
    """One published number, and what the simulator says.

    ``tolerance`` is a relative fraction, or (low, high) for the value itself; None where nothing is gated.
    ``verdict`` is of ``as_published``.
    """

    quantity: str
    system: str | None = None
    model: str | None = None
    batch: int | None = None
    preset: str | None = None
    metric: str
    unit: str
    paper: float | None
    as_published: float | None
    fair: float | None = None
    tolerance: Tolerance = None
    verdict: str
    note: str = ""


def within(value: float | None, paper: float | None, tolerance: Tolerance) -> bool:
    """Return whether ``value`` lies within ``tolerance`` of ``paper``, or in the interval."""
    if value is None or tolerance is None:
        return False
    if isinstance(tolerance, tuple):
        return tolerance[0] <= value <= tolerance[1]
    return paper is not None and abs(value / paper - 1) <= tolerance


def verdict(value: float | None, paper: float | None, tolerance: Tolerance, *, fitted: bool = False) -> str:
    """Return ``match`` or ``miss``; ``calibrated`` for a match whose constants were ``fitted`` to this number."""
    if not within(value, paper, tolerance):
        return "miss"
    return "calibrated" if fitted else "match"


Reproduction = Callable[[], list[Row]]


def reproductions() -> dict[str, Reproduction]:
    """Return every reproduction by name."""
    from hetmem.study.reproduce_attacc import attacc
    from hetmem.study.reproduce_h2m2 import h2m2
    from hetmem.study.reproduce_hermes import hermes
    from hetmem.study.reproduce_hermes_baselines import hermes_baselines
    from hetmem.study.reproduce_laws import dram, links
    from hetmem.study.reproduce_m2cache import m2cache
    from hetmem.study.reproduce_papi import papi
    from hetmem.study.reproduce_serving import serving

    return {
        "hermes-baselines": hermes_baselines, "hermes": hermes, "h2m2": h2m2, "papi": papi, "attacc": attacc,
        "m2cache": m2cache, "serving": serving, "dram": dram, "links": links,
    }  # fmt: skip


def reproduce(name: str) -> list[Row]:
    """Run the reproduction ``name``.

    Raises
    ------
    UnknownNameError
        With a suggestion.
    """
    known = reproductions()
    if name not in known:
        raise UnknownNameError("reproduction", name, tuple(known))
    return known[name]()


def draw(name: str, path: Path) -> None:
    """Save the picture of the reproduction ``name``.

    Raises
    ------
    UnknownNameError
        When there is no such reproduction, or it has no picture.
    """
    from hetmem.study import reproduce_serving

    pictures = {"serving": reproduce_serving.plot}
    if name not in pictures:
        raise UnknownNameError("reproduction with a picture", name, tuple(pictures))
    pictures[name](path)


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the object that ``hetmem reproduce --json`` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "hetmem_version": __version__,
        "rows": [attrs.asdict(row) for row in rows],
    }
