"""``resident``: weights and KV cache in GPU memory, over any number of GPUs.

Tensor parallelism: each GPU of a stage does its share of every kernel; an all-reduce follows the output projection
and the down projection, and the shards of the logits are gathered on one GPU (Megatron-LM, arXiv 1909.08053).
Pipeline parallelism: each stage holds a run of layers and hands the residual stream to the next; bubbles are what
is left where the decode loops, one per stage, do not keep all stages busy.
The KV cache may be in host DRAM instead: each layer's keys and values are then copied to the GPU before its
attention, and the new ones back beside it.
Kernels that follow each other on the same GPUs, with nothing in between, are one task unless layers are unrolled: the
ticks are the same. A stage is always one, for an engine does not let another batch in between its kernels.
Not modelled: sequence parallelism, overlap of collectives with kernels, copies ahead of the layer that needs them.
"""

from collections.abc import Mapping
from typing import ClassVar

from attrs import frozen

from hetmem.engine.graph import FREE, Cost, GraphBuilder, TaskGraph, Template
from hetmem.engine.step import Plan, StepView
from hetmem.engine.swap import KvMoves
from hetmem.errors import UnsupportedError
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.link import Link
from hetmem.hardware.machine import Machine
from hetmem.model import StepShape
from hetmem.model.spec import stored_bytes
from hetmem.system.base import Setup, System
from hetmem.system.host_tier import MEMORY, HostTier
from hetmem.system.ops import KEPT, GpuOps, Op, make_room, total
from hetmem.system.parts import gpu_link, gpu_memories, gpu_units, host_memories, host_units, stage_link
from hetmem.units import to_ps

ATTENTION = "attention"
REDUCED = ("proj", "down")  # each shard holds a partial sum after these
KV_WAYS = {"kv.in": "h2d", "kv.out": "d2h"}


@frozen
class Stage:
    """A run of layers, as ``blocks`` of (label, number), and the GPUs that hold it; ``prefix`` names its slots."""

    index: int
    prefix: str
    layers: int
    blocks: tuple[tuple[str, int], ...]
    gpus: tuple[int, ...]


@frozen
class Alike:
    """What steps of as many tokens have in common: a graph, without the costs of what depends on more.

    ``others`` holds the launches that do: the places of the slots that they add to, how often, and which launch.
    ``gather`` is the place of the slot of the collective that gathers logits.
    """

    graph: TaskGraph
    others: tuple[tuple[tuple[int, ...], int, int], ...]
    gather: int


class Resident(System):
    """Weights and KV cache in the memory of one or more GPUs."""

    name = "resident"
    summary = "weights and KV in GPU memory, tensor- and pipeline-parallel over the GPUs"
    preset = "resident"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    any_gpus = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.shards = self.config.shards
        if self.model.n_heads % self.shards:
            problem = f"the {self.model.n_heads} heads of {self.model.id} cannot be split over {self.shards} GPUs"
            raise UnsupportedError(self.name, problem)
        self.ops = GpuOps(self.model, self.precision, self.config.gpu_law, self.shards, setup.attention)
        self.stages = self._stages()
        self._known: dict[tuple[int, tuple[str, ...]], Alike] = {}
        self.tier = None if self.config.host is None else HostTier(self.config, self.config.host)
        if setup.kv_memory not in (None, MEMORY) or (setup.kv_memory and self.tier is None):
            raise UnsupportedError(self.name, f"its KV cache is in GPU memory or in {MEMORY}, not in {setup.kv_memory}")
        self.one_by_one = setup.unroll_layers and len(self.stages) == 1
        self.kv_outside = setup.kv_memory == MEMORY
        # Keys and values that a token leaves in one layer, on one GPU.
        self.kv_token_bytes = stored_bytes(2 * self.ops.kv_heads * self.model.head_dim, self.precision.kv_bits)

    def _stages(self) -> tuple[Stage, ...]:
        """Return the stages: layers as even as can be, the first ones longer."""
        n, layers = self.config.stages, self.model.n_layers
        if n > layers:
            raise UnsupportedError(self.name, f"{self.model.id} has {layers} layers, too few for {n} pipeline stages")
        stages, first = [], 0
        for k in range(n):
            count = layers // n + (k < layers % n)
            gpus = tuple(range(k * self.shards, (k + 1) * self.shards))
            prefix = "" if n == 1 else f"s{k}."
            stages.append(Stage(k, prefix, count, tuple(self.layer_blocks(first, count)), gpus))
            first += count
        return tuple(stages)

    def machine(self) -> Machine:
        config, tier = self.config, self.tier
        units = (*gpu_units(config), *host_units(config.cpu, config.host))
        if tier is not None:
            units = (*units, *tier.link_units())
        return Machine(units, (*gpu_memories(config), *host_memories(config.host)), base_w=config.base_w)

    def place(self, ledger: Ledger) -> None:
        layer, outer = sum(self.model.layer_bytes(self.precision).values()), self.model.outer_bytes(self.precision)
        for stage in self.stages:
            n_bytes = stage.layers * layer
            if stage.index == 0:
                n_bytes += outer["embedding"]
            if stage.index == len(self.stages) - 1:
                n_bytes += outer["final_norm"] + outer["head"]
                if not outer["head"] and stage.index:  # a tied head is the embedding, and that is elsewhere
                    n_bytes += self.head_bytes
            for gpu in stage.gpus:
                ledger.allocate("weights", f"gpu{gpu}", -(-n_bytes // self.shards))

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        if self.kv_outside:
            return {MEMORY: self.kv_token_bytes * self.shards * self.model.n_layers}
        return {f"gpu{gpu}": self.kv_token_bytes * stage.layers for stage in self.stages for gpu in stage.gpus}

    def swap_memories(self) -> tuple[str, ...]:
        return () if self.tier is None or self.kv_outside else (MEMORY,)

    def swap_graph(self, moves: KvMoves) -> TaskGraph:
        return super().swap_graph(moves) if self.tier is None else self.tier.swap_graph(moves)

    def plan(self, view: StepView) -> Plan:
        tokens = total(view.prefill, view.decode)
        launches = [*self.ops.attention_launches(view.prefill, view.decode), self.ops.logits(tokens.sampled)]
        alike = self._alike(view, tokens, tuple([op.name for op in launches]))
        more: list[tuple[int, Cost]] = []
        for places, times, k in alike.others:
            more += zip(places, self.ops.price(launches[k], times), strict=True)
        if self.shards > 1:
            more.append((alike.gather, self._gather(tokens)))
        if self.kv_outside:
            place = alike.graph.template.slot_names.index
            for stage in self.stages:
                moved = self._kv_costs(stage, tokens, stage.blocks[0][1])
                more += [(place(slot), cost) for slot, cost in moved.items()]
        return Plan(alike.graph.plus(more))

    def _alike(self, view: StepView, tokens: StepShape, others: tuple[str, ...]) -> Alike:
        """Return what steps of as many tokens have in common, ``others`` being the launches in which they differ."""
        key = tokens.tokens, others
        if key not in self._known:
            make_room(self._known, 4 * KEPT)
            layer, head = self.ops.layer(view.prefill, view.decode), self.ops.head(tokens)
            runs = self._runs(layer), self._runs(head)
            template = self._template(runs)
            costs = dict.fromkeys(filter(None, template.slot_names), FREE)
            found = []
            for stage in self.stages:
                times, last = stage.blocks[0][1], stage.index == len(self.stages) - 1
                for run, n in (*((run, times) for run in runs[0]), *((run, 1) for run in (runs[1] if last else ()))):
                    slots = tuple(f"{stage.prefix}{_name(run)}.{leg}" for leg in ("compute", "memory"))
                    fixed = self.ops.price_run((op for op in run if op.name not in others), n)
                    costs |= zip(slots, fixed, strict=True)
                    places = tuple(map(template.slot_names.index, slots))
                    found += [(places, n, others.index(op.name)) for op in run if op.name in others]
                if self.shards > 1:
                    costs[f"{stage.prefix}allreduce"] = self._allreduce(tokens, times)
                if not last:
                    costs[f"{stage.prefix}send"] = self._send(tokens)
            gather = template.slot_names.index("gather") if self.shards > 1 else 0
            self._known[key] = Alike(template.bind(costs), tuple(found), gather)
        return self._known[key]

    def _runs(self, ops: list[Op]) -> list[list[Op]]:
        """Return the launches in runs that are one task each; a run ends where something else comes between."""
        if self.one_by_one:
            return [[op] for op in ops]
        runs: list[list[Op]] = [[]]
        for op in ops:
            alone = self.kv_outside and op.name.startswith(ATTENTION)
            if alone and runs[-1]:
                runs.append([])
            runs[-1].append(op)
            if alone or (self.shards > 1 and op.name in REDUCED):
                runs.append([])
        return runs if runs[-1] else runs[:-1]

    def _hidden_bytes(self, tokens: StepShape) -> int:
        return tokens.tokens * self.model.d_model * self.precision.activation_bits // 8

    def _allreduce(self, tokens: StepShape, times: int) -> Cost:
        n_bytes, link = self._hidden_bytes(tokens), self._link()
        seconds = link.allreduce_s(n_bytes, self.shards)
        wire = 2 * (self.shards - 1) * n_bytes  # ring: every GPU sends 2 (n-1)/n of the buffer
        return Cost(to_ps(seconds) * times, link.energy_fj(wire) * times, wire * times)

    def _send(self, tokens: StepShape) -> Cost:
        """Return the cost of handing the residual stream on: each GPU to its peer of the next stage, side by side."""
        n_bytes, link = self._hidden_bytes(tokens), self._link()
        wire = n_bytes * self.shards
        return Cost(to_ps(link.transfer_s(n_bytes)), link.energy_fj(wire), wire)

    def _gather(self, tokens: StepShape) -> Cost:
        shard = tokens.sampled * self.model.vocab * self.precision.activation_bits // 8 // self.shards
        wire = shard * (self.shards - 1)
        return Cost(to_ps(self._link().transfer_s(wire)), self._link().energy_fj(wire), wire)

    def _kv_costs(self, stage: Stage, tokens: StepShape, times: int) -> dict[str, Cost]:
        assert self.tier is not None
        costs: dict[str, Cost] = {}
        moved = {"kv.in": tokens.kv_tokens - tokens.tokens, "kv.out": tokens.tokens}
        for gpu in stage.gpus:
            for way, direction in KV_WAYS.items():
                path, n_bytes = self.config.pcie.path(direction=direction), moved[way] * self.kv_token_bytes
                costs |= self.tier.costs(f"{stage.prefix}{way}", gpu, n_bytes, path, times, direction)
        return costs

    def _link(self) -> Link:
        link = self.config.gpu_link
        assert link is not None  # machines of several GPUs have one
        return link

    def _template(self, runs: tuple[list[list[Op]], list[list[Op]]]) -> Template:
        layer, head = runs
        key = tuple(_name(run) for run in layer)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            for stage in self.stages:
                for _label, count in stage.blocks:
                    at = self._lower(graph, stage, layer, at, count)
                if stage.index < len(self.stages) - 1:
                    at = graph.task(stage_link(stage.index), f"{stage.prefix}send", at)
            at = self._lower(graph, self.stages[-1], head, at)
            if self.shards > 1:
                graph.task(gpu_link(self.config, self.stages[-1].index), "gather", at)
            self.templates[key] = graph.build()
        return self.templates[key]

    def _lower(self, graph: GraphBuilder, stage: Stage, runs: list[list[Op]], at: int, count: int = 1) -> int:
        attends = [run for run in runs if run[0].name.startswith(ATTENTION)]
        for run in runs:
            slot = stage.prefix + _name(run)
            written: list[int] = []
            if self.kv_outside and attends and run is attends[0]:
                written = self._copies(graph, stage, "kv.out", at, count)
                at = graph.join(self._copies(graph, stage, "kv.in", at, count))
            legs = [graph.kernel(slot, f"gpu{gpu}", f"gpu{gpu}.hbm", at) for gpu in stage.gpus]
            at = legs[0] if len(legs) == 1 and not written else graph.join([*legs, *written])
            if self.shards > 1 and run[-1].name in REDUCED:
                at = graph.task(gpu_link(self.config, stage.index), f"{stage.prefix}allreduce", at)
        return at

    def _copies(self, graph: GraphBuilder, stage: Stage, way: str, at: int, count: int) -> list[int]:
        assert self.tier is not None
        lag = to_ps(self.config.pcie.path(direction=KV_WAYS[way]).latency_s) * count
        return [
            graph.transfer(f"{stage.prefix}{way}", self.tier.hops(gpu, KV_WAYS[way]), at, lag_ps=lag)
            for gpu in stage.gpus
        ]

    def floor_s(self, view: StepView) -> float:
        return self.read_bytes(view) / (self.shards * self.config.gpu.memory_bytes_per_s)


def _name(run: list[Op]) -> str:
    """Return the name of a run's task."""
    return run[0].name if len(run) == 1 else f"{run[0].name}..{run[-1].name}"
