"""The task graph of ``h2m2``: decision and tables on the host, copies behind, and layers of halves and barriers.

A half is a compute leg on the chip, and a walk on the memory management unit before the stream from memory; its
outputs then go over the link. A copy is a leg per hop, all started together, in the background and in chunks of a
page, so that demand traffic passes at page boundaries.
"""

from collections.abc import Mapping

from attrs import frozen

from hetmem.engine.graph import GraphBuilder, Template
from hetmem.policy.kernel_mapping import SIDES, SUBLAYERS
from hetmem.system.sided import HEAD

#: The link from the fast side to the slow one, and back.
LINKS = ("link.down", "link.up")
BEHIND = 1


@frozen
class Shape:
    """What a template depends on.

    Attributes
    ----------
    phases
        (phase, sub-layer) of a layer, in order.
    layers
        Layers to lower; one where all are folded into one.
    moving
        Whether pages change sides.
    lag_ps
        Latency of the link for one task.
    chunk_ps
        Ticks of a page at each server of a copy.
    """

    phases: tuple[tuple[str, str], ...]
    layers: int
    moving: bool
    lag_ps: int
    chunk_ps: Mapping[str, int]


def build(shape: Shape) -> Template:
    """Return the template of a step.

    Named tasks: ``start.L.SUBLAYER.SIDE`` begins the copy of a layer's pages to a side and ``moved.…`` ends it;
    ``pages.L.SUBLAYER.SIDE`` is where a half-kernel waits for its own pages.
    """
    graph = GraphBuilder()
    at = graph.task("host", "tables", graph.task("host", "decide"))
    moved: dict[tuple[int, str, str], int] = {}
    if shape.moving:
        for layer in range(shape.layers):
            for name in SUBLAYERS:
                for source, (link, target) in enumerate(zip(LINKS, reversed(SIDES), strict=True)):
                    moved[layer, name, target] = _copy(graph, shape, layer, name, SIDES[source], link, target, at)
    for layer in range(shape.layers):
        waited: dict[tuple[str, str], int] = {}
        for phase, name in shape.phases:
            outs = []
            for side, link in zip(SIDES, LINKS, strict=True):
                first = waited.get((name, side))
                if first is None:
                    own = (moved[layer, name, side],) if shape.moving else ()
                    first = waited[name, side] = graph.join(own, name=f"pages.{layer}.{name}.{side}")
                outs.append(_half(graph, shape, f"{phase}.{side}", side, link, (at, first)))
            at = graph.join(outs)
    graph.kernel(HEAD, "slow.chip", "slow.memory", at)
    return graph.build()


def _half(graph: GraphBuilder, shape: Shape, slot: str, side: str, link: str, after: tuple[int, ...]) -> int:
    ready = graph.join(after)
    walk = graph.task(f"{side}.mmu", f"{slot}.walk", ready)
    legs = [
        graph.task(f"{side}.chip", f"{slot}.compute", ready, tag=slot),
        graph.task(f"{side}.memory", f"{slot}.memory", walk, tag=slot),
    ]
    return graph.task(link, f"{slot}.out", legs, lag_ps=shape.lag_ps)


def _copy(
    graph: GraphBuilder, shape: Shape, layer: int, name: str, source: str, link: str, target: str, at: int
) -> int:
    where = f"{layer}.{name}.{target}"
    start = graph.join(at, background=True, name=f"start.{where}")
    legs = [
        graph.task(
            hop, f"move.{name}.{target}@{hop}", start, cls=BEHIND, chunk_ps=shape.chunk_ps[hop],
            lag_ps=0, background=True, tag=f"move.{name}",
        )
        for hop in (f"{source}.memory", link, f"{target}.memory")
    ]  # fmt: skip
    return graph.join(legs, background=True, name=f"moved.{where}")
