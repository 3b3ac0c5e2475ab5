"""Streaming weights: layers that are not in GPU memory are copied there, ahead of the kernels that need them.

A *stage* is what is loaded at once: a layer, or the head. A copy passes one *tier* after the other, each with a
buffer of its own at its end: that of a tier of depth ``d`` holds the stage that is in use and ``d`` stages that are
loaded ahead of it. In use is, at the GPU, the stage that computes; before it, the one that the next tier copies.
"""

from collections.abc import Sequence
from itertools import accumulate

from attrs import frozen

from hetmem.engine.graph import GraphBuilder


@frozen
class Stage:
    """One stage: the slot of its kernel, and of its load (None when its weights are resident).

    ``reads`` and ``writes`` are the slots of the keys and values that the kernel needs and leaves, None where it
    has none to copy.
    """

    compute: str
    load: str | None
    reads: str | None = None
    writes: str | None = None


@frozen
class Path:
    """The hops of a copy and its fixed latency."""

    hops: tuple[str, ...]
    lag_ps: int


def reach(depths: Sequence[int], n_stages: int) -> list[int]:
    """Return how many stages each tier may have loaded beyond the one that computes, fewer than ``n_stages``."""
    return [min(ahead, n_stages - 1) for ahead in accumulate(reversed(depths))][::-1]


def stream(
    graph: GraphBuilder, stages: Sequence[Stage], paths: Sequence[Path], depths: Sequence[int], at: int, *,
    warm: bool = False, ahead: bool = False, kv: tuple[Path, Path] | None = None,
) -> int:  # fmt: skip
    """Add ``stages`` to ``graph`` and return the task that ends the last.

    Parameters
    ----------
    paths
        The hops of a load, one path per tier from the far one to the GPU: each tier's copy follows the one
        before it.
    depths
        Stages that each tier loads ahead; 0 loads each when it is needed.
    at
        The task that starts it all.
    warm
        Whether the step before loaded the first stages ahead. They wait for handles at the tasks named
        ``ready.<stage>`` where they are in GPU memory, ``staged.<stage>`` where an earlier tier holds them.
    ahead
        Whether to load the first stages of the next step, in the background: the copies to wait for then are
        named ``next.<stage>`` and ``next-staged.<stage>``. Only where all stages are loaded, over two tiers at most.
    kv
        The paths of ``reads`` and ``writes``. Both pass a buffer of as many layers as the weights' last one.
    """
    n, tiers, depth = len(stages), range(len(paths)), depths[-1]
    warmed = reach(depths, n) if warm else [0 for _ in tiers]
    beyond = reach(depths, n) if ahead else [0 for _ in tiers]
    done, written = [at] * n, [at] * n
    loaded: list[dict[int, int]] = [{} for _ in tiers]  # of each tier, the task that ends the load of a stage
    newest = [at for _ in tiers]
    last = at

    def load(i: int) -> None:
        slot = stages[i % n].load
        assert slot is not None
        for tier in tiers:
            final = tier == tiers[-1]
            if i < warmed[tier]:
                if final or i >= warmed[-1]:
                    name = f"{'ready' if final else 'staged'}.{i}"
                    loaded[tier][i] = newest[tier] = graph.join(at, name=name)
            elif i < n + beyond[tier]:
                over = i - depths[tier] - 1  # whose buffer this stage takes
                freed = at if over < 0 else done[over] if final else loaded[tier + 1][over]
                arrived = (loaded[tier - 1][i],) if tier else ()
                before = dict.fromkeys((newest[tier], freed, *arrived))
                later, name = i >= n, None
                if later and (final or i - n >= beyond[-1]):
                    name = f"{'next' if final else 'next-staged'}.{i - n}"
                loaded[tier][i] = newest[tier] = graph.transfer(
                    slot, paths[tier].hops, before, lag_ps=paths[tier].lag_ps, background=later, name=name
                )

    for i in range(n + max(beyond)):
        if stages[i % n].load is not None:
            load(i)
        if i >= n:
            continue
        stage, needs = stages[i], {last: None}
        if stage.load is not None:
            needs[loaded[-1][i]] = None
        if kv is not None and i > depth:
            needs[written[i - depth - 1]] = None
        if kv is not None and stage.reads is not None:
            free = (at,) if i <= depth else dict.fromkeys((done[i - depth - 1], written[i - depth - 1]))
            needs[graph.transfer(stage.reads, kv[0].hops, free, lag_ps=kv[0].lag_ps)] = None
        last = done[i] = written[i] = graph.kernel(stage.compute, "gpu0", "gpu0.hbm", tuple(needs))
        if kv is not None and stage.writes is not None:
            written[i] = graph.transfer(stage.writes, kv[1].hops, last, lag_ps=kv[1].lag_ps)
    return last if kv is None else graph.join(tuple(dict.fromkeys((last, *written))))
