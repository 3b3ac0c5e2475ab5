"""The command line: ``hetmem run``, ``compare``, ``sweep``, ``search``, ``reproduce``, ``bench``, ``list``, ``show``.

Results go to standard output, progress and errors to standard error. Bad input, a run whose model does not fit and
a comparison in which every system refuses end with status 2; a broken conservation law and a deadlock with status 3.

A command imports what it runs: help, and a mistake in a command's words, load none of it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from hetmem import progress
from hetmem._version import __version__
from hetmem.errors import ConfigError, ConservationError, DeadlockError, HetmemError
from hetmem.options import Asked, Options, Places
from hetmem.study.metrics import OBJECTIVES

if TYPE_CHECKING:
    from hetmem.study.compare import Comparison
    from hetmem.study.scenario import Scenario

app = cyclopts.App(
    name="hetmem", help="Simulate LLM inference on heterogeneous memory.", version=__version__, help_format="plaintext"
)
Sets = Literal["as-published", "fair", "both"]
DimmPresets = Literal["paper-fit", "datasheet", "both"]
Set = Literal["as-published", "fair"]
DimmPreset = Literal["paper-fit", "datasheet"]


DEFAULTS = Options()
ASKED = Asked()


@app.command(name="run")
def run_command(
    system: str, /, *, options: Options = DEFAULTS, assumptions: Sets = "fair", dimm_preset: DimmPresets | None = None
) -> int:
    """Run one system.

    Parameters
    ----------
    system
        A name of `hetmem list systems`.
    assumptions
        Which rates the run believes: the papers' own, the measured ones, or both in turn.
    dimm_preset
        Which reading of the NDP-DIMMs; datasheet unless told otherwise.
    """
    _require_parts(system, options, dimm_preset)
    result = _compare([system], options, assumptions, dimm_preset or "datasheet")
    if result.all_refused:
        raise ConfigError(system, str(result.rows[0]["refused"]).removeprefix(f"{system}: "))
    _finish(result, options)
    return 0


@app.command(name="compare")
def compare_command(
    *systems: str, options: Options = DEFAULTS, assumptions: Sets = "both", dimm_preset: DimmPresets = "both",
    workers: int | None = None,
) -> int:  # fmt: skip
    """Compare systems on the same model and the same requests; without names, all of them.

    Parameters
    ----------
    systems
        Names of `hetmem list systems`.
    assumptions
        Which rates the runs believe: the papers' own, the measured ones, or both in turn.
    dimm_preset
        Which reading of the NDP-DIMMs.
    workers
        Processes; one a processor unless told otherwise.
    """
    result = _compare(list(systems), options, assumptions, dimm_preset, workers)
    _finish(result, options)
    return 2 if result.all_refused else 0


@app.command(name="sweep")
def sweep_command(
    system: str, /, *, options: Asked = ASKED, places: Places,
    grid: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)] = (),
    points: Path | None = None, assumptions: Set = "fair", dimm_preset: DimmPreset = "datasheet",
) -> int:  # fmt: skip
    """Run many points of one system, a dataset with a row for each.

    Parameters
    ----------
    system
        A name of `hetmem list systems`.
    grid
        NAME=VALUE,VALUE,…: an option of this command such as batch or model, policy.ROLE, or a path of the
        configuration; several, every combination is a point.
    points
        Instead of a grid, a CSV file with a header of such names, or a JSONL file; a row is a point.
    assumptions
        Which rates the runs believe; a grid over assumptions takes both.
    dimm_preset
        Which reading of the NDP-DIMMs.
    """
    from hetmem import show
    from hetmem.study.point import grid as expand
    from hetmem.study.point import grid_choices, read_points
    from hetmem.study.sweep import sweep

    if bool(grid) == (points is not None):
        raise ConfigError("grid", "expected --grid or --points, and not both")
    base = options.values(system=system, assumptions=assumptions, dimm_preset=dimm_preset)
    asked = expand(grid_choices(grid), base) if points is None else [base | row for row in read_points(points)]
    with places.executor() as executor, progress.points() as report:
        result = sweep(
            asked, places.out, executor=executor, retry_failed=places.retry_failed, tables=places.tables, report=report
        )
    if places.json:
        _print_json(result.as_json())
    else:
        show.sweep(result)
    return 1 if result.failed else 0


@app.command(name="search")
def search_command(
    system: str, /, *, options: Asked = ASKED, places: Places,
    space: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)],
    objective: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False)] = OBJECTIVES,
    budget: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False)] = (),
    trials: int = 100, sampler_seed: int = 0, assumptions: Set = "fair", dimm_preset: DimmPreset = "datasheet",
) -> int:  # fmt: skip
    """Look for the best machines of one system under budgets, and print the Pareto front.

    Parameters
    ----------
    system
        A name of `hetmem list systems`.
    space
        NAME=VALUE,VALUE,… or NAME=LOW..HIGH or NAME=LOW..HIGH:STEP, with names as in a sweep's grid; several.
    objective
        A figure of `hetmem list metrics`; repeatable.
    budget
        FIGURE=LIMIT: the most of a figure of which less is better, the least of another; repeatable.
    trials
        Points to propose; where the space has no more, all of it is tried.
    sampler_seed
        Seed of the proposals.
    assumptions
        Which rates the runs believe.
    dimm_preset
        Which reading of the NDP-DIMMs.
    """
    from hetmem import plot_search, show
    from hetmem.study.search import read_budgets, search
    from hetmem.study.space import space as dimensions

    base = options.values(system=system, assumptions=assumptions, dimm_preset=dimm_preset)
    with places.executor() as executor, progress.points() as report:
        result = search(
            base, dimensions(space), places.out, executor=executor, objectives=objective,
            budgets=read_budgets(budget), trials=trials, seed=sampler_seed, retry_failed=places.retry_failed,
            tables=places.tables, report=report,
        )  # fmt: skip
    figure = plot_search.save(result)
    if places.json:
        _print_json({**result.as_json(), "figure": None if figure is None else str(figure)})
    else:
        show.search(result, figure)
    return 0 if result.front else 2


@app.command(name="reproduce")
def reproduce_command(
    name: str, /, *, json: Annotated[bool, Parameter(negative=())] = False, plot: Path | None = None
) -> int:
    """Print a paper's results beside the simulator's, each with a verdict.

    Parameters
    ----------
    name
        What to reproduce, such as hermes-baselines.
    json
        Print JSON.
    plot
        Image of published and simulated results, where the reproduction has one.
    """
    from hetmem import show
    from hetmem.study.reproduce import as_json, draw, reproduce

    with progress.waiting(f"reproducing {name}"):
        rows = reproduce(name)
        if plot is not None:
            draw(name, plot)
    if json:
        _print_json(as_json(rows))
    else:
        show.reproduction(name, rows)
    return 0


@app.command(name="calibrate")
def calibrate_command(
    table: Path, /, *, device: str,
    where: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False)] = (),
    shapes: Path | None = None,
    hold_out: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False)] = (),
    out: Path | None = None, plot: Path | None = None, stack: str = "user",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:  # fmt: skip
    """Fit the kernel laws of a GPU to measured kernel times, with cross-validated error.

    Parameters
    ----------
    table
        CSV with the columns m,n,k,time_us or batch,n_q,n_kv,head_dim,kv_len,time_us, or of a known profile.
    device
        Id of the GPU, whose datasheet supplies the peaks.
    where
        Condition for rows to use, such as gpu=a100, n>=1024 or batch%8=0; repeatable.
    shapes
        CSV with the dimensions of the models that the table names; by default from the catalogue.
    hold_out
        Condition for rows to test on and not to fit, such as model=internlm-20b; repeatable.
    out
        TOML file for the device entry; a catalogue folder's kernel_laws.toml is used from then on.
    plot
        Image of predicted over measured times.
    stack
        Name of the software stack that was measured.
    json
        Print JSON.
    """
    from hetmem import show
    from hetmem.study.calibrate import calibrate

    with progress.waiting(f"calibrating {device}"):
        found = calibrate(table, device, where, shapes, hold_out, out, plot, stack=stack)
    if json:
        _print_json(found.as_dict())
    else:
        show.calibration(found)
    return 0


@app.command(name="list")
def list_command(
    what: Literal[
        "systems", "models", "devices", "machines", "workloads", "policies", "assumptions", "metrics", "reproductions"
    ], /, *,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:  # fmt: skip
    """List what there is.

    Parameters
    ----------
    what
        Which list.
    json
        Print JSON.
    """
    from hetmem import show
    from hetmem.inventory import listing

    rows = listing(what)
    if json:
        _print_json({what: rows})
    else:
        show.table(rows)
    return 0


@app.command(name="show")
def show_command(name: str, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Show every number of a device, model, machine, system, workload or assumption set, with source and grade.

    Parameters
    ----------
    name
        A name of `hetmem list`, or an assumption set.
    json
        Print JSON.
    """
    from hetmem import show
    from hetmem.inventory import facts

    found = facts(name)
    if json:
        _print_json(found)
    else:
        show.fact_tables(found)
    return 0


@app.command(name="bench")
def bench_command(*, full: Annotated[bool, Parameter(negative=())] = False,
                  json: Annotated[bool, Parameter(negative=())] = False) -> int:  # fmt: skip
    """Measure the simulator's own speed and memory, in units of a bare SimPy timeout.

    Parameters
    ----------
    full
        Serve up to a million requests, which takes minutes; otherwise up to ten thousand.
    json
        Print JSON.
    """
    from hetmem import show
    from hetmem.study.bench import bench

    with progress.waiting("measuring"):
        found = bench(full)
    if json:
        _print_json(found)
    else:
        show.figures(found)
    return 0


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line, by default the words that the process was given, and exit with its status."""
    try:
        status = app(sys.argv[1:] if words is None else words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        _complain(" ".join(str(error).split()))
        status = 2
    except (ConservationError, DeadlockError) as error:
        _complain(f"{error}\nthis is a bug in hetmem or in a policy, please report it")
        status = 3
    except HetmemError as error:
        _complain(str(error))
        status = 2
    except KeyboardInterrupt:
        _complain("interrupted")
        status = 130
    except BrokenPipeError:
        sys.stderr.close()
        status = 0
    raise SystemExit(status)


def _compare(
    systems: list[str], options: Options, assumptions: str, preset: str, workers: int | None = 1
) -> "Comparison":
    from hetmem.hardware.config import ASSUMPTIONS
    from hetmem.hardware.ndp import PRESETS
    from hetmem.monitor.save import check_target
    from hetmem.study.compare import compare

    if options.save is not None:
        check_target(options.save)
    with progress.runs() as report:
        return compare(
            systems or None,
            assumptions=ASSUMPTIONS if assumptions == "both" else (assumptions,),
            dimm_presets=PRESETS if preset == "both" else (preset,),
            report=report,
            workers=workers,
            **options.arguments(),
        )


def _finish(result: "Comparison", options: Options) -> None:
    from hetmem import show

    if options.save is not None:
        done = [run for run in result.runs if run is not None]
        for run in done:
            run.save(options.save if len(result.runs) == 1 else options.save / _slug(run.scenario))
    if options.json:
        _print_json(result.as_json())
    else:
        show.comparison(result)


def _slug(asked: "Scenario") -> str:
    return "_".join(part for part in (asked.system.name, asked.assumptions, asked.dimm_preset) if part)


def _require_parts(system: str, options: Options, preset: str | None) -> None:
    from hetmem.system import system_class

    for name, value in (
        ("dimms", options.dimms), ("multipliers", options.multipliers), ("dimm-preset", preset)
    ):  # fmt: skip
        if value is not None and not system_class(system).has_dimms:
            raise ConfigError(name, f"{system} has no NDP-DIMMs")
    for name in ("gpu", "gpus", "tp", "pp", "stack"):
        if getattr(options, name) is not None and not system_class(system).has_gpus:
            raise ConfigError(name, f"{system} has no GPU")


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1))


def _complain(text: str) -> None:
    for line in text.splitlines():
        print(f"hetmem: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
