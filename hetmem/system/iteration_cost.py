"""What one iteration of a decoder costs, term by term: the closed forms' common answer.

The terms add up: what overlaps is left out of them by the law that made them.
"""

from collections.abc import Iterable, Mapping
from math import fsum

from attrs import asdict, fields, frozen

from hetmem.errors import ConfigError
from hetmem.hardware.component_energy import NO_ENERGY, ComponentEnergy


@frozen
class IterationCost:
    """Exposed seconds by term, all layers, and joules by kernel class, all devices.

    ``transfer_s`` is what GPU-to-PIM transfers add after overlap, ``decision_s`` the host's scheduling.
    """

    qkv_s: float = 0.0
    projection_s: float = 0.0
    feed_forward_s: float = 0.0
    attention_s: float = 0.0
    softmax_s: float = 0.0
    activation_s: float = 0.0
    norm_s: float = 0.0
    all_reduce_s: float = 0.0
    transfer_s: float = 0.0
    decision_s: float = 0.0
    fc_energy: ComponentEnergy = NO_ENERGY
    attention_energy: ComponentEnergy = NO_ENERGY
    elementwise_energy: ComponentEnergy = NO_ENERGY
    link_energy: ComponentEnergy = NO_ENERGY

    @property
    def fc_s(self) -> float:
        """QKV, projection and feed-forward, seconds."""
        return self.qkv_s + self.projection_s + self.feed_forward_s

    @property
    def communication_s(self) -> float:
        """All-reduce and exposed transfers, seconds."""
        return self.all_reduce_s + self.transfer_s

    @property
    def time_s(self) -> float:
        """The iteration, seconds."""
        return fsum(self.terms_s().values())

    @property
    def energy(self) -> ComponentEnergy:
        """The iteration's energy by component."""
        return self.fc_energy + self.attention_energy + self.elementwise_energy + self.link_energy

    @property
    def energy_j(self) -> float:
        """The iteration's energy, joules."""
        return self.energy.total

    def terms_s(self) -> Mapping[str, float]:
        """Return the time terms by name, seconds; they add up to ``time_s``."""
        return {name: getattr(self, name) for name in TIME_TERMS}

    def scaled(self, factor: float) -> "IterationCost":
        """Return the cost with every term and energy times ``factor``."""
        return IterationCost(*(getattr(self, field.name) * factor for field in fields(IterationCost)))

    def __add__(self, other: "IterationCost") -> "IterationCost":
        return IterationCost(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(IterationCost))
        )

    def as_row(self) -> dict[str, float]:
        """Return one flat row: terms, total seconds, joules by component and in total."""
        energy = {f"{name}_j": joules for name, joules in asdict(self.energy).items()}
        return {**self.terms_s(), "time_s": self.time_s, **energy, "energy_j": self.energy_j}


TIME_TERMS = tuple(field.name for field in fields(IterationCost) if field.name.endswith("_s"))


def mean(costs: Iterable[IterationCost]) -> IterationCost:
    """Return the mean of ``costs`` term by term.

    Raises
    ------
    ConfigError
        When there are none.
    """
    total, count = IterationCost(), 0
    for cost in costs:
        total, count = total + cost, count + 1
    if not count:
        raise ConfigError("costs", "the mean of no iterations is undefined")
    return total.scaled(1 / count)
