"""The runs behind the reproduction of Hermes: a case says what to simulate, several are simulated in parallel.

128 tokens in and out. A case may decode fewer: the time of the steps left out is then that of the last
:data:`TAIL` simulated, which neglects the growth of the context (attention is about 1 % of a step) and came within
3 % of whole runs. The partition is the greedy one, within 0.1 % of the solver's objective and found at once.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from attrs import field, frozen

from hetmem.errors import CapacityError, UnsupportedError
from hetmem.model import load_model
from hetmem.model.activity_config import neuron_counts
from hetmem.study.run import Run
from hetmem.study.simulate import simulate
from hetmem.workload import fixed

PROMPT = OUTPUT = 128
SAMPLED = 32
TAIL = 16

Asked = TypeVar("Asked")
Found = TypeVar("Found")
Pairs = tuple[tuple[str, Any], ...]
CALIBRATED: Pairs = (("activity.densities", "calibrated"), ("activity.misses", "late"))


@frozen
class Case:
    """What to simulate; hashable, so that a result is kept by it."""

    system: str
    model: str
    batch: int = 1
    assumptions: str = "as-published"
    preset: str | None = None
    output: int = OUTPUT
    settings: Pairs = ()
    policies: Pairs = ()
    gpu: str | None = None
    traced: bool = False


@frozen
class Migration:
    """What moving neurons between DIMMs took in a run.

    ``n_bytes`` moved in all; ``link_s``, the time of the busiest link of each layer and step, added; ``late_s``, by
    how much moves outlast the projection that they hide behind, added.
    """

    n_bytes: float
    link_s: float
    late_s: float


@frozen
class Measured:
    """What a case gave; seconds. ``blocks`` holds the totals of the neuron table by kind of block, and its group.

    ``windows`` is the imbalance of each window of the MLP. Where a case is traced, ``mlp_s`` is the time of all MLP
    blocks and ``migration`` that of moves between DIMMs.
    """

    tokens_per_s: float
    prefill_s: float
    total_s: float
    bound_share: Mapping[str, float]
    blocks: Mapping[str, Mapping[str, float]]
    windows: tuple[float, ...]
    mlp_s: float | None = field(default=None)
    migration: Migration | None = field(default=None)


_KNOWN: dict[Case, Measured | None] = {}


def measure_all(cases: Iterable[Case]) -> None:
    """Simulate the cases that are not known yet."""
    missing = [case for case in dict.fromkeys(cases) if case not in _KNOWN]
    _KNOWN.update(zip(missing, in_parallel(_attempt, missing), strict=True))


def in_parallel(function: Callable[[Asked], Found], items: Sequence[Asked]) -> list[Found]:
    """Return the function of each item, as many at once as there are processors."""
    if not items:
        return []
    with ProcessPoolExecutor(min(len(items), os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))


def measured(case: Case) -> Measured | None:
    """Return the result of a case, None where the system refuses it."""
    if case not in _KNOWN:
        _KNOWN[case] = _attempt(case)
    return _KNOWN[case]


def throughput(case: Case) -> float | None:
    """Return the tokens per second of a case, None where the system refuses it."""
    found = measured(case)
    return None if found is None else found.tokens_per_s


def _attempt(case: Case) -> Measured | None:
    policies = dict(case.policies)
    if case.system in ("hermes", "powerinfer"):
        policies.setdefault("partition", "greedy")
    try:
        run = simulate(
            case.system, model=case.model, workload=fixed(PROMPT, case.output, case.batch), gpu=case.gpu,
            assumptions=case.assumptions, dimm_preset=case.preset, settings=dict(case.settings), policies=policies,
            trace=case.traced,
        )  # fmt: skip
    except (CapacityError, UnsupportedError):
        return None
    lasted = (run.steps.column("end_ps") - run.steps.column("start_ps")) * 1e-12
    left = OUTPUT - case.output
    total = float(lasted.sum() + (left * lasted[-TAIL:].mean() if left else 0.0))
    shares = {name: busy / run.elapsed_ps for name, busy in run.busy_ps.items()}
    return Measured(
        OUTPUT * case.batch / total, float(lasted[0]), total, shares, _blocks(run), _windows(run),
        mlp_seconds(run) if case.traced else None, migration(run) if case.traced else None,
    )  # fmt: skip


def _blocks(run: Run) -> dict[str, dict[str, float]]:
    table = run.tables.get("neurons")
    if table is None or "predicted" not in table.columns:
        return {}
    model = load_model(str(run.scenario.model.id))
    names = ("fired", "predicted", "missed", "copied_bytes", "moved_bytes")
    block = table.column("block")
    group, n_layers = run.configuration["activity"]["group"], run.configuration["model"]["n_layers"]
    found = {}
    for kind, neurons in neuron_counts(model).items():
        here = block == kind
        totals = {name: float(table.column(name)[here].sum()) for name in names}
        units = float(here.sum() * n_layers * neurons // group)
        found[kind] = totals | {"steps": float(here.sum()), "units": units, "group": float(group)}
    return found


def _windows(run: Run) -> tuple[float, ...]:
    table = run.tables.get("windows")
    if table is None:
        return ()
    return tuple(table.column("imbalance")[table.column("block") == "mlp"].tolist())


def mlp_seconds(run: Run) -> float:
    """Return the time of the MLP blocks of a traced run: from the first task of each to its last, all added."""
    assert run.tasks is not None
    frame = run.tasks.to_pandas()
    frame = frame[frame.task.str.fullmatch(r"l\d+\.mlp")]
    spans = frame.groupby(["step", "task"]).agg(start=("start_ps", "min"), end=("end_ps", "max"))
    return float((spans.end - spans.start).sum()) * 1e-12


def migration(run: Run) -> Migration:
    """Return what moving neurons between DIMMs took in a traced run."""
    assert run.tasks is not None
    frame = run.tasks.to_pandas()
    projections = frame[(frame.task == "proj") & (frame.server == "gpu0")]
    projections = projections.assign(layer=projections.groupby("step").cumcount())
    moves = frame[frame.task.str.fullmatch(r"l\d+\.move")]
    moves = moves.assign(layer=moves.task.str.extract(r"(\d+)", expand=False).astype(int))
    at = ["step", "layer"]
    late = moves.groupby(at).end_ps.max() - projections.set_index(at).end_ps
    links = moves[moves.server.str.endswith(".link")]
    sent = (links.end_ps - links.start_ps).groupby([links[name] for name in at]).max()
    return Migration(float(links.bytes.sum()), float(sent.sum()) * 1e-12, float(late.clip(lower=0).sum()) * 1e-12)
