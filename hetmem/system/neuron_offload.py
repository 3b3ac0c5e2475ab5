"""Systems that keep attention in GPU memory and fetch single feed-forward neurons: what they share.

A decode step goes through the layers: the host predicts which neurons are active, those that the layer's unit in
GPU memory lacks are copied from DRAM at the rate of neuron-sized copies, and the GPU computes. In series as
published; with ``overlap_copy`` the next layer is copied while one computes. A prompt activates nearly every neuron
of a layer, so a step with one streams the dense matrices. DRAM holds fixed layers; the others are read from the SSD
``preload_window`` layers ahead, in the background and across steps, and a layer waits for its read.

Formats: the missing neurons take the formats of the split in its shares, whichever they are; a cached neuron keeps
the format that it came in. Reads for the first layers of the next token are taken as large as this token's.
Not modelled: time to dequantise, KV offload, the predictor's memory, writing the model to the SSD.
The charge of the host is that of a busy package, although one core works.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from attrs import evolve, frozen

from hetmem.engine.graph import FREE, Cost, GraphBuilder, Handle, Template
from hetmem.engine.step import Plan, StepView
from hetmem.errors import ConfigError, UnsupportedError
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine
from hetmem.policy.layer_cache import fixed_layers
from hetmem.policy.neuron_cache import NEURON_CACHES
from hetmem.policy.precision_split import FP16_BITS, stored_ratio
from hetmem.policy.preload import LayersAhead, PreloadView
from hetmem.system.base import Setup
from hetmem.system.neuron_sets import LayerNeed, NeuronSets, neuron_cache
from hetmem.system.offload import OffloadSystem, ssd_memories, ssd_units
from hetmem.system.ops import GpuOps, Op, total
from hetmem.units import to_fj, to_ps

FFN = ("up", "act", "down")
BLOCK = "*"  # in the slots of a block, until it is known which
TURNS = 16  # pieces of a read at DRAM, between which copies pass (assumed: DRAM interleaves far finer)
BUFFERS = 2  # dense matrices of a layer under way and in use
COPY_HOPS = ("host", "pcie.h2d", "gpu0.hbm")


@frozen(slots=True, eq=False)
class NeuronPlan(Plan):
    """A plan, what its layers need, and the handles of the reads that it issues for the next step."""

    needs: tuple[LayerNeed, ...] = ()
    dense: bool = False
    issued: Mapping[int, Handle] = {}


class NeuronOffload(OffloadSystem):
    """Feed-forward neurons in DRAM and on an SSD, cached and computed on one GPU."""

    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if self.config.neurons is None:
            raise ConfigError("machine.neurons", f"{self.name} needs a machine with neuron parameters")
        if self.config.cpu is None:
            raise ConfigError("machine.cpu", f"{self.name} predicts neurons on the host, and the machine has no CPU")
        if self.model.n_experts:
            raise UnsupportedError(self.name, f"predicts the neurons of one dense MLP; {self.model.id} has experts")
        self.neurons = self.config.neurons
        self.split = self.neurons.split
        self.resident = evolve(self.precision, weights_bits=self.neurons.resident_bits)
        self.ops = GpuOps(self.model, self.resident, self.config.gpu_law)
        groups = self.model.layer_params
        ffn = groups["up"] + groups["down"]
        self.neuron_bytes = ffn * FP16_BITS // 8 / self.model.d_ff
        self.dense_bytes = ffn * FP16_BITS // 8
        self.stored_bytes = round(self.dense_bytes * stored_ratio(self.neurons.storage_layout, self.split))
        #: Dense matrices as they are copied: quantised ahead only where they are stored so.
        self.copied_bytes = min(self.dense_bytes, self.stored_bytes)
        self.resident_bytes = self.model.weight_bytes(self.resident) - self.model.n_layers * (
            self.model.layer_bytes(self.resident)["up"] + self.model.layer_bytes(self.resident)["down"]
        )
        self.fixed = self._fixed_layers()
        self.window = min(self.neurons.preload_window, self.model.n_layers - 1)
        self.sets = self._sets(setup)
        self._ahead: Mapping[int, Handle] = {}
        self._counts = dict.fromkeys(
            ("neuron_accesses", "neuron_hits", "neuron_fetches", "neurons_missed", "neuron_bytes"), 0
        )

    # -- what is where -----------------------------------------------------------------------------------------

    def _fixed_layers(self) -> frozenset[int]:
        """Return the layers that DRAM holds for good; the others need a ring for the reads ahead."""
        layers, room = self.model.n_layers, self.host.capacity_bytes
        if not self.neurons.use_ssd or self.config.ssd is None:
            return frozenset(range(layers))
        if self.neurons.fixed_bytes is None:
            n_fixed = room // self.stored_bytes
            if n_fixed < layers:
                n_fixed = max(0, (room - self._ring_slots() * self.stored_bytes) // self.stored_bytes)
        else:
            n_fixed = self.neurons.fixed_bytes // self.stored_bytes
        return frozenset(fixed_layers(layers, min(layers, n_fixed), self.neurons.fixed_mode))

    def _ring_slots(self) -> int:
        return min(self.neurons.preload_window, self.model.n_layers - 1) + 1

    @property
    def reads(self) -> bool:
        """Whether some layers come from the SSD."""
        return len(self.fixed) < self.model.n_layers

    def cache_name(self) -> str:
        """Return the name of the chosen neuron cache."""
        chosen = self.setup.policies.get("neuron_cache")
        return chosen if isinstance(chosen, str) else next(iter(self.roles["neuron_cache"]))

    def _sets(self, setup: Setup) -> NeuronSets | None:
        if not self.neurons.mixed_precision:
            return None
        n_active = max(1, round(self.neurons.active_fraction * self.model.d_ff))
        chosen = setup.policies.get("neuron_cache")
        given = chosen is not None and not isinstance(chosen, str)
        cache = chosen if given else neuron_cache(self.cache_name(), self.neurons, self.model.d_ff, n_active)
        by_neuron = self.reads and self.neurons.ssd_unit == "missing"
        ahead = self.neurons.preload_window if by_neuron else self.neurons.predict_ahead
        return NeuronSets(self.neurons, self.model.d_ff, self.model.n_layers, cache, ahead, setup.seed)

    def machine(self) -> Machine:
        machine = super().machine()
        if not self.neurons.use_ssd or self.config.ssd is None:
            return machine
        units = (*machine.units, *ssd_units(self.config.ssd))
        return Machine(units, (*machine.memories, *ssd_memories(self.config.ssd.capacity_bytes)), machine.base_w)

    def place(self, ledger: Ledger) -> None:
        layers = self.model.n_layers
        ledger.allocate("resident weights", "gpu0", self.resident_bytes)
        ledger.allocate("weight-buffer", "gpu0", BUFFERS * self.copied_bytes)
        if self.sets is not None and self.sets.cache is not None:
            slot = self.neuron_bytes * self.split.mean_ratio
            ledger.allocate("neuron cache", "gpu0", round(layers * self.sets.cache.capacity * slot))
        ledger.allocate("weights", "host", len(self.fixed) * self.stored_bytes)
        if self.reads:
            ledger.allocate("ring", "host", self._ring_slots() * self.stored_bytes)
        if self.neurons.use_ssd and self.config.ssd is not None:
            ledger.allocate("weights", "ssd", layers * self.stored_bytes + self.resident_bytes)

    def kv_bytes_per_token(self) -> dict[str, int]:
        return {"gpu0": self.model.kv_bytes_per_token(self.precision)}

    def decisions(self) -> dict[str, Any]:
        return {"fixed_layers": len(self.fixed), "neuron_cache": self.cache_name() if self.sets else "none"}

    def counters(self) -> Mapping[str, int]:
        return {**super().counters(), **self._counts}

    # -- steps -------------------------------------------------------------------------------------------------

    def plan(self, view: StepView) -> Plan:
        sets = self.sets
        sequences = (0 if view.decode is None else view.decode.sequences) + (
            0 if view.prefill is None else view.prefill.sequences
        )
        needs = () if sets is None else sets.need(sequences)
        dense = sets is None or view.prefill is not None
        blocks = list(self._blocks())
        costs = self._head_costs(view)
        alike: dict[tuple[int, bool], dict[str, Cost]] = {}
        for label, layers in blocks:
            # Blocks with the same sets and the same home cost the same.
            kind = (layers[0] % max(1, len(needs)), layers[0] in self.fixed)
            if kind not in alike:
                alike[kind] = self._block_costs(view, layers, needs, dense)
            costs |= {slot.replace(BLOCK, label): cost for slot, cost in alike[kind].items()}
        if self.reads:
            costs |= self._read_costs(() if dense else needs)
        warm = bool(self._ahead)
        key = (dense, warm)
        if key not in self.templates:
            self.templates[key] = self._template(blocks, dense, warm)
        template = self.templates[key]
        issued = {layer: Handle((view.order + 1, layer)) for layer in self._read_layers() if layer < self.window}
        publish = {template.names[f"next.{layer}"]: handle for layer, handle in issued.items()}
        wait = {template.names[f"ready.{layer}"]: [handle] for layer, handle in self._ahead.items()}
        return NeuronPlan(template.bind(costs, publish, wait), needs=needs, dense=dense, issued=issued)

    def commit(self, plan: Plan) -> None:
        assert isinstance(plan, NeuronPlan)
        super().commit(plan)
        self._ahead = plan.issued
        if self.sets is not None:
            self.sets.commit(plan.needs)
        self._count(plan)

    def _count(self, plan: NeuronPlan) -> None:
        counts, graph = self._counts, plan.graph
        for layer in range(self.model.n_layers):
            if plan.dense:
                break
            need = plan.needs[layer % len(plan.needs)]
            counts["neuron_accesses"] += need.computed
            counts["neuron_hits"] += need.hits
            counts["neuron_fetches"] += need.fetched
            counts["neurons_missed"] += need.missed
        counts["neuron_bytes"] += sum(
            cost.bytes for server, cost in zip(graph.template.servers, graph.costs, strict=True) if server == "pcie.h2d"
        )

    def _blocks(self) -> Iterator[tuple[str, range]]:
        """Return the layers that are lowered together: all of them where they follow each other in series."""
        alone = self.reads or self.neurons.overlap_copy or self.setup.unroll_layers
        step = 1 if alone else self.model.n_layers
        for first in range(0, self.model.n_layers, step):
            yield f"l{first}", range(first, first + step)

    def _read_layers(self) -> list[int]:
        return [layer for layer in range(self.model.n_layers) if layer not in self.fixed]

    def _head_costs(self, view: StepView) -> dict[str, Cost]:
        return self.stage_costs("head", self.ops.head(total(view.prefill, view.decode)))

    def _block_costs(self, view: StepView, layers: range, needs: tuple[LayerNeed, ...], dense: bool) -> dict[str, Cost]:
        """Return the costs of prediction, copies and kernels of ``layers``, with ``BLOCK`` for their label."""
        copied = fetched = 0
        computed = 0.0
        for layer in layers:
            if dense:
                copied += self.copied_bytes
                computed += 1.0
            else:
                need = needs[layer % len(needs)]
                copied += self._format_bytes(need.fetched)
                fetched += self._format_bytes(need.missed) if self.neurons.fetch_mispredicted else 0
                computed += need.computed / self.model.d_ff
        n = len(layers)
        costs = {f"predict.{BLOCK}": FREE if dense else Cost(to_ps(self.neurons.overhead_s) * n)}
        for hop in COPY_HOPS:
            costs[f"copy.{BLOCK}@{hop}"] = self._copy_cost(hop, copied)
        if self.neurons.fetch_mispredicted:
            from_ssd = self.reads and self.neurons.ssd_unit == "missing" and layers[0] not in self.fixed
            for hop in self._fetch_hops(layers[0]):
                costs[f"fetch.{BLOCK}@{hop}"] = self._fetch_cost(hop, fetched, from_ssd)
        costs |= self._kernel_costs(f"layer.{BLOCK}", view, n, computed / n, dense)
        return costs

    def _format_bytes(self, n_neurons: int) -> int:
        """Return the bytes of that many neurons in the formats of the split."""
        counts = self.split.counts(n_neurons)
        return round(
            sum(c * bits for c, bits in zip(counts, self.split.bits, strict=True)) * self.neuron_bytes / FP16_BITS
        )

    def neuron_rate(self) -> float:
        """Return the bytes per second of neuron-sized copies to the GPU; their latency is in it."""
        if self.neurons.neuron_gbs is not None:
            return self.neurons.neuron_gbs * 1e9
        return self.config.pcie.path().gbs * 1e9 * self.neurons.neuron_efficiency

    def _copy_cost(self, hop: str, n_bytes: int) -> Cost:
        if not n_bytes:
            return FREE
        if hop == "pcie.h2d":
            return Cost(to_ps(n_bytes / self.neuron_rate()), self.config.pcie.energy_fj(n_bytes), n_bytes)
        return self.hop_cost(hop, n_bytes, self.config.pcie.path())

    def _fetch_hops(self, layer: int) -> tuple[str, ...]:
        by_neuron = self.reads and self.neurons.ssd_unit == "missing" and layer not in self.fixed
        return ("ssd", *COPY_HOPS) if by_neuron else COPY_HOPS

    def _fetch_cost(self, hop: str, n_bytes: int, from_ssd: bool) -> Cost:
        if hop != "ssd":
            return self._copy_cost(hop, n_bytes)
        ssd = self.config.ssd
        assert ssd is not None
        assert from_ssd
        seconds = n_bytes / (self.neurons.on_demand_gbs * 1e9)
        return Cost(to_ps(seconds), ssd.energy_fj(n_bytes), n_bytes) if n_bytes else FREE

    def _kernel_costs(self, slot: str, view: StepView, n: int, share: float, dense: bool) -> dict[str, Cost]:
        """Return the costs of ``n`` layers on the GPU that read ``share`` of the neurons."""
        per_token = 1.0 if dense else self.neurons.active_fraction
        ratio = self.copied_bytes / self.dense_bytes if dense else self.split.mean_ratio
        read = share * ratio * FP16_BITS / self.neurons.resident_bits
        ops = [
            self._scaled(op, per_token, read) if op.name in FFN else op
            for op in self.ops.layer(view.prefill, view.decode)
        ]
        costs = self.stage_costs(slot, ops, n)
        compute = costs[f"{slot}.compute"]
        least = to_ps(self.neurons.eager_layer_s) * n
        costs[f"{slot}.compute"] = compute._replace(ps=max(compute.ps, least))
        return costs

    @staticmethod
    def _scaled(op: Op, flops: float, weights: float) -> Op:
        read = op.weight_bytes * weights
        # The active neurons are scattered over the matrix: linear work without its tiles.
        call = op.call if flops == 1 else None
        n_bytes = op.n_bytes - op.weight_bytes + read
        return evolve(op, flops=op.flops * flops, n_bytes=n_bytes, weight_bytes=read, call=call)

    def _read_costs(self, needs: tuple[LayerNeed, ...]) -> dict[str, Cost]:
        """Return the costs of the reads of each layer that DRAM does not hold."""
        ssd = self.config.ssd
        assert ssd is not None
        costs = {}
        for layer in self._read_layers():
            n_bytes = self.stored_bytes
            if self.neurons.ssd_unit == "missing" and needs:
                n_bytes = self._format_bytes(needs[layer % len(needs)].fetched)
            rate = (self.neurons.ssd_gbs or ssd.read_gbs) * 1e9
            dram = to_fj(8 * n_bytes * self.host.pj_per_bit * 1e-12)
            costs[f"read.l{layer}@ssd"] = (
                Cost(to_ps(n_bytes / rate), ssd.energy_fj(n_bytes), n_bytes) if n_bytes else FREE
            )
            costs[f"read.l{layer}@host"] = Cost(to_ps(n_bytes / self.host_rate), dram, n_bytes) if n_bytes else FREE
        return costs

    def _template(self, blocks: list[tuple[str, range]], dense: bool, warm: bool) -> Template:
        """Return the graph of a step: predict, wait for the read, copy, compute, block by block."""
        graph = GraphBuilder()
        before = at = link = graph.join()
        reads: dict[int, int] = {}
        for label, layers in blocks:
            first = layers[0]
            self._issue(graph, reads, first, at, warm)
            predicted = at if dense else graph.task("cpu", f"predict.{label}", at)
            if self.neurons.overlap_copy and first:
                # The set of this block was predicted while the block before it was begun.
                ready = {before, link}
            else:
                ready = {predicted}
            if first in reads:
                ready.add(reads[first])
            link = graph.transfer(f"copy.{label}", COPY_HOPS, sorted(ready))
            if self.neurons.fetch_mispredicted and not dense:
                link = graph.transfer(f"fetch.{label}", self._fetch_hops(first), link)
            before = predicted
            at = graph.kernel(f"layer.{label}", "gpu0", "gpu0.hbm", sorted({predicted, link}))
        graph.kernel("head", "gpu0", "gpu0.hbm", at)
        return graph.build()

    def _issue(self, graph: GraphBuilder, reads: dict[int, int], first: int, at: int, warm: bool) -> None:
        """Add the reads that are asked for when compute reaches layer ``first``; those ahead have landed or will."""
        if not self.reads:
            return
        if first == 0 and warm:
            for layer in range(self.window):
                if layer not in self.fixed:
                    reads[layer] = graph.join(at, name=f"ready.{layer}")
        asked = LayersAhead(self.window).decide(PreloadView(first))
        for position in asked[-1:] if warm and first == 0 else asked:
            beyond, layer = divmod(position, self.model.n_layers)
            if layer in self.fixed:
                continue
            name = f"next.{layer}" if beyond else None
            done = self._read(graph, f"read.l{layer}", at, bool(beyond), name)
            if not beyond:
                reads[layer] = done

    def _read(self, graph: GraphBuilder, slot: str, at: int, background: bool, name: str | None) -> int:
        """Add a read from the SSD into DRAM. Copies to the GPU pass it at DRAM, which serves both in turns."""
        turn = to_ps(self.stored_bytes / self.host_rate) // TURNS
        legs = [
            graph.task(
                hop, f"{slot}@{hop}", at, cls=1, chunk_ps=turn if hop == "host" else 0, background=background, tag=slot
            )
            for hop in ("ssd", "host")
        ]  # fmt: skip
        return graph.join(legs, background=background, name=name)

    def floor_s(self, view: StepView) -> float:
        outer = self.model.outer_bytes(self.resident)
        unread = outer["embedding"] if outer["head"] else 0
        read = self.resident_bytes - unread + self.kv_read_bytes(view)
        return read / self.config.gpu.memory_bytes_per_s


class M2Cache(NeuronOffload):
    """Mixed-precision neurons over GPU memory, DRAM and SSD (M2Cache, arXiv 2410.14740)."""

    name = "m2cache"
    summary = "mixed-precision neurons from DRAM and SSD, cached in GPU memory by the token before"
    preset = "m2cache"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "neuron_cache": ("atu", *(name for name in NEURON_CACHES if name != "atu"), "none")
    }


class LlmInAFlash(NeuronOffload):
    """Neurons read from flash, those of the last tokens kept (LLM in a Flash, arXiv 2312.11514)."""

    name = "llm-in-a-flash"
    summary = "neurons read from the SSD in bundles when needed; those of the last few tokens stay"
    preset = "llm-in-a-flash"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "neuron_cache": ("sliding-window", *(name for name in NEURON_CACHES if name != "sliding-window"), "none")
    }
