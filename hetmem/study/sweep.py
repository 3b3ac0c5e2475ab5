"""Many runs: the points that are not finished yet, on any executor, into one directory and one dataset.

What a point gives depends on the point alone. So a sweep may be stopped at any moment and started again, with another
number of workers or on other machines, and ends with the same bytes.
"""

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from hetmem._version import __version__
from hetmem.errors import ConfigError
from hetmem.monitor.save import SCHEMA_VERSION
from hetmem.study import dataset
from hetmem.study.compare import attempt
from hetmem.study.executors import Executor, NoWorkerError, ProcessExecutor
from hetmem.study.metrics import measure
from hetmem.study.point import Point, build, identity_of, normalised, resolve_all, travelling
from hetmem.study.run import Run
from hetmem.study.store import Store

if TYPE_CHECKING:
    import pandas as pd

AHEAD = 2  # tasks submitted for each that can run, so that no worker waits for the next


@frozen
class Progress:
    """How far a sweep is: points ``done`` of ``total``, ``found`` of them finished before, ``failed`` among them."""

    done: int
    total: int
    found: int
    failed: int


Report = Callable[[Progress], None]


@frozen
class Sweep:
    """A sweep that has ended.

    Attributes
    ----------
    directory, dataset
        Where its points are, and the Parquet file with a row for each.
    points
        The different points, sorted by identity.
    found
        How many were finished before it started.
    done, refused, failed
        How many have results, how many their system refuses, how many raised an error.
    """

    directory: Path
    dataset: Path
    points: Sequence[Point]
    found: int
    done: int
    refused: int
    failed: int

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``hetmem sweep --json`` prints."""
        counts = {"asked": len(self.points), "found": self.found}
        counts |= {"done": self.done, "refused": self.refused, "failed": self.failed}
        return {
            "schema_version": SCHEMA_VERSION,
            "hetmem_version": __version__,
            "dataset": str(self.dataset),
            "points": counts,
        }

    def to_pandas(self) -> "pd.DataFrame":
        """Return the dataset."""
        import pandas as pd

        return pd.read_parquet(self.dataset)


def sweep(
    points: Iterable[Mapping[str, Any]], out: str | Path, *, executor: Executor | None = None,
    retry_failed: bool = False, tables: bool = False, report: Report | None = None,
) -> Sweep:  # fmt: skip
    """Run every point that is not finished, and write the dataset of all of them.

    Parameters
    ----------
    points
        Each a mapping of names (:data:`hetmem.study.point.FIELDS`, ``policy.ROLE``, paths of the configuration).
    out
        Directory of the results; workers on other machines must see it under the same path.
    executor
        Where they run; by default a process per processor, each of which imports the calling script anew.
    retry_failed
        Run the points again that failed before.
    tables
        Keep the tables of each run beside its manifest.
    report
        Called when it starts and whenever a point is done.

    Raises
    ------
    HetmemError
        For points that cannot be resolved, before anything runs; when another sweep writes to ``out``; when no
        worker can start.
    """
    asked = resolve_all(list(points))
    if not asked:
        raise ConfigError("points", "there are none")
    store = Store(Path(out).resolve())
    with ExitStack() as stack:
        stack.enter_context(store.locked())
        workers = executor or stack.enter_context(ProcessExecutor())
        found = sum(store.finished(point.identity) for point in asked)
        run_points(asked, store, workers, retry_failed=retry_failed, tables=tables, report=report)
        rows = [dataset.row(point, store) for point in asked]
        statuses = [row["status"] for row in rows]
        counts = {status: statuses.count(status) for status in ("done", "refused", "failed")}
        return Sweep(store.directory, dataset.write(rows, store), asked, found, **counts)


def run_points(
    asked: Sequence[Point], store: Store, executor: Executor, *, retry_failed: bool = False, tables: bool = False,
    report: Report | None = None,
) -> None:  # fmt: skip
    """Run the points of ``asked`` that are neither finished nor, unless they are to be retried, failed."""
    finished = {point.identity for point in asked if store.finished(point.identity)}
    gave_up = set() if retry_failed else {p.identity for p in asked if store.failed(p.identity)} - finished
    waiting = [point for point in reversed(asked) if point.identity not in finished | gave_up]
    done, failed = len(asked) - len(waiting), len(gave_up)
    running: dict[Future[Any], Point] = {}

    def tell() -> None:
        if report is not None:
            report(Progress(done, len(asked), len(finished), failed))

    tell()
    while waiting or running:
        while waiting and len(running) < AHEAD * executor.width:
            point = waiting.pop()
            task = (travelling(point.values), point.identity, str(store.directory), tables)
            running[executor.submit(run_point, *task)] = point
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            point = running.pop(future)
            done, failed = done + 1, failed + _note(point, future, store)
            tell()


def _note(point: Point, future: "Future[Any]", store: Store) -> bool:
    """Record the end of a point; return whether it failed."""
    try:
        error = future.exception()
    except CancelledError:
        raise ConfigError("executor", "the workers gave the points up; start the sweep again to go on") from None
    if isinstance(error, NoWorkerError):
        raise error
    if error is not None:
        lines = traceback.format_exception(error)
        text = traceback.format_exception_only(error)[-1].strip()
        store.fail(point.identity, {"point": point.values, "error": text, "traceback": "".join(lines)})
        return True
    if not store.finished(point.identity):
        raise ConfigError("out", f"the workers wrote to another {store.directory}; they need a shared folder")
    store.forgive(point.identity)
    return False


def run_point(values: Mapping[str, Any], identity: str, directory: str, tables: bool) -> None:
    """Run one point and write its directory, unless it is there.

    Raises
    ------
    ConfigError
        When ``values`` resolve to another point here: another version, catalogue or trace.
    """
    store = Store(Path(directory))
    if store.finished(identity):
        return
    asked = build(values)
    here = identity_of(normalised(asked))
    if here != identity:
        raise ConfigError("identity", f"{here} on the worker: its version, catalogue or files differ")
    run, summary = attempt(asked)
    manifest: dict[str, Any] = {"identity": identity, "point": dict(values), "reason": summary["refused"]}
    if run is None:
        store.finish(identity, {}, {**manifest, "status": "refused"})
    else:
        figures = {"metrics": measure(run, summary), "measured": _measured(run, summary)}
        kept = run.saved_tables() if tables else {}
        store.finish(identity, kept, {**manifest, "status": "done", **figures, **run.manifest()})


def _measured(run: Run, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "bound": summary["bound"],
        **{f"requests_{name}": count for name, count in summary["requests"].items()},
        "output_tokens": run.output_tokens,
        "steps": run.counters["steps"],
        "time_share": summary["time_share"],
        "energy_j": run.energy.component_j(),
    }
