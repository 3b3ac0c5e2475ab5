"""What every system is made of, and what it must say about itself.

A system combines its machine, its model and its policies into a task graph per step. It is pure as far as
``plan`` goes; what it remembers changes in ``commit`` and ``observe``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from attrs import Factory, field, frozen

from hetmem.engine.graph import TaskGraph, Template
from hetmem.engine.step import Plan, StepOutcome, StepView
from hetmem.engine.swap import KvMoves
from hetmem.errors import ConfigError, UnsupportedError
from hetmem.hardware.board import BoardConfig
from hetmem.hardware.config import MachineConfig
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine
from hetmem.model import ModelSpec, Precision, StepShape
from hetmem.model.activity_config import ActivityConfig
from hetmem.monitor.table import Table


@frozen
class Setup:
    """What a system is built from.

    ``assumptions`` names the assumption set that the machine was built by; ``policies`` gives the policy of each
    of the system's roles; ``unroll_layers`` asks for a task per layer instead of one for all alike (the ticks
    are the same, the trace is finer); ``kv_block_tokens`` is the block of the paged cache; ``longest`` is the most
    tokens any request of the run reaches and ``batch`` the most sequences at once, for systems that place memory
    beforehand. They need room for ``kv_tokens`` in the KV cache, its blocks and its share of the free memory
    accounted for, and no step computes more than ``step_tokens`` new tokens. ``seed`` is that of the run's
    random streams. ``draft`` is the model that drafts tokens for speculative decoding, None where drafts cost
    nothing. ``attention`` says how a step with prefill and decodes launches attention
    (:data:`hetmem.system.ops.COMPOSITIONS`); ``kv_memory`` names the memory of the KV cache, None the system's own.
    """

    model: ModelSpec
    precision: Precision
    machine: MachineConfig | BoardConfig
    assumptions: str
    batch: int
    longest: int
    kv_block_tokens: int
    policies: Mapping[str, Any]
    unroll_layers: bool = False
    kv_tokens: int = field(default=Factory(lambda self: self.batch * self.longest, takes_self=True))
    step_tokens: int = field(default=Factory(lambda self: self.batch * self.longest, takes_self=True))
    seed: int = 0
    draft: ModelSpec | None = None
    activity: ActivityConfig | None = None
    attention: str = "sum"
    kv_memory: str | None = None


class System(ABC):
    """One architecture, running one model."""

    #: Name in tables and on the command line.
    name: ClassVar[str]
    #: One line for ``hetmem list``.
    summary: ClassVar[str]
    #: The machine preset that it runs on unless told otherwise.
    preset: ClassVar[str]
    #: Roles of its own policies, each with the names that fit and the default first.
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Why a dense model is refused, where it is.
    moe_only: ClassVar[str | None] = None
    #: Whether weights are split over near-data DIMMs, so that a DIMM preset matters.
    has_dimms: ClassVar[bool] = False
    #: Whether it runs on any number of GPUs, in tensor-parallel shards and pipeline stages.
    any_gpus: ClassVar[bool] = False
    #: Whether it runs on GPUs, or else on a board of memories with compute chips.
    has_gpus: ClassVar[bool] = True
    #: Whether its plans need the context of each decoding sequence.
    needs_contexts: ClassVar[bool] = False
    #: Whether it can run a draft model.
    drafts: ClassVar[bool] = False
    #: Whether it makes use of activation sparsity, so that neurons and their activity matter.
    has_neurons: ClassVar[bool] = False

    def __init__(self, setup: Setup) -> None:
        if self.moe_only and not setup.model.n_experts:
            raise UnsupportedError(self.name, f"{self.moe_only}; {setup.model.id} is dense")
        if setup.kv_memory is not None and not self.any_gpus:
            raise UnsupportedError(self.name, f"places its KV cache itself, not in {setup.kv_memory}")
        if setup.draft is not None and not self.drafts:
            raise UnsupportedError(self.name, f"has no place to run a draft model ({setup.draft.id})")
        self.setup = setup
        self.model, self.precision = setup.model, setup.precision
        if isinstance(setup.machine, MachineConfig):
            self.config = setup.machine
            if setup.machine.stages > 1 and not self.any_gpus:
                raise UnsupportedError(self.name, f"has no pipeline stages, and the machine has {setup.machine.stages}")
        else:
            self.board = setup.machine
        if isinstance(setup.machine, MachineConfig) is not self.has_gpus:
            raise ConfigError("machine", f"{self.name} runs on {'GPUs' if self.has_gpus else 'a board'}, not on this")
        self.templates: dict[Any, Template] = {}

    @abstractmethod
    def machine(self) -> Machine:
        """Return the servers and memories."""

    @abstractmethod
    def place(self, ledger: Ledger) -> None:
        """Allocate the weights.

        Raises
        ------
        CapacityError
            When they do not fit.
        """

    @abstractmethod
    def kv_bytes_per_token(self) -> Mapping[str, int]:
        """Return the KV bytes that a token takes in each memory."""

    @abstractmethod
    def plan(self, view: StepView) -> Plan:
        """Return the step's plan; pure and repeatable."""

    def swap_memories(self) -> tuple[str, ...]:
        """Return the memories that keys and values of preempted sequences can go to."""
        return ()

    def swap_graph(self, moves: KvMoves) -> TaskGraph:
        """Return the graph of the copies to and from the swap space before a step."""
        raise UnsupportedError(self.name, "has no memory to swap keys and values to")

    def decisions(self) -> Mapping[str, Any]:
        """Return what was decided before the run, as plain values for its manifest."""
        return {}

    def commit(self, plan: Plan) -> None:  # noqa: B027 - a system without state has nothing to note
        """Take note that ``plan`` is on its way."""

    def observe(self, outcome: StepOutcome) -> None:  # noqa: B027
        """Take note of what happened."""

    def spent_fj(self) -> Mapping[str, Mapping[str, int]]:
        """Return the dynamic femtojoules committed so far by server and component, where the system splits them."""
        return {}

    def counters(self) -> Mapping[str, int]:
        """Return what the system counts besides what every run does."""
        return {}

    def tables(self) -> Mapping[str, Table]:
        """Return the tables that the system keeps besides those of every run."""
        return {}

    @abstractmethod
    def floor_s(self, view: StepView) -> float:
        """Return a bound that no step can beat: the bytes it must read over the peak rates that they come at.

        It is computed from the model and the placement, never from the task graph.
        """

    @cached_property
    def active_weight_bytes(self) -> int:
        """Weights that any step reads: no head, no experts not chosen, no tables of which a step reads a few rows."""
        outer = self.model.outer_params
        return (self.model.params_active - outer["embedding"] - outer["head"]) * self.precision.weights_bits // 8

    @cached_property
    def head_bytes(self) -> int:
        """Bytes of the output head, which a tied embedding serves as too."""
        return self.model.vocab * self.model.d_model * self.precision.weights_bits // 8

    def kv_read_bytes(self, view: StepView) -> int:
        """Return the KV bytes that the attention of a step reads at least."""
        return sum(shape.kv_tokens for shape in _shapes(view)) * self._kv_token_bytes

    @cached_property
    def _kv_token_bytes(self) -> int:
        return self.model.kv_bytes_per_token(self.precision)

    def read_bytes(self, view: StepView) -> int:
        """Return the bytes that the kernels of a step read at least: weights, keys and values, the head if sampled."""
        sampled = any(shape.sampled for shape in _shapes(view))
        return self.active_weight_bytes + (self.head_bytes if sampled else 0) + self.kv_read_bytes(view)

    def layer_blocks(self, first: int = 0, count: int | None = None) -> list[tuple[str, int]]:
        """Return (label, number) of the runs of equal layers to lower as one: each layer when unrolled."""
        count = self.model.n_layers - first if count is None else count
        if self.setup.unroll_layers:
            return [(f"l{layer}", 1) for layer in range(first, first + count)]
        return [(f"l{first}-{first + count - 1}", count)] if count else []


def _shapes(view: StepView) -> list[StepShape]:
    return [shape for shape in (view.prefill, view.decode) if shape is not None]
