"""The best machines under budgets: Optuna proposes points, a sweep's workers run them.

Where the space has no more combinations than trials, all are tried and the front is exact; otherwise NSGA-II (Deb et
al., IEEE TEVC 2002) breeds them in generations. A generation is proposed before any of it has run and is told in the
order of its proposal, so the outcome depends on neither the workers nor their speed. That also makes the search
resumable without a journal: started again it proposes the same points, and those that are finished are read from disk.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from hetmem._version import __version__
from hetmem.errors import ConfigError, HetmemError
from hetmem.monitor.save import SCHEMA_VERSION
from hetmem.study import dataset
from hetmem.study.executors import Executor
from hetmem.study.metrics import OBJECTIVES, metric
from hetmem.study.point import Point, resolve
from hetmem.study.space import Dimension, combinations, every
from hetmem.study.store import Store
from hetmem.study.sweep import Progress, Report, run_points

if TYPE_CHECKING:
    import optuna

GENERATION = 20  # points proposed at a time: NSGA-II's population
Status = Literal["within", "beyond", "refused", "failed", "invalid", "unknown"]


@frozen
class Candidate:
    """A point that was tried.

    Attributes
    ----------
    chosen
        The values of the space's dimensions.
    point
        What they resolve to, or None where they do not.
    status
        Whether it is within all budgets or beyond one; refused by the system, failed, not a sound
        configuration, or without a figure that is asked for.
    reason
        Why, unless it is within.
    metrics
        The figures of its run.
    """

    chosen: Mapping[str, Any]
    point: Point | None
    status: Status
    reason: str
    metrics: Mapping[str, float | None]

    def figure(self, name: str) -> float:
        """Return a figure that is known."""
        value = self.metrics[name]
        assert value is not None
        return value


@frozen
class Search:
    """A search that has ended.

    Attributes
    ----------
    directory, dataset
        Where the points are, and the Parquet file with a row for each; None when there is no point.
    objectives, budgets
        Names of metrics: what was optimised, and the limits.
    candidates
        The different points, in the order in which they were proposed.
    front
        Those within budget that no other beats in every objective, the best in the first objective first.
    trials
        How many points were proposed, the same one several times included.
    exhaustive
        Whether they are all that the space holds.
    """

    directory: Path
    dataset: Path | None
    objectives: Sequence[str]
    budgets: Mapping[str, float]
    candidates: Sequence[Candidate]
    front: Sequence[Candidate]
    trials: int
    exhaustive: bool

    @property
    def shown(self) -> tuple[str, ...]:
        """The metrics that matter: objectives, then budgets."""
        return tuple(dict.fromkeys((*self.objectives, *self.budgets)))

    def counts(self) -> dict[str, int]:
        """Return the number of candidates by status."""
        statuses = [one.status for one in self.candidates]
        return {status: statuses.count(status) for status in dict.fromkeys(statuses)}

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``hetmem search --json`` prints."""
        return {
            "schema_version": SCHEMA_VERSION,
            "hetmem_version": __version__,
            "objectives": {name: metric(name).goal for name in self.objectives},
            "budgets": dict(self.budgets),
            "trials": self.trials,
            "exhaustive": self.exhaustive,
            "candidates": self.counts(),
            "front": [
                {"identity": one.point.identity, **one.chosen, **{name: one.metrics[name] for name in self.shown}}
                for one in self.front
                if one.point is not None
            ],
            "dataset": None if self.dataset is None else str(self.dataset),
        }


def search(
    base: Mapping[str, Any], dimensions: Sequence[Dimension], out: str | Path, *, executor: Executor,
    objectives: Sequence[str] = OBJECTIVES, budgets: Mapping[str, float] | None = None, trials: int = 100,
    seed: int = 0, retry_failed: bool = False, tables: bool = False, report: Report | None = None,
) -> Search:  # fmt: skip
    """Look for the points that are best in ``objectives`` within ``budgets``.

    Parameters
    ----------
    base
        The values that every point has.
    dimensions
        What varies.
    out
        Directory of the results, as of a sweep.
    objectives, budgets
        Names of :data:`hetmem.study.metrics.METRICS`. A budget is the most of a figure of which less is better,
        and the least of one of which more is.
    trials
        How many points to propose.
    seed
        Of the proposals; that of the runs is in ``base``.

    Raises
    ------
    HetmemError
        For a metric that is not known, a space without dimensions, or when no proposal is a sound configuration.
    """
    limits = dict(budgets or {})
    for name in (*objectives, *limits):
        metric(name)
    if not objectives or len(set(objectives)) < len(objectives):
        raise ConfigError("objective", "expected at least one, each once")
    if not dimensions:
        raise ConfigError("space", "expected something to vary")
    if trials < 1:
        raise ConfigError("trials", f"expected at least 1, not {trials}")
    store = Store(Path(out).resolve())
    size = combinations(dimensions)
    exhaustive = size is not None and size <= trials
    trials = size if size is not None and exhaustive else trials
    names = (*base, *(one.name for one in dimensions))
    tried: dict[int, Candidate] = {}
    with store.locked(), _study(objectives, seed) as study:
        if exhaustive:
            for values in every(dimensions):
                study.enqueue_trial(values)
        distributions = {one.name: one.distribution() for one in dimensions}
        while len(tried) < trials:
            proposed = [study.ask(distributions) for _ in range(min(GENERATION, trials - len(tried)))]
            points = [_resolved({**base, **trial.params}, names) for trial in proposed]
            if not tried and all(isinstance(point, HetmemError) for point in points):
                raise next(point for point in points if isinstance(point, HetmemError))
            distinct = {point.identity: point for point in points if isinstance(point, Point)}
            run_points(
                [distinct[identity] for identity in sorted(distinct)], store, executor, retry_failed=retry_failed,
                tables=tables, report=_shifted(report, len(tried), trials, len(proposed) - len(distinct)),
            )  # fmt: skip
            for trial, point in zip(proposed, points, strict=True):
                one = tried[trial.number] = _judged(trial.params, point, store, objectives, limits)
                _tell(study, trial, one, objectives, limits)
        best = [tried[trial.number] for trial in study.best_trials]
        candidates = _distinct(tried.values())
        ran = {one.point.identity: one.point for one in candidates if one.point is not None}
        written = dataset.write([dataset.row(point, store) for point in ran.values()], store) if ran else None
    return Search(store.directory, written, tuple(objectives), limits, candidates, _ranked(best, objectives), trials,
                  exhaustive)  # fmt: skip


def read_budgets(texts: Iterable[str]) -> dict[str, float]:
    """Return the limits that ``METRIC=LIMIT`` texts spell.

    Raises
    ------
    ConfigError, UnknownNameError
        When a text has another form, the metric is not known, or comes twice.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError:
            raise ConfigError("budget", f"expected METRIC=LIMIT, not {text!r}") from None
        if metric(name).name in limits or not math.isfinite(limit):
            raise ConfigError("budget", f"expected one finite limit of {name}, not {text!r}")
        limits[name] = limit
    return limits


@contextmanager
def _study(objectives: Sequence[str], seed: int) -> Iterator["optuna.Study"]:
    try:
        import optuna
    except ImportError:
        raise ConfigError("search", "needs Optuna; pip install 'hetmem[search]'") from None
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield optuna.create_study(
            directions=["maximize" if metric(name).goal == "max" else "minimize" for name in objectives],
            sampler=optuna.samplers.NSGAIISampler(population_size=GENERATION, seed=seed),
        )
    finally:
        optuna.logging.set_verbosity(verbosity)


def _resolved(values: Mapping[str, Any], names: Sequence[str]) -> Point | HetmemError:
    try:
        return resolve(values, names)
    except HetmemError as error:
        return error


def _shifted(report: Report | None, before: int, trials: int, repeated: int) -> Report | None:
    """Return a report of one generation as part of the whole search."""
    if report is None:
        return None
    return lambda now: report(Progress(before + repeated + now.done, trials, now.found, now.failed))


def _judged(
    chosen: Mapping[str, Any], point: Point | HetmemError, store: Store, objectives: Sequence[str],
    limits: Mapping[str, float],
) -> Candidate:  # fmt: skip
    if isinstance(point, HetmemError):
        return Candidate(chosen, None, "invalid", str(point), {})
    if not store.finished(point.identity):
        return Candidate(chosen, point, "failed", store.failure(point.identity)["error"], {})
    found = store.manifest(point.identity)
    if found["status"] != "done":
        return Candidate(chosen, point, "refused", found["reason"], {})
    metrics = found["metrics"]
    for name in (*objectives, *limits):
        if metrics.get(name) is None:
            return Candidate(chosen, point, "unknown", f"{name} is not known", metrics)
    beyond = [
        f"{name} is {metrics[name]:.4g}, {'at most' if metric(name).goal == 'min' else 'at least'} {limit:.4g} asked"
        for name, limit in limits.items()
        if metric(name).excess(metrics[name], limit) > 0
    ]
    return Candidate(chosen, point, "beyond" if beyond else "within", "; ".join(beyond), metrics)


def _tell(
    study: "optuna.Study", trial: "optuna.Trial", one: Candidate, objectives: Sequence[str], limits: Mapping[str, float]
) -> None:
    """Tell Optuna how ``one`` went; what has no figures does not breed."""
    from optuna.trial import TrialState

    if one.status not in ("within", "beyond"):
        study.tell(trial, state=TrialState.FAIL)
        return
    for name, limit in limits.items():
        trial.set_constraint(name, metric(name).excess(one.figure(name), limit))
    study.tell(trial, [one.figure(name) for name in objectives])


def _distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the first candidate of each point, and of each choice that resolves to none."""
    found: dict[Any, Candidate] = {}
    for one in candidates:
        found.setdefault(one.point.identity if one.point else tuple(one.chosen.items()), one)
    return list(found.values())


def _ranked(best: Sequence[Candidate], objectives: Sequence[str]) -> list[Candidate]:
    """Return the different points of the front, the best in the first objective first."""

    def key(one: Candidate) -> tuple[Any, ...]:
        signs = (-1 if metric(name).goal == "max" else 1 for name in objectives)
        figures = tuple(sign * one.figure(name) for sign, name in zip(signs, objectives, strict=True))
        return (*figures, one.point.identity if one.point else "")

    return sorted(_distinct(best), key=key)
