"""The physical floor: no step may be faster than its bytes over the peak rates that they come at.

The bound comes from the model and the placement, independently of the task graph, so that a graph that forgets
work is found out.
"""

from collections.abc import Callable

from hetmem.engine.step import StepOutcome, StepView
from hetmem.errors import ConservationError
from hetmem.units import PS_PER_S


class FloorCheck:
    """Compares every step with its bound and remembers the worst.

    Parameters
    ----------
    floor_s
        The bound of a step in seconds.
    """

    def __init__(self, floor_s: Callable[[StepView], float]) -> None:
        self._floor_s = floor_s
        self._worst: tuple[float, StepOutcome] | None = None

    def check(self, outcome: StepOutcome) -> None:
        """Compare one step; a part in 1e9 is left to rounding."""
        floor = self._floor_s(outcome.view) * PS_PER_S * (1 - 1e-9)
        lasted = outcome.end_ps - outcome.start_ps
        if lasted < floor and (self._worst is None or floor - lasted > self._worst[0]):
            self._worst = (floor - lasted, outcome)

    def raise_if_broken(self) -> None:
        """Raise :class:`ConservationError` if any step beat its bound."""
        if self._worst is not None:
            short, outcome = self._worst
            lasted = outcome.end_ps - outcome.start_ps
            raise ConservationError(
                "physical lower bound",
                f"step {outcome.view.order} took {lasted / 1e9:.6f} ms, {short / 1e9:.6f} ms less than its bytes need",
            )
