"""What systems with hot and cold neurons share: the units of a model, and what the GPU computes of them."""

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from hetmem.engine.graph import CostColumns, Handle
from hetmem.engine.step import Plan, StepView
from hetmem.errors import CapacityError, UnsupportedError
from hetmem.hardware.gpu_law import GpuLaw
from hetmem.model.activity_config import BLOCKS, Neurons, neuron_counts, neurons
from hetmem.policy.predictor import correlation_table_bytes, table_bytes
from hetmem.system.base import Setup, System
from hetmem.system.neuron_placement import Placement
from hetmem.system.neuron_state import NeuronStep, Work

#: The matrices that a neuron of each kind of block is made of.
MATRICES: Mapping[str, tuple[str, ...]] = {"qkv": ("qkv",), "mlp": ("up", "down")}


@frozen(slots=True, eq=False)
class NeuronPlan(Plan):
    """A plan with what it decided about neurons, and the handles of what moves behind each layer."""

    step: NeuronStep | None = None
    handles: Mapping[int, Handle] = field(factory=dict)


class NeuronModel:
    """The neurons of a system's model in units, and the weights of each.

    ``unit_bytes`` are those of one unit, ``row_bytes`` of one contiguous row of a neuron; ``neuron_bytes`` of all.
    """

    def __init__(self, setup: Setup) -> None:
        model, config = setup.model, setup.activity
        assert config is not None
        self.config, self.counts = config, neuron_counts(model)
        matrices = model.layer_bytes(setup.precision)
        of_neuron = {b: sum(matrices[m] for m in MATRICES[b]) // self.counts[b] for b in BLOCKS}
        self.unit_bytes = {b: n * config.group for b, n in of_neuron.items()}
        self.row_bytes = {"qkv": of_neuron["qkv"], "mlp": model.d_model * setup.precision.weights_bits // 8}
        self.macs_per_unit = {b: n * 8 / setup.precision.weights_bits for b, n in self.unit_bytes.items()}
        self.neurons: Neurons = neurons(config, model, setup.seed)
        self.neuron_bytes = sum(model.n_layers * self.neurons.n_units[b] * self.unit_bytes[b] for b in BLOCKS)

    def resident_bytes(self, placement: Placement) -> NDArray[np.int64]:
        """Return the bytes of resident neurons, ``[layer]``."""
        return np.asarray(sum(placement.resident_units(b) * self.unit_bytes[b] for b in BLOCKS))

    def cold_bytes(self, step: NeuronStep) -> int:
        """Return the bytes of all neurons that a step computes off the GPU."""
        parts = [(b, work[b]) for work in (step.work, step.late) for b in work]
        return sum(int(work.units[:, 1:].sum()) * self.unit_bytes[b] for b, work in parts)

    def table_bytes(self) -> dict[str, int]:
        """Return the sizes of the state table and of the table of correlated neurons, over all layers."""
        n_layers, units = self.neurons.n_layers, self.counts
        return {
            "state_table_bytes": table_bytes(n_layers * sum(units.values())),
            "correlation_table_bytes": sum(correlation_table_bytes(n_layers * n, n) for n in units.values()),
        }


def require_neurons(system: System, setup: Setup) -> None:
    """Raise :class:`UnsupportedError` for a model whose neurons or their activity are not known."""
    if setup.model.n_experts:
        raise UnsupportedError(system.name, f"places neurons of dense models; {setup.model.id} has experts")
    if setup.activity is None:
        raise UnsupportedError(system.name, f"needs the activation sparsity of {setup.model.id}, which is not known")


def require_plain_decoding(system: System, view: StepView) -> None:
    """Raise :class:`UnsupportedError` for a step that verifies drafts: how alike their neurons are is not known."""
    if view.decode is not None and view.decode.tokens != view.decode.sequences:
        raise UnsupportedError(
            system.name, "decodes one token of a sequence at a time; the activity of drafts is not known"
        )


def require_room(name: str, asked: int, room: int, capacity: int) -> None:
    """Raise :class:`CapacityError` when what must be resident leaves nothing for neurons."""
    if asked > room:
        raise CapacityError(name, asked, max(0, room), capacity, ())


def hot_costs(
    gpu: GpuLaw, dtype: str, model: NeuronModel, block: str, tail: str, work: Work, activation_bytes: float
) -> list[CostColumns]:
    """Return the costs of the legs of the GPU's part of a block, a slot a layer; nothing where a layer has none."""
    units = work.units[:, 0]
    n_bytes = units * model.unit_bytes[block] + np.where(units > 0, activation_bytes, 0.0)
    flops = 2.0 * work.macs[:, 0] * model.macs_per_unit[block]
    whole, memory = (np.where(units > 0, leg, 0.0) for leg in gpu.legs_s(flops, n_bytes, dtype))
    compute, read = (layer_slots(f"{block}{tail}.{leg}", len(units)) for leg in ("compute", "memory"))
    return [costs_of(compute, whole, n_bytes * 0), costs_of(read, memory, n_bytes)]


@cache
def layer_slots(what: str, n_layers: int, parts: int | None = None) -> tuple[str, ...]:
    """Return the slots of ``what`` in every layer, in several parts or in one, as arrays ``[layer, part]`` lie."""
    tails = [""] if parts is None else map(str, range(parts))
    return tuple(f"l{layer}.{what}{tail}" for layer, tail in product(range(n_layers), tails))


def costs_of(
    slots: tuple[str, ...], seconds: NDArray[Any], n_bytes: NDArray[Any], fj: NDArray[Any] | None = None
) -> CostColumns:
    """Return the cost of each slot, arrays of any shape being taken in order; what takes time takes a tick at least."""
    ps = np.rint(seconds * 1e12).astype(np.int64)
    ps = np.where((seconds > 0) & (ps == 0), 1, ps)
    spent = np.zeros_like(ps) if fj is None else np.rint(fj).astype(np.int64)
    return CostColumns(slots, ps.ravel(), spent.ravel(), np.rint(n_bytes).astype(np.int64).ravel())
