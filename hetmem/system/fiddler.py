"""``fiddler``: every expert on the CPU, or on the GPU after copying it, expert by expert (Fiddler, ICLR 2025).

Everything but the experts stays in GPU memory with the KV cache; what is left pins experts, the same number in every
layer. For the others the CPU's time for an expert's tokens decides against copy plus GPU
(:mod:`hetmem.policy.fiddler`). Routing is drawn per step and layer: uniform, each token to distinct experts, as the
model's kernels count; so no expert is more popular than another. Pinned experts run first on the GPU, copied ones
when they arrive, those of the CPU beside both.
Not modelled: skewed routing, prefetching, several streams on the CPU, the fixed latency of copies.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hetmem import rng
from hetmem.engine.graph import FREE, Cost, GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.errors import CapacityError
from hetmem.hardware.ledger import Ledger
from hetmem.model import StepShape
from hetmem.policy.fiddler import CpuOrGpu, ExpertDecision, ExpertView, pin_popular
from hetmem.system.base import Setup
from hetmem.system.host_compute import HostComputeSystem
from hetmem.system.ops import Op, total

EXPERT = ("up", "act", "down")


class Fiddler(HostComputeSystem):
    """Experts where they are fastest."""

    name = "fiddler"
    summary = "experts on the CPU, or copied to the GPU where that is faster; popular ones pinned in GPU memory"
    preset = "fiddler"
    moe_only: ClassVar[str | None] = "decides for each expert where it runs"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.policy = CpuOrGpu()
        groups = self.model.layer_bytes(self.precision)
        self.expert_bytes = (groups["up"] + groups["down"]) // self.model.n_experts
        self.shared_bytes = self.total_bytes - self.model.n_layers * self.model.n_experts * self.expert_bytes
        experts = self.model.n_layers * self.model.n_experts
        free = self.config.gpu_usable_bytes - self.shared_bytes - self.expert_bytes
        kv = self.setup.kv_tokens * self.model.kv_bytes_per_token(self.precision)
        slots = min(experts, max(0, free - kv) // self.expert_bytes)
        self.pinned = self._pinned(slots)
        self.load_s = self.config.pcie.path().transfer_s(self.expert_bytes)
        self._times: dict[int, tuple[float, float, float, list[Op]]] = {}

    def _pinned(self, slots: int) -> NDArray[np.bool_]:
        """Return which experts of which layer are pinned: popularity is uniform, so as many in every layer."""
        layers, experts = self.model.n_layers, self.model.n_experts
        pinned = np.zeros((layers, experts), dtype=np.bool_)
        for layer in range(layers):
            here = slots // layers + (layer < slots % layers)
            pinned[layer, list(pin_popular([1.0] * experts, here))] = True
        return pinned

    def place(self, ledger: Ledger) -> None:
        n_pinned = int(self.pinned.sum())
        ledger.allocate("shared weights", "gpu0", self.shared_bytes)
        ledger.allocate("pinned experts", "gpu0", n_pinned * self.expert_bytes)
        ledger.allocate("expert buffer", "gpu0", self.expert_bytes)
        # Pinned experts have no copy in DRAM.
        ledger.allocate("experts", "host", self.pinned.size * self.expert_bytes - n_pinned * self.expert_bytes)
        free = ledger.free_bytes("gpu0")
        need = self.kv_need_bytes()
        if free < need:
            raise CapacityError("gpu0", need, free, ledger.capacities["gpu0"], ())

    def kv_bytes_per_token(self) -> dict[str, int]:
        return {"gpu0": self.model.kv_bytes_per_token(self.precision)}

    def decisions(self) -> dict[str, Any]:
        return {"pinned_experts": int(self.pinned.sum()), "experts": self.pinned.size}

    def expert(self, tokens: int) -> tuple[float, float, float, list[Op]]:
        """Return seconds on the CPU, bytes read there, seconds on the GPU and the launches of an expert's tokens."""
        if tokens not in self._times:
            ops = []
            for op in self.ops.layer(None, StepShape(tokens=1, sequences=1, sampled=1)):
                if op.name in EXPERT:
                    uses = self.model.mlp_uses
                    weights = op.weight_bytes / uses
                    moved = (op.n_bytes - op.weight_bytes) / uses * tokens
                    ops.append(Op(op.name, op.flops / uses * tokens, weights + moved, weights))
            cpu_s = sum(self.cpu_s(op.flops, op.n_bytes, vectors=tokens == 1) for op in ops) if tokens else 0.0
            gpu_s = sum(self.ops.law.legs_s(op.flops, op.n_bytes, self.ops.dtype)[0] for op in ops)
            self._times[tokens] = (cpu_s, sum(op.n_bytes for op in ops), gpu_s, ops)
        return self._times[tokens]

    def routing(self, order: int, tokens: int) -> NDArray[np.int64]:
        """Return the tokens of each (layer, expert) of a step: each token picks its experts uniformly."""
        layers, experts = self.model.n_layers, self.model.n_experts
        source = rng.stream(self.setup.seed, f"routing.step{order}")
        keys = source.random((layers, tokens, experts))
        chosen = np.argpartition(keys, self.model.mlp_uses - 1, axis=2)[:, :, : self.model.mlp_uses]
        counts = np.zeros((layers, experts), dtype=np.int64)
        for layer in range(layers):
            counts[layer] = np.bincount(chosen[layer].ravel(), minlength=experts)
        return counts

    def decide(self, layer: int, tokens: NDArray[np.int64]) -> ExpertDecision:
        """Return where the experts of one layer run."""
        cpu_s, _, gpu_s, _ = zip(*(self.expert(int(n)) for n in tokens), strict=True)
        return self.policy.decide(ExpertView(tokens, np.array(cpu_s), np.array(gpu_s), self.load_s, self.pinned[layer]))

    def plan(self, view: StepView) -> Plan:
        whole = total(view.prefill, view.decode)
        shared = [op for op in self.ops.layer(view.prefill, view.decode) if op.name not in EXPERT]
        costs = self.stage_costs("head", self.ops.head(whole)) | self.stage_costs("shared", shared)
        counts = self.routing(view.order, whole.tokens)
        for layer in range(self.model.n_layers):
            costs |= self._expert_costs(layer, counts[layer])
        if "step" not in self.templates:
            self.templates["step"] = self._template()
        return Plan(self.templates["step"].bind(costs))

    def _expert_costs(self, layer: int, tokens: NDArray[np.int64]) -> dict[str, Cost]:
        where = self.decide(layer, tokens)
        costs: dict[str, Cost] = {}
        for slot, side in (("pinned", where.on_gpu & ~where.copied), ("copied", where.copied)):
            ops = [op for n in tokens[side] for op in self.expert(int(n))[3]]
            name = f"{slot}.l{layer}"
            costs |= self.stage_costs(name, ops) if ops else {f"{name}.compute": FREE, f"{name}.memory": FREE}
        mine = [self.expert(int(n)) for n in tokens[where.on_cpu]]
        costs |= self.host_costs(f"cpu.l{layer}", sum(e[0] for e in mine), sum(e[1] for e in mine))
        costs |= (
            self.moved_costs(f"load.l{layer}", self.expert_bytes, int(where.copied.sum()))
            if where.copied.any()
            else (self.moved_costs(f"load.l{layer}", 0))
        )
        hidden = int(tokens[where.on_cpu].sum()) * self.hidden_bytes
        return costs | self.moved_costs(f"send.l{layer}", hidden, 1, "d2h") | self.moved_costs(f"back.l{layer}", hidden)

    def _template(self) -> Template:
        graph = GraphBuilder()
        at = graph.join()
        down, up = (
            self.copy_path(self.config.pcie.path(direction="d2h"), "d2h"),
            self.copy_path(self.config.pcie.path()),
        )
        for layer in range(self.model.n_layers):
            at = graph.kernel("shared", "gpu0", "gpu0.hbm", at)
            pinned = graph.kernel(f"pinned.l{layer}", "gpu0", "gpu0.hbm", at)
            loaded = graph.transfer(f"load.l{layer}", up.hops, at)
            copied = graph.kernel(f"copied.l{layer}", "gpu0", "gpu0.hbm", loaded)
            sent = graph.transfer(f"send.l{layer}", down.hops, at)
            done = graph.kernel(f"cpu.l{layer}", "cpu", "host", sent)
            back = graph.transfer(f"back.l{layer}", up.hops, done)
            at = graph.join((pinned, copied, back))
        graph.kernel("head", "gpu0", "gpu0.hbm", at)
        return graph.build()

    def floor_s(self, view: StepView) -> float:
        read = self.shared_bytes - self.model.outer_bytes(self.precision)["embedding"] + self.kv_read_bytes(view)
        return max(0, read) / self.config.gpu.memory_bytes_per_s
