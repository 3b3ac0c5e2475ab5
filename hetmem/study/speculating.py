"""Speculative decoding of a scenario: from its settings to policy, acceptance and draft model."""

from typing import TYPE_CHECKING, Any

from hetmem import rng
from hetmem.catalog import ids
from hetmem.engine.speculative import Speculation
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.model import ModelSpec, load_model
from hetmem.policy.speculation import FixedLength, LevelTokens
from hetmem.workload.speculation import AcceptanceLaw, AllAccepted, Geometric

if TYPE_CHECKING:
    from hetmem.study.scenario import Configuration, Scenario

ALL = "all"


def speculation(asked: "Scenario", config: "Configuration") -> Speculation | None:
    """Return how drafts are verified, or None for plain decoding.

    Raises
    ------
    ConfigError, UnknownNameError
        When the acceptance is not known, or has to be said; when a draft model has nothing to do.
    """
    serving, chosen = config.serving, asked.policies.get("speculation")
    if serving.tlp == 1 and chosen is None:
        for name in ("acceptance", "draft_model"):
            if getattr(serving, name) is not None:
                raise ConfigError(f"serving.{name}", "needs serving.tlp above 1 or a speculation policy")
        return None
    policy: Any = chosen
    if chosen is None or isinstance(chosen, str):
        level = LevelTokens(serving.batch * serving.tlp, serving.most_tlp)
        policy = level if chosen == "level" else FixedLength(serving.tlp)
    return Speculation(policy, _acceptance(asked, config), rng.stream(asked.seed, "speculation.acceptance"))


def draft_model(config: "Configuration") -> ModelSpec | None:
    """Return the model that drafts, if the scenario names one."""
    name = config.serving.draft_model
    return None if name is None else load_model(name)


def _acceptance(asked: "Scenario", config: "Configuration") -> AcceptanceLaw:
    name = config.serving.acceptance
    if name is None and asked.assumptions == "fair":
        raise ConfigError(
            "serving.acceptance",
            "fair assumptions need a measured pair such as vicuna-7b-sps, and serving.draft_model the model that"
            " drafts; 'all' accepts every draft",
        )
    if name is None or name == ALL:
        return AllAccepted()
    known = ids("acceptance")
    if name not in known:
        raise UnknownNameError("acceptance", name, (ALL, *known))
    if asked.assumptions == "fair" and config.serving.draft_model is None:
        raise ConfigError("serving.draft_model", "fair assumptions need the model that drafts, such as llama2-7b")
    return Geometric.named(name)
