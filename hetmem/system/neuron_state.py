"""What a system with hot and cold neurons remembers, and how its policies act on it step by step.

For each step the predictor says, layer after layer, which units to compute; each is computed where it is resident,
on the GPU, or else where its home is, on a DIMM. A unit whose weights any sequence needs is read once and multiplied
once for each sequence in which it fires (once, if it was predicted in vain). Behind the projection of each layer units
are copied to the GPU and moved between DIMMs, within the bytes that this gap carries; both take effect with the next
token. One state table serves the batch: a unit has fired when it has for any sequence.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

from hetmem.engine.step import StepView
from hetmem.model.activity_config import BLOCKS, Neurons
from hetmem.model.bits import Words, count_in, pack, tally, union, unpack
from hetmem.monitor.table import Table
from hetmem.policy.adjustment import AdjustmentDecision, AdjustmentView
from hetmem.policy.balance import NOWHERE, BalanceView, OfflineOptimal
from hetmem.policy.predictor import PredictionScore, PredictView, StateTracker, score
from hetmem.system.neuron_feed import NeuronFeed
from hetmem.system.neuron_placement import Placement

Bits = NDArray[np.bool_]
Counts = NDArray[np.int64]


@frozen(eq=False)
class Work:
    """What one kind of block computes, ``[layer, place]``: place 0 is the GPU, place ``1 + d`` DIMM ``d``.

    ``units`` are read, ``macs`` counts pairs of unit and sequence.
    """

    units: Counts
    macs: Counts


@frozen(eq=False)
class Moves:
    """Units that change their DIMM, in parallel arrays."""

    block: NDArray[np.int64]
    layer: NDArray[np.int64]
    unit: NDArray[np.int64]
    source: NDArray[np.int64]
    target: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.unit)

    def where(self, chosen: Bits) -> "Moves":
        """Return those that are chosen."""
        return Moves(*(part[chosen] for part in (self.block, self.layer, self.unit, self.source, self.target)))


_NO_MOVES = Moves(*(np.empty(0, dtype=np.int64) for _ in range(5)))


@frozen(eq=False)
class NeuronStep:
    """One step, by kind of block where a mapping: what fired and was computed, and what changes place behind it.

    ``copied_bytes[layer, dimm]`` leave for the GPU, ``sent_bytes`` and ``received_bytes`` pass between DIMMs.
    ``rebalanced`` says that a window ended, and
    ``queue`` holds the moves decided then, by how many tokens later they are made.
    """

    order: int
    sequences: int
    fired: Mapping[str, Bits]
    computed: Mapping[str, Bits]
    work: Mapping[str, Work]
    late: Mapping[str, Work]
    scores: Mapping[str, PredictionScore]
    copied: Mapping[str, AdjustmentDecision]
    copied_bytes: Counts
    moves: Moves
    sent_bytes: Counts
    received_bytes: Counts
    rebalanced: bool
    queue: Mapping[int, Moves]

    def parts(self) -> Iterator[tuple[str, str, Work]]:
        """Yield the work of each kind of block, and that of missed units computed late, with the tail of its slots."""
        for tail, works in (("", self.work), (".late", self.late)):
            for block, work in works.items():
                yield block, tail, work


@define
class _Window:
    """The tokens since the DIMMs were last balanced."""

    tokens: int
    counts: dict[str, NDArray[np.unsignedinteger]]
    loads: dict[str, Counts]
    queue: Mapping[int, Moves] = field(factory=dict)


class NeuronState:
    """Residency, homes, states and windows of all units.

    Parameters
    ----------
    neurons, unit_bytes
        The units, and the weights of one by kind of block.
    placement, n_dimms
        Where they are at the start.
    predictor, adjuster, balancer
        The policies; without a balancer homes never change.
    late
        Whether missed units are computed after the others.
    slack_bytes
        How much more than at the start moves may put on one DIMM.
    """

    def __init__(
        self, neurons: Neurons, unit_bytes: Mapping[str, int], placement: Placement, n_dimms: int, predictor: Any,
        adjuster: Any, balancer: Any, *, late: bool, slack_bytes: int,
    ) -> None:  # fmt: skip
        self.neurons, self.unit_bytes, self.n_dimms = neurons, unit_bytes, n_dimms
        self.predictor, self.adjuster, self.balancer, self.late = predictor, adjuster, balancer, late
        self.feed, self.tracker = NeuronFeed(neurons), StateTracker()
        self.resident = {b: placement.resident[b].copy() for b in BLOCKS}
        self.home = {b: placement.home[b].copy() for b in BLOCKS}
        self._held = {b: self._places(b) for b in BLOCKS}
        self.tracker.start(neurons.frequency)
        self._slack = np.full(n_dimms, slack_bytes)
        self._window = self._fresh_window()
        self._planned: NeuronStep | None = None
        self.steps = Table(
            {"step": "q", "block": "s", "sequences": "q", "fired": "q", "predicted": "q", "missed": "q",
             "computed_gpu": "q", "computed_dimms": "q", "multiplied": "q", "imbalance": "d", "copied_bytes": "q",
             "moved_bytes": "q"}
        )  # fmt: skip
        self.windows = Table({"step": "q", "block": "s", "imbalance": "d", "moves": "q"})
        self.scores = dict.fromkeys(BLOCKS, PredictionScore())

    # -- a step ------------------------------------------------------------------------------------------------

    def plan(self, order: int, sequences: int, copy_bytes: float, link_bytes: float) -> NeuronStep:
        """Return step ``order`` of ``sequences`` sequences; repeatable, and changes nothing.

        ``copy_bytes`` and ``link_bytes`` are what PCIe and one DIMM-link can carry behind the projection of a layer.
        """
        fired: dict[str, Bits] = {}
        computed: dict[str, Bits] = {}
        work: dict[str, Work] = {}
        late: dict[str, Work] = {}
        scores: dict[str, PredictionScore] = {}
        for block, words in self.feed.at(order, sequences).items():
            bits = fired[block] = unpack(union(words), self.neurons.n_units[block])
            predicted = self._predict(block, order, bits)
            scores[block] = score(predicted, bits)
            work[block] = self._work(block, predicted, words)
            computed[block] = predicted
            if self.late:
                missed = bits & ~predicted
                late[block] = self._work(block, missed, words)
                computed[block] = predicted | missed
        copied, copied_bytes = self._adjust(copy_bytes)
        rebalanced = self.balancer is not None and self._window.tokens >= self.balancer.window
        queue = self._rebalance(link_bytes) if rebalanced else self._window.queue
        moves = queue.get(0 if rebalanced else self._window.tokens, _NO_MOVES)
        sent, received = self._moved_bytes(moves)
        return NeuronStep(
            order, sequences, fired, computed, work, late, scores, copied, copied_bytes, moves, sent, received,
            rebalanced, queue,
        )  # fmt: skip

    def commit(self, step: NeuronStep) -> None:
        """Put units where the step takes them; the bytes are on their way."""
        moves = step.moves
        for k, block in enumerate(BLOCKS):
            copies, n = step.copied[block], self.neurons.n_units[block]
            self.resident[block].flat[copies.evicted] = False
            self.resident[block].flat[copies.copied] = True
            here = moves.block == k
            layers, units = moves.layer[here], moves.unit[here]
            self.home[block][layers, units] = moves.target[here]
            changed = np.unique(np.concatenate([copies.evicted // n, copies.copied // n, layers]))
            if len(changed):
                self._held[block][:, changed] = self._places(block, changed)
        self._slack += step.sent_bytes.sum(axis=0) - step.received_bytes.sum(axis=0)
        if step.rebalanced:
            self._note_window(step)
            self._window = self._fresh_window()
            self._window.queue = step.queue
        self._planned = step

    def advance(self, view: StepView) -> None:
        """Learn that a step is over: what fired, and who has begun to decode."""
        if view.decode is not None:
            self.observe(view.order)
        if view.prefill is not None and view.prefill.sampled:
            tokens = view.prefill.tokens // view.prefill.sequences
            self.joined(view.prefill.sampled, tokens, idle=view.decode is None)

    def observe(self, order: int) -> None:
        """Learn what fired in step ``order``, which has been committed."""
        step = self._planned
        if step is None or step.order != order:
            return
        self._planned = None
        self.tracker.observe(step.fired)
        self._window.tokens += 1
        for block in BLOCKS:
            units = step.work[block].units + (step.late[block].units if self.late else 0)
            if self.balancer is not None:
                self._window.counts[block] += step.computed[block]
                self._window.loads[block] += units[:, 1:]
            self.scores[block] += step.scores[block]
            self._note_step(step, block, units)

    def joined(self, sequences: int, prompt_tokens: int, *, idle: bool) -> None:
        """Let ``sequences`` begin to decode, their prompt processed.

        The states of an idle system are set from what fired meanwhile; of one that decodes they stay, and follow
        the new sequences within some tokens. All weights have just passed the GPU, so that what the adjustment wants
        is kept there.
        """
        if idle:
            self.feed.clear()
        frequency = self.feed.join(sequences, prompt_tokens)
        if not idle:
            return
        self.tracker.start(frequency)
        for block in BLOCKS:
            decision = self.adjuster.decide(self._adjustment_view(block, self.neurons.n_units[block]))
            self.resident[block] = decision.apply(self.resident[block])
            self._held[block] = self._places(block)

    # -- policies ----------------------------------------------------------------------------------------------

    def _predict(self, block: str, order: int, fired: Bits) -> Bits:
        above = np.concatenate([np.zeros_like(fired[:1]), fired[:-1]])
        parents = _shown(self.neurons.parents[block])
        predicted: Bits = self.predictor.decide(
            PredictView(block, 0, order, self.tracker.states(block), parents, _shown(above), _shown(fired))
        )
        return predicted

    def _adjustment_view(self, block: str, most: int | Counts) -> AdjustmentView:
        return AdjustmentView(self.tracker.states(block), _shown(self.resident[block]), 0, most)

    def _adjust(self, copy_bytes: float) -> tuple[dict[str, AdjustmentDecision], Counts]:
        """Return the copies behind each projection; QKV may take half of the bytes, the MLP what is left."""
        n_layers = self.neurons.n_layers
        left = np.full(n_layers, copy_bytes)
        chosen: dict[str, AdjustmentDecision] = {}
        leaving = np.zeros((n_layers, self.n_dimms), dtype=np.int64)
        for block in BLOCKS:
            size, room = self.unit_bytes[block], left / 2 if block == "qkv" else left
            most = _shown((room // size).astype(np.int64))
            decision = self.adjuster.decide(self._adjustment_view(block, most))
            chosen[block] = decision
            if len(decision.copied):
                layer, unit = np.divmod(decision.copied, self.neurons.n_units[block])
                left = left - np.bincount(layer, minlength=n_layers) * size
                np.add.at(leaving, (layer, self.home[block][layer, unit]), size)
        return chosen, leaving

    def _rebalance(self, link_bytes: float) -> dict[int, Moves]:
        """Return the moves that the balancer asks for, by the token at which their link has room for them."""
        window, oracle = self.balancer.window, isinstance(self.balancer, OfflineOptimal)
        future = self.feed.future(window) if oracle else None
        parts = []
        for k in reversed(range(len(BLOCKS))):  # the MLP's neurons go first: they are most of the work
            block = BLOCKS[k]
            most = int(window * link_bytes // self.unit_bytes[block])
            where = np.where(self.resident[block], np.int8(NOWHERE), self.home[block])
            decision = self.balancer.decide(
                BalanceView(
                    self.n_dimms, _shown(where), _shown(self._window.counts[block]), window, None if oracle else most,
                    None if future is None else future[block],
                )
            )  # fmt: skip
            layer, unit = np.divmod(decision.unit, self.neurons.n_units[block])
            parts.append((np.full(len(unit), k), layer, unit, decision.source, decision.target))
        moves = Moves(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        if oracle or not len(moves):
            return {0: moves}
        moves = moves.where(self._fits(moves))
        size = np.array([self.unit_bytes[b] for b in BLOCKS])[moves.block]
        port = moves.layer * self.n_dimms + moves.source
        by_port = np.argsort(port, kind="stable")
        total = np.cumsum(size[by_port])
        first = np.searchsorted(port[by_port], port[by_port], side="left")
        used = total - (total - size[by_port])[first]  # bytes of this port up to and with each move
        token = np.empty(len(moves), dtype=np.int64)
        token[by_port] = np.ceil(used / link_bytes).astype(np.int64) - 1
        return {t: moves.where(token == t) for t in range(window)}

    def _fits(self, moves: Moves) -> Bits:
        """Return which moves their targets have room for, nothing counted on that leaves."""
        size = np.array([self.unit_bytes[b] for b in BLOCKS])[moves.block]
        fits = np.zeros(len(moves), dtype=np.bool_)
        for dimm in range(self.n_dimms):
            here = np.flatnonzero(moves.target == dimm)
            fits[here] = np.cumsum(size[here]) <= self._slack[dimm]
        return fits

    # -- counting ----------------------------------------------------------------------------------------------

    def _work(self, block: str, bits: Bits, fired: Words) -> Work:
        """Return the work of the units ``bits``, of which ``fired[sequence, layer, word]`` are multiplied."""
        words, held = pack(bits), self._held[block]
        units = count_in(words, held).T
        if len(fired) == 1:
            return Work(units, units)
        fired = fired[..., : words.shape[-1]]  # a source may fill up its layers with more words
        digits: list[Words] = []
        for one in fired:
            tally(digits, one)
        in_vain = words & ~union(fired)  # multiplied once all the same
        macs = count_in(in_vain, held) + sum(count_in(digit & words, held) << k for k, digit in enumerate(digits))
        return Work(units, macs.T)

    def _places(self, block: str, layers: Any = slice(None)) -> Words:
        """Return the units of each place, packed ``[place, layer, word]``."""
        resident, home = self.resident[block][layers], self.home[block][layers]
        place = np.where(resident, np.int8(NOWHERE), home)
        return np.stack([pack(place == number) for number in (NOWHERE, *range(self.n_dimms))])

    def _moved_bytes(self, moves: Moves) -> tuple[Counts, Counts]:
        """Return the bytes that leave and reach each DIMM, ``[layer, dimm]``; the oracle's moves are free."""
        shape = (self.neurons.n_layers, self.n_dimms)
        if not len(moves) or isinstance(self.balancer, OfflineOptimal):
            return np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        size = np.array([self.unit_bytes[b] for b in BLOCKS])[moves.block]
        return tuple(  # type: ignore[return-value]
            np.bincount(moves.layer * shape[1] + end, size, shape[0] * shape[1]).astype(np.int64).reshape(shape)
            for end in (moves.source, moves.target)
        )

    def _fresh_window(self) -> _Window:
        n_layers = self.neurons.n_layers
        counter = np.min_scalar_type(self.balancer.window if self.balancer is not None else 0)
        return _Window(
            0, {b: np.zeros((n_layers, n), dtype=counter) for b, n in self.neurons.n_units.items()},
            {b: np.zeros((n_layers, self.n_dimms), dtype=np.int64) for b in BLOCKS},
        )  # fmt: skip

    def _note_step(self, step: NeuronStep, block: str, units: Counts) -> None:
        found, cold = step.scores[block], units[:, 1:]
        macs = step.work[block].macs.sum() + (step.late[block].macs.sum() if self.late else 0)
        size = self.unit_bytes[block]
        copied = len(step.copied[block].copied) * size
        moved = 0 if isinstance(self.balancer, OfflineOptimal) else int((step.moves.block == BLOCKS.index(block)).sum())
        self.steps.append(
            (step.order, block, step.sequences, found.true_positive + found.false_negative,
             found.true_positive + found.false_positive, found.false_negative, int(units[:, 0].sum()), int(cold.sum()),
             int(macs), layered_imbalance(cold), copied, moved * size)
        )  # fmt: skip

    def _note_window(self, step: NeuronStep) -> None:
        for k, block in enumerate(BLOCKS):
            decided = sum(int((moves.block == k).sum()) for moves in step.queue.values())
            self.windows.append((step.order, block, layered_imbalance(self._window.loads[block]), decided))


def _shown(array: NDArray[Any]) -> NDArray[Any]:
    """Return ``array`` as a policy sees it, read-only."""
    shown = array.view()
    shown.flags.writeable = False
    return shown


def layered_imbalance(loads: Counts) -> float:
    """Return max over mean of ``loads[layer, dimm]``, both summed over layers, which run one after the other."""
    total = int(loads.sum())
    return float(loads.max(axis=1).sum()) * loads.shape[1] / total if total else 1.0
