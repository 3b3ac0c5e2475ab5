"""The task graph of a decode step on a GPU and near-data DIMMs with activation sparsity, numbers drawn at random.

Per layer: query, key and value projections on the GPU (hot neurons) beside the DIMMs (cold ones), merged; attention
on the DIMMs; the output projection on the GPU, beside it hot neurons copied over PCIe and cold ones moved between
DIMMs, in the background; the MLP split as before (Hermes, HPCA'25). One task per device and kernel, each with a
duration of its own: for comparing and timing engines, on something of the shape and size of the real thing.
"""

import random
from collections.abc import Iterator

from attrs import frozen

from hetmem.engine.graph import Cost, GraphBuilder, TaskGraph, Template
from hetmem.testing.reference import Loop

COPY_CHUNK_PS = 2_000_000


@frozen
class SparseSteps:
    """Decode steps of a model with ``layers`` layers on ``dimms`` DIMMs.

    ``copies`` says whether neurons move, ``alike`` whether all layers cost the same.
    """

    layers: int = 80
    dimms: int = 8
    copies: bool = True
    alike: bool = False

    @property
    def servers(self) -> tuple[str, ...]:
        """Return the names of the servers."""
        dimms = (f"dimm{d}" for d in range(self.dimms))
        links = (f"dimm-link{d}" for d in range(self.dimms // 2))
        return ("gpu", "pcie.h2d", "pcie.d2h", *dimms, *links)

    def template(self) -> Template:
        """Return the step's template."""
        graph = GraphBuilder()
        at = graph.join()
        for layer in range(self.layers):
            name = "" if self.alike else f"{layer}"
            at = self._split(graph, f"{name}.qkv", at)
            at = graph.join(self._on_dimms(graph, f"{name}.attention", at))
            merged = graph.task("pcie.h2d", f"{name}.merge", at)
            at = graph.task("gpu", f"{name}.projection", merged)
            if self.copies:
                hot = graph.task(
                    "pcie.h2d", f"{name}.copy", merged, cls=1, chunk_ps=COPY_CHUNK_PS, background=True
                )  # fmt: skip
                graph.join(hot, background=True)
                for link in range(self.dimms // 2):
                    graph.task(f"dimm-link{link}", f"{name}.move{link}", merged, cls=1, background=True)
            at = self._split(graph, f"{name}.mlp", at)
        graph.task("gpu", "head", at)
        return graph.build()

    def loop(self, steps: int, seed: int = 0) -> Loop:
        """Return a loop of ``steps`` steps, for :func:`hetmem.testing.drive`."""
        for step, graph in enumerate(self.graphs(steps, seed)):
            yield graph, step

    def graphs(self, steps: int, seed: int = 0) -> Iterator[TaskGraph]:
        """Yield the bound graphs of ``steps`` steps."""
        rng, template = random.Random(seed), self.template()
        for _ in range(steps):
            yield template.bind({slot: self._cost(rng, slot) for slot in template.slot_names if slot})

    def _cost(self, rng: random.Random, slot: str) -> Cost:
        longest = 25_000_000 if slot.endswith("copy") else 5_000_000
        return Cost(rng.randint(longest // 5, longest), rng.randint(1, 9), rng.randint(1, 9))

    def _split(self, graph: GraphBuilder, slot: str, at: int) -> int:
        hot = graph.task("gpu", f"{slot}.hot", at)
        sent = graph.task("pcie.d2h", f"{slot}.sent", at)
        cold = graph.join(self._on_dimms(graph, slot, sent))
        return graph.join([hot, graph.task("pcie.h2d", f"{slot}.back", cold)])

    def _on_dimms(self, graph: GraphBuilder, slot: str, at: int) -> list[int]:
        return [graph.task(f"dimm{d}", f"{slot}.dimm{d}", at) for d in range(self.dimms)]
