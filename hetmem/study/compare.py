"""Systems side by side: the same model, the same requests, under each assumption set and DIMM preset."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from hetmem._version import __version__
from hetmem.errors import CapacityError, ConfigError, ConfigErrors, HetmemError, UnsupportedError
from hetmem.hardware.config import ASSUMPTIONS
from hetmem.hardware.ndp import PRESETS
from hetmem.model import ModelSpec
from hetmem.monitor.save import SCHEMA_VERSION
from hetmem.study.run import Run
from hetmem.study.scenario import Scenario, scenario
from hetmem.study.settings import has_path, with_settings
from hetmem.study.simulate import Progress, run_scenario
from hetmem.system import SYSTEMS, System

MEASURED = (
    "tokens_per_s", "energy_per_token_j", "energy_phase_j", "carbon_operational_g_per_token",
    "carbon_embodied_g_per_token", "cost_usd_per_mtoken", "ssd", "unknown", "ttft_s", "tpot_s", "latency_s",
    "time_share", "bound", "requests",
)  # fmt: skip
Report = Callable[[Scenario, float, int], None]


@frozen(eq=False)
class Comparison:
    """Rows, and behind each its run, or None where the system refused.

    ``not_counted`` gives the components of each system whose energy is not known.
    """

    rows: list[dict[str, Any]]
    runs: list[Run | None] = field(repr=False)
    seed: int

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
    systems: Sequence[str | type[System]] | None = None, *, model: str | ModelSpec = "llama2-70b",
    workload: Any = "chat", assumptions: Iterable[str] = ASSUMPTIONS, dimm_presets: Iterable[str] = PRESETS,
    settings: Mapping[str, Any] | None = None, trace: bool = False, report: Report | None = None, **options: Any,
) -> Comparison:  # fmt: skip
    """Run several systems on the same requests.

    Parameters
    ----------
    systems
        Names; by default every system.
    assumptions, dimm_presets
        The sets to run under; a system without DIMMs has no preset.
    settings
        Paths and values; a path applies to the systems whose machine has it.
    report
        Called as ``report(scenario, done, n)`` while the runs go on, ``done`` of ``n`` being finished.
    options
        As in :func:`hetmem.simulate`; ``dimms`` and ``multipliers`` apply to systems with DIMMs.

    Raises
    ------
    HetmemError
        For bad input, before anything runs. A system that cannot run the model is not an error: its row says why.
    """
    chosen = list(SYSTEMS) if not systems else list(systems)
    asked = [
        scenario(name, model=model, workload_=workload, assumptions=assumed, dimm_preset=preset, **given)
        for name in chosen
        for assumed in assumptions
        for preset, given in _variants(name, list(dimm_presets), options)
    ]
    asked = _with_settings(asked, settings or {})
    runs: list[Run | None] = []
    rows = []
    for k, one in enumerate(asked):
        run, row = attempt(one, trace=trace, progress=_progress(report, one, k, len(asked)))
        runs.append(run)
        rows.append(row)
    return Comparison(rows, runs, asked[0].seed if asked else 0)


def attempt(
    asked: Scenario, *, trace: bool = False, progress: Progress | None = None
) -> tuple[Run | None, dict[str, Any]]:
    """Return the run and its row, or None and a row with the reason when the system refuses."""
    try:
        run = run_scenario(asked, trace=trace, progress=progress)
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


def _variants(
    name: str | type[System], presets: list[str], options: Mapping[str, Any]
) -> list[tuple[str | None, dict[str, Any]]]:
    from hetmem.system import system_class

    cls = system_class(name) if isinstance(name, str) else name
    foreign = () if cls.has_gpus else ("gpu", "gpus")
    if cls.has_dimms:
        return [(preset, dict(options)) for preset in presets]
    foreign = (*foreign, "dimms", "multipliers")
    return [(None, {key: value for key, value in options.items() if key not in foreign})]


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
