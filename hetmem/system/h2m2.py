"""``h2m2``: every kernel split over two memories that both compute, remapped as the KV cache grows.

H2M2 (arXiv 2504.14893): each sub-layer is divided by heads or columns between a chip on fast memory and one on slow
memory; a barrier ends it. Before a step whose footprint has changed a policy maps anew, pages are allocated, and
those that change sides are copied in the background, where they contend with demand traffic; a half-kernel waits for
its own pages only. Every page of a sweep beyond the reach of the TLB costs a walk before its stream.
Outputs of a half are sent to the other chip over the link. Weights are loaded where the first step's mapping wants
them. Not modelled: zero-copy access to the other side, dependency handling of the driver beyond the decision's and
the tables' time, differences between layers. Embedding and head, where counted, are on the slow side.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from attrs import field, frozen

from hetmem.engine.graph import FREE, Cost, Handle, Template
from hetmem.engine.step import Plan, StepView
from hetmem.errors import CapacityError
from hetmem.hardware.kernel_cost import DecodeWork, half_elements, read_bytes, split_table, tensor_bytes
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine, Memory, Unit
from hetmem.hardware.paging import PageTable, Translation
from hetmem.monitor.table import Table
from hetmem.policy.kernel_mapping import SIDES, SUBLAYERS, MappingView, SplitTable, Tier
from hetmem.policy.kernel_mapping import Mapping as KernelMapping
from hetmem.policy.kernel_search import MAPPERS, mapper
from hetmem.system.base import Setup
from hetmem.system.h2m2_graph import LINKS, Shape, build
from hetmem.system.migration import Change, Placement, change
from hetmem.system.ops import make_room, total
from hetmem.system.sided import HEAD, Phase, SidedSystem, survivors
from hetmem.units import to_ps

POOL = "pool"
TENSORS = "tensors"
COLUMNS = (
    "step", *SUBLAYERS, "candidates", "table_entries", "to_fast_bytes", "to_slow_bytes", "fast_bytes", "slow_bytes",
    "fast_waste_bytes", "slow_waste_bytes", "frame_waits",
)  # fmt: skip


@frozen(slots=True, eq=False)
class MappedPlan(Plan):
    """A plan, the mapping behind it, what the system then holds and where, and what its table notes."""

    mapping: KernelMapping = field(kw_only=True)
    work: DecodeWork = field(kw_only=True)
    sizes: Placement = field(kw_only=True)
    row: tuple[int, ...] = field(kw_only=True)


class H2m2(SidedSystem):
    """Kernels mapped over asymmetric memory."""

    name = "h2m2"
    summary = "every kernel split by heads or columns over HBM and LPDDR, both with compute, remapped at run time"
    preset = "h2m2"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"mapping": MAPPERS}

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.sides = (self.board.side("fast"), self.board.side("slow"))
        costs = self.board.part("abstraction", self.board.abstraction)
        self.paging: Translation | None = self.board.part("paging", self.board.paging) if costs.paged else None
        self.translates, self.upkeep = costs.paged and costs.translation, costs.paged and costs.upkeep
        self.migrates = costs.paged and costs.migration
        self.unit_bytes: int = 1 if self.paging is None else self.paging.page_bytes
        self.capacity = tuple(side.memory.capacity_bytes // self.unit_bytes for side in self.sides)
        self.table_bytes = 0 if self.paging is None else self.paging.table_bytes
        tables, outer = (-(-n // self.unit_bytes) for n in (self.table_bytes, self.outer_bytes))
        self.fixed = (tables, tables + outer)
        fast, slow = (
            Tier(side.memory.name, (held - fixed) * self.unit_bytes)
            for side, held, fixed in zip(self.sides, self.capacity, self.fixed, strict=True)
        )
        self.tiers = (fast, slow)
        # What depends on the weights and the batch alone comes again every step.
        self._weight_tables: dict[tuple[str, int], SplitTable] = {}
        self._weight_costs: dict[Any, dict[str, Cost]] = {}
        chosen = setup.policies.get("mapping", MAPPERS[0])
        self.mapper = mapper(chosen, self.longest_view) if isinstance(chosen, str) else chosen
        self.pages = self._page_tables()
        self._last: MappedPlan | None = None
        self._noted = Table(dict.fromkeys(COLUMNS, "q"))

    # -- memory ------------------------------------------------------------------------------------------------

    def machine(self) -> Machine:
        units: list[Unit] = []
        for name in SIDES:
            units += [*self.side_units(name, name), Unit(f"{name}.mmu", "mmu", None, None, (name,))]
        ends = (*SIDES, POOL)
        units += [Unit(LINKS[0], "link", self.link.idle_w, self.link.idle_w, ends)]
        units += [Unit(LINKS[1], "link", 0.0, 0.0, ends), Unit("host", "host", None, None)]
        bytes_of = [n * self.unit_bytes for n in self.capacity]
        memories = [Memory(n, b, f"{n}-memory", None) for n, b in zip(SIDES, bytes_of, strict=True)]
        # One space of virtual addresses over both sides: what admission counts in.
        memories.append(Memory(POOL, sum(bytes_of) - sum(self.fixed) * self.unit_bytes, "slow-memory"))
        return Machine(tuple(units), tuple(memories), base_w=self.board.base_w)

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("weights", POOL, self.shape.footprint_bytes)
        for side, units in zip(SIDES, self.fixed, strict=True):
            ledger.allocate("fixed", side, units * self.unit_bytes)

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        return {POOL: self.model.kv_bytes_per_token(self.precision)}

    def _page_tables(self) -> tuple[PageTable, ...]:
        if self.paging is None:
            return ()
        tables = tuple(PageTable(s.memory.name, s.memory.capacity_bytes, self.paging) for s in self.sides)
        room = sum(self.capacity) * self.unit_bytes - self.shape.footprint_bytes
        layers = self.shape.layers
        for table in tables:
            for name in SUBLAYERS:
                # Addresses are reserved for the longest contexts that memory can hold at all.
                most = max(room, 0) // layers if name == "attention" else self.shape.layer_bytes(name)
                table.reserve(name, layers, most)
            table.reserve("page-table", 1, self.table_bytes)
            table.resize("page-table", self.table_bytes)
        tables[1].reserve("outer", 1, self.outer_bytes)
        tables[1].resize("outer", self.outer_bytes)
        return tables

    # -- policies ----------------------------------------------------------------------------------------------

    def mapping_view(self, work: DecodeWork) -> MappingView:
        """Return what a mapping policy may know of ``work``."""
        attention = split_table(work, "attention", *self.sides, self.paging)
        return MappingView(attention, self._weight_table("qkv", work), self._weight_table("fc", work), *self.tiers)

    def _weight_table(self, sublayer: str, work: DecodeWork) -> SplitTable:
        key = sublayer, work.batch
        if key not in self._weight_tables:
            make_room(self._weight_tables)
            self._weight_tables[key] = split_table(work, sublayer, *self.sides, self.paging)
        return self._weight_tables[key]

    def longest_view(self) -> MappingView:
        """Return that of the largest batch at its longest."""
        return self.mapping_view(self.longest_work())

    def _decide(self, work: DecodeWork) -> tuple[KernelMapping, int]:
        """Return the mapping for ``work``, and the candidates that were compared for it."""
        if self._last is not None and work == self._last.work:
            return self._last.mapping, 0
        view = self.mapping_view(work)
        mapping: KernelMapping = self.mapper.decide(view)
        for tier, asked in ((view.fast, view.fast_bytes(mapping)), (view.slow, view.slow_bytes(mapping))):
            if asked > tier.capacity_bytes:
                raise CapacityError(tier.name, asked, tier.capacity_bytes, tier.capacity_bytes, ())
        return mapping, int(self.mapper.candidates(view))

    def _change(self, view: StepView, mapping: KernelMapping, new: Placement) -> Change:
        last = self._last
        held: Placement = dict.fromkeys(SUBLAYERS, (0, 0))
        kept: Placement = {**new, "attention": (0, 0)}
        moved = kept
        if last is not None:
            stays = self.sized(last.work.batch, min(survivors(view), last.work.context_tokens))
            held = last.sizes
            kept = held if stays is last.work else tensor_bytes(stays, last.mapping)
            moved = kept if mapping == last.mapping else tensor_bytes(stays, mapping)
        return change(
            held, kept, moved, new, layers=self.shape.layers, unit_bytes=self.unit_bytes,
            capacity=(self.capacity[0], self.capacity[1]), fixed=self.fixed, copies=self.migrates,
            names=(self.sides[0].memory.name, self.sides[1].memory.name),
        )  # fmt: skip

    # -- plan --------------------------------------------------------------------------------------------------

    def plan(self, view: StepView) -> MappedPlan:
        work = self.held(view)
        mapping, candidates = self._decide(work)
        sizes = tensor_bytes(work, mapping)
        todo = self._change(view, mapping, sizes)
        phases = self.phases(view)
        per_layer = bool(todo.copied) or bool(todo.waits) or self.setup.unroll_layers
        times = 1 if per_layer else work.layers
        costs = self._copy_costs(todo)
        costs["decide"] = Cost(to_ps(candidates * (self.board.decision_s_per_candidate or 0.0)))
        costs["tables"] = Cost(to_ps(todo.entries * self.paging.update_s) if self.paging and self.upkeep else 0)
        for phase in phases:
            costs |= self._phase_costs(view, phase, mapping, todo, times)
        sampled = total(view.prefill, view.decode).sampled
        costs |= self._once((HEAD, sampled), lambda: self.legs(HEAD, self.head(view, self.sides[1]), self.sides[1], 1))
        idle = frozenset(slot for slot, cost in costs.items() if cost == FREE)
        awaited = frozenset(todo.copied).union((name, side) for _, name, side in todo.waits)
        template = self._template(phases, per_layer, tuple(todo.copied), awaited, idle)
        publish, wait = _frame_handles(template, todo)
        return MappedPlan(
            template.bind(costs, publish, wait),
            allocate=self._ledger_rows(todo.reserved), release=self._ledger_rows(todo.released),
            mapping=mapping, work=work, sizes=sizes, row=self._row(view, mapping, candidates, todo, sizes),
        )  # fmt: skip

    def commit(self, plan: Plan) -> None:
        assert isinstance(plan, MappedPlan)
        self._last, sizes = plan, plan.sizes
        for side, table in enumerate(self.pages):
            growth = {name: table.growth(name, sizes[name][side]) for name in SUBLAYERS}
            for name in sorted(SUBLAYERS, key=growth.__getitem__):  # what shrinks makes room first
                table.resize(name, sizes[name][side])
        self._noted.append(plan.row)

    def tables(self) -> Mapping[str, Table]:
        return {"mapping": self._noted}

    def floor_s(self, view: StepView) -> float:
        assert self._last is not None
        moved = read_bytes(self.held(view), self._last.mapping)
        return max(n / s.memory.bandwidth_bytes_per_s for n, s in zip(moved, self.sides, strict=True))

    def _ledger_rows(self, units: tuple[int, int]) -> tuple[tuple[str, str, int], ...]:
        return tuple((TENSORS, side, n * self.unit_bytes) for side, n in zip(SIDES, units, strict=True) if n)

    def _row(
        self, view: StepView, mapping: KernelMapping, candidates: int, todo: Change, sizes: Placement
    ) -> tuple[int, ...]:
        layers = self.shape.layers
        moved = [sum(layers * n for (_, to), n in todo.copied.items() if to == side) for side in (0, 1)]
        need = [layers * sum(s[side] for s in sizes.values()) for side in (0, 1)]
        need = [n + self.table_bytes for n in need]
        need[1] += self.outer_bytes
        units = [n * self.unit_bytes for n in todo.units]
        return (
            view.order, *(getattr(mapping, name) for name in SUBLAYERS), candidates,
            todo.entries if self.paging else 0, *(n * self.unit_bytes for n in moved), *units,
            *(u - n for u, n in zip(units, need, strict=True)), len(todo.waits),
        )  # fmt: skip

    # -- costs -------------------------------------------------------------------------------------------------

    def _phase_costs(
        self, view: StepView, phase: Phase, mapping: KernelMapping, todo: Change, times: int
    ) -> dict[str, Cost]:
        if phase.sublayer == "attention":
            return self._half_costs(view, phase, mapping, todo, times)
        thrashes = None if self.paging is None else tuple(map(self.paging.thrashes, todo.units))
        key = (phase.name, phase.work.batch, mapping, thrashes, times)
        return self._once(key, lambda: self._half_costs(view, phase, mapping, todo, times))

    def _once(self, key: Any, costs: Callable[[], dict[str, Cost]]) -> dict[str, Cost]:
        """Return the costs of weights that depend on ``key`` alone."""
        if key not in self._weight_costs:
            make_room(self._weight_costs)
            self._weight_costs[key] = costs()
        return self._weight_costs[key]

    def _half_costs(
        self, view: StepView, phase: Phase, mapping: KernelMapping, todo: Change, times: int
    ) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        split, output = getattr(mapping, phase.sublayer), self.activation_bytes(view)
        share, kv_share = split / phase.work.parts(phase.sublayer), mapping.attention / self.shape.parts("attention")
        for index, elements in enumerate(half_elements(phase.work, phase.sublayer, split)):
            slot, side = f"{phase.name}.{SIDES[index]}", self.sides[index]
            part = self.part(phase, elements, side)
            if phase.name == "qkv":  # new keys and values go where attention reads them
                written = round(self.written_bytes(view) * (kv_share if index == 0 else 1 - kv_share))
                part = part._replace(n_bytes=part.n_bytes + written)
            costs |= self.legs(slot, part, side, times)
            costs[f"{slot}.walk"] = Cost(to_ps(self._walk_s(phase, elements, index, todo)) * times)
            costs[f"{slot}.out"] = self.over_link(round(output * (share if index == 0 else 1 - share)), times)
        return costs

    def _walk_s(self, phase: Phase, elements: int, index: int, todo: Change) -> float:
        if self.paging is None or not self.translates:
            return 0.0
        work = phase.work
        pages = self.paging.pages(work.stored_bytes(phase.sublayer, elements))
        misses = self.paging.misses(pages, todo.units[index])
        if phase.sublayer != "attention" and pages > self.paging.tlb_entries:
            misses *= work.reads(phase.sublayer, self.sides[index].chip)
        return self.paging.walk_s(misses)

    def _copy_costs(self, todo: Change) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        for (name, to), units in todo.copied.items():
            n_bytes, slot = units * self.unit_bytes, f"move.{name}.{SIDES[to]}"
            costs[f"{slot}@{LINKS[1 - to]}"] = self.over_link(n_bytes)
            for side, part in zip(SIDES, self.sides, strict=True):
                costs[f"{slot}@{side}.memory"] = self.stream(n_bytes, part.memory)
        return costs

    def _template(
        self, phases: tuple[Phase, ...], per_layer: bool, copied: tuple[tuple[str, int], ...],
        awaited: frozenset[tuple[str, int]], idle: frozenset[str],
    ) -> Template:  # fmt: skip
        names = tuple((phase.name, phase.sublayer) for phase in phases)
        layers = self.shape.layers
        key: Any = (names, per_layer, copied, awaited, idle)
        if key not in self.templates:
            chunk = {
                f"{side}.memory": to_ps(self.unit_bytes / self.sides[index].memory.rate_bytes_per_s)
                for index, side in enumerate(SIDES)
            } | dict.fromkeys(LINKS, to_ps(self.unit_bytes / (self.link_path.gbs * 1e9)))
            lag = to_ps(self.link_path.latency_s) * (1 if per_layer else layers)
            self.templates[key] = build(Shape(names, layers if per_layer else 1, copied, awaited, idle, lag, chunk))
        return self.templates[key]


def _frame_handles(template: Template, todo: Change) -> tuple[dict[int, Handle], dict[int, list[Handle]]]:
    """Return the handles that copies away publish, and the tasks that wait for the frames they free."""
    publish: dict[int, Handle] = {}
    wait: dict[int, list[Handle]] = {}
    for (layer, name, side), (gone_layer, gone, _) in todo.waits.items():
        left = template.names[f"moved.{gone_layer}.{gone}.{SIDES[1 - side]}"]
        handle = publish.setdefault(left, Handle((gone_layer, gone, SIDES[side])))
        if (name, side) in todo.copied:
            waiting = template.names[f"start.{layer}.{name}.{SIDES[side]}"]
        else:
            waiting = template.names[f"pages.{layer}.{name}.{SIDES[side]}"]
        wait.setdefault(waiting, []).append(handle)
    return publish, wait
