"""The roles of systems with hot and cold neurons: partition, predictor, adjustment, balance."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hetmem.policy.adjustment import AdjustmentDecision, AdjustmentView
from hetmem.policy.balance import NOWHERE, BalanceDecision, BalanceView
from hetmem.policy.partition import Partition, PartitionView
from hetmem.policy.predictor import PredictView
from hetmem.testing.role import Arguments, Role, register_role


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _partition_examples() -> list[Arguments]:
    rng = np.random.default_rng(5)
    views = []
    for n_blocks, groups, dimms, gpu_share in ((1, 1, 1, 1.0), (2, 6, 2, 0.3), (3, 8, 4, 0.0), (2, 5, 3, 1.0)):
        n = n_blocks * groups
        size = _read_only(rng.integers(50, 200, n) * 1000)
        room = int(size.sum())
        views.append(
            PartitionView(
                block=_read_only(np.repeat(np.arange(n_blocks), groups)),
                frequency=_read_only(rng.random(n)),
                size_bytes=size,
                gpu_s=_read_only(size / 9e11),
                dimm_s=_read_only(size / 5e10),
                sync_s=1e-5,
                n_dimms=dimms,
                gpu_bytes=int(gpu_share * room),
                dimm_bytes=room,
            )
        )
    return [(view,) for view in views]


def _check_partition(policy: Any, arguments: Arguments, decision: Partition) -> None:
    view: PartitionView = arguments[0]
    assert decision.on_gpu.shape == decision.dimm.shape == view.block.shape, "expected a place for every group"
    assert ((decision.dimm >= 0) & (decision.dimm < view.n_dimms)).all(), "every group has a copy on one of the DIMMs"
    held = int(view.size_bytes[decision.on_gpu].sum())
    assert held <= view.gpu_bytes, f"{held} bytes on a GPU with room for {view.gpu_bytes}"
    copies = np.bincount(decision.dimm, view.size_bytes, view.n_dimms)
    assert copies.max() <= view.dimm_bytes, f"{copies.max():.0f} bytes on a DIMM with room for {view.dimm_bytes}"


def _predictor_examples() -> list[Arguments]:
    rng = np.random.default_rng(6)
    views = []
    for layer, n in ((0, 1), (0, 40), (1, 40), (7, 13)):
        above = _read_only(rng.random(n) < 0.4) if layer else None
        parents = _read_only(rng.integers(0, n, (n, 2)))
        states = _read_only(rng.integers(0, 16, n, dtype=np.uint8))
        views.append(PredictView("mlp", layer, 3, states, parents, above, _read_only(rng.random(n) < 0.4)))
    shape = (3, 20)  # all layers at once, as systems ask
    states, above, truth = rng.integers(0, 16, shape, dtype=np.uint8), rng.random(shape) < 0.4, rng.random(shape) < 0.4
    above[0] = False
    tables = rng.integers(0, 20, (20, 2)), rng.integers(0, 20, (*shape, 2))
    views += [PredictView("mlp", 0, 3, *map(_read_only, (states, parents, above, truth))) for parents in tables]
    return [(view,) for view in views]


def _check_predictor(policy: Any, arguments: Arguments, decision: Any) -> None:
    view: PredictView = arguments[0]
    assert decision.dtype == np.bool_, f"expected booleans, not {decision.dtype}"
    assert decision.shape == view.states.shape, "expected a prediction for every unit"
    assert not np.shares_memory(decision, view.states), "hands out a part of its view"


def _adjustment_examples() -> list[Arguments]:
    rng = np.random.default_rng(7)
    views = []
    for n, free, most in ((1, 0, 5), (30, 0, 4), (30, 3, 0), (30, 5, 100)):
        states = _read_only(rng.integers(0, 16, n, dtype=np.uint8))
        views.append(AdjustmentView(states, _read_only(rng.random(n) < 0.3), free, most))
    shape = (4, 20)  # all layers at once, as systems ask
    states, resident = _read_only(rng.integers(0, 16, shape, dtype=np.uint8)), _read_only(rng.random(shape) < 0.3)
    views.append(AdjustmentView(states, resident, 0, _read_only(np.array([5, 0, 20, 1]))))
    views.append(AdjustmentView(states, resident, _read_only(np.array([0, 1, 2, 3])), 4))
    return [(view,) for view in views]


def _check_adjustment(policy: Any, arguments: Arguments, decision: AdjustmentDecision) -> None:
    view: AdjustmentView = arguments[0]
    copied, evicted = decision.copied, decision.evicted
    resident = np.atleast_2d(view.resident)
    n_layers, n = resident.shape
    n_copied, n_evicted = (np.bincount(units // n, minlength=n_layers) for units in (copied, evicted))
    assert (n_copied <= view.max_copies).all(), f"{n_copied} copies, but {view.max_copies} is the most"
    assert len(set(copied.tolist())) == len(copied), "copies a unit twice"
    assert len(set(evicted.tolist())) == len(evicted), "overwrites a unit twice"
    assert not resident.flat[copied].any(), "copies what is resident"
    assert resident.flat[evicted].all(), "overwrites what is not resident"
    assert (n_copied - n_evicted <= view.free_slots).all(), "fills more slots than there are"


def _balance_examples() -> list[Arguments]:
    rng = np.random.default_rng(8)
    views = []
    for n, dimms, most in ((1, 1, None), (2, 2, 0), (60, 4, None), (60, 8, 3), (61, 5, 1), ((3, 70), 4, 6)):
        where = rng.integers(0, dimms, n)
        where[rng.random(n) < 0.2] = NOWHERE  # the last of all layers at once, as systems ask
        counts = (_read_only(rng.integers(0, 6, n)) for _ in range(2))
        views.append(BalanceView(dimms, _read_only(where), next(counts), 5, most, next(counts)))
    return [(view,) for view in views]


def _check_balance(policy: Any, arguments: Arguments, decision: BalanceDecision) -> None:
    view: BalanceView = arguments[0]
    assert len(set(decision.unit.tolist())) == len(decision.unit), "moves a unit twice"
    assert (view.where.flat[decision.unit] == decision.source).all(), "moves a unit from where it is not"
    assert (decision.source != NOWHERE).all(), "moves a unit that the GPU holds"
    assert ((decision.target >= 0) & (decision.target < view.n_dimms)).all(), "moves a unit to no DIMM"
    assert (decision.source != decision.target).all(), "moves a unit to where it is"


def _roles() -> list[tuple[str, type, Callable[[], list[Arguments]], Callable[[Any, Arguments, Any], None]]]:
    return [
        ("partition", PartitionView, _partition_examples, _check_partition),
        ("predictor", PredictView, _predictor_examples, _check_predictor),
        ("adjustment", AdjustmentView, _adjustment_examples, _check_adjustment),
        ("balance", BalanceView, _balance_examples, _check_balance),
    ]


for _name, _view, _examples, _check in _roles():
    register_role(Role(_name, (_view,), _examples, _check))
