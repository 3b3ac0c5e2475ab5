"""Streaming weights: layers that are not in GPU memory are copied there, ahead of the kernels that need them.

A *stage* is what is loaded at once: a layer, or the head. Stage ``i`` is loaded when the buffer of stage
``i - depth - 1`` is free again, so ``depth`` stages are under way or waiting while one computes.
"""

from collections.abc import Sequence

from attrs import frozen

from hetmem.engine.graph import GraphBuilder


@frozen
class Stage:
    """One stage: the slot of its kernel, and of its load (None when its weights are resident)."""

    compute: str
    load: str | None


@frozen
class Path:
    """The hops of a copy and its fixed latency."""

    hops: tuple[str, ...]
    lag_ps: int


def stream(
    graph: GraphBuilder, stages: Sequence[Stage], paths: Sequence[Path], depth: int, at: int, warm: int, ahead: int
) -> int:
    """Add ``stages`` to ``graph`` and return the task that ends the last.

    Parameters
    ----------
    paths
        The hops of a load, one path per tier from the far one to the GPU: each tier's copy follows the one
        before it.
    depth
        Stages loaded ahead of the one that computes; 0 loads each when it is needed.
    at
        The task that starts it all.
    warm
        Loads of the first stages that were issued by the step before; their kernels wait for handles instead,
        at the tasks named ``ready.<stage>``.
    ahead
        First stages of the next step to load already, in the background, as ``next.<stage>``.
    """
    loaded, done = [at] * len(paths), [at] * len(stages)
    last = at
    for i in range(len(stages) + ahead):
        beyond = i >= len(stages)
        stage = stages[i - len(stages)] if beyond else stages[i]
        ready = last
        if stage.load is not None and (beyond or i >= warm):
            freed = done[i - depth - 1] if i > depth else at
            for tier, path in enumerate(paths):
                before = (loaded[tier], freed if tier == 0 else loaded[tier - 1])
                name = f"next.{i - len(stages)}" if beyond and tier == len(paths) - 1 else None
                loaded[tier] = graph.transfer(
                    stage.load, path.hops, dict.fromkeys(before), lag_ps=path.lag_ps, background=beyond, name=name
                )
            ready = loaded[-1]
        elif stage.load is not None:
            ready = graph.join(last, name=f"ready.{i}")
        if not beyond:
            after = tuple(dict.fromkeys((last, ready)))
            last = done[i] = graph.kernel(stage.compute, "gpu0", "gpu0.hbm", after)
    return last
