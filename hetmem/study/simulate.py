"""One run: the system, its machine and its requests put together, run to the end and checked."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import evolve

from hetmem.engine.decode_loop import DecodeLoop
from hetmem.engine.evaluator import Evaluator
from hetmem.engine.executor import Executor, OnTask
from hetmem.engine.floor import FloorCheck
from hetmem.engine.kv_cache import KvCache
from hetmem.engine.prefix_cache import PrefixCache, has_hashes
from hetmem.engine.scheduler import ENGINE, Scheduler
from hetmem.engine.step import StepOutcome
from hetmem.engine.swap import SwapSpace
from hetmem.errors import CapacityError, ConservationError, UnknownNameError, UnsupportedError
from hetmem.hardware.board import BoardConfig
from hetmem.hardware.clock import Clock
from hetmem.hardware.config import MachineConfig
from hetmem.hardware.lane import Lane
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine, Unit
from hetmem.hardware.server import Server
from hetmem.model import ModelSpec
from hetmem.monitor.energy import Energy, account
from hetmem.monitor.phases import Meter, PhaseAccount, total_fj
from hetmem.monitor.readings import Readings
from hetmem.monitor.recorder import Recorder
from hetmem.study.checked_policy import CheckedAdmission, CheckedBatching
from hetmem.study.footprint import footprint, inventory
from hetmem.study.run import Run
from hetmem.study.scenario import POLICIES, Configuration, Scenario, Serving, scenario, unstructured
from hetmem.study.speculating import draft_model, speculation
from hetmem.system import Setup, System
from hetmem.units import to_ps, to_s
from hetmem.workload import FixedBatch

Progress = Callable[[int, int], None]

#: How task graphs are run: ``auto`` works each step out as fast as is exact; ``event`` is the reference, with every
#: server a process. Their tables are equal.
ENGINES = ("auto", "event")


def simulate(
    system: str | type[System], *, model: str | ModelSpec, workload: Any = "chat",
    machine: MachineConfig | BoardConfig | str | None = None, trace: bool = False, progress: Progress | None = None,
    engine: str = ENGINES[0], **options: Any,
) -> Run:  # fmt: skip
    """Simulate one system serving one workload, and return the run.

    Parameters
    ----------
    system
        A name of ``hetmem list systems``, or a class.
    model
        A name of ``hetmem list models``, the path of a Hugging Face ``config.json``, or a spec.
    workload
        ``"chat"``, ``"summarize"``, a file, or a description such as :func:`hetmem.fixed`.
    machine
        The machine, or the name of a preset; by default the system's own.
    trace
        Keep a row per task.
    progress
        Called as ``progress(requests finished, requests in)``.
    engine
        One of :data:`ENGINES`.
    options
        The other fields of :class:`hetmem.study.scenario.Scenario`: ``assumptions``, ``batch``, ``requests``,
        ``rate``, ``gpu``, ``gpus``, ``tp``, ``pp``, ``stack``, ``dimms``, ``token_budget``, ``kv_blocks``,
        ``block_size``, ``preempt``, ``swap_to``, ``host_step_us``, ``attention``, ``policies``, ``settings``,
        ``seed``, …; ``max_num_seqs`` for ``batch`` and ``admission`` for that policy.

    Raises
    ------
    HetmemError
        For a name that is not known, a value out of range, a model that does not fit (:class:`CapacityError`),
        a model that the system refuses (:class:`UnsupportedError`).
    """
    return run_scenario(
        scenario(system, model=model, workload_=workload, machine=machine, **options),
        trace=trace, progress=progress, engine=engine,
    )  # fmt: skip


def run_scenario(
    asked: Scenario, *, trace: bool = False, progress: Progress | None = None, engine: str = ENGINES[0]
) -> Run:
    """Run a checked scenario; see :func:`simulate`."""
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    config = asked.configuration()
    try:
        with _few_collections():
            return _run(asked, config, trace, progress, engine)
    except CapacityError as error:
        raise _of_the_whole(error, config) from None


@contextmanager
def _few_collections() -> Iterator[None]:
    """Let the garbage collector come seldom: a run makes many objects, keeps some and leaves hardly any cycles."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], 20_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _of_the_whole(error: CapacityError, config: Configuration) -> CapacityError:
    """Return the error with the memory of the GPU where only the usable part of it was counted."""
    machine = config.machine
    if (
        isinstance(machine, MachineConfig)
        and error.memory.startswith("gpu")
        and error.capacity == machine.gpu_usable_bytes < machine.gpu.capacity_bytes
    ):
        return CapacityError(
            error.memory, error.asked, error.free, error.capacity, error.held, machine.gpu.capacity_bytes
        )
    return error


def _run(asked: Scenario, config: Configuration, trace: bool, progress: Progress | None, engine: str) -> Run:
    requests = asked.workload.requests(
        max_context=config.model.max_context, n=asked.requests, rate=asked.rate, seed=asked.seed,
        truncate=asked.truncate,
    )  # fmt: skip
    if not len(requests) and requests.dropped:
        raise UnsupportedError(asked.system.name, _beyond_context(config.model))
    longest = int((requests.prompt_tokens + requests.output_tokens).max()) if len(requests) else 1
    planner = asked.system(
        Setup(
            config.model,
            config.precision,
            config.machine,
            asked.assumptions,
            config.serving.batch,
            longest,
            config.serving.block_tokens,
            asked.policies,
            config.serving.unroll_layers,
            _kv_tokens(config.serving, longest),
            min(config.serving.batch * longest, config.serving.token_budget or 1 << 62),
            asked.seed,
            draft_model(config),
            config.activity,
            config.serving.attention,
            config.serving.kv_memory,
        )
    )
    drafts = speculation(asked, config)
    machine = planner.machine()
    if config.serving.host_step_s:
        machine = evolve(machine, units=(*machine.units, Unit(ENGINE, ENGINE, None, None)))
    env = Clock()
    enforced = config.serving.enforce_capacity
    servers: Mapping[str, Server | Lane]
    servers, ledger = machine.elaborate(env, enforced) if engine == "event" else machine.lanes(enforced)
    planner.place(ledger)
    kv = KvCache(
        ledger, config.serving.block_tokens, planner.kv_bytes_per_token(), config.serving.kv_share,
        config.serving.kv_blocks,
    )  # fmt: skip
    _require_batch(asked, config, kv, ledger)
    busy = Readings({name: server.busy_at for name, server in servers.items()})
    recorder = Recorder(busy, trace)
    sizes = _batches(config)
    executor = _executor(engine, env, servers, recorder.task if trace else None, overlapping=len(sizes) > 1)
    floor = FloorCheck(planner.floor_s)
    meters = [Meter(unit, servers[unit.name].energy_at) for unit in machine.units]
    phases = PhaseAccount(meters, busy, _always_on(machine))

    def on_step(outcome: StepOutcome) -> None:
        floor.check(outcome)
        phases.step(outcome)

    scheduler = Scheduler(
        env, executor, ledger, planner, on_step, to_ps(config.serving.host_step_s), planner.swap_graph, busy
    )
    swap = _swap_space(config.serving, planner, ledger, kv)
    prefixes = PrefixCache(kv) if config.serving.prefix_reuse and has_hashes(requests.prefix_blocks) else None
    if drafts is not None and len(sizes) > 1:
        raise UnsupportedError(planner.name, "speculates on one pipeline stage only")
    loop: DecodeLoop | None = None
    for size in sizes:
        loop = DecodeLoop(
            env, scheduler, kv, recorder, requests, _policy(asked, "batching", size), _policy(asked, "admission", size),
            config.serving.token_budget, progress, drafts, planner.needs_contexts, swap=swap, prefixes=prefixes,
            beside=loop,
        )  # fmt: skip
    assert loop is not None
    for number, reason in requests.dropped:
        recorder.dropped(number, -1, -1, -1, reason)
    env.run()
    executor.check_drained()
    loop.check_conserved()
    floor.raise_if_broken()
    _check_busy(servers, env.now)
    if not loop.finished:
        room = kv.total * kv.block_tokens
        raise UnsupportedError(asked.system.name, f"no request fits in the KV cache of {room} tokens")
    phases.close(env.now)
    energy = _energy(machine, servers, env.now, planner.spent_fj(), phases.by_phase())
    counted = planner.counters()
    counters = {
        "steps": scheduler.steps, "events": next(env._eid), "preemptions": loop.preemptions,
        "refused_on_arrival": loop.intake.refused, "tasks": sum(server.jobs for server in servers.values()),
        "kv_blocks_total": kv.total, "kv_blocks_peak": kv.peak, "kv_blocks_allocated": kv.allocated,
        "kv_blocks_freed": kv.freed, "kv_blocks_held": kv.used, "bytes_over_capacity": ledger.excess_bytes,
        **counted,
    }  # fmt: skip
    if swap is not None:
        counters |= {"kv_blocks_swapped_out": swap.out, "kv_blocks_swapped_back": swap.back}
    if prefixes is not None:
        counters |= {"prefix_blocks_asked": prefixes.asked, "prefix_blocks_reused": prefixes.reused}
    return Run(
        scenario=asked, requests=recorder.requests, steps=recorder.steps, utilization=recorder.utilization,
        tasks=recorder.tasks, energy=energy, elapsed_ps=env.now,
        tables={**planner.tables(), **loop.tables()},
        busy_ps={name: server.busy_at(env.now) for name, server in servers.items()},
        output_tokens=loop.delivered,
        counters=counters,
        footprint=footprint(
            inventory(machine, config.machine, ledger), phases.spells(), to_s(env.now), config.accounting,
            (counted.get("ssd_bytes_read", 0), counted.get("ssd_bytes_written", 0)),
        ),
        configuration=unstructured(config) | {"workload": asked.workload.describe(), "seed": asked.seed,
                                              "assumptions": asked.assumptions, "dimm_preset": asked.dimm_preset,
                                              "decisions": dict(planner.decisions()),
                                              "stack": _stack(config.machine)},
    )  # fmt: skip


def _executor(
    engine: str, env: Clock, servers: Mapping[str, Any], on_task: OnTask | None, overlapping: bool
) -> Executor | Evaluator:
    return Executor(env, servers, on_task) if engine == "event" else Evaluator(env, servers, on_task, overlapping)


def _stack(machine: MachineConfig | BoardConfig) -> str | None:
    """Return the software stack whose kernel times hold; None without GPUs."""
    return machine.gpu_law.stack if isinstance(machine, MachineConfig) else None


def _batches(config: Configuration) -> list[int]:
    """Return the most sequences of each decode loop: a loop per pipeline stage, none without sequences."""
    stages = config.machine.stages if isinstance(config.machine, MachineConfig) else 1
    batch = config.serving.batch
    sizes = (batch // stages + (k < batch % stages) for k in range(stages))
    return [size for size in sizes if size]


def _swap_space(serving: Serving, planner: System, ledger: Ledger, kv: KvCache) -> SwapSpace | None:
    if serving.swap_to is None:
        return None
    known = planner.swap_memories()
    if serving.swap_to not in known:
        names = f"it has {', '.join(known)}" if known else "it has none"
        raise UnsupportedError(planner.name, f"no memory {serving.swap_to!r} to swap keys and values to; {names}")
    return SwapSpace(ledger, serving.swap_to, kv)


def _policy(asked: Scenario, role: str, batch: int) -> Any:
    chosen = asked.policies.get(role)
    if chosen is not None and not isinstance(chosen, str):
        return (CheckedBatching if role == "batching" else CheckedAdmission)(chosen)
    if role == "batching":
        return POLICIES[role][asked.batching()](batch)
    return POLICIES[role][chosen or "fcfs"]()


def _kv_tokens(serving: Serving, longest: int) -> int:
    """Return the tokens that must find room for the largest batch at its longest to fit the KV cache."""
    if serving.kv_blocks is not None:
        return serving.kv_blocks * serving.block_tokens
    per_sequence = -(-longest // serving.block_tokens) * serving.block_tokens
    return math.ceil(serving.batch * per_sequence / serving.kv_share)


def _require_batch(asked: Scenario, config: Configuration, kv: KvCache, ledger: Ledger) -> None:
    """Refuse a fixed batch whose keys and values do not fit together: it would silently run smaller."""
    work = asked.workload
    if not isinstance(work, FixedBatch) or asked.arrivals:
        return
    tokens = work.prompt + work.output - 2 + config.serving.tlp
    blocks = min(config.serving.batch, asked.requests or work.batch) * kv.blocks_for(tokens)
    if blocks > kv.total:
        memory = next(iter(kv.block_bytes))
        held = tuple((owner, n) for name, owner, n in ledger.holdings() if name == memory)
        per_block = kv.block_bytes[memory]
        raise CapacityError(memory, blocks * per_block, kv.total * per_block, ledger.capacities[memory], held)


def _beyond_context(model: ModelSpec) -> str:
    return f"every request exceeds the context of {model.id}, {model.max_context} tokens; --truncate cuts requests"


def _check_busy(servers: Mapping[str, Server | Lane], elapsed_ps: int) -> None:
    for name, server in servers.items():
        if not 0 <= server.busy_at(elapsed_ps) <= elapsed_ps:
            raise ConservationError(
                "busy + idle = elapsed", f"{name} was busy {server.busy_at(elapsed_ps)} of {elapsed_ps} ps"
            )


def _always_on(machine: Machine) -> tuple[tuple[str, float | None], ...]:
    return (*((m.component, m.idle_w) for m in machine.memories), ("base", machine.base_w))


def _energy(
    machine: Machine, servers: Mapping[str, Server | Lane], elapsed_ps: int, spent_fj: Mapping[str, Mapping[str, int]],
    by_phase: Mapping[str, Mapping[str, int]],
) -> Energy:  # fmt: skip
    """Return the account; what a system booked by component must be what its servers spent."""
    for name, parts in spent_fj.items():
        if sum(parts.values()) != servers[name].energy_fj:
            raise ConservationError(
                "energy = sum of its parts", f"{name} spent {servers[name].energy_fj} fJ, {sum(parts.values())} booked"
            )
    dynamic = {name: 0 if name in spent_fj else server.energy_fj for name, server in servers.items()}
    found = account(
        ((unit, servers[unit.name].busy_at(elapsed_ps), dynamic[unit.name]) for unit in machine.units),
        _always_on(machine),
        elapsed_ps,
        (part for parts in spent_fj.values() for part in parts.items()),
    )
    if (split := total_fj(by_phase)) != found.total_fj:
        raise ConservationError("energy of phases = energy of components", f"{split} and {found.total_fj} fJ")
    return evolve(found, by_phase=by_phase)
