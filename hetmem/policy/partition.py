"""Which neurons the GPU holds at the start, and which DIMM the others: Hermes's offline partition.

Hermes (HPCA'25, section IV-B) minimises ``sum over blocks of max(GPU time, slowest DIMM time)`` by an integer
linear programme over neurons; times are proportional to firing frequency, the GPU pays two synchronisations
per block. That each neuron is computed in exactly one place is implied, not printed. All weights stay on the
DIMMs, so a neuron on the GPU still takes the room of its copy there.

We solve over groups of neurons of like frequency (64, as PowerInfer, SOSP'24, does), the GPU against the
DIMMs as one pool, with the HiGHS solver, bounded by nodes and never by time, so that the same input gives the
same value; then each block's cold groups are spread over the equal DIMMs by longest processing time first. A
greedy partition is made beside it and the better of the two returned, by name. Where the programme without its
integers already proves the greedy to be as near the optimum as is asked, which of a large model it mostly does
and in a twentieth of the time, nothing is searched. :func:`full_partition` is the programme of the paper
itself, DIMM by DIMM, for small instances.
"""

import heapq
from typing import Any

import numpy as np
from attrs import field, frozen, validators
from numpy.typing import NDArray

from hetmem.errors import CapacityError, ConfigError, HetmemError
from hetmem.rng import stream

GPU = -1
_SOLUTION_LIMIT = "Solution limit reached"  # how scipy words a stop at the node limit that leaves a solution
_SOLVE_ERROR = "Solve error"  # how scipy words a failure of HiGHS itself; the greedy then stands


@frozen(eq=False)
class PartitionView:
    """Groups of neurons, in blocks, and where they may go; arrays are read-only and indexed by group.

    ``block`` numbers the block of each group from 0, ``frequency`` is its mean firing frequency,
    ``size_bytes`` its weights; ``gpu_s`` and ``dimm_s`` are the seconds to compute it when all of it fires,
    on the GPU and on one DIMM. ``sync_s`` is paid by the GPU once per block (both directions). The capacities
    are those left for these weights.
    """

    block: NDArray[np.int64]
    frequency: NDArray[np.float64]
    size_bytes: NDArray[np.int64]
    gpu_s: NDArray[np.float64]
    dimm_s: NDArray[np.float64]
    sync_s: float
    n_dimms: int
    gpu_bytes: int
    dimm_bytes: int

    def __attrs_post_init__(self) -> None:
        n = len(self.block)
        for name in ("frequency", "size_bytes", "gpu_s", "dimm_s"):
            if len(getattr(self, name)) != n:
                raise ConfigError(name, f"expected {n} groups, not {len(getattr(self, name))}")
        if n == 0 or self.n_dimms < 1:
            raise ConfigError("n_dimms" if n else "block", "expected at least one")
        total, room = int(self.size_bytes.sum()), self.n_dimms * self.dimm_bytes
        if total > room:
            raise CapacityError("dimms", total, room, room, ())

    @property
    def n_blocks(self) -> int:
        return int(self.block.max()) + 1


@frozen(eq=False)
class Partition:
    """A partition: ``on_gpu[group]``, and ``dimm[group]``, for every group has a copy on a DIMM.

    ``method`` names the algorithm that won, ``value_s`` is the objective with the DIMMs as one pool and
    ``spread_s`` with the DIMMs as they are; ``gap`` and ``bound_s`` are the solver's (NaN where it gave
    none), ``status`` its verdict, ``greedy_s`` the value of the greedy partition.
    """

    on_gpu: NDArray[np.bool_]
    dimm: NDArray[np.int64]
    method: str
    value_s: float
    spread_s: float
    greedy_s: float
    gap: float
    bound_s: float
    status: str

    def places(self) -> NDArray[np.int64]:
        """Return who computes each group: ``GPU`` or the number of a DIMM."""
        return np.where(self.on_gpu, GPU, self.dimm)


class SolverError(HetmemError):
    """The solver ended without a usable solution: ``SolverError(status, message)``."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message

    def __str__(self) -> str:
        return f"partition: the solver ended with status {self.status}: {self.message}"


@frozen
class OfflinePartition:
    """The better of the integer programme and the greedy; ``method`` ``"greedy"`` skips the solver.

    ``node_limit`` bounds the search, ``relative_gap`` is where it may stop, or need not begin.
    """

    method: str = field(default="milp", validator=validators.in_(("milp", "greedy")))
    node_limit: int = field(default=100, validator=validators.ge(1))
    relative_gap: float = field(default=1e-4, validator=validators.ge(0.0))

    def decide(self, view: PartitionView) -> Partition:
        """Return the partition.

        Raises
        ------
        SolverError
            When the solver finds the programme infeasible or unbounded. Where it stops at the node limit or
            fails (``status``) without a better solution, the greedy stands.
        """
        on_gpu = greedy_partition(view)
        greedy_s = value_s = pool_value(view, on_gpu)
        method, gap, bound_s, status = "greedy", float("nan"), float("nan"), "not asked"
        if self.method == "milp":
            solution = _solve_pool(view, self.node_limit, self.relative_gap, greedy_s)
            gap, bound_s, status = solution.gap, solution.bound * _time_unit(view), solution.status
            if solution.values is not None:
                solved = solution.values[: len(on_gpu)] > 0.5
                solved_s = pool_value(view, solved)
                # checked in integers: the solver's values are integral, and its capacity kept, only nearly
                if int(view.size_bytes[solved].sum()) <= view.gpu_bytes and solved_s <= greedy_s:
                    on_gpu, value_s, method = solved, solved_s, "milp"
        dimm = spread_over_dimms(view, on_gpu)
        spread = placed_value(view, np.where(on_gpu, GPU, dimm))
        return Partition(on_gpu, dimm, method, value_s, spread, greedy_s, gap, bound_s, status)


@frozen
class RandomPartition:
    """Fills the GPU with groups drawn at random and deals the others to random DIMMs: the floor for a partition."""

    seed: int = 0

    def decide(self, view: PartitionView) -> Partition:
        """Return the partition; the same view gives the same draw."""
        rng = stream(self.seed, "random-partition")
        n = len(view.block)
        order = rng.permutation(n)
        on_gpu = np.zeros(n, dtype=np.bool_)
        on_gpu[order[np.cumsum(view.size_bytes[order]) <= view.gpu_bytes]] = True
        dimm = np.empty(n, dtype=np.int64)
        left = np.full(view.n_dimms, view.dimm_bytes)
        for group, wanted in zip(order.tolist(), rng.integers(view.n_dimms, size=n).tolist(), strict=True):
            size = view.size_bytes[group]
            j = wanted if left[wanted] >= size else int(left.argmax())
            if left[j] < size:
                raise CapacityError("dimm", int(size), int(left[j]), view.dimm_bytes, ())
            dimm[group] = j
            left[j] -= size
        value_s, spread = pool_value(view, on_gpu), placed_value(view, np.where(on_gpu, GPU, dimm))
        greedy_s = pool_value(view, greedy_partition(view))
        return Partition(on_gpu, dimm, "random", value_s, spread, greedy_s, float("nan"), float("nan"), "not asked")


def frequency_groups(frequency: NDArray[np.floating], size: int) -> NDArray[np.int64]:
    """Return groups of ``size`` units of like frequency, ``[group, member]``, busiest first."""
    if len(frequency) % size:
        raise ConfigError("size", f"{size} does not divide {len(frequency)} units")
    return np.argsort(-frequency, kind="stable").reshape(-1, size)


def pool_value(view: PartitionView, on_gpu: NDArray[np.bool_]) -> float:
    """Return the objective in seconds with the DIMMs as one pool of ``n_dimms`` times the speed."""
    gpu, dimm = _block_times(view, on_gpu)
    return float(np.maximum(gpu, dimm / view.n_dimms).sum())


def placed_value(view: PartitionView, places: NDArray[np.int64]) -> float:
    """Return the objective of the paper, in seconds, for who computes each group (``GPU`` or a DIMM)."""
    gpu, _ = _block_times(view, places == GPU)
    cold = places != GPU
    slot = view.block[cold] * view.n_dimms + places[cold]
    work = np.bincount(slot, (view.frequency * view.dimm_s)[cold], view.n_blocks * view.n_dimms)
    return float(np.maximum(gpu, work.reshape(view.n_blocks, view.n_dimms).max(axis=1)).sum())


def greedy_partition(view: PartitionView) -> NDArray[np.bool_]:
    """Give the GPU the groups of most DIMM time per byte, where that shortens their block."""
    gain = view.frequency * view.dimm_s / view.n_dimms
    gpu_time, dimm_time = np.full(view.n_blocks, view.sync_s), np.bincount(view.block, gain, view.n_blocks)
    gpu_cost = view.frequency * view.gpu_s
    on_gpu = np.zeros(len(gain), dtype=np.bool_)
    left = view.gpu_bytes
    for group in np.argsort(-gain / view.size_bytes, kind="stable").tolist():
        block = view.block[group]
        before = max(gpu_time[block], dimm_time[block])
        after = max(gpu_time[block] + gpu_cost[group], dimm_time[block] - gain[group])
        if view.size_bytes[group] <= left and after < before:
            on_gpu[group] = True
            left -= int(view.size_bytes[group])
            gpu_time[block] += gpu_cost[group]
            dimm_time[block] -= gain[group]
    return on_gpu


def spread_over_dimms(view: PartitionView, on_gpu: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the DIMM of every group: cold ones longest first within a block, then hot copies.

    Raises
    ------
    CapacityError
        When the groups cannot be packed, although their sum fits.
    """
    work = view.frequency * view.dimm_s
    left = [view.dimm_bytes] * view.n_dimms
    dimm = np.empty(len(work), dtype=np.int64)

    def put(group: int, order: list[tuple[float, int]], weight: float) -> None:
        size, passed = int(view.size_bytes[group]), []
        while order and left[order[0][1]] < size:
            passed.append(heapq.heappop(order))
        if not order:
            raise CapacityError("dimm", size, max(left), view.dimm_bytes, ())
        load, j = order[0]
        heapq.heapreplace(order, (load + weight, j))
        for entry in passed:
            heapq.heappush(order, entry)
        dimm[group] = j
        left[j] -= size

    longest = np.lexsort((-work, view.block))
    cold_first = longest[np.argsort(on_gpu[longest], kind="stable")].tolist()
    block, order = -1, []
    for group in cold_first:
        if on_gpu[group]:
            put(group, [(-left[j], j) for j in range(view.n_dimms)], 0.0)
            continue
        if view.block[group] != block:
            block = int(view.block[group])
            order = [(0.0, j) for j in range(view.n_dimms)]
        put(group, order, float(work[group]))
    return dimm


def full_partition(view: PartitionView, node_limit: int = 100_000) -> NDArray[np.int64]:
    """Return who computes each group by the whole programme of the paper, DIMM by DIMM: for small instances.

    Variables: the GPU computes ``i``; DIMM ``j`` computes ``i``; DIMM ``j`` holds ``i``; the time of each
    block.

    Raises
    ------
    SolverError
        When no solution is found within ``node_limit`` nodes.
    """
    import scipy.sparse as sp

    n, m, blocks = len(view.block), view.n_dimms, view.n_blocks
    unit_s, room = _time_unit(view), int(view.size_bytes.max())
    member = _membership(view)
    one_of = sp.kron(sp.identity(n), np.ones((1, m)))
    sizes = sp.csr_matrix(view.size_bytes[None, :] / room)
    rows = sp.bmat(
        [
            [-member @ sp.diags(view.frequency * view.gpu_s / unit_s), None, None, sp.identity(blocks)],
            [
                None,
                -sp.kron(member @ sp.diags(view.frequency * view.dimm_s / unit_s), sp.identity(m)),
                None,
                sp.kron(sp.identity(blocks), np.ones((m, 1))),
            ],
            [sp.identity(n), one_of, None, None],  # computed in one place
            [None, None, one_of, None],  # held by one DIMM
            [None, -sp.identity(n * m), sp.identity(n * m), None],  # computed only where held
            [sizes, None, None, None],
            [None, None, sp.kron(sizes, sp.identity(m)), None],
        ]
    )
    low = [np.full(blocks, view.sync_s / unit_s), np.zeros(blocks * m), np.ones(2 * n), np.zeros(n * m)]
    high = [np.full(blocks * (1 + m), np.inf), np.ones(2 * n), np.full(n * m, np.inf)]
    capacities = np.array([view.gpu_bytes] + [view.dimm_bytes] * m) / room
    solution = _milp(
        rows, np.concatenate([*low, np.full(1 + m, -np.inf)]), np.concatenate([*high, capacities]),
        n + 2 * n * m, blocks, node_limit, 0.0,
    )  # fmt: skip
    if solution.values is None:
        raise SolverError(solution.code, solution.status)
    on_gpu = solution.values[:n] > 0.5
    return np.where(on_gpu, GPU, solution.values[n : n + n * m].reshape(n, m).argmax(axis=1))


def _block_times(view: PartitionView, on_gpu: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return per block the seconds of the GPU and the summed seconds of the DIMMs."""
    gpu = np.bincount(view.block, view.frequency * view.gpu_s * on_gpu, view.n_blocks) + view.sync_s
    dimm = np.bincount(view.block, view.frequency * view.dimm_s * ~on_gpu, view.n_blocks)
    return gpu.astype(np.float64), dimm.astype(np.float64)


@frozen(eq=False)
class _Solution:
    """What the solver found, in the unit of the programme; ``values`` is None where nothing."""

    values: NDArray[np.float64] | None
    gap: float
    bound: float
    status: str
    code: int


def _time_unit(view: PartitionView) -> float:
    """Return seconds that make the times of the programme near 1, far above the solver's tolerances."""
    return pool_value(view, np.zeros(len(view.block), dtype=np.bool_)) / view.n_blocks


def _membership(view: PartitionView) -> Any:
    import scipy.sparse as sp

    n = len(view.block)
    return sp.csr_matrix((np.ones(n), (view.block, np.arange(n))), (view.n_blocks, n))


def _solve_pool(view: PartitionView, node_limit: int, relative_gap: float, known_s: float) -> _Solution:
    """Return the solution of the GPU against the pool; binaries first, then the time of each block.

    It has no values where the value ``known_s`` is proven to be within the gap.
    """
    import scipy.sparse as sp

    blocks, unit_s, room = view.n_blocks, _time_unit(view), int(view.size_bytes.max())
    member = _membership(view)
    pooled = view.frequency * view.dimm_s / view.n_dimms / unit_s
    rows = sp.bmat(
        [
            [-member @ sp.diags(view.frequency * view.gpu_s / unit_s), sp.identity(blocks)],
            [member @ sp.diags(pooled), sp.identity(blocks)],
            [sp.csr_matrix(view.size_bytes[None, :] / room), None],
        ]
    )
    all_cold = np.bincount(view.block, pooled, blocks)
    low = np.concatenate([np.full(blocks, view.sync_s / unit_s), all_cold, [-np.inf]])
    high = np.concatenate([np.full(2 * blocks, np.inf), [view.gpu_bytes / room]])
    groups, known = len(view.block), known_s / unit_s
    relaxed = _milp(rows, low, high, groups, blocks, node_limit, relative_gap, integral=False)
    gap = (known - relaxed.bound) / known
    if gap <= relative_gap:
        return _Solution(None, max(0.0, gap), relaxed.bound, relaxed.status, relaxed.code)
    return _milp(rows, low, high, groups, blocks, node_limit, relative_gap)


def _milp(
    rows: Any,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    n_binary: int,
    n_times: int,
    node_limit: int,
    relative_gap: float,
    *,
    integral: bool = True,
) -> _Solution:
    """Minimise the sum of the last ``n_times`` variables; the others are binary, or if not ``integral`` between."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    result = milp(
        np.concatenate([np.zeros(n_binary), np.ones(n_times)]),
        constraints=LinearConstraint(rows, low, high),
        integrality=np.concatenate([np.full(n_binary, int(integral)), np.zeros(n_times)]),
        bounds=Bounds(0.0, np.concatenate([np.ones(n_binary), np.full(n_times, np.inf)])),
        options={"mip_rel_gap": relative_gap, "node_limit": node_limit},
    )
    # scipy reports both a stop at the node limit and a failure of HiGHS as status 4; only its message tells them apart
    message = str(result.message)
    if result.status == 0:
        status = "optimal"
    elif _SOLUTION_LIMIT in message:
        status = "node limit"
    elif _SOLVE_ERROR in message and result.x is None:
        status = "solve error"
    else:
        raise SolverError(int(result.status), message)
    if result.x is None:
        return _Solution(None, float("nan"), float("nan"), status, int(result.status))
    if not integral:
        return _Solution(result.x, 0.0, float(result.fun), status, int(result.status))
    return _Solution(result.x, float(result.mip_gap), float(result.mip_dual_bound), status, int(result.status))
