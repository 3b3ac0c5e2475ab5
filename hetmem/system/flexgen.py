"""``flexgen``: weights, KV cache and hidden states spread over GPU, CPU and disk by a linear program (ICML 2023).

A fraction of each kind of data is in each memory, the same in every layer; what is not in GPU memory is streamed
there, layer by layer, in the zig-zag block schedule (:mod:`hetmem.system.zigzag`). Keys and values outside the GPU
are streamed too, or attended on the CPU, as is faster: the placement is solved for both and for several numbers
of GPU batches (:mod:`hetmem.policy.placement`), at the longest context of the run. A prompt's attention is always
on the GPU. Disk traffic passes through host DRAM.
With one GPU batch the hidden states stay on the GPU.
Not modelled: quantisation, sparse attention, whole tensors (a fraction may cut one), memory of kernels.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from attrs import frozen

from hetmem.engine.graph import FREE, Cost, Handle
from hetmem.engine.step import Plan, StepView
from hetmem.errors import CapacityError, ConfigError, UnsupportedError
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine
from hetmem.model import StepShape
from hetmem.model.kernels import attention_kernel
from hetmem.policy.placement import Choice, LinearPlacement, Placement, PlacementView
from hetmem.system.base import Setup
from hetmem.system.offload import OffloadSystem, ssd_memories, ssd_units
from hetmem.system.ops import Op, total
from hetmem.system.stream import Path
from hetmem.system.traffic import LOAD, MEMORIES, STAGE, STORE, Bytes, added, moved, off_gpu, on_disk, split
from hetmem.system.zigzag import Block
from hetmem.units import to_ps

SERVERS = ("ssd", "host", "pcie.h2d", "pcie.d2h", "gpu0.hbm")
GPU_BATCHES = (1, 2, 4, 8, 16)  # FlexGen searches fewer than 20 (section 4.3)
WORTHWHILE = 0.01  # what more GPU batches must gain: each repeats every launch, which the schedule hides (assumed)
DECODE_ATTENTION = "attention.decode"
LEGS = ("compute", "memory")


@frozen
class Candidate:
    """A placement, where keys and values outside the GPU are attended, and the number of GPU batches."""

    attention: str
    gpu_batches: int
    placement: Placement


class FlexGen(OffloadSystem):
    """Throughput-oriented offloading to host memory and disk."""

    name = "flexgen"
    ssd_writes: ClassVar[tuple[str, ...]] = ("kv-out", "act-out")
    summary = "weights, KV and activations over GPU, CPU and disk by a linear program; zig-zag block schedule"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"attention": ("auto", "cpu", "gpu")}

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.kv_token_bytes = self.model.kv_bytes_per_token(self.precision)
        self.hidden_bytes = self.model.d_model * self.precision.activation_bits / 8
        self.query_bytes = self.model.q_width * self.precision.activation_bits / 8
        self.stage_bytes = max(self.layer_bytes, self.head_bytes)
        # On the CPU, keys and values of a head are read in the blocks of the paged cache.
        self.kv_rate = self.host.bytes_per_s(setup.kv_block_tokens * self.model.head_dim * self.precision.kv_bits / 8)
        self.chosen = self._search()
        shares = self.chosen.placement.fractions
        self.on_cpu = self.chosen.attention == "cpu" and shares["kv"].get("gpu0", 0.0) < 1
        self.kv_split = split(self.kv_token_bytes, shares["kv"])
        self.layer_split = split(self.layer_bytes, shares["weights"])
        self.head_split = split(self.head_bytes, shares["weights"])
        self.weight_split = split(self.total_bytes, shares["weights"])
        self.hidden_split = split(self._hidden_need(), shares["activations"])
        self._ahead: tuple[Handle, ...] = ()

    # -- placement ---------------------------------------------------------------------------------------------

    def _search(self) -> Candidate:
        """Return the fastest placement over both kinds of attention and the numbers of GPU batches."""
        asked = self.setup.policies.get("attention", "auto")
        if asked == "cpu" and self.config.cpu is None:
            raise UnsupportedError(self.name, "attention on the CPU needs a host processor, and the machine has none")
        modes = [mode for mode in ("gpu", "cpu") if asked in ("auto", mode) and (mode == "gpu" or self.config.cpu)]
        if not modes:
            raise ConfigError("policies.attention", f"expected auto, cpu or gpu, not {asked!r}")
        found = [candidate for mode in modes if (candidate := self._best(mode)) is not None]
        if not found:
            raise _too_large(self.placement_view(modes[0], 1))
        return min(found, key=lambda candidate: candidate.placement.layer_s)

    def _best(self, mode: str) -> Candidate | None:
        """Return the best number of GPU batches and its placement, or None when none fits."""
        best: Candidate | None = None
        for parts in GPU_BATCHES:
            if parts > self.setup.batch:
                break
            found = LinearPlacement().decide(self.placement_view(mode, parts))
            if found is not None and (best is None or found.layer_s < best.placement.layer_s * (1 - WORTHWHILE)):
                best = Candidate(mode, parts, found)
        return best

    def placement_view(self, mode: str, parts: int) -> PlacementView:
        """Return the linear program of decoding the largest batch at its longest context in ``parts`` GPU batches.

        Streams are the servers, and the kernels of a layer one after the other: ``gpu0`` with attention on the
        GPU, ``cpu`` with attention on the CPU.
        """
        need, hidden = self.setup.kv_tokens * self.kv_token_bytes, self.setup.batch * self.hidden_bytes
        base, attended = (self._gpu_attention if mode == "gpu" else self._cpu_attention)(parts)
        weights, kv, activations = {}, {}, {}
        for memory in self._memories():
            limited = {"gpu-weights": self.total_bytes} if memory == "gpu0" else {}
            if memory != "gpu0" or self.config.flexgen_resident:
                weights[memory] = Choice(
                    self._held(memory, self.total_bytes, 2 * self.stage_bytes) | limited,
                    self._busy(LOAD.get(memory, {}), self.layer_bytes),
                )
            kv[memory] = Choice(
                self._held(memory, need, 2 * need / self.model.n_layers / parts), added(*attended[memory])
            )
            if memory == "gpu0" or parts > 1:
                loaded = self._busy(LOAD.get(memory, {}), hidden)
                stored = self._busy(STORE.get(memory, {}), hidden, True)
                activations[memory] = Choice(
                    self._held(memory, self._hidden_need(), 2 * self._hidden_need() / parts), added(loaded, stored)
                )
        capacities = {"gpu0": float(self.config.gpu_usable_bytes), "host": float(self.host.capacity_bytes)}
        if self.config.gpu_weight_bytes is not None:
            capacities["gpu-weights"] = self.config.gpu_weight_bytes
        return PlacementView({"weights": weights, "kv": kv, "activations": activations}, capacities, base)

    def _gpu_attention(self, parts: int) -> tuple[Bytes, dict[str, list[Bytes]]]:
        """Return what streams do anyhow, and what keys and values in each memory add, with the GPU attending."""
        whole, cached, new = self._largest()
        serial_s, memory_s = self._seconds(self.ops.layer(None, portion(whole, 0, parts)), parts)
        base = dict.fromkeys(self._servers(), 0.0) | {"gpu0": serial_s, "gpu0.hbm": memory_s}
        kv = {
            memory: [self._busy(LOAD[memory], cached), self._busy(STORE[memory], new, True)]
            for memory in self._memories()[1:]
        }
        return base, {"gpu0": []} | kv

    def _cpu_attention(self, parts: int) -> tuple[Bytes, dict[str, list[Bytes]]]:
        """Return the same with the CPU attending to what is not in GPU memory.

        Its results queue behind the weights under way, so what follows them adds to the copies.
        """
        whole, cached, new = self._largest()
        piece, pcie = portion(whole, 0, parts), self.config.pcie
        ops = self.ops.layer(None, piece)
        cut = _after_attention(ops)
        serial_s, memory_s = self._seconds([op for op in ops if op.name != DECODE_ATTENTION], parts)
        gpu_s, gpu_memory_s = self._seconds([op for op in ops if op.name == DECODE_ATTENTION], parts)
        cpu_s, launch_s, host_s = self._cpu_attention_s(piece, 1.0)
        lag_s = pcie.path().latency_s + pcie.path(direction="d2h").latency_s
        base = dict.fromkeys(self._servers(), 0.0) | {
            "gpu0": serial_s,
            "gpu0.hbm": memory_s,
            "pcie.h2d": self._seconds(ops[cut:], parts)[0],
            "cpu": serial_s + parts * (launch_s + lag_s),
        }
        queries = whole.tokens * self.query_bytes
        sent, back = self._busy(STORE["host"], queries + new), self._busy(LOAD["host"], queries)
        chain = parts * max(cpu_s - launch_s, host_s) + max(sent.values()) + max(back.values())
        staged = [self._busy(STAGE["ssd"], cached), self._busy(STAGE["ssd"], new, True)] if self.config.ssd else []
        outside: list[Bytes] = [sent, back, {"cpu": chain, "host": parts * host_s}]
        return base, {"gpu0": [{"gpu0": gpu_s, "gpu0.hbm": gpu_memory_s}], "host": outside, "ssd": outside + staged}

    def _largest(self) -> tuple[StepShape, float, float]:
        """Return the decode step that is placed for, and the KV bytes of a layer that it reads and writes."""
        batch, per_token = self.setup.batch, self.kv_token_bytes / self.model.n_layers
        whole = StepShape.decode(batch, batch * (self.setup.longest - 1))
        return whole, (whole.kv_tokens - batch) * per_token, batch * per_token

    def _memories(self) -> tuple[str, ...]:
        return MEMORIES if self.config.ssd is not None else MEMORIES[:2]

    def _servers(self) -> tuple[str, ...]:
        return SERVERS if self.config.ssd is not None else SERVERS[1:]

    def _hidden_need(self) -> int:
        return int(self.setup.step_tokens * self.hidden_bytes)

    def _held(self, memory: str, n_bytes: float, buffer: float) -> Bytes:
        """Return the bytes that data in ``memory`` takes, with the buffers that it passes through."""
        passed = MEMORIES[: MEMORIES.index(memory)]
        return ({memory: n_bytes} if memory != "ssd" else {}) | dict.fromkeys(passed, buffer)

    def _busy(self, route: Mapping[str, float], n_bytes: float, write: bool = False) -> Bytes:
        """Return the seconds that ``n_bytes`` on a route keep each server busy."""
        return {server: self._hop_cost(server, times * n_bytes, write).ps * 1e-12 for server, times in route.items()}

    def _seconds(self, ops: list[Op], times: int) -> tuple[float, float]:
        """Return the seconds of launches one after the other, and those that they keep the memory busy."""
        legs = [self.ops.price(op, times) for op in ops]
        return sum(c.ps for c, _ in legs) * 1e-12, sum(m.ps for _, m in legs) * 1e-12

    def _cpu_attention_s(self, shape: StepShape, share: float) -> tuple[float, float, float]:
        """Return the seconds that a share of attention takes the CPU, its launch alone, and host DRAM."""
        law = self.host_cpu
        assert law is not None
        whole = attention_kernel(self.model, shape, self.precision)
        flops, n_bytes = share * whole.flops, share * whole.bytes
        return law.legs_s(flops, n_bytes).total_s, law.launch_s, n_bytes / self.kv_rate

    # -- machine and ledger ------------------------------------------------------------------------------------

    def machine(self) -> Machine:
        machine = super().machine()
        on_disk = self._ssd_bytes()
        if not on_disk or self.config.ssd is None:
            return machine
        units = (*machine.units, *ssd_units(self.config.ssd))
        return Machine(units, (*machine.memories, *ssd_memories(self.config.ssd.capacity_bytes)), machine.base_w)

    def _ssd_bytes(self) -> int:
        kv = self.setup.kv_tokens * self.kv_split.get("ssd", 0)
        return self.weight_split.get("ssd", 0) + self.hidden_split.get("ssd", 0) + kv

    def place(self, ledger: Ledger) -> None:
        parts, layers = self.chosen.gpu_batches, self.model.n_layers
        kv = {memory: n * self.setup.kv_tokens for memory, n in self.kv_split.items()}
        stage = max(self.layer_split, self.head_split, key=off_gpu)
        for owner, held in (("weights", self.weight_split), ("activations", self.hidden_split)):
            for memory, n_bytes in held.items():
                ledger.allocate(owner, memory, n_bytes)
        # Double buffers: what is not in GPU memory passes through it, and what is on disk through host DRAM too.
        for owner, held, pieces in (("weight", stage, 1), ("activation", self.hidden_split, parts),
                                    ("kv", kv, layers * parts)):  # fmt: skip
            for memory, passing in (("gpu0", off_gpu(held)), ("host", on_disk(held))):
                if passing:
                    ledger.allocate(f"{owner}-buffer", memory, int(2 * passing / pieces))

    def kv_bytes_per_token(self) -> dict[str, int]:
        return dict(self.kv_split)

    def decisions(self) -> dict[str, Any]:
        fractions = {kind: dict(shares) for kind, shares in self.chosen.placement.fractions.items()}
        return {
            "attention": "cpu" if self.on_cpu else "gpu",
            "gpu_batches": self.chosen.gpu_batches,
            "placement": fractions,
            "layer_s": self.chosen.placement.layer_s,
        }

    # -- steps -------------------------------------------------------------------------------------------------

    def plan(self, view: StepView) -> Plan:
        parts = min(self.chosen.gpu_batches, max(s.sequences for s in (view.prefill, view.decode) if s is not None))
        pieces = [(_piece(view.prefill, part, parts), _piece(view.decode, part, parts)) for part in range(parts)]
        costs = self.stage_costs("head", self.ops.head(total(view.prefill, view.decode)))
        routes: dict[str, set[str]] = {}
        cpu = self.on_cpu and view.decode is not None
        for part, (prefill, decode) in enumerate(pieces):
            costs |= self._kernel_costs(part, prefill, decode, cpu)
            for kind, (traffic, write) in self._traffic(prefill, decode, cpu, parts).items():
                routes.setdefault(kind, set()).update(server for server, n in traffic.items() if n)
                for server in self._servers():
                    costs[f"{kind}.{part}@{server}"] = self._hop_cost(server, traffic.get(server, 0.0), write)
        for slot, held, share in (("weights", self.layer_split, parts), ("head-weights", self.head_split, parts),
                                  ("first-weights", self.layer_split, 1)):  # fmt: skip
            for server, n_bytes in moved(held, LOAD, 1 / share).items():
                routes.setdefault("weights", set()).add(server)
                costs[f"{slot}@{server}"] = self._hop_cost(server, n_bytes)
        paths = {kind: self._path(servers) for kind, servers in routes.items() if servers}
        warm = bool(self._ahead)
        block = Block(self.model.n_layers, parts, paths, cpu and bool(self.kv_split.get("gpu0")), warm)
        key = (parts, cpu, warm, tuple((kind, path.hops) for kind, path in paths.items()))
        if key not in self.templates:
            self.templates[key] = block.template()
        template = self.templates[key]
        publish = {template.names["next"]: Handle((view.order + 1, "first-weights"))} if "weights" in paths else {}
        wait = {template.names["ready"]: list(self._ahead)} if warm else {}
        return Plan(template.bind(costs, publish, wait))

    def commit(self, plan: Plan) -> None:
        super().commit(plan)
        self._ahead = tuple(plan.graph.publish.values())

    def _path(self, servers: Iterable[str]) -> Path:
        """Return the path over ``servers``, which start together."""
        hops = tuple(server for server in SERVERS if server in servers)
        wire = [hop.removeprefix("pcie.") for hop in hops if hop.startswith("pcie.")]
        return Path(hops, to_ps(self.config.pcie.path(direction=wire[0]).latency_s) if wire else 0)

    def _hop_cost(self, server: str, n_bytes: float, write: bool = False) -> Cost:
        if not n_bytes:
            return FREE
        if server == "ssd":
            assert self.config.ssd is not None
            seconds = self.config.ssd.transfer_s(n_bytes, write=write)
            return Cost(to_ps(seconds), self.config.ssd.energy_fj(n_bytes), round(n_bytes))
        direction = server.removeprefix("pcie.") if server.startswith("pcie.") else "h2d"
        return self.hop_cost(server, round(n_bytes), self.config.pcie.path(direction=direction))

    def _traffic(
        self, prefill: StepShape | None, decode: StepShape | None, cpu: bool, parts: int
    ) -> dict[str, tuple[Bytes, bool]]:
        """Return the bytes of each transfer of a GPU batch in a layer by server, and whether it writes."""
        both = total(prefill, decode)
        streamed = prefill or StepShape() if cpu else both
        on_cpu = (decode or StepShape()) if cpu else StepShape()
        layers = self.model.n_layers
        cached, fresh = (streamed.kv_tokens - streamed.tokens) / layers, streamed.tokens / layers
        staged, flushed = (on_cpu.kv_tokens - on_cpu.tokens) / layers, on_cpu.tokens / layers
        traffic = {
            "kv-in": (added(moved(self.kv_split, LOAD, cached), moved(self.kv_split, STAGE, staged)), False),
            "kv-out": (added(moved(self.kv_split, STORE, fresh), moved(self.kv_split, STAGE, flushed)), True),
        }
        if parts > 1 and off_gpu(self.hidden_split):
            scale = both.tokens * self.hidden_bytes / self._hidden_need()
            traffic["act-in"] = moved(self.hidden_split, LOAD, scale), False
            traffic["act-out"] = moved(self.hidden_split, STORE, scale), True
        if cpu:
            share = off_gpu(self.kv_split) / self.kv_token_bytes
            queries = on_cpu.tokens * share * self.query_bytes
            sent = queries + on_cpu.tokens * off_gpu(self.kv_split) / layers
            traffic["send"] = moved({"host": sent}, STORE, 1), True
            traffic["back"] = moved({"host": queries}, LOAD, 1), False
        return traffic

    def _kernel_costs(
        self, part: int, prefill: StepShape | None, decode: StepShape | None, cpu: bool
    ) -> dict[str, Cost]:
        ops = self.ops.layer(prefill, decode)
        if not cpu:
            return self.stage_costs(f"layer.{part}", ops)
        cut = _after_attention(ops)
        before = [op for op in ops[:cut] if op.name != DECODE_ATTENTION]
        share = off_gpu(self.kv_split) / self.kv_token_bytes
        mine = [
            Op(op.name, op.flops * (1 - share), op.n_bytes * (1 - share), 0)
            for op in ops[:cut]
            if op.name == DECODE_ATTENTION
        ]
        costs = self.stage_costs(f"before.{part}", before) | self.stage_costs(f"after.{part}", ops[cut:])
        costs |= self.stage_costs(f"gpu.{part}", mine) if mine else {f"gpu.{part}.{leg}": FREE for leg in LEGS}
        if decode is None:
            return costs | {f"cpu.{part}.{leg}": FREE for leg in LEGS}
        n_bytes = share * attention_kernel(self.model, decode, self.precision).bytes
        compute_s, _, memory_s = self._cpu_attention_s(decode, share)
        dram = self._hop_cost("host", n_bytes)
        return costs | {
            f"cpu.{part}.compute": Cost(to_ps(compute_s)),
            f"cpu.{part}.memory": Cost(to_ps(memory_s), dram.fj, dram.bytes),
        }

    def floor_s(self, view: StepView) -> float:
        # The first layer's weights may have come before the step began; a GPU reads what it computes with.
        layers, gpu = self.model.n_layers, self.config.gpu.memory_bytes_per_s
        loads = self.layer_split, self.head_split
        wire, disk = ((layers - 1) * pick(loads[0]) + pick(loads[1]) for pick in (off_gpu, on_disk))
        streamed = sum(
            shape.kv_tokens - shape.tokens
            for shape in (view.prefill, None if self.on_cpu else view.decode)
            if shape is not None
        )
        wire += streamed * off_gpu(self.kv_split)
        bounds = [wire / (self.config.pcie.peak_gbs * 1e9)]
        if disk and self.config.ssd is not None:
            bounds.append(disk / (self.config.ssd.read_gbs * 1e9))
        compute = (self.read_bytes(view) - self.kv_read_bytes(view)) / gpu
        if self.on_cpu and self.host_cpu is not None and view.decode is not None:
            attended = view.decode.kv_tokens * off_gpu(self.kv_split)
            compute += attended / self.host_cpu.memory_bytes_per_s
        elif not self.on_cpu:
            compute += self.kv_read_bytes(view) / gpu
        return max(*bounds, compute)


def portion(shape: StepShape, part: int, parts: int) -> StepShape:
    """Return the ``part``-th of ``parts`` even portions of a step; together they are the step."""
    counts = (shape.tokens, shape.sequences, shape.attended, shape.kv_tokens, shape.sampled)
    return StepShape(*(n * (part + 1) // parts - n * part // parts for n in counts))


def _piece(shape: StepShape | None, part: int, parts: int) -> StepShape | None:
    """Return a GPU batch's share of a group: whole sequences, so none where there are too few."""
    if shape is None or part >= (groups := min(parts, shape.sequences)):
        return None
    return portion(shape, part, groups)


def _after_attention(ops: list[Op]) -> int:
    """Return the index of the first launch after attention."""
    return next(i for i, op in enumerate(ops) if op.name == "proj")


def _too_large(view: PlacementView) -> CapacityError:
    """Return the error for a view without a placement: the memory that is too small, or both together."""
    for memory, capacity in view.capacity_bytes.items():
        least = view.least_bytes(memory)
        if least > capacity:
            return CapacityError(memory, int(least), int(capacity), int(capacity), ())
    asked = sum(places["host"].bytes["host"] for places in view.choices.values() if "host" in places)
    room = int(view.capacity_bytes["gpu0"] + view.capacity_bytes["host"])
    return CapacityError("gpu0 + host", int(asked), room, room, ())
