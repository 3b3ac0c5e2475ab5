"""``lpddr-only``: weights and KV cache in one large, slow memory, all chips on it.

The baseline of H2M2 (arXiv 2504.14893), in the manner of CXL-PNM (HPCA'24): both accelerator chips share the
LPDDR. Not modelled: how the chips divide a kernel (evenly, by assumption) and any exchange between them.
"""

from collections.abc import Mapping

from hetmem.engine.graph import Cost, GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine, Memory
from hetmem.system.base import Setup
from hetmem.system.sided import HEAD, Phase, SidedSystem

SIDE = "slow"


class LpddrOnly(SidedSystem):
    """Everything in one memory."""

    name = "lpddr-only"
    summary = "weights and KV in one LPDDR memory, all chips on it"
    preset = "lpddr-only"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.side = self.board.side(SIDE)

    def machine(self) -> Machine:
        memory = Memory(SIDE, self.side.memory.capacity_bytes, f"{SIDE}-memory", None)
        return Machine(self.side_units(SIDE, SIDE), (memory,), base_w=self.board.base_w)

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("weights", SIDE, self.shape.footprint_bytes + self.outer_bytes)

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        return {SIDE: self.model.kv_bytes_per_token(self.precision)}

    def plan(self, view: StepView) -> Plan:
        phases, blocks = self.phases(view), self.layer_blocks()
        costs: dict[str, Cost] = {}
        for phase in phases:
            part = self.whole(phase, self.side)
            if phase.name == "qkv":
                part = part._replace(n_bytes=part.n_bytes + self.written_bytes(view))
            costs |= self.legs(phase.name, part, self.side, blocks[0][1])
        costs |= self.legs(HEAD, self.head(view, self.side), self.side, 1)
        return Plan(self._template(phases, len(blocks)).bind(costs))

    def _template(self, phases: tuple[Phase, ...], blocks: int) -> Template:
        key = tuple(phase.name for phase in phases)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            for name in (*key * blocks, HEAD):
                at = graph.kernel(name, f"{SIDE}.chip", f"{SIDE}.memory", at)
            self.templates[key] = graph.build()
        return self.templates[key]

    def floor_s(self, view: StepView) -> float:
        return self.held(view).footprint_bytes / self.side.memory.bandwidth_bytes_per_s
