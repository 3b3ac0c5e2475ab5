"""The command line: ``hetmem run``, ``compare``, ``reproduce``, ``list`` and ``show``.

Results go to standard output, progress and errors to standard error. Bad input, a run whose model does not fit and
a comparison in which every system refuses end with status 2; a broken conservation law and a deadlock with status 3.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from attrs import field, frozen
from cyclopts import Parameter

from hetmem import show
from hetmem._version import __version__
from hetmem.errors import ConfigError, ConservationError, DeadlockError, HetmemError
from hetmem.hardware.config import ASSUMPTIONS
from hetmem.hardware.ndp import PRESETS
from hetmem.monitor.save import check_target
from hetmem.study.compare import Comparison, compare
from hetmem.study.scenario import Scenario
from hetmem.workload import fixed

app = cyclopts.App(
    name="hetmem", help="Simulate LLM inference on heterogeneous memory.", version=__version__, help_format="plaintext"
)
Sets = Literal["as-published", "fair", "both"]
DimmPresets = Literal["paper-fit", "datasheet", "both"]


@Parameter(name="*")
@frozen(kw_only=True)
class Options:
    """What a run and a comparison share.

    Attributes
    ----------
    model
        A name of `hetmem list models`, or the path of a Hugging Face config.json.
    workload
        A name of `hetmem list workloads`, or a trace or length table (CSV or JSONL, .gz too).
    batch
        Size of a static batch; the most sequences at once when requests arrive over time. By default 4, and 1 with
        --prompt and --output.
    prompt
        Tokens of every prompt, with --output: a fixed workload instead of --workload.
    output
        Tokens generated for every request, with --prompt.
    requests
        Number of requests. By default 8 of a workload by name, all of a file's, and one batch with --prompt and
        --output.
    rate
        Requests per second of a Poisson process; without it all are present at the start, or as the trace says.
    gpu
        Another GPU: an id of `hetmem list devices`.
    gpus
        Number of GPUs.
    machine
        Another machine preset, such as m2cache-70b.
    grid
        Grid for operational carbon: a source or region of `hetmem show carbon`, g/kWh, or a CSV hour,g_per_kwh.
        PUE, lifetimes and tariff are set with --set accounting.pue=1.1 and the like.
    dimms
        Number of NDP-DIMMs.
    multipliers
        Multipliers of each NDP core.
    policy
        ROLE=NAME, as in `hetmem list policies`; repeatable.
    set_
        PATH=VALUE of the configuration, such as machine.dimm.count=4; repeatable.
    truncate
        Cut requests that exceed the model's context instead of dropping them.
    seed
        Seed of every random stream.
    save
        Directory for Parquet tables and a manifest.
    json
        Print JSON.
    """

    model: str = "llama2-70b"
    workload: str = "chat"
    batch: Annotated[int | None, Parameter(name=("--batch", "--max-num-seqs"))] = None
    prompt: int | None = None
    output: int | None = None
    requests: int | None = None
    rate: float | None = None
    gpu: str | None = None
    gpus: int | None = None
    machine: str | None = None
    grid: str | None = None
    dimms: int | None = None
    multipliers: int | None = None
    policy: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False)] = ()
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative=(), consume_multiple=False)] = field(default=())
    truncate: Annotated[bool, Parameter(negative=())] = False
    seed: int = 0
    save: Path | None = None
    json: Annotated[bool, Parameter(negative=())] = False

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`hetmem.study.compare.compare`."""
        if (self.prompt is None) != (self.output is None):
            raise ConfigError("prompt" if self.prompt is None else "output", "--prompt and --output go together")
        work: Any = self.workload
        if self.prompt is not None and self.output is not None:
            work = fixed(self.prompt, self.output, self.batch or 1)
        return {
            "model": self.model, "workload": work, "batch": self.batch, "requests": self.requests,
            "rate": self.rate, "gpu": self.gpu, "gpus": self.gpus, "machine": self.machine, "grid": self.grid,
            "dimms": self.dimms,
            "multipliers": self.multipliers, "policies": _pairs("policy", self.policy),
            "settings": _pairs("set", self.set_), "truncate": self.truncate, "seed": self.seed,
        }  # fmt: skip


DEFAULTS = Options()


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
    result = _compare([system], options, assumptions, dimm_preset or PRESETS[1])
    if result.all_refused:
        raise ConfigError(system, str(result.rows[0]["refused"]).removeprefix(f"{system}: "))
    _finish(result, options)
    return 0


@app.command(name="compare")
def compare_command(
    *systems: str, options: Options = DEFAULTS, assumptions: Sets = "both", dimm_preset: DimmPresets = "both"
) -> int:
    """Compare systems on the same model and the same requests; without names, all of them.

    Parameters
    ----------
    systems
        Names of `hetmem list systems`.
    assumptions
        Which rates the runs believe: the papers' own, the measured ones, or both in turn.
    dimm_preset
        Which reading of the NDP-DIMMs.
    """
    result = _compare(list(systems), options, assumptions, dimm_preset)
    _finish(result, options)
    return 2 if result.all_refused else 0


@app.command(name="reproduce")
def reproduce_command(name: str, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Print a paper's results beside the simulator's, each with a verdict.

    Parameters
    ----------
    name
        What to reproduce, such as hermes-baselines.
    json
        Print JSON.
    """
    from hetmem.study.reproduce import as_json, reproduce

    with show.waiting(f"reproducing {name}"):
        rows = reproduce(name)
    if json:
        _print_json(as_json(rows))
    else:
        show.reproduction(name, rows)
    return 0


@app.command(name="list")
def list_command(
    what: Literal["systems", "models", "devices", "machines", "workloads", "policies", "assumptions", "reproductions"],
    /, *,
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
    rows = show.listing(what)
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
    found = show.facts(name)
    if json:
        _print_json(found)
    else:
        show.fact_tables(found)
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


def _compare(systems: list[str], options: Options, assumptions: str, preset: str) -> Comparison:
    if options.save is not None:
        check_target(options.save)
    with show.progress() as report:
        return compare(
            systems or None,
            assumptions=ASSUMPTIONS if assumptions == "both" else (assumptions,),
            dimm_presets=PRESETS if preset == "both" else (preset,),
            report=report,
            **options.arguments(),
        )


def _finish(result: Comparison, options: Options) -> None:
    if options.save is not None:
        done = [run for run in result.runs if run is not None]
        for run in done:
            run.save(options.save if len(result.runs) == 1 else options.save / _slug(run.scenario))
    if options.json:
        _print_json(result.as_json())
    else:
        show.comparison(result)


def _slug(asked: Scenario) -> str:
    return "_".join(part for part in (asked.system.name, asked.assumptions, asked.dimm_preset) if part)


def _require_parts(system: str, options: Options, preset: str | None) -> None:
    from hetmem.system import system_class

    for name, value in (
        ("dimms", options.dimms), ("multipliers", options.multipliers), ("dimm-preset", preset)
    ):  # fmt: skip
        if value is not None and not system_class(system).has_dimms:
            raise ConfigError(name, f"{system} has no NDP-DIMMs")
    for name, asked in (("gpu", options.gpu), ("gpus", options.gpus)):
        if asked is not None and not system_class(system).has_gpus:
            raise ConfigError(name, f"{system} has no GPU")


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            form = "PATH=VALUE" if option == "set" else "ROLE=NAME"
            raise ConfigError(option, f"expected {form}, not {text!r}")
        if key in pairs:
            raise ConfigError(option, f"{key} is given twice")
        pairs[key] = value
    return pairs


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1))


def _complain(text: str) -> None:
    for line in text.splitlines():
        print(f"hetmem: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
