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
from hetmem.workload import Workload, workload

DEFAULT_BATCH = 4
DEFAULT_REQUESTS = 8
DEFAULT_TOKEN_BUDGET = 2048
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
    unroll_layers: bool = False
    tlp: int = field(default=1, validator=validators.ge(1))
    most_tlp: int = field(default=8, validator=validators.ge(1))
    acceptance: str | None = None
    draft_model: str | None = None
    enforce_capacity: bool = True


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

    ``requests`` and ``rate`` shape the workload; ``gpu``, ``gpus``, ``dimms`` and ``multipliers`` change the
    system's machine, ``machine`` replaces it, by a preset's name or whole; ``grid`` is that of
    :class:`~hetmem.study.footprint.Accounting`; ``policies`` maps roles to names or objects; ``settings`` maps
    paths of the :class:`Configuration` to values.
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
    dimms: int | None = None
    multipliers: int | None = None
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
        given = self.machine
        if given is None or isinstance(given, str):
            given = machine(
                given or self.system.preset, self.assumptions, gpu_id=self.gpu, gpus=self.gpus, dimms=self.dimms,
                multipliers=self.multipliers, dimm_preset=self.dimm_preset or PRESETS[1],
            )  # fmt: skip
        serving = Serving(
            batch=self.batch or int(getattr(self.workload, "batch", DEFAULT_BATCH)),
            token_budget=None if self.batching() == "static" else DEFAULT_TOKEN_BUDGET,
        )
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


def scenario(
    system: str | type[System], *, model: str | ModelSpec, workload_: Any, assumptions: str = "fair",
    dimm_preset: str | None = None, requests: int | None = None, batch: int | None = None,
    rate: float | None = None, **others: Any,
) -> Scenario:  # fmt: skip
    """Return the scenario of names and numbers as a user gives them, checked.

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
    for name, value in (("batch", batch), ("requests", requests), ("gpus", others.get("gpus")),
                        ("dimms", others.get("dimms")), ("multipliers", others.get("multipliers"))):  # fmt: skip
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(name, f"expected a whole number of at least 1, not {value!r}")
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
