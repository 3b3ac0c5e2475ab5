"""The zig-zag block schedule: each layer runs over all GPU batches before the next (FlexGen, ICML 2023).

An *iteration* is one GPU batch in one layer. While it computes, the next iteration's keys and values and hidden
states are loaded, those of the one before are stored, and a part of the next layer's weights arrives; the last
layer is followed by the head, and the head by the first layer of the next step. Every buffer is double: a load
starts when the iteration before the current one is done, a result is overwritten two iterations later.
Not modelled: FlexGen's barrier after every iteration; tasks wait for what they need only.
"""

from collections.abc import Mapping

from attrs import frozen

from hetmem.engine.graph import GraphBuilder, Template
from hetmem.system.stream import Path


@frozen
class Block:
    """The shape of a step.

    Attributes
    ----------
    layers, parts
        Layers, and GPU batches.
    paths
        The path of each transfer that there is, of ``weights``, ``kv-in``, ``kv-out``, ``act-in``, ``act-out``,
        ``send`` and ``back``. The last two surround attention on the CPU; without them the GPU attends.
    divided
        Whether, beside the CPU, the GPU attends to a share.
    warm
        Whether the step before loads the weights of the first layer.
    """

    layers: int
    parts: int
    paths: Mapping[str, Path]
    divided: bool
    warm: bool

    def template(self) -> Template:
        """Return the graph.

        Slots: ``KIND.PART@HOP`` for the transfers of a GPU batch, ``weights``, ``head-weights`` and
        ``first-weights`` for a part of a layer's, a part of the head's and all of the first layer's; kernels
        ``layer.PART`` or, around attention on the CPU, ``before.PART``, ``cpu.PART``, ``gpu.PART`` and
        ``after.PART``; ``head``. The first layer's weights are waited for at ``ready`` and loaded ahead at ``next``.
        """
        graph = GraphBuilder()
        start = graph.join()
        steps = self.layers * self.parts
        done, loaded = [start], self._first(graph, start)
        kv_in, kv_out, act_out = [self._copy(graph, "kv-in", "kv-in.0", [start])], [start], [start]
        act_in = start
        for t in range(steps):
            layer, part = divmod(t, self.parts)
            following, then = divmod(t + 1, self.parts)
            # The buffers that this iteration's loads fill, and its own results, were freed by the one before.
            begin = done[-1]
            needs = [begin, kv_in[-1], act_in, kv_out[max(0, t - 1)], act_out[max(0, t - 1)]]
            if part == 0:
                needs.append(loaded)
            if t + 1 < steps:
                kv_in.append(self._copy(graph, "kv-in", f"kv-in.{then}", [begin, kv_in[-1]]))
            if "act-in" in self.paths and following and t + 1 < steps:
                act_in = self._copy(graph, "act-in", f"act-in.{then}", [begin, act_out[t + 2 - self.parts]])
            slot = "weights" if layer + 1 < self.layers else "head-weights"
            loaded = self._copy(graph, "weights", slot, [begin] if part == 0 else [begin, loaded])
            done.append(self._compute(graph, part, needs))
            kv_out.append(self._copy(graph, "kv-out", f"kv-out.{part}", [done[-1], kv_out[-1]]))
            if layer + 1 < self.layers:
                act_out.append(self._copy(graph, "act-out", f"act-out.{part}", [done[-1], act_out[-1]]))
            else:
                act_out.append(done[-1])
        if "weights" in self.paths:
            path = self.paths["weights"]
            graph.transfer("first-weights", path.hops, _once([done[-1], loaded]), lag_ps=path.lag_ps,
                           background=True, name="next")  # fmt: skip
        graph.kernel("head", "gpu0", "gpu0.hbm", _once([done[-1], loaded]))
        return graph.build()

    def _first(self, graph: GraphBuilder, start: int) -> int:
        if self.warm:
            return graph.join(start, name="ready")
        return self._copy(graph, "weights", "first-weights", [start])

    def _copy(self, graph: GraphBuilder, kind: str, slot: str, after: list[int]) -> int:
        """Add a transfer, where there is one; else what it would have waited for."""
        path = self.paths.get(kind)
        if path is None:
            return max(after)
        return graph.transfer(slot, path.hops, _once(after), lag_ps=path.lag_ps)

    def _compute(self, graph: GraphBuilder, part: int, needs: list[int]) -> int:
        after = _once(needs)
        if "send" not in self.paths:
            return graph.kernel(f"layer.{part}", "gpu0", "gpu0.hbm", after)
        before = graph.kernel(f"before.{part}", "gpu0", "gpu0.hbm", after)
        sent = self._copy(graph, "send", f"send.{part}", [before])
        attended = graph.kernel(f"cpu.{part}", "cpu", "host", sent)
        ends = [self._copy(graph, "back", f"back.{part}", [attended])]
        if self.divided:
            ends.append(graph.kernel(f"gpu.{part}", "gpu0", "gpu0.hbm", before))
        return graph.kernel(f"after.{part}", "gpu0", "gpu0.hbm", ends)


def _once(tasks: list[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(tasks))
