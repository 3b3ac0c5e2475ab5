"""Random task graphs, submitted by overlapping loops: to compare one engine with another.

They use everything a graph can: chains, forks and joins, delays and lags, classes, chunks, background work that
outlives its step, and handles that later steps and other loops wait for. Durations are a few ticks, so that most ticks
hold several events and every tie rule matters.
"""

import random

from attrs import frozen

from hetmem.engine.graph import Cost, GraphBuilder, Handle, TaskGraph
from hetmem.testing.reference import Loop

STEPS = 6
MAX_LOOPS = 3


@frozen
class RandomLoops:
    """A machine and the loops that use it, determined by ``seed``."""

    seed: int

    @property
    def servers(self) -> tuple[str, ...]:
        """Return the names of its one to five servers."""
        return tuple(f"s{i}" for i in range(random.Random(self.seed).randint(1, 5)))

    def loops(self) -> list[Loop]:
        """Return one to three loops, made anew; ranks do not depend on the order in which they are run."""
        shared: dict[tuple[int, int], Handle] = {}
        return [self._loop(k, shared) for k in range(random.Random(self.seed + 1).randint(1, MAX_LOOPS))]

    def _loop(self, k: int, shared: dict[tuple[int, int], Handle]) -> Loop:
        rng = random.Random(self.seed * MAX_LOOPS + k)
        recent: list[Handle] = []
        yield rng.randint(1, 20)
        for step in range(STEPS):
            # A loop waits for loops before it only, so that no two wait for each other.
            others = [shared.setdefault((loop, rng.randrange(STEPS)), Handle("shared")) for loop in range(k)]
            published = shared.setdefault((k, step), Handle("shared"))
            graph, made = self._graph(rng, [*recent, *others], published)
            recent = (recent + made)[-4:]
            yield graph, step * MAX_LOOPS + k
            if rng.random() < 0.4:
                yield rng.randint(1, 30)

    def _graph(self, rng: random.Random, handles: list[Handle], published: Handle) -> tuple[TaskGraph, list[Handle]]:
        servers, graph = self.servers, GraphBuilder()
        costs: dict[str, Cost] = {}
        publish, wait, made = {}, {}, []
        foreground: list[int] = []
        for i in range(rng.randint(3, 30)):
            after = rng.sample(foreground, min(len(foreground), rng.choice([0, 1, 1, 2, 3])))
            server, slot, kind = rng.choice(servers), f"t{i}", rng.random()
            if kind < 0.12:
                foreground.append(graph.join(after))
            elif kind < 0.18:
                costs[slot] = Cost(rng.randint(1, 5))
                foreground.append(graph.task(None, slot, after))
            elif kind < 0.22:
                costs[slot] = Cost(0)
                foreground.append(graph.task(server, slot, after, lag_ps=rng.choice([0, 2])))
            elif kind < 0.40:
                costs[slot] = Cost(rng.randint(1, 40), i, rng.randint(0, 9))
                cls, chunk, lag = rng.choice([1, 2]), rng.choice([0, 3, 4, 7]), rng.choice([0, 3])
                task = graph.task(server, slot, after, background=True, cls=cls, chunk_ps=chunk, lag_ps=lag)
                if rng.random() < 0.5:
                    publish[task] = Handle((i, slot))
                    made.append(publish[task])
            else:
                costs[slot] = Cost(rng.randint(1, 8), i, rng.randint(0, 9))
                lag, chunk = rng.choice([0, 0, 0, 2]), rng.choice([0, 0, 2])
                task = graph.task(server, slot, after, lag_ps=lag, chunk_ps=chunk)
                if handles and rng.random() < 0.15:
                    wait[task] = rng.choices(handles, k=rng.randint(1, 2))
                foreground.append(task)
        publish[graph.join(foreground[:2])] = published
        return graph.build().bind(costs, publish, wait), made
