"""Who runs: how many sequences may join a step (batching), and in which order they wait (admission).

The KV capacity and the token budget are mechanisms of the decode loop; these policies never see the true
output length of a request.
"""

from attrs import field, frozen, validators


@frozen
class BatchView:
    """What a batching policy sees: sequences running and waiting."""

    running: int
    waiting: int


@frozen
class StaticBatch:
    """A batch of up to ``size`` sequences starts together, and the next when all of it is finished."""

    size: int = field(validator=validators.ge(1))

    def decide(self, view: BatchView) -> int:
        """Return how many waiting sequences may join now."""
        return min(self.size, view.waiting) if view.running == 0 else 0


@frozen
class ContinuousBatch:
    """Sequences join whenever fewer than ``size`` run (iteration-level scheduling, Orca, OSDI'22)."""

    size: int = field(validator=validators.ge(1))

    def decide(self, view: BatchView) -> int:
        """Return how many waiting sequences may join now."""
        return max(0, min(self.size - view.running, view.waiting))


@frozen
class FirstComeFirstServed:
    """Requests wait in the order of their arrival."""

    def decide(self, prompt_tokens: int, arrival: int) -> tuple[int, int]:
        """Return the sort key of the ``arrival``-th request; the least is admitted first."""
        return (arrival, 0)


@frozen
class ShortestPromptFirst:
    """The request with the shortest prompt is admitted first; equal prompts in the order of arrival."""

    def decide(self, prompt_tokens: int, arrival: int) -> tuple[int, int]:
        """Return the sort key of the ``arrival``-th request; the least is admitted first."""
        return (prompt_tokens, arrival)
