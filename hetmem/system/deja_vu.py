"""``deja-vu``: the neurons that a step needs are copied to the GPU when it needs them (Deja Vu, ICML'23, offloaded).

As Hermes (HPCA'25) adapts it: weights are in host memory, reached through unified memory at the rate of pageable
copies; a trained predictor says which neurons of QKV and MLP are active, and they and the dense output projection are
copied, layer by layer, nothing ahead. The predictor is taken to be right. A prompt needs all weights. The head stays.

As published, computation is what its printed breakdown leaves for it, nothing else stays on the GPU, and the printed
times do not grow with the batch, so one sequence stands for all. Else the predictors are resident and read for every
layer, output projections stay while they fit, kernels are priced, and every sequence of the batch brings its neurons.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hetmem.engine.graph import Cost, GraphBuilder, Template
from hetmem.engine.step import Plan, StepOutcome, StepView
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.link import LinkPath
from hetmem.model import StepShape, layer_kernels
from hetmem.model.activity_config import BLOCKS
from hetmem.model.bits import count, union
from hetmem.monitor.table import Table
from hetmem.system.base import Setup
from hetmem.system.neuron_feed import NeuronFeed
from hetmem.system.offload import OffloadSystem
from hetmem.system.ops import Op
from hetmem.system.residency import fill
from hetmem.system.sparse import NeuronModel, require_neurons, require_plain_decoding, require_room

BUFFERS = 1


class DejaVu(OffloadSystem):
    """Active neurons copied on demand."""

    name = "deja-vu"
    summary = "active neurons, as a trained predictor says, are copied to the GPU when needed"
    has_neurons = True

    def __init__(self, setup: Setup) -> None:
        require_neurons(self, setup)
        super().__init__(setup)
        self.neurons = NeuronModel(setup)
        self.feed = NeuronFeed(self.neurons.neurons)
        self.group_bytes = self.model.layer_bytes(self.precision)
        share = self.config.deja_vu_communication
        self.printed = None if share is None else (1 - share) / share
        self.predictor_bytes = int(self.neurons.config.mlp_predictor_share * self.total_bytes) if share is None else 0
        proj = dict.fromkeys(self.group_bytes, 0) | {"proj": self.group_bytes["proj"]}
        room = self.weight_room_bytes(BUFFERS) - self.head_bytes - self.predictor_bytes if share is None else 0
        require_room("gpu0", 0, room, self.config.gpu_usable_bytes)
        self.resident = fill(self.model.n_layers, proj, room)
        self._counted: tuple[int, dict[str, Any]] = (-1, {})
        self.noted = Table({"step": "q", "block": "s", "sequences": "q", "fired": "q"})

    def path(self) -> LinkPath:
        """Return the path that the copies take."""
        return self.config.pcie.path(pinned=not self.config.pageable_copies)

    def place(self, ledger: Ledger) -> None:
        held = sum(self.group_bytes["proj"] for layer in self.resident if layer)
        ledger.allocate("weights", "gpu0", held + self.head_bytes)
        ledger.allocate("predictors", "gpu0", self.predictor_bytes)
        ledger.allocate("weight-buffer", "gpu0", BUFFERS * self.layer_bytes)
        ledger.allocate("weights", "host", self.total_bytes)

    def kv_bytes_per_token(self) -> dict[str, int]:
        return {"gpu0": self.model.kv_bytes_per_token(self.precision)}

    def tables(self) -> Mapping[str, Table]:
        return {"neurons": self.noted}

    # -- a step ------------------------------------------------------------------------------------------------

    def _active(self, order: int, sequences: int) -> dict[str, Any]:
        """Return the active units of each layer, by block: (units, pairs of unit and sequence)."""
        if self._counted[0] != order:
            counted = 1 if self.printed is not None else sequences
            fired = {b: words[:counted] for b, words in self.feed.at(order, sequences).items()}
            self._counted = order, {b: (count(union(words)), count(words).sum(axis=0)) for b, words in fired.items()}
        return self._counted[1]

    def _loaded_bytes(self, active: Mapping[str, Any]) -> Any:
        """Return the bytes copied for each layer: active neurons, and the projection where it is not held."""
        neurons = sum(active[b][0] * self.neurons.unit_bytes[b] for b in BLOCKS)
        proj = np.array([0 if layer else self.group_bytes["proj"] for layer in self.resident])
        return neurons + proj

    def plan(self, view: StepView) -> Plan:
        require_plain_decoding(self, view)
        costs: dict[str, Cost] = {}
        if view.prefill is not None:
            costs |= self._prefill_costs(view.prefill)
        if view.decode is not None:
            costs |= self._decode_costs(view.order, view.decode)
        return Plan(self._template(view.prefill is not None, view.decode is not None).bind(costs))

    def observe(self, outcome: StepOutcome) -> None:
        view = outcome.view
        if view.decode is not None:
            active = self._active(view.order, view.decode.sequences)
            for block in BLOCKS:
                self.noted.append((view.order, block, view.decode.sequences, int(active[block][0].sum())))
        if view.prefill is not None and view.prefill.sampled:
            if view.decode is None:
                self.feed.clear()
            self.feed.join(view.prefill.sampled, 1)

    def _decode_costs(self, order: int, shape: StepShape) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        active = self._active(order, shape.sequences)
        loaded = self._loaded_bytes(active)
        dense = [k for k in layer_kernels(self.model, shape, self.precision) if k.name not in ("qkv", "up", "down")]
        flops, n_bytes = sum(k.flops for k in dense), sum(k.bytes for k in dense)
        read = self.predictor_bytes / self.model.n_layers
        values = 8 / self.precision.weights_bits
        for layer in range(self.model.n_layers):
            slot = f"l{layer}"
            costs |= self.copy_costs(f"load.{slot}", int(loaded[layer]), self.path())
            units = sum(float(active[b][0][layer]) * self.neurons.unit_bytes[b] for b in BLOCKS)
            pairs = sum(float(active[b][1][layer]) * self.neurons.macs_per_unit[b] for b in BLOCKS)
            work = Op(slot, flops + 2 * (pairs + shape.tokens * read * values), n_bytes + units + read, 0)
            compute, memory = self.ops.price(work)
            if self.printed is not None:
                compute = Cost(round(costs[f"load.{slot}@pcie.h2d"].ps * self.printed))
            costs[f"{slot}.compute"], costs[f"{slot}.memory"] = compute, memory
        return costs | self.stage_costs("head", self.ops.head(shape))

    def _prefill_costs(self, shape: StepShape) -> dict[str, Cost]:
        costs = self.stage_costs("prefill.layer", self.ops.layer(shape, None))
        costs |= self.stage_costs("prefill.head", self.ops.head(shape))
        for held in dict.fromkeys(map(bool, self.resident)):
            n_bytes = self.layer_bytes - (self.group_bytes["proj"] if held else 0)
            costs |= self.copy_costs(f"load.prefill.{held}", n_bytes, self.path())
        return costs

    # -- the graph ---------------------------------------------------------------------------------------------

    def _template(self, prefill: bool, decode: bool) -> Template:
        key: Any = (prefill, decode)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            path = self.copy_path(self.path())

            def stage(load: str | None, slot: str, at: int) -> int:
                if load is not None:
                    at = graph.transfer(load, path.hops, at, lag_ps=path.lag_ps)
                return graph.kernel(slot, "gpu0", "gpu0.hbm", at)

            if prefill:
                for held in map(bool, self.resident):
                    at = stage(f"load.prefill.{held}", "prefill.layer", at)
                at = stage(None, "prefill.head", at)
            if decode:
                for layer in range(self.model.n_layers):
                    at = stage(f"load.l{layer}", f"l{layer}", at)
                stage(None, "head", at)
            self.templates[key] = graph.build()
        return self.templates[key]

    def floor_s(self, view: StepView) -> float:
        moved = 0.0
        if view.decode is not None:
            moved += float(self._loaded_bytes(self._active(view.order, view.decode.sequences)).sum())
        if view.prefill is not None:
            held = sum(self.group_bytes["proj"] for layer in self.resident if layer)
            moved += self.model.n_layers * self.layer_bytes - held
        return moved / (self.config.pcie.peak_gbs * 1e9)
