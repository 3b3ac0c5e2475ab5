"""A scenario: everything that determines a run, and the configuration it resolves to."""

import math
from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field, frozen, validators

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.board import BoardConfig
from hetmem.hardware.config import ASSUMPTIONS, MachineConfig, machine
from hetmem.hardware.ndp import PRESETS
from hetmem.model import FP16, ModelSpec, Precision, load_model
from hetmem.model.activity_config import ActivityConfig, activity_config
from hetmem.policy.batching import ContinuousBatch, FirstComeFirstServed, ShortestPromptFirst, StaticBatch
from hetmem.policy.speculation import FixedLength, LevelTokens
from hetmem.study.checked_policy import require_policy
from hetmem.study.footprint import Accounting, accounting
from hetmem.study.settings import with_settings
from hetmem.system import System, system_class
from hetmem.system.ops import COMPOSITIONS
from hetmem.workload import Workload, workload

DEFAULT_BATCH = 4
DEFAULT_REQUESTS = 8
DEFAULT_TOKEN_BUDGET = 2048
PREEMPTIONS = ("recompute", "swap")
DEFAULT_SWAP_MEMORY = "host"
POLICIES: dict[str, dict[str, type]] = {
    "batching": {"static": StaticBatch, "continuous": ContinuousBatch},
    "admission": {"fcfs": FirstComeFirstServed, "shortest": ShortestPromptFirst},
    "speculation": {"fixed": FixedLength, "level": LevelTokens},
}


@frozen(kw_only=True)
class Serving:
    """How requests are served.

    Attributes
    ----------
    batch
        Size of a static batch, or the most sequences at once.
    token_budget
        The most new tokens of a step with continuous batching; None for no limit.
    block_tokens, kv_share, kv_blocks
        Tokens of a KV block, the share of the free memory that the cache takes, and its blocks if given.
    preempt, swap_to
        What becomes of a sequence whose KV blocks are needed: one of :data:`PREEMPTIONS`, and the memory that its
        keys and values are swapped to.
    host_step_s
        The engine's own work per step on the host, before the step's kernels.
    attention
        How a step with prefill and decodes launches attention (:data:`hetmem.system.ops.COMPOSITIONS`).
    kv_memory
        The memory of the KV cache; None is the system's own choice.
    prefix_reuse
        Whether prompts reuse the blocks that others have computed, where a trace names them.
    unroll_layers
        A task per layer instead of one for all that are alike: the same ticks, a finer trace.
    tlp, most_tlp
        Tokens of each sequence that a step verifies: 1 for plain decoding, n for n - 1 drafts and the model's own;
        and the most where the policy changes it.
    acceptance
        Which drafts are accepted: ``all``, or a geometric law with the mean of a measured pair such as
        ``vicuna-7b-sps``. None is ``all`` as published; under fair assumptions it must be said.
    draft_model
        The model that drafts, run by the system; None drafts at no cost.
    enforce_capacity
        Whether what does not fit is refused. Off only to repeat what a tool did that does not check.
    """

    batch: int = field(validator=validators.ge(1))
    token_budget: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    block_tokens: int = field(default=16, validator=validators.ge(1))
    kv_share: float = field(default=0.9, validator=[validators.gt(0), validators.le(1)])
    kv_blocks: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    preempt: str = field(default="recompute", validator=validators.in_(PREEMPTIONS))
    swap_to: str | None = None
    host_step_s: float = field(default=0.0, validator=validators.ge(0))
    attention: str = field(default=COMPOSITIONS[0], validator=validators.in_(COMPOSITIONS))
    kv_memory: str | None = None
    prefix_reuse: bool = True
    unroll_layers: bool = False
    tlp: int = field(default=1, validator=validators.ge(1))
    most_tlp: int = field(default=8, validator=validators.ge(1))
    acceptance: str | None = None
    draft_model: str | None = None
    enforce_capacity: bool = True

    def __attrs_post_init__(self) -> None:
        if (self.preempt == "swap") != (self.swap_to is not None):
            raise ValueError("preempt = swap and swap_to, a memory, go together")


@frozen(kw_only=True)
class Configuration:
    """What a scenario resolves to: the tree that ``--set`` addresses and a manifest records."""

    model: ModelSpec
    precision: Precision
    machine: MachineConfig | BoardConfig
    serving: Serving
    accounting: Accounting
    activity: ActivityConfig | None = None


@frozen(kw_only=True)
class Scenario:
    """Everything that determines a run.

    ``requests`` and ``rate`` shape the workload; ``gpu``, ``gpus``, ``tp`` and ``pp`` (tensor-parallel shards and
    pipeline stages, which multiply to the GPUs), ``stack``, ``dimms`` and ``multipliers`` change the system's
    machine, ``machine`` replaces it, by a preset's name or whole; ``grid`` is that of
    :class:`~hetmem.study.footprint.Accounting`; ``policies`` maps roles to names or objects; ``settings`` maps paths
    of the :class:`Configuration` to values. ``block_size`` is tokens per KV block and ``host_step_us`` the engine's
    work per step in microseconds; the others are those of :class:`Serving`.
    """

    system: type[System]
    model: ModelSpec
    workload: Workload
    assumptions: str = "fair"
    dimm_preset: str | None = None
    batch: int | None = None
    requests: int | None = None
    rate: float | None = None
    gpu: str | None = None
    gpus: int | None = None
    tp: int | None = None
    pp: int | None = None
    stack: str | None = None
    dimms: int | None = None
    multipliers: int | None = None
    token_budget: int | None = None
    kv_blocks: int | None = None
    block_size: int | None = None
    preempt: str | None = None
    swap_to: str | None = None
    host_step_us: float | None = None
    attention: str | None = None
    kv_memory: str | None = None
    prefix_reuse: bool | None = None
    machine: MachineConfig | BoardConfig | str | None = None
    grid: str | None = None
    precision: Precision = FP16
    policies: Mapping[str, Any] = field(factory=dict)
    settings: Mapping[str, Any] = field(factory=dict)
    seed: int = 0
    truncate: bool = False

    @property
    def arrivals(self) -> bool:
        """Whether requests arrive over time."""
        return self.rate is not None or getattr(self.workload, "trace", None) is not None

    def labels(self) -> dict[str, Any]:
        """Return the columns that name a row of a comparison."""
        return {
            "system": self.system.name,
            "assumptions": self.assumptions,
            "dimm_preset": self.dimm_preset,
            "model": self.model.id,
            "workload": self.workload.name,
        }

    def batching(self) -> str:
        """Return the name of the batching policy: as chosen, else continuous if requests arrive over time."""
        chosen = self.policies.get("batching")
        if chosen is None:
            return "continuous" if self.arrivals else "static"
        return chosen if isinstance(chosen, str) else ""

    def configuration(self) -> Configuration:
        """Return the resolved configuration.

        Raises
        ------
        ConfigError, ConfigErrors, UnknownNameError
            When a part, a path or a value is wrong.
        """
        given = self._machine() if self.machine is None or isinstance(self.machine, str) else self.machine
        stated = self.kv_blocks is not None or "serving.kv_blocks" in self.settings
        if stated and self.system.any_gpus and isinstance(given, MachineConfig):
            # The reserve stands for an engine's rule of how many blocks it takes; a stated number needs no rule.
            given = attrs.evolve(given, gpu_usable=1.0)
        swap_to = self.swap_to or (DEFAULT_SWAP_MEMORY if self.preempt == "swap" else None)
        asked: dict[str, Any] = {
            "token_budget": self.token_budget, "kv_blocks": self.kv_blocks, "block_tokens": self.block_size,
            "preempt": self.preempt, "swap_to": swap_to, "attention": self.attention, "kv_memory": self.kv_memory,
            "host_step_s": None if self.host_step_us is None else self.host_step_us * 1e-6,
            "prefix_reuse": self.prefix_reuse,
        }  # fmt: skip
        defaults: dict[str, Any] = {
            "batch": self.batch or int(getattr(self.workload, "batch", DEFAULT_BATCH)),
            "token_budget": None if self.batching() == "static" else DEFAULT_TOKEN_BUDGET,
        }
        try:
            serving = Serving(**defaults | {name: value for name, value in asked.items() if value is not None})
        except (TypeError, ValueError) as error:
            raise ConfigError("serving", str(error.args[0])) from None
        tree = Configuration(
            model=self.model,
            precision=self.precision,
            machine=given,
            serving=serving,
            accounting=accounting(self.grid),
            activity=self._activity(),
        )
        resolved: Configuration = with_settings(tree, self.settings)
        return resolved

    def _activity(self) -> ActivityConfig | None:
        """Return the activity of the model's neurons, where the system asks for it and it is known."""
        known = self.system.has_neurons and self.model.id in catalog.ids("sparsity")
        return activity_config(self.model.id) if known else None

    def _machine(self) -> MachineConfig | BoardConfig:
        gpus, stages = self._parallelism()
        preset = self.machine if isinstance(self.machine, str) else self.system.preset

        def built(gpus: int | None) -> MachineConfig | BoardConfig:
            return machine(
                preset, self.assumptions, gpu_id=self.gpu, gpus=gpus, dimms=self.dimms,
                multipliers=self.multipliers, dimm_preset=self.dimm_preset or PRESETS[1], stack=self.stack,
                stages=stages, host=self._uses_host(),
            )  # fmt: skip

        found = built(gpus)
        # The number of GPUs of a preset is that of its own GPU; one of another kind may do.
        if not isinstance(found, MachineConfig):
            return found
        others = gpus is None and self.gpu is not None and self.system.any_gpus and found.gpus > 1
        fits_one = self.model.weight_bytes(self.precision) <= found.gpu_usable_bytes
        return built(1) if others and fits_one else found

    def _uses_host(self) -> bool:
        """Return whether keys and values go to host DRAM."""
        tiers = (self.swap_to, self.kv_memory, *(self.settings.get(f"serving.{n}") for n in ("swap_to", "kv_memory")))
        return self.preempt == "swap" or DEFAULT_SWAP_MEMORY in tiers

    def _parallelism(self) -> tuple[int | None, int]:
        """Return the number of GPUs, None for the system's own, and of pipeline stages."""
        if self.tp is None and self.pp is None:
            return self.gpus, 1
        if self.gpus is not None:
            tp = self.tp or self.gpus // (self.pp or 1)
            pp = self.pp or self.gpus // tp
            if tp * pp != self.gpus:
                parts = " x ".join(f"{name} {n}" for name, n in (("tp", self.tp), ("pp", self.pp)) if n)
                raise ConfigError("gpus", f"{self.gpus} GPUs are not {parts}")
            return self.gpus, pp
        return (self.tp or 1) * (self.pp or 1), self.pp or 1


def scenario(
    system: str | type[System], *, model: str | ModelSpec, workload_: Any, assumptions: str = "fair",
    dimm_preset: str | None = None, requests: int | None = None, batch: int | None = None,
    rate: float | None = None, max_num_seqs: int | None = None, admission: Any = None, **others: Any,
) -> Scenario:  # fmt: skip
    """Return the scenario of names and numbers as a user gives them, checked.

    ``max_num_seqs`` is another name of ``batch``, and ``admission`` of ``policies={"admission": ...}``.

    Raises
    ------
    ConfigError, UnknownNameError, WorkloadError
        For whatever is not known or out of range.
    """
    cls = system_class(system) if isinstance(system, str) else system
    if assumptions not in ASSUMPTIONS:
        raise UnknownNameError("assumption set", assumptions, ASSUMPTIONS)
    if dimm_preset is not None and dimm_preset not in PRESETS:
        raise UnknownNameError("DIMM preset", dimm_preset, PRESETS)
    if max_num_seqs is not None:
        if batch not in (None, max_num_seqs):
            raise ConfigError("max_num_seqs", f"is another name of batch, which is {batch}, not {max_num_seqs}")
        batch = max_num_seqs
    if admission is not None:
        policies = dict(others.get("policies") or {})
        if policies.setdefault("admission", admission) != admission:
            raise ConfigError("admission", f"the policy is {policies['admission']}, not {admission}")
        others["policies"] = policies
    counts = ("gpus", "tp", "pp", "dimms", "multipliers", "token_budget", "kv_blocks", "block_size")
    for name, value in (("batch", batch), ("requests", requests), *((name, others.get(name)) for name in counts)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(name, f"expected a whole number of at least 1, not {value!r}")
    host_step_us = others.get("host_step_us")
    if host_step_us is not None and not 0 <= host_step_us < math.inf:
        raise ConfigError("host_step_us", f"expected microseconds of at least 0, not {host_step_us!r}")
    for name, known in (("preempt", PREEMPTIONS), ("attention", COMPOSITIONS)):
        if others.get(name) not in (None, *known):
            raise UnknownNameError(name, str(others[name]), known)
    if others.get("swap_to") is not None and others.get("preempt") != "swap":
        raise ConfigError("swap_to", "goes with preempt = swap")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf):
        raise ConfigError("rate", f"expected requests per second above 0, not {rate!r}")
    seed = others.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError("seed", f"expected a whole number of at least 0, not {seed!r}")
    _check_policies(cls, others.get("policies") or {})
    source = workload(workload_)
    if requests is None and not hasattr(source, "batch") and not hasattr(source, "trace"):
        requests = DEFAULT_REQUESTS
    return Scenario(
        system=cls, model=load_model(model) if isinstance(model, str) else model, workload=source,
        assumptions=assumptions, dimm_preset=(dimm_preset or PRESETS[1]) if cls.has_dimms else None,
        requests=requests, batch=batch, rate=rate, **others,
    )  # fmt: skip


def _check_policies(cls: type[System], policies: Mapping[str, Any]) -> None:
    roles = {role: tuple(names) for role, names in POLICIES.items()} | dict(cls.roles)
    for role, chosen in policies.items():
        if role not in roles:
            raise UnknownNameError(f"policy role of {cls.name}", role, tuple(roles))
        if isinstance(chosen, str) and chosen not in roles[role]:
            raise UnknownNameError(f"{role} policy", chosen, roles[role])
        if not isinstance(chosen, str) and role in POLICIES:
            require_policy(role, chosen)


def unstructured(configuration: Configuration) -> dict[str, Any]:
    """Return the configuration as plain values, for a manifest."""
    return attrs.asdict(configuration)
