"""Systems side by side: the same model, the same requests, under each assumption set and DIMM preset."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import evolve, field, frozen

from hetmem._version import __version__
from hetmem.errors import CapacityError, ConfigError, ConfigErrors, HetmemError, UnsupportedError
from hetmem.hardware.config import ASSUMPTIONS
from hetmem.hardware.ndp import PRESETS
from hetmem.model import ModelSpec
from hetmem.monitor.save import SCHEMA_VERSION
from hetmem.study.executors import ProcessExecutor
from hetmem.study.run import SERVED, Run
from hetmem.study.scenario import POLICIES, Scenario, scenario
from hetmem.study.settings import has_path, with_settings
from hetmem.study.simulate import ENGINES, Progress, run_scenario
from hetmem.system import SYSTEMS, System, system_class

MEASURED = (
    "tokens_per_s", "energy_per_token_j", "energy_phase_j", "carbon_operational_g_per_token",
    "carbon_embodied_g_per_token", "cost_usd_per_mtoken", "ssd", "unknown", "ttft_s", "tpot_s", "latency_s",
    "time_share", "bound", "requests", *SERVED,
)  # fmt: skip
Report = Callable[[Scenario, float, int], None]


@frozen(eq=False)
class Comparison:
    """Rows, and behind each what was ``asked`` and its run, or None where the system refused.

    ``not_counted`` gives the components of each system whose energy is not known.
    """

    rows: list[dict[str, Any]]
    runs: list[Run | None] = field(repr=False)
    seed: int
    asked: list[Scenario] = field(repr=False)

    @property
    def all_refused(self) -> bool:
        """Whether no system could run the model."""
        return all(run is None for run in self.runs)

    @property
    def unknown(self) -> dict[str, tuple[str, ...]]:
        """Why carbon or cost of a system is not known, by system."""
        found = {}
        for run in self.runs:
            if run and run.footprint.unknown:
                found[run.scenario.system.name] = tuple(dict.fromkeys(run.footprint.unknown))
        return found

    @property
    def not_counted(self) -> dict[str, tuple[str, ...]]:
        """Components without a figure, by system."""
        return {run.scenario.system.name: run.energy.not_counted for run in self.runs if run and run.energy.not_counted}

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        return {
            "schema_version": SCHEMA_VERSION,
            "hetmem_version": __version__,
            "seed": self.seed,
            "rows": self.rows,
        }

    def _repr_html_(self) -> str:
        import pandas as pd

        flat = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in self.rows]
        return str(pd.DataFrame(flat).to_html(index=False))


def compare(
    systems: Sequence[str | type[System]] | str | type[System] | None = None, *, model: str | ModelSpec = "llama2-70b",
    workload: Any = "chat", assumptions: Iterable[str] | str = ASSUMPTIONS, dimm_presets: Iterable[str] | str = PRESETS,
    settings: Mapping[str, Any] | None = None, trace: bool = False, report: Report | None = None,
    engine: str = ENGINES[0], workers: int | None = 1, **options: Any,
) -> Comparison:  # fmt: skip
    """Run several systems on the same requests.

    Parameters
    ----------
    systems
        Names or classes, or one alone; by default every system.
    assumptions, dimm_presets
        The sets to run under, or one alone; a system without DIMMs has no preset.
    settings
        Paths and values; a path applies to the systems whose machine has it.
    report
        Called as ``report(scenario, done, n)`` while the runs go on, ``done`` of ``n`` being finished.
    engine
        One of :data:`hetmem.study.simulate.ENGINES`.
    workers
        Processes that the runs are spread over; 1 is this one, None is one a processor. The result is the same.
    options
        As in :func:`hetmem.simulate`; ``dimms`` and ``multipliers`` apply to systems with DIMMs, a policy to the
        systems that have its role.

    Raises
    ------
    HetmemError
        For bad input, before anything runs. A system that cannot run the model is not an error: its row says why.
    """
    if isinstance(systems, str | type):
        systems = [systems]
    presets = [dimm_presets] if isinstance(dimm_presets, str) else list(dimm_presets)
    sets = [assumptions] if isinstance(assumptions, str) else list(assumptions)
    chosen = [system_class(name) if isinstance(name, str) else name for name in systems or SYSTEMS]
    orphans = {role for role in options.get("policies") or {} if not any(_has_role(cls, role) for cls in chosen)}
    asked = [
        scenario(cls, model=model, workload_=workload, assumptions=assumed, dimm_preset=preset, **given)
        for cls in chosen
        for assumed in sets
        for preset, given in _variants(cls, presets, options, orphans)
    ]
    asked = _with_settings(asked, settings or {})
    if workers == 1:
        pairs = [
            attempt(one, trace=trace, progress=_progress(report, one, k, len(asked)), engine=engine)
            for k, one in enumerate(asked)
        ]
    else:
        with ProcessExecutor(workers) as executor:
            futures = [executor.submit(partial(attempt, trace=trace, engine=engine), one) for one in asked]
            for k, one in enumerate(asked):
                futures[k].result()
                if report is not None:
                    report(one, k + 1, len(asked))
        pairs = [future.result() for future in futures]
    return Comparison([row for _, row in pairs], [run for run, _ in pairs], asked[0].seed if asked else 0, asked)


def attempt(
    asked: Scenario, *, trace: bool = False, progress: Progress | None = None, engine: str = ENGINES[0]
) -> tuple[Run | None, dict[str, Any]]:
    """Return the run and its row, or None and a row with the reason when the system refuses."""
    try:
        run = run_scenario(asked, trace=trace, progress=progress, engine=engine)
    except (CapacityError, UnsupportedError) as error:
        return None, refused_row(asked, error)
    return run, run.summary()


def refused_row(asked: Scenario, error: HetmemError) -> dict[str, Any]:
    """Return the row of a system that cannot run: null for everything measured, and the reason."""
    return {**asked.labels(), **dict.fromkeys(MEASURED), "refused": str(error)}


def _progress(report: Report | None, asked: Scenario, k: int, n: int) -> Progress | None:
    if report is None:
        return None
    report(asked, k, n)
    return lambda finished, requests: report(asked, k + finished / requests, n)


def _has_role(cls: type[System], role: str) -> bool:
    return role in POLICIES or role in cls.roles


def _variants(
    cls: type[System], presets: list[str], options: Mapping[str, Any], orphans: set[str]
) -> list[tuple[str | None, dict[str, Any]]]:
    """Return what a system is run with: a preset or None, and the options that concern it.

    Roles that no system has, the ``orphans``, stay, to be refused by name.
    """
    given = dict(options)
    if given.get("policies"):
        given["policies"] = {
            role: name for role, name in given["policies"].items() if role in orphans or _has_role(cls, role)
        }
    foreign = () if cls.has_gpus else ("gpu", "gpus", "tp", "pp", "stack")
    if cls.has_dimms:
        return [(preset, given) for preset in presets]
    foreign = (*foreign, "dimms", "multipliers")
    return [(None, {key: value for key, value in given.items() if key not in foreign})]


def _with_settings(asked: list[Scenario], settings: Mapping[str, Any]) -> list[Scenario]:
    """Give each scenario the settings that its configuration has a place for; refuse those that none has."""
    trees = [one.configuration() for one in asked]
    errors = []
    for path, value in settings.items():
        has = [tree for tree in trees if has_path(tree, path)]
        try:
            for tree in has or trees[:1]:
                with_settings(tree, {path: value})
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ConfigErrors(tuple(errors))
    return [
        evolve(one, settings={path: value for path, value in settings.items() if has_path(tree, path)})
        for one, tree in zip(asked, trees, strict=True)
    ]
