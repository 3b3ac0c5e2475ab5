"""What the commands of the command line take, and what they make of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from attrs import field, frozen
from cyclopts import Parameter

from hetmem.errors import ConfigError

if TYPE_CHECKING:
    from hetmem.study.executors import Executor

Preempt = Literal["recompute", "swap"]
Composition = Literal["sum", "mixed"]

# Options of serving and parallelism, by the names that simulate() knows as well.
SERVING = (
    "tp", "pp", "stack", "token_budget", "kv_blocks", "block_size", "preempt", "swap_to", "admission", "host_step_us",
    "attention", "kv_memory", "prefix_reuse",
)  # fmt: skip


@Parameter(name="*")
@frozen(kw_only=True)
class Asked:
    """What a run, a comparison, a sweep and a search share.

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
    engine
        auto works each step out as fast as is exact; event is the reference, a process per device: equal tables.
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
    dimms: int | None = None
    multipliers: int | None = None
    policy: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False)] = ()
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative=(), consume_multiple=False)] = field(default=())
    truncate: Annotated[bool, Parameter(negative=())] = False
    seed: int = 0
    engine: Literal["auto", "event"] = "auto"

    def values(self, **others: Any) -> dict[str, Any]:
        """Return the values of a point, as :func:`hetmem.study.point.build` takes them."""
        from hetmem.study.point import FIELDS, POLICY

        given = {name: getattr(self, name) for name in FIELDS if hasattr(self, name)} | others
        policies = {f"{POLICY}{role}": name for role, name in _pairs("policy", self.policy).items()}
        return {k: v for k, v in given.items() if v is not None} | policies | _pairs("set", self.set_)


@Parameter(name="*")
@frozen(kw_only=True)
class Options(Asked):
    """What a run and a comparison share.

    Attributes
    ----------
    tp
        GPUs that share a layer by tensor parallelism; by default all of a stage.
    pp
        Pipeline stages; --tp times --pp is the number of GPUs.
    stack
        Software stack whose measured kernel times hold, such as vidur or vllm-0.14.
    token_budget
        The most new tokens of a step: longer prompts are processed in chunks.
    kv_blocks
        Blocks of the KV cache; by default 0.9 of the free memory.
    block_size
        Tokens of a KV block.
    preempt
        Whether a sequence whose blocks are needed is computed again or swapped out.
    swap_to
        Memory that sequences are swapped to, with --preempt swap: by default host.
    admission
        Order in which requests are admitted: fcfs, or shortest for the shortest prompt first.
    host_step_us
        Microseconds of the engine's own work per step, before its kernels.
    attention
        Attention of a step with prefill and decodes: a kernel each (sum), or one for all (mixed).
    kv_memory
        Memory of the KV cache: host puts it in host DRAM.
    prefix_reuse
        Reuse prompt blocks that others have computed, where a trace names them by hash.
    machine
        Another machine preset, such as m2cache-70b.
    carbon_grid
        Grid for operational carbon: a source or region of `hetmem show carbon`, g/kWh, or a CSV hour,g_per_kwh.
        PUE, lifetimes and tariff are set with --set accounting.pue=1.1 and the like.
    save
        Directory for Parquet tables and a manifest.
    json
        Print JSON.
    """

    tp: int | None = None
    pp: int | None = None
    stack: str | None = None
    token_budget: int | None = None
    kv_blocks: int | None = None
    block_size: int | None = None
    preempt: Preempt | None = None
    swap_to: str | None = None
    admission: str | None = None
    host_step_us: float | None = None
    attention: Composition | None = None
    kv_memory: str | None = None
    prefix_reuse: bool | None = None
    machine: str | None = None
    carbon_grid: str | None = None
    save: Path | None = None
    json: Annotated[bool, Parameter(negative=())] = False

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`hetmem.study.compare.compare`."""
        from hetmem.workload import fixed

        if (self.prompt is None) != (self.output is None):
            raise ConfigError("prompt" if self.prompt is None else "output", "--prompt and --output go together")
        work: Any = self.workload
        if self.prompt is not None and self.output is not None:
            work = fixed(self.prompt, self.output, self.batch or 1)
        return {
            "model": self.model, "workload": work, "batch": self.batch, "requests": self.requests,
            "rate": self.rate, "gpu": self.gpu, "gpus": self.gpus, "machine": self.machine,
            "grid": self.carbon_grid, "dimms": self.dimms,
            "multipliers": self.multipliers, "policies": _pairs("policy", self.policy),
            "settings": _pairs("set", self.set_), "truncate": self.truncate, "seed": self.seed,
            "engine": self.engine,
            **{name: getattr(self, name) for name in SERVING},
        }  # fmt: skip


@Parameter(name="*")
@frozen(kw_only=True)
class Places:
    """Where many runs go, and who runs them.

    Attributes
    ----------
    out
        Directory of the results; a sweep that was stopped goes on from what is finished there.
    workers
        Local processes; 0 runs in this one. By default one per processor.
    dask
        Address of a Dask scheduler, whose workers take the place of local processes.
    retry_failed
        Run the points again that failed before.
    tables
        Keep the tables of each run, beside its manifest.
    json
        Print JSON.
    """

    out: Path
    workers: int | None = None
    dask: str | None = None
    retry_failed: Annotated[bool, Parameter(negative=())] = False
    tables: Annotated[bool, Parameter(negative=())] = False
    json: Annotated[bool, Parameter(negative=())] = False

    def executor(self) -> "Executor":
        """Return who runs the points."""
        from hetmem.study.executors import DaskExecutor, ProcessExecutor, SerialExecutor

        if self.dask is not None:
            if self.workers is not None:
                raise ConfigError("workers", "is for local processes; a Dask cluster has its own")
            return DaskExecutor.connect(self.dask)
        return SerialExecutor() if self.workers == 0 else ProcessExecutor(self.workers)


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
