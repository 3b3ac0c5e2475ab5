"""The runs behind the reproduction of H2M2 (arXiv 2504.14893): decode iterations, growth, a dynamic batch.

The paper measures one decode iteration of a batch at a sequence length, decoder layers only, all operands in 8 bits.
Here it is the step after a prefill in an event-driven run. The grid of lengths is not published: eight equal steps up
to the longest of the paper's range, arithmetic mean; the four doublings are printed beside it.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from attrs import evolve, field, frozen

from hetmem.model import ModelSpec, Precision, load_model
from hetmem.policy.kernel_search import FITTED, mapper
from hetmem.study.run import Run
from hetmem.study.scenario import Scenario, scenario
from hetmem.study.simulate import run_scenario
from hetmem.system import Setup
from hetmem.system.h2m2 import H2m2
from hetmem.units import to_j, to_s
from hetmem.workload import fixed
from hetmem.workload.lengths import JointQuantiles
from hetmem.workload.source import Distribution

STEPS = 8
WINDOW = 8  # iterations over which the costs of paged memory are averaged
INT8 = Precision(weights_bits=8, kv_bits=8, activation_bits=8)
PUBLISHED, FAIR = "as-published", "fair"
Settings = tuple[tuple[str, Any], ...]
UNPAGED: Settings = (("machine.abstraction.paged", False),)
#: What a mapping is worth by itself: no paged memory, no time to decide.
IDEAL: Settings = (*UNPAGED, ("machine.decision_s_per_candidate", 0.0))
#: As IDEAL, and a link that costs nothing to speak of: what the closed form leaves out.
CONTENTION_FREE: Settings = (*IDEAL, ("machine.link.peak_gbs", 1e9), ("machine.link.peer.gbs", 1e9),
                             ("machine.link.peer.latency_s", 0.0))  # fmt: skip
DYNAMIC_ITERATIONS = 128


@frozen
class Case:
    """A model with the batch and the longest sequence that the paper runs it with."""

    model: str
    batch: int
    longest: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Eight equal steps up to the longest."""
        return tuple(self.longest // STEPS * k for k in range(1, STEPS + 1))

    @property
    def doublings(self) -> tuple[int, ...]:
        """The four doublings that end with the longest."""
        return tuple(self.longest >> k for k in (3, 2, 1, 0))

    @property
    def spec(self) -> ModelSpec:
        """The model, with room for the paper's lengths where its own context is shorter."""
        spec, room = load_model(self.model), self.longest + 1
        learned = max(room, spec.learned_positions) if spec.learned_positions else 0
        return evolve(spec, max_context=max(room, spec.max_context), learned_positions=learned)


GPT3 = Case("gpt3-175b", 32, 2048)
CHINCHILLA = Case("chinchilla-70b", 64, 4096)
LLAMA2 = Case("llama2-70b", 128, 8192)
CASES = (GPT3, CHINCHILLA, LLAMA2)


@frozen
class Setting:
    """What a run is: a system, an assumption set, a mapping policy, and settings by path."""

    system: str = "h2m2"
    assumptions: str = PUBLISHED
    mapping: str | None = None
    settings: Settings = ()

    def scenario(self, case: Case, workload: Any, policies: Mapping[str, Any] | None = None, **given: Any) -> Scenario:
        """Return the scenario of ``workload`` in ``case``; decoder layers only, in 8 bits."""
        chosen = dict(policies or {})
        if self.mapping is not None:
            chosen["mapping"] = fitted(case, self) if self.mapping in FITTED else self.mapping
        return scenario(
            self.system, model=case.spec, workload_=workload, assumptions=self.assumptions, precision=INT8,
            policies=chosen, settings={"machine.decoder_only": True, **dict(self.settings)}, **given,
        )  # fmt: skip


@frozen
class Iteration:
    """One decode iteration: its seconds, the bytes per memory server, memory joules, and the mapping's row."""

    seconds: float
    bytes_of: Mapping[str, int] = field(eq=False)
    memory_j: float
    noted: Mapping[str, int] = field(eq=False)


@cache
def fitted(case: Case, setting: Setting) -> Any:
    """Return the static policy of ``setting`` with the fractions that suit the longest sequences of ``case``."""
    asked = evolve(setting, mapping=None).scenario(case, fixed(case.longest, 1, case.batch))
    config = asked.configuration()
    planner = H2m2(
        Setup(
            model=config.model,
            precision=config.precision,
            machine=config.machine,
            assumptions=asked.assumptions,
            batch=case.batch,
            longest=case.longest,
            kv_block_tokens=config.serving.block_tokens,
            policies={},
        )
    )
    assert setting.mapping is not None
    return mapper(setting.mapping, planner.longest_view)


@cache
def iteration(case: Case, length: int, setting: Setting) -> Iteration:
    """Return the decode iteration in which every sequence of the batch attends to ``length`` tokens."""
    run = run_scenario(setting.scenario(case, fixed(length - 1, 2, case.batch)), trace=True)
    before = run_scenario(setting.scenario(case, fixed(length - 1, 1, case.batch)))
    assert run.tasks is not None
    starts, ends = run.steps.column("start_ps"), run.steps.column("end_ps")
    last = run.tasks.column("step") == run.steps.column("step")[-1]
    servers, n_bytes = run.tasks.column("server")[last], run.tasks.column("bytes")[last]
    noted = {}
    if "mapping" in run.tables:
        table = run.tables["mapping"]
        noted = {name: int(table.column(name)[-1]) for name in table.columns}
    return Iteration(
        seconds=to_s(int(ends[-1] - starts[-1])),
        bytes_of={str(name): int(n_bytes[servers == name].sum()) for name in dict.fromkeys(servers)},
        memory_j=_memory_j(run) - _memory_j(before),
        noted=noted,
    )


def _memory_j(run: Run) -> float:
    parts = run.energy.by_component
    return to_j(sum(parts[name]["dynamic"] for name in parts if name.endswith("-memory")))


@cache
def window_s(case: Case, length: int, setting: Setting) -> float:
    """Return the mean seconds of the last :data:`WINDOW` decode iterations up to ``length`` tokens each."""
    run = run_scenario(setting.scenario(case, fixed(length - WINDOW, WINDOW + 1, case.batch)))
    spans = run.steps.column("end_ps") - run.steps.column("start_ps")
    return to_s(int(spans[1:].sum())) / WINDOW


def speedup(case: Case, length: int, setting: Setting, base: Setting | None = None) -> float:
    """Return the time of ``base`` (by default LPDDR-only under the same assumptions) over that of ``setting``."""
    base = base or Setting("lpddr-only", setting.assumptions)
    return iteration(case, length, base).seconds / iteration(case, length, setting).seconds


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean."""
    return float(np.mean(list(values)))


@frozen(eq=False)
class Growth:
    """A batch that grows token by token: a value per decode iteration.

    Attributes
    ----------
    length
        Tokens that each sequence attends to.
    seconds, shares, migrated_s, waste_bytes, table_entries, held_bytes
        Time, the share of each sub-layer on the fast side, the seconds that the migrated bytes take on the slow
        memory, the internal fragmentation of the fast memory, table entries written, and bytes held per side.
    """

    length: np.ndarray[Any, Any]
    seconds: np.ndarray[Any, Any]
    shares: Mapping[str, np.ndarray[Any, Any]]
    migrated_s: np.ndarray[Any, Any]
    waste_bytes: np.ndarray[Any, Any]
    table_entries: np.ndarray[Any, Any]
    held_bytes: Mapping[str, np.ndarray[Any, Any]]


@cache
def growth(case: Case, first: int, last: int, setting: Setting = Setting()) -> Growth:
    """Return a run in which a batch grows from ``first`` to ``last`` tokens per sequence."""
    asked = setting.scenario(case, fixed(first - 1, last - first + 2, case.batch))
    return _grown(run_scenario(asked), asked, slice(1, None), first)


def _grown(run: Run, asked: Scenario, which: Any, first: int = 0) -> Growth:
    table, spans = run.tables["mapping"], run.steps.column("end_ps") - run.steps.column("start_ps")
    rate = asked.configuration().machine.slow.rate_bytes_per_s  # type: ignore[union-attr]
    seconds = spans[which] * 1e-12
    parts = {"attention": asked.model.n_kv_heads, "qkv": asked.model.n_kv_heads, "fc": asked.model.n_heads}
    return Growth(
        length=np.arange(first, first + len(seconds)),
        seconds=seconds,
        shares={name: table.column(name)[which] / n for name, n in parts.items()},
        migrated_s=(table.column("to_fast_bytes") + table.column("to_slow_bytes"))[which] / rate,
        waste_bytes=table.column("fast_waste_bytes")[which],
        table_entries=table.column("table_entries")[which],
        held_bytes={side: table.column(f"{side}_bytes")[which] for side in ("fast", "slow")},
    )


def dynamic_workload() -> Distribution:
    """Return requests whose prompts and outputs are drawn evenly: the batch turns over at random."""
    return Distribution("dynamic", JointQuantiles((64, 1792), ((8, 248),)))


@cache
def dynamic(setting: Setting) -> tuple[float, Growth | None]:
    """Return the dynamic batch of the paper's section on GPT3-175B: requests end at random and others join.

    The decode iterations without a prefill among the first :data:`DYNAMIC_ITERATIONS` with a full batch: their
    seconds together, and what happened in all of them where the system maps kernels. Every system takes the same
    decisions about requests, so the iterations correspond.
    """
    asked = setting.scenario(
        GPT3, dynamic_workload(), {"batching": "continuous"}, requests=3 * GPT3.batch, batch=GPT3.batch
    )
    run = run_scenario(asked)
    full = np.flatnonzero(run.steps.column("decode_sequences") >= GPT3.batch - 2)[:DYNAMIC_ITERATIONS]
    alone = full[run.steps.column("prefill_tokens")[full] == 0]
    spans = run.steps.column("end_ps") - run.steps.column("start_ps")
    return to_s(int(spans[alone].sum())), _grown(run, asked, full) if "mapping" in run.tables else None
