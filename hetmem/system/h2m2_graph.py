"""The task graph of ``h2m2``: decision and tables on the host, copies behind, and layers of halves and barriers.

A half is a compute leg on the chip, and a walk on the memory management unit before the stream from memory; its
outputs then go over the link. A copy is a leg per hop, all started together, in the background and in chunks of a
page, so that demand traffic passes at page boundaries.
"""

from collections.abc import Iterable, Mapping

from attrs import frozen

from hetmem.engine.graph import GraphBuilder, Template
from hetmem.policy.kernel_mapping import SIDES
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
    copied
        (sub-layer, side that they go to) of the pages that change sides.
    awaited
        (sub-layer, side) of the pages that a half-kernel waits for: copied there, or short of frames.
    idle
        Slots without work, whose tasks are left out.
    lag_ps
        Latency of the link for one task.
    chunk_ps
        Ticks of a page at each server of a copy.
    """

    phases: tuple[tuple[str, str], ...]
    layers: int
    copied: tuple[tuple[str, int], ...]
    awaited: frozenset[tuple[str, int]]
    idle: frozenset[str]
    lag_ps: int
    chunk_ps: Mapping[str, int]


def build(shape: Shape) -> Template:
    """Return the template of a step.

    Named tasks: ``start.L.SUBLAYER.SIDE`` begins the copy of a layer's pages to a side and ``moved.…`` ends it;
    ``pages.L.SUBLAYER.SIDE`` is where a half-kernel waits for its own pages.
    """
    graph = GraphBuilder()
    at = _task(graph, shape, "host", "tables", _task(graph, shape, "host", "decide", ()))
    moved = {
        (layer, name, to): _copy(graph, shape, layer, name, to, at)
        for layer in range(shape.layers)
        for name, to in shape.copied
    }
    for layer in range(shape.layers):
        begun: set[str] = set()
        for phase, name in shape.phases:
            outs = []
            for index, (side, link) in enumerate(zip(SIDES, LINKS, strict=True)):
                ready = at
                if (name, index) in shape.awaited and name not in begun:  # later phases follow the first
                    own = [moved[layer, name, index]] if (layer, name, index) in moved else []
                    ready = graph.join([at, *own], name=f"pages.{layer}.{name}.{side}")
                outs.append(_half(graph, shape, f"{phase}.{side}", side, link, ready))
            begun.add(name)
            at = graph.join(outs)
    _kernel(graph, shape, HEAD, "slow", at, at)
    return graph.build()


def _task(
    graph: GraphBuilder, shape: Shape, server: str, slot: str, after: int | Iterable[int], *, lag_ps: int = 0,
    tag: str = "",
) -> int:  # fmt: skip
    """Add a task, or what is left of it where it has no work: a join, and the lag."""
    if slot in shape.idle:
        return graph.task(None, None, after, lag_ps=lag_ps)
    return graph.task(server, slot, after, lag_ps=lag_ps, tag=tag)


def _kernel(graph: GraphBuilder, shape: Shape, slot: str, side: str, ready: int, walked: int) -> tuple[int, int]:
    """Add the compute and the memory leg of a kernel."""
    return (
        _task(graph, shape, f"{side}.chip", f"{slot}.compute", ready, tag=slot),
        _task(graph, shape, f"{side}.memory", f"{slot}.memory", walked, tag=slot),
    )


def _half(graph: GraphBuilder, shape: Shape, slot: str, side: str, link: str, ready: int) -> int:
    walk = _task(graph, shape, f"{side}.mmu", f"{slot}.walk", ready)
    legs = _kernel(graph, shape, slot, side, ready, walk)
    return _task(graph, shape, link, f"{slot}.out", legs, lag_ps=shape.lag_ps)


def _copy(graph: GraphBuilder, shape: Shape, layer: int, name: str, to: int, at: int) -> int:
    source, link, target = SIDES[1 - to], LINKS[1 - to], SIDES[to]
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
