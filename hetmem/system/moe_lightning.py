"""``moe-lightning``: CGOPipe, with batch split, placement and sides by the roofline search (ASPLOS 2025).

A decode step goes through the layers micro-batch by micro-batch: while the GPU runs the part after attention of one,
the CPU attends for the next and the link carries a page of the next layer's weights between the hidden states
(:mod:`hetmem.policy.cgopipe`). The pages of the first layer travel at the end of the step before. The search runs
once, for the largest batch at its longest context; where it keeps attention or experts on one side, so does the
step. A step with a prompt streams whole layers to the GPU, which attends; keys and values go to the host meanwhile.
Not modelled: pages of unequal size, a hidden state that waits inside a page, several GPUs.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from hetmem.engine.graph import Cost, GraphBuilder, Handle, Template
from hetmem.engine.step import Plan, StepView
from hetmem.hardware.ledger import Ledger
from hetmem.model import Kernel, StepShape, expected_experts, layer_kernels
from hetmem.policy.cgopipe import HrmPolicy, HrmSearch, HrmView, Side, Slot, pipeline
from hetmem.system.base import Setup
from hetmem.system.flexgen import portion
from hetmem.system.host_compute import HostComputeSystem
from hetmem.system.ops import ATTENTION, total
from hetmem.system.stream import Stage, stream

BEFORE = ("attn_norm", "qkv", "rope")
EXPERT = ("up", "act", "down")
DEPTH = 1  # layers loaded ahead while prompts are processed
FIRST = "first-pages"


class MoeLightning(HostComputeSystem):
    """GPU, CPU and link work on different micro-batches of one layer."""

    name = "moe-lightning"
    summary = "micro-batches in CGOPipe: weights paged to the GPU, attention on the CPU, all three overlapped"
    preset = "moe-lightning"
    moe_only: ClassVar[str | None] = "is made for the pages and the load of experts"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.kv_layer_bytes = self.model.kv_bytes_per_token(self.precision) / self.model.n_layers
        self.outer = sum(self.model.outer_bytes(self.precision).values())
        self.chosen: HrmPolicy = HrmSearch(batch=setup.batch).decide(self.search_view())
        groups = self.model.layer_bytes(self.precision)
        self.expert_bytes = groups["up"] + groups["down"]
        on_gpu = self.layer_bytes - (0 if self.chosen.gpu_ffn else self.expert_bytes)
        self.resident_layer_bytes = int(self.chosen.weights_on_gpu * on_gpu)
        self.paged_bytes = on_gpu - self.resident_layer_bytes
        kv = self.model.kv_bytes_per_token(self.precision)
        on_gpu_kv = round(self.chosen.kv_on_gpu * kv) if self.chosen.gpu_attention else 0
        self.kv_split = {memory: n for memory, n in (("gpu0", on_gpu_kv), ("host", kv - on_gpu_kv)) if n}
        self._ahead: tuple[Handle, ...] = ()

    def search_view(self) -> HrmView:
        """Return machine, model and load of one layer of decode at the largest batch and its longest context."""
        batch, context = self.setup.batch, self.setup.longest
        shape = StepShape.decode(batch, batch * (context - 1))
        kernels = {k.name: k for k in layer_kernels(self.model, shape, self.precision)}
        groups = self.model.layer_bytes(self.precision)
        experts = groups["up"] + groups["down"]
        dense = [k for name, k in kernels.items() if name not in (*EXPERT, *ATTENTION)]
        gpu, cpu = self.config.gpu, self.cpu
        compute, memory = self.ops.law.efficiencies
        room = self.config.gpu_usable_bytes - self.outer
        return HrmView(
            gpu=Side(
                gpu.peak_flops(self.ops.dtype) * compute, gpu.memory_bytes_per_s * memory, max(1, room),
            ),
            cpu=Side(
                cpu.fp32_tflops * 1e12 * cpu.compute_efficiency,
                min(cpu.memory_bytes_per_s * cpu.memory_efficiency, self.host_rate), self.host.capacity_bytes,
            ),
            link_bytes_per_s=self.config.pcie.path().gbs * 1e9,
            n_layers=self.model.n_layers,
            dense_bytes=self.layer_bytes - experts,
            expert_bytes=experts,
            touched_share=expected_experts(self.model, batch) / self.model.n_experts,
            dense_flops=sum(k.flops for k in dense) / batch,
            expert_flops=sum(kernels[name].flops for name in EXPERT) / batch,
            attention_flops=sum(kernels[name].flops for name in ATTENTION) / batch,
            kv_bytes=context * self.model.kv_bytes_per_token(self.precision) / self.model.n_layers,
            hidden_bytes=self.hidden_bytes,
        )  # fmt: skip

    def place(self, ledger: Ledger) -> None:
        layers = self.model.n_layers
        ledger.allocate("head and embedding", "gpu0", self.outer)
        ledger.allocate("weights", "gpu0", layers * self.resident_layer_bytes)
        ledger.allocate("page buffers", "gpu0", 2 * max(self.paged_bytes, self._prefill_bytes()))
        ledger.allocate("weights", "host", layers * (self.layer_bytes - self.resident_layer_bytes))

    def _prefill_bytes(self) -> int:
        """Return the bytes of a layer that a prompt streams: the GPU computes all of it."""
        return self.layer_bytes - self.resident_layer_bytes

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        return self.kv_split

    def decisions(self) -> dict[str, Any]:
        chosen = self.chosen
        return {
            "micro_batch": chosen.micro_batch, "gpu_attention": chosen.gpu_attention, "gpu_ffn": chosen.gpu_ffn,
            "weights_on_gpu": chosen.weights_on_gpu, "kv_on_gpu": chosen.kv_on_gpu,
        }  # fmt: skip

    # -- steps -------------------------------------------------------------------------------------------------

    def plan(self, view: StepView) -> Plan:
        if view.prefill is not None:
            return self._plan_prefill(view)
        assert view.decode is not None
        decode = view.decode
        parts = -(-decode.sequences // self.chosen.micro_batch)
        costs = self.stage_costs("head", self.ops.head(decode))
        for part in range(parts):
            costs |= self._part_costs(part, portion(decode, part, parts), parts)
        costs |= self.moved_costs(FIRST, self.paged_bytes)
        warm = bool(self._ahead)
        key = (parts, warm)
        if key not in self.templates:
            self.templates[key] = self._template(parts, warm)
        template = self.templates[key]
        publish = {template.names["next"]: Handle((view.order + 1, FIRST))}
        wait = {template.names["ready"]: list(self._ahead)} if warm else {}
        return Plan(template.bind(costs, publish, wait))

    def commit(self, plan: Plan) -> None:
        super().commit(plan)
        self._ahead = tuple(plan.graph.publish.values())

    def _part_costs(self, part: int, shape: StepShape, parts: int) -> dict[str, Cost]:
        """Return the costs of one micro-batch in one layer."""
        chosen, away = self.chosen, 1 - self.chosen.kv_on_gpu
        kernels = layer_kernels(self.model, shape, self.precision)
        groups: dict[str, list[Kernel]] = {"pre": [], "attention": [], "post": [], "experts": []}
        for kernel in kernels:
            groups[_group(kernel.name)].append(kernel)
        costs = self._gpu_costs(f"pre.{part}", groups["pre"])
        after = groups["post"] + (groups["experts"] if chosen.gpu_ffn else [])
        costs |= self._gpu_costs(f"post.{part}", after)
        states = shape.tokens * self.hidden_bytes
        new = shape.tokens * self.kv_layer_bytes
        if chosen.gpu_attention:
            costs |= self._gpu_costs(f"attention.{part}", groups["attention"])
            costs |= self.moved_costs(f"kv.{part}", away * (shape.kv_tokens - shape.tokens) * self.kv_layer_bytes)
            costs |= self.moved_costs(f"send.{part}", away * new, 1, "d2h")
        else:
            costs |= self._cpu_costs(f"attention.{part}", groups["attention"])
            costs |= self.moved_costs(f"send.{part}", states + new, 1, "d2h")
            costs |= self.moved_costs(f"back.{part}", states)
        if not chosen.gpu_ffn:
            costs |= self._cpu_costs(f"experts.{part}", groups["experts"])
            costs |= self.moved_costs(f"ffn-send.{part}", states, 1, "d2h")
            costs |= self.moved_costs(f"ffn-back.{part}", states)
        begin, end = self.paged_bytes * part // parts, self.paged_bytes * (part + 1) // parts
        return costs | self.moved_costs(f"page.{part}", end - begin)

    def _gpu_costs(self, slot: str, kernels: list[Kernel]) -> dict[str, Cost]:
        return self.stage_costs(slot, [self.ops.op(kernel) for kernel in kernels])

    def _cpu_costs(self, slot: str, kernels: list[Kernel]) -> dict[str, Cost]:
        n_bytes = sum(k.bytes for k in kernels)
        return self.host_costs(slot, self.cpu_s(sum(k.flops for k in kernels), n_bytes), n_bytes)

    def _template(self, parts: int, warm: bool) -> Template:
        """Return the graph of a decode step of ``parts`` micro-batches."""
        graph = GraphBuilder()
        start = graph.join()
        up = self.copy_path(self.config.pcie.path()).hops
        layers = self.model.n_layers
        if warm:
            pages = {0: [graph.join(start, name="ready")]}
        else:
            pages = {0: [graph.transfer(FIRST, up, start)]}
        done: dict[tuple[int, int], int] = {}
        ready: dict[tuple[int, int], int] = {}
        begun = start
        for slot in _slots(layers, parts):
            if slot.gpu_post is not None:
                layer, part = slot.gpu_post
                done[slot.gpu_post] = self._after_attention(graph, part, (ready[slot.gpu_post], *pages[layer]))
            if slot.page is not None and slot.gpu_post is not None:
                layer, part = slot.page
                beyond = slot.gpu_post[0] + 1 == layers
                # With its slot and not before: hidden states of this slot must not queue behind later pages.
                name = "next" if beyond and part == parts - 1 else None
                page = graph.transfer(f"page.{part}", up, begun, background=beyond, name=name)
                if not beyond:
                    pages.setdefault(layer, []).append(page)
                begun = done[slot.gpu_post]
            if slot.gpu_pre is not None:
                layer, part = slot.gpu_pre
                # The first page holds what comes before attention.
                before = done[(layer - 1, part)] if layer else start
                ready[slot.gpu_pre] = self._attention(graph, part, (before, pages[layer][0]))
        graph.kernel("head", "gpu0", "gpu0.hbm", done[(layers - 1, parts - 1)])
        return graph.build()

    def _attention(self, graph: GraphBuilder, part: int, after: tuple[int, ...]) -> int:
        """Add what a micro-batch does up to and with attention; return its end."""
        up = self.copy_path(self.config.pcie.path()).hops
        down = self.copy_path(self.config.pcie.path(direction="d2h"), "d2h").hops
        pre = graph.kernel(f"pre.{part}", "gpu0", "gpu0.hbm", dict.fromkeys(after))
        sent = graph.transfer(f"send.{part}", down, pre)
        if self.chosen.gpu_attention:
            loaded = graph.transfer(f"kv.{part}", up, pre)
            return graph.kernel(f"attention.{part}", "gpu0", "gpu0.hbm", loaded)
        attended = graph.kernel(f"attention.{part}", "cpu", "host", sent)
        return graph.transfer(f"back.{part}", up, attended)

    def _after_attention(self, graph: GraphBuilder, part: int, after: tuple[int, ...]) -> int:
        post = graph.kernel(f"post.{part}", "gpu0", "gpu0.hbm", dict.fromkeys(after))
        if self.chosen.gpu_ffn:
            return post
        up = self.copy_path(self.config.pcie.path()).hops
        down = self.copy_path(self.config.pcie.path(direction="d2h"), "d2h").hops
        sent = graph.transfer(f"ffn-send.{part}", down, post)
        return graph.transfer(f"ffn-back.{part}", up, graph.kernel(f"experts.{part}", "cpu", "host", sent))

    def _plan_prefill(self, view: StepView) -> Plan:
        whole = total(view.prefill, view.decode)
        away = self.kv_split.get("host", 0) / self.model.n_layers
        cached = (whole.kv_tokens - whole.tokens) * away
        costs = self.step_costs(view)
        costs |= self.moved_costs("load.layer", self._prefill_bytes() + cached)
        costs |= self.moved_costs("kv-out", whole.tokens * away * self.model.n_layers, 1, "d2h")
        if "prefill" not in self.templates:
            graph = GraphBuilder()
            start = graph.join()
            stages = [*[Stage("layer", "load.layer")] * self.model.n_layers, Stage("head", None)]
            end = stream(graph, stages, [self.copy_path(self.config.pcie.path())], [DEPTH], start)
            down = self.copy_path(self.config.pcie.path(direction="d2h"), "d2h").hops
            graph.join((end, graph.transfer("kv-out", down, start)))
            self.templates["prefill"] = graph.build()
        return Plan(self.templates["prefill"].bind(costs))

    def floor_s(self, view: StepView) -> float:
        if view.prefill is None:
            # The pages of the first layer came with the step before.
            return (self.model.n_layers - 1) * self.paged_bytes / (self.config.pcie.peak_gbs * 1e9)
        return self.model.n_layers * self._prefill_bytes() / (self.config.pcie.peak_gbs * 1e9)


def _group(name: str) -> str:
    """Return the part of a micro-batch's layer that a kernel belongs to."""
    if name in BEFORE:
        return "pre"
    if name in ATTENTION:
        return "attention"
    return "experts" if name in EXPERT else "post"


def _slots(layers: int, parts: int) -> tuple[Slot, ...]:
    """Return the slots of a step; a single micro-batch has nothing to overlap with but its pages."""
    if parts > 1:
        return pipeline(layers, parts)
    return (
        Slot(None, (0, 0), None, None),
        *(
            Slot((layer, 0), (layer + 1, 0) if layer + 1 < layers else None, None, ((layer + 1) % layers, 0))
            for layer in range(layers)
        ),
    )
