"""Where the neurons are at the start, as the partition policy decides, and the policies of the other roles by name."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from hetmem.errors import ConfigError
from hetmem.model.activity_config import BLOCKS, ActivityConfig, Neurons
from hetmem.policy.adjustment import HotColdAdjustment, NoAdjustment
from hetmem.policy.balance import NoBalance, OfflineOptimal, RoundRobin, WindowRemap
from hetmem.policy.partition import OfflinePartition, Partition, PartitionView, RandomPartition, frequency_groups
from hetmem.policy.predictor import OraclePredictor, RandomPredictor, StateTable

PARTITIONS: Mapping[str, Any] = {
    "milp": OfflinePartition(), "greedy": OfflinePartition("greedy"), "random": RandomPartition(),
}  # fmt: skip
PREDICTORS: Mapping[str, Any] = {
    "state-table": StateTable(), "token-wise": StateTable("token"), "layer-wise": StateTable("layer"),
    "oracle": OraclePredictor(), "random": None,
}  # fmt: skip
ADJUSTERS: Mapping[str, Any] = {"hot-cold": HotColdAdjustment(), "none": NoAdjustment()}
BALANCERS: Mapping[str, Any] = {
    "window": WindowRemap(), "none": NoBalance(), "round-robin": RoundRobin(), "offline-optimal": OfflineOptimal(),
}  # fmt: skip


def policy(chosen: Any, known: Mapping[str, Any]) -> Any:
    """Return the policy called ``chosen``, the first known if None, or ``chosen`` itself if it is no name."""
    if chosen is None:
        return next(iter(known.values()))
    return known[chosen] if isinstance(chosen, str) else chosen


def predictor(chosen: Any, found: Neurons, seed: int) -> Any:
    """Return the predictor; the random one predicts as many units as fire on average."""
    if chosen != "random":
        return policy(chosen, PREDICTORS)
    fired = sum(float(f.sum()) for f in found.frequency.values())
    return RandomPredictor(fired / sum(f.size for f in found.frequency.values()), seed)


@frozen(eq=False)
class Placement:
    """``resident[layer, unit]`` says what the GPU holds, ``home[layer, unit]`` the DIMM of each unit, by block."""

    resident: Mapping[str, NDArray[np.bool_]]
    home: Mapping[str, NDArray[np.int8]]
    partition: Partition

    def resident_units(self, block: str) -> NDArray[np.int64]:
        """Return the units of ``block`` that are resident, ``[layer]``."""
        return np.asarray(self.resident[block].sum(axis=1))

    def described(self) -> dict[str, Any]:
        """Return the partition as plain values."""
        found = self.partition
        return {
            "method": found.method, "value_s": found.value_s, "spread_s": found.spread_s, "greedy_s": found.greedy_s,
            "gap": None if np.isnan(found.gap) else found.gap, "status": found.status,
        }  # fmt: skip


@frozen(kw_only=True)
class Rates:
    """What the partition is told of the machine: seconds per byte on the GPU and on one DIMM, all of it firing."""

    gpu_s_per_byte: float
    dimm_s_per_byte: float
    sync_s: float
    n_dimms: int
    gpu_bytes: int
    dimm_bytes: int


_DECIDED: dict[bytes, Partition] = {}


def place_neurons(
    policy_: Any, found: Neurons, unit_bytes: Mapping[str, int], config: ActivityConfig, rates: Rates
) -> Placement:
    """Return the placement that ``policy_`` gives, over groups of ``config.partition_group`` neurons.

    Raises
    ------
    CapacityError
        When the DIMMs cannot hold the neurons.
    """
    if rates.n_dimms > np.iinfo(np.int8).max:
        raise ConfigError("machine.dimm.count", f"expected at most {np.iinfo(np.int8).max}, not {rates.n_dimms}")
    size = config.partition_group // config.group
    members: list[tuple[str, int, NDArray[np.int64]]] = []
    columns: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]] = []
    for layer in range(found.n_layers):
        for k, block in enumerate(BLOCKS):
            groups = frequency_groups(found.frequency[block][layer], size)
            members.append((block, layer, groups))
            n = len(groups)
            mean = found.frequency[block][layer][groups].mean(axis=1).astype(np.float64)
            columns.append((np.full(n, 2 * layer + k), mean, np.full(n, size * unit_bytes[block])))
    block_of, frequency, n_bytes = (np.concatenate(part) for part in zip(*columns, strict=True))
    view = PartitionView(
        block_of, frequency, n_bytes, n_bytes * rates.gpu_s_per_byte, n_bytes * rates.dimm_s_per_byte,
        2 * rates.sync_s, rates.n_dimms, rates.gpu_bytes, rates.dimm_bytes,
    )  # fmt: skip
    partition = _decide(policy_, view)
    resident = {b: np.zeros((found.n_layers, n), dtype=np.bool_) for b, n in found.n_units.items()}
    home = {b: np.zeros((found.n_layers, n), dtype=np.int8) for b, n in found.n_units.items()}
    at = 0
    for block, layer, groups in members:
        here = slice(at, at + len(groups))
        resident[block][layer, groups] = partition.on_gpu[here, None]
        home[block][layer, groups] = partition.dimm[here, None]
        at += len(groups)
    return Placement(resident, home, partition)


def _decide(policy_: Any, view: PartitionView) -> Partition:
    """Return the decision, remembered by content: it is slow, and the same in every run that asks the same."""
    arrays = (view.block, view.frequency, view.size_bytes, view.gpu_s, view.dimm_s)
    scalars = (policy_, view.sync_s, view.n_dimms, view.gpu_bytes, view.dimm_bytes)
    digest = hashlib.sha256(repr(scalars).encode())
    for array in arrays:
        digest.update(array.tobytes())
    key = digest.digest()
    if key not in _DECIDED:
        found: Partition = policy_.decide(view)
        _DECIDED[key] = found
    return _DECIDED[key]
