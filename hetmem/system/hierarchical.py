"""``hierarchical``: HBM as a strict upper level over LPDDR; all chips compute on what is in HBM.

A baseline of H2M2 (arXiv 2504.14893), which publishes neither what stays in HBM nor how much of the movement
overlaps with compute. Here HBM holds what fits for good, and the rest is moved up once per step, through the link;
of compute and movement a fraction ``overlap`` runs side by side, the rest one after the other. (Least recently used
replacement under a cyclic sweep would move everything.) Not modelled: the buffer that holds what is moved up.
"""

from collections.abc import Mapping

from hetmem.engine.graph import Cost, GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.hardware.kernel_cost import SideMemory
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine, Memory, Unit
from hetmem.system.base import Setup
from hetmem.system.sided import HEAD, Phase, SidedSystem
from hetmem.units import to_ps

POOL = "pool"
UP = "link.up"
PIECES = ("apart", "together")


class Hierarchical(SidedSystem):
    """HBM over LPDDR."""

    name = "hierarchical"
    summary = "HBM as an upper level over LPDDR, all chips on the HBM; what does not fit is moved up every step"
    preset = "hierarchical"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.upper = self.board.side("fast")
        self.lower: SideMemory = self.board.part("slow", self.board.slow)
        self.overlap: float = self.board.part("overlap", self.board.overlap)

    def machine(self) -> Machine:
        lower = Unit("slow.memory", "slow-memory", 0.0, 0.0, ("slow", POOL))
        link = Unit(UP, "link", self.link.idle_w, self.link.idle_w, ("fast", "slow"))
        fast, slow = self.upper.memory.capacity_bytes, self.lower.capacity_bytes
        memories = (
            Memory("fast", fast, "fast-memory", None), Memory("slow", slow, "slow-memory", None),
            Memory(POOL, fast + slow, "slow-memory"),
        )  # fmt: skip
        return Machine((*self.side_units("fast", "fast"), lower, link), memories, base_w=self.board.base_w)

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("weights", POOL, self.shape.footprint_bytes + self.outer_bytes)

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        return {POOL: self.model.kv_bytes_per_token(self.precision)}

    def moved_bytes(self, view: StepView) -> int:
        """Return the bytes that a step moves up: what the upper memory cannot hold."""
        held = self.held(view).footprint_bytes + self.outer_bytes
        return max(0, held - self.upper.memory.capacity_bytes)

    def plan(self, view: StepView) -> Plan:
        phases, blocks = self.phases(view), self.layer_blocks()
        whole: dict[str, Cost] = {}
        for phase in phases:
            part = self.whole(phase, self.upper)
            if phase.name == "qkv":
                part = part._replace(n_bytes=part.n_bytes + self.written_bytes(view))
            whole |= self.legs(phase.name, part, self.upper, blocks[0][1])
        whole |= self.legs(HEAD, self.head(view, self.upper), self.upper, 1)
        moved = self.moved_bytes(view)
        whole |= {
            "fetch@slow.memory": self.stream(moved, self.lower),
            f"fetch@{UP}": self._up(moved),
            "fetch@fast.memory": self.stream(moved, self.upper.memory),
        }
        costs = {f"{piece}.{slot}": c for slot, cost in whole.items() for piece, c in self._split(cost).items()}
        return Plan(self._template(phases, len(blocks)).bind(costs))

    def _up(self, moved: int) -> Cost:
        cost = self.over_link(moved)
        return cost._replace(ps=cost.ps + to_ps(self.link_path.latency_s)) if moved else cost

    def _split(self, cost: Cost) -> dict[str, Cost]:
        together = Cost(*(round(self.overlap * number) for number in cost))
        if not together.ps:
            together = Cost(0)
        apart = Cost(*(a - b for a, b in zip(cost, together, strict=True)))
        if not apart.ps:
            apart, together = Cost(0), cost
        return {"apart": apart, "together": together}

    def _template(self, phases: tuple[Phase, ...], blocks: int) -> Template:
        key = tuple(phase.name for phase in phases)
        if key not in self.templates:
            graph = GraphBuilder()
            names = (*key * blocks, HEAD)
            at = self._fetch(graph, "apart", graph.join())
            at = self._compute(graph, "apart", names, at)
            graph.join([self._fetch(graph, "together", at), self._compute(graph, "together", names, at)])
            self.templates[key] = graph.build()
        return self.templates[key]

    @staticmethod
    def _fetch(graph: GraphBuilder, piece: str, at: int) -> int:
        return graph.transfer(f"{piece}.fetch", ("slow.memory", UP, "fast.memory"), at)

    @staticmethod
    def _compute(graph: GraphBuilder, piece: str, names: tuple[str, ...], at: int) -> int:
        for name in names:
            at = graph.kernel(f"{piece}.{name}", "fast.chip", "fast.memory", at)
        return at

    def floor_s(self, view: StepView) -> float:
        upper = self.held(view).footprint_bytes / self.upper.memory.bandwidth_bytes_per_s
        return max(upper, self.moved_bytes(view) / self.lower.bandwidth_bytes_per_s)
