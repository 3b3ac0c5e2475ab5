"""The policies of systems with hot and cold neurons conform; and wrong ones are found."""

import numpy as np
import pytest
from attrs import frozen

from hetmem.policy.adjustment import AdjustmentDecision, AdjustmentView
from hetmem.policy.balance import BalanceDecision, BalanceView
from hetmem.policy.partition import OfflinePartition, Partition, PartitionView, RandomPartition
from hetmem.policy.predictor import PredictView, RandomPredictor
from hetmem.system.hermes import Hermes
from hetmem.system.neuron_placement import ADJUSTERS, BALANCERS, PARTITIONS, PREDICTORS
from hetmem.testing import check_policy, parametrize_with_checks, role_of, roles

TABLES = {"partition": PARTITIONS, "predictor": PREDICTORS, "adjustment": ADJUSTERS, "balance": BALANCERS}
NAMED = [policy for table in TABLES.values() for policy in table.values() if policy is not None]


@parametrize_with_checks(
    [*NAMED, RandomPredictor(0.3, seed=2), RandomPartition(seed=4), OfflinePartition(node_limit=1)]
)
def test_conforms(policy, check):
    check(policy)


def test_every_role_of_the_system_has_its_table_and_its_checks():
    assert set(Hermes.roles) == set(TABLES) <= set(roles())
    for role, table in TABLES.items():
        assert Hermes.roles[role] == tuple(table)
        assert all(role_of(policy).name == role for policy in table.values() if policy is not None)


@frozen
class Hoards:
    def decide(self, view: PartitionView) -> Partition:
        good = RandomPartition().decide(view)
        return Partition(np.ones_like(good.on_gpu), good.dimm, "hoards", 0.0, 0.0, 0.0, 0.0, 0.0, "")


@frozen
class Shortens:
    def decide(self, view: PredictView) -> np.ndarray:
        return view.states[..., 1:] > 3


@frozen
class CopiesTooMany:
    def decide(self, view: AdjustmentView) -> AdjustmentDecision:
        return AdjustmentDecision(np.flatnonzero(~view.resident), np.empty(0, np.int64))


@frozen
class MovesEverything:
    def decide(self, view: BalanceView) -> BalanceDecision:
        units = np.arange(view.where.size)
        return BalanceDecision(units, view.where.ravel().astype(np.int64), np.zeros(len(units), np.int64))


@pytest.mark.parametrize(
    ("policy", "says"),
    [(Hoards(), "bytes on a GPU with room"), (Shortens(), "a prediction for every unit"),
     (CopiesTooMany(), "is the most|more slots than there are"), (MovesEverything(), "the GPU holds|to where it is")],
)  # fmt: skip
def test_a_policy_that_breaks_its_role_is_found(policy, says):
    with pytest.raises(AssertionError, match=says):
        check_policy(policy)
