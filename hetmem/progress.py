"""What is under way, on standard error; silent where that is no terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hetmem.study.compare import Report
    from hetmem.study.scenario import Scenario
    from hetmem.study.sweep import Progress as SweepProgress
    from hetmem.study.sweep import Report as SweepReport

RATE_WINDOW_S = 300.0


@contextmanager
def runs() -> "Iterator[Report]":
    """Give a function that shows which of several runs is under way; silent without a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)

        def report(asked: "Scenario", done: float, n: int) -> None:
            label = " ".join(part for part in (asked.system.name, asked.assumptions, asked.dimm_preset) if part)
            bar.update(task, description=label, completed=done, total=n)

        yield report


@contextmanager
def points() -> "Iterator[SweepReport]":
    """Give a function that shows how many points are done, their rate and the time left; silent without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
    )  # fmt: skip
    bar = Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
        speed_estimate_period=RATE_WINDOW_S,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None, rate="", failed="")

        def report(now: "SweepProgress") -> None:
            bar.update(task, completed=now.done, total=now.total, failed=f"{now.failed} failed" if now.failed else "")
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.3g} points/s" if speed else "")

        yield report


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show that something takes a while; silent without a terminal."""
    from rich.console import Console

    if sys.stderr.isatty():
        with Console(stderr=True).status(text):
            yield
    else:
        yield
